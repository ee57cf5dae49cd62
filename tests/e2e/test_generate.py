"""What one Generate stream says: order, offsets, text, sampling, stops, log-probabilities."""

import math
import random

import pytest

import tiny_gguf
from tiny_gguf import END, SCRIPT, SPECIAL, VOCAB_SIZE, byte_token

CHAT = {"messages": [{"role": "user", "content": "Hello"}]}
SCRIPT_IDS = [byte_token(byte) for byte in SCRIPT.encode()]


@pytest.fixture(scope="module")
def client(make_cluster, script_model, random_model):
    cluster = make_cluster(workers=3)
    cluster.load(script_model, "--name", "script", "--tp", "2")
    cluster.load(random_model, "--name", "random")
    return cluster.client


def detokenise(ids):
    """As the server should: the tokens' bytes, special tokens left out, invalid bytes replaced."""
    merged = [merge.replace(" ", "").replace("\u0120", " ").encode() for merge in tiny_gguf.MERGES]
    table = [b""] * len(SPECIAL) + [bytes([b]) for b in range(256)] + merged
    return b"".join(table[i] for i in ids).decode(errors="replace")


def check_order(answer):
    """started, prompt log-probabilities, chunks, finished; offsets without a gap."""
    assert answer.code.name == "OK", answer.details
    kinds = ["started", "prompt_logprobs", "chunk", "finished"]
    assert answer.order == sorted(answer.order, key=kinds.index), answer.order
    assert answer.order.count("started") == 1 and answer.order.count("finished") == 1
    expected = 0
    for chunk in answer.chunks:
        assert chunk.offset == expected
        expected += len(chunk.token_ids)
    assert answer.finished.usage.completion_tokens == len(answer.ids)
    assert answer.finished.usage.prompt_tokens == answer.started.prompt_tokens
    return answer


def say(client, **request):
    request.setdefault("model", "script")
    request.setdefault("chat", CHAT)
    sampling = {"temperature": 0, **request.pop("sampling", {})}
    return check_order(client.generate(sampling=sampling, **request))


def sample(client, **request):
    """Sampled from the random model."""
    request.setdefault("text", "Once upon a time")
    sampling = {"temperature": 1, "max_tokens": 40, "ignore_eos": True, **request.pop("sampling", {})}
    return check_order(client.generate(model="random", sampling=sampling, **request))


def test_whole_characters_and_end_token(client):
    answer = say(client)
    assert answer.text == SCRIPT
    assert answer.ids[:len(SCRIPT_IDS)] == SCRIPT_IDS
    assert answer.ids[len(SCRIPT_IDS):] in ([], [END])
    assert answer.reason == "STOP" and answer.finished.stop_token_id == END
    assert "\ufffd" not in answer.text
    assert len(answer.chunks) > 3, "not streamed"


def test_started_tells_what_a_resume_needs(client):
    sampling = {"temperature": 0.5, "top_k": 7, "top_p": 0.75, "seed": 99, "max_tokens": 3}
    started = say(client, request_id="my-id", sampling=sampling).started
    assert started.request_id == "my-id" and started.model == "script"
    assert started.resume.seed == 99 and started.resume.fingerprint
    effective = started.resume.sampling
    assert (effective.temperature, effective.top_k, effective.top_p, effective.max_tokens) == (0.5, 7, 0.75, 3)
    drawn = say(client, sampling={"max_tokens": 1}).started
    assert drawn.request_id
    assert drawn.resume.sampling.HasField("max_tokens") and drawn.resume.sampling.HasField("top_p")


def test_special_tokens_of_a_chat_text_and_token_prompt(client):
    rendered = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    ids = [1, *(byte_token(b) for b in b"user\n"), *(byte_token(b) for b in b"H")]
    chat = say(client, sampling={"max_tokens": 1}).started.prompt_tokens
    text = say(client, chat=None, text=rendered, sampling={"max_tokens": 1}).started.prompt_tokens
    # "he" is a merge, "He" is not: a token for each byte and special token.
    assert chat == text == len(rendered) - len("<|im_start|><|im_end|><|im_start|>") + 3
    assert say(client, chat=None, tokens={"ids": ids}, sampling={"max_tokens": 1}).started.prompt_tokens == len(ids)


def test_text_equals_detokenised_ids(client):
    """The random model says invalid UTF-8, too: then the text holds replacement characters, as Python's decoder does."""
    for seed in range(4):
        answer = sample(client, sampling={"seed": seed, "max_tokens": 80})
        assert len(answer.ids) == 80 and answer.reason == "LENGTH"
        assert answer.text == detokenise(answer.ids)


def test_seeds(client):
    def ids(**sampling):
        return sample(client, sampling=sampling).ids

    first = ids(seed=7)
    assert ids(seed=7) == first
    assert ids(seed=8) != first
    assert ids(seed=2**64 - 1) == ids(seed=2**64 - 1)
    assert ids() != ids(), "two drawn seeds said the same 40 tokens"


def test_a_drawn_seed_repeats_the_answer(client):
    answer = sample(client)
    assert sample(client, sampling={"seed": answer.started.resume.seed}).ids == answer.ids


def test_one_token_is_the_same_by_every_filter(client):
    best = say(client, model="random", sampling={"max_tokens": 12, "ignore_eos": True}).ids
    assert sample(client, sampling={"top_k": 1, "max_tokens": 12}, text=None, chat=CHAT).ids == best
    assert sample(client, sampling={"top_p": 1e-6, "max_tokens": 12}, text=None, chat=CHAT).ids == best


def test_top_k_and_top_p_keep_only_the_best(client):
    for sampling in ({"top_k": 3}, {"top_p": 0.3}):
        answer = sample(client, sampling={**sampling, "seed": 3}, logprobs=20)
        for position in answer.logprobs:
            top = [entry.id for entry in position.top]
            rank = top.index(position.token.id)
            if "top_k" in sampling:
                assert rank < 3
            else:  # the mass before the token is less than top_p
                assert sum(math.exp(entry.logprob) for entry in position.top[:rank]) < 0.3 + 1e-5


def test_temperature_flattens(client):
    kinds = [len({sample(client, sampling={"temperature": t, "seed": seed, "max_tokens": 1}).ids[0] for seed in range(64)})
             for t in (0.1, 1.0, 10.0)]
    assert kinds[0] < kinds[1] < kinds[2], kinds


@pytest.mark.parametrize("stop, text", [
    (["é"], "Go: "),
    (["😀!"], "Go: é漢"),
    (["zzz", "o: é"], "G"),
    (["G"], ""),
    (["漢😁", "😀?", "!"], SCRIPT[:-1]),
    (["é漢", ": é漢😀"], "Go: "),
])
def test_stop_strings(client, stop, text):
    answer = say(client, sampling={"stop": stop})
    assert answer.text == text
    assert answer.reason == "STOP" and answer.finished.stop in stop
    assert SCRIPT == text + answer.finished.stop + SCRIPT[len(text + answer.finished.stop):]


def test_a_stop_string_that_only_begins_is_said(client):
    answer = say(client, sampling={"stop": ["!?", "😀!x"]})
    assert answer.text == SCRIPT and answer.finished.stop_token_id == END


def test_stop_string_over_the_length_limit(client):
    answer = say(client, sampling={"stop": ["!x"], "max_tokens": len(SCRIPT_IDS)})
    assert answer.text == SCRIPT and answer.reason == "LENGTH"


def test_stop_token_ids(client):
    colon = byte_token(ord(":"))
    answer = say(client, sampling={"stop_token_ids": [byte_token(ord("z")), colon]})
    assert answer.reason == "STOP" and answer.finished.stop_token_id == colon
    assert answer.text in ("Go", "Go:") and answer.ids[:2] == SCRIPT_IDS[:2]


def test_ignore_eos(client):
    count = 2 * len(SCRIPT_IDS) + 2
    answer = say(client, sampling={"ignore_eos": True, "max_tokens": count})
    assert answer.ids == (SCRIPT_IDS + [END]) * 2
    assert answer.reason == "LENGTH"
    asked = say(client, sampling={"ignore_eos": True, "stop_token_ids": [END], "max_tokens": count})
    assert asked.reason == "STOP" and asked.finished.stop_token_id == END


@pytest.mark.parametrize("count", [0, 1, 6, 7])
def test_max_tokens(client, count):
    """6 tokens end inside a character: no half of it may be said as if it were whole."""
    answer = say(client, sampling={"max_tokens": count})
    assert answer.ids == SCRIPT_IDS[:count]
    assert answer.reason == "LENGTH"
    assert answer.text.rstrip("\ufffd") == SCRIPT.encode()[:count].decode(errors="ignore")


def test_logprobs(client):
    answer = sample(client, logprobs=5, sampling={"seed": 11})
    assert len(answer.logprobs) == len(answer.ids)
    for token, position in zip(answer.ids, answer.logprobs):
        assert position.token.id == token and position.token.logprob <= 0
        top = [entry.logprob for entry in position.top]
        assert len(top) == 5 and top == sorted(top, reverse=True)
        assert len({entry.id for entry in position.top}) == 5
        for entry in position.top:
            assert entry.id != token or entry.logprob == position.token.logprob
    greedy = sample(client, logprobs=1, sampling={"temperature": 0})
    assert all(p.token == p.top[0] for p in greedy.logprobs)
    assert all(not p.top for p in sample(client, logprobs=0).logprobs)
    assert not sample(client).logprobs


def test_logprobs_are_a_distribution(client):
    """The best 20 of 263 never sum to more than one, and the raw distribution ignores temperature and top_k."""
    plain = sample(client, logprobs=20, sampling={"temperature": 0, "max_tokens": 8})
    for position in plain.logprobs:
        assert 0 < sum(math.exp(entry.logprob) for entry in position.top) < 1 + 1e-5
    bent = sample(client, logprobs=20, sampling={"temperature": 3, "top_k": 1, "max_tokens": 8})
    assert bent.ids == plain.ids and bent.logprobs == plain.logprobs


def test_prompt_logprobs_are_those_of_generation(client):
    """Reading prompt + answer as a prompt gives the numbers that generating it gave: one arithmetic."""
    prompt = list(b"Once upon a time")
    prompt = [byte_token(b) for b in prompt]
    answer = sample(client, text=None, tokens={"ids": prompt}, logprobs=3, sampling={"seed": 2})
    again = sample(client, text=None, tokens={"ids": prompt + answer.ids}, prompt_logprobs=3,
                   sampling={"max_tokens": 0})
    positions = [p for part in again.prompt_logprobs for p in part.positions]
    assert again.prompt_logprobs[0].first_position == 1
    assert [p.token.id for p in positions] == (prompt + answer.ids)[1:]
    assert positions[len(prompt) - 1:] == answer.logprobs


def test_prefix_reuse_does_not_change_the_answer(client):
    """A long prompt twice, and a second that shares only its beginning."""
    draw = random.Random(3)
    prompt = [draw.randrange(len(SPECIAL), VOCAB_SIZE) for _ in range(1500)]
    first = sample(client, text=None, tokens={"ids": prompt}, sampling={"seed": 1})
    assert sample(client, text=None, tokens={"ids": prompt}, sampling={"seed": 1}).ids == first.ids
    other = prompt[:1000] + prompt[:200]
    cold = sample(client, text=None, tokens={"ids": other[1:]}, sampling={"seed": 1})
    warm = sample(client, text=None, tokens={"ids": other}, sampling={"seed": 1})
    assert sample(client, text=None, tokens={"ids": other[1:]}, sampling={"seed": 1}).ids == cold.ids
    assert warm.ids != first.ids
    # Asking for the prompt's log-probabilities reads the whole prompt afresh.
    fresh = sample(client, text=None, tokens={"ids": other}, prompt_logprobs=0, sampling={"seed": 1})
    assert fresh.ids == warm.ids


def test_unicode_prompt_survives(client):
    text = "naïve 漢字 👩‍👩‍👧 \u0301 \x00 <|im_end|>"
    assert say(client, chat=None, text=text).text == SCRIPT
