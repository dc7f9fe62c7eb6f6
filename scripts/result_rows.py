"""Rows of a table of results, kept as JSON lines while they are measured, and the program that measures them."""
import json
import os
import shlex
import subprocess
import sys
import threading


def lathe(args, device, *words):
    """Runs args.lathe with args.threads threads and returns what it printed as JSON; its error as RuntimeError."""
    command = [args.lathe, *map(str, words), "--device", device, "--threads", str(args.threads), "--json"]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}: {(run.stderr.strip().splitlines() or ['failed'])[-1]}")
    return json.loads(run.stdout)


class Journal:
    """What was measured so far. A line is written at once, so that threads and processes do not mix theirs; one that a
    killed run left unfinished is left out, and measured again."""

    def __init__(self, path):
        self.path = path
        self.lock = threading.Lock()
        self.rows = []
        text = path.read_text() if path.exists() else ""
        for number, line in enumerate(text.splitlines(), 1):
            try:
                self.rows += [json.loads(line)] if line.strip() else []
            except ValueError:
                print(f"{path}:{number}: not a whole row, left out", file=sys.stderr)
        self.is_torn = bool(text) and not text.endswith("\n")

    def find(self, **key):
        return next((row for row in self.rows if all(row.get(name) == value for name, value in key.items())), None)

    def add(self, row):
        with self.lock:
            line = "\n" * self.is_torn + json.dumps(row) + "\n"
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(file, line.encode())
            finally:
                os.close(file)
            self.is_torn = False
            self.rows.append(row)
