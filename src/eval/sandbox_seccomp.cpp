#include "eval/sandbox_seccomp.h"

#include <asm/ioctls.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <iterator>

namespace lathe {
namespace {

#if defined(__x86_64__)
constexpr uint32_t kArchitecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr uint32_t kArchitecture = AUDIT_ARCH_AARCH64;
#else
constexpr uint32_t kArchitecture = 0;  // install_sandbox_filter() refuses
#endif

constexpr int kAllowed[] = {
    // files: the mount tree decides what they can reach
    __NR_read,
    __NR_write,
    __NR_readv,
    __NR_writev,
    __NR_pread64,
    __NR_pwrite64,
    __NR_preadv,
    __NR_pwritev,
    __NR_close,
    __NR_close_range,
    __NR_fstat,
    __NR_newfstatat,
    __NR_statx,
    __NR_statfs,
    __NR_fstatfs,
    __NR_lseek,
    __NR_openat,
    __NR_openat2,
    __NR_faccessat,
    __NR_faccessat2,
    __NR_readlinkat,
    __NR_getcwd,
    __NR_chdir,
    __NR_fchdir,
    __NR_getdents64,
    __NR_mkdirat,
    __NR_unlinkat,
    __NR_renameat2,
    __NR_linkat,
    __NR_symlinkat,
    __NR_fchmod,
    __NR_fchmodat,
    __NR_fchown,
    __NR_fchownat,
    __NR_utimensat,
    __NR_truncate,
    __NR_ftruncate,
    __NR_fallocate,
    __NR_fadvise64,
    __NR_fsync,
    __NR_fdatasync,
    __NR_flock,
    __NR_fcntl,
    __NR_dup,
    __NR_dup3,
    __NR_pipe2,
    __NR_ppoll,
    __NR_pselect6,
    __NR_epoll_create1,
    __NR_epoll_ctl,
    __NR_epoll_pwait,
    __NR_eventfd2,
    __NR_timerfd_create,
    __NR_timerfd_settime,
    __NR_timerfd_gettime,
    __NR_signalfd4,
    __NR_memfd_create,
    __NR_sendfile,
    __NR_copy_file_range,
    __NR_splice,
    __NR_tee,
    __NR_umask,
    // memory
    __NR_mmap,
    __NR_mprotect,
    __NR_munmap,
    __NR_mremap,
    __NR_madvise,
    __NR_brk,
    __NR_mincore,
    __NR_msync,
    __NR_membarrier,
    // processes and signals: the pid namespace decides whom they can reach
    __NR_execve,
    __NR_exit,
    __NR_exit_group,
    __NR_wait4,
    __NR_waitid,
    __NR_getpid,
    __NR_getppid,
    __NR_gettid,
    __NR_getpgid,
    __NR_setpgid,
    __NR_getsid,
    __NR_setsid,
    __NR_kill,
    __NR_tkill,
    __NR_tgkill,
    __NR_uname,
    __NR_getrlimit,
    __NR_setrlimit,
    __NR_prlimit64,
    __NR_getrusage,
    __NR_times,
    __NR_sysinfo,
    __NR_getpriority,
    __NR_setpriority,
    __NR_sched_yield,
    __NR_sched_getaffinity,
    __NR_sched_setaffinity,
    __NR_sched_getparam,
    __NR_sched_getscheduler,
    __NR_sched_get_priority_max,
    __NR_sched_get_priority_min,
    __NR_getcpu,
    __NR_rt_sigaction,
    __NR_rt_sigprocmask,
    __NR_rt_sigreturn,
    __NR_rt_sigpending,
    __NR_rt_sigtimedwait,
    __NR_rt_sigsuspend,
    __NR_sigaltstack,
    __NR_restart_syscall,
    __NR_futex,
    __NR_set_tid_address,
    __NR_set_robust_list,
    __NR_get_robust_list,
    __NR_rseq,
    // time
    __NR_nanosleep,
    __NR_clock_nanosleep,
    __NR_clock_gettime,
    __NR_clock_getres,
    __NR_gettimeofday,
    __NR_getitimer,
    __NR_setitimer,
    __NR_timer_create,
    __NR_timer_settime,
    __NR_timer_gettime,
    __NR_timer_getoverrun,
    __NR_timer_delete,
    // identity, randomness
    __NR_getuid,
    __NR_geteuid,
    __NR_getgid,
    __NR_getegid,
    __NR_getgroups,
    __NR_getresuid,
    __NR_getresgid,
    __NR_capget,
    __NR_getrandom,
#if defined(__x86_64__)
    // older spellings, which aarch64 never had
    __NR_open,
    __NR_creat,
    __NR_stat,
    __NR_lstat,
    __NR_access,
    __NR_readlink,
    __NR_getdents,
    __NR_mkdir,
    __NR_rmdir,
    __NR_unlink,
    __NR_rename,
    __NR_renameat,
    __NR_link,
    __NR_symlink,
    __NR_chmod,
    __NR_chown,
    __NR_lchown,
    __NR_utime,
    __NR_utimes,
    __NR_futimesat,
    __NR_dup2,
    __NR_pipe,
    __NR_poll,
    __NR_select,
    __NR_epoll_create,
    __NR_epoll_wait,
    __NR_eventfd,
    __NR_signalfd,
    __NR_fork,
    __NR_vfork,
    __NR_getpgrp,
    __NR_time,
    __NR_alarm,
    __NR_pause,
    __NR_arch_prctl,
#endif
};

constexpr int kDeadly[] = {
    __NR_socket,
    __NR_socketpair,
    __NR_connect,
    __NR_bind,
    __NR_listen,
    __NR_accept,
    __NR_accept4,
    __NR_sendto,
    __NR_recvfrom,
    __NR_sendmsg,
    __NR_recvmsg,
    __NR_sendmmsg,
    __NR_recvmmsg,
    __NR_shutdown,
    __NR_getsockopt,
    __NR_setsockopt,
    __NR_getsockname,
    __NR_getpeername,
    __NR_ptrace,
    __NR_process_vm_readv,
    __NR_process_vm_writev,
    __NR_kcmp,
    __NR_pidfd_open,
    __NR_pidfd_getfd,
    __NR_pidfd_send_signal,
    __NR_mount,
    __NR_umount2,
    __NR_pivot_root,
    __NR_chroot,
    __NR_move_mount,
    __NR_open_tree,
    __NR_fsopen,
    __NR_fsconfig,
    __NR_fsmount,
    __NR_fspick,
    __NR_mount_setattr,
    __NR_setns,
    __NR_unshare,
    __NR_bpf,
    __NR_perf_event_open,
    __NR_keyctl,
    __NR_add_key,
    __NR_request_key,
    __NR_userfaultfd,
    __NR_io_uring_setup,
    __NR_io_uring_enter,
    __NR_io_uring_register,
    __NR_kexec_load,
    __NR_kexec_file_load,
    __NR_init_module,
    __NR_finit_module,
    __NR_delete_module,
    __NR_personality,
    __NR_swapon,
    __NR_swapoff,
    __NR_reboot,
    __NR_sethostname,
    __NR_setdomainname,
    __NR_acct,
    __NR_quotactl,
    __NR_settimeofday,
    __NR_clock_settime,
    __NR_clock_adjtime,
    __NR_adjtimex,
    __NR_syslog,
    __NR_name_to_handle_at,
    __NR_open_by_handle_at,
    __NR_fanotify_init,
    __NR_fanotify_mark,
    __NR_setuid,
    __NR_setgid,
    __NR_setresuid,
    __NR_setresgid,
    __NR_setgroups,
    __NR_capset,
#if defined(__x86_64__)
    __NR_iopl,
    __NR_ioperm,
    __NR_modify_ldt,
#endif
};

// Questions about a terminal and buffered bytes; everything else is not a terminal.
constexpr uint32_t kAllowedIoctls[] = {TCGETS, TIOCGWINSZ, FIONREAD, FIOCLEX, FIONCLEX, FIONBIO};

constexpr uint32_t kNamespaceFlags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET |
                                     CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP;

constexpr sock_filter statement(uint16_t code, uint32_t k) { return {code, 0, 0, k}; }
constexpr sock_filter jump(uint16_t code, uint32_t k, uint8_t if_true, uint8_t if_false) {
  return {code, if_true, if_false, k};
}
constexpr uint16_t kLoad = BPF_LD | BPF_W | BPF_ABS;
constexpr uint16_t kEqual = BPF_JMP | BPF_JEQ | BPF_K;
constexpr uint16_t kReturn = BPF_RET | BPF_K;
constexpr auto kKill = statement(kReturn, SECCOMP_RET_KILL_PROCESS);
constexpr auto kAllow = statement(kReturn, SECCOMP_RET_ALLOW);
constexpr sock_filter fail_with(uint32_t error) {
  return statement(kReturn, SECCOMP_RET_ERRNO | error);
}

constexpr std::size_t kMaxInstructions =
    2 * (std::size(kAllowed) + std::size(kDeadly) + std::size(kAllowedIoctls)) + 32;

struct Program {
  sock_filter instructions[kMaxInstructions];
  uint16_t length = 0;
  constexpr void add(sock_filter instruction) { instructions[length++] = instruction; }
};

constexpr Program make_program() {
  Program p = {};
  p.add(statement(kLoad, offsetof(seccomp_data, arch)));
  p.add(jump(kEqual, kArchitecture, 1, 0));
  p.add(kKill);
  p.add(statement(kLoad, offsetof(seccomp_data, nr)));
#if defined(__x86_64__)
  // The x32 interface numbers the same calls from 0x40000000 on: not a way around the list.
  p.add(jump(BPF_JMP | BPF_JGE | BPF_K, 0x40000000, 0, 1));
  p.add(kKill);
#endif
  // clone without new namespaces. Low half of argument 0; the flags of interest are in it. clone3
  // has them in memory, where a filter cannot look: ENOSYS, and libraries fall back to clone.
  p.add(jump(kEqual, __NR_clone, 0, 4));
  p.add(statement(kLoad, offsetof(seccomp_data, args[0])));
  p.add(jump(BPF_JMP | BPF_JSET | BPF_K, kNamespaceFlags, 0, 1));
  p.add(kKill);
  p.add(kAllow);
  constexpr auto kNumIoctls = std::size(kAllowedIoctls);
  p.add(jump(kEqual, __NR_ioctl, 0, static_cast<uint8_t>(2 + 2 * kNumIoctls)));
  p.add(statement(kLoad, offsetof(seccomp_data, args[1])));
  for (const uint32_t request : kAllowedIoctls) {
    p.add(jump(kEqual, request, 0, 1));
    p.add(kAllow);
  }
  p.add(fail_with(ENOTTY));
  for (const int call : kAllowed) {
    p.add(jump(kEqual, static_cast<uint32_t>(call), 0, 1));
    p.add(kAllow);
  }
  for (const int call : kDeadly) {
    p.add(jump(kEqual, static_cast<uint32_t>(call), 0, 1));
    p.add(kKill);
  }
  p.add(fail_with(ENOSYS));
  return p;
}

constexpr Program kProgram = make_program();

}  // namespace

int install_sandbox_filter() {
  if (kArchitecture == 0) return ENOSYS;
  const sock_fprog program = {kProgram.length, const_cast<sock_filter*>(kProgram.instructions)};
  return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0 ? 0 : errno;
}

}  // namespace lathe
