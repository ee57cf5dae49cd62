"""Requests that cannot be served: the code, and the name of what is wrong."""

import os
import socket

import grpc
import pytest

import tiny_gguf

SECONDS = 5  # for a refusal


@pytest.fixture(scope="module")
def cluster(make_cluster, random_model):
    cluster = make_cluster(workers=1)
    cluster.load(random_model, "--name", "random", "--context", "4096")
    return cluster


def refused(client, **request):
    answer = client.generate(timeout=SECONDS, **{"text": "Hi", **request})
    assert not answer.order, f"accepted: {answer.order}"
    return answer.code.name, answer.details


@pytest.mark.parametrize("request_, field", [
    ({"text": None}, "prompt"),
    ({"text": ""}, "text"),
    ({"text": None, "chat": {}}, "messages"),
    ({"text": None, "chat": {"messages": [{"role": "robot", "content": "x"}]}}, "role"),
    ({"text": None, "chat": {"messages": [{"content": "x"}]}}, "role"),
    ({"text": None, "tokens": {}}, "tokens"),
    ({"text": None, "tokens": {"ids": [5, -1]}}, "tokens"),
    ({"text": None, "tokens": {"ids": [tiny_gguf.VOCAB_SIZE]}}, "tokens"),
    ({"sampling": {"temperature": -0.5}}, "temperature"),
    ({"sampling": {"temperature": "NaN"}}, "temperature"),
    ({"sampling": {"temperature": "Infinity"}}, "temperature"),
    ({"sampling": {"top_k": -1}}, "top_k"),
    ({"sampling": {"top_p": 0}}, "top_p"),
    ({"sampling": {"top_p": 1.5}}, "top_p"),
    ({"sampling": {"top_p": "NaN"}}, "top_p"),
    ({"sampling": {"max_tokens": -1}}, "max_tokens"),
    ({"sampling": {"max_tokens": 4096}}, "max_tokens"),
    ({"sampling": {"max_tokens": 2**31 - 1}}, "max_tokens"),
    ({"sampling": {"stop": ["x"] * 17}}, "stop"),
    ({"sampling": {"stop": ["x" * 1025]}}, "stop"),
    ({"sampling": {"stop": ["é" * 513]}}, "stop"),
    ({"sampling": {"stop": [""]}}, "stop"),
    ({"sampling": {"stop_token_ids": [-1]}}, "stop_token_ids"),
    ({"sampling": {"stop_token_ids": [tiny_gguf.VOCAB_SIZE]}}, "stop_token_ids"),
    ({"logprobs": -1}, "logprobs"),
    ({"logprobs": 21}, "logprobs"),
    ({"prompt_logprobs": -1}, "prompt_logprobs"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"text": "x" * 4097}, "4096"),
    ({"text": None, "tokens": {"ids": [5] * 4097}}, "4096"),
    ({"text": None, "chat": {"messages": [{"role": "user", "content": "word " * 100000}]}}, "4096"),
])
def test_bad_field(cluster, request_, field):
    code, details = refused(cluster.client, **request_)
    assert code == "INVALID_ARGUMENT"
    assert field in details and "\n" not in details


def test_unknown_model(cluster):
    code, details = refused(cluster.client, model="gpt-17")
    assert code == "NOT_FOUND" and "gpt-17" in details and "random" in details


def test_limits_themselves_are_allowed(cluster):
    sampling = {"temperature": 0, "top_k": 0, "top_p": 1, "max_tokens": 2, "stop": ["y" * 1024] * 16}
    assert cluster.client.generate(text="x", logprobs=20, prompt_logprobs=20, sampling=sampling).code.name == "OK"
    full = cluster.client.generate(tokens={"ids": [5] * 4096}, prompt_logprobs=0, sampling={"max_tokens": 0})
    assert full.code.name == "OK" and sum(len(p.positions) for p in full.prompt_logprobs) == 4095
    last = cluster.client.generate(tokens={"ids": [5] * 4090}, sampling={"ignore_eos": True})
    assert last.code.name == "OK" and len(last.ids) == 6 and last.reason == "LENGTH"


@pytest.mark.parametrize("spec, code, named", [
    ({}, "INVALID_ARGUMENT", "path"),
    ({"path": "/nowhere/model.gguf"}, "NOT_FOUND", "/nowhere/model.gguf"),
    ({"path": "FOLDER"}, "NOT_FOUND", "FOLDER/config.json"),
    ({"path": "EMPTY"}, "INVALID_ARGUMENT", "EMPTY"),
    ({"path": "TEXT"}, "INVALID_ARGUMENT", "TEXT"),
    ({"path": "CUT"}, "INVALID_ARGUMENT", "CUT"),
    ({"path": "PIPE"}, "INVALID_ARGUMENT", "PIPE"),
    ({"path": "OTHER"}, "UNIMPLEMENTED", "mamba"),
    ({"path": "MODEL", "name": "random"}, "ALREADY_EXISTS", "random"),
    ({"path": "MODEL", "name": "b", "tensor_parallel": -1}, "INVALID_ARGUMENT", "tensor_parallel"),
    ({"path": "MODEL", "name": "b", "tensor_parallel": 65}, "INVALID_ARGUMENT", "tensor_parallel"),
    ({"path": "MODEL", "name": "b", "tensor_parallel": 4, "shards": 3}, "INVALID_ARGUMENT", "shards"),
    ({"path": "MODEL", "name": "b", "shards": 65}, "INVALID_ARGUMENT", "shards"),
    ({"path": "MODEL", "name": "b", "shards": -1}, "INVALID_ARGUMENT", "shards"),
    ({"path": "MODEL", "name": "b", "groups": -1}, "INVALID_ARGUMENT", "groups"),
    ({"path": "MODEL", "name": "b", "compute": 7}, "INVALID_ARGUMENT", "compute"),
    ({"path": "MODEL", "name": "b", "context_length": -1}, "INVALID_ARGUMENT", "context_length"),
    ({"path": "MODEL", "name": "b", "context_length": 65537}, "INVALID_ARGUMENT", "context_length"),
])
def test_bad_load(cluster, random_model, tmp_path, spec, code, named):
    paths = {"FOLDER": tmp_path, "EMPTY": tmp_path / "empty.gguf", "TEXT": tmp_path / "text.gguf",
             "CUT": tmp_path / "cut.gguf", "OTHER": tmp_path / "other.gguf", "MODEL": random_model, "PIPE": tmp_path / "pipe"}
    whole = random_model.read_bytes()
    paths["EMPTY"].write_bytes(b"")
    os.mkfifo(paths["PIPE"])
    paths["TEXT"].write_text("This is no model.\n" * 100)
    paths["CUT"].write_bytes(whole[: len(whole) // 2])
    paths["OTHER"].write_bytes(whole.replace(b"llama", b"mamba"))
    if spec.get("path") in paths:
        named = named.replace(spec["path"], str(paths[spec["path"]]))
        spec = {**spec, "path": str(paths[spec["path"]])}
    with pytest.raises(grpc.RpcError) as error:
        cluster.client.load(**spec)
    assert error.value.code().name == code, error.value.details()
    assert named in error.value.details()
    assert [m.spec.name for m in cluster.client.status().models] == ["random"]


def test_unload_of_an_unknown_model(cluster):
    with pytest.raises(grpc.RpcError) as error:
        cluster.client.unload("gpt-17")
    assert error.value.code().name == "NOT_FOUND" and "gpt-17" in error.value.details()


def test_body_that_is_no_message(cluster):
    call = cluster.client.channel.unary_stream(
        "/phalanx.v1.Inference/Generate", request_serializer=lambda body: body, response_deserializer=lambda body: body)
    for body in (b"\xff" * 100, b"\x12\xff\xff\xff\xff\x0f", b"\x1a\x02\xc3\x28", os.urandom(1000)):
        with pytest.raises(grpc.RpcError):
            list(call(body, timeout=SECONDS))
    with pytest.raises(grpc.RpcError) as error:
        list(cluster.client.channel.unary_stream("/phalanx.v1.Inference/Nothing")(b"", timeout=SECONDS))
    assert error.value.code().name == "UNIMPLEMENTED"
    assert cluster.client.generate(text="x", sampling={"max_tokens": 2}).code.name == "OK"


def test_random_bytes_at_every_listener(cluster):
    """Neither client port nor internal ones mind garbage."""
    processes = [cluster.coordinator, *cluster.workers.values()]
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for process in processes:
        ports = process.listeners()
        assert ports, f"{process.name} listens nowhere"
        for port in ports:
            for body in (os.urandom(4096), preface + os.urandom(4096), b"GET / HTTP/1.1\r\n\r\n", b"\0" * 4096, preface):
                with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as connection:
                    try:
                        connection.sendall(body)
                        connection.shutdown(socket.SHUT_WR)
                    except OSError:
                        pass  # the server may hang up first
    assert all(process.running for process in processes)
    assert cluster.client.generate(text="x", sampling={"max_tokens": 2}).code.name == "OK"


@pytest.mark.parametrize("method", ["phalanx.internal.v1.WorkerControl/Join", "phalanx.internal.v1.GroupControl/Serve",
                                    "phalanx.internal.v1.GroupPeer/Follow"])
def test_garbage_on_internal_services(cluster, method):
    """Well-formed HTTP/2 with nonsense messages, on every port: it is refused, and nothing else changes."""
    epoch = cluster.group().epoch
    for process in [cluster.coordinator, *cluster.workers.values()]:
        for port in process.listeners():
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                for messages in ([b""], [b"\xff" * 50], [os.urandom(500)], [b"\x0a\x00"] * 3, [b"\x12\x00"], [b"\x1a\x00"]):
                    call = channel.stream_stream(f"/{method}")
                    try:
                        list(call(iter(messages), timeout=SECONDS))
                    except grpc.RpcError as error:
                        assert error.code().name != "DEADLINE_EXCEEDED", f"{method} waits on after {messages}"
    assert all(p.running for p in [cluster.coordinator, *cluster.workers.values()])
    assert cluster.group().epoch == epoch
    assert [w.id for w in cluster.client.status().workers] == ["w0"]
    assert cluster.client.generate(text="x", sampling={"max_tokens": 2}).code.name == "OK"

