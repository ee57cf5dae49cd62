"""Starts and ends real coordinators and workers on loopback."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

import grpc

from reflection_client import Client, wait_for

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("PHALANX_BUILD_DIR", ROOT / "build" / "release"))
COORDINATOR = BUILD / "coordinator" / "phalanx-coordinator"
WORKER = BUILD / "worker" / "phalanx-worker"
PHALANX = BUILD / "client" / "phalanx"

READY_SECONDS = 60   # from `load` to READY
EXIT_SECONDS = 15    # from SIGTERM to the process's end
FAULT_SECONDS = 10   # from a fault to the error at the client


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(*command, stdin=None, timeout=60):
    """Runs a command to its end; text output captured."""
    return subprocess.run([str(part) for part in command], input=stdin, stdin=None if stdin else subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=timeout)


class Process:
    """A child process with its own log. Killed at the latest by Cluster.close."""

    def __init__(self, name, command, log):
        self.name, self.log = name, log
        with open(log, "ab") as out:
            self.popen = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=out,
                                          stderr=out, start_new_session=True)
        self.hurt = False  # was sent a fault: how it ends proves nothing

    @property
    def pid(self):
        return self.popen.pid

    @property
    def running(self):
        return self.popen.poll() is None

    def signal(self, number):
        """A fault, or SIGTERM."""
        self.hurt = self.hurt or number != signal.SIGTERM
        self.popen.send_signal(number)
        if number == signal.SIGKILL:
            self.popen.wait(5)

    def exit_code(self, seconds=EXIT_SECONDS):
        """Waits for the process to end by itself."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs {seconds} s after it should have ended") from None

    def listeners(self):
        """Ports of its listening TCP sockets."""
        sockets = set()
        for fd in pathlib.Path(f"/proc/{self.pid}/fd").iterdir():
            target = os.readlink(fd)
            if target.startswith("socket:["):
                sockets.add(target[8:-1])
        ports = set()
        for table in ("tcp", "tcp6"):
            for line in pathlib.Path(f"/proc/{self.pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in sockets:
                    ports.add(int(fields[1].rsplit(":", 1)[1], 16))
        return sorted(ports)


class Cluster:
    """One coordinator and its workers w0, w1, ..."""

    def __init__(self, folder, workers=0, coordinator_flags=(), worker_flags=(), host="127.0.0.1"):
        self.folder, self.processes, self._client = folder, [], None
        self.worker_flags = list(worker_flags)
        self.coordinator_flags = list(coordinator_flags)
        if "--max-unsent" not in self.coordinator_flags:  # tests leave streams unread while they look elsewhere
            self.coordinator_flags += ["--max-unsent", "1000000"]
        self.workers = {}
        self.address = f"{host}:{free_port()}"
        self.shared_memory = self._shared_memory()
        try:
            self.start_coordinator()
            for i in range(workers):
                self.start_worker(f"w{i}")
        except BaseException:
            self.kill()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def _start(self, name, command):
        process = Process(name, command, self.folder / f"{name}.log")
        self.processes.append(process)
        return process

    def start_coordinator(self):
        """At the same address as before, if there was one."""
        self.coordinator = self._start(
            "coordinator", [COORDINATOR, "--listen", self.address, *self.coordinator_flags])

        def up():
            assert self.coordinator.running, "the coordinator ended:\n" + self.logs()
            try:
                grpc.channel_ready_future(self.client.channel).result(0.2)
                return True
            except grpc.FutureTimeoutError:
                return False
        wait_for(up, 20, f"no coordinator answers at {self.address}")
        return self.coordinator

    def start_worker(self, name, *flags, prefix=()):
        """`prefix`: a command that becomes the worker, such as `ip netns exec NAME`."""
        self.workers[name] = self._start(
            name, [*prefix, WORKER, "--coordinator", self.address, "--id", name, *self.worker_flags, *flags])
        return self.workers[name]

    @property
    def client(self):
        if self._client is None:
            self._client = Client(self.address)
        return self._client

    def phalanx(self, *flags, stdin=None, timeout=60):
        """Runs the client command against this cluster."""
        return run(PHALANX, "--server", self.address, *flags, stdin=stdin, timeout=timeout)

    def load(self, path, *flags):
        """`phalanx load`, until the model is ready."""
        result = self.phalanx("load", path, "--wait", READY_SECONDS, *flags, timeout=READY_SECONDS + 10)
        assert result.returncode == 0, result.stderr
        return result

    def unload_all(self):
        for model in self.client.status().models:
            self.client.unload(model.spec.name)

    def group(self, model=None):
        """The status of the one group (of a model)."""
        groups = [g for g in self.client.status().groups if model in (None, g.model)]
        assert len(groups) == 1, groups
        return groups[0]

    def worker(self, name):
        """A worker's status, or None."""
        return next((w for w in self.client.status().workers if w.id == name), None)

    def wait_state(self, state, model=None, seconds=READY_SECONDS):
        return wait_for(lambda: self.client.group_state(self.group(model)) == state, seconds,
                        lambda: f"group {state}: {self.client.status()}")

    def wait_idle(self, seconds=FAULT_SECONDS):
        """Until no group holds KV blocks or requests."""
        def idle():
            return all(g.kv_blocks_used == 0 and g.running == 0 and g.queued == 0
                       for g in self.client.status().groups)
        wait_for(idle, seconds, lambda: f"KV blocks and requests back to 0: {self.client.status().groups}")

    def wait_workers(self, state, names, seconds=READY_SECONDS):
        def there():
            states = {w.id: self.client.worker_state(w) for w in self.client.status().workers}
            return all(states.get(name) == state for name in names)
        wait_for(there, seconds, lambda: f"workers {names} {state}: {self.client.status().workers}")

    def logs(self, lines=20):
        parts = []
        for log in sorted(self.folder.glob("*.log")):
            tail = log.read_text(errors="replace").splitlines()[-lines:]
            parts.append(f"---- {log}\n" + "\n".join(tail))
        return "\n".join(parts)

    def _close_client(self):
        if self._client is not None:
            self._client.close()
            self._client = None

    def kill(self):
        self._close_client()
        for process in self.processes:
            if process.running:
                process.popen.kill()
                process.popen.wait(5)

    @staticmethod
    def _shared_memory():
        return {path.name for path in pathlib.Path("/dev/shm").glob("*phalanx*")}

    def close(self):
        """Ends all with SIGTERM; whatever was not hurt before has to end by itself, with exit code 0."""
        try:
            self._close_client()  # the server waits for open connections a while
            ending = [p for p in self.processes if p.running and not p.hurt]
            for process in ending:
                process.popen.terminate()
            deadline = time.monotonic() + EXIT_SECONDS
            for process in ending:
                code = process.exit_code(max(0.1, deadline - time.monotonic()))
                assert code == 0, f"{process.name} ended with {code} after SIGTERM\n{self.logs()}"
        finally:
            self.kill()
        left = self._shared_memory() - self.shared_memory
        assert not left, f"left in /dev/shm: {left}"


def require_binaries():
    missing = [str(path) for path in (COORDINATOR, WORKER, PHALANX) if not shutil.which(path)]
    return f"not built: {', '.join(missing)} (cmake --build build/release)" if missing else ""
