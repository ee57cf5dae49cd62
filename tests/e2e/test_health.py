"""The standard health service of both servers, and reflection."""

import signal

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from reflection_client import wait_for

SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"


@pytest.fixture
def cluster(own_cluster, random_model):
    cluster = own_cluster(workers=1)
    cluster.load(random_model)
    return cluster


def check(channel, service=""):
    """grpc.health.v1.Health/Check by hand: field 1 of the request is the name, of the response the state."""
    call = channel.unary_unary("/grpc.health.v1.Health/Check")
    return call(b"\x0a" + bytes([len(service)]) + service.encode() if service else b"", timeout=5)


def test_coordinator(cluster):
    channel = cluster.client.channel
    for service in ("", "liveness", "readiness"):
        wait_for(lambda: check(channel, service) == SERVING, 5, f"{service!r} SERVING")
    with pytest.raises(grpc.RpcError) as error:
        check(channel, "nothing")
    assert error.value.code().name == "NOT_FOUND"

    # Draining: still alive, no longer ready.
    stream = cluster.client.stream(text="Hi", sampling={"temperature": 1, "max_tokens": 20000, "ignore_eos": True})
    stream.read_tokens(1)
    cluster.coordinator.signal(signal.SIGTERM)
    wait_for(lambda: check(channel, "readiness") == NOT_SERVING, 5, "readiness NOT_SERVING while draining")
    assert check(channel, "liveness") == SERVING
    late = cluster.client.generate(text="Hi", sampling={"max_tokens": 1})
    assert late.code.name == "UNAVAILABLE" and late.details
    stream.cancel()
    assert cluster.coordinator.exit_code() == 0


def test_worker(cluster):
    (port,) = cluster.workers["w0"].listeners()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert check(channel) == SERVING


def test_reflection_lists_the_services(cluster):
    stub = reflection_pb2_grpc.ServerReflectionStub(cluster.client.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (response,) = stub.ServerReflectionInfo(iter([request]), timeout=5)
    names = {service.name for service in response.list_services_response.service}
    assert {"phalanx.v1.Inference", "phalanx.v1.Cluster"} <= names
    for name in ("phalanx.v1.Inference", "phalanx.v1.Cluster"):
        assert cluster.client.pool.FindServiceByName(name).methods
