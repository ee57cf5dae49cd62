"""Hugging Face directories as they are: both dialects, split weights, with and without text; LongRoPE's modes."""

import shutil

import grpc
import pytest

import tiny_hf
from cluster import PHALANX, run
from tiny_gguf import END, SCRIPT
from tiny_hf import ORIGINAL_CONTEXT

GREEDY = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}


@pytest.fixture(scope="module")
def shared(make_cluster):
    return make_cluster(workers=3)


@pytest.fixture
def cluster(shared):
    """The module's cluster, without a model."""
    shared.unload_all()
    shared.wait_workers("IDLE", shared.workers)
    yield shared
    shared.unload_all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("directories")


def tokenize(cluster, **request):
    return cluster.client.call("phalanx.v1.Inference/Tokenize", request)


def described(cluster):
    return cluster.client.call("phalanx.v1.Inference/GetModel").model


@pytest.mark.parametrize("five, parts", [(False, 1), (True, 3)])
def test_a_directory_as_it_is(cluster, folder, five, parts):
    path = tiny_hf.write_script(folder / f"script-1.{parts}", five=five, parts=parts, temperature=0.5,
                                eos_token_id=[END, 0])
    loaded = cluster.load(f"{path}/", "--tp", "2", "--compute", "fp32")
    assert f"script-1.{parts} is ready" in loaded.stdout
    answer = cluster.client.generate(chat={"messages": [{"role": "user", "content": "Hi"}]},
                                     sampling={"temperature": 0, "max_tokens": 50})
    assert answer.text == SCRIPT and answer.reason == "STOP", answer.details
    model = described(cluster)
    assert (model.architecture, model.has_tokenizer, model.has_chat_template) == ("llama", True, True)
    assert list(model.end_token_ids) == [0, END]
    assert model.defaults.temperature == 0.5
    assert "script-1" in cluster.phalanx("status").stdout


def test_without_a_tokenizer(cluster, folder):
    path = tiny_hf.write_random(folder / "mute", text=False)
    spoken = tiny_hf.write_random(folder / "spoken")
    cluster.load(path, "--tp", "2", "--compute", "fp32")
    ids = [5, 100, 7, 42]
    answer = cluster.client.generate(tokens={"ids": ids}, sampling=GREEDY)
    assert answer.code.name == "OK" and len(answer.ids) == 12 and answer.text == "", answer.details
    missing = str(path / "tokenizer.json")
    for request in ({"text": "Hi"}, {"chat": {"messages": [{"role": "user", "content": "Hi"}]}},
                    {"tokens": {"ids": ids}, "sampling": {"max_reasoning_tokens": 3}},
                    {"tokens": {"ids": ids}, "sampling": {"stop": ["x"]}}):
        refused = cluster.client.generate(**request)
        assert refused.code.name == "FAILED_PRECONDITION" and missing in refused.details, refused.details
    for request in ({"text": "Hi"}, {"chat": {"messages": [{"role": "user", "content": "Hi"}]}}):
        with pytest.raises(grpc.RpcError) as error:
            tokenize(cluster, **request)
        assert error.value.code().name == "FAILED_PRECONDITION" and missing in error.value.details()
    assert missing in described(cluster).detail
    cluster.unload_all()

    # The tokenizer of another folder; without it, its text does not change the tokens.
    cluster.load(path, "--compute", "fp32", "--tokenizer", spoken)
    assert cluster.client.generate(tokens={"ids": ids}, sampling=GREEDY).ids == answer.ids
    assert cluster.client.generate(text="Hi", sampling=GREEDY).code.name == "OK"


def test_without_a_template(cluster, folder):
    path = tiny_hf.write_random(folder / "blunt", chat_template=None)
    cluster.load(path)
    assert cluster.client.generate(text="Hi", sampling=GREEDY).code.name == "OK"
    refused = cluster.client.generate(chat={"messages": [{"role": "user", "content": "Hi"}]})
    assert refused.code.name == "FAILED_PRECONDITION"
    for file in ("chat_template.jinja", "tokenizer_config.json"):
        assert str(path / file) in refused.details, refused.details


@pytest.mark.parametrize("gone, named", [
    ("config.json", "config.json is missing"),
    ("model.safetensors.index.json", "lm_head.weight"),
    ("model-00002-of-00003.safetensors", "model-00002-of-00003.safetensors is missing"),
    ("model-*", "model-00001-of-00003.safetensors is missing: 3 of the 3"),
    ("model*", "no weights"),
])
def test_files_that_are_missing(cluster, folder, gone, named):
    path = tiny_hf.write_random(folder / "broken", parts=3)
    if gone == "model.safetensors.index.json":  # then all *.safetensors there are count
        (path / "model-00003-of-00003.safetensors").unlink()
    for file in path.glob(gone):
        file.unlink()
    result = cluster.phalanx("load", path, "--wait", "30")
    shutil.rmtree(path)
    assert result.returncode == 1 and named in result.stderr, result.stderr
    assert result.stderr.count("\n") == 1, result.stderr


def generate(cluster, prompt, max_tokens):
    ids = [3 + (7 * i) % 250 for i in range(prompt)]
    return cluster.client.stream(tokens={"ids": ids},
                                 sampling={"temperature": 0, "max_tokens": max_tokens, "ignore_eos": True})


def test_rope_modes(cluster, folder):
    path = tiny_hf.write_random(folder / "long", long_rope=True, text=False)
    border = [(50, 14), (50, 15), (40, 24), (40, 25), (63, 1), (64, 1), (80, 20), (5, 10)]

    def answers(*flags):
        cluster.load(path, "--compute", "fp32", *flags)
        alone = [generate(cluster, *size).result() for size in border]
        # Both modes in one batch: each sequence has the tokens that it has alone.
        together = [stream.result() for stream in [generate(cluster, *size) for size in border]]
        assert [a.ids for a in alone] == [a.ids for a in together]
        modes = [a.started.resume.rope_mode for a in alone]
        assert modes == [a.started.resume.rope_mode for a in together]
        cluster.unload_all()
        return modes, [a.ids for a in alone]

    modes, automatic = answers("--rope", "auto", "--tp", "3")
    assert modes == [int(prompt + tokens > ORIGINAL_CONTEXT) for prompt, tokens in border]
    long_modes, long = answers()
    assert long_modes == [1] * len(border)
    for mode, tokens, with_long in zip(modes, automatic, long):
        assert (tokens == with_long) == (mode == 1)
    assert cluster.client.load(path=str(path)).rope == 1  # long, filled in
    assert "long" in cluster.phalanx("status").stdout


def test_rope_of_a_short_context(cluster, folder):
    path = tiny_hf.write_random(folder / "short", long_rope=True, five=True, text=False)
    cluster.load(path, "--context", ORIGINAL_CONTEXT)
    assert generate(cluster, 10, 5).result().started.resume.rope_mode == 0


def test_rope_that_is_none(cluster, random_model):
    refused = run(PHALANX, "--server", cluster.address, "load", random_model, "--rope", "short")
    assert refused.returncode == 1 and "--rope 'short' is not long or auto" in refused.stderr
    with pytest.raises(grpc.RpcError) as error:
        cluster.client.load(path=str(random_model), rope=7)
    assert error.value.code().name == "INVALID_ARGUMENT" and "spec.rope is 7" in error.value.details()
    # A model with one table takes either.
    cluster.load(random_model, "--rope", "auto")
    assert cluster.client.generate(text="Hi", sampling=GREEDY).started.resume.rope_mode == 0
