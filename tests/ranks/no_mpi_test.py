"""A program without MPI under mpirun: one message instead of several processes that write the same output."""
import pathlib
import tempfile
import unittest

import launching
from launching import failure_lines, lathe


class NoMpi(unittest.TestCase):
    def test_says_that_it_was_built_without_mpi(self):
        with tempfile.TemporaryDirectory() as folder:
            (pathlib.Path(folder) / "tiny").mkdir()
            model = launching.serving.make_tiny_model(pathlib.Path(folder) / "tiny")
            for command in (["quantize", model, folder + "/out"], ["fit-kv", model, "-o", folder + "/codec"],
                            ["fit-judge", "--target", model, "--draft", model, "--task", "gsm8k", "--data", model, "-o",
                             folder + "/judge"]):
                done = lathe(*command, ranks=2)
                self.assertNotEqual(done.returncode, 0)
                self.assertEqual(len(failure_lines(done)), 1, done.stderr)
                self.assertIn("built without MPI", failure_lines(done)[0])
            # One process of mpirun's is a process alone.
            done = lathe("quantize", model, folder + "/out", "--method", "rtn", ranks=1)
            self.assertEqual(done.returncode, 0, done.stderr)


if __name__ == "__main__":
    launching.need_mpirun()
    if launching.HAS_MPI:
        print("skipped: built with MPI")
        raise SystemExit(launching.SKIPPED)
    unittest.main()
