"""The whole systems that compare_llamacpp compares: a coordinator and a worker of ours, and llama-server."""

import contextlib
import functools
import http.client
import json
import math
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "release"
START_LIMIT_S = 60
POLL_S = 0.005  # a client that waits for the first token asks so often
CHUNK_FIELD = 3  # of phalanx.v1.GenerateResponse
TEXT = ("Bread is made from flour, water, salt and yeast. First the flour and the water are mixed and left to rest, so "
        "that the flour takes up the water. Then salt and yeast are added and the dough is kneaded until it is smooth. "
        "It rises for an hour or two in a warm place, is shaped, rises once more, and is baked in a hot oven until its "
        "crust is brown and it sounds hollow when it is tapped.")
QUESTION = "Tell me how bread is made, step by step, in plain words, and say why each step is needed for a good loaf."


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for_listener(port, start):
    while time.perf_counter() - start < START_LIMIT_S:
        with contextlib.suppress(OSError):
            return socket.create_connection(("127.0.0.1", port), START_LIMIT_S).close()
        time.sleep(POLL_S)
    raise RuntimeError(f"nobody listens on port {port}")


@functools.cache
def grpc_and_question():
    """The module grpc, and QUESTION as a serialised phalanx.v1.GenerateRequest."""
    import grpc  # tests/e2e/requirements.txt
    text = f'chat {{ messages {{ role: "user" content: "{QUESTION}" }} }} sampling {{ temperature: 0 max_tokens: 4 }}'
    question = subprocess.run(["protoc", "--encode=phalanx.v1.GenerateRequest", "-I", str(ROOT / "proto"),
                               "phalanx/v1/inference.proto"], input=text.encode(), capture_output=True, check=True)
    return grpc, question.stdout


def end(processes):
    for p in processes:
        p.send_signal(signal.SIGTERM)
    for p in processes:
        try:
            p.wait(10)
        except subprocess.TimeoutExpired:
            p.kill()
            p.wait()


def anonymous_bytes(processes):
    """Private and shared anonymous memory of all: what they share is counted once, pages of mapped files never."""
    total = 0
    for p in processes:
        for line in pathlib.Path(f"/proc/{p.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                total += 1024 * int(line.split()[1])
    return total


class Llama:
    """A llama-server."""

    name = "llama-server"

    def __init__(self, o, slots=1, context=2048, kv="f16"):
        self.port = free_port()
        self.processes = [subprocess.Popen(
            [str(o.llama / "llama-server"), "-m", str(o.model), "-t", str(o.threads), "-c", str(context * slots),
             "-np", str(slots), "-fa", "on", "-ctk", kv, "-ctv", kv, "--port", str(self.port)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)]

    def post(self, path, body, timeout=600):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            reply = connection.getresponse()
            text = reply.read()
        finally:
            connection.close()
        if reply.status != 200:
            raise RuntimeError(f"llama-server: {reply.status} {text[:300]}")
        return json.loads(text)

    def wait(self):
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, RuntimeError):
                return self.post("/completion", {"prompt": [5], "n_predict": 1})
            time.sleep(0.05)
        raise RuntimeError("llama-server does not answer")

    def first_token(self, start):
        """Seconds from `start` to the first streamed token."""
        body = json.dumps({"messages": [{"role": "user", "content": QUESTION}], "stream": True, "max_tokens": 4,
                           "temperature": 0})
        while time.perf_counter() - start < START_LIMIT_S:
            with contextlib.suppress(OSError):
                c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_LIMIT_S)
                c.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
                r = c.getresponse()
                if r.status == 200:
                    while line := r.readline():
                        if re.search(rb'"content": ?"[^"]', line):
                            return time.perf_counter() - start
            time.sleep(POLL_S)
        raise RuntimeError("llama-server gave no token")

    def clients(self, requests, count):
        """Output tokens a second of `count` clients that send `requests`, (ids, max tokens), one after the other."""
        waiting, lock, tokens, errors = list(reversed(requests)), threading.Lock(), [0], []

        def client():
            while True:
                with lock:
                    if not waiting or errors:
                        return
                    ids, most = waiting.pop()
                try:
                    reply = self.post("/completion", {"prompt": ids, "n_predict": most, "ignore_eos": True,
                                                      "cache_prompt": True, "temperature": 1.0})
                except (OSError, RuntimeError, http.client.HTTPException) as error:
                    errors.append(error)
                    return
                with lock:
                    tokens[0] += reply["tokens_predicted"]
        threads = [threading.Thread(target=client) for _ in range(count)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return tokens[0] / (time.perf_counter() - start)

    def top(self, ids, count):
        """For each token after the first, what came before being given: {id: log-probability} of the likeliest."""
        out = []
        for length in range(1, len(ids)):
            reply = self.post("/completion", {"prompt": ids[:length], "n_predict": 1, "n_probs": count,
                                              "cache_prompt": True, "temperature": 0.0})
            best = reply["completion_probabilities"][0]["top_logprobs"]
            out.append({entry["id"]: entry["logprob"] for entry in best})
        return out

    def close(self):
        end(self.processes)


class Phalanx:
    """A coordinator and a worker with one rank."""

    name = "Phalanx"

    def __init__(self, o, compute="fast", kv_bytes=0, kv=None):
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.log = tempfile.TemporaryFile()
        self.processes = [
            subprocess.Popen([str(BUILD / "coordinator/phalanx-coordinator"), "--listen", self.address, "--model",
                              str(o.model), "--name", "m", "--compute", compute], stdout=self.log, stderr=self.log),
            subprocess.Popen([str(BUILD / "worker/phalanx-worker"), "--coordinator", self.address, "--threads",
                              str(o.threads), "--kv-bytes", str(kv_bytes), "--kv-cache-dtype", kv or o.kv_type],
                             stdout=self.log, stderr=self.log),
        ]

    def client(self, *flags, **options):
        return subprocess.run([str(BUILD / "client/phalanx"), "--server", self.address, *map(str, flags)],
                              capture_output=True, text=True, timeout=600, **options)

    def wait(self):
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            if self.client("chat", "--quiet", "--max-tokens", 1, "Hi").returncode == 0:
                return
            time.sleep(0.05)
        self.log.seek(0)
        raise RuntimeError("phalanx does not answer:\n" + self.log.read().decode())

    def first_token(self, start):
        """As with llama-server: a client that runs already, connects anew until somebody listens, and asks until it is
        answered."""
        grpc, question = grpc_and_question()
        wait_for_listener(self.port, start)
        with grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            generate = channel.unary_stream("/phalanx.v1.Inference/Generate")
            while time.perf_counter() - start < START_LIMIT_S:
                try:
                    for response in generate(question, timeout=START_LIMIT_S):
                        if response[0] >> 3 == CHUNK_FIELD:
                            return time.perf_counter() - start
                except grpc.RpcError as error:
                    if error.code() != grpc.StatusCode.UNAVAILABLE:
                        raise
                time.sleep(POLL_S)
        self.log.seek(0)
        raise RuntimeError("phalanx gave no token:\n" + self.log.read().decode())

    def clients(self, requests, count):
        with tempfile.TemporaryDirectory() as folder:
            data, out = pathlib.Path(folder) / "requests.jsonl", pathlib.Path(folder) / "out.json"
            data.write_text("".join(json.dumps({"tokens": ids, "max_tokens": most}) + "\n" for ids, most in requests))
            run = self.client("bench", "--dataset", data, "--concurrency", count, "--requests", len(requests),
                              "--output-len", 1, "--ignore-eos", "--temperature", 1, "--json", out)
            if run.returncode != 0:
                raise RuntimeError(run.stderr)
            result = json.loads(out.read_text())
        if result["requests"]["finished"] != len(requests):
            raise RuntimeError(f"not all requests finished: {result['requests']} {result['errors']}")
        return result["output_tokens_per_second"]

    def held(self):
        """What the worker says its weights and KV blocks take."""
        return sum(int(w["memory_bytes"]) for w in json.loads(self.client("status", "--json").stdout)["workers"])

    def _stub(self):
        sys.path.insert(0, str(ROOT / "tests" / "e2e"))
        from reflection_client import Client  # needs grpcio: tests/e2e/requirements.txt
        return contextlib.closing(Client(self.address))

    def tokenize(self, text):
        with self._stub() as stub:
            return list(stub.call("phalanx.v1.Inference/Tokenize", {"text": text}).ids)

    def top(self, ids, count):
        with self._stub() as stub:
            answer = stub.generate(timeout=600, tokens={"ids": ids}, prompt_logprobs=count,
                                   sampling={"max_tokens": 0, "temperature": 0})
        if answer.error:
            raise RuntimeError(answer.details)
        positions = [p for part in answer.prompt_logprobs for p in part.positions]
        return [{entry.id: entry.logprob for entry in [p.token, *p.top]} for p in positions]

    def close(self):
        end(reversed(self.processes))
        self.log.close()


@contextlib.contextmanager
def system(make, *args, **kwargs):
    running = make(*args, **kwargs)
    try:
        yield running
    finally:
        running.close()


def mixed_requests(count, vocabulary, seed=0):
    """(ids, max tokens), of mixed lengths; ids past the tokenizer's special ones."""
    source = random.Random(seed)
    return [([source.randrange(300, vocabulary) for _ in range(source.randint(16, 256))], source.randint(16, 128))
            for _ in range(count)]


def mean_difference(reference, other, best):
    """Mean |difference| of log-probabilities of the reference's `best` likeliest tokens, and how many the other's list
    lacks."""
    differences, lacking = [], 0
    for right, theirs in zip(reference, other, strict=True):
        for token in sorted(right, key=right.get, reverse=True)[:best]:
            if token in theirs:
                differences.append(abs(right[token] - theirs[token]))
            else:
                lacking += 1
    return (sum(differences) / len(differences) if differences else math.nan), lacking
