#!/usr/bin/env python3
"""Counts single test cases from the result files of one ctest run.

    count_tests.py RESULTS_DIR

RESULTS_DIR/ctest.xml is ctest's own report, with one entry per test program; a GoogleTest program
NAME also leaves RESULTS_DIR/NAME.xml with one entry per test case. A program that failed without a
failed case (it crashed, or ran into its time limit) counts as one more failure. Prints failures and
skipped cases with their reasons, then "N passed, N failed, N skipped". Exit code 1 on a failure.
"""
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path


def last_line(text):
    """The reason: what GTEST_SKIP() says after file and line, or a script prints at the end."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def cases_of(path):
    """The test cases of a GoogleTest result file, or None when it is absent or cut off."""
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")  # messages quote hostile input
        text = re.sub(r"[^\t\n\r -\ud7ff\ue000-\U0010ffff]", "\ufffd", text)
        return list(ElementTree.fromstring(re.sub(r"^<\?xml[^>]*>", "", text)).iter("testcase"))
    except (FileNotFoundError, ElementTree.ParseError):
        return None


def main(directory):
    report = directory / "ctest.xml"
    if not report.is_file():
        print(f"{report} is missing: ctest did not run")
        return 1
    passed, failed, skipped = 0, [], defaultdict(list)
    for program in ElementTree.parse(report).getroot().iter("testcase"):
        name = program.get("name")
        program_failed = program.get("status") == "fail"
        cases = cases_of(directory / f"{name}.xml")
        if cases is None:  # not a GoogleTest program, or it crashed before it wrote the file
            if program_failed:
                failed.append(f"{name} (no results: crashed, timed out, or a script that failed)")
            elif program.get("status") == "run":
                passed += 1
            else:
                skipped[last_line(program.findtext("system-out", ""))].append(name)
            continue
        failed_before = len(failed)
        for case in cases:
            case_name = f"{case.get('classname')}.{case.get('name')}"
            skip = case.find("skipped")
            if case.find("failure") is not None:
                failed.append(case_name)
            elif skip is not None:
                skipped[last_line(skip.get("message") or skip.text or "")].append(case_name)
            elif case.get("status") == "run":
                passed += 1
        if program_failed and len(failed) == failed_before:
            failed.append(f"{name} (the program failed, though none of its cases did)")

    for reason, names in sorted(skipped.items()):
        print(f"skipped, {reason}:")
        for name in names:
            print(f"  {name}")
    if failed:
        print("failed:")
        for name in failed:
            print(f"  {name}")
    num_skipped = sum(len(names) for names in skipped.values())
    print(f"{passed} passed, {len(failed)} failed, {num_skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {Path(sys.argv[0]).name} RESULTS_DIR")
    sys.exit(main(Path(sys.argv[1])))
