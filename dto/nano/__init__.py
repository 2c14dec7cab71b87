"""The embedded reasoning model: small enough for the repository, and it really overthinks.

`nano` answers chains of one-digit arithmetic and keeps checking its results. `nano-control` has the
same size and stops when it has the answer. `make nano` trains them (`benchmarks/nano`).

"Start with 7. Multiply by 8. Add 5. Subtract 9. What is the last digit?" Only the last digit is
kept after each step, and a subtraction that would fall below zero borrows ten (2 - 9 leaves 3): all
arithmetic is modulo 10. No step occurs twice in a chain.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

from dto.records import Problem, Split, content_id, derive

Operation = Literal["add", "subtract", "multiply"]

ORDERS: dict[Operation, str] = {
    "add": "Add {}.",
    "subtract": "Subtract {}.",
    "multiply": "Multiply by {}.",
}
WORDS: dict[Operation, str] = {"add": "plus", "subtract": "minus", "multiply": "times"}
MIN_STEPS, MAX_STEPS = 4, 6


@dataclass(frozen=True, slots=True)
class Step:
    """One operation with its operand."""

    operation: Operation
    operand: int

    def apply(self, value: int) -> int:
        """The last digit of the result."""
        if self.operation == "add":
            return (value + self.operand) % 10
        if self.operation == "subtract":
            return (value - self.operand) % 10
        return (value * self.operand) % 10


STEPS: tuple[Step, ...] = (
    *(Step("add", operand) for operand in range(1, 10)),
    *(Step("subtract", operand) for operand in range(1, 10)),
    *(Step("multiply", operand) for operand in range(2, 10)),
)


@dataclass(frozen=True, slots=True)
class Chain:
    """A start and the steps that follow."""

    start: int
    steps: tuple[Step, ...]

    @property
    def question(self) -> str:
        """The question text of the chain."""
        orders = " ".join(ORDERS[step.operation].format(step.operand) for step in self.steps)
        return f"Start with {self.start}. {orders} What is the last digit?"

    @property
    def values(self) -> tuple[int, ...]:
        """The start and the right result of each step."""
        values = [self.start]
        for step in self.steps:
            values.append(step.apply(values[-1]))
        return tuple(values)

    @property
    def answer(self) -> int:
        """The right last digit."""
        return self.values[-1]

    @property
    def split(self) -> Split:
        """The split of the chain, from a hash of its question, so that splits cannot overlap."""
        bucket = int(content_id("split", self.question), 16) % 10
        return "test" if bucket == 0 else "dev" if bucket == 1 else "train"


def chains(
    split: Split, random: Random, shortest: int = MIN_STEPS, longest: int = MAX_STEPS
) -> Iterator[Chain]:
    """Yield random chains of a split, endlessly and with repetitions."""
    while True:
        length = random.randint(shortest, longest)
        chain = Chain(random.randrange(10), tuple(random.sample(STEPS, length)))
        if chain.split == split:
            yield chain


def chain_problems(split: Split, count: int, seed: int) -> list[Problem]:
    """Generate `count` different problems of a split. The splits are disjoint for every seed.

    With the same seed, a longer list begins with the shorter one.
    """
    problems: dict[str, Problem] = {}
    for chain in chains(split, Random(derive(seed, split, "chain_problems"))):
        if len(problems) == count:
            break
        answer = str(chain.answer)
        problem = Problem(
            id=Problem.make_id("chains", chain.question, answer),
            task="chains",
            split=split,
            question=chain.question,
            answer=answer,
            metadata={"steps": str(len(chain.steps))},
        )
        problems.setdefault(problem.id, problem)
    return list(problems.values())
