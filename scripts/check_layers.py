#!/usr/bin/env python3
"""Checks that an include names only its own layer or one earlier in the list.

    check_layers.py [ROOT]

Prints every violation as file:line and exits with 1 if there is one. Runs as a test.
"""
import re
import sys
from pathlib import Path

LAYERS = ["base", "comm", "tensor", "quant", "formats", "text", "grammar", "kernels", "cache", "model",
          "engine", "eval", "compress", "server", "cli"]

# Siblings: earlier in the list, and still none of the later one's business. A file becomes tensors
# and a kernel sees views, so neither knows the other; compression stays out of serving's path.
FORBIDDEN = {
    "kernels": {"formats", "text", "grammar"},
    "cache": {"grammar"},
    "model": {"grammar"},
    "server": {"compress"},
}
# nlohmann's JSON library takes seconds to compile: it stays out of headers, behind this one.
JSON_HEADER = Path("base/json.h")
# Names that say nothing about what is inside.
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}

SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def check_file(source, path):
    """Yields (line number, message) for each violation in source/path; line 0: the whole file."""
    layer = path.parts[0]
    if layer not in LAYERS:
        yield 0, f"'{layer}' is not a layer"
        return
    for part in path.with_suffix("").parts:
        if part in VAGUE_NAMES:
            yield 0, f"'{part}' does not name an idea"
    allowed = set(LAYERS[: LAYERS.index(layer) + 1]) - FORBIDDEN.get(layer, set())
    lines = (source / path).read_text(encoding="utf-8").splitlines()
    is_header = path.suffix in {".h", ".cuh"}
    if is_header and "#pragma once" not in lines:
        yield 0, "a header without #pragma once"
    for number, line in enumerate(lines, 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        bracket, target = match.groups()
        if bracket == "<":
            if target == "nlohmann/json.hpp" and path != JSON_HEADER:
                yield number, f"include {JSON_HEADER} instead of {target}"
            continue
        if target == str(JSON_HEADER) and is_header:
            yield number, f"{target} in a header: use <nlohmann/json_fwd.hpp>"
        if not (source / target).is_file():
            yield number, f'"{target}" is not a file of src/ (write it as layer/file.h)'
            continue
        target_layer = Path(target).parts[0]
        if target_layer not in allowed:
            yield number, f"{layer}/ may not include {target_layer}/ ({target})"


def check_tree(root):
    source = root / "src"
    files = sorted(p.relative_to(source) for p in source.rglob("*") if p.suffix in SUFFIXES)
    return len(files), [
        f"src/{path}:{number}: {message}"
        for path in files
        for number, message in check_file(source, path)
    ]


def main():
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    num_files, violations = check_tree(root)
    for violation in violations:
        print(violation)
    if num_files == 0:
        print(f"{root}/src holds no source files")
        return 1
    print(f"{num_files} files, {len(violations)} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
