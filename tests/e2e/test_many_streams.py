"""Hundreds and thousands of streams at a time: every answer is the one it has alone, whoever is cancelled beside it,
and nothing is kept: KV blocks, memory, descriptors."""

import json
import os
import pathlib
import random
import resource
import signal
import socket
import subprocess
import time

from cluster import PHALANX
from reflection_client import wait_for
from tiny_gguf import SPECIAL, VOCAB_SIZE

SEED = int(os.environ.get("PHALANX_STREAMS_SEED", "1"))
ROUNDS = int(os.environ.get("PHALANX_STREAMS_ROUNDS", "10"))
KEPT = int(os.environ.get("PHALANX_STREAMS_KEPT", "100"))
CANCELLED = int(os.environ.get("PHALANX_STREAMS_CANCELLED", "1"))  # for each that is kept


def requests(draw):
    for i in range(KEPT):
        ids = [draw.randrange(len(SPECIAL), VOCAB_SIZE) for _ in range(draw.choice([1, 8, 40, 200]))]
        yield {"tokens": {"ids": ids}, "sampling": {
            "temperature": draw.choice([0, 1]), "seed": i, "ignore_eos": True, "max_tokens": draw.choice([1, 7, 30, 90])}}


def held(cluster):
    """Of each process: resident MiB that are its own, and open descriptors."""
    result = {}
    for process in (cluster.coordinator, *cluster.workers.values()):
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
        result[process.name] = rss / 1024, len(list(pathlib.Path(f"/proc/{process.pid}/fd").iterdir()))
    return result


def kv_mib(cluster):
    """What the prefix cache holds in each rank's memory, at most: it fills as long as there is room."""
    group = cluster.group()
    return group.kv_blocks_cached * cluster.worker(group.workers[0]).memory_bytes / group.kv_blocks_total / 2**20


def test_two_hundred_streams_half_of_them_cancelled(own_cluster, random_model):
    cluster = own_cluster(workers=2, worker_flags=["--max-sequences", "256"])
    cluster.load(random_model, "--tp", "2")
    draw, client = random.Random(SEED), cluster.client
    kept = list(requests(draw))
    alone = [client.generate(**request).ids for request in kept]
    assert all(alone)

    def round_of_streams():
        streams, dropped = [], []
        for request in kept:
            streams.append(client.stream(**request))
            for _ in range(CANCELLED):
                dropped.append(client.stream(text="x" * draw.randrange(1, 200), sampling={
                    "temperature": 1, "max_tokens": 60000, "ignore_eos": True}))
        draw.shuffle(dropped)
        for stream in dropped:
            if CANCELLED == 1:  # else most wait behind others that never end
                stream.read_tokens(draw.choice([0, 0, 1, 5]))
            stream.cancel()
        for i, stream in enumerate(streams):
            answer = stream.result()
            assert answer.code.name == "OK", f"seed {SEED}: request {i}: {answer.details}"
            assert answer.ids == alone[i], f"seed {SEED}: request {i} says something else in company"
        assert {stream.result().code.name for stream in dropped} == {"CANCELLED"}
        cluster.wait_idle()

    before = None
    for number in range(ROUNDS):
        round_of_streams()
        if number == ROUNDS // 2 - 1:
            before, cached = held(cluster), kv_mib(cluster)
    after, cached = held(cluster), kv_mib(cluster) - cached
    print(f"seed {SEED}: {before} -> {after}, {cached} MiB more of KV")
    for name, (mib, descriptors) in after.items():
        kv = 0 if name == "coordinator" else max(0, cached)
        assert mib < before[name][0] * 1.1 + 8 + kv, f"{name} grows: {before} -> {after}, {kv} MiB of KV"
        assert descriptors <= before[name][1] + 4, f"{name} keeps descriptors: {before} -> {after}"


def test_two_thousand_streams_at_once(own_cluster, random_model, tmp_path):
    """None fails, though their client stands still for longer than a worker might."""
    cluster = own_cluster(coordinator_flags=["--max-unsent", "1024"])
    cluster.start_worker("w0", "--debug-fault", "delay@20=6")  # they are all there by then
    cluster.load(random_model)
    before = held(cluster)
    report = tmp_path / "bench.json"
    bench = subprocess.Popen(
        [PHALANX, "--server", cluster.address, "bench", "--concurrency", "2000", "--requests", "2000", "--input-len",
         "1:40", "--output-len", "1:40", "--ignore-eos", "--json", report], stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: cluster.group().running > 1, 30, "streams run")
        sample = list(requests(random.Random(SEED)))[:20]
        streams = [cluster.client.stream(**request) for request in sample]
        bench.send_signal(signal.SIGSTOP)
        time.sleep(4.5)
        bench.send_signal(signal.SIGCONT)
        answers = [stream.result() for stream in streams]
        assert bench.wait(120) == 0
    finally:
        bench.kill()
        bench.wait(5)
    out = json.loads(report.read_text())
    assert out["requests"] == {"sent": 2000, "finished": 2000, "refused": 0, "failed": 0,
                               "most_in_flight": 2000}, out["errors"]
    for i, (request, answer) in enumerate(zip(sample, answers)):
        assert answer.code.name == "OK", f"seed {SEED}: request {i}: {answer.details}"
        assert answer.ids == cluster.client.generate(**request).ids, f"seed {SEED}: request {i} says something else alone"
    cluster.wait_idle()
    wait_for(lambda: all(held(cluster)[name][1] <= before[name][1] + 4 for name in before), 20,
             lambda: f"descriptors: {before} -> {held(cluster)}")


def test_a_killed_worker_under_five_hundred_streams(own_cluster, random_model):
    """Each is told, and what it was told before is right; the group comes back and holds nothing."""
    cluster = own_cluster(workers=2, coordinator_flags=["--heartbeat-timeout", "3"])
    cluster.load(random_model, "--tp", "2")
    draw = random.Random(SEED)
    requests = [{"text": "x" * draw.randrange(1, 100), "sampling": {
        "temperature": draw.choice([0, 1]), "seed": i, "ignore_eos": True, "max_tokens": 4000}} for i in range(10)]
    streams = [cluster.client.stream(timeout=60, **requests[0]).read_tokens(20)]  # ahead of all others
    streams += [cluster.client.stream(timeout=60, **requests[i % len(requests)]) for i in range(1, 500)]
    wait_for(lambda: (group := cluster.group()).running + group.queued >= 400, 30, "hundreds of streams are there")
    cluster.workers["w1"].signal(signal.SIGKILL)
    answers = [stream.result() for stream in streams]
    assert {answer.code.name for answer in answers} == {"UNAVAILABLE"}
    cluster.start_worker("spare")
    cluster.wait_state("READY")
    alone = [cluster.client.generate(timeout=60, **request).ids for request in requests]
    for i, answer in enumerate(answers):
        assert answer.ids == alone[i % len(requests)][:len(answer.ids)], f"stream {i} was told other tokens"
    cluster.wait_idle()


def test_a_storm_of_connections(own_cluster, random_model):
    """Thousands that connect and say nothing, or nonsense: requests are served, and all is given back."""
    cluster = own_cluster(workers=1)
    cluster.load(random_model)
    host, port = cluster.address.rsplit(":", 1)
    before = held(cluster)["coordinator"]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(5000, hard - 500)
    try:
        connections = []
        for i in range(count):
            connections.append(socket.create_connection((host, int(port)), timeout=10))
            if i % 10 == 0:
                connections[-1].sendall(bytes(i % 251 for _ in range(100)))
        assert cluster.client.generate(text="Hi", sampling={"max_tokens": 5, "ignore_eos": True}).code.name == "OK"
        for connection in connections:
            connection.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    wait_for(lambda: held(cluster)["coordinator"][1] <= before[1] + 4, 20,
             lambda: f"descriptors of {count} connections: {before} -> {held(cluster)['coordinator']}")
    assert cluster.client.generate(text="Hi", sampling={"max_tokens": 5, "ignore_eos": True}).code.name == "OK"
