"""schemathesis reads openapi.json and sends what it allows and what it forbids: no 5xx, no contradiction."""
import os
import pathlib
import subprocess
import sys
import tempfile

import serving


def main():
    program = pathlib.Path(sys.executable).parent / "schemathesis"
    # What a schema cannot say: that prompt and max_tokens must fit the context together, which roles a template takes, that
    # top_logprobs needs logprobs. So a request that is valid by the schema may get 400, and a header that HTTP itself forbids
    # (schemathesis sends such) is no contradiction.
    examples = os.environ.get("LATHE_SCHEMATHESIS_EXAMPLES", "40")
    # In a directory of its own: it leaves a cache where it runs.
    with tempfile.TemporaryDirectory() as directory, \
            serving.Server("--max-num-seqs", "8", "--context", "1024", "--draft", "ngram", "--judge", "top-k",
                           "--judge-threshold", "0") as server:
        done = subprocess.run(
            [program, "run", server.url + "/openapi.json", "--url", server.url, "--checks", "all",
             "--exclude-checks", "positive_data_acceptance", "--max-examples", examples, "--seed", "1",
             "--phases", "examples,coverage,fuzzing", "--request-timeout", "60", "--generation-database", "none"],
            cwd=directory, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        print(done.stdout)
    sys.exit(done.returncode)


if __name__ == "__main__":
    serving.enter_python_with_packages()
    main()
