"""make-judge-results: several rows at a time, a row that fails, and a table of what is there; a program in place of lathe."""
import json
import subprocess
import sys
import unittest
from pathlib import Path

from stand_in import StandInTest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/make-judge-results"

# The judge by the rule `kl` is not to be had; others let the more pass the larger the threshold. Where there is a file `race`,
# top-k 2 ends behind top-k 3.
LATHE = '''#!/usr/bin/env python3
import json, pathlib, sys, time
words = sys.argv[1:]
here = pathlib.Path(__file__).parent
with open(here / "calls", "a") as file:
    file.write(json.dumps(words) + "\\n")
result = {"accuracy": 0.5, "right": 5, "items": 10, "completion_tokens": 100, "generation_seconds": 2.0}
if "--judge" in words:
    judge, threshold = words[words.index("--judge") + 1], float(words[words.index("--judge-threshold") + 1])
    if judge == "kl":
        sys.exit("lathe: error: no such luck")
    rows, until = here / "out.jsonl", time.time() + 60
    while threshold == 2 and (here / "race").exists() and time.time() < until:
        if rows.exists() and "top-k 3" in rows.read_text():
            break
        time.sleep(0.01)
    paired = {"difference": -0.1, "interval_95": [-0.2, 0.0], "mcnemar_p": 0.25}
    speculative = {"tokens_per_cycle": 2.0, "acceptance": 0.5}
    result["speculative"] = speculative
    result["compared"] = {**result, "generation_seconds": 1.0, "paired": paired,
                          "speculative": {**speculative, "tokens_per_cycle": 2 + threshold}}
print(json.dumps(result))
'''


class MakeJudgeResults(StandInTest):
    PROGRAM = LATHE

    def run_script(self, *rules, words=()):
        return subprocess.run([sys.executable, SCRIPT, "--target", "big", "--draft", "small", "--data", "items", "--lathe",
                               self.path / "lathe", "--device", "cuda", "--out", self.path / "out", *words, "--rule", *rules],
                              capture_output=True, text=True)

    def table(self):
        lines = (self.path / "out.md").read_text().splitlines()
        return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| top-k")]

    def test_rows_at_a_time_in_the_order_asked_for(self):
        (self.path / "race").touch()
        run = self.run_script("top-k:2", "kl:0.5", "top-k:3", words=["--jobs", "3", "--threads", "2"])
        self.assertEqual(run.returncode, 1)  # one row failed
        self.assertIn("no such luck", run.stderr)
        rows = [json.loads(line) for line in (self.path / "out.jsonl").read_text().splitlines()]
        self.assertEqual(rows[-1]["name"], "top-k 2")  # the last to end
        table = self.table()
        self.assertEqual([row[0] for row in table], ["top-k 2", "top-k 3"])
        self.assertEqual(table[1][4:], ["2.00", "5.00", "50.0", "100.0", "2.00", "2.00"])
        self.assertIn("compare no speeds", (self.path / "out.md").read_text())
        for call in self.calls():
            self.assertEqual(call[call.index("--device") + 1], "cuda")
            self.assertEqual(call[call.index("--threads") + 1], "2")

    def test_finished_rows_are_not_measured_again(self):
        self.assertEqual(self.run_script("top-k:2").returncode, 0)
        self.assertNotIn("compare no speeds", (self.path / "out.md").read_text())
        before = len(self.calls())
        self.assertEqual(self.run_script("top-k:2", "top-k:3").returncode, 0)
        self.assertEqual(len(self.calls()), before + 1)
        run = self.run_script("top-k:3", "top-k:4", words=["--only-table"])
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertEqual([row[0] for row in self.table()], ["top-k 3"])
        self.assertEqual(len(self.calls()), before + 1)

    def test_nothing_to_compare(self):
        run = self.run_script("kl:1")
        self.assertEqual(run.returncode, 1)
        self.assertIn("nothing to compare", run.stderr)


if __name__ == "__main__":
    unittest.main()
