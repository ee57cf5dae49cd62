"""Choices, sampling fields and the calls about models, on real workers."""

import grpc
import pytest

import tiny_gguf
from tiny_gguf import SCRIPT, byte_token

TEXT = "Once upon a time"


@pytest.fixture(scope="module")
def cluster(make_cluster, random_model, script_model):
    cluster = make_cluster(workers=2)
    cluster.load(random_model, "--name", "random", "--context", "4096")
    cluster.load(script_model, "--name", "script", "--context", "4096")
    return cluster


def test_choices(cluster):
    """Choice 0 is what a call for one gives; each has its own tokens and its own end."""
    sampling = {"temperature": 1, "seed": 7, "max_tokens": 24, "ignore_eos": True}
    one = cluster.client.generate(model="random", text=TEXT, prompt_logprobs=0, sampling=sampling)
    three = cluster.client.generate(model="random", text=TEXT, prompt_logprobs=0, sampling={**sampling, "n": 3})
    again = cluster.client.generate(model="random", text=TEXT, sampling={**sampling, "n": 3})
    assert three.code.name == "OK", three.details
    assert three.order.count("started") == 1 and three.order[-1] == "finished" and sorted(three.finishes) == [0, 1, 2]
    assert three.of_choice(0) == (one.ids, one.text)
    choices = [tuple(three.of_choice(i)[0]) for i in range(3)]
    assert len(set(choices)) == 3 and all(len(ids) == 24 for ids in choices)
    assert [tuple(again.of_choice(i)[0]) for i in range(3)] == choices
    assert [p.positions for p in three.prompt_logprobs] == [p.positions for p in one.prompt_logprobs]
    for finished in three.finishes.values():
        assert finished.usage.completion_tokens == 24
        assert finished.usage.prompt_tokens == one.finished.usage.prompt_tokens
    cluster.wait_idle()


def test_cancelled_choices_free_what_they_held(cluster):
    stream = cluster.client.stream(model="random", text=TEXT, sampling={
        "n": 8, "max_tokens": 3000, "ignore_eos": True}).read_tokens(20)
    stream.cancel()
    assert stream.result().code.name == "CANCELLED"
    cluster.wait_idle()


def test_stops_of_choices(cluster):
    answer = cluster.client.generate(model="script", chat={"messages": [{"role": "user", "content": "Hi"}]},
                                     sampling={"temperature": 0, "n": 4, "stop": ["漢"]})
    assert [answer.of_choice(i)[1] for i in range(4)] == [SCRIPT[:SCRIPT.index("漢")]] * 4
    assert all(finished.stop == "漢" for finished in answer.finishes.values())
    cluster.wait_idle()


def test_fields_reach_the_model(cluster):
    """Each changes the tokens as it must, and the header says what was in force."""
    chat = {"messages": [{"role": "user", "content": "Hi"}]}
    x = byte_token(ord("x"))
    said = cluster.client.generate(model="script", chat=chat, sampling={
        "temperature": 0, "max_tokens": 6, "logit_bias": {x: 100}})
    assert said.text == "xxxxxx"
    assert dict(said.started.resume.sampling.logit_bias) == {x: 100}
    end = {"temperature": 0, "logit_bias": {tiny_gguf.END: 100}}
    assert cluster.client.generate(model="script", chat=chat, sampling=end).ids == [tiny_gguf.END]
    held = cluster.client.generate(model="script", chat=chat, sampling={**end, "min_tokens": 5})
    assert len(held.ids) == 6 and held.ids[-1] == tiny_gguf.END and tiny_gguf.END not in held.ids[:5]
    plain = cluster.client.generate(model="random", text=TEXT, sampling={"temperature": 0, "max_tokens": 60})
    for field, value in [("repetition_penalty", 1.8), ("presence_penalty", 2), ("frequency_penalty", 2)]:
        other = cluster.client.generate(model="random", text=TEXT, sampling={
            "temperature": 0, "max_tokens": 60, field: value})
        assert other.code.name == "OK" and getattr(other.started.resume.sampling, field) == pytest.approx(value)
        assert len(set(other.ids)) >= len(set(plain.ids)), field
    best = cluster.client.generate(model="random", text=TEXT, sampling={"temperature": 0, "max_tokens": 20})
    only = cluster.client.generate(model="random", text=TEXT, sampling={
        "temperature": 1, "seed": 3, "max_tokens": 20, "min_p": 1})
    assert only.ids == best.ids
    header = best.started.resume.sampling
    for field in header.DESCRIPTOR.fields:
        if field.name not in ("stop", "stop_token_ids", "logit_bias", "max_reasoning_tokens"):
            assert header.HasField(field.name), field.name


def call(cluster, method, **request):
    return cluster.client.call(f"phalanx.v1.Inference/{method}", request, timeout=20)


def refused(cluster, method, **request):
    with pytest.raises(grpc.RpcError) as error:
        call(cluster, method, **request)
    return error.value.code().name, error.value.details()


def test_tokenize_and_detokenize(cluster):
    text = "the inner héllo <|im_end|>漢\U0001f600"
    answer = call(cluster, "Tokenize", model="random", text=text, pieces=True)
    assert b"".join(answer.pieces) == text.encode() and len(answer.pieces) == len(answer.ids)
    assert tiny_gguf.END in answer.ids and answer.context_length == 4096
    plain = call(cluster, "Tokenize", model="random", text=text, parse_special=False)
    assert tiny_gguf.END not in plain.ids and not plain.pieces
    back = call(cluster, "Detokenize", model="random", ids=list(answer.ids), skip_special=False)
    assert back.text == text and back.raw == text.encode()
    assert call(cluster, "Detokenize", model="random", ids=list(answer.ids)).text == text.replace("<|im_end|>", "")
    half = call(cluster, "Detokenize", model="random", ids=list(answer.ids[:-1]))
    assert half.text.endswith("\ufffd") and half.raw.endswith(b"\xf0\x9f\x98")
    generated = cluster.client.generate(model="random", text=text, sampling={"max_tokens": 0})
    assert generated.started.prompt_tokens == len(answer.ids)
    chat = {"messages": [{"role": "user", "content": "Hi <|im_end|>"}]}
    ids = list(call(cluster, "Tokenize", model="script", chat=chat).ids)
    assert ids.count(tiny_gguf.END) == 1
    assert call(cluster, "Detokenize", model="script", ids=ids, skip_special=False).text == (
        "<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("method, request_, code, named", [
    ("Tokenize", {}, "INVALID_ARGUMENT", "prompt"),
    ("Tokenize", {"raw": "YWLDKA=="}, "INVALID_ARGUMENT", "raw is not UTF-8 at byte offset 2"),
    ("Tokenize", {"chat": {"messages": [{"role": "robot"}]}}, "INVALID_ARGUMENT", "chat.messages[0].role"),
    ("Tokenize", {"model": "gpt-17", "text": "x"}, "NOT_FOUND", "gpt-17"),
    ("Detokenize", {"ids": [5, -1]}, "INVALID_ARGUMENT", "ids[1] is -1"),
    ("Detokenize", {"ids": [tiny_gguf.VOCAB_SIZE]}, "INVALID_ARGUMENT", f"ids[0] is {tiny_gguf.VOCAB_SIZE}"),
    ("GetModel", {"model": "gpt-17"}, "NOT_FOUND", "random, script"),
    ("GetModel", {"model": ""}, "INVALID_ARGUMENT", "random, script"),
])
def test_refusals(cluster, method, request_, code, named):
    got, details = refused(cluster, method, **{**({} if method == "GetModel" else {"model": "random"}), **request_})
    assert got == code and named in details


def test_models(cluster):
    models = call(cluster, "ListModels").models
    assert [m.name for m in models] == ["random", "script"]
    for model in models:
        assert model.ready and model.has_tokenizer and model.has_chat_template and not model.detail
        assert (model.architecture, model.vocab_size) == ("llama", tiny_gguf.VOCAB_SIZE)
        assert model.context_length == 4096 and not model.chat_template
        assert tiny_gguf.END in model.end_token_ids and model.defaults.top_p == 1
    assert call(cluster, "GetModel", model="script").model.chat_template == tiny_gguf.CHAT_TEMPLATE


def test_tokenizer_folder(cluster, script_model, tmp_path):
    """Text, template and defaults of a folder take the place of the file's."""
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    folder = tiny_gguf.write_folder(tmp_path / "hf", template, do_sample=False, top_k=7,
                                    eos_token_id=[tiny_gguf.END, byte_token(ord("!"))])
    cluster.client.unload("script")
    try:
        cluster.load(script_model, "--name", "script", "--context", "4096", "--tokenizer", folder)
        assert next(m.spec for m in cluster.client.status().models if m.spec.name == "script").tokenizer == str(folder)
        model = call(cluster, "GetModel", model="script").model
        assert model.chat_template == template and (model.defaults.temperature, model.defaults.top_k) == (0, 7)
        assert list(model.end_token_ids) == [tiny_gguf.END, byte_token(ord("!"))]
        chat = {"messages": [{"role": "user", "content": "the inn"}]}
        ids = list(call(cluster, "Tokenize", model="script", chat=chat).ids)
        assert call(cluster, "Detokenize", model="script", ids=ids).text == "[user] the inn\n"
        assert list(call(cluster, "Tokenize", model="random", text="[user] the inn\n").ids) == list(ids)
        answer = cluster.client.generate(model="script", chat=chat)
        assert answer.text == SCRIPT[:-1] and answer.finished.stop_token_id == byte_token(ord("!"))
    finally:
        cluster.client.unload("script")
        cluster.load(script_model, "--name", "script", "--context", "4096")


@pytest.mark.parametrize("prepare, code, named", [
    (lambda folder: None, "NOT_FOUND", "spec.tokenizer"),
    (lambda folder: tiny_gguf.write_folder(folder, marks=tiny_gguf.MARKS), "INVALID_ARGUMENT",
     f"{tiny_gguf.VOCAB_SIZE + 2} tokens"),
    (lambda folder: tiny_gguf.write_folder(folder, top_p=2), "INVALID_ARGUMENT", "generation_config.json: top_p"),
])
def test_bad_tokenizer_folder(cluster, script_model, tmp_path, prepare, code, named):
    prepare(tmp_path / "hf")
    with pytest.raises(grpc.RpcError) as error:
        cluster.client.load(path=str(script_model), name="other", tokenizer=str(tmp_path / "hf"))
    assert error.value.code().name == code and named in error.value.details()
    assert len(cluster.client.status().models) == 2


def test_folder_without_files(cluster, script_model, tmp_path):
    with pytest.raises(grpc.RpcError) as error:
        cluster.client.load(path=str(script_model), name="bare", tokenizer=str(tmp_path))
    assert error.value.code() == grpc.StatusCode.NOT_FOUND
    assert str(tmp_path) in error.value.details() and "tokenizer.json" in error.value.details()
