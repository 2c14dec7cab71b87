"""Which questions are asked together: every one once for each k and each sample (2508.17803)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from dto.errors import DtoError
from dto.records import Dropped, Problem
from dto.seeds import derive


def groups(
    problems: Sequence[Problem],
    k: int,
    sample: int,
    seed: int,
    rates: Mapping[str, float] | None = None,
) -> Iterator[tuple[Problem, ...] | Dropped]:
    """The questions in groups of k, in an order drawn from the seed and the ids alone.

    With `rates`, pass rates by problem id, neighbours are of like difficulty; a problem without one
    counts as never solved. What does not fill a group is dropped as `left_over`: other samples draw
    another order. Programs are dropped as `no_short_answer`: numbered answers cannot hold them.
    Raises DtoError where there are fewer than k questions.
    """
    asked = [problem for problem in problems if problem.answer_kind != "code"]
    if len(asked) < k:
        raise DtoError(
            f"batch.k {k} is more than the {len(asked):,} questions that can be asked together: "
            "raise problems.train, or take a smaller k"
        )
    for problem in problems:
        if problem.answer_kind == "code":
            yield Dropped(_id(problem, k, sample), "no_short_answer", "the answer is a program")

    def place(problem: Problem) -> tuple[float, int, str]:
        rate = 0.0 if rates is None else rates.get(problem.id, 0.0)
        return rate, derive(seed, problem.id, "batch", k, sample), problem.id

    asked.sort(key=place)
    whole = len(asked) - len(asked) % k
    for start in range(0, whole, k):
        yield tuple(asked[start : start + k])
    for problem in asked[whole:]:
        detail = f"{len(asked):,} questions are no multiple of {k}"
        yield Dropped(_id(problem, k, sample), "left_over", detail)


def _id(problem: Problem, k: int, sample: int) -> str:
    return f"{k:03d}/{sample:03d}/{problem.id}"
