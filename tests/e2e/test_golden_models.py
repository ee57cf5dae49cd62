"""Tiny models of every class against transformers (tests/golden/models), over real processes."""

import sys

import pytest

from cluster import ROOT

GOLDEN = ROOT / "tests" / "golden"
sys.path.insert(0, str(GOLDEN))

from check_server import Reference, answer, check, start  # noqa: E402

BORDER = 64  # original_max_position_embeddings of phi3_longrope
# Reference, checkpoint in tests/golden/models, --rope.
CASES = [
    ("phi3_20_5", "phi3_20_5", "long"),
    ("phi3_longrope", "phi3_longrope", "long"),
    ("phi3_longrope", "phi3_longrope_v5", "auto"),
    ("llama_9_3", "llama_9_3", "long"),
    ("qwen2_14_2", "qwen2_14_2", "long"),
    ("deepseek_mla", "deepseek_mla", "long"),
    ("deepseek_fp8", "deepseek_fp8", "long"),
    ("phi3_awq", "phi3_awq", "long"),
    ("llama_gptq_act", "llama_gptq_act", "long"),
    ("llama_9_3", "gguf/llama_9_3_split-00001-of-00003.gguf", "long"),
    ("deepseek_k_quants", "gguf/deepseek_k_quants.gguf", "long"),
    ("phi3_longrope", "gguf/phi3_longrope.gguf", "auto"),
]


@pytest.fixture(scope="module")
def shared(make_cluster):
    cluster = make_cluster(workers=3)
    cluster.wait_workers("IDLE", cluster.workers)
    return cluster


@pytest.fixture
def cluster(shared):
    """The module's cluster, without a model."""
    yield shared
    shared.unload_all()


def load(cluster, name, ranks, rope):
    cluster.load(GOLDEN / "models" / name, "--name", "golden", "--tp", ranks, "--compute", "fp32", "--rope", rope)


@pytest.mark.parametrize("name, checkpoint, rope", CASES)
def test_prompt_logprobs_and_greedy_tokens_are_transformers(cluster, name, checkpoint, rope):
    reference = Reference(GOLDEN / "models" / "references" / f"{name}.json", rope, BORDER)
    assert reference.prompts
    seen = {}
    for ranks in (1, 3):
        load(cluster, checkpoint, ranks, rope)
        seen[ranks], worst, problems = check(cluster.client, reference)
        print(f"{checkpoint}, {ranks} ranks: log-probabilities off by at most {worst:.2g}")
        assert not problems, problems
        cluster.client.unload("golden")
    assert seen[1] == seen[3], "3 ranks have other bits than one"


def test_sequences_below_and_across_the_border_in_one_batch_are_as_alone(cluster):
    reference = Reference(GOLDEN / "models" / "references" / "phi3_longrope.json", "auto", BORDER)
    modes = {prompt["rope"] for prompt in reference.prompts}
    assert modes == {"short", "long"}
    load(cluster, "phi3_longrope", 3, "auto")
    alone, _, problems = check(cluster.client, reference, at_once=False)
    assert not problems, problems
    started = [(prompt, start(cluster.client, prompt)) for prompt in reference.prompts * 3]
    for prompt, stream in started:
        assert answer(stream, prompt) == alone[prompt["name"]], f"prompt {prompt['name']} says otherwise in a batch"
