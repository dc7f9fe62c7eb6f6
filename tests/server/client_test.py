"""`lathe chat --server`, TLS and keys, with nothing but Python's standard library at the other end."""
import base64
import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import unittest
import urllib.error
import urllib.request

import serving

PROGRAM = os.environ.get("LATHE_BINARY", str(serving.ROOT / "build/release/lathe"))


def chat(*flags, lines="hello\n"):
    return subprocess.run([PROGRAM, "chat", *flags], input=lines, capture_output=True, text=True, timeout=60)


class ChatWithServer(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = serving.Server("--api-key", "k1", "--api-key", "k2")
        cls.server.__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__(None, None, None)

    def test_says_what_the_server_answers(self):
        done = chat("--server", self.server.url, "--api-key", "k2", "--temperature", "0", "--max-tokens", "12", "--json",
                    "--system", "be brief", lines="hello\nand again\n")
        self.assertEqual(done.returncode, 0, done.stderr)
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertEqual(len(answers), 2)
        messages = [{"role": "system", "content": "be brief"}]
        for question, answer in zip(("hello", "and again"), answers):
            messages.append({"role": "user", "content": question})
            status, _, text = self.server.request(
                "POST", "/v1/chat/completions", {"messages": messages, "temperature": 0, "max_tokens": 12},
                {"Authorization": "Bearer k1"})
            expected = json.loads(text)
            self.assertEqual(answer["content"], expected["choices"][0]["message"]["content"])
            self.assertEqual(answer["prompt_tokens"], expected["usage"]["prompt_tokens"])
            self.assertEqual(answer["finish_reason"], expected["choices"][0]["finish_reason"])
            messages.append({"role": "assistant", "content": answer["content"]})

    def test_commands_work_as_in_process(self):
        done = chat("--server", self.server.url, "--api-key", "k1", "--max-tokens", "4",
                    lines="hello\n/regen\n/stats\n/clear\n/exit\n")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("tokens of context used", done.stdout)

    def test_an_answer_follows_a_schema(self):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump({"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"],
                       "additionalProperties": False}, file)
            file.flush()
            done = chat("--server", self.server.url, "--api-key", "k1", "--schema", file.name, "--json", "--seed", "1",
                        lines="hello\n/regen\n")
        self.assertEqual(done.returncode, 0, done.stderr)
        for line in done.stdout.splitlines():
            self.assertIn(json.loads(json.loads(line)["content"])["a"], (1, 2))

    def test_errors_are_one_line(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            closed = f"http://127.0.0.1:{s.getsockname()[1]}"
        for flags, part, code in (((self.server.url,), "API key", 2), ((self.server.url, "--api-key", "no"), "not valid", 2),
                                  ((closed,), "cannot connect", 1), (("nonsense",), "--server", 2),
                                  (("http://",), "--server", 2)):
            done = chat("--server", *flags)
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
            self.assertIn(part, done.stderr)
        # A model that is not there ends the turn, not the conversation.
        done = chat("other", "--server", self.server.url, "--api-key", "k1")
        self.assertIn("'other' is not served here", done.stdout)

    def test_sends_what_was_said_and_nothing_else(self):
        """The server's own defaults stand for what no flag says."""
        always = {"model": "m", "stream": True, "stream_options": {"include_usage": True},
                  "messages": [{"role": "user", "content": "hello"}]}
        cases = (((), {}), (("--seed", "7"), {"seed": 7}), (("--temperature", "0.5"), {"temperature": 0.5}),
                 (("--top-p", "1", "--top-k", "0", "--min-p", "0"), {"top_p": 1, "top_k": 0, "min_p": 0}),
                 (("--max-tokens", "3", "--stop", "x"), {"max_tokens": 3, "stop": ["x"]}))
        for flags, expected in cases:
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                listener.listen()
                received = []

                def serve():
                    connection, _ = listener.accept()
                    with connection:
                        data = b""
                        while b"\r\n\r\n" not in data or not data.endswith(b"}"):
                            data += connection.recv(65536)
                        received.append(json.loads(data.partition(b"\r\n\r\n")[2]))
                        connection.sendall(b"HTTP/1.1 500 X\r\nContent-Length: 3\r\n\r\nbad")
                thread = threading.Thread(target=serve)
                thread.start()
                chat("m", "--server", f"http://127.0.0.1:{listener.getsockname()[1]}", *flags)
                thread.join()
            self.assertEqual(received, [{**always, **expected}])

    def test_flags_of_a_model_in_this_process_are_refused(self):
        for flags in (("--draft", "ngram"), ("--draft-tokens", "3"), ("--judge", "top-k"), ("--judge-threshold", "1"),
                      ("--kv", "int8"), ("--context", "100"), ("--coupled",), ("--device", "cpu"), ("--threads", "1"),
                      ("--dtype", "fp32"), ("--park-kv", "aqua2")):
            done = chat("--server", self.server.url, "--api-key", "k1", *flags)
            self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (2, "", 1), (flags, done.stderr))
            self.assertIn(flags[0], done.stderr)

    def test_servers_that_misbehave(self):
        """What a broken server may send: none of it hangs or crashes the client."""
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        cases = ((b"", "broke off"), (b"nonsense", "broke off"), (head, "broke off"),
                 (head + b"data: {\n\n", "not valid JSON"), (head + b"data: []\n\n", "no object"),
                 (head + b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', "broke off"),
                 (head + b'data: {"choices":[1]}\n\ndata: {"choices":[{"delta":[]}]}\n\ndata: [DONE]\n\n', ""),
                 (head + b'data: {"error":{"message":"full of errors"}}\n\n', "full of errors"),
                 (b"HTTP/1.1 500 X\r\nContent-Length: 3\r\n\r\nbad", "status 500"))
        for answer, part in cases:
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                listener.listen()

                def serve():
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(answer)
                thread = threading.Thread(target=serve)
                thread.start()
                done = chat("m", "--server", f"http://127.0.0.1:{listener.getsockname()[1]}")
                thread.join()
                self.assertEqual(done.returncode, 0, (answer, done.stderr))
                self.assertIn(part, done.stdout, answer)


class Keys(unittest.TestCase):
    def test_bearer_and_basic(self):
        with tempfile.NamedTemporaryFile("w", suffix=".keys") as file:
            file.write("first\r\n\nsecond\n")
            file.flush()
            with serving.Server("--api-key-file", file.name, "--host", "0.0.0.0") as server:
                def status(authorization, path="/v1/models"):
                    headers = {"Authorization": authorization} if authorization else {}
                    return server.request("GET", path, headers=headers)[0]
                basic = "Basic " + base64.b64encode(b"anyone:second").decode()
                self.assertEqual([status("Bearer first"), status("Bearer second"), status(basic)], [200] * 3)
                self.assertEqual([status(None), status("Bearer "), status("Bearer third"), status("first")], [401] * 4)
                self.assertEqual([status(None, p) for p in ("/health", "/", "/metrics", "/openapi.json", "/x")],
                                 [200, 401, 401, 401, 401])
                self.assertEqual(server.request("GET", "/metrics", headers={"Authorization": "Bearer first"})[0], 200)
                challenge = server.request("GET", "/")[1]["WWW-Authenticate"]
                self.assertTrue(challenge.startswith("Basic "))


    def test_metrics_may_be_open(self):
        with serving.Server("--api-key", "k", "--host", "0.0.0.0", "--metrics-without-key") as server:
            statuses = [server.request("GET", path)[0] for path in ("/metrics", "/v1/models", "/", "/openapi.json", "/metrics/")]
            self.assertEqual(statuses, [200, 401, 401, 401, 401])


@unittest.skipIf(shutil.which("openssl") is None, "openssl is not installed")
class Tls(unittest.TestCase):
    def test_https(self):
        with tempfile.TemporaryDirectory() as directory:
            cert, key = directory + "/cert.pem", directory + "/key.pem"
            subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "1",
                            "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
                           check=True, capture_output=True)
            with serving.Server("--tls-cert", cert, "--tls-key", key) as server:
                self.assertTrue(server.url.startswith("https://"))
                context = ssl.create_default_context(cafile=cert)
                with urllib.request.urlopen(server.url + "/v1/models", context=context) as answer:
                    self.assertEqual(json.load(answer)["data"][0]["id"], "tiny")
                body = json.dumps({"prompt": "x", "max_tokens": 200, "stream": True, "ignore_eos": True}).encode()
                request = urllib.request.Request(server.url + "/v1/completions", body, {"Content-Type": "application/json"})
                with urllib.request.urlopen(request, context=context) as answer:
                    self.assertTrue(answer.read().endswith(b"data: [DONE]\n\n"))
                # Plain HTTP, and an older TLS, get nothing.
                with self.assertRaises(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{server.port}/health", timeout=10)
                old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
                old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
                with self.assertRaises(OSError):
                    urllib.request.urlopen(server.url + "/health", context=old, timeout=10)
                # A client that leaves in the middle is noticed here too.
                raw = context.wrap_socket(socket.create_connection(("127.0.0.1", server.port)), server_hostname="localhost")
                body = json.dumps({"prompt": "x", "max_tokens": 4000, "stream": True, "ignore_eos": True}).encode()
                raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                            b"Content-Length: %d\r\n\r\n" % len(body) + body)
                raw.recv(1000)
                raw.close()
                for _ in range(500):
                    with urllib.request.urlopen(server.url + "/metrics", context=context) as answer:
                        text = answer.read().decode()
                    if 'lathe_choices_open{engine="0",model_name="tiny"} 0\n' in text:
                        break
                else:
                    self.fail("the choice is still open")
                # The client of `chat` refuses a certificate that nobody vouches for.
                done = chat("--server", server.url)
                self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1), done.stderr)


if __name__ == "__main__":
    unittest.main()
