"""Writes tiny llama models as GGUF files, so that most tests need no downloaded data.

Both models have SmolLM2's awkward shape (9 query heads on 3 KV heads, so any number of ranks cuts somewhere) and a
byte-level vocabulary: three special tokens, one token for each byte, a few merges.

random  seeded random weights: every token depends on the whole prefix, so mixed-up KV blocks change the answer
script  says SCRIPT after a chat prompt, one token after the other, whatever came before: attention and MLP are zero and
        the output head maps each token to its successor
thinker the same, but says <think> and "hm" without end; after </think> it says "Ok"
"""

import array
import json
import pathlib
import random
import struct

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
END = SPECIAL.index("<|im_end|>")
MERGES = ["h e", "i n", "\u0120 t", "\u0120t he"]
VOCAB_SIZE = len(SPECIAL) + 256 + len(MERGES)
MARKS = ["<think>", "</think>"]  # of the thinker only
THINK, THINK_END = VOCAB_SIZE, VOCAB_SIZE + 1
# One, two, three and four bytes a character, all bytes distinct (a byte's successor is fixed), and none of a chat
# prompt's last byte, the line end.
SCRIPT = "Go: \u00e9\u6f22\U0001f600!"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

HEADS, KV_HEADS, HEAD_DIM, FFN, LAYERS = 9, 3, 32, 416, 2
HIDDEN = HEADS * HEAD_DIM
CONTEXT = 65536


def byte_token(byte):
    """The id of the token of one byte."""
    return len(SPECIAL) + byte


def _alphabet():
    """GPT-2's visible character for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def _string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value):
    """Type number and body of a metadata value."""
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        return 4, struct.pack("<I", value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, str):
        return 8, _string(value)
    if isinstance(value[0], str):
        return 9, struct.pack("<IQ", 8, len(value)) + b"".join(map(_string, value))
    return 9, struct.pack(f"<IQ{len(value)}i", 5, len(value), *value)


def write_gguf(path, metadata, tensors):
    """tensors: name -> (dims, innermost first; array of floats)."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        number, body = _value(value)
        head += _string(key) + struct.pack("<I", number) + body
    offset = 0
    for name, (dims, values) in tensors.items():
        head += _string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, 0, offset)
        offset += -(-len(values) * 4 // 32) * 32
    with open(path, "wb") as file:
        file.write(head.ljust(-(-len(head) // 32) * 32, b"\0"))
        for _, values in tensors.values():
            data = values.tobytes()
            file.write(data.ljust(-(-len(data) // 32) * 32, b"\0"))


def _vocabulary(marks=()):
    return SPECIAL + _alphabet() + [merge.replace(" ", "") for merge in MERGES] + list(marks)


def _metadata(name, marks=()):
    tokens = _vocabulary(marks)
    return {
        "general.architecture": "llama",
        "general.name": name,
        "llama.block_count": LAYERS,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": FFN,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": HEAD_DIM,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": len(tokens),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (VOCAB_SIZE - len(SPECIAL)) + [4] * len(marks),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": END,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _layers(matrix):
    """The tensors of all layers; matrix(rows, columns) makes a weight."""
    ones = array.array("f", [1.0]) * HIDDEN
    kv = KV_HEADS * HEAD_DIM
    tensors = {}
    for i in range(LAYERS):
        for part, rows, columns in [
            ("attn_q", HIDDEN, HIDDEN), ("attn_k", kv, HIDDEN), ("attn_v", kv, HIDDEN),
            ("attn_output", HIDDEN, HIDDEN), ("ffn_gate", FFN, HIDDEN), ("ffn_up", FFN, HIDDEN),
            ("ffn_down", HIDDEN, FFN),
        ]:
            tensors[f"blk.{i}.{part}.weight"] = ([columns, rows], matrix(rows, columns))
        tensors[f"blk.{i}.attn_norm.weight"] = ([HIDDEN], ones)
        tensors[f"blk.{i}.ffn_norm.weight"] = ([HIDDEN], ones)
    tensors["output_norm.weight"] = ([HIDDEN], ones)
    return tensors


def write_random(path, seed=1):
    draw = random.Random(seed).random

    def matrix(rows, columns, scale=1.0):
        width = scale * (12 / columns) ** 0.5  # uniform, with variance scale^2 / columns
        return array.array("f", [width * (draw() - 0.5) for _ in range(rows * columns)])

    embedding = matrix(VOCAB_SIZE, HIDDEN, HIDDEN**0.5)
    write_gguf(path, _metadata("tiny-random"), {
        "token_embd.weight": ([HIDDEN, VOCAB_SIZE], embedding),
        **_layers(matrix),
        "output.weight": ([HIDDEN, VOCAB_SIZE], matrix(VOCAB_SIZE, HIDDEN, 2.0)),
    })


def successor_matrices(successor, otherwise, size=VOCAB_SIZE):
    """Embedding and output head of a model that says successor[token], or `otherwise`."""
    embedding = array.array("f", bytes(4 * size * HIDDEN))
    output = array.array("f", bytes(4 * size * HIDDEN))
    for token in range(size):
        embedding[token * HIDDEN + token] = 1.0
        output[successor.get(token, otherwise) * HIDDEN + token] = 1.0
    return embedding, output


def _write_successors(path, name, successor, otherwise, marks=()):
    size = VOCAB_SIZE + len(marks)
    embedding, output = successor_matrices(successor, otherwise, size)
    zeros = lambda rows, columns: array.array("f", bytes(4 * rows * columns))
    write_gguf(path, _metadata(name, marks), {
        "token_embd.weight": ([HIDDEN, size], embedding),
        **_layers(zeros),
        "output.weight": ([HIDDEN, size], output),
    })


def script_successors():
    says = [byte_token(byte) for byte in SCRIPT.encode()]
    assert len(set(says)) == len(says)
    return dict(zip(says, says[1:] + [END])), says[0]


def write_script(path):
    _write_successors(path, "tiny-script", *script_successors())


def write_thinker(path):
    h, m, o, k = (byte_token(byte) for byte in b"hmOk")
    _write_successors(path, "tiny-thinker", {THINK: h, h: m, m: h, THINK_END: o, o: k, k: END}, THINK, MARKS)


def write_folder(path, chat_template=None, marks=(), **generation_config):
    """A Hugging Face folder with the models' tokenizer."""
    path = pathlib.Path(path)
    path.mkdir()
    tokens = _vocabulary(marks)
    added = [(token, True) for token in SPECIAL] + [(token, False) for token in marks]
    (path / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [
            {"id": tokens.index(token), "content": token, "special": special, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False} for token, special in added],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {token: id_ for id_, token in enumerate(tokens)}, "merges": MERGES},
    }, ensure_ascii=False))
    if chat_template is not None:
        (path / "chat_template.jinja").write_text(chat_template)
    if generation_config:
        (path / "generation_config.json").write_text(json.dumps(generation_config))
    return path
