"""The worker on a device: the emulated one serves the same tokens on any number of ranks; a real one that is not there
is said to be missing in one line."""

import pathlib
import shutil
import signal

import pytest

from cluster import ROOT, WORKER, run
from reflection_client import wait_for
from tiny_gguf import SPECIAL

MODULE = ROOT / "build" / "cuda" / "worker" / "libphalanx_cuda.so"
DRIVER = pathlib.Path("/proc/driver/nvidia")


def test_the_emulated_device_serves(own_cluster, random_model):
    cluster = own_cluster(workers=2, worker_flags=["--device", "cuda-emulated"])
    cluster.wait_workers("IDLE", cluster.workers)
    seen = {}
    for ranks in (1, 2):
        cluster.load(random_model, "--tp", ranks)
        assert " backend=cuda-emulated " in cluster.group().fingerprint
        answers = []
        for temperature in (0, 1):
            answer = cluster.client.generate(
                tokens={"ids": [len(SPECIAL) + i * 7 % 50 for i in range(40)]}, logprobs=1,
                sampling={"temperature": temperature, "seed": 3, "max_tokens": 6, "ignore_eos": True})
            assert answer.code.name == "OK", answer.details
            answers.append((answer.ids, [str(p) for p in answer.logprobs]))
        seen[ranks] = answers
        cluster.unload_all()
    assert seen[1] == seen[2]
    # Not over the host's memory: the ranks' devices read each other's, in two processes.
    assert "exchanges by kernels that read the peers' memory" in cluster.logs(1000)


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_lost_rank_ends_the_others_waits_on_the_device(own_cluster, random_model, fault):
    cluster = own_cluster(workers=2, worker_flags=["--device", "cuda-emulated", "--gpu-exchange", "peer"],
                          coordinator_flags=["--heartbeat-timeout", "3"])
    cluster.load(random_model, "--tp", 2)
    victim = list(cluster.group().workers)[1]
    stream = cluster.client.stream(text="Once upon a time", sampling={
        "temperature": 1, "seed": 4, "max_tokens": 20000, "ignore_eos": True}).read_tokens(2)
    cluster.workers[victim].signal(fault)
    ended = stream.result()
    assert ended.code.name == "UNAVAILABLE" and victim in ended.details, ended.details
    cluster.start_worker("spare")
    wait_for(lambda: "spare" in cluster.group().workers and cluster.client.group_state(cluster.group()) == "READY",
             120, lambda: f"a group with the spare: {cluster.group()}\n{cluster.logs(40)}")
    answer = cluster.client.generate(text="Once upon a time", sampling={"max_tokens": 2, "ignore_eos": True})
    assert answer.code.name == "OK", answer.details


@pytest.mark.skipif(DRIVER.exists(), reason="this host has a driver")
@pytest.mark.parametrize("with_module", [False, True], ids=["no module", "no driver"])
def test_a_missing_device_is_named(tmp_path, with_module):
    if with_module and not MODULE.exists():
        pytest.skip("the CUDA module was not built: no toolkit was found")
    worker = tmp_path / WORKER.name
    shutil.copy(WORKER, worker)
    if with_module:
        shutil.copy(MODULE, tmp_path)
    missing = "no NVIDIA driver" if with_module else MODULE.name
    result = run(worker, "--coordinator", "127.0.0.1:1", "--device", "cuda", timeout=30)
    assert result.returncode == 1
    assert missing in result.stderr and "--device cpu" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_module_that_is_damaged_is_told_from_one_that_is_missing(tmp_path, monkeypatch):
    worker = tmp_path / WORKER.name
    shutil.copy(WORKER, worker)
    (tmp_path / MODULE.name).write_text("no library\n" * 100)
    for folder in (tmp_path, ROOT):
        monkeypatch.chdir(folder)
        result = run(worker, "--coordinator", "127.0.0.1:1", "--device", "cuda", timeout=30)
        assert result.returncode == 1
        assert f"{tmp_path / MODULE.name}: invalid ELF header" in result.stderr, result.stderr


@pytest.mark.skipif(DRIVER.exists(), reason="this host has a driver")
def test_auto_falls_back_and_says_so(own_cluster, random_model):
    cluster = own_cluster(workers=1, worker_flags=["--device", "auto"])
    cluster.wait_workers("IDLE", cluster.workers)
    assert "--device auto: the CPU, as " in cluster.logs(100)
    cluster.load(random_model)
    assert " backend=cuda" not in cluster.group().fingerprint
