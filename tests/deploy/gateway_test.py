"""deploy/gateway/nginx.conf in front of two `lathe serve`: prefixes keep their replica, streams stream, a dead replica is
passed over."""
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests/server"))
import serving  # noqa: E402

PROGRAM = os.environ.get("LATHE_BINARY", str(ROOT / "build/release/lathe"))
NGINX = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Replica:
    def __init__(self, model, port):
        self.model, self.port = model, port
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [PROGRAM, "serve", self.model, "--served-model-name", "tiny", "--port", str(self.port), "--json", "--threads",
             "1", "--log", "off", "--max-num-seqs", "1", "--max-queue", "1"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout.readline(), "a replica did not start"

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.process.stdout.close()


class Gateway(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        folder = pathlib.Path(cls.temporary.name)
        folder.chmod(0o755)
        (folder / "tiny").mkdir()
        model = serving.make_tiny_model(folder / "tiny", context=32768)
        cls.replicas = [Replica(model, free_port()) for _ in range(2)]
        cls.port = free_port()
        text = (ROOT / "deploy/gateway/nginx.conf").read_text()
        ports = iter([r.port for r in cls.replicas] * 2)
        text, found = re.subn(r"server 127.0.0.1:800\d (max_fails=\d)(?: fail_timeout=10s)?;",
                              lambda match: f"server 127.0.0.1:{next(ports)} {match[1]} fail_timeout=1s;", text)
        text, heard = re.subn(r"listen 127\.0\.0\.1:8000;", f"listen 127.0.0.1:{cls.port};", text)
        assert (found, heard) == (4, 1)
        (folder / "nginx.conf").write_text("user root;\n" * (os.geteuid() == 0) + text)
        cls.command = [NGINX, "-p", str(folder), "-c", "nginx.conf", "-e", "error.log"]
        cls.nginx = subprocess.Popen([*cls.command, "-g", "daemon off;"], stderr=subprocess.DEVNULL)
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", cls.port)) == 0:
                    break
            time.sleep(0.01)

    @classmethod
    def tearDownClass(cls):
        cls.nginx.send_signal(signal.SIGQUIT)
        cls.nginx.wait(60)
        for replica in cls.replicas:
            replica.stop()
        cls.temporary.cleanup()

    def ask(self, prefix=None, key=None, path="/v1/completions"):
        """(status, the replicas that were tried, the answer)"""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Content-Type": "application/json"}
        if prefix is not None:
            headers["X-Lathe-Prefix"] = prefix
        if key is not None:
            headers["Authorization"] = "Bearer " + key
        connection.request("POST", path, json.dumps({"prompt": "hello", "max_tokens": 4, "temperature": 0}), headers)
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.status, answer.getheader("X-Lathe-Replica"), body

    def test_the_configuration_is_valid(self):
        done = subprocess.run([*self.command, "-t"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_a_prefix_keeps_its_replica_and_prefixes_spread(self):
        used = {}
        for prefix in (f"conversation {i}" for i in range(32)):
            answers = [self.ask(prefix) for _ in range(3)]
            self.assertEqual({status for status, _, _ in answers}, {200}, answers)
            self.assertEqual(len({replica for _, replica, _ in answers}), 1)
            used.setdefault(answers[0][1], []).append(prefix)
        self.assertEqual(len(used), 2)
        # 32 of a fair coin: fewer than 6 on a side has probability 3e-4, and the hash is the same in every run.
        self.assertGreaterEqual(min(map(len, used.values())), 6)
        # Without a prefix the key decides, and the address when there is none.
        self.assertEqual(len({self.ask(key="k1")[1] for _ in range(3)}), 1)
        self.assertEqual(len({self.ask()[1] for _ in range(3)}), 1)
        self.assertEqual(len({self.ask(key=f"k{i}")[1] for i in range(32)}), 2)

    def test_streams_arrive_as_they_are_made(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", "/v1/completions", json.dumps(
            {"prompt": "hello", "max_tokens": 2000, "stream": True, "ignore_eos": True}),
            {"Content-Type": "application/json"})
        start = time.monotonic()
        answer = connection.getresponse()
        times, events = [], 0
        while line := answer.readline():
            if line.startswith(b"data: "):
                events += 1
                times.append(time.monotonic())
        connection.close()
        self.assertGreater(events, 300)
        # The answer is not collected before it is passed on.
        self.assertLess(times[0] - start, 0.5 * (times[-1] - start))

    def test_a_replica_that_is_gone_is_passed_over_and_found_again(self):
        prefixes = [f"conversation {i}" for i in range(16)]
        before = {prefix: self.ask(prefix)[1] for prefix in prefixes}
        gone = self.replicas[0]
        gone.stop()
        try:
            for prefix in prefixes:
                status, replica, _ = self.ask(prefix)
                self.assertEqual(status, 200)
                # The last of those that were tried.
                self.assertEqual(re.split(", | : ", replica)[-1], f"127.0.0.1:{self.replicas[1].port}")
        finally:
            gone.start()
        # Each of nginx's workers finds it again by itself, a second or two after it failed (fail_timeout).
        end = time.monotonic() + 30
        while {prefix: self.ask(prefix)[1] for prefix in prefixes} != before:
            self.assertLess(time.monotonic(), end, "its prefixes did not come back")
            time.sleep(0.2)

    def fill(self, replica):
        """Two endless streams: one runs, one waits, and there is room for no more. They end when they are closed."""
        streams = []
        for count in ("running", "waiting"):
            connection = http.client.HTTPConnection("127.0.0.1", replica.port, timeout=60)
            connection.request("POST", "/v1/completions", json.dumps(
                {"prompt": "hello", "max_tokens": 30000, "stream": True, "ignore_eos": True}),
                {"Content-Type": "application/json"})
            streams.append(connection)
            end = time.monotonic() + 30
            while self.metric(replica, f"vllm:num_requests_{count}") != 1:
                self.assertLess(time.monotonic(), end, f"nothing is {count}")
        return streams

    def metric(self, replica, name):
        connection = http.client.HTTPConnection("127.0.0.1", replica.port, timeout=60)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return float(re.search(rf"^{name}{{.*}} (\S+)$", text, re.M)[1])

    def test_a_full_replica_sends_requests_to_the_other_and_keeps_its_prefixes(self):
        full, other = (f"127.0.0.1:{replica.port}" for replica in self.replicas)
        at_home = [prefix for prefix in (f"conversation {i}" for i in range(16)) if self.ask(prefix)[1] == full]
        streams = self.fill(self.replicas[0])
        try:
            for prefix in at_home:
                status, tried, _ = self.ask(prefix)
                self.assertEqual((status, tried.split(" : ")[0]), (200, full))
                self.assertEqual(re.split(", | : ", tried)[-1], other)
            streams += self.fill(self.replicas[1])
            status, _, body = self.ask(at_home[0])
            self.assertEqual(status, 429, body)
            self.assertIn("error", json.loads(body))
        finally:
            for connection in streams:
                connection.close()
        end = time.monotonic() + 30
        while self.ask(at_home[0])[:2] != (200, full):
            self.assertLess(time.monotonic(), end, "it stayed full")

    def test_metrics_are_those_of_a_replica(self):
        self.assertEqual(self.ask(path="/metrics")[0], 404)


if __name__ == "__main__":
    if NGINX is None:
        print("skipped: no nginx (apt install nginx-light)")
        sys.exit(serving.SKIPPED)
    unittest.main()
