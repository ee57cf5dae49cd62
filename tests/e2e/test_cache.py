"""The prefix cache and preemption: what is computed once is not computed again, and nobody notices but the clock."""

import random

import pytest

from reflection_client import wait_for
from tiny_gguf import SPECIAL, VOCAB_SIZE

KV_BLOCK = 32


def prompt(seed, length):
    draw = random.Random(seed)
    return [draw.randrange(len(SPECIAL), VOCAB_SIZE) for _ in range(length)]


def request(ids, seed=1, max_tokens=20, **fields):
    return {"tokens": {"ids": ids}, "logprobs": 2,
            "sampling": {"temperature": 1, "seed": seed, "max_tokens": max_tokens, "ignore_eos": True}, **fields}


def cached(answer):
    assert answer.code.name == "OK", answer.details
    return answer.finished.usage.cached_prompt_tokens


def content(answer):
    assert answer.code.name == "OK", answer.details
    return answer.ids, [str(p) for p in answer.logprobs], answer.reason


@pytest.fixture(scope="module")
def cluster(make_cluster, random_model):
    cluster = make_cluster(workers=2)
    cluster.load(random_model, "--tp", "2")
    return cluster


def test_the_second_time_from_the_cache(cluster):
    first = cluster.client.generate(**request(prompt(1, 200)))
    second = cluster.client.generate(**request(prompt(1, 200)))
    assert content(second) == content(first)
    assert cached(first) == 0
    # All whole blocks but what holds the prompt's last token.
    assert cached(second) == 199 // KV_BLOCK * KV_BLOCK
    cluster.wait_idle()

    def reported():
        group = cluster.group()
        return group.prefix_hit_tokens >= 192 and group.prefix_query_tokens >= 400 and group.kv_blocks_cached > 0
    wait_for(reported, 10, lambda: f"hits in the status: {cluster.group()}")


def test_the_next_turn_finds_the_answer_of_the_last(cluster):
    ids = prompt(2, 50)
    answer = cluster.client.generate(**request(ids, max_tokens=60))
    longer = ids + answer.ids + prompt(3, 10)
    again = cluster.client.generate(**request(longer))
    assert cached(again) == 109 // KV_BLOCK * KV_BLOCK
    salted = cluster.client.generate(**request(longer, cache_salt="of its own"))
    assert cached(salted) == 0
    assert content(salted) == content(again)


def test_prompt_log_probabilities_run_the_whole_prompt(cluster):
    first = cluster.client.generate(**request(prompt(1, 200), prompt_logprobs=1, cache_salt="a"))
    second = cluster.client.generate(**request(prompt(1, 200), prompt_logprobs=1, cache_salt="a"))
    assert content(first) == content(second)
    assert cached(second) == 0


def test_salts_do_not_share(cluster):
    ids = prompt(4, 100)
    used = [cached(cluster.client.generate(**request(ids, cache_salt=salt))) for salt in ["", "a", "b", "a", "b", ""]]
    assert used == [0, 0, 0, 96, 96, 96]


def test_choices_share_their_prompt(cluster):
    sampling = {"temperature": 1, "seed": 3, "max_tokens": 8, "n": 4, "ignore_eos": True}
    answer = cluster.client.generate(tokens={"ids": prompt(5, 100)}, sampling=sampling, cache_salt="n")
    assert answer.code.name == "OK", answer.details
    assert sorted(f.usage.cached_prompt_tokens for f in answer.finishes.values()) == [0, 96, 96, 96]


def test_too_long_a_salt_is_refused(cluster):
    answer = cluster.client.generate(**request(prompt(1, 5), cache_salt="x" * 257))
    assert answer.code.name == "INVALID_ARGUMENT"
    assert "cache_salt has 257 bytes; at most 256 are allowed" in answer.details


def test_the_resume_header_keeps_priority_and_salt(cluster):
    answer = cluster.client.generate(**request(prompt(1, 5), cache_salt="s", priority=-3))
    assert (answer.started.resume.priority, answer.started.resume.cache_salt) == (-3, "s")


def test_with_few_blocks_all_say_what_they_say_alone(own_cluster, random_model):
    requests = [request(prompt(20 + i, 60), seed=i, max_tokens=900, priority=i % 3) for i in range(6)]
    cluster = own_cluster(workers=1, worker_flags=["--kv-bytes", "1000000"])
    cluster.load(random_model)
    assert cluster.group().kv_blocks_total < 60  # and all together would take 180
    alone = [content(cluster.client.generate(**r)) for r in requests]
    streams = [cluster.client.stream(**r) for r in requests]
    together = [content(stream.result()) for stream in streams]
    for i, (one, other) in enumerate(zip(alone, together)):
        assert one == other, f"request {i} says something else in company"
    # What never fits: no client is told to try again.
    never = cluster.client.generate(**request(prompt(30, 60), max_tokens=5000))
    assert never.code.name == "FAILED_PRECONDITION" and "ask for fewer tokens" in never.details, never.details
    assert "retry-after-ms" not in dict(never.error.trailing_metadata())
    cluster.wait_idle()
    wait_for(lambda: cluster.group().preemptions > 0, 10, lambda: f"preemptions: {cluster.group()}")


def test_guesses_change_nothing(own_cluster, cluster, random_model):
    """A text that repeats itself, on a worker that guesses and on one that does not."""
    plain = own_cluster(workers=1, worker_flags=["--speculate", "off"])
    plain.load(random_model)
    for bias in [{10: 100}, {10: 60, 11: 60}]:
        ask = request(prompt(40, 20), max_tokens=60)
        ask["sampling"]["logit_bias"] = bias
        assert content(cluster.client.generate(**ask)) == content(plain.client.generate(**ask))
    wait_for(lambda: cluster.group().accepted_tokens > 0, 10, lambda: f"right guesses: {cluster.group()}")
    assert cluster.group().drafted_tokens >= cluster.group().accepted_tokens
    plain.wait_idle()
    assert plain.group().drafted_tokens == 0
