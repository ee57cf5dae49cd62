#!/usr/bin/env python3
"""Compares our tokenizers with Hugging Face's `tokenizers` and with `tiktoken`, id by id and both ways, on hostile text.

  build/venv/bin/pip install tokenizers tiktoken transformers gguf
  PHALANX_TEST_DATA=... build/venv/bin/python tests/golden/compare_tokenizers.py build/release/tests/bench/tokenizer_bench

Takes every vocabulary found in the folders of PHALANX_TEST_DATA (colons between): tokenizers/*/tokenizer.json,
tokenizers/*.tiktoken (through deploy/make_tokenizer_json), SmolLM2's GGUF. Prints megabytes per second of a single
thread (processor time), ours beside theirs. Exits with 1 at any mismatch.
"""

import argparse
import base64
import json
import os
import pathlib
import random
import re
import struct
import subprocess
import sys
import tempfile
import time

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
import tiktoken  # noqa: E402
from tokenizers import Tokenizer, pre_tokenizers  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from tokenizer_texts import make_texts  # noqa: E402

MARK = re.compile(r"<(\|.+\||｜.+｜)>", re.DOTALL)
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


def find(pattern):
    for folder in filter(None, os.environ.get("PHALANX_TEST_DATA", "").split(":")):
        yield from sorted(pathlib.Path(folder).glob(pattern))


class HuggingFace:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.name = "tokenizers"
        # Where names are text, so are those that look like marks, special or not (LooksLikeMark in base/token_bytes.h).
        file = json.loads(tokenizer.to_str())
        for token in file["added_tokens"]:
            token["special"] = token["special"] or MARK.fullmatch(token["content"]) is not None
        self.as_text = Tokenizer.from_str(json.dumps(file))
        self.as_text.encode_special_tokens = True

    def encode(self, text, special):
        return (self.tokenizer if special else self.as_text).encode(text, add_special_tokens=False).ids

    def decode(self, ids, keep):
        return self.tokenizer.decode(ids, skip_special_tokens=not keep)


class Tiktoken:
    def __init__(self, ranks, pattern, specials):
        self.encoding = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials)
        self.specials = set(specials.values())
        self.name = "tiktoken"

    def encode(self, text, special):
        return self.encoding.encode(text, allowed_special="all") if special else self.encoding.encode_ordinary(text)

    def decode(self, ids, keep):
        return self.encoding.decode_bytes([i for i in ids if keep or i not in self.specials]).decode(errors="replace")


def smollm2(path):
    """transformers' tokenizer of the GGUF, with the pre-tokenizer of the model's own tokenizer.json."""
    import transformers

    made = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).backend_tokenizer
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return made


def subjects(folder):
    """(name, path for us, others, names of special tokens)"""
    for path in find("tokenizers/*/tokenizer.json"):
        added = json.loads(path.read_text())["added_tokens"]
        yield path.parent.name, path.parent, [HuggingFace(Tokenizer.from_file(str(path)))], [a["content"] for a in added]
    for ranks, models in (("cl100k_base", ["phi-4", "phi-4-reasoning"]), ("o200k_base", ["phi-4-mini"])):
        for path in find(f"tokenizers/{ranks}.tiktoken"):
            for model in models:
                made = folder / model
                subprocess.run([sys.executable, ROOT / "deploy/make_tokenizer_json", model, path, made], check=True,
                               stdout=subprocess.DEVNULL)
                file = json.loads((made / "tokenizer.json").read_text())
                specials = {a["content"]: a["id"] for a in file["added_tokens"]}
                others = [HuggingFace(Tokenizer.from_file(str(made / "tokenizer.json")))]
                if model != "phi-4-reasoning":  # its <think> is no special token, which tiktoken does not have
                    lines = (line.split() for line in path.read_bytes().splitlines())
                    pattern = file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
                    others.append(Tiktoken({base64.b64decode(t): int(r) for t, r in lines}, pattern, specials))
                yield model, made, others, list(specials)
    for path in find(SMOLLM2):
        theirs = smollm2(path)
        added = json.loads(theirs.to_str())["added_tokens"]
        yield "smollm2", path, [HuggingFace(theirs)], [a["content"] for a in added]


def ours(bench, path, texts, folder):
    """For each text: ids, decoded with and without control tokens; twice, with and without names of control tokens."""
    given, got = folder / "texts", folder / "ids"
    given.write_bytes(b"".join(struct.pack("<I", len(t)) + t for t in (text.encode() for text in texts)))
    out = subprocess.run([bench, path, given, got], check=True, capture_output=True, text=True).stdout
    data, at, results = memoryview(got.read_bytes()), 0, []

    def take():
        nonlocal at
        size = struct.unpack_from("<I", data, at)[0]
        at += 4 + size
        return bytes(data[at - size : at])

    for _ in texts:
        results.append([(list(memoryview(take()).cast("i")), take().decode(), take().decode()) for _ in range(2)])
    return float(out.split()[-1]), results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=pathlib.Path)
    parser.add_argument("--bytes", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="name of one vocabulary")
    args = parser.parse_args()
    wrong = compared = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        for name, path, others, specials in subjects(folder):
            if args.only not in (None, name):
                continue
            texts = make_texts(random.Random(args.seed), args.bytes, specials)
            size = sum(len(text.encode()) for text in texts)
            seconds, results = ours(args.bench, path, texts, folder)
            line = f"{name:16} {size / 1e6:.1f} MB, ours {size / seconds / 1e6:.1f} MB/s"
            for other in others:
                took, bad = 0.0, 0
                for text, both in zip(texts, results):
                    for special, (ids, kept, skipped) in zip((True, False), both):
                        start = time.process_time()
                        expected = other.encode(text, special)
                        took += (time.process_time() - start) * special
                        good = (ids == expected and kept == other.decode(expected, True)
                                and skipped == other.decode(expected, False))
                        if not good and bad < 3:
                            n = next((i for i, (a, b) in enumerate(zip(ids, expected)) if a != b), -1)
                            print(f"{name}: against {other.name}, special={special}: id {n}: "
                                  f"{ids[n:n + 4]} for {expected[n:n + 4]}, near "
                                  f"{other.decode(expected[max(0, n - 3):n + 4], True)!r}", file=sys.stderr)
                        bad += not good
                line += f"; {other.name} {size / took / 1e6:.1f} MB/s, {bad} mismatches in {2 * len(texts)} texts"
                wrong += bad
                compared += 1
            print(line, flush=True)
    print(f"{compared} comparisons, {wrong} mismatches")
    return 1 if wrong or not compared else 0


if __name__ == "__main__":
    sys.exit(main())
