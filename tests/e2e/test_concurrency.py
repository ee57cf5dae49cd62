"""Many streams at once: the same tokens as alone, and everything given back."""

import random

import pytest

from reflection_client import Client, wait_for
from tiny_gguf import SPECIAL, VOCAB_SIZE

STREAMS = 32


@pytest.fixture(scope="module")
def cluster(make_cluster, random_model):
    cluster = make_cluster(workers=2)
    cluster.load(random_model, "--tp", "2")
    return cluster


def requests():
    """Greedy and sampled, short and long, some with a common beginning."""
    draw = random.Random(17)
    shared = [draw.randrange(len(SPECIAL), VOCAB_SIZE) for _ in range(300)]
    result = []
    for i in range(STREAMS):
        prompt = shared[:draw.choice([0, 40, 300])] + [
            draw.randrange(len(SPECIAL), VOCAB_SIZE) for _ in range(draw.choice([1, 5, 33, 700]))]
        sampling = {"max_tokens": draw.choice([1, 10, 60, 150]), "ignore_eos": True}
        sampling |= draw.choice([{"temperature": 0}, {"temperature": 1, "seed": i},
                                 {"temperature": 0.8, "top_p": 0.9, "seed": i},
                                 {"temperature": 1.3, "top_k": 20, "seed": i}])
        result.append({"tokens": {"ids": prompt}, "sampling": sampling, "logprobs": i % 3})
    return result


def content(answer):
    assert answer.code.name == "OK", answer.details
    return answer.ids, answer.text, [str(p) for p in answer.logprobs], answer.reason


def test_together_as_alone(cluster):
    client = cluster.client
    alone = [content(client.generate(**request)) for request in requests()]
    streams = [client.stream(**request) for request in requests()]
    together = [content(stream.result()) for stream in streams]
    for i, (one, other) in enumerate(zip(alone, together)):
        assert one == other, f"request {i} says something else in company"
    cluster.wait_idle()


def test_cancelled_streams_do_not_disturb_the_others(cluster):
    client = cluster.client
    alone = [content(client.generate(**request)) for request in requests()[::2]]
    endless = {"text": "On and on", "sampling": {"temperature": 1, "max_tokens": 60000, "ignore_eos": True}}
    streams = []
    for request in requests()[::2]:
        streams += [client.stream(**request), client.stream(**endless)]
    for stream in streams[1::2]:
        stream.read_tokens(1)
    assert cluster.group().kv_blocks_total > 0
    for stream in streams[1::2]:
        stream.cancel()
    assert [content(stream.result()) for stream in streams[::2]] == alone
    for stream in streams[1::2]:
        assert stream.result().code.name == "CANCELLED"
    cluster.wait_idle()


def test_status_counts_what_runs(cluster):
    stream = cluster.client.stream(
        text="On and on", sampling={"temperature": 1, "max_tokens": 60000, "ignore_eos": True})
    stream.read_tokens(100)
    before = cluster.group().generated_tokens

    def counted():
        group = cluster.group()
        return group.running == 1 and group.kv_blocks_used > 0 and group.generated_tokens > before
    wait_for(counted, 10, lambda: f"running, used blocks and tokens in {cluster.group()}")
    stream.cancel()
    cluster.wait_idle()


def test_deadline_frees_what_it_held(cluster):
    stream = cluster.client.stream(
        timeout=1.5, text="On and on", sampling={"temperature": 1, "max_tokens": 60000, "ignore_eos": True})
    answer = stream.result()
    assert answer.code.name == "DEADLINE_EXCEEDED"
    assert answer.ids
    cluster.wait_idle()


def test_a_client_that_vanishes_frees_what_it_held(cluster):
    other = Client(cluster.address)
    for _ in range(4):
        other.stream(text="On and on", sampling={"max_tokens": 60000, "ignore_eos": True}).read_tokens(5)
    other.close()
    cluster.wait_idle()


def test_slow_reader_does_not_stop_the_others(cluster):
    """One stream is opened and not read; another one goes on to its end."""
    slow = cluster.client.stream(text="On and on", logprobs=20,
                                 sampling={"temperature": 1, "max_tokens": 20000, "ignore_eos": True})
    slow.read_tokens(1)
    for request in requests()[:4]:
        content(cluster.client.generate(**request))
    slow.cancel()
    cluster.wait_idle()
