#!/usr/bin/env python3
"""Writes sampling_reference.json: which token a row of logits gives, by a restatement of kernels/sampling.h.

    pip install numpy
    python make_sampling_reference.py --out sampling_reference.json

Only numpy's IEEE operations are used, in the order that kernels/sampling.h and kernels/numeric.h state; nothing is taken
from the kernels. Logits, histories and bans come from a hash of small integers, so the fixture holds a line a case:

  vocab, kind, logits   kind of the logits and their seed, see `logits_of`
  temperature, top_k, top_p, min_p, repetition, frequency, presence   where not neutral
  seed, choice, position   of the draw
  prompt, output, banned   [seed, count, modulus]: ids hash(seed, i) % modulus for i < count
  bias                  [seed, count, modulus, value, ...]: such ids, value i % (number of values) for id i
  id                    what comes out; -1: no token
"""

import argparse
import itertools
import json

import numpy as np

F32, F64 = np.float32, np.float64
MASK = (1 << 64) - 1
LARGEST = np.finfo(F32).max


def hash64(seed, i):
    x = (seed * 0x9E3779B97F4A7C15 + i + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def ids_of(spec):
    return [hash64(spec[0], i) % spec[2] for i in range(spec[1])]


def logits_of(kind, seed, vocab):
    out = np.zeros(vocab, F32)
    for i in range(vocab):
        h = hash64(seed, i) >> 48  # 16 bits
        if kind == "fine":  # [-8, 8) in steps of 2^-12
            out[i] = F32((h - 32768) / 4096)
        elif kind == "ties":  # [-4, 4) in steps of 1/2
            out[i] = F32((h // 4096 - 8) / 2)
        elif kind == "gaps":  # as fine, a quarter impossible
            out[i] = F32(-np.inf) if h % 4 == 0 else F32((h - 32768) / 4096)
        else:
            assert kind == "equal"
    return out


def fma(a, b, c):
    """a * b + c, rounded once. The product of two fp32 is exact in fp64; the sum is rounded to odd there, so that
    rounding it to fp32 is rounding the exact one."""
    s, c = a.astype(F64) * np.asarray(b, F64), np.asarray(c, F64)
    t = s + c
    z = t - s
    error = (s - (t - z)) + (c - z)
    bits = t.view(np.int64)
    odd = bits + np.where((error > 0) == (t > 0), 1, -1)
    return np.where((error != 0) & (bits % 2 == 0), odd, bits).view(F64).astype(F32)


def exp(x):
    """Exp of kernels/numeric.h."""
    low = x < F32(-87.33654)
    x = np.minimum(np.where(low, F32(0), x), F32(88.37626)).astype(F32)
    round_ = F32(12582912.0)
    shifted = fma(x, F32(1.44269504), round_)
    n = shifted - round_
    r = fma(n, -F32(0.693359375), x)
    r = fma(n, -F32(-2.12194440e-4), r)
    c = [F32(v) for v in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
                          5.0000001201e-1)]
    p = np.full(x.shape, c[0], F32)
    for k in c[1:]:
        p = fma(p, r, k)
    p = fma(p, r * r, r) + F32(1)
    exponent = shifted.view(np.uint32) - round_.view(np.uint32) + np.uint32(127)
    return np.where(low, F32(0), p * (exponent << np.uint32(23)).view(F32))


def uniform(seed, choice, position):
    c = [position & 0xFFFFFFFF, position >> 32, choice, 0]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ key[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ key[1], p0 & 0xFFFFFFFF]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return float(c[0] << 21 | c[1] >> 11) * 2.0**-53


def clamp(x):
    return F32(max(-LARGEST, min(LARGEST, x)))


def adjust(logits, case):
    x = logits.copy()
    bias = {}
    if "bias" in case:
        values = case["bias"][3:]
        bias = {i: F32(values[i % len(values)]) for i in ids_of(case["bias"])}
    prompt, output = (ids_of(case.get(name, [0, 0, 1])) for name in ("prompt", "output"))
    repetition, frequency, presence = (F32(case.get(n, d)) for n, d in
                                       (("repetition", 1), ("frequency", 0), ("presence", 0)))
    for i in range(len(x)):
        if x[i] == -np.inf:
            continue
        v = x[i]
        if i in bias:
            v = clamp(v + bias[i])
        if i in prompt or i in output:
            v = clamp(v / repetition if v > 0 else v * repetition)
        count = output.count(i)
        if count > 0:
            v = clamp((v - frequency * F32(count)) - presence)
        x[i] = v
    for i in ids_of(case.get("banned", [0, 0, 1])):
        x[i] = -np.inf
    return x


def sample(case):
    raw = logits_of(case["kind"], case["logits"], case["vocab"])
    if not np.any(raw > -np.inf):
        return -1
    x = adjust(raw, case)
    if not np.any(x > -np.inf):
        return -1
    temperature = F32(case.get("temperature", 0))
    if temperature == 0:
        return int(np.argmax(x))  # the first of the largest
    weights = exp((x - x.max()) / temperature)
    best = sorted(range(len(x)), key=lambda i: (-x[i], i))
    top_k = case.get("top_k", 0)
    if 0 < top_k < len(x):
        best = best[:top_k]
    top_p = F32(case.get("top_p", 1))
    if top_p < 1:
        wanted = F64(top_p) * sum(F64(weights[i]) for i in best)
        kept, count = F64(0), 0
        while count == 0 or (count < len(best) and kept < wanted):
            kept += F64(weights[best[count]])
            count += 1
        best = best[:count]
    min_p = F32(case.get("min_p", 0))
    kept = sorted(i for i in best if weights[i] >= min_p)
    running = np.cumsum(np.array([weights[i] for i in kept], F64))
    target = uniform(case["seed"], case["choice"], case["position"]) * running[-1]
    return kept[int(np.argmax(running > target))]


def cases():
    n = 0
    for vocab in (5, 17, 100, 1031, 4099) * 2:
        some, few, many = [7, 12, vocab], [11, 5, max(2, vocab // 3)], [13, 60, max(3, vocab // 2)]
        controls = [
            {},
            {"top_k": 1}, {"top_k": 3}, {"top_k": vocab - 1}, {"top_k": vocab + 5},
            {"top_p": 0.0001}, {"top_p": 0.5}, {"top_p": 0.9},
            {"min_p": 1}, {"min_p": 0.05}, {"min_p": 0.5}, {"min_p": 1e-30},
            {"top_k": 40, "top_p": 0.8, "min_p": 0.1},
            {"repetition": 1.3, "prompt": some, "output": many},
            {"repetition": 0.5, "prompt": many},
            {"repetition": 1e-38, "output": few}, {"repetition": 3e38, "prompt": few, "output": few},
            {"frequency": 2, "output": many}, {"frequency": -2, "output": many}, {"frequency": 0.1, "output": many},
            {"presence": 2, "output": some}, {"presence": -2, "output": some, "prompt": many},
            {"repetition": 1.1, "frequency": 0.3, "presence": 0.7, "prompt": some, "output": many},
            {"bias": few + [-100]}, {"bias": few + [100]}, {"bias": many + [-100, 100, 0.5, -1.25]},
            {"banned": few}, {"banned": [3, 200, vocab]},
            {"bias": [5, 9, vocab, 1.5, -3], "repetition": 1.2, "frequency": 0.25, "presence": -0.5, "prompt": some,
             "output": many, "banned": few, "top_k": 50, "top_p": 0.95, "min_p": 0.02},
        ]
        for control, temperature in itertools.product(controls, (0, 0.01, 0.7, 2)):
            case = {"vocab": vocab, "kind": ("fine", "ties", "gaps", "equal")[n * 7 // 3 % 4], "logits": n}
            if temperature:
                case["temperature"] = temperature
            case.update(control)
            case.update(seed=hash64(99, n), choice=n % 3, position=hash64(98, n) >> (n % 64))
            case["id"] = sample(case)
            n += 1
            yield case


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore", under="ignore"):
        lines = [json.dumps(case, separators=(",", ":")) for case in cases()]
    with open(parser.parse_args().out, "w", encoding="ascii") as out:
        out.write("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
