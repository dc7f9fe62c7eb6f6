"""quantize, fit-kv and fit-judge on several ranks against one process, with ranks that fail and ranks that die."""
import json
import os
import pathlib
import shutil
import tempfile
import unittest

import launching
from launching import digests, failure_lines, lathe, lathe_by_rank

SMALL = ["--seq-len", "64", "--threads", "1"]


class Ranks(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = pathlib.Path(cls.temporary.name)
        (cls.folder / "tiny").mkdir()
        cls.model = launching.serving.make_tiny_model(cls.folder / "tiny")
        cls.text = launching.write_text(cls.folder / "text.txt")
        cls.count = 0

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def fresh(self):
        type(self).count += 1
        return self.folder / f"out{self.count}"

    def ran(self, done):
        self.assertEqual(done.returncode, 0, done.stderr)
        return done

    def quantize(self, out, *flags, samples=12, ranks=None):
        return self.ran(lathe("quantize", self.model, out, "--calibration", self.text, "--samples", samples, *SMALL, *flags,
                              ranks=ranks))

    def test_every_method_gives_the_bytes_of_one_process(self):
        for flags in (["--format", "mxfp4"], ["--format", "nvfp4", "--activations", "fp4"], ["--method", "rtn"],
                      ["--format", "int4", "--method", "awq"], ["--format", "int4", "--method", "gptq"],
                      ["--format", "fp8", "--method", "smoothquant", "--activations", "fp8"], ["--method", "quarot"],
                      ["--format", "nvfp4", "--method", "smoothquant", "--hadamard", "16", "--activations", "fp4"]):
            one = self.fresh()
            self.quantize(one, *flags)
            for ranks in (1, 2, 3):
                with self.subTest(flags=flags, ranks=ranks):
                    out = self.fresh()
                    self.quantize(out, *flags, ranks=ranks)
                    self.assertEqual(digests(out), digests(one))

    def test_experts_and_held_out_sequences(self):
        """A mixture of experts: inputs that some sequences do not have, more groups than ranks."""
        source = pathlib.Path(os.environ.get("LATHE_SHARED", "/nowhere")) / "golden/tiny/qwen3-moe"
        if not source.exists():
            self.skipTest("no golden/tiny/qwen3-moe (LATHE_SHARED)")
        moe = self.folder / "moe"
        moe.mkdir()
        for path in pathlib.Path(self.model).iterdir():
            shutil.copy(path, moe / path.name)
        for name in ("config.json", "model.safetensors"):
            shutil.copy(source / name, moe / name)
        one, three = self.fresh(), self.fresh()
        for out, ranks in ((one, None), (three, 3)):
            self.ran(lathe("quantize", moe, out, "--calibration", self.text, "--samples", 17, *SMALL, ranks=ranks))
        self.assertEqual(digests(one), digests(three))

    def test_reports_are_those_of_one_process(self):
        one, two = (json.loads(self.quantize(self.fresh(), "--json", ranks=ranks).stdout)["linears"] for ranks in (None, 2))
        self.assertEqual(one, two)

    def test_more_ranks_than_sequences(self):
        one, three = self.fresh(), self.fresh()
        self.quantize(one, samples=2)
        self.quantize(three, samples=2, ranks=3)
        self.assertEqual(digests(one), digests(three))

    def kill_a_rank(self, out, ranks):
        """A run whose last rank is killed when the first layer is on disk."""
        done = lathe_by_rank(
            f'''if [ $R = {ranks - 1} ]; then
                  (for i in $(seq 3000); do
                     if grep -q 00001-of {out}/quantize.journal.json 2>/dev/null; then kill -9 $$; exit; fi; sleep 0.005
                   done) & fi
                exec "$LATHE" quantize {self.model} {out} --calibration {self.text} --samples 800 --seq-len 64 \
                     --threads 1''', ranks=ranks)
        self.assertNotEqual(done.returncode, 0)
        # mpirun speaks: the rank, its host and the signal.
        self.assertRegex(done.stderr, rf"rank {ranks - 1} .*on node \S+ exited on signal 9")
        self.assertEqual(failure_lines(done), [])
        self.assertTrue((out / "quantize.journal.json").exists(), "the run was over before the rank was killed")
        self.assertFalse((out / "lathe.json").exists())

    def test_a_killed_rank_loses_nothing_and_any_number_of_ranks_goes_on(self):
        whole = self.fresh()
        self.quantize(whole, samples=800)
        for ranks in (1, 2, 3):
            with self.subTest(resumed_with=ranks):
                out = self.fresh()
                self.kill_a_rank(out, 2)
                self.quantize(out, "--resume", samples=800, ranks=ranks)
                self.assertEqual(digests(out), digests(whole))

    def test_one_message_names_the_rank_that_fails(self):
        other = launching.write_text(self.folder / "other.txt", 500)
        cases = [
            # All ranks fail alike, before and behind the start of MPI.
            (f'exec "$LATHE" quantize {self.folder}/none {self.fresh()}', "rank 0 of 2 (host "),
            ('exec "$LATHE" quantize', "IN is required"),
            # Rank 1 alone: a text that is not there, another text, no memory for a thread more.
            (f'[ $R = 1 ] && T={self.folder}/none || T={self.text}; exec "$LATHE" quantize {self.model} '
             f'{self.fresh()} --calibration $T --samples 4 --seq-len 32', "rank 1 of 2 (host "),
            (f'[ $R = 1 ] && T={other} || T={self.text}; exec "$LATHE" quantize {self.model} '
             f'{self.fresh()} --calibration $T --samples 4 --seq-len 32', "rank 1 of 2 (host "),
            (f'[ $R = 1 ] && T={other} || T={self.text}; exec "$LATHE" fit-kv {self.model} -o '
             f'{self.fresh()} --calibration $T --samples 4 --seq-len 32', "rank 1 of 2 (host "),
            (f'exec "$LATHE" compress {self.model} {self.fresh()}', "is the work of one process"),
        ]
        for script, part in cases:
            with self.subTest(script=script):
                done = lathe_by_rank(script)
                self.assertNotEqual(done.returncode, 0)
                self.assertEqual(len(failure_lines(done)), 1, done.stderr)
                self.assertIn(part, failure_lines(done)[0])

    def test_a_rank_that_does_not_see_the_output_says_so(self):
        out = self.fresh()
        # Rank 1 looks for OUT in a folder of its own.
        done = lathe_by_rank(
            f'mkdir -p {self.folder}/of$R && cd {self.folder}/of$R && exec "$LATHE" quantize {self.model} elsewhere '
            f'--calibration {self.text} --samples 4 --seq-len 32')
        self.assertNotEqual(done.returncode, 0)
        self.assertEqual(len(failure_lines(done)), 1, done.stderr)
        self.assertIn("rank 1 of 2", failure_lines(done)[0])
        self.assertIn("on a file system that all of them see", failure_lines(done)[0])
        del out

    def fit(self, *flags, samples=16, ranks=None):
        codec = pathlib.Path(f"{self.fresh()}.safetensors")
        done = self.ran(lathe("fit-kv", self.model, "-o", codec, "--calibration", self.text, "--samples", samples,
                              "--seq-len", "128", "--window", "16", "--threads", "1", "--json", *flags, ranks=ranks))
        self.assertEqual([p.name for p in self.folder.iterdir() if ".working" in p.name], [])
        return json.loads(done.stdout), codec

    def test_fit_kv_agrees_with_one_process(self):
        for flags in ([], ["--variant", "dense"], ["--variant", "latent", "--rank", "12"], ["--variant", "low-rank", "--rank", "8"],
                      ["--no-hadamard"]):
            for ranks in (2, 3):
                with self.subTest(flags=flags, ranks=ranks):
                    one, _ = self.fit(*flags)
                    many, codec = self.fit(*flags, ranks=ranks)
                    for key in ("train_tokens", "heldout_tokens", "bits_per_value", "predictor_bytes"):
                        self.assertEqual(one[key], many[key])
                    for a, b in zip(one["layers"], many["layers"]):
                        for side in ("keys", "values"):
                            for name, value in a[side].items():
                                # Predictors are stored in bf16: one that rounds the other way moves an error by 2^-8
                                # of a weight among some tens, and codes of the layer above by a whole step (3 % of a
                                # mean square seen).
                                self.assertAlmostEqual(value, b[side][name], delta=0.05 * abs(value) + 1e-4,
                                                       msg=f"{side} {name}")
                    if not flags:
                        self.ran(lathe("eval", "perplexity", self.model, "--kv", "aqua2", "--kv-codec", codec, "--data",
                                       self.text, "--windows", "1", "--seq-len", "256"))

    def test_fit_kv_with_more_ranks_than_sequences(self):
        for variant in ("latent", "dense"):  # a rank without a row has empty latents
            with self.subTest(variant=variant):
                one, _ = self.fit("--variant", variant, samples=2)
                many, _ = self.fit("--variant", variant, samples=2, ranks=3)
                for key in ("train_tokens", "heldout_tokens"):
                    self.assertEqual(one[key], many[key])

    # The random model answers nothing that the checker takes, so the training behind the mining has no tokens and says so:
    # what is tested is who mines what, and that it all arrives. Features: tests/compress/judge_miner_test.cpp.
    def mining(self, work):
        return ["fit-judge", "--target", self.model, "--draft", self.model, "--task", "gsm8k", "--data", self.questions(),
                "--max-tokens", "200", "--batch", "1", "--threads", "1", "--work", work, "-o", f"{work}.safetensors"]

    def questions(self):
        path = self.folder / "questions.jsonl"
        path.write_text("".join(json.dumps({"question": f"How many are {i} and {i * 7 % 11}?", "answer": f"#### {i}"}) + "\n"
                                for i in range(60)))
        return path

    def mine(self, work, ranks=None):
        done = lathe(*self.mining(work), ranks=ranks)
        self.assertEqual(len(failure_lines(done)), 1, done.stderr)
        self.assertIn("mining found tokens in 0 questions", failure_lines(done)[0])
        self.assertEqual([path.name for path in work.iterdir() if path.is_dir()], [])
        lines = (work / "journal.jsonl").read_text().splitlines()
        return lines[0], sorted(lines[1:])

    def test_fit_judge_shares_the_questions_out(self):
        alone = self.mine(self.fresh())
        self.assertEqual(len(set(alone[1])), 60)
        for ranks in (2, 3):
            self.assertEqual(self.mine(self.fresh(), ranks), alone)

    def test_fit_judge_goes_on_with_any_number_of_ranks(self):
        alone = self.mine(self.fresh())
        for ranks in (1, 2, 3):
            with self.subTest(resumed_with=ranks):
                work = self.fresh()
                command = " ".join(map(str, self.mining(work)))
                done = lathe_by_rank(
                    f'''if [ $R = 1 ]; then
                          (for i in $(seq 3000); do
                             if [ "$(cat {work}/rank-1/journal.jsonl 2>/dev/null | wc -l)" -gt 3 ]; then kill -9 $$; exit; fi
                             sleep 0.005
                           done) & fi
                        exec "$LATHE" {command}''')
                self.assertRegex(done.stderr, r"rank 1 .*exited on signal 9")
                self.assertEqual(failure_lines(done), [])
                rescued = (work / "rank-1/journal.jsonl").read_text().splitlines()[1:4]
                goes_on = self.mine(work, ranks)
                self.assertEqual(goes_on, alone)
                self.assertLess(set(rescued), set(goes_on[1]))


if __name__ == "__main__":
    launching.need_mpirun()
    if not launching.HAS_MPI:
        print("skipped: built without MPI")
        raise SystemExit(launching.SKIPPED)
    unittest.main()
