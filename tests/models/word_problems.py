"""Word problems with worked solutions: what the reasoning model of this folder is trained and graded on.

Standard library only, so that tests can make unseen problems and grade answers with it:

    problem = make_problem(random.Random(seed))
    answered = boxed_answer(text)          # None: no \\boxed{} with a whole number after the thinking
    right = answered == problem.answer

The same seed makes the same problem on every machine. A problem has one to four operations on whole numbers
(addition, subtraction, multiplication by one digit); no value on the way is negative or over 20000.
"""

import re
from typing import NamedTuple

NAMES = "Ann Ben Cara Dan Eve Finn Gus Hana Ivy Jack Kim Leo Mia Noah Olga Pete Rosa Sam Tina Uma".split()
THINGS = "apples beads books cards coins cups eggs keys nuts pens pins shells stamps stones".split()
CONTAINERS = "bags boxes crates jars".split()

START = "{name} has {x} {things}."
PACKED = [
    "{name} has {k} {containers} with {x} {things} each.",
    "There are {x} {things} in each box. {name} takes {k} boxes.",
    "{name} fills {k} {containers} with {x} {things} each.",
]
GAINS = [
    "{other} gives {name} {x} more.",
    "{name} buys {x} more.",
    "{name} finds {x} {things}.",
    "Then {name} gets {x} {things} from {other}.",
]
LOSSES = [
    "{name} loses {x}.",
    "{name} gives {x} to {other}.",
    "{name} sells {x} {things}.",
    "Then {other} takes {x} of them.",
]
GROWTHS = [
    "Then the number grows {x} times.",
    "{name} now has {x} times as many.",
]
TOGETHER = "{third} has {x} {things}. How many {things} do they have together?"
QUESTIONS = [
    "How many {things} does {name} have now?",
    "How many {things} are there?",
    "How many {things} does {name} have?",
    "How many are left?",
]


class Problem(NamedTuple):
    question: str
    work: str  # one line an operation
    answer: int


def _digits(number):
    """Lowest first."""
    return [int(digit) for digit in reversed(str(number))]


def _line(operation, columns, result):
    return f"{operation}: {' '.join(columns)} so {result}"


def work_addition(a, b):
    """Column by column from the right. The result is the last sum followed by the others' last digits."""
    columns, carry = [], 0
    a_digits, b_digits = _digits(a), _digits(b)
    for i in range(max(len(a_digits), len(b_digits))):
        x = a_digits[i] if i < len(a_digits) else 0
        y = b_digits[i] if i < len(b_digits) else 0
        total = x + y + carry
        columns.append(f"{x}+{y}" + (f"+{carry}" if carry else "") + f"={total}")
        carry = total // 10
    return _line(f"{a}+{b}", columns, a + b)


def work_subtraction(a, b):
    """a >= b. A column under zero borrows ten from the next."""
    columns, borrow = [], 0
    b_digits = _digits(b)
    for i, x in enumerate(_digits(a)):
        y = b_digits[i] if i < len(b_digits) else 0
        rest = x - y - borrow
        column = f"{x}-{y}" + (f"-{borrow}" if borrow else "") + f"={rest}"
        borrow = 1 if rest < 0 else 0
        columns.append(column + (f"+10={rest + 10}" if borrow else ""))
    return _line(f"{a}-{b}", columns, a - b)


def work_multiplication(a, k):
    """k is one digit."""
    columns, carry = [], 0
    for x in _digits(a):
        total = x * k + carry
        columns.append(f"{x}*{k}" + (f"+{carry}" if carry else "") + f"={total}")
        carry = total // 10
    return _line(f"{a}*{k}", columns, a * k)


def make_problem(rng):
    name, other, third = rng.sample(NAMES, 3)
    words = {"name": name, "other": other, "third": third}
    words |= {"things": rng.choice(THINGS), "containers": rng.choice(CONTAINERS)}
    steps = rng.choice([1, 2, 2, 3, 3, 4])
    sentences, work = [], []

    value = rng.randint(2, 999 if rng.random() < 0.5 else 99)
    if rng.random() < 0.2:
        k = rng.randint(2, 9)
        sentences.append(rng.choice(PACKED).format(k=k, x=value, **words))
        work.append(work_multiplication(value, k))
        value *= k
    else:
        sentences.append(START.format(x=value, **words))

    while len(work) < steps:
        kind, x = rng.random(), rng.randint(1, 999 if rng.random() < 0.3 else 99)
        if len(work) == steps - 1 and rng.random() < 0.1:
            sentences.append(TOGETHER.format(x=x, **words))
            return Problem(" ".join(sentences), "\n".join([*work, work_addition(value, x)]), value + x)
        if kind < 0.35 and value > 2:
            x = rng.randint(1, value - 1)
            sentences.append(rng.choice(LOSSES).format(x=x, **words))
            work.append(work_subtraction(value, x))
            value -= x
        elif kind < 0.6 and value <= 1111:
            x = rng.randint(2, 9)
            sentences.append(rng.choice(GROWTHS).format(x=x, **words))
            work.append(work_multiplication(value, x))
            value *= x
        else:
            sentences.append(rng.choice(GAINS).format(x=x, **words))
            work.append(work_addition(value, x))
            value += x

    sentences.append(rng.choice(QUESTIONS).format(**words))
    return Problem(" ".join(sentences), "\n".join(work), value)


def thinking(work):
    return f"<think>\n{work}\n</think>"


def conclusion(answer):
    return f"\n\nThe answer is \\boxed{{{answer}}}."


def boxed_answer(text):
    """The whole number in the last \\boxed{} after the thinking; None when there is none."""
    found = re.findall(r"\\boxed\{([^{}]*)\}", text.rpartition("</think>")[2])
    return int(found[-1]) if found and re.fullmatch(r"\d{1,18}", found[-1], re.ASCII) else None
