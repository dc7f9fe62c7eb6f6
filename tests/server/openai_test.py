"""The official `openai` client against `lathe serve`: every route and option."""
import concurrent.futures
import json
import time
import unittest

import serving

KEY = "test-key"


def load():
    import openai
    return openai


class OpenAiClient(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.openai = load()
        cls.server = serving.Server("--api-key", KEY)
        cls.server.__enter__()
        cls.client = cls.openai.OpenAI(base_url=cls.server.url + "/v1", api_key=KEY, max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.server.__exit__(None, None, None)

    def chat(self, **options):
        options = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, **options}
        return self.client.chat.completions.create(**options)

    def complete(self, **options):
        return self.client.completions.create(**{"model": "tiny", "prompt": "hi", "max_tokens": 8, **options})

    def test_models(self):
        models = self.client.models.list().data
        self.assertEqual([m.id for m in models], ["tiny"])
        self.assertEqual(self.client.models.retrieve("tiny").owned_by, "lathe")
        with self.assertRaises(self.openai.NotFoundError):
            self.client.models.retrieve("other")

    def test_chat(self):
        answer = self.chat(temperature=0)
        self.assertEqual(answer.object, "chat.completion")
        self.assertEqual(answer.choices[0].message.role, "assistant")
        self.assertIn(answer.choices[0].finish_reason, ("stop", "length"))
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)
        self.assertEqual(answer.choices[0].message.content, self.chat(temperature=0).choices[0].message.content)
        self.assertIsNotNone(answer._request_id)

    def test_chat_stream(self):
        whole = self.chat(temperature=0, max_tokens=20)
        text, finish, usage = "", None, None
        for chunk in self.chat(temperature=0, max_tokens=20, stream=True, stream_options={"include_usage": True}):
            if chunk.usage:
                usage = chunk.usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual(finish, whole.choices[0].finish_reason)
        self.assertEqual(usage.completion_tokens, whole.usage.completion_tokens)

    def test_stream_helper(self):
        with self.client.chat.completions.stream(model="tiny", max_tokens=8, logit_bias={"257": 100},
                                                 messages=[{"role": "user", "content": "hi"}]) as stream:
            for _ in stream:
                pass
            self.assertIsNotNone(stream.get_final_completion().choices[0].message.content)

    def test_n_and_seed(self):
        answer = self.chat(n=4, seed=5, max_tokens=16)
        texts = [c.message.content for c in answer.choices]
        self.assertEqual([c.index for c in answer.choices], [0, 1, 2, 3])
        self.assertGreater(len(set(texts)), 1)
        self.assertEqual(texts, [c.message.content for c in self.chat(n=4, seed=5, max_tokens=16).choices])
        self.assertNotEqual(self.chat(max_tokens=32).choices[0].message.content,
                            self.chat(max_tokens=32).choices[0].message.content)  # no seed: another each time

    def test_stop(self):
        answer = self.chat(logit_bias={"65": 100}, max_tokens=30)
        self.assertEqual(answer.choices[0].message.content, "A" * 30)
        answer = self.chat(logit_bias={"65": 100}, max_tokens=30, stop=["zz", "AA"])
        self.assertEqual((answer.choices[0].message.content, answer.choices[0].finish_reason), ("", "stop"))
        answer = self.chat(logit_bias={"257": 100})  # the end token
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        answer = self.chat(logit_bias={"257": 100}, extra_body={"ignore_eos": True})
        self.assertEqual(answer.choices[0].finish_reason, "length")

    def test_logprobs(self):
        choice = self.chat(logprobs=True, top_logprobs=3, temperature=0).choices[0]
        for token in choice.logprobs.content:
            self.assertLessEqual(token.logprob, 0)
            self.assertEqual(len(token.top_logprobs), 3)
            self.assertEqual(token.top_logprobs[0].logprob, token.logprob)  # greedy: the most probable
        self.assertEqual(len(choice.logprobs.content), 8)
        self.assertEqual(self.chat(logprobs=True).choices[0].logprobs.content[0].top_logprobs, [])

    def test_penalties_and_extras(self):
        self.chat(presence_penalty=2, frequency_penalty=-2, top_p=0.5, max_completion_tokens=3, user="me",
                  metadata={"a": "b"}, service_tier="auto",
                  extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "stop_token_ids": [3]})

    def test_completions(self):
        answer = self.complete(prompt=["hi", "you"], n=2, temperature=0)
        self.assertEqual(len(answer.choices), 4)
        self.assertEqual(answer.choices[0].text, answer.choices[1].text)
        self.assertEqual(answer.choices[0].text, self.complete(prompt=[104, 105], temperature=0).choices[0].text)
        text = "".join(c.choices[0].text for c in self.complete(temperature=0, stream=True))
        self.assertEqual(text, answer.choices[0].text)

    def test_echo(self):
        answer = self.complete(prompt="hello", echo=True, logprobs=1, max_tokens=0)
        choice = answer.choices[0]
        self.assertEqual(choice.text, "hello")
        self.assertIsNone(choice.logprobs.token_logprobs[0])
        self.assertTrue(all(x <= 0 for x in choice.logprobs.token_logprobs[1:]))
        self.assertEqual(choice.logprobs.tokens, list("hello"))
        self.assertEqual(choice.logprobs.text_offset, [0, 1, 2, 3, 4])
        self.assertEqual(len(self.complete(echo=True, logprobs=0).choices[0].logprobs.tokens), 10)

    def test_embeddings(self):
        answer = self.client.embeddings.create(model="tiny", input=["hello", "hello", "bye"])  # base64 underneath
        first, second, third = (d.embedding for d in answer.data)
        self.assertEqual(first, second)
        self.assertNotEqual(first, third)
        self.assertAlmostEqual(sum(x * x for x in first), 1, places=5)
        plain = self.client.embeddings.create(model="tiny", input="hello", encoding_format="float")
        for a, b in zip(first, plain.data[0].embedding):
            self.assertAlmostEqual(a, b, places=6)

    def test_errors(self):
        with self.assertRaises(self.openai.BadRequestError) as caught:
            self.chat(temperature=-1)
        self.assertEqual(caught.exception.param, "temperature")
        self.assertEqual(caught.exception.type, "invalid_request_error")
        with self.assertRaises(self.openai.NotFoundError) as caught:
            self.chat(model="gpt-4o")
        self.assertEqual(caught.exception.code, "model_not_found")
        with self.assertRaises(self.openai.BadRequestError) as caught:
            self.chat(messages=[{"role": "user", "content": "x" * 5000}])
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        with self.assertRaises(self.openai.AuthenticationError):
            self.openai.OpenAI(base_url=self.server.url + "/v1", api_key="wrong", max_retries=0).models.list()

    def test_leaving_a_stream_frees_its_place(self):
        stream = self.chat(max_tokens=3000, stream=True, extra_body={"ignore_eos": True})
        for _ in zip(range(3), stream):
            pass
        stream.close()
        headers = {"Authorization": "Bearer " + KEY}
        for _ in range(500):
            text = self.server.request("GET", "/metrics", headers=headers)[2]
            if 'lathe_choices_open{engine="0",model_name="tiny"} 0\n' in text:
                break
        else:
            self.fail("the choice is still open")
        self.assertIn('finished_reason="abort"} 1', text)

    def test_alone_and_in_a_batch(self):
        def answer(i):
            return self.chat(messages=[{"role": "user", "content": f"question {i}"}], temperature=0, max_tokens=40,
                             extra_body={"ignore_eos": True}).choices[0].message.content
        alone = [answer(i) for i in range(16)]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            self.assertEqual(list(pool.map(answer, range(16))), alone)
        self.assertEqual([answer(i) for i in range(16)], alone)  # behind a prefix hit

    def test_response_format(self):
        schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9},
                                                   "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2}},
                  "required": ["n", "tags"], "additionalProperties": False}
        for seed in range(4):
            # Room for all white space that the grammar allows: the model's choices are random.
            answer = self.chat(max_tokens=500, seed=seed, response_format={
                "type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}).choices[0]
            self.assertEqual(answer.finish_reason, "stop")
            document = json.loads(answer.message.content)
            self.assertTrue(1 <= document["n"] <= 9 and set(document["tags"]) <= {"a", "b"}, document)
        with self.assertRaises(self.openai.BadRequestError) as caught:
            self.chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}})
        self.assertEqual(caught.exception.param, "response_format")

    def test_tools(self):
        tools = [{"type": "function", "function": {"name": name, "parameters": {
            "type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"],
            "additionalProperties": False}}} for name in ("weather", "time")]
        for choice in ("required", {"type": "function", "function": {"name": "time"}}):
            options = {"max_tokens": 250, "tools": tools, "tool_choice": choice, "parallel_tool_calls": False, "seed": 3}
            answer = self.chat(**options).choices[0]
            self.assertEqual(answer.finish_reason, "tool_calls")
            call, = answer.message.tool_calls
            self.assertIn(call.function.name, ("weather", "time") if choice == "required" else ("time",))
            self.assertIn(json.loads(call.function.arguments)["city"], ("Rome", "Oslo"))
            name, arguments, pieces = "", "", 0
            for event in self.chat(stream=True, **options):
                for piece in (event.choices[0].delta.tool_calls or []) if event.choices else []:
                    name += piece.function.name or ""
                    arguments += piece.function.arguments or ""
                    pieces += 1
            self.assertEqual((name, arguments), (call.function.name, call.function.arguments))
            self.assertGreater(pieces, 1)
        self.assertIn(self.chat(tools=tools).choices[0].finish_reason, ("length", "stop", "tool_calls"))
        self.assertIsNone(self.chat(tools=tools, tool_choice="none").choices[0].message.tool_calls)

    def test_async_client(self):
        import asyncio

        async def run():
            async with self.openai.AsyncOpenAI(base_url=self.server.url + "/v1", api_key=KEY) as client:
                answers = await asyncio.gather(*(
                    client.chat.completions.create(model="tiny", max_tokens=4,
                                                   messages=[{"role": "user", "content": str(i)}]) for i in range(8)))
                return [a.usage.completion_tokens for a in answers]
        self.assertEqual(len(asyncio.run(run())), 8)


class SpeculativeClient(unittest.TestCase):
    """Drafts from the text so far, and a judge that requests may ask for."""
    PROMPT = "to be or not to be or not to be or not to be or "
    # Three letters, each less likely with every use: a text that repeats itself, and then does not.
    LIVELY = {"logit_bias": {"97": 50, "98": 50, "99": 50}, "frequency_penalty": 2}

    @classmethod
    def setUpClass(cls):
        cls.openai = load()
        cls.plain = serving.Server()
        cls.server = serving.Server("--draft", "ngram", "--draft-tokens", "4", "--judge", "top-k", "--judge-threshold", "0",
                                    "--judge-shadow", "1")
        cls.clients = []
        for server in (cls.plain, cls.server):
            server.__enter__()
            cls.clients.append(cls.openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0))

    @classmethod
    def tearDownClass(cls):
        for server, client in zip((cls.plain, cls.server), cls.clients):
            client.close()
            server.__exit__(None, None, None)

    def complete(self, client=1, **options):
        """(texts, usage.speculative or None, usage)"""
        speculative = options.pop("speculative", None)
        extra = {"ignore_eos": True, **({"speculative": speculative} if speculative is not None else {})}
        answer = self.clients[client].completions.create(
            **{"model": "tiny", "prompt": self.PROMPT, "max_tokens": 40, "temperature": 0, "extra_body": extra, **options})
        return [c.text for c in answer.choices], (answer.usage.model_extra or {}).get("speculative"), answer.usage

    def test_exact_speculation_changes_no_text(self):
        expected, none, _ = self.complete(client=0)
        self.assertIsNone(none)
        for speculative in (None, {}, {"num_tokens": 1}, {"num_tokens": 16}, {"num_tokens": "auto"}, {"judge_threshold": 0},
                            {"judge": "top-k", "judge_threshold": 0}, {"judge": None}, {"deterministic": True}):
            texts, usage, _ = self.complete(speculative=speculative)
            self.assertEqual(texts, expected, speculative)
            self.assertFalse(usage["lossy"])
            self.assertEqual(usage["accepted_judge"], 0)
        self.assertEqual(self.complete(speculative={"method": "none"})[1]["cycles"], 0)
        whole = self.clients[0].chat.completions.create(model="tiny", max_tokens=20, temperature=0, n=2,
                                                        messages=[{"role": "user", "content": self.PROMPT}])
        drafted = self.clients[1].chat.completions.create(model="tiny", max_tokens=20, temperature=0, n=2,
                                                          messages=[{"role": "user", "content": self.PROMPT}])
        self.assertEqual([c.message.content for c in whole.choices], [c.message.content for c in drafted.choices])

    def test_deterministic_sampling(self):
        options = {"temperature": 1.2, "seed": 11, "n": 3}
        expected = self.complete(client=0, speculative={"deterministic": True}, **options)[0]
        for num_tokens in (0, 2, 9):
            self.assertEqual(self.complete(speculative={"deterministic": True, "num_tokens": num_tokens}, **options)[0],
                             expected)

    def test_judge_and_budgets(self):
        judge = {"judge": "top-k", "judge_threshold": "inf", "num_tokens": 4}
        _, usage, whole = self.complete(speculative=judge, **self.LIVELY)
        self.assertGreater(usage["accepted_judge"], 2)
        self.assertTrue(usage["lossy"])
        emitted = sum(usage[k] for k in ("accepted_match", "accepted_judge", "corrected", "bonus"))
        self.assertTrue(1 <= whole.completion_tokens - emitted <= 40 - usage["cycles"])
        self.assertLessEqual(usage["accepted_match"] + usage["accepted_judge"], usage["drafted"])
        budget = self.complete(speculative={**judge, "max_judge_accepts": 2}, **self.LIVELY)
        self.assertEqual(budget[1]["accepted_judge"], 2)
        self.assertEqual(self.complete(speculative={**judge, "max_logprob_deficit": 0}, **self.LIVELY)[0],
                         self.complete(client=0, **self.LIVELY)[0])

    def test_streamed_usage(self):
        for route in ("chat", "completions"):
            options = {"model": "tiny", "max_tokens": 30, "temperature": 0, "stream": True,
                       "stream_options": {"include_usage": True}, "extra_body": {"ignore_eos": True}}
            if route == "chat":
                events = self.clients[1].chat.completions.create(messages=[{"role": "user", "content": self.PROMPT}], **options)
            else:
                events = self.clients[1].completions.create(prompt=self.PROMPT, **options)
            usages = [e.usage for e in events if e.usage]
            self.assertEqual(len(usages), 1)
            usage = usages[0].model_extra["speculative"]
            self.assertEqual(set(usage), {"cycles", "drafted", "accepted_match", "accepted_judge", "corrected", "bonus",
                                          "logprob_deficit", "lossy"})

    def test_errors(self):
        for client, speculative, param in (
                (1, {"judge": "other"}, "judge"), (1, {"judge_recall": 0.9}, "judge_recall"),
                (1, {"judge": "top-k"}, "judge_threshold"), (1, {"method": "self"}, "method"),
                (1, {"num_tokens": 65}, "num_tokens"), (1, {"typo": 1}, "typo"),
                (1, {"max_judge_accepts": -1}, "max_judge_accepts"), (0, {"num_tokens": 3}, "num_tokens"),
                (0, {"judge_threshold": 0.5}, "judge_threshold"), (0, {"judge": "top-k"}, "judge")):
            with self.assertRaises(self.openai.BadRequestError) as caught:
                self.complete(client=client, speculative=speculative)
            self.assertEqual(caught.exception.param, "speculative." + param)

    def test_metrics(self):
        before = self.server.metric("lathe_shadow_requests_total")
        self.complete(speculative={"judge_threshold": 1000}, **self.LIVELY)
        self.server.wait_until_idle()
        for _ in range(600):
            if self.server.metric("lathe_shadow_requests_total") > before:
                break
            time.sleep(0.05)
        else:
            self.fail("no judged answer was compared")
        values = self.server.metrics()
        self.assertGreater(values['vllm:spec_decode_num_drafts_total{engine="0",model_name="tiny"}'], 0)
        self.assertGreater(self.server.metric("lathe_judge_accept_total"), 0)
        self.assertGreater(self.server.metric("lathe_shadow_disagree_total"), 0)
        self.assertEqual(self.server.metric("lathe_judge_threshold_effective"), 0)
        self.assertEqual(self.server.metric("vllm:spec_decode_num_accepted_tokens_total"),
                         self.server.metric("vllm:spec_decode_num_accepted_tokens_per_pos_total"))
        self.assertFalse([k for k in self.plain.metrics() if "spec_" in k or "judge" in k or "parked" in k])


if __name__ == "__main__":
    serving.enter_python_with_packages()
    unittest.main()
