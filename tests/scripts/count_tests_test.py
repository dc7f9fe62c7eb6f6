"""count_tests.py counts cases, and no failure gets lost."""
import contextlib
import io
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import count_tests  # noqa: E402

CASES = """<testsuites><testsuite name="A">
  <testcase name="One" status="run" result="completed" classname="A"/>
  <testcase name="Two" status="run" result="skipped" classname="A">
    <skipped message="a_test.cpp:5&#x0A;model is not on this machine"/></testcase>
  <testcase name="Three" status="notrun" result="suppressed" classname="A"/>{more}
</testsuite></testsuites>"""
FAILURE = '<testcase name="Four" status="run" classname="A"><failure message="no"/></testcase>'


def report(*programs):
    entries = "".join(f'<testcase name="{name}" status="{status}"/>' for name, status in programs)
    return f"<testsuite>{entries}</testsuite>"


class CountTests(unittest.TestCase):
    def count(self, files):
        """(exit code, output lines) of a run that left these files."""
        with tempfile.TemporaryDirectory() as directory:
            for name, text in files.items():
                content = text if isinstance(text, bytes) else text.encode()
                (Path(directory) / name).write_bytes(content)
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                code = count_tests.main(Path(directory))
            return code, output.getvalue().splitlines()

    def test_counts_cases_and_gives_reasons(self):
        code, lines = self.count({"ctest.xml": report(("a", "run"), ("script", "run")),
                                  "a.xml": CASES.format(more="")})
        self.assertEqual(code, 0)
        self.assertEqual(lines, ["skipped, model is not on this machine:", "  A.Two",
                                 "2 passed, 0 failed, 1 skipped"])

    def test_a_skipped_script_gives_its_last_line(self):
        text = ('<testsuite><testcase name="peer" status="notrun">'
                '<skipped message="SKIP_RETURN_CODE=77"/>'
                '<system-out>looking\ntorch is not installed\n</system-out>'
                '</testcase></testsuite>')
        code, lines = self.count({"ctest.xml": text})
        self.assertEqual((code, lines), (0, ["skipped, torch is not installed:", "  peer",
                                             "0 passed, 0 failed, 1 skipped"]))

    def test_a_failed_case_fails(self):
        code, lines = self.count({"ctest.xml": report(("a", "fail")),
                                  "a.xml": CASES.format(more=FAILURE)})
        self.assertEqual((code, lines[-1]), (1, "1 passed, 1 failed, 1 skipped"))
        self.assertIn("  A.Four", lines)

    def test_bytes_that_are_not_xml_in_a_message_do_not_hide_the_case(self):
        cases = CASES.format(more=FAILURE).encode().replace(b'"no"', b'"\xff\x01"')
        code, lines = self.count({"ctest.xml": report(("a", "fail")), "a.xml": cases})
        self.assertEqual((code, lines[-1]), (1, "1 passed, 1 failed, 1 skipped"))

    def test_a_crash_fails_with_and_without_a_result_file(self):
        for files in ({}, {"a.xml": ""}, {"a.xml": CASES.format(more="")}):
            code, lines = self.count({"ctest.xml": report(("a", "fail")), **files})
            self.assertEqual(code, 1)
            self.assertIn("1 failed", lines[-1])

    def test_no_report_fails(self):
        self.assertEqual(self.count({})[0], 1)


if __name__ == "__main__":
    unittest.main()
