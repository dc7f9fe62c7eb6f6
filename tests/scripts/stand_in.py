"""A program in place of lathe, in a directory of its own: what tests of scripts share."""
import json
import tempfile
import unittest
from pathlib import Path


class StandInTest(unittest.TestCase):
    PROGRAM = ""  # the stand-in's text; it may write a line of JSON for each call to the file `calls` beside it

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name)
        (self.path / "lathe").write_text(self.PROGRAM)
        (self.path / "lathe").chmod(0o755)

    def calls(self):
        return [json.loads(line) for line in (self.path / "calls").read_text().splitlines()]
