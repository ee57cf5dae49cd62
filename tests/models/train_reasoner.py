"""Makes phalanx-reasoner/: a Phi3 model in Phi-4-mini's proportions that solves word problems, trained from scratch.

    python tests/models/train_reasoner.py OUT                  trains and saves
    python tests/models/train_reasoner.py OUT --evaluate       grades the saved model on unseen problems
    python tests/models/train_reasoner.py OUT --reference FILE records its greedy tokens

Needs torch and transformers 5. Everything random is seeded: the same versions on the same machine with the same
number of threads make the same weights. Two settings make it faster and change nothing else: glibc should keep the
memory of large tensors, and a thread should not spin while another one waits for a core:

    export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184 GOMP_SPINCOUNT=0

The model works in both modes of LongRoPE: batches alternate between the short and the long frequencies, because a
server may keep a sequence to either of them from its first token.
"""

import argparse
import hashlib
import json
import math
import pathlib
import random
import time

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AttentionInterface, GenerationConfig, Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast

from word_problems import boxed_answer, conclusion, make_problem, thinking

# What each part draws from: no two overlap but by chance.
TOKENIZER_SEED, TRAINING_SEED, EVALUATION_SEED, REFERENCE_SEED = 1, 2, 1001, 1002

VOCABULARY = 576
END_OF_TEXT, END = "<|endoftext|>", "<|end|>"
TURN_MARKS = ["<|system|>", "<|user|>", "<|assistant|>", END]
TOOL_MARKS = ["<|tool|>", "<|/tool|>", "<|tool_call|>", "<|/tool_call|>", "<|tool_response|>"]

SYSTEM_TEXT = "Your name is Phi, an AI math expert developed by Microsoft."
# As Phi-4-mini-reasoning's: a caller's system text follows the fixed one.
CHAT_TEMPLATE = (
    "{{ '<|system|>" + SYSTEM_TEXT + "' }}"
    "{% for message in messages %}{% if message['role'] == 'system' %} {{ message['content'] }}"
    "{% if 'tools' in message and message['tools'] is not none %}"
    "{{ '<|tool|>' + message['tools'] + '<|/tool|>' }}{% endif %}{% endif %}{% endfor %}{{ '<|end|>' }}"
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
# What the model has seen beside the plain question: this after it, these before it.
BOX_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
SYSTEM_TEXTS = [
    BOX_INSTRUCTION,
    "You are a helpful assistant.",
    "You are a careful teacher. Think before you answer.",
    "Solve the problem step by step.",
    "Answer the question of the user.",
    "Be brief.",
]

# Every fourth of Phi-4-mini's 48 factors: these 12 frequencies are every fourth of its 48.
LONG_FACTOR = [
    1.0,
    1.564103225,
    2.446418898,
    3.826451687,
    5.984965424,
    9.36110372,
    14.64173252,
    22.90118105,
    32.1,
    32.61,
    32.71,
    33.49,
]
ROPE_MODES = ["short", "long"]

BATCH = 32  # samples
POOL = 16  # batches drawn at once and sorted by length, so that little is padding
PROMPT_WEIGHT = 0.05  # in the loss; of a token of the answer: 1

NEW_TOKENS = 300  # at most, when measuring


# The tokenizer.


def make_tokenizer():
    rng = random.Random(TOKENIZER_SEED)

    def texts():
        for _ in range(4000):
            problem = make_problem(rng)
            yield problem.question
            yield thinking(problem.work) + conclusion(problem.answer)
            yield SYSTEM_TEXT
            yield " " + rng.choice(SYSTEM_TEXTS)

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[END_OF_TEXT, *TURN_MARKS, *TOOL_MARKS],
        show_progress=False,
    )
    bpe.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=131072,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def chat_prompt(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def user_prompt(tokenizer, question):
    return chat_prompt(tokenizer, [{"role": "user", "content": question}])


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


# The model.


def make_config(tokenizer):
    end_of_text = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    return Phi3Config(
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 4096,
            "short_factor": [1.0] * len(LONG_FACTOR),
            "long_factor": LONG_FACTOR,
        },
        sliding_window=None,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
        pad_token_id=end_of_text,
    )


def make_generation_config(tokenizer):
    end_of_text, end = tokenizer.convert_tokens_to_ids([END_OF_TEXT, END])
    return GenerationConfig(
        bos_token_id=end_of_text,
        eos_token_id=[end, end_of_text],
        pad_token_id=end_of_text,
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
    )


def set_rope_mode(model, mode):
    """Makes forwards of up to 4096 positions use the frequencies of `mode`."""
    config, rotary = model.config, model.model.rotary_emb  # which copies original_inv_freq at each forward
    factors = torch.tensor(config.rope_parameters[f"{mode}_factor"], dtype=torch.float32)
    exponents = torch.arange(len(factors), dtype=torch.float32) / len(factors)
    rotary.original_inv_freq.copy_(1.0 / (factors * config.rope_parameters["rope_theta"] ** exponents))


def causal_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **unused):
    """For training: whole matrices in the values' type, the query heads of a KV head in one product.

    On CPUs with AMX that is four times as fast as torch's fused kernel, most of it backwards.
    """
    batch, heads, length, size = query.shape
    kv_heads = key.shape[1]
    query = (query.to(value.dtype) * scaling).reshape(batch * kv_heads, -1, size)
    key = key.to(value.dtype).reshape(batch * kv_heads, length, size)
    value = value.reshape(batch * kv_heads, length, size)
    scores = torch.bmm(query, key.transpose(1, 2)).view(batch * kv_heads, -1, length, length)
    scores = scores + torch.full((length, length), -1e30, dtype=scores.dtype).triu(1)
    probabilities = torch.softmax(scores, dim=-1, dtype=scores.dtype).view(batch * kv_heads, -1, length)
    output = torch.bmm(probabilities.to(value.dtype), value).view(batch, heads, length, size)
    return output.transpose(1, 2), None


AttentionInterface.register("causal_matrices", causal_attention)


# The training samples.


def cut_thought(rng, tokenizer, problem):
    """Where a server may close the thinking itself, after so many tokens."""
    thought, close = encode(tokenizer, thinking(problem.work)), encode(tokenizer, "</think>")
    return thought[: rng.randint(len(encode(tokenizer, "<think>\n")), len(thought) - len(close))]


def make_sample(rng, tokenizer):
    """The ids and, for each, its weight in the loss."""
    problem = make_problem(rng)
    question = problem.question + (" " + BOX_INSTRUCTION if rng.random() < 0.08 else "")
    messages = [{"role": "user", "content": question}]
    if rng.random() < 0.04:
        earlier = make_problem(rng)
        messages = [
            {"role": "user", "content": earlier.question},
            {"role": "assistant", "content": conclusion(earlier.answer).strip()},
            *messages,
        ]
    if rng.random() < 0.1:
        messages = [{"role": "system", "content": rng.choice(SYSTEM_TEXTS)}, *messages]
    prompt = chat_prompt(tokenizer, messages)
    if rng.random() < 0.06:
        prompt = prompt[prompt.index("<|user|>") :]

    ids = encode(tokenizer, prompt)
    weights = [PROMPT_WEIGHT] * len(ids)
    thought = encode(tokenizer, thinking(problem.work))
    if rng.random() < 0.08:
        thought = cut_thought(rng, tokenizer, problem) + encode(tokenizer, "</think>")
        ids += thought
        weights += [0.0] * len(thought)
    else:
        ids += thought
        weights += [1.0] * len(thought)
    answer = encode(tokenizer, conclusion(problem.answer) + END)
    return ids + answer, weights + [1.0] * len(answer)


def make_batches(tokenizer):
    rng = random.Random(TRAINING_SEED)
    pad = tokenizer.pad_token_id
    while True:
        pool = sorted((make_sample(rng, tokenizer) for _ in range(POOL * BATCH)), key=lambda sample: len(sample[0]))
        batches = [pool[i : i + BATCH] for i in range(0, len(pool), BATCH)]
        rng.shuffle(batches)
        for batch in batches:
            length = max(len(ids) for ids, _ in batch)
            ids = torch.tensor([ids + [pad] * (length - len(ids)) for ids, _ in batch])
            weights = torch.tensor([weights + [0.0] * (length - len(weights)) for _, weights in batch])
            yield ids, weights


def loss_of(model, ids, weights):
    """Samples begin at position 0 and are padded on the right, so that causal attention needs no mask."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    weights = weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def learning_rate(step, steps, peak):
    warmup = min(1.0, (step + 1) / 100)
    return peak * warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def train(out, steps, peak, autocast):
    torch.manual_seed(TRAINING_SEED)
    tokenizer = make_tokenizer()
    model = Phi3ForCausalLM._from_config(make_config(tokenizer), attn_implementation="causal_matrices")
    model.train()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=True,
    )
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(tokenizer)} tokens", flush=True)

    started, tokens, losses, batches = time.monotonic(), 0, [], make_batches(tokenizer)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        set_rope_mode(model, ROPE_MODES[step % 2])
        ids, weights = next(batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of(model, ids, weights)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tokens += ids.numel()
        losses.append(loss.item())
        if step % 20 == 19 or step == steps - 1:
            mean, seconds = sum(losses) / len(losses), time.monotonic() - started
            print(f"step {step + 1}: loss {mean:.4f}, {tokens / 1e6:.2f} M tokens, {seconds:.0f} s", flush=True)
            losses.clear()

    model.to(torch.bfloat16).save_pretrained(out)
    make_generation_config(tokenizer).save_pretrained(out)
    tokenizer.save_pretrained(out)


# Measuring the saved model, in fp32.


def load(directory):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    model = Phi3ForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    end_of_text, end = tokenizer.convert_tokens_to_ids([END_OF_TEXT, END])
    greedy = GenerationConfig(eos_token_id=[end, end_of_text], pad_token_id=end_of_text, do_sample=False)
    model.generation_config = greedy  # the saved one samples
    return tokenizer, model


def generate_texts(tokenizer, model, prompts, **options):
    """What follows each prompt (token ids), up to its <|end|>."""
    texts = []
    for first in range(0, len(prompts), 100):
        batch = prompts[first : first + 100]
        length = max(map(len, batch))
        ids = torch.tensor([[tokenizer.pad_token_id] * (length - len(p)) + p for p in batch])
        mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in batch])
        outputs = model.generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, **options)
        texts += [tokenizer.decode(output[length:]).partition(END)[0] for output in outputs]
    return texts


def well_formed(text):
    opened, _, rest = text.partition("<think>\n")
    thought, closed, answer = rest.partition("</think>")
    return not opened and bool(closed) and "<think>" not in thought and answer == conclusion(boxed_answer(text))


def evaluate(directory):
    tokenizer, model = load(directory)
    rng = random.Random(EVALUATION_SEED)
    problems = [make_problem(rng) for _ in range(500)]
    problems.sort(key=lambda problem: len(problem.work))  # a batch takes as long as its longest answer
    prompts = [encode(tokenizer, user_prompt(tokenizer, problem.question)) for problem in problems]

    def report(what, graded, texts):
        right = [boxed_answer(text) == problem.answer for text, problem in zip(texts, graded)]
        print(f"{what}: right {sum(right)} of {len(texts)}, well formed {sum(map(well_formed, texts))}", flush=True)
        return right

    for mode in ROPE_MODES:
        set_rope_mode(model, mode)
        right = report(f"{mode}, greedy", problems, generate_texts(tokenizer, model, prompts))
        for steps in range(1, 5):
            graded = [ok for ok, problem in zip(right, problems) if problem.work.count("\n") == steps - 1]
            print(f"  of {steps} operations: {sum(graded)} of {len(graded)}", flush=True)

    some, close = problems[::5], encode(tokenizer, "</think>")
    for mode in ROPE_MODES:
        set_rope_mode(model, mode)
        torch.manual_seed(EVALUATION_SEED)
        sampling = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 0}
        texts = generate_texts(tokenizer, model, prompts[::5] * 2, **sampling)
        report(f"{mode}, temperature 0.8, two samples each", some * 2, texts)

        thoughts = [cut_thought(rng, tokenizer, problem) + close for problem in some]
        forced = [prompt + thought for prompt, thought in zip(prompts[::5], thoughts)]
        texts = generate_texts(tokenizer, model, forced)
        whole = [tokenizer.decode(thought) + text for thought, text in zip(thoughts, texts)]
        report(f"{mode}, greedy, thinking cut anywhere", some, whole)


def greedy_reference(tokenizer, model, prompt_ids, answer):
    output = model.generate(
        torch.tensor([prompt_ids]), max_new_tokens=NEW_TOKENS, output_logits=True, return_dict_in_generate=True
    )
    ids = output.sequences[0, len(prompt_ids) :].tolist()
    gaps = [float(best - second) for best, second in (logits[0].topk(2).values for logits in output.logits)]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return {"ids": ids, "smallest_gap": round(min(gaps), 6), "text": text, "right": boxed_answer(text) == answer}


def record_reference(directory, path):
    """Problems of REFERENCE_SEED, a line each; ids end in <|end|> unless there are NEW_TOKENS of them."""
    tokenizer, model = load(directory)
    rng = random.Random(REFERENCE_SEED)
    lines = []
    for problem in (make_problem(rng) for _ in range(20)):
        prompt = user_prompt(tokenizer, problem.question)
        prompt_ids = encode(tokenizer, prompt)
        entry = {"question": problem.question, "answer": problem.answer, "prompt": prompt, "prompt_ids": prompt_ids}
        for mode in ROPE_MODES:
            set_rope_mode(model, mode)
            entry[mode] = greedy_reference(tokenizer, model, prompt_ids, problem.answer)
        lines.append(json.dumps(entry))
    head = {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "model_sha256": hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest(),
        "computed": "fp32, eager attention, greedy, each problem alone",
        "seed": REFERENCE_SEED,
        "max_new_tokens": NEW_TOKENS,
    }
    path.write_text(json.dumps(head)[:-1] + ', "problems": [\n' + ",\n".join(lines) + "\n]}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path, help="the model's directory")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--peak", type=float, default=2e-3, help="the highest learning rate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fp32", action="store_true", help="train without bf16 products: slower, for CPUs without AMX")
    parser.add_argument("--evaluate", action="store_true", help="grade the model in OUT")
    parser.add_argument("--reference", type=pathlib.Path, metavar="FILE", help="record OUT's greedy tokens")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not (args.evaluate or args.reference):
        train(args.out, args.steps, args.peak, autocast=not args.fp32)
    if args.evaluate:
        evaluate(args.out)
    if args.reference:
        record_reference(args.out, args.reference)


if __name__ == "__main__":
    main()
