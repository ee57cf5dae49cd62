#!/usr/bin/env python3
"""Random weights in the shape of a small published model, as one GGUF file with a tokenizer: it loads and says nonsense.

  make_random_gguf.py OUT.gguf [--shape 135M|1.1B] [--type BF16|F16|Q8_0|Q4_0|Q4_1] [--layers N] [--seed S]

135M is SmolLM2-135M's shape (tied embeddings), 1.1B TinyLlama's. All matrices have the type, norms are F32. The same
shape and seed give the same weights in every type, up to its rounding. The tokenizer is a byte-level BPE of the right
size: 3 special tokens, 256 bytes, and merges of lower-case letters. Needs the packages gguf and numpy.
"""

import argparse
import itertools
import string
from pathlib import Path

import gguf
import numpy

SHAPES = {
    "135M": {"hidden": 576, "layers": 30, "ffn": 1536, "heads": 9, "kv_heads": 3, "vocab": 49152, "tied": True,
             "context": 8192, "theta": 100000.0},
    "1.1B": {"hidden": 2048, "layers": 22, "ffn": 5632, "heads": 32, "kv_heads": 4, "vocab": 32000, "tied": False,
             "context": 2048, "theta": 10000.0},
}
TYPES = ["BF16", "F16", "Q8_0", "Q4_0", "Q4_1"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def alphabet():
    """GPT-2's visible character for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def vocabulary(size):
    """(tokens, merges): each token beyond the bytes is made by one merge of two earlier ones."""
    tokens, merges = SPECIAL + alphabet(), []
    space = alphabet()[ord(" ")]
    for length in itertools.count(2):
        for letters in itertools.product(string.ascii_lowercase, repeat=length - 1):
            for first in (space, *string.ascii_lowercase) if length == 2 else ("", space):
                # " a", "ab"; then "abc" of "ab" and "c", " ab" of " a" and "b", and so on.
                if length == 2:
                    left, right = first, letters[0]
                elif first == space:
                    left, right = space + "".join(letters[:-1]), letters[-1]
                else:
                    continue
                if len(tokens) == size:
                    return tokens, merges
                tokens.append(left + right)
                merges.append(f"{left} {right}")
        if length == 2:
            continue
        for letters in itertools.product(string.ascii_lowercase, repeat=length):
            if len(tokens) == size:
                return tokens, merges
            tokens.append("".join(letters))
            merges.append(f"{''.join(letters[:-1])} {letters[-1]}")


def tensors(shape):
    """(name, rows, columns) in the file's order; 0 rows: a norm."""
    hidden, ffn = shape["hidden"], shape["ffn"]
    kv = hidden // shape["heads"] * shape["kv_heads"]
    yield "token_embd", shape["vocab"], hidden
    for i in range(shape["layers"]):
        for name, rows, columns in (("attn_norm", 0, hidden), ("attn_q", hidden, hidden), ("attn_k", kv, hidden),
                                    ("attn_v", kv, hidden), ("attn_output", hidden, hidden), ("ffn_norm", 0, hidden),
                                    ("ffn_gate", ffn, hidden), ("ffn_up", ffn, hidden), ("ffn_down", hidden, ffn)):
            yield f"blk.{i}.{name}", rows, columns
    yield "output_norm", 0, hidden
    if not shape["tied"]:
        yield "output", shape["vocab"], hidden


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", default="135M", choices=SHAPES)
    parser.add_argument("--type", default="BF16", choices=TYPES)
    parser.add_argument("--layers", type=int, help="only so many")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shape = dict(SHAPES[options.shape])
    shape["layers"] = options.layers or shape["layers"]
    kind = gguf.GGMLQuantizationType[options.type]

    writer = gguf.GGUFWriter(options.out, "llama")
    writer.add_name(f"random {options.shape}")
    writer.add_file_type({"BF16": 32, "F16": 1, "Q8_0": 7, "Q4_0": 2, "Q4_1": 3}[options.type])
    writer.add_context_length(shape["context"])
    writer.add_embedding_length(shape["hidden"])
    writer.add_block_count(shape["layers"])
    writer.add_feed_forward_length(shape["ffn"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_rope_dimension_count(shape["hidden"] // shape["heads"])
    writer.add_rope_freq_base(shape["theta"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape["vocab"])
    tokens, merges = vocabulary(shape["vocab"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * len(SPECIAL) + [gguf.TokenType.NORMAL] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)

    # The sizes first, the data one tensor after the other: no more than one is in memory.
    for name, rows, columns in tensors(shape):
        if rows == 0:
            writer.add_tensor_info(f"{name}.weight", (columns,), numpy.dtype("float32"), 4 * columns)
            continue
        block, size = gguf.GGML_QUANT_SIZES[kind]
        bytes_of_row = columns // block * size
        writer.add_tensor_info(f"{name}.weight", (rows, bytes_of_row), numpy.dtype("uint8"), rows * bytes_of_row, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = numpy.random.default_rng(options.seed)
    for _, rows, columns in tensors(shape):
        if rows == 0:
            writer.write_tensor_data(numpy.ones(columns, numpy.float32))
            continue
        values = random.standard_normal((rows, columns), numpy.float32)
        values *= columns ** -0.5  # keeps the size of what it multiplies
        writer.write_tensor_data(gguf.quants.quantize(values, kind))
    writer.close()
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
