"""Workers of one host that hold the same slice of the same model hold one copy of its packed weights."""

import array
import os
import pathlib
import random
import signal

import pytest

import tiny_gguf
from reflection_client import wait_for
from tiny_gguf import FFN, HEAD_DIM, HIDDEN, KV_HEADS, VOCAB_SIZE

LAYERS = 20  # 23 MiB in bf16: worth a file
REQUEST = {"text": "Once upon a time",
           "sampling": {"temperature": 1, "seed": 3, "max_tokens": 40, "ignore_eos": True}}


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory):
    """A random model whose layers are alike."""
    path = tmp_path_factory.mktemp("models") / "deep.gguf"
    draw, made = random.Random(5).random, {}

    def matrix(rows, columns):
        if (rows, columns) not in made:
            width = (12 / columns) ** 0.5
            made[rows, columns] = array.array("f", [width * (draw() - 0.5) for _ in range(rows * columns)])
        return made[rows, columns]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_gguf, "LAYERS", LAYERS)
        tensors = tiny_gguf._layers(matrix)
        metadata = tiny_gguf._metadata("deep")
    head = matrix(VOCAB_SIZE, HIDDEN)
    tiny_gguf.write_gguf(path, metadata, {"token_embd.weight": ([HIDDEN, VOCAB_SIZE], head), **tensors,
                                          "output.weight": ([HIDDEN, VOCAB_SIZE], head)})
    return path


@pytest.fixture
def folder(tmp_path):
    (path := tmp_path / "shared").mkdir()
    return path


PACKED_BYTES = 2 * LAYERS * (HIDDEN * (2 * HIDDEN + 2 * KV_HEADS * HEAD_DIM) + 3 * HIDDEN * FFN)


def mapped(process, path):
    """Bytes of the file that the process maps."""
    total = 0
    for line in pathlib.Path(f"/proc/{process.pid}/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == str(path):
            begin, end = (int(part, 16) for part in fields[0].split("-"))
            assert "w" not in fields[1], line
            total += end - begin
    return total


def proportional_bytes(process):
    """Resident memory of its own and its share of what it has in common with others."""
    for line in pathlib.Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Pss")


def said(cluster, name, what):
    return [line for line in (cluster.folder / f"{name}.log").read_text().splitlines() if what in line]


def answers(cluster, count=8):
    """Of enough requests at once that every group has some."""
    streams = [cluster.client.stream(**REQUEST) for _ in range(count)]
    results = [stream.result() for stream in streams]
    assert all(r.code.name == "OK" for r in results), results[0].details
    return [r.ids for r in results]


def test_two_groups_hold_one_copy(own_cluster, deep_model, folder):
    cluster = own_cluster(workers=2, worker_flags=["--shared-weights", folder])
    cluster.load(deep_model, "--groups", "2")
    files = list(folder.iterdir())
    assert len(files) == 1, files
    for worker in cluster.workers.values():
        assert mapped(worker, files[0]) >= PACKED_BYTES
    lines = [said(cluster, name, "weights shared: ") for name in cluster.workers]
    assert sorted("packed by this one" in line[0] for line in lines) == [False, True], lines
    ids = answers(cluster)
    assert all(other == ids[0] for other in ids)
    shared = sum(proportional_bytes(worker) for worker in cluster.workers.values())

    # Killed, they leave the file, which the next ones use.
    for worker in cluster.workers.values():
        worker.signal(signal.SIGKILL)
    assert list(folder.iterdir()) == files
    for name in ("w2", "w3"):
        cluster.start_worker(name)
    wait_for(lambda: all(said(cluster, name, "packed before by another worker") for name in ("w2", "w3")), 60,
             "the file is used again")
    wait_for(lambda: [cluster.client.group_state(g) for g in cluster.client.status().groups] == ["READY"] * 2, 60,
             lambda: f"both groups ready: {cluster.client.status()}")
    assert answers(cluster) == ids
    assert list(folder.iterdir()) == files
    for name in ("w2", "w3"):
        cluster.workers[name].popen.terminate()
        assert cluster.workers[name].exit_code() == 0
    assert list(folder.iterdir()) == []

    own = own_cluster(workers=2, worker_flags=["--shared-weights", "off"])
    own.load(deep_model, "--groups", "2")
    assert answers(own) == ids
    assert all(said(own, name, "weights are not shared with other workers: --shared-weights is off")
               for name in own.workers)
    private = sum(proportional_bytes(worker) for worker in own.workers.values())
    assert private - shared > PACKED_BYTES / 2, (private, shared)


def test_slices_and_arithmetic_are_files_of_their_own(own_cluster, deep_model, folder):
    cluster = own_cluster(workers=4, worker_flags=["--shared-weights", folder])
    cluster.load(deep_model, "--name", "fp32", "--tp", "2", "--compute", "fp32")
    cluster.load(deep_model, "--name", "again", "--tp", "2", "--compute", "fp32")
    assert len(list(folder.iterdir())) == 2
    cluster.client.unload("again")
    assert len(list(folder.iterdir())) == 2
    cluster.client.unload("fp32")
    wait_for(lambda: not list(folder.iterdir()), 20, lambda: f"nothing left: {list(folder.iterdir())}")


def test_without_room_each_worker_has_its_own(own_cluster, deep_model, tmp_path):
    cluster = own_cluster(workers=1, worker_flags=["--shared-weights", tmp_path / "missing"])
    cluster.load(deep_model)
    lines = said(cluster, "w0", "weights are not shared with other workers: ")
    assert len(lines) == 1 and os.fspath(tmp_path / "missing") in lines[0]
    assert answers(cluster, 1)
