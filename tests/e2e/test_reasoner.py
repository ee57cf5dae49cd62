"""The reasoning model of tests/models through the whole system: right answers, the split, budgets, every number of ranks."""

import json
import random
import sys

import pytest

from cluster import ROOT

MODELS = ROOT / "tests" / "models"
sys.path.insert(0, str(MODELS))
from word_problems import boxed_answer, make_problem  # noqa: E402

RANKS = [1, 2, 3, 4, 5, 6, 7, 8]
REFERENCE = json.loads((MODELS / "phalanx-reasoner-reference.json").read_text())
MAX_TOKENS = 400  # an answer of the model has about 150


@pytest.fixture(scope="module")
def shared(make_cluster):
    cluster = make_cluster(workers=max(RANKS))
    cluster.wait_workers("IDLE", cluster.workers)
    return cluster


@pytest.fixture
def load(shared):
    """load(ranks, flags...) -> the module's cluster serving the model."""
    def loaded(ranks, *flags):
        shared.load(MODELS / "phalanx-reasoner", "--tp", str(ranks), *flags)
        return shared

    yield loaded
    shared.unload_all()


def ask(cluster, questions, **sampling):
    streams = [cluster.client.stream(timeout=120, chat={"messages": [{"role": "user", "content": question}]},
                                     sampling={"temperature": 0, "max_tokens": MAX_TOKENS} | sampling)
               for question in questions]
    answers = [stream.result() for stream in streams]
    for answer in answers:
        assert answer.code.name == "OK", answer.details
    return answers


def unseen(count, seed=20261122):
    rng = random.Random(seed)
    return [make_problem(rng) for _ in range(count)]


@pytest.mark.parametrize("rope", ["auto", "long"])
def test_solves_unseen_problems(load, rope):
    problems = unseen(100)
    answers = ask(load(2, "--rope", rope), [problem.question for problem in problems])
    right = 0
    for problem, answer in zip(problems, answers):
        right += boxed_answer(answer.text) == problem.answer
        assert "think>" not in answer.text + answer.reasoning
        assert answer.reasoning.strip() and "boxed" not in answer.reasoning
        assert answer.reason == "STOP"
    print(f"--rope {rope}: {right} of {len(problems)} right")
    assert right >= 0.9 * len(problems)


@pytest.mark.parametrize("ranks", RANKS)
def test_tokens_are_those_of_transformers(load, ranks):
    # Each number of ranks with one of the two tables.
    rope, mode = ("auto", "short") if ranks % 3 else ("long", "long")
    cluster = load(ranks, "--compute", "fp32", "--rope", rope)
    answers = ask(cluster, [problem["question"] for problem in REFERENCE["problems"]])
    for problem, answer in zip(REFERENCE["problems"], answers):
        assert answer.started.prompt_tokens == len(problem["prompt_ids"])
        assert answer.started.resume.rope_mode == ("short", "long").index(mode)
        assert answer.ids == problem[mode]["ids"], problem["question"]


def test_thinking_budget(load):
    cluster = load(3, "--rope", "auto")
    questions = [problem.question for problem in unseen(20)]
    alone = [ask(cluster, [question], max_reasoning_tokens=12)[0] for question in questions[:5]]
    together = ask(cluster, questions, max_reasoning_tokens=12)
    for answer in together:
        assert answer.reason == "STOP"
        assert answer.finished.usage.reasoning_tokens <= 12
        assert boxed_answer(answer.text) is not None, answer.text
    assert [a.ids for a in alone] == [a.ids for a in together[:5]]
