"""What torch reaches on this device: the limits and the baselines of the timing table.

  torch_baselines.py kernels FILE DEVICE           products (cuBLASLt), attention, sampling, the copy, a large product
  torch_baselines.py engine FILE DEVICE CONFIG     decode at batch 64, 2k context: torch.compile with CUDA graphs

DEVICE cpu: small shapes, for a dry run. Times by events, medians, operands rotating beyond the L2.
"""

import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F

ROTATED_BYTES = 256 << 20
MODELS = {"phi-4-mini": (3072, 24, 8, 128, 8192, 200064), "phi-4": (5120, 40, 10, 128, 17920, 100352)}
TINY = {"tiny": (128, 4, 2, 32, 192, 500)}


class Clock:
    def __init__(self, device):
        self.device = device

    def seconds(self, call, budget=0.02, runs=7):
        """Median seconds of a call."""
        if self.device == "cpu":
            call()
            began = time.perf_counter()
            call()
            return time.perf_counter() - began
        call()
        once = max(self._run(call, 3), 1e-6)
        calls = int(min(max(budget / once, 3), 2000))
        return statistics.median(self._run(call, calls) for _ in range(runs))

    @staticmethod
    def _run(call, calls):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / calls


def rotating(make, size, device):
    count = 2 if device == "cpu" else max(2, -(-ROTATED_BYTES // size))
    items, at = [make() for _ in range(count)], [0]

    def following():
        at[0] = (at[0] + 1) % count
        return items[at[0]]
    return following


def kernels(file, device):
    clock, tiny = Clock(device), device == "cpu"
    out = {"torch": torch.__version__, "device": torch.cuda.get_device_name() if not tiny else "cpu", "rows": {}}

    def rand(*shape, dtype=torch.bfloat16):
        return torch.randn(*shape, device=device, dtype=dtype)
    n = 1 << 18 if tiny else 1 << 30
    source, to = torch.empty(n, dtype=torch.uint8, device=device), torch.empty(n, dtype=torch.uint8, device=device)
    out["copy_bytes_per_second"] = 2 * n / clock.seconds(lambda: to.copy_(source))
    del source, to
    n = 64 if tiny else 8192
    a, b = rand(n, n), rand(n, n)
    out["gemm_flops"] = 2 * n ** 3 / clock.seconds(lambda: a @ b)
    del a, b
    for name, (hidden, heads, kv_heads, dim, ffn, vocab) in (TINY if tiny else MODELS).items():
        q, kv = heads * dim, kv_heads * dim
        for what, rows, cols in (("qkv", q + 2 * kv, hidden), ("attention out", hidden, q),
                                 ("gate up", 2 * ffn, hidden), ("down", hidden, ffn), ("head", vocab, hidden)):
            weight = rotating(lambda rows=rows, cols=cols: rand(rows, cols) / cols ** 0.5, rows * cols * 2, device)
            for m in [1, 16] if tiny else [1, 2, 4, 8, 16, 32, 64] + ([] if what == "head" else [256, 2048]):
                x = rand(m, cols)
                out["rows"][f"product {name} {what} M={m}"] = clock.seconds(
                    lambda x=x, weight=weight: F.linear(x, weight()))
            del weight
        for batch, length in [(2, 30)] if tiny else [(1, 1024), (1, 16384), (8, 4096), (32, 4096), (64, 2048)]:
            query, key, value = rand(batch, heads, 1, dim), rand(batch, kv_heads, length, dim), rand(
                batch, kv_heads, length, dim)
            out["rows"][f"decode attention {name} batch {batch} at {length}"] = clock.seconds(
                lambda q=query, k=key, v=value: F.scaled_dot_product_attention(q, k, v, enable_gqa=True))
        for length in [30] if tiny else [2048, 4096, 8192, 16384]:
            query, key, value = rand(1, heads, length, dim), rand(1, kv_heads, length, dim), rand(
                1, kv_heads, length, dim)
            out["rows"][f"prefill attention {name} {length} causal"] = clock.seconds(
                lambda q=query, k=key, v=value: F.scaled_dot_product_attention(q, k, v, is_causal=True,
                                                                               enable_gqa=True))
    rows, vocab = (2, 1000) if tiny else (64, 200064)
    logits = rotating(lambda: rand(rows, vocab, dtype=torch.float32), rows * vocab * 4, device)
    out["rows"][f"sampling {rows} x {vocab} greedy"] = clock.seconds(lambda: logits().argmax(dim=1))
    out["rows"][f"sampling {rows} x {vocab} temperature"] = clock.seconds(
        lambda: torch.multinomial(torch.softmax(logits() / 0.8, dim=1), 1))
    with open(file, "w", encoding="utf-8") as f:
        json.dump(out, f, indent=1)


def engine(file, device, config):
    """A decode step of a Phi3 model with random weights over a full cache, compiled whole, as a CUDA graph."""
    tiny = device == "cpu"
    batch, context, steps = (2, 10, 3) if tiny else (64, 2048, 64)
    heads, kv_heads, hidden = config["num_attention_heads"], config["num_key_value_heads"], config["hidden_size"]
    dim, ffn, vocab = hidden // heads, config["intermediate_size"], config["vocab_size"]

    def rand(*shape):
        return torch.randn(*shape, device=device, dtype=torch.bfloat16) / shape[-1] ** 0.5
    layers = [(rand((heads + 2 * kv_heads) * dim, hidden), rand(hidden, heads * dim), rand(2 * ffn, hidden),
               rand(hidden, ffn), torch.ones(hidden, device=device, dtype=torch.bfloat16),
               rand(batch, kv_heads, context, dim), rand(batch, kv_heads, context, dim))
              for _ in range(config["num_hidden_layers"])]
    embed, head = rand(vocab, hidden), rand(vocab, hidden)
    angle = context / 10000 ** (torch.arange(0, dim, 2, device=device) / dim)
    cos, sin = angle.cos().to(torch.bfloat16), angle.sin().to(torch.bfloat16)
    last = torch.tensor([context - 1], device=device)

    def rotate(x):
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    def step(token):
        x = embed[token]
        for qkv, o, gate_up, down, norm, keys, values in layers:
            q, k, v = F.linear(F.rms_norm(x, (hidden,), norm), qkv).split(
                [heads * dim, kv_heads * dim, kv_heads * dim], dim=-1)
            keys.index_copy_(2, last, rotate(k.view(batch, kv_heads, 1, dim)))
            values.index_copy_(2, last, v.view(batch, kv_heads, 1, dim))
            seen = F.scaled_dot_product_attention(rotate(q.view(batch, heads, 1, dim)), keys, values, enable_gqa=True)
            x = x + F.linear(seen.reshape(batch, heads * dim), o)
            gate, up = F.linear(F.rms_norm(x, (hidden,), norm), gate_up).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, down)
        return F.linear(F.rms_norm(x, (hidden,), layers[0][4]), head).argmax(dim=-1)

    how = {"backend": "eager"} if tiny else {"mode": "reduce-overhead"}
    compiled = torch.compile(step, dynamic=False, **how)
    token = torch.zeros(batch, dtype=torch.long, device=device)
    times = []
    with torch.no_grad():
        began = time.perf_counter()
        for _ in range(4):
            token = compiled(token).clone()
        compiling = time.perf_counter() - began
        for _ in range(steps):
            if not tiny:
                torch.cuda.synchronize()
            began = time.perf_counter()
            token = compiled(token).clone()
            if not tiny:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
    seconds = statistics.median(times)
    result = {"torch": torch.__version__, "batch": batch, "context": context, "compiling_seconds": compiling,
              "tokens_per_second": batch / seconds, "ms_per_step": seconds * 1e3}
    with open(file, "w", encoding="utf-8") as f:
        json.dump(result, f, indent=1)


if __name__ == "__main__":
    if sys.argv[1] == "kernels":
        kernels(sys.argv[2], sys.argv[3])
    else:
        with open(sys.argv[4], encoding="utf-8") as opened:
            engine(sys.argv[2], sys.argv[3], json.load(opened))
