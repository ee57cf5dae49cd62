"""The three commands as people and scripts meet them: flags, exit codes, one line for an error."""

import json
import os
import pty
import signal
import socket
import subprocess

import pytest

from cluster import COORDINATOR, PHALANX, WORKER, free_port, run
from reflection_client import wait_for
from tiny_gguf import SCRIPT


@pytest.fixture(scope="module")
def cluster(make_cluster, script_model):
    cluster = make_cluster(workers=1)
    cluster.load(script_model)
    return cluster


def fails(result, *named):
    assert result.returncode == 1, f"exit code {result.returncode}\n{result.stdout}{result.stderr}"
    assert result.stdout == ""
    assert result.stderr.endswith("\n") and result.stderr.count("\n") == 1, f"not one line:\n{result.stderr}"
    for name in named:
        assert name in result.stderr, result.stderr


@pytest.mark.parametrize("binary", [COORDINATOR, WORKER, PHALANX], ids=lambda path: path.name)
def test_version_and_help(binary):
    version = run(binary, "--version")
    assert version.returncode == 0 and version.stderr == ""
    assert version.stdout.startswith(f"{binary.name} ") and version.stdout.count("\n") == 1
    usage = run(binary, "--help")
    assert usage.returncode == 0 and usage.stderr == "" and "--" in usage.stdout


@pytest.mark.parametrize("flags, named", [
    (["--nonsense"], "--nonsense"),
    (["--listen"], "--listen"),
    (["--listen", "nowhere"], "nowhere"),
    (["--listen", "127.0.0.1:99999"], "99999"),
    (["--listen", "127.0.0.1:-1"], "-1"),
    (["--listen", "203.0.113.7:5"], "203.0.113.7"),
    (["--log-level", "loud"], "loud"),
    (["stray"], "stray"),
])
@pytest.mark.parametrize("binary", [COORDINATOR, WORKER], ids=lambda path: path.name)
def test_wrong_flags_of_the_servers(binary, flags, named):
    more = ["--coordinator", "127.0.0.1:1"] if binary == WORKER else []
    fails(run(binary, *more, *flags, timeout=20), binary.name, named)


@pytest.mark.parametrize("flags, named", [
    ([], "--coordinator"),
    (["--coordinator", "nowhere"], "nowhere"),
    (["--coordinator", "h:1", "--rung", "neon"], "neon"),
    (["--coordinator", "h:1", "--device", "tpu"], "cpu, cuda, auto"),
    (["--coordinator", "h:1", "--kv-fraction", "2"], "--kv-fraction"),
    (["--coordinator", "h:1", "--kv-fraction", "nan"], "--kv-fraction"),
    (["--coordinator", "h:1", "--threads", "-1"], "--threads"),
    (["--coordinator", "h:1", "--threads", "two"], "'two'; it must be a whole number"),
    (["--coordinator", "h:1", "--max-sequences", "0"], "--max-sequences"),
    (["--coordinator", "h:1", "--max-sequences", "65536", "--max-tokens-per-step", "65536"], "1 to 4096"),
    (["--coordinator", "h:1", "--id", "a b"], "--id"),
])
def test_wrong_flags_of_the_worker(flags, named):
    fails(run(WORKER, *flags, timeout=20), "phalanx-worker", named)


@pytest.mark.parametrize("flags, named", [
    ([], "--help"),
    (["dance"], "dance"),
    (["status", "--nonsense"], "--nonsense"),
    (["--server", "nowhere", "status"], "nowhere"),
    (["load"], "path"),
    (["load", "x.gguf", "--tp", "0"], "--tp"),
    (["load", "x.gguf", "--tp", "two"], "'two'; it must be a whole number"),
    (["load", "x.gguf", "--compute", "int3"], "int3"),
    (["load", "x.gguf", "--kv-cache-dtype", "q8_0"], "auto, bf16, fp32, int8 or fp8"),
    (["load", "x.gguf", "--groups", "0"], "--groups"),
    (["load", "x.gguf", "--groups", "99999999999"], "it must be a smaller number"),
    (["load", "x.gguf", "--wait", "-1"], "--wait"),
    (["chat", "hi", "--temperature", "-1"], "--temperature"),
    (["chat", "hi", "--temperature", "nan"], "--temperature"),
    (["chat", "hi", "--top-p", "0"], "--top-p"),
    (["chat", "hi", "--max-tokens", "-1"], "--max-tokens"),
    (["chat", "hi", "--seed", "-1"], "--seed"),
    (["chat", "hi", "--seed", "99999999999999999999"], "--seed"),
    (["chat", "hi", "--timeout", "0"], "--timeout"),
])
def test_wrong_flags_of_the_client(flags, named):
    fails(run(PHALANX, *flags, timeout=20), "phalanx", named)


@pytest.mark.parametrize("binary", [COORDINATOR, WORKER], ids=lambda path: path.name)
def test_port_taken(binary):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        more = ["--coordinator", "127.0.0.1:1"] if binary == WORKER else []
        fails(run(binary, *more, "--listen", address, timeout=20), address)


def test_port_taken_by_another_coordinator(cluster):
    fails(run(COORDINATOR, "--listen", cluster.address, timeout=20), cluster.address)


def test_worker_waits_for_its_coordinator(own_cluster):
    """It is no error when the worker is there first."""
    cluster = own_cluster()
    cluster.coordinator.signal(signal.SIGKILL)
    worker = cluster.start_worker("early")
    wait_for(lambda: worker.listeners(), 20, "the worker listens")
    cluster.start_coordinator()
    cluster.wait_workers("IDLE", ["early"])


def test_no_coordinator():
    address = f"127.0.0.1:{free_port()}"
    result = run(PHALANX, "--server", address, "--connect-timeout", "0.5", "status", timeout=20)
    fails(result, address, "UNAVAILABLE")


def test_load_and_unload_errors(cluster, script_model, tmp_path):
    fails(cluster.phalanx("load", tmp_path / "none.gguf"), "NOT_FOUND", "none.gguf")
    fails(cluster.phalanx("load", script_model), "ALREADY_EXISTS", "script")
    fails(cluster.phalanx("unload", "nothing"), "NOT_FOUND", "nothing")
    (tmp_path / "bad.gguf").write_text("no model")
    fails(cluster.phalanx("load", tmp_path / "bad.gguf"), "INVALID_ARGUMENT", "bad.gguf")


def test_status_text(cluster):
    result = cluster.phalanx("status")
    assert result.returncode == 0 and result.stderr == ""
    for word in ("coordinator", "models", "groups", "workers", "script", "llama", "ready", "w0"):
        assert word in result.stdout, f"{word} is missing:\n{result.stdout}"


def test_status_json(cluster):
    # The worker's memory comes with its next heartbeat.
    wait_for(lambda: cluster.client.status().workers[0].memory_bytes, 10, "the memory of w0")
    status = json.loads(cluster.phalanx("status", "--json").stdout)
    assert status["models"][0]["spec"]["name"] == "script"
    assert status["groups"][0]["state"] == "GROUP_STATE_READY"
    assert int(status["groups"][0]["kv_blocks_total"]) > 0
    worker = status["workers"][0]
    assert worker["id"] == "w0" and worker["state"] == "WORKER_STATE_READY" and worker["device"]
    assert worker["pid"] == cluster.workers["w0"].pid and int(worker["memory_bytes"]) > 0
    assert 0 <= worker["heartbeat_age_seconds"] < 10
    assert status["version"] == run(PHALANX, "--version").stdout.split()[1]


def test_chat_one_shot(cluster):
    result = cluster.phalanx("chat", "--temperature", "0", "What", "now?")
    assert result.returncode == 0
    assert result.stdout == SCRIPT + "\n"
    assert result.stderr.count("\n") == 1 and "prompt" in result.stderr and "complete" in result.stderr
    assert cluster.phalanx("chat", "--temperature", "0", "--quiet", "x").stderr == ""
    cut = cluster.phalanx("chat", "--temperature", "0", "--max-tokens", "2", "x")
    assert cut.stdout == "Go\n" and "length" in cut.stderr
    stopped = cluster.phalanx("chat", "--temperature", "0", "--stop", "é", "--stop", "zz", "x")
    assert stopped.stdout == "Go: \n"
    fails(cluster.phalanx("chat", "--model", "gpt-17", "x"), "NOT_FOUND", "gpt-17")


def test_chat_with_a_salt_shares_with_that_salt_alone(own_cluster, script_model):
    cluster = own_cluster(workers=1)
    cluster.load(script_model)

    def asks(salt, hits):
        queried = cluster.group().prefix_query_tokens
        result = cluster.phalanx("chat", "--temperature", "0", "--max-tokens", "1", "--cache-salt", salt, "again " * 30)
        assert result.returncode == 0, result.stderr
        wait_for(lambda: cluster.group().prefix_query_tokens > queried, 10, "the request in the status")
        assert (cluster.group().prefix_hit_tokens > 0) == hits
    asks("a", False)
    asks("b", False)
    asks("a", True)
    fails(cluster.phalanx("chat", "--cache-salt", "x" * 257, "x"), "cache_salt has 257 bytes")


def test_chat_of_a_lower_priority_goes_first(own_cluster, script_model):
    cluster = own_cluster(workers=1, worker_flags=["--max-sequences", "1"])
    cluster.load(script_model)
    stream = cluster.client.stream(
        text="x", sampling={"temperature": 0, "max_tokens": 60000, "ignore_eos": True})
    stream.read_tokens(1)
    result = cluster.phalanx("chat", "--temperature", "0", "--priority=-1", "x")
    assert result.returncode == 0 and result.stdout == SCRIPT + "\n", result.stderr
    wait_for(lambda: cluster.group().preemptions > 0, 10, lambda: f"the other waited: {cluster.group()}")
    stream.cancel()
    fails(cluster.phalanx("chat", "--priority", "first", "x"), "--priority", "first")


def test_chat_from_stdin_keeps_the_history(cluster):
    result = cluster.phalanx("chat", "--temperature", "0", "--system", "Be brief.", stdin="Hello\n\nAgain\n")
    assert result.returncode == 0 and result.stdout == f"{SCRIPT}\n{SCRIPT}\n"
    first, second = (int(line.split()[0].lstrip("[")) for line in result.stderr.splitlines())
    assert second > first + len(SCRIPT)


def test_ctrl_c_cancels_a_one_shot_answer(cluster):
    chat = subprocess.Popen(
        [PHALANX, "--server", cluster.address, "chat", "--ignore-eos", "--temperature", "0", "--max-tokens", "60000", "x"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert chat.stdout.read(10)
        chat.send_signal(signal.SIGINT)
        _, errors = chat.communicate(timeout=10)
    finally:
        chat.kill()
        chat.wait(5)
    assert chat.returncode == 130 and errors.count(b"\n") == 1
    cluster.wait_idle()


def test_ctrl_c_at_a_terminal_cancels_the_answer_only(cluster):
    """An endless answer is cancelled, the next question is answered, Ctrl-D ends."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(PHALANX, [str(PHALANX), "--server", cluster.address, "chat", "--ignore-eos", "--temperature", "0",
                           "--max-tokens", "30000"])
    said = bytearray()
    os.set_blocking(terminal, False)

    def says(text, count=1):
        def there():
            try:
                said.extend(os.read(terminal, 1 << 16))
            except BlockingIOError:
                pass
            return said.count(text) >= count
        wait_for(there, 20, lambda: f"{text} {count} times at the terminal, but: {bytes(said[-300:])}")
    try:
        says(b"> ")
        os.write(terminal, b"Hi\n")
        says(b"Go: ", 3)
        os.write(terminal, b"\x03")
        says(b"[cancelled]")
        cluster.wait_idle()
        said.clear()
        os.write(terminal, b"Again\n")
        says(b"Go: ")
        os.write(terminal, b"\x03")
        says(b"[cancelled]")
        says(b"> ")
        os.write(terminal, b"\x04")
        status = []

        def ended():
            if not status and (found := os.waitpid(pid, os.WNOHANG))[0]:
                status.append(found[1])
            return status
        wait_for(ended, 10, "chat ends after Ctrl-D")
        assert os.waitstatus_to_exitcode(status[0]) == 0
    finally:
        os.close(terminal)
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
    cluster.wait_idle()


def test_lost_coordinator_during_chat(own_cluster, script_model):
    cluster = own_cluster(workers=1)
    cluster.load(script_model)
    chat = subprocess.Popen(
        [PHALANX, "--server", cluster.address, "chat", "--ignore-eos", "--temperature", "0", "--max-tokens", "60000", "x"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert chat.stdout.read(10)
        cluster.coordinator.signal(signal.SIGKILL)
        _, errors = chat.communicate(timeout=20)
    finally:
        chat.kill()
        chat.wait(5)
    assert chat.returncode == 1 and errors.count(b"\n") == 1 and b"UNAVAILABLE" in errors
