"""What no well-behaved client sends: the server answers with a reason, or closes, and goes on."""
import concurrent.futures
import json
import os
import random
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest

import serving

CHAT = "/v1/chat/completions"


def chat(**fields):
    return {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, **fields}


def post_bytes(body, path=CHAT):
    return (f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n").encode() + body


class Hostile(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = serving.Server("--max-body", "200000", "--header-timeout", "1", "--body-timeout", "1",
                                    "--idle-timeout", "2", "--write-timeout", "1", "--max-connections", "40",
                                    "--max-queue", "30", "--max-num-seqs", "8")
        cls.server.__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__(None, None, None)

    def tearDown(self):
        self.server.wait_until_idle()
        status, answer = self.server.post(CHAT, chat())
        self.assertEqual(status, 200, answer)

    def status(self, body, path=CHAT):
        status, answer = self.server.post(path, body)
        if status != 200:
            self.assertEqual(set(answer["error"]), {"message", "type", "param", "code"})
            self.assertTrue(answer["error"]["message"])
        return status

    def test_deep_json(self):
        for opening, closing in (("[", "]"), ('{"a":', "}")):
            for depth in (65, 3000, 30000):
                body = opening * depth + "0" + closing * depth
                self.assertEqual(self.status(body.encode()), 400)
                self.assertEqual(self.status(f'{{"messages":{body}}}'.encode()), 400)
                self.assertEqual(self.status(f'{{"ignored":{body},"prompt":"x"}}'.encode(), "/v1/completions"), 400)

    def test_many_keys_and_values(self):
        keys = "{" + ",".join(f'"k{i}":0' for i in range(15000)) + "}"
        self.assertEqual(self.status(keys.encode()), 400)
        self.assertEqual(self.status(('{"prompt":[' + "0," * 90000 + "0]}").encode(), "/v1/completions"), 400)

    def test_extreme_values(self):
        extremes = [-1, 0, -10**9, 10**9, 2**31, 2**63, -2**63, 2**64, 1e308, -1e308, 1e-320, 0.5, True, "1", [], {},
                    [1], "", "\x00"]
        numbers = ("temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty",
                   "repetition_penalty", "n", "max_tokens", "max_completion_tokens", "top_logprobs", "logprobs", "stop",
                   "stop_token_ids", "logit_bias", "stream", "stream_options", "messages", "tools", "response_format",
                   "tool_choice", "chat_template_kwargs", "model", "ignore_eos", "add_generation_prompt",
                   "continue_final_message", "best_of", "echo", "prompt", "user", "speculative", "unknown")
        for name in numbers:
            for value in extremes:
                if name == "stream" and value is True:
                    continue  # well formed: an answer in events
                status = self.status(chat(**{name: value}))
                self.assertIn(status, (200, 400, 404), (name, value))

        for name in ("method", "num_tokens", "auto", "judge", "judge_threshold", "judge_recall", "max_judge_accepts",
                     "max_logprob_deficit", "deterministic"):
            for value in extremes:
                self.assertIn(self.status(chat(speculative={name: value})), (200, 400), (name, value))

    def test_n(self):
        for n in (10**9, 10**18, 129, 100, 39):
            self.assertEqual(self.status(chat(n=n)), 400)

    def test_strings(self):
        for content in ("", "\x00" * 100, "\ufffe\uffff", "<|im_end|>" * 100, "\U0001F600" * 50, "é" * 300):
            self.assertIn(self.status(chat(messages=[{"role": "user", "content": content}])), (200, 400))
        for body in (b'{"messages":[{"role":"user","content":"\xff\xfe"}]}', b'{"messages":"\xed\xa0\x80"}',
                     b"\xef\xbb\xbf{}", b'{"prompt":"\\ud800"}', b"\x00", b"null", b"1e999", b'{"a":1}{"b":2}'):
            self.assertEqual(self.status(body), 400)
        self.assertEqual(self.status({"prompt": ""}, "/v1/completions"), 400)
        self.assertEqual(self.status({"prompt": "x" * 100000}, "/v1/completions"), 400)

    def test_unknown_fields(self):
        self.assertEqual(self.status(chat(new_field={"a": [1]}, **{"with space": None, "": 1})), 200)

    def test_malformed_http(self):
        for data in (b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
                     b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                     b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
                     b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n"):
            answer = self.server.raw(data)
            self.assertRegex(answer, rb"^HTTP/1\.1 (400|501|505) ", data)
            self.assertIn(b'"error"', answer)
        self.assertRegex(self.server.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 100 + b"\r\n"),
                         rb"^HTTP/1\.1 431 ")
        self.assertRegex(self.server.raw(b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"),
                         rb"^HTTP/1\.1 431 ")
        chunk = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" \
                b"Transfer-Encoding: chunked\r\n\r\n"
        self.assertRegex(self.server.raw(chunk + b"ffffffff\r\n" + b"x" * 300000), rb"^HTTP/1\.1 413 ")
        self.assertRegex(self.server.raw(chunk + b"-1\r\nx\r\n0\r\n\r\n"), rb"^HTTP/1\.1 (400|408) ")
        self.assertRegex(self.server.raw(chunk + b'7\r\n{"promp\r\n5\r\nt":3}\r\n0\r\n\r\n'), rb"^HTTP/1\.1 400 ")

    def test_random_bytes(self):
        random.seed(1)
        valid = post_bytes(json.dumps(chat()).encode())
        for _ in range(200):
            data = bytearray(valid)
            for _ in range(random.randint(1, 4)):
                data[random.randrange(len(data))] = random.randrange(256)
            answer = self.server.raw(bytes(data))
            self.assertTrue(answer == b"" or answer.startswith(b"HTTP/1.1 "), (bytes(data), answer))
            self.assertFalse(answer.startswith(b"HTTP/1.1 5") and not answer.startswith(b"HTTP/1.1 50"), answer)
            self.assertFalse(answer.startswith(b"HTTP/1.1 500"), (bytes(data), answer))

    def test_browsers_of_other_sites(self):
        body = json.dumps(chat()).encode()
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            self.assertEqual(self.server.request("POST", CHAT, body, {"Content-Type": kind})[0], 415)
        self.assertEqual(self.server.request("GET", "/v1/models", headers={"Host": "evil.example"})[0], 403)
        status, headers, _ = self.server.request("OPTIONS", CHAT, headers={"Origin": "http://evil.example"})
        self.assertEqual(status, 405)
        self.assertFalse([h for h in headers if h.lower().startswith("access-control")])

    def test_slow_and_silent_clients(self):
        start = time.time()
        sockets = [socket.create_connection(("127.0.0.1", self.server.port)) for _ in range(12)]
        for i, s in enumerate(sockets):
            s.settimeout(20)
            if i % 3 == 1:
                s.sendall(b"POST /v1/chat/completions HTT")
            if i % 3 == 2:
                s.sendall(post_bytes(b"x" * 100)[:-50])
        for i, s in enumerate(sockets):
            answer = b""
            while piece := s.recv(1000):
                answer += piece
            self.assertEqual(answer[:13], (b"", b"HTTP/1.1 408 ", b"HTTP/1.1 408 ")[i % 3])
            s.close()
        self.assertLess(time.time() - start, 15)

    def test_a_reader_that_does_not_read(self):
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            s.connect(("127.0.0.1", self.server.port))
            body = chat(stream=True, max_tokens=3000, ignore_eos=True, logprobs=True, top_logprobs=20, n=4)
            s.sendall(post_bytes(json.dumps(body).encode()))
            time.sleep(0.3)
            self.server.wait_until_idle(60)

    def test_disconnects(self):
        before = self.server.metric("lathe_choices_started_total")
        for i in range(30):
            body = chat(stream=i % 2 == 0, max_tokens=2000, ignore_eos=True)
            s = socket.create_connection(("127.0.0.1", self.server.port))
            s.sendall(post_bytes(json.dumps(body).encode()))
            time.sleep(0.01 * (i % 4))
            if i % 3 == 0:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # reset
            s.close()
        self.server.wait_until_idle()
        values = self.server.metrics()
        ended = sum(v for k, v in values.items() if k.startswith("vllm:request_success_total"))
        self.assertEqual(ended, self.server.metric("lathe_choices_started_total"))
        self.assertGreater(ended, before)

    def test_a_full_queue(self):
        def ask(_):
            return self.server.post(CHAT, chat(max_tokens=300, ignore_eos=True, n=4))[0]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            statuses = list(pool.map(ask, range(16)))
        self.assertEqual(set(statuses), {200, 429})
        self.assertEqual(self.server.metric("lathe_requests_rejected_total"), statuses.count(429))

    def test_too_many_connections(self):
        while self.server.metric("lathe_http_connections") > 1:  # earlier tests' and the one that asks
            time.sleep(0.05)
        time.sleep(0.2)
        sockets = []
        try:
            answers = []
            for _ in range(60):
                s = socket.create_connection(("127.0.0.1", self.server.port))
                s.settimeout(0.05)
                sockets.append(s)
            time.sleep(0.3)
            for s in sockets:
                try:
                    answers.append(s.recv(12))
                except TimeoutError:
                    answers.append(None)
            self.assertEqual(answers.count(b"HTTP/1.1 503"), 20)
        finally:
            for s in sockets:
                s.close()
        time.sleep(0.5)


class Ending(unittest.TestCase):
    def test_sigterm_drains(self):
        with serving.Server() as server:
            answers = []
            thread = threading.Thread(target=lambda: answers.append(
                server.post(CHAT, chat(max_tokens=1500, ignore_eos=True))))
            thread.start()
            while server.metric("vllm:num_requests_running") == 0:
                time.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            thread.join()
            self.assertEqual(answers[0][0], 200)
            self.assertEqual(answers[0][1]["usage"]["completion_tokens"], 1500)
            self.assertEqual(server.process.wait(20), 0)
            self.assertEqual([line["event"] for line in server.log_lines()][-1], "stopped")

    def test_sigterm_does_not_wait_for_ever(self):
        with serving.Server("--drain-timeout", "0.2") as server:
            s = socket.create_connection(("127.0.0.1", server.port))
            s.sendall(post_bytes(json.dumps(chat(max_tokens=4000, ignore_eos=True, n=8)).encode()))
            while server.metric("vllm:num_requests_running") == 0:
                time.sleep(0.01)
            start = time.time()
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(20), 0)
            self.assertLess(time.time() - start, 10)
            s.close()

    def test_logs_and_request_ids(self):
        with serving.Server() as server:
            status, headers, _ = server.request("GET", "/v1/models", headers={"X-Request-Id": "mine-1"})
            self.assertEqual((status, headers["X-Request-Id"]), (200, "mine-1"))
            server.wait_for_log_lines("request", 1)  # two connections' lines may otherwise come in either order
            status, headers, _ = server.request("GET", "/nothing", headers={"X-Request-Id": "not plain!"})
            self.assertEqual((status, len(headers["X-Request-Id"])), (404, 32))
            lines = server.wait_for_log_lines("request", 2)
            self.assertEqual([(x["id"] == "mine-1", x["status"], x["path"]) for x in lines],
                             [(True, 200, "/v1/models"), (False, 404, "/nothing")])

    def run_and_fail(self, *flags, model=None):
        if "--port" not in flags:
            flags = ("--port", "0", *flags)
        with tempfile.TemporaryDirectory() as directory:
            model = model or serving.make_tiny_model(directory)
            program = os.environ.get("LATHE_BINARY", str(serving.ROOT / "build/release/lathe"))
            done = subprocess.run([program, "serve", model, *flags], capture_output=True, text=True,
                                  timeout=60)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
            return done.returncode, done.stderr

    def test_flags_that_cannot_be(self):
        for flags, part in ((("--host", "0.0.0.0"), "--api-key"), (("--host", "no such host"), "--api-key"),
                            (("--port", "70000"), "--port"), (("--api-key", "a b"), "printable"),
                            (("--tls-cert", "x"), "belong together"),
                            (("--tls-cert", "/x", "--tls-key", "/y"), "--tls-cert /x"),
                            (("--max-connections", "0"), "max_connections"), (("--pooling", "max"), "--pooling"),
                            (("--log", "text"), "--log"), (("--idle-timeout", "nan"), "--idle-timeout"),
                            (("--request-timeout", "-1"), "--request-timeout"),
                            (("--max-json-depth", "100000"), "--max-json-depth"), (("--max-num-seqs", "0"), "--max-num-seqs"),
                            (("--api-key-file", "/nowhere"), "/nowhere")):
            code, text = self.run_and_fail(*flags)
            self.assertIn(code, (1, 2), flags)
            self.assertIn(part, text)

    def test_a_port_in_use(self):
        with serving.Server() as server:
            # Before the model is looked for.
            code, text = self.run_and_fail("--port", str(server.port), model="/nowhere")
            self.assertEqual(code, 1)
            self.assertIn("cannot listen", text)


if __name__ == "__main__":
    unittest.main()
