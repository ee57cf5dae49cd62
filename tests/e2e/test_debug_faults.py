"""Faults made on demand (--debug-fault): slow and failing steps, logits that are no numbers, damaged weights."""

import hashlib
import shutil

import grpc
import pytest

from cluster import FAULT_SECONDS
from reflection_client import wait_for

SAMPLING = {"temperature": 1, "seed": 7, "max_tokens": 60, "ignore_eos": True}
REQUEST = {"text": "Once", "sampling": SAMPLING}
NOT_SERVING, SERVING = b"\x08\x02", b"\x08\x01"


@pytest.fixture(scope="module")
def alone(make_cluster, random_model):
    """What the request says where nothing is wrong."""
    cluster = make_cluster(workers=1)
    cluster.load(random_model)
    return cluster.client.generate(**REQUEST).ids


def two_ranks(own_cluster, model, *flags):
    cluster = own_cluster(workers=1)
    cluster.start_worker("w1", *flags)
    cluster.load(model, "--tp", "2")
    return cluster


def test_a_slow_step_is_no_fault(own_cluster, random_model, alone):
    """One rank takes longer for a step than any dead peer would go unnoticed: the others wait for it."""
    cluster = two_ranks(own_cluster, random_model, "--debug-fault", "delay@20=5")
    epoch = cluster.group().epoch
    answer = cluster.client.generate(timeout=60, **REQUEST)
    assert answer.code.name == "OK" and answer.ids == alone, answer.details
    assert "step 20 waits 5" in cluster.workers["w1"].log.read_text()
    assert cluster.group().epoch == epoch


def test_a_failing_step_ends_the_group_and_it_is_formed_again(own_cluster, random_model, alone):
    cluster = two_ranks(own_cluster, random_model, "--debug-fault", "error@20")
    epoch = cluster.group().epoch
    answer = cluster.client.generate(timeout=60, **REQUEST)
    assert answer.code.name == "UNAVAILABLE" and "error@20" in answer.details, answer.details
    assert answer.ids == alone[:len(answer.ids)]
    wait_for(lambda: cluster.group().epoch > epoch and cluster.client.group_state(cluster.group()) == "READY",
             FAULT_SECONDS, lambda: f"a new epoch: {cluster.client.status()}")
    assert cluster.client.generate(timeout=60, **REQUEST).ids == alone
    cluster.wait_idle()


def test_nan_fails_its_request_alone(own_cluster, random_model, alone):
    cluster = own_cluster()
    cluster.start_worker("w0", "--debug-fault", "nan@20")
    cluster.load(random_model)
    epoch = cluster.group().epoch
    answer = cluster.client.generate(timeout=60, **REQUEST)
    assert answer.code.name == "INTERNAL" and "NaN" in answer.details, answer.details
    assert answer.ids == alone[:len(answer.ids)] and len(answer.ids) < len(alone)
    assert cluster.client.generate(timeout=60, **REQUEST).ids == alone
    assert cluster.group().epoch == epoch
    cluster.wait_idle()


def test_a_stuck_step_makes_the_worker_unhealthy(own_cluster, random_model, alone):
    cluster = own_cluster()
    cluster.start_worker("w0", "--debug-fault", "delay@20=6", "--stuck-step", "1")
    cluster.load(random_model)
    (port,) = cluster.workers["w0"].listeners()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        def health():
            return channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=5)
        assert health() == SERVING
        stream = cluster.client.stream(timeout=60, **REQUEST)
        wait_for(lambda: health() == NOT_SERVING, FAULT_SECONDS, "the worker says NOT_SERVING")
        assert stream.result().ids == alone
        wait_for(lambda: health() == SERVING, FAULT_SECONDS, "the worker says SERVING again")


def test_damaged_weights_are_refused(own_cluster, random_model, tmp_path, alone):
    model = tmp_path / "model" / "m.gguf"
    model.parent.mkdir()
    shutil.copy(random_model, model)
    sums = model.parent / "SHA256SUMS"
    sums.write_text(f"{hashlib.sha256(model.read_bytes()).hexdigest()}  {model.name}\n")

    good = own_cluster()
    good.start_worker("w0", "--verify-weights")
    good.load(model)
    assert "are what their checksums say" in good.workers["w0"].log.read_text()
    assert good.client.generate(timeout=60, **REQUEST).ids == alone

    def refused(cluster, *parts):
        result = cluster.phalanx("load", model, "--wait", 30, timeout=40)
        assert result.returncode != 0 and all(part in result.stderr for part in parts), result.stderr

    bad = own_cluster()
    bad.start_worker("w0", "--verify-weights", "--debug-fault", "corrupt")
    refused(bad, str(model), "is damaged", "sha256:")

    sums.unlink()
    without = own_cluster()
    without.start_worker("w0", "--verify-weights")
    refused(without, str(model), "has no checksum")
