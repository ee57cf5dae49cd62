"""Reasoning apart from the answer, and its budget, with a model that thinks without end."""

import pytest

import tiny_gguf
import tiny_hf

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
OPENING = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
           "<|im_start|>assistant\n<think>")


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "thinker.gguf"
    tiny_gguf.write_thinker(path)
    return path


@pytest.fixture(scope="module")
def cluster(make_cluster, thinker, tmp_path_factory):
    cluster = make_cluster(workers=2)
    cluster.load(thinker, "--name", "thinker", "--context", "4096")
    folder = tiny_gguf.write_folder(tmp_path_factory.mktemp("folder") / "hf", OPENING, tiny_gguf.MARKS)
    cluster.load(thinker, "--name", "opened", "--context", "4096", "--tokenizer", folder)
    return cluster


def think(cluster, model="thinker", **request):
    sampling = {"temperature": 0, "max_tokens": 100, **request.pop("sampling", {})}
    answer = cluster.client.generate(model=model, **{"chat": CHAT, **request}, sampling=sampling)
    assert answer.code.name == "OK", answer.details
    return answer


def test_thinks_without_end(cluster):
    answer = think(cluster, sampling={"max_tokens": 21})
    assert (answer.reasoning, answer.text, answer.reason) == ("hm" * 10, "", "LENGTH")
    assert answer.finished.usage.reasoning_tokens == 20


@pytest.mark.parametrize("budget", [1, 7, 50])
@pytest.mark.parametrize("model", ["thinker", "opened"])
def test_budget(cluster, model, budget):
    answer = think(cluster, model, sampling={"max_reasoning_tokens": budget})
    # Where the prompt opens the reasoning this model does it once more, which counts for nothing here.
    assert answer.reasoning == ("hm" * budget)[:len(answer.reasoning)]
    assert budget - 1 <= len(answer.reasoning) <= budget
    assert answer.finished.usage.reasoning_tokens == len(answer.reasoning)
    assert (answer.text, answer.reason) == ("Ok", "STOP")
    assert answer.started.resume.sampling.max_reasoning_tokens == budget
    assert answer.ids.count(tiny_gguf.THINK_END) == 1


def test_budget_of_nothing(cluster):
    answer = think(cluster, sampling={"max_reasoning_tokens": 0})
    assert len(answer.reasoning) <= 1 and answer.text == "Ok"


def test_budget_of_each_choice(cluster):
    answer = think(cluster, sampling={"n": 3, "max_reasoning_tokens": 50})
    assert [answer.of_choice(i)[1] for i in range(3)] == ["Ok"] * 3
    assert [f.usage.reasoning_tokens for _, f in sorted(answer.finishes.items())] == [50] * 3


def test_unsplit(cluster):
    """The split only changes what is told."""
    split = think(cluster, sampling={"max_reasoning_tokens": 8})
    whole = think(cluster, split_reasoning=False, sampling={"max_reasoning_tokens": 8})
    assert whole.ids == split.ids and whole.reasoning == ""
    assert whole.text == "<think>" + "hm" * 4 + "</think>Ok"
    assert whole.finished.usage.reasoning_tokens == 0


def test_text_and_tokens_that_leave_the_reasoning_open(cluster):
    text = "<think>hmhmh"
    ids = list(cluster.client.call("phalanx.v1.Inference/Tokenize", {"model": "thinker", "text": text}).ids)
    for prompt in ({"text": text}, {"tokens": {"ids": ids}}):
        budget = {"max_reasoning_tokens": 4}
        answer = think(cluster, chat=None, split_reasoning=True, sampling=budget, **prompt)
        assert (answer.reasoning, answer.text) == ("mhmh", "Ok")
        plain = think(cluster, chat=None, sampling=budget, **prompt)
        assert (plain.reasoning, plain.text) == ("", "mhmh</think>Ok")


def test_a_message_to_go_on_with(cluster):
    """Its reasoning is open or not, whatever the template ends with."""
    for content, reasoning, text in [("<think>hmh", "mhm", "Ok"), ("<think>hm</think>O", "", "k")]:
        chat = {"messages": [*CHAT["messages"], {"role": "assistant", "content": content}],
                "continue_final_message": True}
        answer = think(cluster, chat=chat, sampling={"max_reasoning_tokens": 3})
        assert (answer.reasoning, answer.text) == (reasoning, text)


def test_stop_strings_are_for_the_answer(cluster):
    answer = think(cluster, sampling={"max_reasoning_tokens": 8, "stop": ["mh", "k"]})
    assert (answer.reasoning, answer.text, answer.finished.stop) == ("hm" * 4, "O", "k")


def test_needs_a_tokenizer(cluster, tmp_path):
    cluster.client.load(path=str(tiny_hf.write_random(tmp_path / "bare", text=False)))
    try:
        answer = cluster.client.generate(model="bare", tokens={"ids": [5]}, sampling={"max_reasoning_tokens": 5})
        assert answer.code.name == "FAILED_PRECONDITION"
        assert "max_reasoning_tokens" in answer.details and "tokenizer" in answer.details
    finally:
        cluster.client.unload("bare")


def test_chat_command(cluster):
    ask = ["chat", "Hi", "--model", "thinker", "--temperature", "0", "--max-reasoning-tokens", "6"]
    shown = cluster.phalanx(*ask)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == "<think>\nhmhmhm\n</think>\nOk\n" and "6 of reasoning" in shown.stderr
    hidden = cluster.phalanx(*ask, "--hide-reasoning")
    assert hidden.stdout == "Ok\n"
