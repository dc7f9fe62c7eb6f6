#include "eval/sandbox.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <filesystem>
#include <fstream>

#include "base/atomic_file.h"
#include "base/error.h"

namespace lathe {
namespace {

using End = SandboxResult::End;

class SandboxTest : public testing::Test {
 protected:
  static const Sandbox& sandbox() {
    static const Sandbox instance;
    return instance;
  }
  void SetUp() override {
    try {
      sandbox();
    } catch (const Error& error) {
      const std::string reason = error.what();
      ASSERT_NE(reason.find("not available"), std::string::npos) << reason;
      GTEST_SKIP() << reason;
    }
  }
  static SandboxResult run(const std::string& program, double seconds = 10) {
    SandboxLimits limits;
    limits.wall_seconds = seconds;
    return sandbox().run_python(program, limits);
  }
  // The program sees an exception of this kind, and survives it.
  static void expect_refused(const std::string& statement, const std::string& exception) {
    const SandboxResult result = run("try:\n    " + statement + "\nexcept " + exception +
                                     ":\n    pass\nelse:\n    raise SystemExit('it worked')\n");
    EXPECT_TRUE(result.completed) << statement << ": " << result.reason();
  }
};

int64_t open_descriptors() {
  int64_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    ++count;
  }
  return count;
}

bool some_process_has(const std::string& argument) {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    std::ifstream file(entry.path() / "cmdline", std::ios::binary);
    const std::string command{std::istreambuf_iterator<char>(file), {}};
    if (command.find(argument) != std::string::npos) return true;
  }
  return false;
}

TEST_F(SandboxTest, CorrectProgramCompletes) {
  const SandboxResult result = run("import sys\nprint('out')\nprint('err', file=sys.stderr)\n");
  EXPECT_TRUE(result.completed) << result.reason();
  EXPECT_EQ(result.end, End::kExited);
  EXPECT_EQ(result.output, "out\n");
  EXPECT_EQ(result.errors, "err\n");
}

TEST_F(SandboxTest, WrongProgramsDoNot) {
  EXPECT_EQ(run("assert 1 == 2\n").reason(), "AssertionError");
  EXPECT_EQ(run("raise ValueError('no')\n").reason(), "ValueError: no");
  EXPECT_FALSE(run("def f(:\n").completed);
  EXPECT_FALSE(run(std::string("x = '\xff'\n")).completed);  // not UTF-8
}

TEST_F(SandboxTest, LeavingBeforeTheEndIsNotSuccess) {
  for (const char* leave : {"exit(0)", "import sys; sys.exit(0)", "import os; os._exit(0)",
                            "raise SystemExit", "quit()"}) {
    const SandboxResult result = run(std::string(leave) + "\nassert False\n");
    EXPECT_FALSE(result.completed) << leave;
    EXPECT_EQ(result.code, 0) << leave;
    EXPECT_EQ(result.reason(), "exited before its end") << leave;
  }
}

TEST_F(SandboxTest, StandardInputIsEmpty) {
  EXPECT_EQ(run("input()\n").reason(), "EOFError: EOF when reading a line");
}

TEST_F(SandboxTest, LongProgramsArrive) {
  const std::string filler(3 << 20, 'x');  // many times what a pipe holds
  EXPECT_TRUE(run("s = '" + filler + "'\nassert len(s) == 3 << 20\n").completed);
}

TEST_F(SandboxTest, InfiniteLoopTimesOut) {
  const auto start = std::chrono::steady_clock::now();
  const SandboxResult result = run("while True: pass\n", 1);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  EXPECT_EQ(result.end, End::kTimedOut);
  EXPECT_EQ(result.reason(), "timed out after 1 s");
  EXPECT_LT(elapsed.count(), 5);
  // Also one that refuses to be asked.
  EXPECT_EQ(run("import signal, time\n"
                "for s in range(1, 32):\n"
                "    try: signal.signal(s, signal.SIG_IGN)\n"
                "    except OSError: pass\n"
                "time.sleep(60)\n",
                1)
                .end,
            End::kTimedOut);
}

TEST_F(SandboxTest, InfiniteOutputIsCut) {
  for (const char* stream : {"stdout", "stderr"}) {
    const SandboxResult result =
        run(std::string("import sys\nwhile True: sys.") + stream + ".write('x' * 4096)\n");
    EXPECT_EQ(result.end, End::kOutputLimit) << stream;
    EXPECT_FALSE(result.completed);
    EXPECT_LE(result.output.size() + result.errors.size(), std::size_t{1} << 20);
  }
}

TEST_F(SandboxTest, ForkBombIsContained) {
  const SandboxResult bomb = run("import os\nwhile True:\n    os.fork()\n", 2);
  EXPECT_FALSE(bomb.completed);
  // And it is the process limit that stops it, not only the clock.
  const SandboxResult counted =
      run("import os, time\n"
          "made = 0\n"
          "try:\n"
          "    for i in range(100):\n"
          "        if os.fork() == 0: time.sleep(30)\n"
          "        made += 1\n"
          "except OSError:\n"
          "    pass\n"
          "assert 5 < made < 40, made\n");
  EXPECT_TRUE(counted.completed) << counted.reason();
}

TEST_F(SandboxTest, HugeAllocationFails) {
  expect_refused("x = bytearray(10 << 30)", "MemoryError");
}

TEST_F(SandboxTest, HugeFileFails) {
  expect_refused("open('/tmp/f', 'wb').write(bytes(17 << 20))", "OSError");
  // Many files below the limit run into the size of /tmp.
  expect_refused("[open(f'/tmp/{i}', 'wb').write(bytes(15 << 20)) for i in range(6)]", "OSError");
}

TEST_F(SandboxTest, NoNetwork) {
  const SandboxResult result = run("import socket\nsocket.create_connection(('127.0.0.1', 80))\n");
  EXPECT_EQ(result.end, End::kSignaled);
  EXPECT_EQ(result.code, SIGSYS);
  EXPECT_EQ(result.reason(), "killed: it made a forbidden system call");
}

TEST_F(SandboxTest, ForbiddenSystemCallsKill) {
  // Numbers are x86-64's.
#if defined(__x86_64__)
  for (const int number :
       {101 /* ptrace */, 165 /* mount */, 272 /* unshare */, 308 /* setns */,
        310 /* process_vm_readv */, 321 /* bpf */, 425 /* io_uring_setup */, 323 /* userfaultfd */,
        298 /* perf_event_open */, 250 /* keyctl */, 0x40000000 + 1 /* x32 write */}) {
    const SandboxResult result = run("import ctypes\nctypes.CDLL(None).syscall(" +
                                     std::to_string(number) + ", 0, 0, 0, 0, 0, 0)\n");
    EXPECT_EQ(result.code, SIGSYS) << number << ": " << result.reason();
  }
  // clone(CLONE_NEWUSER | SIGCHLD)
  EXPECT_EQ(run("import ctypes\nctypes.CDLL(None).syscall(56, 0x10000011, 0, 0, 0, 0)\n").code,
            SIGSYS);
  // Unknown calls are merely absent.
  EXPECT_TRUE(run("import ctypes\nassert ctypes.CDLL(None).syscall(999, 0) == -1\n").completed);
#endif
}

TEST_F(SandboxTest, CannotReadOutside) {
  for (const char* path : {"/etc/passwd", "/proc/self/environ", "/sys/kernel", "/root/.ssh",
                           "/home", "/var", "/dev/kmsg", "/usr/bin/env"}) {
    expect_refused("open('" + std::string(path) + "')", "FileNotFoundError");
  }
  const std::string secret =
      (std::filesystem::temp_directory_path() / ("secret" + std::to_string(getpid()))).string();
  write_file_atomically(secret, "secret");
  expect_refused("open('" + secret + "')", "FileNotFoundError");
  std::filesystem::remove(secret);
}

TEST_F(SandboxTest, CannotWriteOutside) {
  for (const char* path : {"/x", "/usr/lib/x", "/usr/x", "/dev/x"}) {
    expect_refused("open('" + std::string(path) + "', 'w')", "OSError");
  }
  expect_refused("import os; os.mkdir('/x')", "OSError");
  expect_refused("import os; os.remove('/usr/lib/os-release')", "OSError");
  EXPECT_TRUE(
      run("open('/tmp/x', 'w').write('y')\nassert open('/tmp/x').read() == 'y'\n").completed);
  // A run does not see what another one wrote.
  expect_refused("open('/tmp/x')", "FileNotFoundError");
}

TEST_F(SandboxTest, LinksDoNotLeadOut) {
  expect_refused("import os; os.symlink('/../../etc/passwd', '/tmp/l'); open('/tmp/l')",
                 "FileNotFoundError");
  expect_refused("import os; os.symlink('/proc/1/root', '/tmp/l'); os.listdir('/tmp/l')",
                 "FileNotFoundError");
  expect_refused("import os; os.chdir('/'); os.chdir('../../..'); open('etc/passwd')",
                 "FileNotFoundError");
}

TEST_F(SandboxTest, InheritsNothing) {
  ASSERT_EQ(setenv("LATHE_TEST_SECRET", "secret", 1), 0);
  EXPECT_TRUE(run("import os\n"
                  "assert 'LATHE_TEST_SECRET' not in os.environ\n"
                  "assert os.getuid() == 1000 and os.getgid() == 1000, os.getuid()\n"
                  "assert os.getpid() == 2 and os.getppid() == 1\n")
                  .completed);
  // Descriptors beyond the harness's own (0 to 4) are closed.
  const SandboxResult result =
      run("import os\n"
          "for fd in range(5, 1024):\n"
          "    try: os.fstat(fd)\n"
          "    except OSError: continue\n"
          "    raise SystemExit(f'{fd} is open')\n");
  EXPECT_TRUE(result.completed) << result.reason();
}

TEST_F(SandboxTest, HasNoCapabilities) {
  const SandboxResult result =
      run("import ctypes\n"
          "header = (ctypes.c_uint32 * 2)(0x20080522, 0)\n"
          "data = (ctypes.c_uint32 * 6)()\n"
          "assert ctypes.CDLL(None).capget(header, data) == 0\n"
          "assert list(data) == [0] * 6, list(data)\n");
  EXPECT_TRUE(result.completed) << result.reason();
}

TEST_F(SandboxTest, SignalsReachNobodyOutside) {
  const SandboxResult result =
      run("import os, signal\n"
          "for pid in (os.getppid(), 1):\n"
          "    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP):\n"
          "        try: os.kill(pid, number)\n"
          "        except PermissionError: pass\n"
          "try: os.kill(-1, signal.SIGKILL)\n"
          "except OSError: pass\n"
          "try:\n"
          "    os.kill(" +
          std::to_string(getpid()) +
          ", signal.SIGKILL)\n"
          "except ProcessLookupError: pass\n"
          "else: raise SystemExit('found the test')\n");
  EXPECT_TRUE(result.completed) << result.reason();
}

TEST_F(SandboxTest, DaemonsDieWithTheRun) {
  const std::string marker = "lathe-daemon-" + std::to_string(getpid());
  const std::string program =
      "import os, sys, time\n"
      "if os.fork() == 0:\n"
      "    os.setsid()\n"
      "    if os.fork() == 0:\n"
      "        os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(600)', '" +
      marker +
      "'])\n"
      "    os._exit(0)\n"
      "os.wait()\n"
      "time.sleep(0.5)\n";
  ASSERT_TRUE(run(program).completed);
  EXPECT_FALSE(some_process_has(marker));
  EXPECT_EQ(run(program + "while True: pass\n", 2).end, End::kTimedOut);
  EXPECT_FALSE(some_process_has(marker));
}

TEST_F(SandboxTest, ThreadsLeftRunningDoNotHoldUpTheVerdict) {
  EXPECT_TRUE(run("import threading, time\n"
                  "threading.Thread(target=time.sleep, args=(60,)).start()\n",
                  5)
                  .completed);
}

TEST_F(SandboxTest, HundredRunsLeakNothing) {
  run("pass\n");
  const int64_t before = open_descriptors();
  for (int i = 0; i < 100; ++i) {
    const SandboxResult result = i % 10 == 9 ? run("while True: pass\n", 0.05) : run("pass\n");
    ASSERT_EQ(result.completed, i % 10 != 9) << result.reason();
  }
  EXPECT_EQ(open_descriptors(), before);
  EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1);
  EXPECT_EQ(errno, ECHILD);
}

TEST_F(SandboxTest, MissingInterpreterIsAnError) {
  for (const char* path : {"/no/such/python", "/etc/passwd"}) {
    try {
      const Sandbox other(path);
      FAIL();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kNotFound);
    }
  }
}

}  // namespace
}  // namespace lathe
