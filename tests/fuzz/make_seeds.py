"""Writes the first inputs of the fuzz targets: small valid files and messages, from which fuzzers go on; and
dictionaries of the words that the readers of files know.

    python3 tests/fuzz/make_seeds.py FOLDER    one folder in it for each target, and TARGET.dict; needs protoc
"""

import array
import json
import pathlib
import random
import re
import struct
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/e2e"))
import tiny_gguf  # noqa: E402  pylint: disable=wrong-import-position
import tiny_hf  # noqa: E402  pylint: disable=wrong-import-position

HIDDEN, FFN, LAYERS = 8, 16, 1
TOKENS = len(tiny_gguf.SPECIAL) + 256 + len(tiny_gguf.MERGES)


def zeros(*shape):
    count = 1
    for size in shape:
        count *= size
    return array.array("f", bytes(4 * count))


def gguf(path, architecture="llama", **more):
    # pylint: disable-next=protected-access
    metadata = {key.replace("llama.", architecture + "."): value for key, value in tiny_gguf._metadata("tiny").items()}
    metadata |= {
        "general.architecture": architecture,
        f"{architecture}.block_count": LAYERS, f"{architecture}.context_length": 64,
        f"{architecture}.embedding_length": HIDDEN, f"{architecture}.feed_forward_length": FFN,
        f"{architecture}.attention.head_count": 2, f"{architecture}.attention.head_count_kv": 1,
        f"{architecture}.rope.dimension_count": HIDDEN // 2, **more,
    }
    tiny_gguf.write_gguf(path, metadata, {
        "output_norm.weight": ([HIDDEN], zeros(HIDDEN)),
        "blk.0.attn_q.weight": ([HIDDEN, HIDDEN], zeros(HIDDEN, HIDDEN)),
        "rope_freqs.weight": ([2], array.array("f", [1.0, 2.0])),
    })


def gguf_seeds(folder):
    gguf(folder / "llama")
    gguf(folder / "yarn", **{"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
                             "llama.rope.scaling.original_context_length": 16})
    gguf(folder / "sampling", **{"general.sampling.temp": 0.6, "general.sampling.top_k": 20,
                                 "tokenizer.ggml.pre": "qwen2"})
    gguf(folder / "qwen2", "qwen2", **{"tokenizer.ggml.pre": "deepseek-v3"})
    gguf(folder / "phi3", "phi3", **{"phi3.rope.scaling.original_context_length": 32})
    gguf(folder / "deepseek2", "deepseek2", **{
        "deepseek2.expert_count": 4, "deepseek2.expert_used_count": 2, "deepseek2.attention.q_lora_rank": 4,
        "deepseek2.attention.kv_lora_rank": 4, "deepseek2.attention.key_length": 8,
        "deepseek2.attention.value_length": 4, "deepseek2.leading_dense_block_count": 1,
        "deepseek2.expert_feed_forward_length": 8, "deepseek2.expert_shared_count": 1})
    for name in ("llama_9_3_split-00002-of-00003", "qwen2_q4_q8"):
        (folder / name).write_bytes((ROOT / f"tests/golden/models/gguf/{name}.gguf").read_bytes())


def safetensors_seeds(folder):
    tiny_hf.write_safetensors(folder / "two", {
        "model.norm.weight": ([HIDDEN], zeros(HIDDEN)), "model.embed_tokens.weight": ([2, HIDDEN], zeros(2, HIDDEN))})
    header = json.dumps({"__metadata__": {"format": "pt"}, "a": {"dtype": "BF16", "shape": [2, 2],
                                                                 "data_offsets": [0, 8]},
                         "b": {"dtype": "I32", "shape": [], "data_offsets": [8, 12]},
                         "c": {"dtype": "F8_E4M3", "shape": [0, 3], "data_offsets": [12, 12]}}).encode()
    (folder / "kinds").write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))


def json_of_models(pattern):
    return sorted(ROOT.glob(f"tests/golden/models/*/{pattern}")) + sorted(ROOT.glob(f"tests/models/*/{pattern}"))


def directory_seeds(folder):
    for pattern in ("config.json", "generation_config.json", "tokenizer_config.json", "model.safetensors.index.json"):
        for path in json_of_models(pattern):
            (folder / f"{path.parent.name}-{pattern}").write_bytes(path.read_bytes())
    (folder / "templates").write_text(json.dumps({
        "bos_token": {"content": "<s>"}, "eos_token": "<s>", "add_bos_token": True,
        "chat_template": [{"name": "default", "template": "{{ bos_token }}"}, {"name": "tool_use", "template": ""}]}))
    (folder / "index").write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "../x"}}))


def tokenizer_seeds(folder):
    made = tiny_gguf.write_folder(folder / "folder")
    text = (made / "tokenizer.json").read_text()
    (made / "tokenizer.json").unlink()
    made.rmdir()
    (folder / "tiny").write_text(text)
    file = json.loads(text)
    split = {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}|[^\s\p{L}\p{N}]?\p{L}+|\s+(?!\S)|\s+"},
             "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    file["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    file["normalizer"] = {"type": "NFC"}
    file["post_processor"] = {"type": "TemplateProcessing", "single": [
        {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [], "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}}}
    file["model"]["merges"] = [merge.split() for merge in tiny_gguf.MERGES]
    file["model"]["ignore_merges"] = True
    (folder / "stages").write_text(json.dumps(file, ensure_ascii=False))


def template_seeds(folder):
    cases = json.loads((ROOT / "tests/golden/chat_template_cases.json").read_text())
    for name, text in cases["templates"].items():
        (folder / name.replace("/", "_")).write_text(text)


def json_seeds(folder):
    (folder / "kinds").write_text('{"a": [1, -2.5e3, true, null, "x\\u00e9\\n"], "b": {"c": {}}, "d": 18446744073709551615}')
    (folder / "deep").write_text("[" * 70 + "]" * 70)


def encode(message, text):
    """The bytes of a message in protobuf's text format."""
    files = ["v1/inference", "v1/cluster", "internal/v1/worker_control", "internal/v1/group_control"]
    return subprocess.run(
        ["protoc", "-I", ROOT / "proto", f"--encode=phalanx.{message}", *(f"phalanx/{name}.proto" for name in files)],
        input=text.encode(), stdout=subprocess.PIPE, check=True).stdout


def piece(data):
    assert len(data) < 65536
    return bytes([len(data)]) + data if len(data) < 255 else bytes([255, len(data) >> 8, len(data) & 255]) + data


CHAT = r"""
messages { role: "system" content: "Be brief." }
messages { role: "user" content: "1 + 1? <|end|>" name: "ann" }
messages { role: "assistant" reasoning: "hm" tool_calls { id: "c1" name: "add" arguments: "{\"a\": [1, null]}" } }
messages { role: "tool" content: "2" tool_call_id: "c1" name: "add" }
tools: "{\"type\": \"function\", \"function\": {\"name\": \"add\", \"parameters\": {}}}"
template_kwargs: "{\"enable_thinking\": false}" date: "2026-01-31" add_generation_prompt: true
"""
SAMPLING = """sampling { temperature: 0.7 top_k: 20 top_p: 0.9 min_p: 0.1 seed: 7 max_tokens: 9 stop: "END" stop_token_ids: 3
repetition_penalty: 1.1 presence_penalty: 0.5 frequency_penalty: -0.5 logit_bias { key: 5 value: -3 } n: 2 min_tokens: 1
max_reasoning_tokens: 4 ignore_eos: true }"""


def message_seeds(folder):
    def write(name, kind, message, text):
        (folder / name).write_bytes(bytes([kind]) + encode(message, text))

    write("chat", 0, "v1.GenerateRequest",
          f'chat {{ {CHAT} }} {SAMPLING} logprobs: 2 prompt_logprobs: 1 priority: 3 cache_salt: "s" split_reasoning: true')
    write("append", 0, "v1.GenerateRequest", f"chat {{ {CHAT} system_prompt: SYSTEM_PROMPT_APPEND }}")
    write("continue", 0, "v1.GenerateRequest", """chat { messages { role: "user" content: "a" }
          messages { role: "assistant" content: "<think>b" } continue_final_message: true }""")
    write("text", 0, "v1.GenerateRequest", f'text: "2 apples and <think>" request_id: "r" {SAMPLING}')
    write("tokens", 0, "v1.GenerateRequest", f"tokens {{ ids: [1, 2, 3, 300] }} {SAMPLING}")
    write("tokenize_chat", 1, "v1.TokenizeRequest", f"chat {{ {CHAT} }} pieces: true")
    write("tokenize", 1, "v1.TokenizeRequest", 'text: "2 apples<|end|>" add_bos: false parse_special: true pieces: true')
    write("raw", 1, "v1.TokenizeRequest", 'raw: "2 \\xc3\\xa9 \\xff" parse_special: false')
    write("detokenize", 2, "v1.DetokenizeRequest", "ids: [1, 2, 300] skip_special: false")
    write("load", 3, "v1.LoadModelRequest", """spec { name: "m" path: "/p" tensor_parallel: 2 shards: 8 groups: 2
          compute: COMPUTE_FAST context_length: 64 tokenizer: "t" rope: ROPE_AUTO kv_cache_dtype: KV_CACHE_DTYPE_INT8 }""")


def control_seeds(folder):
    def event(kind, sender, message, text):
        return bytes([kind, sender]) + piece(encode(message, text))

    def hello(sender):
        return event(9, sender, "internal.v1.Hello", f"""worker_id: "w{sender}" host: "h" pid: {sender} device: "cpu"
                     group_address: "h:{sender}" memory_total_bytes: 1 workers_on_host: 2""")

    def state(sender, name):
        return event(2 + 9 * 16, sender, "internal.v1.AssignmentStatus", f'state: ASSIGNMENT_STATE_{name} detail: "d"')

    load = event(7, 0, "v1.ModelSpec", 'name: "m" path: "/p" tensor_parallel: 2 shards: 8 groups: 1 context_length: 64')
    tick = event(1 + 9 * 16, 0, "internal.v1.Heartbeat", "last_step_age_seconds: 0.5 memory_bytes: 9")
    group = "kv_blocks: 9 kv_block_size: 32 context_length: 64"
    serving = event(4, 0, "internal.v1.GroupHello", f'fingerprint: "f" {group} kv_cache_dtype: "bf16"')
    begun = load + hello(0) + hello(1) + tick
    ready = begun + state(0, "LOADING") + state(1, "READY") + state(0, "READY") + serving
    report = event(5, 0, "internal.v1.LoadReport", "kv_blocks_used: 3 running: 2 queued: 1 tokens_per_second: 5")
    (folder / "ready").write_bytes(ready + report + tick)
    (folder / "failed").write_bytes(begun + state(1, "FAILED") + state(0, "RELEASED") + tick)
    (folder / "lost").write_bytes(ready + report + bytes([3, 1]) + piece(b"gone") + tick + hello(1) + tick)
    (folder / "leader_gone").write_bytes(ready + event(6, 0, "internal.v1.GroupHello", "") + tick)
    (folder / "unloaded").write_bytes(ready + bytes([8, 0]) + piece(b"m") + tick + state(0, "RELEASED"))
    (folder / "stalled").write_bytes(ready + report + event(1 + 9 * 17, 0, "internal.v1.Heartbeat", "") * 2)


def output_seeds(folder):
    def output(offset, ids, more=""):
        return piece(encode("internal.v1.SequenceOutput", f"request: 1 attempt: 1 offset: {offset} token_ids: {ids} {more}"))

    text = list(b"so <think>\xc3\xa9")
    logprobs = "logprobs { token { id: 1 logprob: -1 } top { id: 2 logprob: -2 } }"
    (folder / "plain").write_bytes(bytes([0]) + output(0, text[:4]) + output(4, text[4:], "finish: FINISH_REASON_LENGTH"))
    (folder / "thinking").write_bytes(
        bytes([16]) + output(0, [265]) + output(1, [*b"hm", 261, 262]) + output(5, [*b"ok"]) +
        output(7, [267], "finish: FINISH_REASON_STOP stop_token_id: 267"))
    (folder / "opened").write_bytes(bytes([16 | 32]) + output(0, [97, 264]) + output(2, [98], "finish: FINISH_REASON_LENGTH"))
    (folder / "stops").write_bytes(bytes([8 | 1]) + piece(b"STOP now") + piece(b"\xe2\x82\xac") + output(0, [97, 258, 259]) +
                                   output(3, [260, 0xac, 98]))
    (folder / "logprobs").write_bytes(bytes([2 | 4]) + output(0, [97], logprobs + " prompt_first_position: 1 prompt_" + logprobs) +
                                      output(0, [97, 98], logprobs * 2))


def plan_seeds(folder):
    def plan(text):
        return bytes([1]) + piece(encode("internal.v1.StepPlan", text))

    (folder / "plans").write_bytes(
        bytes([0]) +
        plan("step: 1 blocks { sequence: 1 blocks: [3, 4] } rows { sequence: 1 tokens: [5, 6] logit_offsets: 1 }") +
        plan("step: 2 blocks { sequence: 2 blocks: [3, 5] } rows { sequence: 1 first_position: 2 tokens: -1 }") +
        plan("step: 3 released: 1 blocks { sequence: 2 first_index: 2 blocks: 7 } rows { sequence: 2 tokens: 9 }"))

    def submit(text, source=0):
        defaults = "top_p: 1 repetition_penalty: 1"
        return bytes([source << 4]) + piece(encode("internal.v1.Submit", f"{defaults} {text}{'' if 'prompt_logprobs' in text else ' prompt_logprobs: -1'}"))

    step = bytes([4, 6, 42])
    first = submit("request: 1 prompt_ids: [7, 8, 9, 10, 11, 12] max_tokens: 6 logprobs: 2")
    same = submit('request: 2 prompt_ids: [7, 8, 9, 10, 11, 12, 13] max_tokens: 90 logprobs: -1 priority: 1 cache_salt: ""', 1)
    thinking = submit("""request: 3 prompt_ids: [65, 256] max_tokens: 20 logprobs: -1 min_tokens: 3 stop_token_ids: [263]
        temperature: 0.5 top_k: 4 min_p: 0.1 presence_penalty: 1 logit_bias { id: 3 bias: 2 } rope_mode: 1
        thinking { max_tokens: 2 opened: "think" close { family: "think" ids: 257 } }""")
    logprobs = submit("request: 4 prompt_ids: [1, 2, 3, 4, 5, 6, 7, 8, 9] max_tokens: 0 prompt_logprobs: 3 logprobs: -1")
    again = submit("request: 1 attempt: 2 prompt_ids: [7, 8, 9] generated_ids: [10, 11] max_tokens: 6 logprobs: -1")
    (folder / "requests").write_bytes(bytes([1, 7]) + first + step + same + step * 3 + thinking + step * 9)
    (folder / "ahead").write_bytes(bytes([1, 2]) + first + same + bytes([4, 4, 6, 1, 4, 6, 2, 4, 6, 3]) + logprobs + step * 4)
    (folder / "aborts").write_bytes(bytes([1, 3]) + first + same + step + again + bytes([2, 1, 4, 19]) + step * 2)
    repeated = submit(f"request: 5 prompt_ids: {[1, 2, 3] * 6} max_tokens: 60 logprobs: -1")
    (folder / "guesses").write_bytes(bytes([1, 4]) + repeated + step * 20)


def http_seeds(folder):
    (folder / "get").write_bytes(b"GET /healthz?x=1 HTTP/1.1\r\nHost: a\r\n\r\n")
    (folder / "two").write_bytes(b"HEAD /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET /other HTTP/1.0\r\n\r\n")
    (folder / "body").write_bytes(b"POST /healthz HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
    (folder / "length").write_bytes(b"PUT / HTTP/1.1\r\nContent-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n")
    (folder / "http2").write_bytes(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")


def meet_seeds(folder):
    def meet(rank, blob, topic="tcp"):
        return piece(encode("internal.v1.MeetRequest", f'rank: {rank} topic: "{topic}" blob: "{blob}"'))

    (folder / "all").write_bytes(meet(1, "h:1") + meet(2, "h:2") + meet(0, "h:0") + meet(1, "h:1"))
    (folder / "wrong").write_bytes(meet(1, "a") + meet(1, "b") + meet(3, "a") + meet(-1, "a") + meet(0, "", "") +
                                   b"".join(meet(0, "", f"t{i}") for i in range(18)))


def frames_seeds(folder):
    start = (1 << 32) - 100

    def frame(kind, phase=0, call=0, body=b"", code=0):
        return b"PHX1" + struct.pack("<IIiQQ", kind, (start + phase) % (1 << 32), code, call, len(body)) + body

    def come(expected, call, data):
        return bytes([1, expected, call]) + piece(data)

    (folder / "phases").write_bytes(come(8, 1, frame(1, 1, 1, bytes(8))) + bytes([2]) + piece(frame(2)) +
                                    come(9, 2, frame(1, 2, 2, bytes(9))[:20]) + bytes([0]) + piece(frame(1, 2, 2, bytes(9))[20:]))
    (folder / "ahead").write_bytes(come(3, 1, frame(1, 1, 1, b"abc") + frame(1, 2, 1, b"d")) + come(1, 1, b""))
    (folder / "large").write_bytes(bytes([5, 200, 1]) + piece(frame(1, 1, 1, bytes(200 * 257))[:40000]) + bytes([0]) +
                                   piece(frame(1, 1, 1, bytes(200 * 257))[40000:]))
    (folder / "differs").write_bytes(come(4, 1, frame(1, 1, 2, bytes(7))))
    (folder / "left").write_bytes(come(4, 1, frame(3, 0, 0, b"rank 1 left", 14)))
    (folder / "ends").write_bytes(bytes([67, 0]))


def encode_seeds(folder):
    draw = random.Random(1)
    texts = ["Hello, world don't 12345\n\n  x\t", "\u00e9\u6f22\u5b57\U0001f600 e\u0301 \u3042", "<|end|><think>a</think>"]
    for number, text in enumerate(texts * 6):
        (folder / f"text{number}").write_bytes(bytes([number % 6 + draw.choice([0, 64])]) + text.encode())


# Target to the sources whose strings are its words.
WORDS = {
    "gguf": ["base/gguf*", "base/model_config.cc", "base/token_bytes.cc", "coordinator/text/tokenizer_gguf.cc",
             "coordinator/text/pretokenizer.cc", "coordinator/generation_config.cc"],
    "hf_directory": ["base/hf_*.cc", "base/safetensors.cc", "coordinator/generation_config.cc",
                     "coordinator/text/tokenizer_directory.cc"],
    "safetensors": ["base/safetensors.cc", "worker/hf_checkpoint.cc"],
    "template": ["coordinator/text/jinja_*.cc", "coordinator/text/chat_template_input.cc"],
    "tokenizer": ["base/tokenizer_json.cc", "coordinator/text/tokenizer_directory.cc",
                  "coordinator/text/pretokenizer.cc"],
}


def words(patterns):
    found = set()
    for pattern in patterns:
        for path in ROOT.glob(pattern):
            lines = [line for line in path.read_text().split("\n") if not line.startswith("#include")]
            found |= set(re.findall(r'"([A-Za-z_.0-9]{2,40})"', "\n".join(lines)))
    return sorted(found)


def main():
    out = pathlib.Path(sys.argv[1])
    seeds = {"gguf": gguf_seeds, "safetensors": safetensors_seeds, "hf_directory": directory_seeds,
             "tokenizer": tokenizer_seeds, "template": template_seeds, "json": json_seeds, "message": message_seeds,
             "control": control_seeds, "output": output_seeds, "plan": plan_seeds, "http": http_seeds,
             "encode": encode_seeds, "meet": meet_seeds, "frames": frames_seeds}
    for target, write in seeds.items():
        folder = out / f"{target}_fuzz"
        folder.mkdir(parents=True, exist_ok=True)
        write(folder)
    for target, sources in WORDS.items():
        (out / f"{target}_fuzz.dict").write_text("".join(f'"{word}"\n' for word in words(sources)))


if __name__ == "__main__":
    main()
