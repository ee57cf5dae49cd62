"""A KV cache of int8 or fp8: the worker's flag, the load request's word, and the same tokens whatever the ranks and the cache."""

import random

import grpc
import pytest

from cluster import ROOT, WORKER, run
from reflection_client import wait_for
from tiny_gguf import SPECIAL, VOCAB_SIZE

KV_BLOCK = 32
KV_BYTES = 1 << 20
MLA = ROOT / "tests" / "golden" / "models" / "deepseek_mla"


@pytest.fixture(scope="module")
def shared(make_cluster):
    cluster = make_cluster(workers=2, worker_flags=["--kv-cache-dtype", "int8", "--kv-bytes", KV_BYTES])
    cluster.wait_workers("IDLE", cluster.workers)
    return cluster


@pytest.fixture
def cluster(shared):
    """The module's cluster, without a model."""
    yield shared
    shared.unload_all()


def said(cluster, seed, length):
    draw = random.Random(seed)
    ids = [draw.randrange(len(SPECIAL), VOCAB_SIZE) for _ in range(length)]
    answer = cluster.client.generate(tokens={"ids": ids}, logprobs=2,
                                     sampling={"temperature": 1, "seed": seed, "max_tokens": 40, "ignore_eos": True})
    assert answer.code.name == "OK", answer.details
    return (answer.ids, [str(p) for p in answer.logprobs]), answer.finished.usage.cached_prompt_tokens


def test_the_same_tokens_on_one_rank_on_two_and_from_the_cache(cluster, random_model):
    seen = {}
    for ranks in (1, 2):
        cluster.load(random_model, "--tp", ranks)
        group = cluster.group()
        assert group.kv_cache_dtype == "int8"
        assert " kv=int8 " in group.fingerprint
        first, cached = said(cluster, 1, 300)
        assert cached == 0
        again, cached = said(cluster, 1, 300)
        assert cached == 299 // KV_BLOCK * KV_BLOCK
        assert again == first
        seen[ranks] = first
        status = cluster.phalanx("status").stdout
        assert "KV TYPE" in status and " int8 " in status
        cluster.unload_all()
    assert seen[1] == seen[2]


def test_a_load_request_names_another_type(cluster, random_model):
    blocks, answers = {}, {}
    for name in ("int8", "fp8_e4m3", "bf16", "fp32"):
        cluster.load(random_model, "--kv-cache-dtype", name)
        group = cluster.group()
        kv_type = name.removesuffix("_e4m3")
        assert group.kv_cache_dtype == kv_type
        assert f" kv={kv_type} " in group.fingerprint
        blocks[kv_type] = group.kv_blocks_total
        answers[kv_type], _ = said(cluster, 2, 40)
        cluster.unload_all()
    # Two layers with three heads of 32 and 32 channels; int8 and fp8 have two bytes more for each 32.
    elements = 2 * 3 * 64 * KV_BLOCK
    of_codes = KV_BYTES // (elements * 34 // 32)
    assert blocks == {"int8": of_codes, "fp8": of_codes, "bf16": KV_BYTES // (elements * 2),
                      "fp32": KV_BYTES // (elements * 4)}
    assert len({str(logprobs) for _, logprobs in answers.values()}) == 4


def test_ranks_must_agree(make_cluster, random_model):
    cluster = make_cluster(workers=0)
    cluster.start_worker("w0", "--kv-cache-dtype", "int8")
    cluster.start_worker("w1", "--kv-cache-dtype", "bf16")
    cluster.wait_workers("IDLE", cluster.workers)
    result = cluster.phalanx("load", random_model, "--tp", 2, "--wait", 30)
    assert result.returncode == 1
    assert "KV cache type (--kv-cache-dtype)" in result.stderr and "'int8'" in result.stderr, result.stderr
    cluster.unload_all()
    cluster.load(random_model, "--tp", 2, "--kv-cache-dtype", "int8")  # says it to both
    said(cluster, 3, 40)


def test_what_is_refused(cluster, random_model):
    wrong = run(WORKER, "--coordinator", "h:1", "--kv-cache-dtype", "q8_0", timeout=20)
    assert wrong.returncode == 1
    assert "--kv-cache-dtype is 'q8_0'; it must be auto, bf16, fp32, int8 or fp8" in wrong.stderr
    with pytest.raises(grpc.RpcError) as error:
        cluster.client.load(path=str(random_model), kv_cache_dtype=9)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "spec.kv_cache_dtype is 9" in error.value.details()
    for kv_type in ("int8", "fp8"):
        with pytest.raises(grpc.RpcError) as error:
            cluster.client.load(path=str(MLA), kv_cache_dtype=f"KV_CACHE_DTYPE_{kv_type.upper()}")
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert f"{kv_type}, which is not for latent attention (MLA)" in error.value.details()
    # The worker's own flag is not known to the coordinator.
    cluster.client.load(path=str(MLA), name="latent")
    wait_for(lambda: "int8 (of the worker's flag) is not for latent attention (MLA)" in cluster.group().detail, 30,
             lambda: f"the refusal: {cluster.client.status()}")
    cluster.unload_all()
    cluster.load(MLA, "--kv-cache-dtype", "bf16")
