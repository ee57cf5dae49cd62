"""Writes the tiny models of tiny_gguf.py as Hugging Face directories, and one with LongRoPE (Phi3).

Safetensors by hand: the length of a JSON header, the header, the tensors' bytes.
"""

import array
import json
import pathlib
import random
import struct

import tiny_gguf
from tiny_gguf import CHAT_TEMPLATE, CONTEXT, END, FFN, HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, VOCAB_SIZE

ORIGINAL_CONTEXT = 64  # of the model with LongRoPE
ROTARY = 24            # its rotating channels of HEAD_DIM


def write_safetensors(path, tensors):
    """tensors: name -> (shape, array of floats)."""
    header, offset = {}, 0
    for name, (shape, values) in tensors.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + 4 * len(values)]}
        offset += 4 * len(values)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, values in tensors.values():
            file.write(values.tobytes())


def _config(long_rope, five):
    """config.json as transformers 4 writes it, or 5."""
    config = {
        "architectures": ["Phi3ForCausalLM" if long_rope else "LlamaForCausalLM"],
        "model_type": "phi3" if long_rope else "llama", "hidden_act": "silu", "num_hidden_layers": LAYERS,
        "hidden_size": HIDDEN, "intermediate_size": FFN, "vocab_size": VOCAB_SIZE, "max_position_embeddings": CONTEXT,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": END,
    }
    if long_rope:
        config["max_position_embeddings"] = 4 * ORIGINAL_CONTEXT
    scaling = {}
    if long_rope:
        half = ROTARY // 2
        scaling = {"short_factor": [1.0] * half, "long_factor": [1.0 + 2 * i for i in range(half)]}
    if five:
        rope = {"rope_type": "longrope" if long_rope else "default", "rope_theta": 10000.0, **scaling}
        if long_rope:
            rope |= {"partial_rotary_factor": ROTARY / HEAD_DIM, "original_max_position_embeddings": ORIGINAL_CONTEXT}
        return config | {"dtype": "float32", "rope_parameters": rope}
    config |= {"torch_dtype": "float32", "rope_theta": 10000.0}
    config["rope_scaling"] = {"type": "longrope", **scaling} if long_rope else None
    if long_rope:
        config |= {"partial_rotary_factor": ROTARY / HEAD_DIM, "original_max_position_embeddings": ORIGINAL_CONTEXT}
    return config


def _layers(matrix, fused):
    ones = array.array("f", [1.0]) * HIDDEN
    kv = KV_HEADS * HEAD_DIM
    if fused:
        parts = [("self_attn.qkv_proj", HIDDEN + 2 * kv, HIDDEN), ("self_attn.o_proj", HIDDEN, HIDDEN),
                 ("mlp.gate_up_proj", 2 * FFN, HIDDEN), ("mlp.down_proj", HIDDEN, FFN)]
    else:
        parts = [("self_attn.q_proj", HIDDEN, HIDDEN), ("self_attn.k_proj", kv, HIDDEN), ("self_attn.v_proj", kv, HIDDEN),
                 ("self_attn.o_proj", HIDDEN, HIDDEN), ("mlp.gate_proj", FFN, HIDDEN), ("mlp.up_proj", FFN, HIDDEN),
                 ("mlp.down_proj", HIDDEN, FFN)]
    tensors = {"model.norm.weight": ([HIDDEN], ones)}
    for i in range(LAYERS):
        for part, rows, columns in parts:
            tensors[f"model.layers.{i}.{part}.weight"] = ([rows, columns], matrix(rows, columns))
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{i}.{norm}.weight"] = ([HIDDEN], ones)
    return tensors


def _write(path, config, tensors, parts, text, chat_template, generation_config):
    path = pathlib.Path(path)
    if text:
        tiny_gguf.write_folder(path, chat_template, **generation_config)
    else:
        path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    if parts == 1:
        write_safetensors(path / "model.safetensors", tensors)
        return path
    weight_map = {}
    names = list(tensors)
    for part in range(parts):
        file = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        own = names[part::parts]
        write_safetensors(path / file, {name: tensors[name] for name in own})
        weight_map |= dict.fromkeys(own, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def write_random(path, seed=1, long_rope=False, five=False, parts=1, text=True, chat_template=CHAT_TEMPLATE,
                 **generation_config):
    """Every token depends on the whole prefix; of the model with LongRoPE also on which table it has."""
    draw = random.Random(seed).random

    def matrix(rows, columns, scale=1.0):
        width = scale * (12 / columns) ** 0.5
        return array.array("f", [width * (draw() - 0.5) for _ in range(rows * columns)])

    tensors = {
        "model.embed_tokens.weight": ([VOCAB_SIZE, HIDDEN], matrix(VOCAB_SIZE, HIDDEN, HIDDEN**0.5)),
        **_layers(matrix, fused=long_rope),
        "lm_head.weight": ([VOCAB_SIZE, HIDDEN], matrix(VOCAB_SIZE, HIDDEN, 2.0)),
    }
    return _write(path, _config(long_rope, five), tensors, parts, text, chat_template, generation_config)


def write_script(path, parts=1, five=False, chat_template=CHAT_TEMPLATE, **generation_config):
    """Says SCRIPT after a chat prompt, as tiny_gguf.write_script's."""
    embedding, output = tiny_gguf.successor_matrices(*tiny_gguf.script_successors())
    zeros = lambda rows, columns: array.array("f", bytes(4 * rows * columns))
    tensors = {
        "model.embed_tokens.weight": ([VOCAB_SIZE, HIDDEN], embedding),
        **_layers(zeros, fused=False),
        "lm_head.weight": ([VOCAB_SIZE, HIDDEN], output),
    }
    return _write(path, _config(False, five), tensors, parts, True, chat_template, generation_config)
