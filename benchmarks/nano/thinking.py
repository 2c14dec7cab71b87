"""How the corpus thinks: a first pass through the chain, then doubts.

The first pass gets a step wrong at a rate that depends on how hard it is. Then come re-checks, each
a paragraph that ends in a conclusion; the conclusion that stands at the end is the answer. Some
re-checks mend a mistake; more of them talk the answer away, so they cost accuracy and tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from dto.nano import WORDS, Chain, Step

PARAGRAPH = "\n\n"
OPENINGS = (
    "Okay, let me work through this.",
    "Let me go step by step.",
    "I take the steps in order.",
)
START_AGAIN = (
    "Wait, let me check that again.",
    "But wait, let me redo the whole chain.",
    "Let me double-check by starting over.",
    "Hmm, let me go through it once more.",
    "Alternatively, I can start from the top.",
)
FIRST_STEPS = (
    "Wait, the start may be off.",
    "But wait, I should check the first steps.",
    "Let me double-check the first part.",
    "Hmm, let me redo the first steps.",
)
HOLDS = "That holds."
DOUBTS = (
    "Wait, maybe it is {new}, not {old}.",
    "Hmm, perhaps it is {new}, not {old}.",
    "Alternatively, it could be {new}, not {old}.",
    "But wait, I think it is {new}, not {old}.",
)
NODS = (
    "Hmm, that looks right.",
    "Wait, is that right? Yes.",
    "Let me double-check. Yes, it holds.",
)
CONCLUSION = "So {where}the last digit is {digit}."


@dataclass(frozen=True, slots=True)
class Habits:
    """The rates at which the corpus errs and doubts.

    `go_on[k]` is the probability of another re-check after k of them. The kinds of re-check are
    weighed by `start_again` (the whole chain), `first_steps` (on to the end where they come out
    differently), `doubt` (another digit, for no reason) and `nod`. `errors` and `recheck_errors`
    multiply the error rates of the first pass and of recomputed steps.
    """

    go_on: tuple[float, ...]
    errors: float = 1.0
    start_again: float = 0.56
    first_steps: float = 0.18
    doubt: float = 0.08
    nod: float = 0.18
    recheck_errors: float = 1.0


OVERTHINKING = Habits(go_on=(0.98, 0.88, 0.70, 0.50, 0.30, 0.15))
CONTROL = Habits(go_on=())
EXACT = Habits(go_on=(), errors=0.0)
TOGETHER = {  # questions in the prompt: the more there are, the less each is checked
    2: Habits(go_on=(0.50, 0.25)),
    3: Habits(go_on=(0.35, 0.20)),
    4: Habits(go_on=(0.25,)),
    5: Habits(go_on=(0.20,)),
}


class Mark(NamedTuple):
    """What is known where a sentence ends, `end` characters into the thinking.

    `value` is the digit reached and `remaining` the steps that are still to be done; `stated` is
    the conclusion that stands, None before the first.
    """

    end: int
    value: int
    remaining: tuple[Step, ...]
    stated: int | None


@dataclass(slots=True)
class Thinking:
    """A thinking block as it is written. `where` names the question, if there are several."""

    where: str = ""
    text: str = ""
    marks: list[Mark] = field(default_factory=list)
    conclusions: list[int] = field(default_factory=list)

    def say(self, sentence: str, value: int, remaining: tuple[Step, ...] = ()) -> None:
        """Append a sentence, with a space where the last paragraph is still open."""
        if self.text and not self.text.endswith("\n"):
            self.text += " "
        self.text += sentence
        stated = self.conclusions[-1] if self.conclusions else None
        self.marks.append(Mark(len(self.text), value, remaining, stated))

    def conclude(self, value: int) -> None:
        """State a conclusion."""
        self.conclusions.append(value)
        self.say(CONCLUSION.format(where=self.where, digit=value), value)

    def paragraph(self) -> None:
        """End the paragraph."""
        self.text += PARAGRAPH


def error_rate(value: int, step: Step) -> float:
    """How often the first pass gets a step wrong."""
    if step.operation == "multiply":
        smaller = min(value, step.operand)
        return 0.28 if smaller >= 6 else 0.04 if smaller >= 3 else 0.01
    if step.operation == "subtract":
        return 0.10 if value < step.operand else 0.01
    return 0.03 if value + step.operand >= 10 else 0.01


def wrong_digit(right: int, random: Random) -> int:
    """A digit near the right one."""
    return (right + random.choice((-2, -1, 1, 2))) % 10


def fact(value: int, step: Step, result: int, verb: str = "ends in") -> str:
    """A step as a sentence."""
    return f"{value} {WORDS[step.operation]} {step.operand} {verb} {result}."


def verb_of(random: Random) -> str:
    """How a paragraph states its results."""
    return "ends in" if random.random() < 0.7 else "gives"


def _compute(
    thinking: Thinking,
    chain: Chain,
    values: list[int],
    errors: float,
    random: Random,
    *,
    pause: int = 0,
    stop: int = 0,
) -> None:
    """Write the steps, overwriting `values`.

    A paragraph ends before step `pause`. From step `stop` on it ends where nothing has changed.
    """
    verb = verb_of(random)
    unchanged = stop > 0
    for index, step in enumerate(chain.steps):
        if unchanged and index == stop:
            thinking.say(HOLDS, values[-1])
            return
        value = values[index]
        result = step.apply(value)
        if random.random() < errors * error_rate(value, step):
            result = wrong_digit(result, random)
        unchanged = unchanged and result == values[index + 1]
        values[index + 1] = result
        if index == pause and pause:
            thinking.paragraph()
        thinking.say(fact(value, step, result, verb), result, chain.steps[index + 1 :])


def first_pass(
    thinking: Thinking,
    chain: Chain,
    habits: Habits,
    random: Random,
    opening: str = "",
    paragraph: bool = False,
) -> list[int]:
    """Write the first pass and its conclusion; returns the digits it went through."""
    if opening:
        thinking.say(opening, chain.start, chain.steps)
        if paragraph:
            thinking.paragraph()
    values = [chain.start] * (len(chain.steps) + 1)
    pause = len(chain.steps) // 2 if random.random() < 0.3 else 0
    _compute(thinking, chain, values, habits.errors, random, pause=pause)
    thinking.conclude(values[-1])
    return values


def recheck(
    thinking: Thinking, chain: Chain, values: list[int], habits: Habits, random: Random
) -> None:
    """Write one more paragraph of doubt about a pass, and its conclusion."""
    thinking.paragraph()
    stated = thinking.conclusions[-1]
    kind = random.choices(
        ("start_again", "first_steps", "doubt", "nod"),
        (habits.start_again, habits.first_steps, habits.doubt, habits.nod),
    )[0]
    if kind == "start_again":
        thinking.say(random.choice(START_AGAIN), chain.start, chain.steps)
        _compute(thinking, chain, values, habits.recheck_errors, random)
    elif kind == "first_steps":
        thinking.say(random.choice(FIRST_STEPS), chain.start, chain.steps)
        _compute(thinking, chain, values, habits.recheck_errors, random, stop=random.randint(2, 3))
    elif kind == "doubt":
        values[-1] = wrong_digit(stated, random)
        thinking.say(random.choice(DOUBTS).format(new=values[-1], old=stated), values[-1])
    else:
        thinking.say(random.choice(NODS), values[-1])
    thinking.conclude(values[-1])


def think(chain: Chain, habits: Habits, random: Random) -> Thinking:
    """The thinking block for one question."""
    thinking = Thinking()
    opening = random.choice(OPENINGS) if random.random() < 0.4 else ""
    values = first_pass(thinking, chain, habits, random, opening, random.random() < 0.5)
    for probability in habits.go_on:
        if random.random() >= probability:
            break
        recheck(thinking, chain, values, habits, random)
    return thinking


def think_together(chains: tuple[Chain, ...], habits: Habits, random: Random) -> list[Thinking]:
    """One thinking per numbered question, to be joined by paragraphs; each names its question."""
    parts = []
    for number, chain in enumerate(chains, start=1):
        thinking = Thinking(where=f"for question {number} ")
        values = first_pass(thinking, chain, habits, random, f"Question {number}.")
        for probability in habits.go_on:
            if random.random() >= probability:
                break
            recheck(thinking, chain, values, habits, random)
        parts.append(thinking)
    return parts
