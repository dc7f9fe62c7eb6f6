"""check-device: what is off is found, with a program in place of lathe that can be made to err."""
import json
import subprocess
import sys
import unittest
from pathlib import Path

from stand_in import StandInTest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/check-device"

# err: {"what": by how much}, where what is exact, served or few_rows of the GPU, logprob, logit or gap of score.
LATHE = '''#!/usr/bin/env python3
import json, pathlib, sys
err = json.loads((pathlib.Path(__file__).parent / "err").read_text())
words = sys.argv[1:]
if words[0] == "eval":
    what = "exact" if "fp32" in words else "few_rows" if "--chunk" in words else "served"
    on_gpu = words[words.index("--device") + 1] == "cuda"
    off = err.get(what, 0) if on_gpu else 0
    print(json.dumps({"perplexity": None if off is None else 20 * (1 + off)}))  # lathe's JSON has null for a NaN
elif words[0] == "score":
    for line in sys.stdin:
        ids = json.loads(line)["ids"]
        print(json.dumps({"ids": ids, "logprobs": [-1.0 - err.get("logprob", 0)] * (len(ids) - 1),
                          "top": [[7, 3.0 + err.get("logit", 0)], [8, 2.0], [9, 1.0]], "gaps": [err.get("gap", 0)] * (len(ids) - 1)}))
elif words[0] == "selftest":
    if "selftest" in err:
        sys.exit("lathe: error: logits differ")
    print(json.dumps({"fingerprint": None}))
else:
    print("{}")
'''
# Behind the near-tie of step 1 a continuation may differ.
GOLDEN = {"cases": [{"id": "short", "ids": [1, 2, 3], "next_logprob": [-1.0, -1.0],
                     "last_top": {"ids": [7, 8, 9], "logits": [3.0, 2.0, 1.0], "logsumexp": 4.0},
                     "greedy": {"ids": [7, 8], "margin": [0.5, 1e-4]}}]}


class CheckDevice(StandInTest):
    PROGRAM = LATHE

    def setUp(self):
        super().setUp()
        (self.path / "logits").mkdir()
        (self.path / "logits/m.json").write_text(json.dumps(GOLDEN))

    def check(self, **err):
        (self.path / "err").write_text(json.dumps(err))
        run = subprocess.run([sys.executable, SCRIPT, self.path / "m.gguf", "--data", "text", "--golden", self.path, "--lathe",
                              self.path / "lathe", "--scratch", self.path, "--format", "mxfp4"],
                             capture_output=True, text=True)
        lines = run.stdout.splitlines()
        failed = sorted(row["check"] for row in map(json.loads, lines[:-1]) if not row["ok"])
        self.assertEqual(run.returncode, 1 if failed else 0, run.stderr)
        self.assertEqual(lines[-1], f"{2 - len(failed)} of 2 checks passed")
        return failed

    def test_all_right(self):
        self.assertEqual(self.check(), [])
        self.assertEqual(self.check(exact=1e-4, served=1.5e-3, few_rows=-1.5e-3, logprob=9e-4, logit=9e-4, gap=9e-4), [])

    def test_what_is_off_is_found(self):
        for err in ({"exact": 3e-4}, {"served": 3e-3}, {"few_rows": -3e-3}, {"served": float("nan")}, {"served": None}, {"selftest": 1}):
            with self.subTest(err=err):
                self.assertEqual(self.check(**err), ["mxfp4"])
        for err in ({"logprob": 2e-3}, {"logit": -2e-3}, {"gap": 2e-3}):
            with self.subTest(err=err):
                self.assertEqual(self.check(**err), ["golden"])


if __name__ == "__main__":
    unittest.main()
