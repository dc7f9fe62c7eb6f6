"""A server for the tests in Python: the program itself, on the committed tiny model or on a real one."""
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SKIPPED = 77  # CTest counts this exit code as skipped

CHAT_TEMPLATE = (
    "{% if tools %}<tool_call> with name and arguments: {% for t in tools %}{{ t.function.name }} {% endfor %}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


def make_tiny_model(directory, chat_template=CHAT_TEMPLATE, context=4096):
    """The random Qwen2 of tests/golden/tiny with a tokenizer of bytes: 0..255, <|im_start|>, <|im_end|>."""
    directory = pathlib.Path(directory)
    source = ROOT / "tests/golden/tiny/qwen2-tied-mqa"
    config = json.loads((source / "config.json").read_text())
    config["max_position_embeddings"] = context
    (directory / "config.json").write_text(json.dumps(config))
    shutil.copy(source / "model.safetensors", directory / "model.safetensors")
    vocabulary, following = {}, 256
    for byte in range(256):
        prints = 33 <= byte <= 126 or (byte >= 161 and byte != 173)
        vocabulary[chr(byte if prints else following)] = byte
        following += not prints
    added = [{"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for i, text in ((256, "<|im_start|>"), (257, "<|im_end|>"))]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    (directory / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "added_tokens": added, "normalizer": None, "pre_tokenizer": level,
        "post_processor": None, "decoder": level, "model": {"type": "BPE", "vocab": vocabulary, "merges": []}}))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "chat_template": chat_template}))
    return str(directory)


class Server:
    """`with Server("--max-queue", "2") as server:` runs the program; leaving stops it and checks its exit."""

    def __init__(self, *flags, model=None, chat_template=CHAT_TEMPLATE):
        self.flags, self.model, self.chat_template = flags, model, chat_template

    def __enter__(self):
        self.directory = tempfile.TemporaryDirectory()
        model = self.model or make_tiny_model(self.directory.name, self.chat_template)
        self.log_path = pathlib.Path(self.directory.name) / "server.log"
        self.log = open(self.log_path, "w")
        program = os.environ.get("LATHE_BINARY", str(ROOT / "build/release/lathe"))
        self.process = subprocess.Popen(
            [program, "serve", model, "--served-model-name", "tiny", "--port", "0", "--json", *self.flags],
            stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise RuntimeError("the server did not start: " + self.log_path.read_text())
        self.info = json.loads(line)
        self.url, self.port = self.info["url"], self.info["port"]
        return self

    def __exit__(self, kind, value, trace):
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = "none: it did not stop"
        self.log.close()
        self.process.stdout.close()
        text = self.log_path.read_text()
        self.directory.cleanup()
        if kind is None and code != 0:
            raise AssertionError(f"exit code {code}\n{text[-3000:]}")
        if kind is not None:
            sys.stderr.write(text[-3000:])

    def kill(self):
        """kill -9, instead of leaving the block."""
        self.process.kill()
        self.process.wait()
        self.log.close()
        self.process.stdout.close()
        self.directory.cleanup()

    def log_lines(self):
        text = self.log_path.read_text()
        whole = text[: text.rfind("\n") + 1]  # the last line may be half written
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    def wait_for_log_lines(self, event, count, seconds=30):
        """The lines of an event, as soon as there are `count` (a request's is written after its response)."""
        end = time.time() + seconds
        while True:
            lines = [line for line in self.log_lines() if line["event"] == event]
            if len(lines) >= count or time.time() > end:
                return lines
            time.sleep(0.01)

    def request(self, method, path, body=None, headers=None, timeout=60):
        """(status, headers, text) over a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        headers = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response.status, dict(response.getheaders()), text

    def post(self, path, body, **options):
        status, _, text = self.request("POST", path, body, **options)
        return status, json.loads(text)

    def metrics(self):
        """{name or name{labels}: value}"""
        values = {}
        for line in self.request("GET", "/metrics")[2].splitlines():
            if not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                values[name] = float(value)
        return values

    def metric(self, name):
        """The sum over all labels."""
        return sum(v for k, v in self.metrics().items() if k.split("{")[0] == name)

    def raw(self, data, read=True, timeout=30):
        """Bytes over a plain socket; what comes back until the other end closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(data)
            received = b""
            while read:
                piece = connection.recv(65536)
                if not piece:
                    break
                received += piece
            return received

    def wait_until_idle(self, seconds=30):
        end = time.time() + seconds
        while time.time() < end:
            values = self.metrics()
            open_ones = sum(v for k, v in values.items() if k.startswith("lathe_choices_open"))
            running = sum(v for k, v in values.items() if k.startswith("vllm:num_requests_running"))
            if open_ones == 0 and running == 0:
                return
            time.sleep(0.02)
        raise AssertionError(f"still busy: {open_ones} open, {running} running")


def tests_python():
    """A Python that has the packages of tests/requirements.txt, or None and the reason."""
    candidate = os.environ.get("LATHE_TEST_PYTHON")
    if candidate:
        return candidate, ""
    script = ROOT / "scripts/test-python"
    done = subprocess.run([script], capture_output=True, text=True, timeout=400)
    if done.returncode != 0:
        return None, (done.stderr.strip().splitlines() or ["scripts/test-python failed"])[-1]
    return done.stdout.strip(), ""


def enter_python_with_packages():
    """Starts this script again in a Python that has the packages, unless this is it; skips when there is none."""
    if os.environ.get("LATHE_TEST_PYTHON_RUNNING") != "1":
        python, reason = tests_python()
        if python is None:
            print(reason)
            sys.exit(SKIPPED)
        environment = dict(os.environ, LATHE_TEST_PYTHON_RUNNING="1")
        os.execve(python, [python, "-B", *sys.argv], environment)
