"""Several models at once, and models that wait for workers."""

import grpc
import pytest

from reflection_client import wait_for
from tiny_gguf import SCRIPT

SHORT = {"temperature": 0, "max_tokens": 20}


@pytest.fixture(scope="module")
def shared(make_cluster):
    return make_cluster(workers=3)


@pytest.fixture
def cluster(shared):
    """The module's cluster, without a model."""
    shared.wait_workers("IDLE", shared.workers)
    yield shared
    shared.unload_all()


def chat(cluster, model):
    return cluster.client.generate(model=model, chat={"messages": [{"role": "user", "content": "Hi"}]}, sampling=SHORT)


def test_two_models(cluster, random_model, script_model):
    cluster.load(random_model, "--name", "a", "--tp", "2")
    cluster.load(script_model, "--name", "b")
    status = cluster.client.status()
    assert {m.spec.name for m in status.models} == {"a", "b"}
    members = {g.model: set(g.workers) for g in status.groups}
    assert len(members["a"]) == 2 and len(members["b"]) == 1 and not members["a"] & members["b"]
    assert len({g.fingerprint for g in status.groups}) == 2
    before = chat(cluster, "a").ids
    assert chat(cluster, "b").text == SCRIPT
    unnamed = chat(cluster, "")
    assert unnamed.code.name == "INVALID_ARGUMENT" and "model" in unnamed.details

    stream = cluster.client.stream(
        model="b", text="Hi", sampling={"temperature": 1, "max_tokens": 60000, "ignore_eos": True}).read_tokens(3)
    cluster.client.unload("b")
    ended = stream.result()
    assert ended.code.name == "UNAVAILABLE" and "b" in ended.details
    assert chat(cluster, "b").code.name == "NOT_FOUND"
    assert chat(cluster, "a").ids == before
    assert chat(cluster, "").ids == before

    free = ({"w0", "w1", "w2"} - members["a"]).pop()
    cluster.wait_workers("IDLE", [free])
    cluster.load(script_model, "--name", "b")
    assert chat(cluster, "b").text == SCRIPT
    for name in ("a", "b"):
        cluster.client.unload(name)
    cluster.wait_workers("IDLE", cluster.workers)
    assert not cluster.client.status().groups


def test_two_groups_of_one_model(cluster, script_model):
    cluster.load(script_model, "--name", "s", "--groups", "2")
    groups = cluster.client.status().groups
    assert len(groups) == 2 and len({g.fingerprint for g in groups}) == 1
    streams = [cluster.client.stream(text="Hi", sampling={"temperature": 0, "max_tokens": 4000, "ignore_eos": True})
               for _ in range(4)]
    assert len({tuple(stream.result().ids) for stream in streams}) == 1
    wait_for(lambda: all(g.generated_tokens for g in cluster.client.status().groups), 10, "both groups worked")


def test_waiting_for_workers(cluster, random_model):
    spec = cluster.client.load(path=str(random_model), tensor_parallel=5)
    assert (spec.name, spec.tensor_parallel, spec.shards, spec.groups) == ("random", 5, 8, 1)
    assert spec.context_length == 65536
    wait_for(lambda: cluster.group().detail, 5, "what is missing")
    assert cluster.client.group_state(cluster.group()) == "WAITING"
    refused = chat(cluster, "random")
    assert refused.code.name == "UNAVAILABLE"
    assert "random" in refused.details and "worker" in refused.details, refused.details
    late = cluster.phalanx("load", random_model, "--name", "other", "--tp", "4", "--wait", "0.5")
    assert late.returncode == 1 and "not ready" in late.stderr
    cluster.client.unload("other")
    for name in ("w3", "w4"):
        cluster.start_worker(name)
    cluster.wait_state("READY")
    assert chat(cluster, "random").code.name == "OK"


def test_a_model_whose_file_is_gone(own_cluster, random_model, tmp_path):
    path = tmp_path / "soon-gone.gguf"
    path.write_bytes(random_model.read_bytes())
    cluster = own_cluster()
    cluster.client.load(path=str(path), name="gone")
    path.unlink()
    cluster.start_worker("w0")
    wait_for(lambda: str(path) in cluster.group().detail, 10, lambda: f"the missing file in {cluster.group()}")
    refused = chat(cluster, "gone")
    assert refused.code.name == "UNAVAILABLE" and str(path) in refused.details, refused.details
    cluster.client.unload("gone")
    with pytest.raises(grpc.RpcError) as error:
        cluster.client.unload("gone")
    assert error.value.code().name == "NOT_FOUND"
    cluster.load(random_model)


def test_queue_full(own_cluster, random_model):
    cluster = own_cluster(workers=1, coordinator_flags=["--max-in-flight", "4"])
    cluster.load(random_model)
    sampling = {"temperature": 1, "max_tokens": 60000, "ignore_eos": True}
    streams = [cluster.client.stream(text="Hi", sampling=sampling).read_tokens(1) for _ in range(4)]
    refused = cluster.client.generate(timeout=5, text="Hi", sampling=sampling)
    assert refused.code.name == "RESOURCE_EXHAUSTED" and refused.details
    streams[0].cancel()
    wait_for(lambda: cluster.client.generate(text="Hi", sampling=SHORT).code.name == "OK", 10, "a free place")
    for stream in streams:
        stream.cancel()
    cluster.wait_idle()


def test_more_requests_than_memory(own_cluster, random_model):
    """Few KV blocks: requests wait for each other, and all are answered as if alone."""
    cluster = own_cluster(workers=1, worker_flags=["--kv-bytes", str(2 << 20)])
    cluster.load(random_model, "--context", "512")
    requests = [{"text": f"Number {i}", "sampling": {"temperature": 0, "max_tokens": 400, "ignore_eos": True}}
                for i in range(16)]
    alone = [cluster.client.generate(**requests[i]).ids for i in (0, 7)]
    answers = [stream.result() for stream in [cluster.client.stream(**request) for request in requests]]
    for answer in answers:
        assert answer.code.name == "OK", answer.details
        assert len(answer.ids) == 400
    assert [answers[0].ids, answers[7].ids] == alone
    cluster.wait_idle()


def test_model_named_at_the_coordinators_start(own_cluster, script_model):
    cluster = own_cluster(workers=2, coordinator_flags=["--model", script_model, "--name", "s", "--tp", "2"])
    cluster.wait_state("READY", "s")
    assert chat(cluster, "s").text == SCRIPT


def test_a_client_that_lags_too_far_is_cut_off(own_cluster, random_model):
    cluster = own_cluster(workers=1, coordinator_flags=["--max-unsent", "16"])
    cluster.load(random_model)
    slow = cluster.client.stream(text="Hi", logprobs=20,
                                 sampling={"temperature": 1, "max_tokens": 60000, "ignore_eos": True})
    slow.read_tokens(1)
    # Read on only when the group counts the tokens and is idle again: its last report may be from before the request.
    wait_for(lambda: cluster.group().generated_tokens > 16, 30, lambda: f"the tokens in {cluster.group()}")
    cluster.wait_idle(30)
    answer = slow.result()
    assert answer.code.name == "RESOURCE_EXHAUSTED" and "max-unsent" in answer.details, answer.details
