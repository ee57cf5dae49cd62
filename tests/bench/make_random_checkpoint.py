#!/usr/bin/env python3
"""Random weights in the full shape of a published model: a Hugging Face directory that loads and decodes nonsense.

  make_random_checkpoint.py CONFIG OUT [--layers N] [--seed S]

CONFIG is a config.json of Phi3ForCausalLM, LlamaForCausalLM, Qwen2ForCausalLM or DeepseekV3ForCausalLM. OUT gets it and bf16 weights in
shards of at most 4 GB, without a tokenizer: the server takes token ids. --layers N keeps the first N layers. The values repeat with a period
of a prime number of elements; they show that shapes, memory and speed are right, not what a model says.
"""

import argparse
import array
import json
import math
import random
import struct
from pathlib import Path

PERIOD = 1000003
SHARD_BYTES = 4 << 30


def shapes(config):
    """(name, shape) of every tensor, in the order of the layers."""
    kind = config["architectures"][0]
    hidden, ffn, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head = config.get("head_dim") or hidden // heads
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        yield layer + "input_layernorm.weight", (hidden,)
        yield layer + "post_attention_layernorm.weight", (hidden,)
        attention = layer + "self_attn."
        if kind == "DeepseekV3ForCausalLM":
            yield from latent_attention(config, attention)
            yield from feed_forward(config, layer + "mlp.", dense=i < config["first_k_dense_replace"])
            continue
        yield attention + "o_proj.weight", (hidden, heads * head)
        if kind == "Phi3ForCausalLM":
            yield attention + "qkv_proj.weight", ((heads + 2 * kv_heads) * head, hidden)
            yield layer + "mlp.gate_up_proj.weight", (2 * ffn, hidden)
            yield layer + "mlp.down_proj.weight", (hidden, ffn)
            continue
        for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            yield f"{attention}{name}_proj.weight", (count * head, hidden)
            if kind == "Qwen2ForCausalLM":
                yield f"{attention}{name}_proj.bias", (count * head,)
        yield from gated(layer + "mlp.", ffn, hidden)
    yield "model.norm.weight", (hidden,)
    if not config.get("tie_word_embeddings", False):
        yield "lm_head.weight", (config["vocab_size"], hidden)


def gated(prefix, ffn, hidden):
    yield prefix + "gate_proj.weight", (ffn, hidden)
    yield prefix + "up_proj.weight", (ffn, hidden)
    yield prefix + "down_proj.weight", (hidden, ffn)


def latent_attention(config, prefix):
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    q_rank, kv_rank = config["q_lora_rank"], config["kv_lora_rank"]
    if q_rank:
        yield prefix + "q_a_proj.weight", (q_rank, hidden)
        yield prefix + "q_a_layernorm.weight", (q_rank,)
        yield prefix + "q_b_proj.weight", (heads * (nope + rope), q_rank)
    else:
        yield prefix + "q_proj.weight", (heads * (nope + rope), hidden)
    yield prefix + "kv_a_proj_with_mqa.weight", (kv_rank + rope, hidden)
    yield prefix + "kv_a_layernorm.weight", (kv_rank,)
    yield prefix + "kv_b_proj.weight", (heads * (nope + value), kv_rank)
    yield prefix + "o_proj.weight", (hidden, heads * value)


def feed_forward(config, prefix, dense):
    hidden, ffn = config["hidden_size"], config["moe_intermediate_size"]
    if dense:
        yield from gated(prefix, config["intermediate_size"], hidden)
        return
    yield prefix + "gate.weight", (config["n_routed_experts"], hidden)
    yield prefix + "gate.e_score_correction_bias", (config["n_routed_experts"],)
    for expert in range(config["n_routed_experts"]):
        yield from gated(f"{prefix}experts.{expert}.", ffn, hidden)
    yield from gated(prefix + "shared_experts.", ffn * config["n_shared_experts"], hidden)


class Values:
    """Normal numbers in bf16, one period, at scales that are powers of two."""

    def __init__(self, seed):
        source = random.Random(seed)
        self.base = [source.gauss(0, 1) for _ in range(PERIOD)]
        self.scaled = {}
        self.at = 0

    def write(self, out, count, scale):
        if scale not in self.scaled:
            halves = array.array("H")
            for value in self.base:
                halves.append(struct.unpack("<I", struct.pack("<f", value * scale))[0] >> 16)
            self.scaled[scale] = halves.tobytes()
        data = self.scaled[scale]
        while count > 0:
            part = min(count, PERIOD - self.at)
            out.write(data[2 * self.at:2 * (self.at + part)])
            self.at = (self.at + part) % PERIOD
            count -= part


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    config = json.loads(options.config.read_text())
    if options.layers is not None:
        config["num_hidden_layers"] = options.layers
    config.pop("quantization_config", None)
    config["num_nextn_predict_layers"] = 0
    options.out.mkdir(parents=True, exist_ok=True)

    shards, used = [[]], 0
    for name, shape in shapes(config):
        size = 2 * math.prod(shape)
        if used + size > SHARD_BYTES and shards[-1]:
            shards.append([])
            used = 0
        shards[-1].append((name, shape))
        used += size
    values, weight_map, total = Values(options.seed), {}, 0
    for index, tensors in enumerate(shards):
        file = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        header, offset = {}, 0
        for name, shape in tensors:
            size = 2 * math.prod(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
            weight_map[name] = file
            offset += size
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        with open(options.out / file, "wb") as out:
            out.write(struct.pack("<Q", len(encoded)) + encoded)
            for name, shape in tensors:
                # Matrices keep the size of what they multiply; norms are near one on average of squares.
                scale = 1.0 if len(shape) == 1 else 2.0 ** round(math.log2(shape[1] ** -0.5))
                values.write(out, math.prod(shape), scale)
        total += offset
        print(f"{file}: {len(tensors)} tensors, {offset / 1e9:.2f} GB", flush=True)
    (options.out / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1))
    (options.out / "config.json").write_text(json.dumps(config, indent=1))


if __name__ == "__main__":
    main()
