"""For tests that compare with libraries of others. To import it is to run in the Python that LATHE_PEER_PYTHON
names, where it does; a library that is not installed ends the process as skipped:

    with peer.libraries():
        import torch
"""
import contextlib
import os
import sys

SKIPPED = 77  # CTest counts this exit code as skipped

_python = os.environ.pop("LATHE_PEER_PYTHON", None)
if _python:
    os.execv(_python, [_python, *sys.argv])

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")


@contextlib.contextmanager
def libraries():
    try:
        yield
    except ImportError as missing:
        print(f"{missing.name} is not installed")
        sys.exit(SKIPPED)
