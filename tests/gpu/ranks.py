"""Real processes: a coordinator and workers of two and three ranks that share this machine's one GPU.

  ranks.py ROOT FOLDER EXCHANGE [--dry-run]    ROOT: with bin/ and tests/e2e; FOLDER for logs and models;
                                               EXCHANGE: the workers' --gpu-exchange

The streams of two and three ranks are those of one, bit for bit; after a rank was killed with -9 the group is formed
again from those that are left, and says the same once more. The last line says what was seen; a line that begins with
"absent:" says what this version lacks.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time

ROOT, FOLDER, EXCHANGE = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
DRY = "--dry-run" in sys.argv
# Ranks on one device are hosts of their own to NCCL (the worker sees to it), and talk over sockets.
SHARED_DEVICE = {"NCCL_SOCKET_IFNAME": "lo"}
KV_BYTES = 64 << 20
TOKENS = 8 if DRY else 48
TEXTS = ["Once upon a time"] if DRY else ["Once upon a time", "On and on", "Hello"]


def build_folder():
    """The programs where tests/e2e/cluster.py looks for them."""
    build = FOLDER / "build"
    for name in ("coordinator/phalanx-coordinator", "worker/phalanx-worker", "client/phalanx"):
        link = build / name
        link.parent.mkdir(parents=True)
        # Not a link: the program's own name is how it is found.
        link.write_text(f'#!/bin/sh\nexec {ROOT}/bin/{link.name} "$@"\n')
        link.chmod(0o755)
    return build


def main():
    os.environ["PHALANX_BUILD_DIR"] = str(build_folder())
    sys.path[:0] = [str(ROOT / "tests" / "e2e"), str(ROOT / "python")]
    import tiny_gguf
    from cluster import Cluster
    from reflection_client import wait_for
    model = FOLDER / "random.gguf"
    tiny_gguf.write_random(model)
    os.environ.update(SHARED_DEVICE)

    flags = ["--device", "cuda", "--kv-bytes", KV_BYTES]
    if DRY and EXCHANGE == "nccl":
        print("absent: the emulated device has no NCCL")
        return
    if "--gpu-exchange" in subprocess.run([ROOT / "bin" / "phalanx-worker", "--help"], capture_output=True, text=True,
                                          check=True).stdout:
        flags += ["--gpu", 0, "--gpu-exchange", EXCHANGE]
    elif not DRY:
        print("absent: this version's ranks exchange nothing between GPUs")
        return

    def answers(cluster):
        streams = [cluster.client.stream(timeout=240, text=text, logprobs=1, sampling={
            "temperature": temperature, "seed": 4, "max_tokens": TOKENS, "ignore_eos": True})
            for text in TEXTS for temperature in (0, 1)]
        got = [stream.result() for stream in streams]
        for answer in got:
            assert answer.code.name == "OK", f"{answer.details}\n{cluster.logs(40)}"
        return [(answer.ids, [str(p) for p in answer.logprobs]) for answer in got]

    with Cluster(FOLDER, coordinator_flags=["--heartbeat-timeout", "20"],
                 worker_flags=flags) as cluster:
        for i in range(3):
            cluster.start_worker(f"w{i}")
        cluster.wait_workers("IDLE", cluster.workers)
        seen, backends = {}, set()
        for count in (1, 2, 3):
            cluster.load(model, "--name", "random", "--tp", count)
            backends.add(next(p for p in cluster.group().fingerprint.split() if p.startswith("backend=")))
            began = time.monotonic()
            seen[count] = answers(cluster)
            print(f"{count} ranks: {len(seen[count])} streams in {time.monotonic() - began:.1f} s", flush=True)
            assert seen[count] == seen[1], f"{count} ranks say something else than one"
            if count < 3:
                cluster.client.unload("random")
        cluster.client.unload("random")
        # One of two ranks dies in the middle of a stream; the third worker takes its place.
        cluster.load(model, "--name", "random", "--tp", 2)
        victim = list(cluster.group().workers)[1]
        stream = cluster.client.stream(timeout=240, text=TEXTS[0], sampling={
            "temperature": 1, "seed": 4, "max_tokens": 20000, "ignore_eos": True}).read_tokens(3)
        began = time.monotonic()
        cluster.workers[victim].signal(signal.SIGKILL)
        ended = stream.result()
        noticed = time.monotonic() - began
        assert ended.code.name in ("OK", "UNAVAILABLE"), ended.details
        assert ended.code.name == "OK" or victim in ended.details, f"{victim} is not named: {ended.details}"
        wait_for(lambda: victim not in cluster.group().workers
                 and cluster.client.group_state(cluster.group()) == "READY", 120,
                 lambda: f"a group without {victim}: {cluster.group()}\n{cluster.logs(40)}")
        assert answers(cluster) == seen[1], "after the fail-over it says something else"
        print(f"{', '.join(sorted(backends))}: 1, 2 and 3 ranks say the same, bit for bit; {victim} killed, noticed "
              f"within {noticed:.1f} s, the group formed again says the same")


if __name__ == "__main__":
    main()
