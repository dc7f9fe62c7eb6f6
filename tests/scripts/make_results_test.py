"""make-results: rows in any order, killed runs, and devices that refuse, with a program in place of lathe."""
import json
import os
import subprocess
import sys
import unittest
from pathlib import Path

from stand_in import StandInTest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/make-results"

# Says what it was asked; the first rows end behind another one where there is a file `race`, QuaRot is not to be had on the
# GPU, AWQ not at all. SmoothQuant's checkpoint is not measured on the GPU; what a checkpoint is worth depends on its method.
LATHE = '''#!/usr/bin/env python3
import json, pathlib, sys, time
words = sys.argv[1:]
here = pathlib.Path(__file__).parent
with open(here / "calls", "a") as file:
    file.write(json.dumps(words) + "\\n")
if words[0] == "quantize":
    method, device = words[words.index("--method") + 1], words[words.index("--device") + 1]
    if method == "awq":
        sys.exit("lathe: error: no such luck")
    if method == "quarot" and device != "cpu":
        sys.exit("lathe: error: this is computed on the CPU only; use --device cpu")
    until = time.time() + 60
    while method == "rtn" and (here / "race").exists() and not (here / "out.jsonl").exists() and time.time() < until:
        time.sleep(0.01)
    pathlib.Path(words[2]).write_text(" ".join(words[words.index("--method"):words.index("--activations")]))
    print("{}")
else:
    checkpoints, device = words[3:words.index("--data")], words[words.index("--device") + 1]
    made = [pathlib.Path(checkpoint).read_text() for checkpoint in checkpoints]
    if device != "cpu" and any("smoothquant" in flags for flags in made):
        sys.exit("lathe: error: these weights are computed on the CPU only; use --device cpu")
    models = [{"perplexity": 12.0 + len(flags), "reference_perplexity": 10.0, "mean_kl": 0.1, "top1_agreement": 0.5, "windows": 3}
              for flags in made]
    print(json.dumps(models[0] if len(models) == 1 else {"models": models, "windows": 3}))
'''


class MakeResults(StandInTest):
    PROGRAM = LATHE

    def run_script(self, *words):
        return subprocess.run([sys.executable, SCRIPT, "--model", "m.gguf", "--data", "text", "--calibration", "text", "--lathe",
                               self.path / "lathe", "--scratch", self.path, "--out", self.path / "out", "--only", "nvfp4",
                               "--weight-only", *words], capture_output=True, text=True)

    def rows(self):
        return [json.loads(line) for line in (self.path / "out.jsonl").read_text().splitlines() if line]

    def test_several_rows_at_a_time_make_one_table(self):
        (self.path / "race").touch()
        run = self.run_script("--jobs", "4", "--at-once", "2", "--threads", "3")
        self.assertEqual(run.returncode, 0, run.stderr)
        methods = [row["method"] for row in self.rows()]
        self.assertEqual(len(set(methods)), 8)  # all but AWQ
        self.assertNotEqual(methods[0], "RTN")
        table = [line.split(" | ")[1] for line in (self.path / "out.md").read_text().splitlines() if line.startswith("| nvfp4")]
        self.assertEqual(table, ["RTN", "RTN+Had16", "SmoothQuant", "QuaRot", "GPTQ", "MR-GPTQ (Had16)", "MR-GPTQ (Had64)",
                                 "MR-GPTQ (default)"])
        self.assertIn("no such luck", run.stderr)
        self.assertTrue(all(call[call.index("--threads") + 1] == "3" for call in self.calls()))
        before = len(self.calls())
        self.run_script()  # only the row that failed is tried again
        self.assertEqual(len(self.calls()), before + 1)

    def test_rows_are_measured_in_groups(self):
        run = self.run_script("--at-once", "3")
        self.assertEqual(run.returncode, 0, run.stderr)
        measured = [call[3:call.index("--data")] for call in self.calls() if call[0] == "eval"]
        # What needs no calibration first; AWQ fails, the others of its group do not.
        self.assertEqual([len(checkpoints) for checkpoints in measured], [3, 2, 3])
        self.assertEqual([row["method"] for row in self.rows()], ["RTN", "RTN+Had16", "QuaRot", "SmoothQuant", "GPTQ",
                                                                  "MR-GPTQ (Had16)", "MR-GPTQ (Had64)", "MR-GPTQ (default)"])
        for row in self.rows():
            self.assertEqual(row["perplexity"], 12 + len(" ".join(row["flags"])), row)
        self.assertFalse(any(Path(checkpoint).exists() for checkpoints in measured for checkpoint in checkpoints))
        self.assertFalse(list(self.path.glob("lathe-results-*")))

    def test_one_that_the_gpu_cannot_measure_takes_no_other_to_the_cpu(self):
        run = self.run_script("--device", "cuda", "--method", "SmoothQuant", "--method", "GPTQ", "--method", "MR-GPTQ (Had16)")
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertEqual({row["method"]: row["measured_on"] for row in self.rows()},
                         {"SmoothQuant": "cpu", "GPTQ": "cuda", "MR-GPTQ (Had16)": "cuda"})
        self.assertIn("one by one", run.stderr)

    def test_the_gpu_where_it_can(self):
        run = self.run_script("--device", "cuda", "--method", "QuaRot", "--method", "GPTQ")
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertEqual({row["method"]: (row["device"], row["measured_on"]) for row in self.rows()},
                         {"QuaRot": ("cpu", "cuda"), "GPTQ": ("cuda", "cuda")})
        text = (self.path / "out.md").read_text()
        self.assertIn("| QuaRot † |", text)
        self.assertIn("| GPTQ |", text)
        self.assertIn("Computed on cuda", text)

    def test_goes_on_behind_a_torn_line(self):
        self.run_script("--method", "GPTQ", "--method", "MR-GPTQ (Had64)")
        journal = self.path / "out.jsonl"
        whole, torn = journal.read_text().splitlines()
        journal.write_text(f"{whole}\n{torn[:40]}")
        run = self.run_script("--method", "GPTQ", "--method", "MR-GPTQ (Had64)")
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertIn("not a whole row", run.stderr)
        lines = journal.read_text().splitlines()
        self.assertEqual([lines[0], lines[1]], [whole, torn[:40]])
        self.assertEqual(json.loads(lines[2])["method"], json.loads(torn)["method"])

    def test_a_table_of_what_is_there(self):
        self.assertEqual(self.run_script("--only-table").returncode, 1)
        self.run_script("--method", "GPTQ")
        os.remove(self.path / "out.md")
        before = len(self.calls())
        self.assertEqual(self.run_script("--only-table").returncode, 0)
        self.assertEqual(len(self.calls()), before)
        self.assertIn("| GPTQ |", (self.path / "out.md").read_text())


if __name__ == "__main__":
    unittest.main()
