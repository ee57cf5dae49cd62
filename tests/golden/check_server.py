#!/usr/bin/env python3
"""Compares a running server with a reference of make_model_fixtures.py, through gRPC reflection.

    python make_model_fixtures.py --seed 7 --out /tmp/models
    deploy/quickstart --serve --model /tmp/models/phi3_longrope --tp 3 --compute fp32 --rope auto --listen 127.0.0.1:7
    python check_server.py 127.0.0.1:7 /tmp/models/references/phi3_longrope.json --rope auto

Log-probabilities of the prompts may be off by 1e-3. Greedy tokens must be equal up to the first whose gap in the
reference is under 1e-3. Needs tests/e2e/requirements.txt.
"""

import argparse
import array
import json
import math
import pathlib
import struct
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))

MAX_LOGPROB_ERROR = 1e-3
CLEAR_GAP = 1e-3


def read_logits(path):
    """name -> rows of floats."""
    data = path.read_bytes()
    size = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8 : 8 + size])
    logits = {}
    for name, tensor in header.items():
        if name.startswith("logits/"):
            begin, end = tensor["data_offsets"]
            columns = tensor["shape"][1]
            values = array.array("f", data[8 + size + begin : 8 + size + end])
            logits[name.removeprefix("logits/")] = [values[i : i + columns] for i in range(0, len(values), columns)]
    return logits


def log_probability(row, token):
    largest = max(row)
    return row[token] - largest - math.log(sum(math.exp(value - largest) for value in row))


class Reference:
    """A reference's prompts that are to be compared where LongRoPE is run so: "long", "auto" or (any) None."""

    def __init__(self, path, rope=None, border=None):
        path = pathlib.Path(path)
        self.json = json.loads(path.read_text())
        self.prompts = [p for p in self.json["prompts"] if self._is_run(p, rope, border)]
        logits = read_logits(path.with_suffix(".safetensors"))
        self.logprobs = {}
        for prompt in self.prompts:
            ids, rows = prompt["prompt_ids"], logits[prompt["name"]]
            self.logprobs[prompt["name"]] = [log_probability(rows[i], ids[i + 1]) for i in range(len(ids) - 1)]

    @staticmethod
    def _is_run(prompt, rope, border):
        if prompt["rope"] is None or rope is None:
            return True
        fits = len(prompt["prompt_ids"]) + len(prompt["greedy_ids"]) <= border
        return prompt["rope"] == ("short" if rope == "auto" and fits else "long")


def start(client, prompt, model=None):
    request = {"tokens": {"ids": prompt["prompt_ids"]}, "prompt_logprobs": 0,
               "sampling": {"temperature": 0, "max_tokens": len(prompt["greedy_ids"]), "ignore_eos": True}}
    return client.stream(timeout=120, **request, **({"model": model} if model else {}))


def answer(stream, prompt):
    """(log-probabilities of the prompt, greedy ids)."""
    got = stream.result()
    assert got.code.name == "OK", f"prompt {prompt['name']}: {got.code.name}: {got.details}"
    positions = [p for part in got.prompt_logprobs for p in part.positions]
    assert [p.token.id for p in positions] == prompt["prompt_ids"][1:]
    return [p.token.logprob for p in positions], got.ids


def compare(reference, prompt, logprobs, ids):
    """(largest error of a log-probability, what is wrong)."""
    problems = []
    wanted = reference.logprobs[prompt["name"]]
    errors = [abs(a - b) for a, b in zip(logprobs, wanted, strict=True)]
    worst = max(errors, default=0.0)
    if not worst < MAX_LOGPROB_ERROR:
        at = errors.index(worst) + 1
        problems.append(f"prompt {prompt['name']}: log-probability of token {at} is off by {worst:.2g}")
    if len(ids) != len(prompt["greedy_ids"]):
        problems.append(f"prompt {prompt['name']}: {len(ids)} tokens, not {len(prompt['greedy_ids'])}")
    for i, (got, want, gap) in enumerate(zip(ids, prompt["greedy_ids"], prompt["gaps"])):
        if got != want:
            if gap > CLEAR_GAP:
                problems.append(f"prompt {prompt['name']}: greedy token {i} is {got}, not {want} (by {gap:.3g})")
            break
    return worst, problems


def check(client, reference, model=None, at_once=True):
    """All prompts, one after the other or in one batch: (answers by prompt, largest error, what is wrong)."""
    if at_once:
        streams = [(prompt, start(client, prompt, model)) for prompt in reference.prompts]
        answers = {prompt["name"]: answer(stream, prompt) for prompt, stream in streams}
    else:
        answers = {prompt["name"]: answer(start(client, prompt, model), prompt) for prompt in reference.prompts}
    worst, problems = 0.0, []
    for prompt in reference.prompts:
        error, wrong = compare(reference, prompt, *answers[prompt["name"]])
        worst, problems = max(worst, error), problems + wrong
    return answers, worst, problems


def main():
    from reflection_client import Client

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("server", help="host:port")
    parser.add_argument("reference", type=pathlib.Path, help="references/NAME.json")
    parser.add_argument("--rope", choices=["long", "auto"], default="long", help="how the server runs LongRoPE")
    parser.add_argument("--border", type=int, default=64, help="original_max_position_embeddings")
    parser.add_argument("--model", help="its name, where the server has several")
    options = parser.parse_args()
    reference = Reference(options.reference, options.rope, options.border)
    client = Client(options.server)
    try:
        failed = False
        for at_once in (False, True):
            _, worst, problems = check(client, reference, options.model, at_once)
            failed = failed or bool(problems)
            print(f"{len(reference.prompts)} prompts {'at once' if at_once else 'one by one'}: log-probabilities off "
                  f"by at most {worst:.2g}, {len(problems)} problems")
            print("".join(f"  {problem}\n" for problem in problems), end="")
        return 1 if failed else 0
    finally:
        client.close()


if __name__ == "__main__":
    sys.exit(main())
