"""The chat page of a real `lathe serve`, in a real Chromium: what the page and the server make of each other.

    served_page_test.py

The model is the random tiny one, so answers are nonsense; that they are the server's own, whole and in order, is
compared with what its API says to the same request. LATHE_PAGE_MODEL names another model. Exit code 77 (skipped) as
page_test.py's.
"""
import json
import os
import tempfile
import unittest

from chat_page import ChatPage, Keys, browser, require_browser, serving

CHAT = "/v1/chat/completions"
SAMPLING = {"temperature": 1, "seed": 7, "max_tokens": 60}  # greedily, the tiny model repeats one letter


class ServedPage(ChatPage):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.directory.cleanup)
        # Without an end token and with a long context, an answer goes on until somebody stops it.
        cls.model = os.environ.get("LATHE_PAGE_MODEL") or serving.make_tiny_model(cls.directory.name, context=65536)
        cls.server = serving.Server(model=cls.model)
        cls.enterClassContext(cls.server)
        cls.driver = browser()
        cls.addClassCleanup(cls.driver.quit)

    def setUp(self):
        self.open(self.server)
        self.driver.execute_script("localStorage.clear()")
        self.open(self.server)

    def open(self, server):
        self.driver.get(server.url)
        self.wait(lambda: self.text("#model") == "tiny")

    def set(self, **settings):
        self.find("#open-settings").click()
        for name, value in settings.items():
            field = self.find(f"#settings [name={name}]")
            field.clear()
            field.send_keys(value)
        self.find("#settings button[value=save]").click()

    def send(self, text):
        self.find("#input").send_keys(text, Keys.ENTER)

    def ask(self, text):
        answers = len(self.all(".assistant"))
        self.send(text)
        self.wait(lambda: len(self.all(".assistant")) == answers + 1 and self.is_idle(), 60)

    def messages(self):
        """The conversation as the page keeps it: Markdown changes what is seen of it."""
        kept = json.loads(self.driver.execute_script("return localStorage.getItem('lathe-chat-1')"))
        return [(m["role"], m["content"]) for m in kept["conversations"][0]["messages"]]

    def answer(self, *messages):
        body = {"messages": [{"role": r, "content": c} for r, c in messages], **SAMPLING}
        status, answer = self.server.post(CHAT, body)
        self.assertEqual(status, 200, answer)
        return ("assistant", answer["choices"][0]["message"]["content"])

    def aborted(self):
        return sum(v for k, v in self.server.metrics().items()
                   if k.startswith("vllm:request_success_total") and 'finished_reason="abort"' in k)

    def test_shows_what_the_server_answers(self):
        self.set(**{name: str(value) for name, value in SAMPLING.items()})
        self.ask("Why is the sky blue?")
        first = [("user", "Why is the sky blue?")]
        first.append(self.answer(*first))
        self.assertEqual(self.messages(), first)
        self.assertRegex(self.text("#speed"), r"^\d+ tokens.*; prompt \d+, of which \d+ from the cache$")
        self.wait(lambda: "% used" in self.text("#cache"))
        second = [*first, ("user", "日本?")]
        self.ask("日本?")
        self.assertEqual(self.messages(), [*second, self.answer(*second)])

    def test_streams_until_stopped(self):
        before = self.aborted()
        self.set(temperature="0")
        self.send("Go on for ever.")
        self.wait(lambda: self.text(".assistant .body"), 60)
        shown = len(self.text(".assistant .body"))
        self.wait(lambda: len(self.text(".assistant .body")) > shown, 60)
        self.assertFalse(self.is_idle())
        self.find("#stop").click()
        self.wait(self.is_idle)
        self.assertEqual(self.text(".assistant .note"), "Stopped.")
        self.server.wait_until_idle()  # told, and long before its context is full
        self.assertEqual(self.aborted(), before + 1)
        # What came so far stays part of the conversation, and the server takes it.
        self.set(max_tokens="5")
        self.ask("Again?")
        self.assertEqual([role for role, _ in self.messages()], ["user", "assistant", "user", "assistant"])
        self.assertNotIn("error", self.find(".assistant:last-child").get_attribute("class"))

    def test_reload_keeps_the_conversation(self):
        self.set(temperature="0", max_tokens="20")
        self.ask("first question")
        kept, seen = self.messages(), self.texts(".message .body")
        self.open(self.server)
        self.assertEqual(self.texts(".message .body"), seen)
        self.assertEqual(self.messages(), kept)
        self.ask("second question")  # goes on where it was, with the settings
        self.assertEqual(self.messages()[:2], kept)
        self.assertEqual(len(self.messages()), 4)

    def test_errors_are_shown(self):
        self.set(max_tokens="1000000000")
        self.send("too much")
        self.wait(lambda: (self.text("#error") or "").startswith("400: "))
        self.assertIn("context", self.text("#error"))
        self.assertIn("400", self.text(".assistant.error .note"))
        self.set(max_tokens="5", temperature="0")
        self.ask("less")
        self.assertFalse(self.find("#error").is_displayed())

    def test_a_server_that_ends_is_an_error(self):
        with serving.Server(model=self.model) as server:
            self.open(server)
            self.set(max_tokens="5")
            self.ask("Are you there?")
        self.send("And now?")
        self.wait(lambda: self.text("#error") == "The server does not answer.")
        self.assertTrue(self.is_idle())


if __name__ == "__main__":
    require_browser()
    unittest.main(verbosity=1)
