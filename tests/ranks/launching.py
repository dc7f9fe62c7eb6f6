"""Runs the program under mpirun, on the tiny model of tests/server/serving.py."""
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "server"))
import serving  # noqa: E402

PROGRAM = os.environ.get("LATHE_BINARY", str(serving.ROOT / "build/release/lathe"))
HAS_MPI = os.environ.get("LATHE_HAS_MPI", "1") == "1"
SKIPPED = serving.SKIPPED
# Sanitizers: what Open MPI allocates once and keeps is not lathe's leak.
SUPPRESSIONS = pathlib.Path(__file__).resolve().parent / "mpi.lsan"
ENVIRONMENT = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
               "LSAN_OPTIONS": f"suppressions={SUPPRESSIONS}:print_suppressions=0"}
# Shared memory without ptrace, which containers forbid; processors are shared with other tests.
MPIRUN = ["mpirun", "--oversubscribe", "--bind-to", "none", "--mca", "btl_vader_single_copy_mechanism", "none"]


def need_mpirun():
    if shutil.which("mpirun") is None:
        print("skipped: no mpirun (scripts/install-deps installs Open MPI)")
        sys.exit(SKIPPED)


def run(command, timeout=300):
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT)


def lathe(*arguments, ranks=None, **options):
    """The program alone, or with `ranks` ranks."""
    launcher = [] if ranks is None else [*MPIRUN, "-n", str(ranks)]
    return run([*launcher, PROGRAM, *map(str, arguments)], **options)


def lathe_by_rank(script, ranks=2, **options):
    """A line of shell for each rank: $R is the rank, "$LATHE" the program."""
    return run([*MPIRUN, "-n", str(ranks), "sh", "-c", f'R=$OMPI_COMM_WORLD_RANK; LATHE="{PROGRAM}"; {script}'],
               **options)


def failure_lines(done):
    """What lathe itself says on standard error; mpirun adds lines of its own."""
    return [line for line in done.stderr.splitlines() if line.startswith("lathe: ")]


def digests(directory):
    """{file name: SHA-256}; of lathe.json without what names the run."""
    result = {}
    for path in sorted(pathlib.Path(directory).iterdir()):
        content = path.read_bytes()
        if path.name == "lathe.json":
            manifest = json.loads(content)
            del manifest["created"], manifest["command"]
            content = json.dumps(manifest, sort_keys=True).encode()
        result[path.name] = hashlib.sha256(content).hexdigest()
    return result


def write_text(path, lines=900):
    path.write_text("".join(f"Line {i * 37 % 101} of a text that goes on, {i * i % 89} times or {i % 13}.\n"
                            for i in range(lines)))
    return path
