"""Requests that are far too large, or no requests at all: each is answered at once with what is wrong with it, and
the coordinator serves on."""

import subprocess
import time

import grpc
import pytest

import tiny_gguf
from cluster import PHALANX

SECONDS = 5  # far above what a refusal takes


@pytest.fixture(scope="module")
def cluster(make_cluster, random_model):
    cluster = make_cluster(workers=1, coordinator_flags=["--log-level", "debug"])
    cluster.load(random_model, "--name", "random", "--context", "4096")
    return cluster


def varint(number):
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def field(number, body):
    return varint(number << 3 | 2) + varint(len(body)) + body


def send(cluster, body):
    """Raw bytes of a GenerateRequest; the code and the details of the answer, None where it was served."""
    call = cluster.client.channel.unary_stream(
        "/phalanx.v1.Inference/Generate", request_serializer=lambda body: body, response_deserializer=lambda body: body)
    began = time.monotonic()
    try:
        list(call(body, timeout=SECONDS))
        return None, ""
    except grpc.RpcError as error:
        print(f"{error.code().name} after {(time.monotonic() - began) * 1e3:.1f} ms: {error.details()}")
        return error.code().name, error.details()


TEXT = field(3, b"Hi")
LARGE = {
    "10 MB of stop strings": (TEXT + field(6, field(6, b"x" * 1000) * 10000), "sampling.stop has 10000 strings"),
    "one stop string of 10 MB": (TEXT + field(6, field(6, b"x" * 10_000_000)), "sampling.stop[0] has 10000000 bytes"),
    "a million stop strings": (TEXT + field(6, field(6, b"x") * 1_000_000), "sampling.stop has 1000000 strings"),
    "8 million tokens, one of them wrong": (
        field(4, field(1, b"\x05" * 8_000_000 + varint(tiny_gguf.VOCAB_SIZE))), "8000001 tokens, more than the context"),
    "30 MB of text": (field(3, b"x" * 30_000_000), "30000000 bytes, more than the context"),
    "30 MB of chat": (field(2, field(1, field(1, b"user") + field(2, b"x" * 30_000_000))), "more than the context"),
    "a million calls of tools": (
        field(2, field(1, field(1, b"assistant") + field(4, b"") * 1_000_000)), "1000000 tool calls"),
    "30 MB of a name": (field(2, field(1, field(1, b"user") + field(6, b"x" * 30_000_000))), "more than the context"),
    "a million messages": (field(2, field(1, field(1, b"user")) * 1_000_000), "1000000 messages"),
    "30 MB of a request id": (TEXT + field(5, b"x" * 30_000_000), "request_id has 30000000 bytes"),
    "n of a thousand million": (TEXT + field(6, b"\x70" + varint(10**9)), "sampling.n is 1000000000"),
    "a NaN": (TEXT + field(6, b"\x0d\x00\x00\xc0\x7f"), "sampling.temperature is nan"),
}


@pytest.mark.parametrize("name", LARGE)
def test_large(cluster, name):
    body, named = LARGE[name]
    code, details = send(cluster, body)
    assert code == "INVALID_ARGUMENT" and named in details and len(details) < 500
    assert cluster.client.generate(text="x", sampling={"max_tokens": 2}).code.name == "OK"


def test_chats_of_many_empty_messages_do_not_hold_up_others(cluster):
    call = cluster.client.channel.unary_stream(
        "/phalanx.v1.Inference/Generate", request_serializer=lambda body: body, response_deserializer=lambda body: body)
    body = field(2, field(1, field(1, b"user")) * 16384)
    large = [call(body, timeout=60) for _ in range(32)]
    chat = {"messages": [{"role": "user", "content": "x"}]}
    assert cluster.client.generate(chat=chat, sampling={"max_tokens": 2}).code.name == "OK"
    assert any(not one.done() for one in large)
    assert {one.code().name for one in large} == {"INVALID_ARGUMENT"}


def test_larger_than_a_message_may_be(cluster):
    code, details = send(cluster, field(3, b"x" * (33 << 20)))
    assert code == "RESOURCE_EXHAUSTED" and str(32 << 20) in details
    assert cluster.client.generate(text="x", sampling={"max_tokens": 2}).code.name == "OK"


@pytest.mark.parametrize("request_, named", [
    ({"sampling": {"min_p": 1.5}}, "sampling.min_p"),
    ({"sampling": {"min_p": "NaN"}}, "sampling.min_p"),
    ({"sampling": {"repetition_penalty": 0}}, "sampling.repetition_penalty"),
    ({"sampling": {"repetition_penalty": "Infinity"}}, "sampling.repetition_penalty"),
    ({"sampling": {"presence_penalty": 2.5}}, "sampling.presence_penalty"),
    ({"sampling": {"frequency_penalty": -2.5}}, "sampling.frequency_penalty"),
    ({"sampling": {"logit_bias": {tiny_gguf.VOCAB_SIZE: 1}}}, "sampling.logit_bias"),
    ({"sampling": {"logit_bias": {5: 101}}}, "sampling.logit_bias[5]"),
    ({"sampling": {"logit_bias": {5: "NaN"}}}, "sampling.logit_bias[5]"),
    ({"sampling": {"n": 0}}, "sampling.n"),
    ({"sampling": {"n": 129}}, "sampling.n"),
    ({"sampling": {"min_tokens": -1}}, "sampling.min_tokens"),
    ({"sampling": {"min_tokens": 5, "max_tokens": 4}}, "sampling.min_tokens"),
    ({"sampling": {"max_reasoning_tokens": -1}}, "sampling.max_reasoning_tokens"),
    ({"request_id": "a\nb"}, "request_id"),
    ({"text": None, "chat": {"system_prompt": 9, "messages": [{"role": "user", "content": "x"}]}},
     "chat.system_prompt"),
    ({"text": None, "chat": {"tools": ["{"], "messages": [{"role": "user", "content": "x"}]}}, "chat.tools[0]"),
    ({"text": None, "chat": {"template_kwargs": "[1]", "messages": [{"role": "user", "content": "x"}]}},
     "chat.template_kwargs"),
])
def test_bad_field(cluster, request_, named):
    answer = cluster.client.generate(timeout=SECONDS, **{"text": "Hi", **request_})
    assert not answer.order and answer.code.name == "INVALID_ARGUMENT"
    assert named in answer.details and "\n" not in answer.details


def test_text_that_is_not_utf8(cluster):
    """Told with its field, once in the log, and nothing of it forges a line there."""
    log = cluster.coordinator.log
    before = log.read_text().count("invalid UTF-8")
    for body, named in [
        (field(3, b"ab\xc3\x28"), "phalanx.v1.GenerateRequest.text"),
        (field(2, field(1, field(1, b"user") + field(2, b"\xff"))), "phalanx.v1.ChatMessage.content"),
        (TEXT + field(6, field(6, b"\xed\xa0\x80")), "phalanx.v1.SamplingParams.stop"),
    ]:
        code, details = send(cluster, body)
        assert code == "INVALID_ARGUMENT" and details == f"{named} is not UTF-8"
    assert log.read_text().count("invalid UTF-8") == before + 3
    lines = [line for line in log.read_text().splitlines() if "invalid UTF-8" in line]
    assert all(" W coordinator protobuf: " in line for line in lines), lines
    unary = lambda method, body: cluster.client.channel.unary_unary(
        f"/phalanx.v1.Inference/{method}", request_serializer=lambda body: body)(body, timeout=SECONDS)
    with pytest.raises(grpc.RpcError) as error:
        unary("Tokenize", field(3, b"\xff"))
    assert error.value.code().name == "INVALID_ARGUMENT"
    assert error.value.details() == "phalanx.v1.TokenizeRequest.text is not UTF-8"
    # Methods that gRPC parses itself fail there.
    with pytest.raises(grpc.RpcError):
        unary("GetModel", field(1, b"\xff"))
    assert cluster.client.generate(text="x", sampling={"max_tokens": 2}).code.name == "OK"


def test_request_ids_do_not_forge_lines_of_the_log(cluster):
    answer = cluster.client.generate(text="Hi", request_id="forged\n2026-01-01T00:00:00.000Z E coordinator all is lost")
    assert answer.code.name == "INVALID_ARGUMENT"
    assert "\n2026-01-01T00:00:00.000Z E" not in cluster.coordinator.log.read_text()


def test_client_refuses_input_that_is_not_utf8(cluster):
    for where in (["chat", b"ab\xff"], ["chat", "Hi", "--system", b"\xc0\x80"], ["chat", "Hi", "--stop", b"\xed\xa0\x80"]):
        result = subprocess.run([PHALANX, "--server", cluster.address, *where], capture_output=True, timeout=SECONDS)
        assert result.returncode == 1 and b"not UTF-8" in result.stderr and result.stderr.count(b"\n") == 1
