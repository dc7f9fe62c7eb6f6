"""The chat page in a real Chromium: send, stream, stop, edit, regenerate, errors, reload, settings, themes, a phone.

    page_test.py SOURCE_DIR [SCREENSHOT_DIR]

Serves the page's files with the headers of `lathe serve` and a chat API that plays back what a test asks for;
served_page_test.py has the real one. Exit code 77 (skipped) without selenium (scripts/test-python), chromium or
chromedriver (scripts/install-deps --browser).
"""
import json
import re
import sys
import threading
import time
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from chat_page import ChatPage, Keys, browser, require_browser

SOURCE = Path(sys.argv.pop(1))
SCREENSHOTS = Path(sys.argv.pop(1)) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else Path("screenshots")
PAGE = SOURCE / "src/server/page"
FILES = {"/": ("index.html", "text/html"), "/style.css": ("style.css", "text/css"),
         "/app.js": ("app.js", "text/javascript")}
# As src/server/api.cpp sends it: what the page does must work under it.
POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
          "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")

MARKDOWN = """# Heading

A *quick* **answer** with `code`, ~~not this~~ and a [link](https://example.com/a), not [this](javascript:alert(1)).

1. first
2. second
   - inner

> quoted

| a | b |
|---|---|
| 1 | **2** |

```python
print("<b>hi</b>")
```

<img src=x onerror="document.title='broken'"><script>document.title='broken'</script>"""


class Mock:
    """What the next answers are, and what the page asked."""
    answers = []  # lists of pieces; a number: seconds to wait; an exception class: drop the connection
    requests = []
    key = None
    closed = threading.Event()  # the client went away in the middle


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, body, content_type="application/json", extra=()):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in extra:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def allowed(self):
        if Mock.key and self.headers.get("Authorization") != f"Bearer {Mock.key}":
            self.reply(401, {"error": {"message": "The API key is wrong or missing."}})
            return False
        return True

    def do_GET(self):
        if self.path in FILES:
            name, content_type = FILES[self.path]
            self.reply(200, (PAGE / name).read_bytes(), content_type + "; charset=utf-8",
                       [("Content-Security-Policy", POLICY)])
        elif not self.allowed():
            pass
        elif self.path == "/v1/models":
            self.reply(200, {"object": "list", "data": [{"id": "tiny-model", "object": "model"}]})
        elif self.path == "/metrics":
            self.reply(200, b'# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{model_name="m"} 0.125\n', "text/plain")
        else:
            self.reply(404, {"error": {"message": "no such route"}})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return
        Mock.requests.append(body)
        answer = Mock.answers.pop(0) if Mock.answers else ["No answer was prepared."]
        if isinstance(answer, tuple):
            self.reply(*answer)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()

        def event(data):
            # Cut in two, in the middle of characters, as networks do.
            raw = b"data: " + (data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)).encode() + b"\n\n"
            self.wfile.write(raw[:len(raw) // 2])
            self.wfile.flush()
            self.wfile.write(raw[len(raw) // 2:])
            self.wfile.flush()
        try:
            for piece in answer:
                if isinstance(piece, (int, float)):
                    time.sleep(piece)
                elif piece is ConnectionError:
                    return
                else:
                    event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
            event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            event({"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": len(answer), "total_tokens": 20 + len(answer),
                                            "prompt_tokens_details": {"cached_tokens": 16}}})
            event("[DONE]")
        except (BrokenPipeError, ConnectionResetError):
            Mock.closed.set()
        self.close_connection = True


class Page(ChatPage):
    @classmethod
    def setUpClass(cls):
        cls.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=cls.server.serve_forever, daemon=True).start()
        cls.url = f"http://127.0.0.1:{cls.server.server_port}/"
        cls.driver = browser()
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)

    @classmethod
    def tearDownClass(cls):
        cls.driver.quit()
        cls.server.shutdown()

    def setUp(self):
        Mock.answers, Mock.requests, Mock.key = [], [], None
        Mock.closed.clear()
        self.driver.get(self.url)
        self.driver.execute_script("localStorage.clear()")
        self.open()

    def open(self):
        self.driver.get(self.url)
        self.wait(lambda: self.text("#model") == "tiny-model" or Mock.key)

    def send(self, text, *answer):
        if answer:
            Mock.answers.append(list(answer))
        self.find("#input").send_keys(text, Keys.ENTER)

    def ask(self, text, *answer):
        self.send(text, *answer)
        self.wait(lambda: not Mock.answers and self.is_idle())

    def shot(self, name):
        self.driver.save_screenshot(str(SCREENSHOTS / f"{name}.png"))

    def test_sends_and_streams(self):
        self.send("What is 日本?", "Hel", "lo ", 0.6, "日本", "!")
        self.wait(lambda: self.text(".assistant .body") == "Hello ")  # before the rest is there
        self.assertFalse(self.is_idle())
        self.wait(self.is_idle)
        self.assertEqual(self.texts(".message .body"), ["What is 日本?", "Hello 日本!"])
        request = Mock.requests[0]
        self.assertEqual(request["messages"], [{"role": "user", "content": "What is 日本?"}])
        self.assertEqual((request["model"], request["stream"]), ("tiny-model", True))
        self.assertRegex(self.text("#speed"), r"tokens/s.*prompt 20, of which 16 from the cache")
        self.wait(lambda: "13 %" in self.text("#cache") or "12 %" in self.text("#cache"))
        self.ask("And?", "More.")
        self.assertEqual([m["role"] for m in Mock.requests[1]["messages"]], ["user", "assistant", "user"])
        self.assertEqual(self.text("#conversations .current .open"), "What is 日本?")

    def test_markdown_is_shown_and_html_is_not(self):
        self.ask("md", *re.findall(r"(?s).{1,7}", MARKDOWN))
        body = ".assistant .body "
        self.assertEqual(self.text(body + "h2"), "Heading")
        self.assertEqual(self.texts(body + "p em, " + body + "p strong, " + body + "p code, " + body + "del"),
                         ["quick", "answer", "code", "not this"])
        self.assertEqual(len(self.all(body + "a")), 1)
        self.assertEqual(self.find(body + "a").get_attribute("href"), "https://example.com/a")
        self.assertIn("[this](javascript:alert(1))", self.text(body))
        self.assertEqual(self.texts(body + "ol > li > ul > li"), ["inner"])
        self.assertEqual(self.text(body + "blockquote"), "quoted")
        self.assertEqual(self.texts(body + "td"), ["1", "2"])
        self.assertEqual(self.text(body + "pre code"), 'print("<b>hi</b>")')
        self.assertEqual(len(self.all(body + "img, " + body + "script")), 0)
        self.assertIn("<img src=x", self.text(body))
        self.shot("light")

    def test_hostile_text_is_drawn_quickly(self):
        hostile = ["*" * 20000, "[" * 20000, "`" * 5000 + "a", "> " * 3000 + "x", "- " * 3000, "|" * 9000 + "\n|-|", "_a" * 9000,
                   "\n".join(" " * i + "- x" for i in range(300)), "**a" * 5000, "\\" * 9999, "http://" * 3000]
        seconds = self.driver.execute_script(
            "return arguments[0].map((t) => { const s = performance.now(); renderMarkdown(t); return performance.now() - s; })", hostile)
        self.assertLess(max(seconds), 3000, list(zip([t[:8] for t in hostile], seconds)))

    def test_stops(self):
        self.send("long", "one ", "two ", *[piece for _ in range(200) for piece in (0.05, "more ")])
        self.wait(lambda: "two" in (self.text(".assistant .body") or ""))
        self.find("#stop").click()
        self.wait(self.is_idle)
        self.assertEqual(self.text(".assistant .note"), "Stopped.")
        self.assertTrue(Mock.closed.wait(5), "the server was not told")
        # By keyboard, too; the half answer stays part of the conversation.
        self.send("again", *[piece for _ in range(200) for piece in ("x ", 0.05)])
        self.wait(lambda: len(self.all(".assistant")) == 2 and "x" in self.texts(".assistant .body")[1])
        self.find("body").send_keys(Keys.ESCAPE)
        self.wait(self.is_idle)
        self.assertTrue(Mock.requests[1]["messages"][1]["content"].startswith("one two"))

    def test_errors_are_shown(self):
        Mock.answers.append((429, {"error": {"message": "The queue is full; try again later."}}))
        self.send("x")
        self.wait(lambda: "queue is full" in self.text("#error"))
        self.assertIn("429", self.text(".assistant.error .note"))
        self.shot("error")
        self.ask("y", "Good.")  # goes on; the failed answer is not sent
        self.assertEqual([m["content"] for m in Mock.requests[1]["messages"]], ["x", "y"])
        self.assertFalse(self.find("#error").is_displayed())
        self.send("z", "Half", ConnectionError)
        self.wait(lambda: "connection was lost" in (self.text("#error") or ""))
        self.assertEqual(self.texts(".assistant .body")[-1], "Half")
        Mock.answers.append((500, b"<b>not json</b>", "text/html"))
        self.send("w")
        self.wait(lambda: "<b>not json</b>" in (self.text("#error") or ""))

    def test_reload_keeps_the_conversations(self):
        self.ask("first question", "first *answer*")
        self.find("#new-chat").click()
        self.assertEqual(self.texts(".message"), [])
        self.ask("second question", "second answer")
        self.open()
        self.assertEqual(self.texts(".message .body"), ["second question", "second answer"])
        self.assertEqual(self.texts("#conversations .open"), ["second question", "first question"])
        self.all("#conversations .open")[1].click()
        self.assertEqual(self.texts(".message .body"), ["first question", "first answer"])
        self.assertEqual(self.text(".assistant em"), "answer")
        self.all("#conversations .delete")[0].click()
        self.driver.switch_to.alert.accept()
        self.wait(lambda: self.texts("#conversations .open") == ["first question"])
        self.driver.execute_script("localStorage.setItem('lathe-chat-1', '{\"conversations\": [5, {\"x\": 1}')")
        self.open()  # a damaged store is an empty one
        self.assertEqual(self.texts("#conversations .open"), [])

    def test_edits_and_regenerates(self):
        self.ask("one", "A")
        self.ask("two", "B")
        self.find(".message:nth-of-type(1) .tools button:nth-of-type(2)").click()
        box = self.find(".message textarea")
        box.send_keys(Keys.CONTROL, "a")
        Mock.answers.append(["C"])
        box.send_keys("uno", Keys.ENTER)
        self.wait(lambda: not Mock.answers and self.is_idle())
        self.assertEqual(self.texts(".message .body"), ["uno", "C"])
        Mock.answers.append(["D"])
        self.find(".assistant .tools button:nth-of-type(2)").click()
        self.wait(lambda: self.texts(".message .body") == ["uno", "D"])
        self.assertEqual(Mock.requests[-1]["messages"], [{"role": "user", "content": "uno"}])

    def test_settings_and_key(self):
        Mock.key = "secret"
        self.open()
        self.wait(lambda: "401" in (self.text("#error") or ""))
        self.find("body").send_keys(Keys.CONTROL, ",")
        self.wait(lambda: self.find("#settings").is_displayed())
        for name, value in (("apiKey", "secret"), ("temperature", "0.25"), ("seed", "7"), ("system", "Be brief."), ("max_tokens", "50")):
            self.find(f"#settings [name={name}]").send_keys(value)
        self.shot("settings")
        self.find("#settings button[value=save]").click()
        self.wait(lambda: self.text("#model") == "tiny-model")
        self.ask("hi", "ok")
        request = Mock.requests[0]
        self.assertEqual(request["messages"][0], {"role": "system", "content": "Be brief."})
        self.assertEqual((request["temperature"], request["seed"], request["max_tokens"]), (0.25, 7, 50))
        self.assertNotIn("top_p", request)
        self.open()
        self.ask("still there", "yes")
        self.assertEqual(Mock.requests[-1]["seed"], 7)

    def test_shift_enter_breaks_the_line(self):
        self.find("#input").send_keys("a", Keys.SHIFT, Keys.ENTER, Keys.NULL, "b")
        self.ask("", "ok")
        self.assertEqual(Mock.requests[0]["messages"][0]["content"], "a\nb")
        self.send("   ")
        time.sleep(0.2)
        self.assertEqual(len(Mock.requests), 1)  # nothing but blanks is no message

    def test_dark_and_light(self):
        back = "return getComputedStyle(document.body).backgroundColor"
        self.assertEqual(self.driver.execute_script(back), "rgb(255, 255, 255)")
        self.find("#theme").click()
        self.assertEqual(self.driver.execute_script(back), "rgb(25, 26, 27)")
        self.open()
        self.assertEqual(self.driver.execute_script(back), "rgb(25, 26, 27)")  # remembered

    def test_phone(self):
        self.driver.quit()
        type(self).driver = browser(390, 800, dark=True)
        self.driver.get(self.url)
        self.wait(lambda: self.text("#model") == "tiny-model")
        self.ask("A question on a phone", *re.findall(r"(?s).{1,7}", MARKDOWN + "\n\n" + "averylongword" * 20))
        wide = "return document.documentElement.scrollWidth"
        self.assertLessEqual(self.driver.execute_script(wide), 390)
        self.shot("phone-dark")
        self.assertFalse(self.find("#new-chat").is_displayed())
        self.find("#menu").click()
        self.wait(lambda: self.find("#new-chat").is_displayed())
        self.shot("phone-menu")
        self.find("#new-chat").click()
        self.wait(lambda: not self.find("#new-chat").is_displayed())
        self.assertEqual(self.driver.execute_script("return getComputedStyle(document.body).backgroundColor"), "rgb(25, 26, 27)")
        self.driver.quit()
        type(self).driver = browser()


if __name__ == "__main__":
    require_browser()
    unittest.main(verbosity=1)
