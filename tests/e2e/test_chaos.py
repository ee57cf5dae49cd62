"""Clients go on while workers are killed, stopped, ended and restarted at random: whatever is said is right, and the
cluster comes back. PHALANX_CHAOS_SEED and PHALANX_CHAOS_SECONDS choose another or a longer run."""

import os
import random
import signal
import threading
import time

from reflection_client import Client, wait_for

SEED = int(os.environ.get("PHALANX_CHAOS_SEED", "1"))
SECONDS = float(os.environ.get("PHALANX_CHAOS_SECONDS", "15"))
CLIENTS = 6
# While groups come and go a request may find none, or lose the one it had.
EXPECTED = {"OK", "UNAVAILABLE", "NOT_FOUND", "CANCELLED"}


def content(answer):
    return answer.ids, answer.text, [str(p) for p in answer.logprobs]


def talk(number, address, requests, alone, stop, wrong, answered):
    """Sends requests until `stop`; a third of them are cancelled on the way."""
    draw, client = random.Random(f"{SEED}/{number}"), Client(address)
    while time.monotonic() < stop and not wrong:
        i = draw.randrange(len(requests))
        stream = client.stream(timeout=30, **requests[i])
        if draw.random() < 0.3:
            enough = draw.randrange(1, 40)
            for _ in stream:
                if len(stream.answer.ids) >= enough:
                    break
            stream.cancel()
        answer = stream.result()
        if answer.code.name not in EXPECTED:
            wrong.append(f"request {i}: {answer.code.name} {answer.details}")
        if answer.ids != alone[i][0][:len(answer.ids)]:
            wrong.append(f"request {i} says other tokens than alone")
        if answer.finished:
            answered.append(i)
            if content(answer) != alone[i]:
                wrong.append(f"request {i} finished with another answer than alone")
        elif answer.code.name != "CANCELLED":
            time.sleep(0.05)
    client.close()


def hurt(cluster, draw, load):
    """One fault, its repair included."""
    name = draw.choice(sorted(cluster.workers))
    worker, kind = cluster.workers[name], draw.random()
    if kind < 0.4:
        worker.signal(signal.SIGKILL)
        cluster.start_worker(name)
    elif kind < 0.6:
        worker.signal(signal.SIGSTOP)
        time.sleep(draw.uniform(0, 3))
        worker.signal(signal.SIGCONT)
    elif kind < 0.85:
        wait_for(lambda: "registered with" in worker.log.read_text(), 10, f"{name} is up")
        worker.signal(signal.SIGTERM)
        assert worker.exit_code() == 0
        cluster.start_worker(name)
    else:
        cluster.client.unload("m")
        load()


def test_chaos(own_cluster, random_model):
    draw = random.Random(SEED)
    cluster = own_cluster(workers=5, coordinator_flags=["--heartbeat-timeout", "2"])
    cluster.wait_workers("IDLE", cluster.workers)

    def load():
        cluster.load(random_model, "--name", "m", "--tp", "2", "--groups", "2")
    load()
    requests = [{"text": "x" * draw.randrange(1, 300), "logprobs": i % 3,
                 "sampling": {"temperature": draw.choice([0, 1]), "seed": i, "ignore_eos": True,
                              "max_tokens": draw.choice([1, 20, 200, 600])}} for i in range(12)]
    alone = [content(cluster.client.generate(**request)) for request in requests]

    stop, wrong, answered = time.monotonic() + SECONDS, [], []
    clients = [threading.Thread(target=talk, args=(n, cluster.address, requests, alone, stop, wrong, answered))
               for n in range(CLIENTS)]
    for client in clients:
        client.start()
    faults = 0
    while time.monotonic() < stop and not wrong:
        time.sleep(draw.uniform(0, 1.5))
        hurt(cluster, draw, load)
        faults += 1
    for client in clients:
        client.join(40)
        assert not client.is_alive(), "a client still waits"
    print(f"seed {SEED}: {faults} faults, {len(answered)} requests answered")
    assert not wrong, f"seed {SEED}: {wrong[:3]}"
    assert answered

    wait_for(lambda: all(cluster.client.group_state(g) == "READY" for g in cluster.client.status().groups), 60,
             lambda: f"groups READY: {cluster.client.status()}")
    cluster.wait_idle()
    assert all(worker.running for worker in cluster.workers.values())
    assert [content(cluster.client.generate(**request)) for request in requests] == alone
