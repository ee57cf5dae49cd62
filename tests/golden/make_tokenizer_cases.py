#!/usr/bin/env python3
"""Writes tokenizer_cases.json: what Hugging Face's `tokenizers` makes of hostile texts, stage by stage.

  pip install tokenizers; tests/golden/make_tokenizer_cases.py

  texts       the texts of `known`
  known       pre_tokenizer -> `pre_tokenizer` of a tokenizer.json, `lengths`: for each text the bytes of each piece, and
              `hash` over the pieces of text(c) for every code point c that is_sampled (FNV-1a 64, a 0xFF byte behind each)
  stages      a pre_tokenizer, a text, its pieces
  nfc         text, its NFC;  nfc_hash: as above, over the NFC of nfc_text(c)
  tokenizers  a tokenizer.json and what it makes of texts, with names of control tokens and without
"""

import json
import pathlib
import random

from tokenizers import Tokenizer, normalizers, pre_tokenizers

from tokenizer_texts import piece

HERE = pathlib.Path(__file__).resolve().parent
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CL100K = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACES
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + SPACES
)
DEEPSEEK = [
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
]


def split(regex, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: regex}, "behavior": behavior, "invert": invert}


def byte_level(prefix=False, regex=False):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}


def digits(individual):
    return {"type": "Digits", "individual_digits": individual}


def sequence(*stages):
    return {"type": "Sequence", "pretokenizers": list(stages)}


KNOWN = {
    "cl100k": sequence(split(CL100K), byte_level()),
    "o200k": sequence(split(O200K), byte_level()),
    "qwen2": sequence(split(CL100K.replace("{1,3}", "")), byte_level()),
    "gpt-2": byte_level(regex=True),
    "deepseek-v3": sequence(*map(split, DEEPSEEK), byte_level()),
    "smollm": sequence(digits(True), byte_level(regex=True)),
    "digits": sequence(digits(False), byte_level()),
}
BEHAVIORS = ["Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
STAGES = [
    *[sequence(split(r"[aeiou-]", b, i), byte_level()) for b in BEHAVIORS for i in (False, True)],
    *[sequence(split("-", b, i, "String"), byte_level()) for b in BEHAVIORS for i in (False, True)],
    *[sequence(split(r"\p{N}{1,3}", b), byte_level()) for b in BEHAVIORS],
    *[sequence(split(r"o*", b, i), byte_level()) for b in BEHAVIORS for i in (False, True)],
    sequence(split("", kind="String"), byte_level()),
    sequence(split("(?=[A-Z])"), byte_level()),
    sequence(split(r"\s+$|^\s+", "Removed"), split("--", "Removed", kind="String"), byte_level(True, True)),
    *[sequence(split(p), byte_level()) for p in (
        r"^o|o$|\s+$", r"(?i)FO|\u0061-|\x{62}", r"\p{N}{1,3}+", r"(?:o|-){2}+", r"(?<=-)[^\S]?[a-z]++|\A.", r"o{1,2}?|\s?+[a-m]",
        r"[\s\d]+|[^\s\p{L}\-]", r"(?i:the|COUNT(?!s))|(?>o+)b", r"\Ao|\n\z")],
    byte_level(True, True),
    byte_level(True, False),
    sequence(digits(True), byte_level(True, False)),
    sequence(split(CL100K), byte_level(True, True)),
    sequence(byte_level(False, True)),
]
STAGE_TEXTS = ["", "-", "a-b--c-", "--the-Final--Countdown--", "foo oo boo 12 3456o7", "  two  words \n\n oo\r\no \n", "é-日本-ö12١٢٣٤"]


def of_specification(stage):
    """Only a whole tokenizer can be read from JSON."""
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    whole = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": stage, "post_processor": None,
             "decoder": None, "model": model}
    return Tokenizer.from_str(json.dumps(whole)).pre_tokenizer


PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE = {chr(b): b for b in PRINTABLE}
BYTE.update({chr(0x100 + n): b for n, b in enumerate(b for b in range(256) if b not in PRINTABLE)})


def pieces(stage, content):
    return [bytes(BYTE[c] for c in word) for word, _ in stage.pre_tokenize_str(content)]


def fnv(state, data):
    for byte in data:
        state = ((state ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return state


def is_sampled(c):
    return (c < 0x3400 or 0x9F00 < c < 0xAC80 or 0xD790 < c < 0xD800 or 0xF900 <= c < 0x20000 and c % 3 == 0
            or c % 256 == 16 and not 0xD800 <= c < 0xE000)


def text(c):
    x = chr(c)
    return f"{x}a{x}{x}A1{x} {x}\n{x}'{x}"


def nfc_text(c):
    x = chr(c)
    return f"{x}{x}\u0301\u1161{x}\u0323\u0334{x}"


def hashed(make):
    state = 0xCBF29CE484222325
    for c in filter(is_sampled, range(0x110000)):
        for part in make(c):
            state = fnv(state, part + b"\xff")
    return f"{state:016x}"


def tokenizer_file(normalizer, model, added):
    alphabet = {c: n for n, c in enumerate(sorted(BYTE))}
    vocab = {**alphabet, **{w: 256 + n for n, w in enumerate(["ab", "bc", "abc", "Ġa", "Ġab", "aa", "aaaa"])}}
    merges = ["a b", "b c", "ab c", ["Ġ", "a"], ["Ġ", "ab"], "a a", "aa aa"]
    base = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": merges}
    base.update(model(vocab, merges) if model else {})
    # Both ways to write them; `tokenizers` does not take both in one file.
    pairs = [m.split() if isinstance(m, str) else m for m in base["merges"]]
    base["merges"] = pairs if model else [" ".join(m) for m in pairs]
    flags = ("special", "lstrip", "rstrip", "single_word", "normalized")
    tokens = [{"id": 0, "content": name, **{f: f in on for f in flags}} for name, *on in added]
    free = len(base["vocab"])
    for token in tokens:  # the ids that `tokenizers` gives, whatever the file says
        token["id"] = base["vocab"].get(token["content"], free)
        free += token["id"] == free
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens, "normalizer": normalizer,
            "pre_tokenizer": byte_level(regex=True), "post_processor": None, "decoder": byte_level(), "model": base}


def without(*characters, **options):
    def change(vocab, merges):
        kept = [p for p in vocab if p not in characters and not (set(p) & set(characters))]
        more = options.pop("more", [])
        ids = {p: n for n, p in enumerate(kept + more)}
        pairs = [m.split() if isinstance(m, str) else m for m in merges]
        return {"vocab": ids, "merges": [m for m in pairs if all(p in ids for p in m) and "".join(m) in ids], **options}
    return change


TOKENIZERS = [
    tokenizer_file({"type": "NFC"}, None,
                   [("<e>", "special"), ("<|x|>", "special", "lstrip"), ("<|x|>y", "special", "rstrip"), ("tok",),
                    ("word", "single_word"), ("both", "lstrip", "rstrip"), ("é", "normalized"), ("e\u0301f", "normalized"),
                    ("<e", ), ("  ", "rstrip"), ("\n", "special", "single_word"), ("日本", "normalized", "single_word")]),
    tokenizer_file({"type": "Sequence", "normalizers": [{"type": "NFC"}]}, without("b", more=["<unk>"], unk_token="<unk>"),
                   [("<unk>", "special")]),
    tokenizer_file(None, without("b", "q", more=["<unk>"], unk_token="<unk>", fuse_unk=True), []),
    tokenizer_file(None, without("b", "é", "Ā", "à", "q", more=["<0x62>", "<0xC4>", "<0x80>", "<unk>"], byte_fallback=True,
                                 unk_token="<unk>"), []),
    tokenizer_file(None, lambda v, m: {"ignore_merges": True, "merges": m[:1] + m[3:]}, [("abcabc", "normalized")]),
    tokenizer_file(None, lambda v, m: {"merges": [*m, "a b", ["a", "a"]]}, []),
]
TOKENIZER_TEXTS = [
    "", " ", "abc", "aaaaaaa ab abab abcabc", "bcbcq qbqqb qq", "a<e>b <|x|>  <|x|>y  z <|x|>", "word words sword word, word\u0301 _word 1word",
    "  both  both\t\nboth\u3000x", "tok token  tok", "é e\u0301 e\u0301f éf E\u0301", "<e <e><e>> <e><", "    a   b  \n\n c \n",
    "日本 日本語 x日本", "\x00\x00à \x01b\x00", "<unk>a<unk> <0x62>", "a\u0323\u0301b \u1100\u1161\u11a8", "a  \n  word both  tok<|x|>y  <|x|>",
]


def short_texts(r, count):
    return ["".join(piece(r, ["<|im_end|>"]) for _ in range(r.randint(1, 6)))[:120] for _ in range(count)]


def main():
    r = random.Random(7)
    texts = short_texts(r, 85)
    known = {}
    for name, stage in KNOWN.items():
        made = of_specification(stage)
        known[name] = {"pre_tokenizer": stage, "lengths": [" ".join(str(len(p)) for p in pieces(made, t)) for t in texts],
                       "hash": hashed(lambda c: pieces(made, text(c)))}
    stages = []
    for stage in STAGES:
        made = of_specification(stage)
        stages.append([stage, [[p.decode() for p in pieces(made, t)] for t in STAGE_TEXTS]])
    nfc = normalizers.NFC().normalize_str
    samples = short_texts(r, 700)
    cases = []
    for file in TOKENIZERS:
        tokenizer = Tokenizer.from_str(json.dumps(file))
        results = []
        for special in (True, False):
            tokenizer.encode_special_tokens = not special
            results.append([tokenizer.encode(t).ids for t in TOKENIZER_TEXTS])
        cases.append({"file": file, "ids": results[0], "plain_ids": results[1]})
    out = {"texts": texts, "known": known, "stage_texts": STAGE_TEXTS, "stages": stages,
           "nfc": [[t, nfc(t)] for t in samples if nfc(t) != t][:60],
           "nfc_hash": hashed(lambda c: [nfc(nfc_text(c)).encode()]), "tokenizer_texts": TOKENIZER_TEXTS, "tokenizers": cases}
    path = HERE / "tokenizer_cases.json"
    path.write_text(json.dumps(out, ensure_ascii=True, separators=(",", ":")) + "\n")
    print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
