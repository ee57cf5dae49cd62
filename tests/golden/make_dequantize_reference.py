#!/usr/bin/env python3
"""Makes dequantize_reference.safetensors: stored matrices of the quantised types, and their values in fp32.

The K types are taken apart by Python's gguf, FP8 by torch, the 4-bit types by a restatement in numpy. Of every case
there are "CASE.stored" (the file's bytes), "CASE.values" [rows, cols], and its scales, zeros and groups.

Usage: pip install gguf torch numpy; python3 tests/golden/make_dequantize_reference.py
"""

import json
import struct
from pathlib import Path

import gguf
import numpy as np
import torch

OUT = Path(__file__).parent / "dequantize_reference.safetensors"
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def k_type(rng, name, rows, blocks, f16_at):
    """Random blocks of a K type; only their fp16 numbers are chosen, so that they are finite."""
    qtype = gguf.GGMLQuantizationType[name]
    elements, size = gguf.GGML_QUANT_SIZES[qtype]
    stored = rng.integers(0, 256, (rows, blocks, size), np.uint8)
    for at in f16_at:
        numbers = (rng.standard_normal((rows, blocks)) * 10.0 ** rng.integers(-7, 2, (rows, blocks))).astype(np.float16)
        stored[:, :, at : at + 2] = numbers[..., None].view(np.uint8)
    stored = stored.reshape(rows, blocks * size)
    values = gguf.quants.dequantize(stored, qtype)
    assert values.shape == (rows, blocks * elements) and values.dtype == np.float32
    return {"stored": stored, "values": values}


def fp8(codes, scales, expanded):
    """scales: a torch tensor as stored; expanded: the same in fp32, of the shape of codes or one that spreads to it."""
    numbers = torch.from_numpy(codes).view(torch.float8_e4m3fn).to(torch.float32)
    return {"stored": codes, "scales": scales, "values": (numbers * expanded).numpy()}


def fp8_blocks(rng, rows, cols, block_rows, block_cols, dtype):
    codes = rng.integers(0, 256, (rows, cols), np.uint8)
    scales = torch.from_numpy(rng.lognormal(-4, 3, (-(-rows // block_rows), -(-cols // block_cols)))).to(dtype)
    wide = scales.to(torch.float32).repeat_interleave(block_rows, 0).repeat_interleave(block_cols, 1)
    return fp8(codes, scales, wide[:rows, :cols])


def pack(numbers, order):
    """Along the last axis, eight in a word: the k-th nibble from below is number order[k]."""
    split = numbers.reshape(*numbers.shape[:-1], -1, 8).astype(np.uint32)
    return sum(split[..., at] << np.uint32(4 * k) for k, at in enumerate(order)).astype(np.uint32)


def int4(rng, rows, cols, groups, dtype):
    """q [cols, rows], zeros [groups, rows], scales [groups, rows] as stored and in fp32."""
    scales = torch.from_numpy(rng.standard_normal((groups, rows)) * 0.02).to(dtype)
    return (rng.integers(0, 16, (cols, rows)), rng.integers(0, 16, (groups, rows)), scales,
            scales.to(torch.float32).numpy())


def awq(rng, rows, cols, group_size, dtype):
    group_of = np.arange(cols) // group_size
    q, zeros, scales, wide = int4(rng, rows, cols, group_of.max() + 1, dtype)
    values = (q - zeros[group_of]).astype(np.float32) * wide[group_of]
    return {"stored": pack(q, AWQ_ORDER), "zeros": pack(zeros, AWQ_ORDER), "scales": scales, "values": values.T}


def gptq(rng, rows, cols, group_size, offset, act_order):
    group_of = np.arange(cols) // (group_size or cols)
    if act_order:
        group_of = rng.permutation(group_of)
    q, zeros, scales, wide = int4(rng, rows, cols, group_of.max() + 1, torch.float16)
    values = (q - (zeros[group_of] + offset)).astype(np.float32) * wide[group_of]
    case = {"stored": pack(q.T, range(8)).T, "zeros": pack(zeros, range(8)), "scales": scales, "values": values.T}
    if act_order:
        case["group_of"] = group_of.astype(np.int32)
    return case


def main():
    rng = np.random.default_rng(20240)
    every_code = np.arange(256, dtype=np.uint8)[None]
    cases = {
        "q4_k": k_type(rng, "Q4_K", 2, 2, (0, 2)),
        "q5_k": k_type(rng, "Q5_K", 2, 2, (0, 2)),
        "q6_k": k_type(rng, "Q6_K", 2, 2, (208,)),
        "f8_codes": fp8(every_code, torch.tensor([0.3]), torch.tensor([0.3])),
        "f8_blocks": fp8_blocks(rng, 13, 37, 8, 16, torch.float32),
        "f8_blocks_bf16": fp8_blocks(rng, 9, 20, 4, 8, torch.bfloat16),
        "f8_rows_f16": fp8_blocks(rng, 5, 20, 1, 20, torch.float16),
        "awq": awq(rng, 40, 64, 32, torch.float16),
        "awq_bf16": awq(rng, 24, 40, 16, torch.bfloat16),
        "gptq": gptq(rng, 40, 48, 16, 1, False),
        "gptq_v2": gptq(rng, 24, 48, 32, 0, False),
        "gptq_act": gptq(rng, 24, 64, 16, 1, True),
        "gptq_one_group": gptq(rng, 16, 40, 0, 1, False),
    }
    header, body = {"__metadata__": {"gguf": gguf.__version__ if hasattr(gguf, "__version__") else "",
                                     "torch": torch.__version__, "numpy": np.__version__}}, b""
    names = {np.dtype(np.uint8): "U8", np.dtype(np.uint32): "I32", np.dtype(np.int32): "I32",
             np.dtype(np.float32): "F32"}
    torch_names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    for case, tensors in cases.items():
        for part, values in tensors.items():
            if isinstance(values, torch.Tensor):
                dtype, data = torch_names[values.dtype], values.contiguous().view(torch.uint8).numpy().tobytes()
            else:
                dtype, data = names[values.dtype], np.ascontiguousarray(values).tobytes()
            header[f"{case}.{part}"] = {"dtype": dtype, "shape": list(values.shape),
                                        "data_offsets": [len(body), len(body) + len(data)]}
            body += data
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    OUT.write_bytes(struct.pack("<Q", len(text)) + text + body)
    print(f"{OUT}: {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
