"""Processes that die, hang or come back: the clients hear of it, and the cluster mends itself."""

import signal
import time

import pytest

from cluster import FAULT_SECONDS, READY_SECONDS
from reflection_client import wait_for

ENDLESS = {"text": "On and on", "sampling": {"temperature": 1, "max_tokens": 60000, "ignore_eos": True}}
SHORT = {"text": "Hi", "sampling": {"temperature": 0, "max_tokens": 5, "ignore_eos": True}}


@pytest.fixture
def cluster(own_cluster, random_model):
    cluster = own_cluster(workers=2, coordinator_flags=["--heartbeat-timeout", "3"])
    cluster.load(random_model, "--tp", "2")
    return cluster


def ranks(cluster):
    """Worker names by rank."""
    return list(cluster.group().workers)


def works(cluster):
    answer = cluster.client.generate(**SHORT)
    assert answer.code.name == "OK", answer.details
    return answer.ids


@pytest.mark.parametrize("rank", [0, 1], ids=["leader", "follower"])
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_lost_worker(cluster, rank, fault):
    before = works(cluster)
    epoch = cluster.group().epoch
    victim = ranks(cluster)[rank]
    streams = [cluster.client.stream(**ENDLESS).read_tokens(5) for _ in range(3)]
    cluster.workers[victim].signal(fault)
    began = time.monotonic()
    answers = [stream.result() for stream in streams]
    assert time.monotonic() - began < FAULT_SECONDS
    for answer in answers:
        assert answer.code.name == "UNAVAILABLE", answer.details
        assert victim in answer.details, f"{victim} is not named: {answer.details}"

    # One worker is left for two ranks: refused at once, saying what is missing.
    wait_for(lambda: "1 of 2 workers" in cluster.group().detail, FAULT_SECONDS,
             lambda: f"the group waits for a worker: {cluster.group()}")
    refused = cluster.client.generate(timeout=5, **SHORT)
    assert refused.code.name == "UNAVAILABLE"
    assert "1 of 2 workers" in refused.details and victim in refused.details, refused.details
    assert victim in cluster.phalanx("status").stdout
    # Its neighbour may have reported it before its own heartbeat ran out.
    wait_for(lambda: cluster.client.worker_state(cluster.worker(victim)) == "LOST" and cluster.worker(victim).detail,
             FAULT_SECONDS, lambda: f"{victim} is lost: {cluster.worker(victim)}")

    cluster.start_worker("spare")
    cluster.wait_state("READY")
    assert sorted(ranks(cluster)) == sorted({"w0", "w1", "spare"} - {victim})
    assert cluster.group().epoch > epoch
    assert works(cluster) == before
    cluster.wait_idle()


def test_spare_takes_over(own_cluster, random_model):
    cluster = own_cluster(workers=3, coordinator_flags=["--heartbeat-timeout", "3"])
    cluster.load(random_model, "--tp", "2")
    before = works(cluster)
    victim = ranks(cluster)[1]
    stream = cluster.client.stream(**ENDLESS).read_tokens(5)
    cluster.workers[victim].signal(signal.SIGKILL)
    assert stream.result().code.name == "UNAVAILABLE"
    cluster.wait_state("READY", seconds=READY_SECONDS)
    assert victim not in ranks(cluster)
    assert works(cluster) == before


def test_restarted_worker_under_its_old_name(cluster):
    before = works(cluster)
    victim = ranks(cluster)[1]
    cluster.workers[victim].signal(signal.SIGKILL)
    cluster.start_worker(victim)
    wait_for(lambda: cluster.group().epoch > 1 and cluster.client.group_state(cluster.group()) == "READY",
             READY_SECONDS, lambda: f"a new epoch: {cluster.client.status()}")
    assert works(cluster) == before


def test_stopped_worker_that_goes_on(cluster):
    """Its epoch is over by then: it joins again, and nothing of the old one disturbs the new."""
    before = works(cluster)
    epoch = cluster.group().epoch
    victim = ranks(cluster)[1]
    cluster.workers[victim].signal(signal.SIGSTOP)
    wait_for(lambda: cluster.client.group_state(cluster.group()) != "READY", FAULT_SECONDS,
             lambda: f"the group ends: {cluster.group()}")
    cluster.workers[victim].signal(signal.SIGCONT)
    cluster.wait_state("READY")
    assert cluster.group().epoch > epoch
    assert works(cluster) == before


def test_worker_ended_by_sigterm_in_a_stream(cluster):
    stream = cluster.client.stream(**ENDLESS).read_tokens(5)
    victim = ranks(cluster)[1]
    cluster.workers[victim].signal(signal.SIGTERM)
    assert cluster.workers[victim].exit_code() == 0
    answer = stream.result()
    assert answer.code.name == "UNAVAILABLE" and victim in answer.details


def test_killed_coordinator(cluster, random_model):
    """The workers live on and join the next coordinator at that address."""
    before = works(cluster)
    stream = cluster.client.stream(**ENDLESS).read_tokens(5)
    cluster.coordinator.signal(signal.SIGKILL)
    assert stream.result().code.name == "UNAVAILABLE"
    cluster.start_coordinator()
    cluster.wait_workers("IDLE", ["w0", "w1"])
    assert all(worker.running for worker in cluster.workers.values())
    assert not cluster.client.status().models
    cluster.load(random_model, "--tp", "2")
    assert works(cluster) == before


def test_two_workers_of_one_name(cluster):
    """The second is refused; the first and its group go on."""
    epoch = cluster.group().epoch
    pid = cluster.worker("w0").pid
    twin = cluster._start("w0-twin", [*cluster.workers["w0"].popen.args])
    works(cluster)
    wait_for(lambda: not twin.running or "w0" in twin.log.read_text(), 10, "the twin says something")
    assert cluster.worker("w0").pid == pid
    assert cluster.group().epoch == epoch
    works(cluster)


def test_sigterm_drains(own_cluster, random_model):
    """The coordinator takes no new request, ends its streams well, and exits with 0."""
    cluster = own_cluster(workers=1)
    cluster.load(random_model)
    stream = cluster.client.stream(
        text="Hi", sampling={"temperature": 1, "max_tokens": 600, "ignore_eos": True}).read_tokens(1)
    cluster.coordinator.signal(signal.SIGTERM)
    answer = stream.result()
    assert answer.code.name == "OK" and len(answer.ids) == 600
    assert cluster.coordinator.exit_code() == 0


def test_drain_grace_ends(own_cluster, random_model):
    """A stream that outlasts --drain-grace is ended, and the coordinator still exits with 0."""
    cluster = own_cluster(workers=1, coordinator_flags=["--drain-grace", "1"])
    cluster.load(random_model)
    stream = cluster.client.stream(**ENDLESS).read_tokens(1)
    cluster.coordinator.signal(signal.SIGTERM)
    assert stream.result().code.name == "UNAVAILABLE"
    assert cluster.coordinator.exit_code() == 0


def test_sigterm_while_loading(own_cluster, random_model):
    """Worker and coordinator end cleanly at any moment; the cluster's own end checks the exit codes."""
    cluster = own_cluster(workers=2)
    cluster.wait_workers("IDLE", cluster.workers)
    cluster.client.load(path=str(random_model), tensor_parallel=2)
