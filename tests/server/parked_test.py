"""`lathe serve --park-kv --prefix-cache-dir`: prefixes outlive the server, and kill -9 costs one of them at most."""
import hashlib
import http.client
import os
import pathlib
import random
import struct
import subprocess
import tempfile
import threading
import time
import unittest

import serving

HEADER = struct.Struct("<8s64s64sq")  # src/cache/parked_store.cpp
LIMIT_GB = 0.0004


def words(seed, count):
    """A text of `count` bytes, which are the tiny model's tokens; different from the first one on."""
    rng = random.Random(seed)
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(count))


def check_whole(path):
    data = path.read_bytes()
    magic, key, digest, size = HEADER.unpack_from(data)
    assert magic == b"lathekv1" and key.decode() + ".kv" == path.name and size == len(data) - HEADER.size, path
    assert hashlib.sha256(data[HEADER.size:]).hexdigest() == digest.decode(), path


class Parked(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()
        root = pathlib.Path(cls.directory.name)
        cls.model, cls.codec = root / "model", root / "codec.safetensors"
        cls.model.mkdir()
        serving.make_tiny_model(cls.model)
        (root / "text.txt").write_text(words(0, 12000))
        program = os.environ.get("LATHE_BINARY", str(serving.ROOT / "build/release/lathe"))
        subprocess.run([program, "fit-kv", cls.model, "-o", cls.codec, "--calibration", root / "text.txt", "--samples", "8",
                        "--seq-len", "128", "--window", "16"], check=True, stdout=subprocess.DEVNULL)

    @classmethod
    def tearDownClass(cls):
        cls.directory.cleanup()

    def setUp(self):
        self.kept = pathlib.Path(tempfile.mkdtemp(dir=self.directory.name))

    def server(self, *flags):
        return serving.Server("--park-kv", "aqua2", "--kv-codec", str(self.codec), "--prefix-cache-dir", str(self.kept),
                              *flags, model=str(self.model))

    def files(self):
        return sorted(self.kept.glob("*.kv"))

    def bytes_kept(self):
        return sum(p.stat().st_size for p in self.kept.iterdir())

    def ask(self, server, prompt):
        """(text, cached tokens) of a greedy answer."""
        status, answer = server.post("/v1/completions", {"prompt": prompt, "max_tokens": 8, "temperature": 0,
                                                         "ignore_eos": True})
        self.assertEqual(status, 200, answer)
        return answer["choices"][0]["text"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    def test_a_restart_finds_prefixes(self):
        prompt = words(1, 1500)
        with self.server() as server:
            self.assertEqual(self.ask(server, prompt)[1], 0)
            live, cached = self.ask(server, prompt)
            self.assertGreater(cached, 1400)  # alive still: all but the last tokens
            self.assertGreater(server.metric("lathe_parked_tokens_total"), 1000)
            self.assertEqual(server.metric("lathe_woken_tokens_total"), 0)
        count = len(self.files())
        self.assertGreater(count, 5)
        with self.server("--prefix-cache-ram-gb", "0") as server:
            self.assertEqual(server.metrics()['lathe_parked_pieces{engine="0",model_name="tiny",tier="disk"}'], count)
            text, cached = self.ask(server, prompt)
            self.assertGreater(cached, 1000)
            self.assertEqual(server.metric("lathe_woken_tokens_total"), cached)
            self.assertEqual(server.metric("lathe_wakes_total"), 1)
            values = server.metrics()
            self.assertEqual(values['lathe_parked_hits_total{engine="0",model_name="tiny",tier="disk"}'], count)
            self.assertEqual(values['lathe_parked_bytes{engine="0",model_name="tiny",tier="disk"}'], self.bytes_kept())
            # A longer prompt begins with the same pieces; another prompt does not.
            self.assertGreaterEqual(self.ask(server, prompt + " and more")[1], cached)
            self.assertEqual(self.ask(server, words(2, 700))[1], 0)
        with self.server() as server:
            self.assertEqual(self.ask(server, prompt), (text, cached))  # woken again: the same bits

    def test_codes_of_running_sequences_come_back_as_they_are(self):
        prompt = words(4, 1500)
        coded = ("--kv", "aqua2", "--no-prefix-cache")
        with self.server(*coded) as server:
            self.assertEqual(self.ask(server, prompt)[1], 0)
            woken = self.ask(server, prompt)
            self.assertGreater(woken[1], 1000)
        with self.server(*coded, "--prefix-cache-ram-gb", "0") as server:
            self.assertEqual(self.ask(server, prompt), woken)
            self.assertEqual(server.metric("lathe_woken_tokens_total"), woken[1])
        with self.server() as server:  # other bits than those that a live cache parks
            self.assertEqual(self.ask(server, prompt)[1], 0)

    def test_damaged_entries_are_not_used(self):
        prompt = words(3, 1500)
        with self.server() as server:
            self.ask(server, prompt)
        with self.server() as server:
            expected = self.ask(server, prompt)
        whole = self.files()
        originals = {p: p.read_bytes() for p in whole}
        cut, flipped = whole[0], whole[-1]
        cut.write_bytes(originals[cut][:-100])
        damaged = bytearray(originals[flipped])
        damaged[len(damaged) // 2] ^= 1
        flipped.write_bytes(damaged)
        (self.kept / (whole[0].name + ".1.partial")).write_bytes(b"x" * 500)  # of a dead process
        with self.server() as server:
            self.assertEqual(list(self.kept.glob("*.partial")), [])
            cached = self.ask(server, prompt)[1]
            self.assertLess(cached, expected[1])
            self.assertGreaterEqual(server.metric("lathe_parked_corrupt_total"), 1)
            self.assertGreaterEqual(server.metric("lathe_parked_misses_total"), 1)
        # What was computed anew has been parked again, or waits behind the other damaged file.
        with self.server() as server:
            self.ask(server, prompt)
        for path in self.files():
            check_whole(path)
        with self.server() as server:
            self.assertEqual(self.ask(server, prompt)[1], expected[1])

    def test_killed_servers_lose_one_entry_at_most(self):
        rng = random.Random(7)
        known = {}  # prompt seed: (text, cached tokens) when woken
        answered, unfinished = [], 0  # kills that came before the last entry was whole
        for round_number in range(10):
            server = self.server("--prefix-cache-ram-gb", "0").__enter__()
            try:
                # What the last round left: whole files, all of them known to the server.
                self.assertEqual(list(self.kept.glob("*.partial")), [])
                for path in self.files():
                    check_whole(path)
                values = server.metrics()
                self.assertEqual(values['lathe_parked_pieces{engine="0",model_name="tiny",tier="disk"}'],
                                 len(self.files()))
                for seed in answered[-6:]:
                    woken = self.ask(server, words(seed, 1100))
                    if seed == answered[-1] and woken[1] < 1000:
                        unfinished += 1
                        continue
                    self.assertGreater(woken[1], 1000, f"round {round_number}: prompt {seed} is lost")
                    self.assertEqual(known.setdefault(seed, woken), woken)
                self.assertEqual(server.metric("lathe_parked_corrupt_total"), 0)
                # Answers leave before their cache is written; an answer says that those before it were written.
                seeds = [100 * (round_number + 1) + i for i in range(3)]
                for seed in seeds:
                    self.ask(server, words(seed, 1100))
                time.sleep(rng.random() * 0.02)
            finally:
                server.kill()
            answered += seeds
        print(f"{unfinished} of 10 kills came before the last entry was whole", flush=True)

    def test_the_directory_keeps_its_size_when_killed(self):
        rng = random.Random(8)
        limit = LIMIT_GB * 1e9
        filled = 0
        for round_number in range(10):
            server = self.server("--prefix-cache-disk-gb", str(LIMIT_GB)).__enter__()
            stop = threading.Event()

            def keep_asking():
                seed = 1000 * (round_number + 1)
                while not stop.is_set():
                    seed += 1
                    try:
                        self.ask(server, words(seed, 1100))
                    except (OSError, http.client.HTTPException, ValueError):  # the server is gone
                        return
            thread = threading.Thread(target=keep_asking)
            try:
                self.assertLessEqual(self.bytes_kept(), limit)
                thread.start()
                time.sleep(0.3 + rng.random())
            finally:
                server.process.kill()
                stop.set()
                thread.join()
                server.kill()
            self.assertLessEqual(self.bytes_kept(), limit)
            filled = max(filled, self.bytes_kept())
        self.assertGreater(filled, limit / 2)
        with self.server("--prefix-cache-disk-gb", str(LIMIT_GB)) as server:
            prompt = words(5, 1100)
            self.ask(server, prompt)
        with self.server("--prefix-cache-disk-gb", str(LIMIT_GB)) as server:
            self.assertGreater(self.ask(server, prompt)[1], 0)


if __name__ == "__main__":
    unittest.main()
