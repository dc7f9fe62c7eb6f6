"""check_layers.py finds what it is there to find."""
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import check_layers  # noqa: E402


class CheckLayers(unittest.TestCase):
    def violations(self, files):
        with tempfile.TemporaryDirectory() as root:
            for name, text in files.items():
                path = Path(root) / "src" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            return check_layers.check_tree(Path(root))[1]

    HEADERS = {f"{layer}/a.h": "#pragma once\n" for layer in check_layers.LAYERS}

    def test_accepts_own_and_earlier_layers_and_the_standard_library(self):
        text = '#include <vector>\n#include "model/a.h"\n#include "base/a.h"\n'
        self.assertEqual(self.violations({**self.HEADERS, "model/b.cpp": text}), [])

    def test_refuses_a_later_layer_and_names_the_line(self):
        text = '#include "base/a.h"\n  #  include "engine/a.h"\n'
        self.assertEqual(
            self.violations({**self.HEADERS, "model/b.cpp": text}),
            ["src/model/b.cpp:2: model/ may not include engine/ (engine/a.h)"])

    def test_refuses_siblings(self):
        for layer, other in [("kernels", "formats"), ("formats", "kernels"), ("kernels", "text"),
                             ("server", "compress"), ("compress", "server")]:
            files = {**self.HEADERS, f"{layer}/sub/b.cu": f'#include "{other}/a.h"\n'}
            self.assertEqual(len(self.violations(files)), 1, (layer, other))

    def test_refuses_relative_and_unknown_paths(self):
        files = {**self.HEADERS, "model/b.cpp": '#include "a.h"\n#include "../base/a.h"\n'}
        self.assertEqual(len(self.violations(files)), 2)

    def test_refuses_json_in_headers_and_headers_without_pragma_once(self):
        files = {**self.HEADERS, "base/json.h": "#pragma once\n#include <nlohmann/json.hpp>\n",
                 "text/b.h": '#pragma once\n#include "base/json.h"\n',
                 "text/b.cpp": "#include <nlohmann/json.hpp>\n", "text/c.h": "int x;\n"}
        self.assertEqual(len(self.violations(files)), 3)

    def test_refuses_vague_names_and_unknown_layers(self):
        self.assertEqual(len(self.violations({"base/utils.cpp": "", "other/a.cpp": ""})), 2)


if __name__ == "__main__":
    unittest.main()
