"""One model over any number of ranks: the tokens of an independent computation, and the same bits."""

import pytest

from tiny_gguf import byte_token

# The greedy continuation by the random model, from a plain forward pass in fp64 (numpy) over the same file. The best
# logit leads by at least 0.005 everywhere.
GREEDY = {
    "Once upon a time": [6, 219, 108, 44, 131, 63, 147, 136, 89, 180, 169, 36, 171, 243, 36, 117, 70, 25, 56, 198, 136,
                         89, 70, 154, 117, 246, 84, 2, 146, 226, 171, 70],
    "On and on": [214, 248, 113, 214, 248, 113, 214, 248, 113, 175, 47, 94, 178, 198, 136, 187, 117, 106, 18, 204, 198,
                  136, 187, 117, 106, 217, 76, 244, 96, 259, 99, 167],
    "Hello": [148, 161, 195, 241, 6, 224, 126, 37, 234, 210, 29, 175, 227, 187, 136, 165, 212, 105, 219, 47, 193, 30,
              170, 201, 259, 93, 1, 8, 161, 261, 43, 224],
}
RANKS = [1, 2, 3, 5, 8]
SAMPLED = {"temperature": 1, "seed": 4, "max_tokens": 100, "ignore_eos": True}


@pytest.fixture(scope="module")
def cluster(make_cluster):
    cluster = make_cluster(workers=max(RANKS))
    cluster.wait_workers("IDLE", cluster.workers)
    return cluster


@pytest.mark.parametrize("compute", ["fp32", "fast"])
def test_any_number_of_ranks(cluster, random_model, compute):
    seen, fingerprints = {}, set()
    for ranks in RANKS:
        cluster.load(random_model, "--name", "random", "--tp", ranks, "--compute", compute)
        fingerprints.add(cluster.group().fingerprint)
        if compute == "fp32":
            for text, ids in GREEDY.items():
                # The computation knows no merges: each byte is a token.
                answer = cluster.client.generate(
                    tokens={"ids": [byte_token(b) for b in text.encode()]},
                    sampling={"temperature": 0, "max_tokens": len(ids), "ignore_eos": True})
                assert answer.ids == ids, f"{ranks} ranks, {text!r}: {answer.details}"
        streams = [cluster.client.stream(text=text, logprobs=2, prompt_logprobs=2, sampling=SAMPLED) for text in GREEDY]
        answers = [stream.result() for stream in streams]
        assert all(answer.code.name == "OK" for answer in answers), answers[0].details
        seen[ranks] = [(a.ids, [str(p) for p in a.logprobs], [str(p) for p in a.prompt_logprobs]) for a in answers]
        cluster.client.unload("random")
        assert seen[ranks] == seen[1], f"{ranks} ranks differ from one"
    assert len(fingerprints) == 1, "the fingerprint depends on the number of ranks"


def test_shards_are_part_of_the_fingerprint(cluster, random_model):
    fingerprints = []
    for flags in (["--shards", "8"], ["--shards", "4"], ["--shards", "8", "--compute", "fp32"]):
        cluster.load(random_model, "--name", "random", "--tp", "2", *flags)
        fingerprints.append(cluster.group().fingerprint)
        cluster.client.unload("random")
    assert len(set(fingerprints)) == 3
