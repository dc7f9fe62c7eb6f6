"""Small tokenizers and what Hugging Face `tokenizers` makes of some strings: NAME.tokenizer.json and
tokenizers.json. Each is trained on a few lines and given the pipeline of a published family.

Run: python make_tokenizers.py (tokenizers 0.23)
"""
import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = Path(__file__).parent
U2581 = "\u2581"
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't care: it's 12 o'clock.",
    "She said that they'll go there when we've had the time to think about this and that.",
    "def add(first, second):\n    return first + second\n\nfor i in range(100):\n        print(i)\n",
    "caf\u00e9 na\u00efve r\u00e9sum\u00e9 \u00fcber stra\u00dfe",
    "\u4f60\u597d\u4e16\u754c \u3053\u3093\u306b\u3061\u306f",
] * 4
STRINGS = [
    "", " ", "  ", "   x", "a", "Hello, world!", "the dog and the fox", "  the  dog ", "I'd say they'll, DON'T",
    "12345 + 678", "tab\tand\nnewline\r\n\r\n end", "caf\u00e9 cafe\u0301 \u212b e\u0323\u0301", "\u4f60\u597d\uff0c\u4e16\u754c",
    "\U0001f600\U0001f468\u200d\U0001f469", "\u0663\u0664 \u00bd \u2167", "\ufffd\u0000\u0001", "mongolian\u180evowel\u0085next\u2028line",
    "<|end|>", "x <|end|> y", "x<tool>y</tool>", "<|end|", "<|end|><|end|>", "a\u2581b \u2581\u2581", "word<mask>word <mask> <mask>",
    "  <wide>  x", "dog\u00b7foxes", "return first + second", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "abababababababababababababababababababababababababababababababababababababababababababababababab",
    "thethethethethethethethethethethethethethethethethethethethethethethethethethethe" * 2,
    "<0x41>", "\u0130stanbul STRASSE", "A\u0300\u0301\u0323 \u1e9b\u0323 \ufb01", "\uac00 \u1100\u1161",
]
ADDED = [
    AddedToken("<|end|>", special=True, normalized=False),
    AddedToken("<s>", special=True, normalized=False),
    AddedToken("<tool>", special=False, normalized=False),
    AddedToken("</tool>", special=False, normalized=True),
    AddedToken("<mask>", special=True, normalized=False, lstrip=True, single_word=True),
    AddedToken("<wide>", special=False, normalized=False, lstrip=True, rstrip=True),
]


def byte_level(normalizer, steps, **model):
    tok = Tokenizer(models.BPE(**model))
    if normalizer:
        tok.normalizer = normalizer
    tok.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(CORPUS, trainer)
    return tok


def sentencepiece(normalizer, pre_tokenizer, decoder):
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tok.normalizer = normalizer
    if pre_tokenizer:
        tok.pre_tokenizer = pre_tokenizer
    tok.decoder = decoder
    tokens = ["<unk>"] + [f"<0x{b:02X}>" for b in range(256)]
    # Trained word by word, or a merge would span half a line; used without that split.
    words = [word for line in CORPUS for word in line.replace(" ", " \u2581").split(" ")]
    tok.train_from_iterator(words, trainers.BpeTrainer(vocab_size=500, special_tokens=tokens))
    spec = json.loads(tok.to_str())
    spec["added_tokens"] = []  # the trainer's special tokens; only <unk> is one
    tok = Tokenizer.from_str(json.dumps(spec))
    tok.add_special_tokens([AddedToken("<unk>", special=True, normalized=False)])
    return tok


def tokenizers():
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fallback = [decoders.Replace(U2581, " "), decoders.ByteFallback(), decoders.Fuse()]
    yield "gpt2", byte_level(None, [pre_tokenizers.ByteLevel(add_prefix_space=True)])
    yield "qwen2", byte_level(normalizers.NFC(), [pre_tokenizers.Split(Regex(QWEN2), "isolated"), level])
    yield "llama3", byte_level(
        None, [pre_tokenizers.Split(Regex(QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")), "isolated"), level], ignore_merges=True
    )
    yield "smollm", byte_level(
        None, [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    yield "llama2", sentencepiece(
        normalizers.Sequence([normalizers.Prepend(U2581), normalizers.Replace(" ", U2581)]),
        None,
        decoders.Sequence(fallback + [decoders.Strip(" ", 1, 0)]),
    )
    yield "gemma", sentencepiece(
        normalizers.Replace(" ", U2581), pre_tokenizers.Split(" ", "merged_with_previous"), decoders.Sequence(fallback)
    )
    yield "mistral", sentencepiece(
        normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()]),
        pre_tokenizers.Metaspace(prepend_scheme="first", split=True),
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")]),
    )
    for behavior in ("removed", "merged_with_previous", "merged_with_next", "contiguous"):
        yield f"split-{behavior}", byte_level(
            None, [pre_tokenizers.Split(Regex(r"[aeiou]|\d"), behavior, invert=behavior == "contiguous"), level]
        )
    yield "words", byte_level(None, [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation("contiguous"), level])


def encode(tok, text, parse_special):
    tok.encode_special_tokens = not parse_special
    return tok.encode(text, add_special_tokens=False).ids


def main():
    out = {}
    for name, tok in tokenizers():
        tok.add_tokens(ADDED)
        if name in ("llama2", "gemma"):
            tok.post_processor = processors.TemplateProcessing(
                single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tok.token_to_id("<s>"))]
            )
        tok.save(str(HERE / f"{name}.tokenizer.json"), pretty=False)
        cases = []
        for text in STRINGS:
            plain, special = encode(tok, text, False), encode(tok, text, True)
            cases.append({
                "text": text, "plain": plain, "special": special,
                "decoded": tok.decode(special, skip_special_tokens=False),
                "skipped": tok.decode(special, skip_special_tokens=True),
            })
        # Ids in an order no text has: halves of characters, byte tokens, every leading space.
        size = tok.get_vocab_size()
        ids = [(i * 7919) % size for i in range(200)]
        out[name] = {"cases": cases, "vocab_size": size, "scrambled": ids,
                     "scrambled_decoded": tok.decode(ids, skip_special_tokens=False)}
    text = ",\n".join(f"{json.dumps(k)}:{{\"vocab_size\":{v['vocab_size']},\"scrambled\":{json.dumps(v['scrambled'])},\n"
                      f"\"scrambled_decoded\":{json.dumps(v['scrambled_decoded'])},\"cases\":[\n"
                      + ",\n".join(json.dumps(c) for c in v["cases"]) + "]}" for k, v in out.items())
    (HERE / "tokenizers.json").write_text("{" + text + "}\n")


if __name__ == "__main__":
    main()
