"""Word problems of one or two steps, and how somebody who overthinks them would think.

The data that the adapter of `benchmarks/real.py` is trained on, and the questions it is asked. Like
`nano`'s corpus it errs and doubts at stated rates, but in English, on a real vocabulary, and with
none of dto's answer inducers in it: whether the model answers when it is stopped is for the
measurement to show.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

NAMES = ("Tom", "Anna", "Ben", "Mia", "Sam", "Lily", "Jack", "Emma", "Leo", "Nina", "Max", "Ruth")
THINGS = ("apples", "books", "pencils", "marbles", "stickers", "cards", "shells", "coins", "eggs")
MORE = (
    ("{name} buys {k} more.", "buying {k} more"),
    ("{name} finds {k} more.", "finding {k} more"),
    ("A friend brings {k} more.", "getting {k} more"),
)
FEWER = (
    ("{name} gives {k} away.", "giving {k} away"),
    ("{name} loses {k} of them.", "losing {k}"),
    ("{name} sells {k} of them.", "selling {k}"),
)
TIMES = (
    ("Then {name} gets so many that there are {k} times as many.", "having {k} times as many"),
)
LARGEST = 40
SIGNS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}

FIRST_ERRORS = 0.10  # of the steps of the first pass
RECHECK_ERRORS = 0.08
GO_ON = (0.95, 0.75, 0.45, 0.20)  # the probability of another re-check after so many
KINDS = {"again": 0.48, "doubt": 0.27, "nod": 0.25}
AGAIN = ("Wait, let me check that again.", "Hmm, let me redo it.", "Alternatively, count it anew.")
OFF_BY_ONE = ("Wait, maybe I am off by one.", "Hmm, perhaps I miscounted by one.")
MISREAD = ("Hmm, I may have read that wrong.", "But wait, maybe it is the other way round.")
NODS = ("Wait, is that right? Yes, it is {n}.", "Hmm, {n} looks right to me.")
THINKING_WORDS = 42  # no further re-check behind so many words and signs


@dataclass(frozen=True, slots=True)
class WordProblem:
    """A question with its answer; `steps` are (sign, number, what is done)."""

    question: str
    answer: int
    start: int
    thing: str
    steps: tuple[tuple[str, int, str], ...]


def word_problem(random: Random) -> WordProblem:
    """One problem whose intermediate results are whole numbers from 1 to 40."""
    name, thing = random.choice(NAMES), random.choice(THINGS)
    start = value = random.randint(2, 15)
    sentences = [f"{name} has {start} {thing}."]
    steps: list[tuple[str, int, str]] = []
    for _ in range(random.choice((1, 2, 2))):
        sign = random.choice([sign for sign in "++--*" if sign != "*" or value <= 9])
        if sign == "-" and value < 3:
            sign = "+"
        if sign == "+":
            k, (said, done) = random.randint(2, 12), random.choice(MORE)
        elif sign == "-":
            k, (said, done) = random.randint(1, value - 1), random.choice(FEWER)
        else:
            k, (said, done) = random.randint(2, min(4, LARGEST // value)), random.choice(TIMES)
        value = SIGNS[sign](value, k)
        sentences.append(said.format(name=name, k=k))
        steps.append((sign, k, done.format(k=k)))
    question = f"{' '.join(sentences)} How many {thing} does {name} have now?"
    return WordProblem(question, value, start, thing, tuple(steps))


def problems(seed: int, count: int, exclude: frozenset[str] = frozenset()) -> list[WordProblem]:
    """So many different problems; no question of `exclude` is among them."""
    random = Random(seed)
    seen, rows = set(exclude), list[WordProblem]()
    while len(rows) < count:
        row = word_problem(random)
        if row.question not in seen:
            seen.add(row.question)
            rows.append(row)
    return rows


def thinking(problem: WordProblem, random: Random) -> tuple[str, int]:
    """What somebody thinks who checks too often, and the answer that it ends with."""
    text, answer = _pass(problem, random, FIRST_ERRORS, first=True)
    paragraphs = [f"{text} So the answer is {answer}."]
    for probability in GO_ON:
        words = sum(len(paragraph.split()) for paragraph in paragraphs)
        if words > THINKING_WORDS or random.random() >= probability:
            break
        kind = random.choices(list(KINDS), list(KINDS.values()))[0]
        if kind == "nod":
            paragraphs.append(random.choice(NODS).format(n=answer))
        elif kind == "again":
            text, answer = _pass(problem, random, RECHECK_ERRORS, first=False)
            paragraphs.append(f"{random.choice(AGAIN)} {text} So the answer is {answer}.")
        else:
            doubt, answer = _doubt(problem, answer, random)
            paragraphs.append(f"{doubt} So the answer is {answer}.")
    return "\n\n".join(paragraphs), answer


def _doubt(problem: WordProblem, answer: int, random: Random) -> tuple[str, int]:
    """Another answer for no good reason: one more or less, or the last step the other way round."""
    *steps, (sign, k, _) = problem.steps
    before = problem.start
    for step, number, _ in steps:
        before = SIGNS[step](before, number)
    turned = {"+": before - k, "-": before + k}.get(sign, 0)
    if turned > 0 and random.random() < 0.5:
        return random.choice(MISREAD), turned
    return random.choice(OFF_BY_ONE), answer + random.choice((-1, 1))


def response(problem: WordProblem, random: Random) -> str:
    """A whole response behind an opened `<think>`."""
    text, answer = thinking(problem, random)
    return f"{text}\n</think>\n\n**Final Answer**\n\\boxed{{{answer}}}"


def _pass(problem: WordProblem, random: Random, errors: float, first: bool) -> tuple[str, int]:
    value, said = problem.start, []
    for sign, k, done in problem.steps:
        result = SIGNS[sign](value, k)
        if random.random() < errors:
            result = max(0, result + random.choice((-2, -1, 1, 2)))
        sum_ = f"{value} {sign} {k} = {result}"
        said.append(f"{done[0].upper()}{done[1:]}: {sum_}." if first else f"{sum_}.")
        value = result
    start = f"There are {problem.start} {problem.thing}. " if first else ""
    return start + " ".join(said), value
