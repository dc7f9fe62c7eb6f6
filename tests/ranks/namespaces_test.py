"""Two ranks on two "machines": network namespaces that are joined by a pair of virtual Ethernet ends, TCP between
them. Needs root and CAP_NET_ADMIN; skipped with a reason otherwise."""
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import launching

NAMES = [f"lathe{os.getpid() % 10000}{letter}" for letter in "ab"]
ADDRESSES = ["10.213.7.1", "10.213.7.2"]


def ip(*arguments):
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    return done.returncode, done.stderr.strip()


def remove_namespaces():
    for name in NAMES:
        ip("netns", "del", name)


def make_namespaces():
    """None, or the reason why not."""
    steps = [["netns", "add", name] for name in NAMES]
    ends = [f"v{name}" for name in NAMES]
    steps.append(["link", "add", ends[0], "netns", NAMES[0], "type", "veth", "peer", "name", ends[1], "netns", NAMES[1]])
    for name, end, address in zip(NAMES, ends, ADDRESSES):
        steps += [["-n", name, "addr", "add", address + "/24", "dev", end], ["-n", name, "link", "set", end, "up"],
                  ["-n", name, "link", "set", "lo", "up"]]
    for step in steps:
        code, error = ip(*step)
        if code != 0:
            remove_namespaces()
            return f"ip {' '.join(step)}: {error}"
    return None


# What ssh would be between machines: `launcher HOST COMMAND...` runs the command in the namespace of that address.
LAUNCHER = f"""#!/bin/sh
while [ "${{1#-}}" != "$1" ]; do shift; done
host=$1
shift
case $host in
  {ADDRESSES[0]}) name={NAMES[0]} ;;
  {ADDRESSES[1]}) name={NAMES[1]} ;;
  *) echo "no namespace for $host" >&2; exit 1 ;;
esac
exec ip netns exec $name unshare --uts sh -c "hostname $name; $*"
"""


class Namespaces(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = pathlib.Path(self.temporary.name)
        (self.folder / "tiny").mkdir()
        self.model = launching.serving.make_tiny_model(self.folder / "tiny")
        self.text = launching.write_text(self.folder / "text.txt")
        self.launcher = self.folder / "launcher"
        self.launcher.write_text(LAUNCHER)
        self.launcher.chmod(0o755)

    def tearDown(self):
        self.temporary.cleanup()

    def mpirun(self, *command):
        """In the first namespace, one rank in each."""
        return launching.run(
            ["ip", "netns", "exec", NAMES[0], "unshare", "--uts", "sh", "-c", f'hostname {NAMES[0]}; exec "$@"', "sh",
             "mpirun", "--host", f"{ADDRESSES[0]}:1,{ADDRESSES[1]}:1", "-n", "2", "--bind-to", "none",
             "--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "10.213.7.0/24",
             "--mca", "oob_tcp_if_include", "10.213.7.0/24", "--mca", "plm", "rsh",
             "--mca", "plm_rsh_agent", str(self.launcher), "-x", "LSAN_OPTIONS", *command], timeout=300)

    def test_two_ranks_over_tcp_make_what_two_on_one_machine_make(self):
        flags = ["--calibration", str(self.text), "--samples", "12", "--seq-len", "64", "--threads", "1"]
        here, there = self.folder / "here", self.folder / "there"
        done = launching.lathe("quantize", self.model, here, *flags, ranks=2)
        self.assertEqual(done.returncode, 0, done.stderr)
        # Bytes that crossed the virtual Ethernet, counted at its end.
        before = self.bytes_received()
        done = self.mpirun(launching.PROGRAM, "quantize", self.model, str(there), *flags)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertGreater(self.bytes_received() - before, 1 << 16)
        self.assertEqual(launching.digests(here), launching.digests(there))

    def bytes_received(self):
        done = subprocess.run(["ip", "netns", "exec", NAMES[1], "cat", "/proc/net/dev"], capture_output=True, text=True)
        line = next(line for line in done.stdout.splitlines() if f"v{NAMES[1]}" in line)
        return int(line.split(":")[1].split()[0])

    def test_a_failure_names_the_rank_and_its_host(self):
        done = self.mpirun("sh", "-c", f'[ $OMPI_COMM_WORLD_RANK = 1 ] && T=none || T={self.text}; '
                           f'exec {launching.PROGRAM} quantize {self.model} {self.folder}/bad --calibration $T')
        self.assertNotEqual(done.returncode, 0)
        lines = launching.failure_lines(done)
        self.assertEqual(len(lines), 1, done.stderr)
        self.assertIn(f"rank 1 of 2 (host {NAMES[1]})", lines[0])


if __name__ == "__main__":
    launching.need_mpirun()
    if not launching.HAS_MPI:
        print("skipped: built without MPI")
        sys.exit(launching.SKIPPED)
    reason = make_namespaces() if os.geteuid() == 0 else "not root"
    if reason is not None:
        print("skipped: no network namespaces here: " + reason)
        sys.exit(launching.SKIPPED)
    try:
        passed = unittest.main(exit=False).result.wasSuccessful()
    finally:
        remove_namespaces()
    sys.exit(not passed)
