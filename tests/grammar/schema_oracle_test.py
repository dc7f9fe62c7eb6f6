"""Schemas against three other programs: jsonschema (is what lathe allows valid?), XGrammar and
llguidance (does lathe forbid what they allow?).

    schema_oracle_test.py CONSTRAINT_DRIVER

Random walks under lathe's masks, over written and random schemas, must end in documents that
jsonschema accepts, formats included. Random walks under the others' masks give documents, of which
lathe must accept every one that EXPECTED does not explain. Exit code 77 (skipped) without the
libraries; LATHE_PEER_PYTHON names an interpreter that has them. Made with jsonschema 4.26.0,
xgrammar 0.2.8, llguidance 1.9.1.
"""
import json
import os
import random
import re
import subprocess
import sys

peer_python = os.environ.pop("LATHE_PEER_PYTHON", None)
if peer_python:
    os.execv(peer_python, [peer_python, *sys.argv])
try:
    import jsonschema
except ImportError as missing:
    print(f"{missing.name} is not installed")
    sys.exit(77)

SEED = int(os.environ.get("LATHE_SEED", "1"))
NUM_RANDOM = int(os.environ.get("LATHE_NUM_SCHEMAS", "150"))

# Every byte, then pieces as tokenizers have them: across the borders of strings, numbers and
# characters.
PIECES = """{" "} ", ": "," ": { } [ ] [" "] ], }, :[ ,\\n \\" \\n \\u \\u00 00 12 3. 0.5 1e -1 true false null tru
abc Hello the a" b": "a "b "c x" yy é ü ß 日本 日 😀 .com @ex 2024- -01 T1 :30 Z" \\\\ \\/ ab12 dead beef id name""".split(" ")
TOKENS = [bytes([b]) for b in range(256)]
TOKENS += [p.replace("\\n", "\n").encode() if p == "\\n" else p.encode() for p in PIECES if len(p.encode()) > 1]
TOKENS += [b"  ", b"\n  ", b"\n    ", b", \"", b'": "', b'", "', b'":', b'": {', b"\xe6\x97", b"\x97\xa5", b"\x9f\x98\x80\"",
           b'"\n}', b"\n]", b"aaaaaaaaaaaaaaaaaaaaaaaa", "éééé".encode()]
TOKENS = list(dict.fromkeys(TOKENS))
END = len(TOKENS)
TOKENS.append(b"")

SCHEMAS = [
    {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["a"]},
    {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}, "c": {"type": "null"}},
     "required": ["b"], "additionalProperties": False},
    {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 9}},
    {"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": {"type": "boolean"}},
    {"type": "object", "properties": {f"k{i}": {"type": "integer"} for i in range(12)}, "additionalProperties": False},
    {"type": "object", "minProperties": 1, "additionalProperties": {"type": "null"}},
    {"type": "object", "maxProperties": 2, "additionalProperties": {"type": "null"}},
    {"type": "object", "properties": {"a": {"type": "null"}}, "maxProperties": 2},
    {"type": "object", "properties": {"a": True, "b": False}, "required": ["a"]},
    {"type": "object", "patternProperties": {"^x": {"type": "integer"}, "^y": {"type": "string"}},
     "additionalProperties": False},
    {"type": "object", "patternProperties": {"^x": {"type": "integer"}}, "properties": {"x1": {"minimum": 3}},
     "required": ["x1", "x2"], "additionalProperties": {"type": "null"}},
    {"type": "object", "propertyNames": {"pattern": "^[a-c]{1,3}$"}, "additionalProperties": {"type": "boolean"}},
    {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False, "minItems": 2},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": {"type": "null"},
     "minItems": 1, "maxItems": 5},
    {"type": "array", "prefixItems": [{"type": "boolean"}]},
    {"type": "array", "maxItems": 0},
    {"type": "array", "minItems": 3, "items": {"enum": [1, "x", None, [1, {"a": 2}]]}},
    {"type": "string", "minLength": 3, "maxLength": 5},
    {"type": "string", "minLength": 20},
    {"type": "string", "maxLength": 300},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$"},
    {"type": "string", "pattern": "b+"},
    {"type": "string", "pattern": "^(foo|bar)?[^a-z]{2,3}$", "maxLength": 6},
    {"type": "string", "pattern": r"^\d{3}(\.\d\d?)? \w*$"},
    {"type": "string", "pattern": "^\\S+@\\S+$", "maxLength": 12},
    {"type": "string", "pattern": "é|日"},
    {"type": "string", "pattern": "^\"[\\\\/\n]*$"},
    *[{"type": "string", "format": f} for f in
      ("date", "time", "date-time", "duration", "uuid", "email", "hostname", "ipv4", "ipv6", "uri")],
    {"type": "integer", "minimum": -5, "maximum": 120},
    {"type": "integer", "exclusiveMinimum": 0},
    {"type": "integer", "minimum": 1000, "maximum": 99999},
    {"type": "integer", "maximum": -17},
    {"type": "integer", "multipleOf": 7, "minimum": 10},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "number", "exclusiveMinimum": -1.5, "exclusiveMaximum": 2.25},
    {"type": "number", "minimum": 1e3},
    {"type": "number", "maximum": -0.001},
    {"type": "number", "exclusiveMaximum": 0},
    {"type": "number"}, {"type": "integer"}, {"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"]},
    {"enum": ["red", "green\n", "\"", 5, -1.5, None, True, {"a": [1]}]},
    {"const": {"x": "y", "z": [1, 2]}},
    {"type": "string", "enum": ["a", 1, "bb"]},
    {"enum": [1, 2, 3, 4, 5, 6.5], "minimum": 3},
    {"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 3}]},
    {"anyOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
               {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}]},
    {"oneOf": [{"type": "object", "properties": {"kind": {"const": "a"}, "v": {"type": "integer"}}, "required": ["kind", "v"]},
               {"type": "object", "properties": {"kind": {"const": "b"}, "w": {"type": "string"}}, "required": ["kind"]}]},
    {"oneOf": [{"type": "integer", "maximum": 3}, {"type": "integer", "minimum": 4}, {"type": "string"}]},
    {"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
               {"properties": {"a": {"minimum": 5}, "b": {"type": "boolean"}}, "required": ["b"]}]},
    {"allOf": [{"type": "integer", "minimum": 0}, {"type": "number", "maximum": 7.5}, {"multipleOf": 2}]},
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
     "anyOf": [{"properties": {"b": {"type": "null"}}, "required": ["b"]}, {"properties": {"c": {"type": "null"}}, "required": ["c"]}]},
    {"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {
        "value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
        "required": ["value", "next"], "additionalProperties": False}}},
    {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}},
     "required": ["children"], "additionalProperties": False},
    {"$defs": {"a": {"type": "integer"}}, "type": "array", "items": {"$ref": "#/$defs/a", "minimum": 3}},
    {"$defs": {"t~/x%": {"type": "boolean"}}, "$ref": "#/$defs/t~0~1x%25"},
    {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
    {}, True,
]


class Driver:
    def __init__(self, program):
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ask(tokens=[t.hex() for t in TOKENS], end=[END])

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def walk(rng, allowed_tokens, accept, limit=400):
    """A document by random choices that lean towards the end, or None when it grew too long."""
    text = b""
    for step in range(limit):
        allowed = allowed_tokens()
        assert allowed, f"nothing is allowed behind {text!r}"
        if END in allowed and (step > 20 or rng.random() < 0.3):
            return text
        if step > limit // 8:  # close what is open
            closing = [t for t in allowed if t != END and TOKENS[t][:1] in b'"}]'] or allowed
            token = rng.choice(closing)
        else:
            token = rng.choice(allowed)
        if token == END:
            return text
        accept(token)
        text += TOKENS[token]
    return None


class Lathe:
    name = "lathe"

    def __init__(self, driver):
        self.driver = driver

    def start(self, schema):
        answer = self.driver.ask(schema=schema)
        return answer.get("error")

    def walk(self, rng):
        self.driver.ask(restart=True)

        def accept(token):
            assert self.driver.ask(accept=token)["ok"]
        return walk(rng, lambda: self.driver.ask(mask=True)["allowed"], accept)


class XGrammar:
    name = "xgrammar"

    def __init__(self):
        import xgrammar
        self.xgr = xgrammar
        info = xgrammar.TokenizerInfo(TOKENS[:-1] + [b"<end>"], xgrammar.VocabType.RAW, vocab_size=len(TOKENS),
                                      stop_token_ids=[END])
        self.compiler = xgrammar.GrammarCompiler(info, max_threads=1)
        self.mask = xgrammar.allocate_token_bitmask(1, len(TOKENS))

    def start(self, schema):
        try:
            self.grammar = self.compiler.compile_json_schema(json.dumps(schema), strict_mode=False, any_whitespace=False)
        except Exception as error:
            return str(error)

    def walk(self, rng):
        matcher = self.xgr.GrammarMatcher(self.grammar)

        def allowed():
            matcher.fill_next_token_bitmask(self.mask)
            words = self.mask[0].tolist()
            return [t for t in range(len(TOKENS)) if words[t // 32] >> (t % 32) & 1]
        return walk(rng, allowed, lambda token: matcher.accept_token(token))


class LlGuidance:
    name = "llguidance"

    def __init__(self):
        import llguidance
        self.llg = llguidance

        class Tokens:
            eos_token_id = END
            bos_token_id = None
            tokens = TOKENS[:-1] + [b"<|end|>"]
            special_token_ids = [END]

            def __call__(self, data):
                return list(data.encode() if isinstance(data, str) else data)
        self.tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Tokens()))

    def start(self, schema):
        try:
            self.grammar = self.llg.LLMatcher.grammar_from_json_schema(json.dumps(schema))
            matcher = self.llg.LLMatcher(self.tokenizer, self.grammar)
            return matcher.get_error() or None
        except Exception as error:
            return str(error)

    def walk(self, rng):
        matcher = self.llg.LLMatcher(self.tokenizer, self.grammar)

        def allowed():
            mask = matcher.compute_bitmask()
            return [t for t in range(len(TOKENS)) if mask[t // 8] >> (t % 8) & 1]
        return walk(rng, allowed, lambda token: matcher.consume_token(token))


def load_unique(text):
    """The document, and whether some object has a key twice."""
    twice = []

    def pairs(items):
        keys = [k for k, _ in items]
        if len(set(keys)) < len(keys):
            twice.append(True)
        return dict(items)
    return json.loads(text, object_pairs_hook=pairs), bool(twice)


# Why lathe forbids a document that another program allows. Each is a choice of docs/structured-output.md.
def expected_reason(text, schema, valid):
    if not valid:
        return "the document does not validate"
    string = r'"(?:[^"\\]|\\.)*"'
    outside = re.sub(string, '""', text)
    if re.search(r"\s(?=[,:])|[ \t]{2}|\n\s*\n|[\t\r]|\n[ \t]{41,}| \n|\n[ \t]*(?=\S)(?<=x)", outside) or outside != outside.strip():
        return "other blanks"
    if re.search(r"\d{19}|\.\d{16}|[eE][+-]?\d{3}", outside):
        return "long numbers"
    if re.search(r"-0(?![.\d])|\.\d|[eE]", outside):
        return "numbers written otherwise (fraction or exponent of an integer, digits behind a bound)"
    if re.search(r"\\u|\\/", text):
        return "escapes in strings with a pattern, format or name"
    keys = json.dumps(schema)
    if '"enum"' in keys or '"const"' in keys:
        return "blanks inside a constant list or object"
    if "properties" in keys.lower():
        return "another order of properties"
    if "type" not in keys:
        return "types that no keyword is about"
    if '"format"' in keys:
        return "formats: a narrower form"
    return None


def random_schema(rng, depth=0):
    kinds = ["string", "integer", "number", "boolean", "null", "enum"]
    if depth < 3:
        kinds += ["object", "array", "object", "anyOf", "ref"]
    kind = rng.choice(kinds)
    if kind == "string":
        schema = {"type": "string"}
        if rng.random() < 0.3:
            schema["minLength"] = rng.randrange(6)
        if rng.random() < 0.3:
            schema["maxLength"] = schema.get("minLength", 0) + rng.randrange(30)
        if rng.random() < 0.25:
            schema["pattern"] = rng.choice(["^[a-z]+$", "x", "^[0-9]{2,4}", "(ab|c)+$", "^\\w{1,8}$"])
            schema.pop("maxLength", None)
        return schema
    if kind in ("integer", "number"):
        schema = {"type": kind}
        low = rng.choice([rng.randrange(-1000, 1000), rng.randrange(-20, 20), round(rng.uniform(-9, 9), 2)])
        if rng.random() < 0.4:
            schema[rng.choice(["minimum", "exclusiveMinimum"])] = low
        if rng.random() < 0.4:
            schema[rng.choice(["maximum", "exclusiveMaximum"])] = low + rng.choice([2, 17, 3.25, 4000])
        if kind == "integer" and rng.random() < 0.2:
            schema["multipleOf"] = rng.randrange(1, 20)
            schema.pop("exclusiveMaximum", None), schema.pop("maximum", None)
        return schema
    if kind == "enum":
        return {"enum": rng.sample([1, 2.5, "a", "bc", None, True, "é\"", [1], {"k": 0}, -7], rng.randrange(1, 5))}
    if kind == "array":
        schema = {"type": "array", "items": random_schema(rng, depth + 1)}
        if rng.random() < 0.3:
            schema["prefixItems"] = [random_schema(rng, depth + 1) for _ in range(rng.randrange(1, 3))]
        if rng.random() < 0.5:
            schema["minItems"] = rng.randrange(4)
        if rng.random() < 0.5:
            schema["maxItems"] = schema.get("minItems", 0) + rng.randrange(3)
        return schema
    if kind == "object":
        names = rng.sample(["a", "b", "name", "id", "é", "x\"y", "k 1"], rng.randrange(5))
        schema = {"type": "object", "properties": {n: random_schema(rng, depth + 1) for n in names}}
        schema["required"] = [n for n in names if rng.random() < 0.5]
        if rng.random() < 0.6:
            schema["additionalProperties"] = rng.choice([False, False, random_schema(rng, depth + 1)])
        return schema
    if kind == "ref":
        return {"$ref": "#/$defs/shared"}
    return {"anyOf": [random_schema(rng, depth + 1) for _ in range(rng.randrange(1, 4))]}


def schemas(rng):
    yield from SCHEMAS
    for _ in range(NUM_RANDOM):
        schema = random_schema(rng)
        schema["$defs"] = {"shared": rng.choice([{"type": "boolean"}, random_schema(rng, 3)])}
        yield schema


def main():
    rng = random.Random(SEED)
    lathe = Lathe(Driver(sys.argv[1]))
    oracles, missing = [], []
    for oracle in (XGrammar, LlGuidance):
        try:
            oracles.append(oracle())
        except ImportError as error:
            missing.append(error.name)
    failures, reasons, num_own, num_peer, refused = [], {}, 0, 0, 0
    for schema in schemas(rng):
        where = json.dumps(schema, ensure_ascii=False)[:300]
        error = lathe.start(schema)
        if error:
            refused += 1
            if "no finite text" not in error and "maxProperties" not in error:
                failures.append(f"refused: {error}: {where}")
            continue
        validator = jsonschema.Draft202012Validator(
            schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
        for _ in range(6):
            try:
                text = lathe.walk(rng)
            except AssertionError as error:
                failures.append(f"{error}: {where}")
                continue
            if text is None:
                continue
            num_own += 1
            try:
                document, _ = load_unique(text.decode("utf-8"))
            except ValueError as error:
                failures.append(f"not JSON: {error}: {text!r}: {where}")
                continue
            problem = next(iter(validator.iter_errors(document)), None)
            if problem:
                failures.append(f"does not validate: {problem.message[:200]}: {text!r}: {where}")
        for oracle in oracles:
            if oracle.start(schema):
                continue
            for _ in range(3):
                try:
                    text = oracle.walk(rng)
                    if text is None:
                        continue
                    text = text.decode("utf-8")
                    document, twice = load_unique(text)
                except (ValueError, AssertionError, RecursionError):
                    continue  # not ours to explain
                num_peer += 1
                lathe.start(schema)
                if lathe.driver.ask(text=text)["ok"]:
                    reasons["accepted"] = reasons.get("accepted", 0) + 1
                    continue
                reason = expected_reason(text, schema, not twice and validator.is_valid(document))
                if reason is None:
                    failures.append(f"{oracle.name} allows, lathe forbids: {text!r}: {where}")
                else:
                    reasons[reason] = reasons.get(reason, 0) + 1
    for failure in failures[:40]:
        print(failure)
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
        print(f"{count:5d} of {num_peer} documents of the others: {reason}")
    for name in missing:
        print(f"{name} is not installed: not compared")
    print(f"{num_own} documents of lathe, {refused} schemas refused, {len(failures)} failures")
    return 1 if failures or num_own < 300 else 0


if __name__ == "__main__":
    sys.exit(main())
