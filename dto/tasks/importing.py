"""Read rows of prompt and response, for the stages from `segment` on.

Rows of chosen and rejected are two responses to one prompt each, for the stages from `pair` on.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from dto.errors import DtoError
from dto.grading.compare import numeric
from dto.grading.grader import unreadable_golds
from dto.grading.pool import row_rule
from dto.records import Dropped, Problem
from dto.source import Source
from dto.tags import DEFAULT_TAGS, ThinkTags
from dto.tasks.files import Rows, read_source
from dto.tasks.load import NOT_NUMERIC, check_rule, load_problems
from dto.tasks.shapes import SIDES, read_row, read_sides
from dto.tasks.task import FieldError

if TYPE_CHECKING:
    from dto.recipe import ProblemSettings

logger = logging.getLogger("dto")

TASK = "imported"
BLOCK = 1024  # gold answers that are checked together


class Response(NamedTuple):
    """A row as one response; `text` has the tags of the row, or tags derived from its fields.

    `correct` is the source's own verdict on this response. `left_out` names the parts of its row
    that were not imported (`system_prompt`, `image`, `tools`, `generations`) or were rewritten
    (`tags`).
    """

    problem: Problem
    sample: int
    text: str
    whole: bool = False  # one side of a preference: without tags it has no thinking
    correct: bool | None = None
    left_out: tuple[str, ...] = ()


def holds_pairs(source: str) -> bool:
    """Whether the first row of a source has a chosen and a rejected response (TRL's columns)."""
    rows = _rows(source)
    first = next((row for row in rows if not isinstance(row, Dropped)), None)
    return first is not None and all(first.get(side) is not None for side in SIDES)


def _rows(source: str, *, verbose: bool = False) -> Rows:
    """The rows to train on: of a dataset the splits that begin with `train`, if it has any.

    With `verbose`, log the names of the other splits.
    """
    splits = read_source(Source.parse(source))
    train = {name: rows for name, rows in splits.items() if (name or "").startswith("train")}
    others = sorted(str(name) for name in splits.keys() - train.keys()) if train else []
    if others and verbose:
        logger.info("%s: split %s is not imported", source, ", ".join(others))
    return chain.from_iterable((train or splits).values())


def read_responses(
    source: str, *, tags: ThinkTags = DEFAULT_TAGS, rule: str = "math", verbose: bool = False
) -> Iterator[Response | Dropped]:
    """Read the rows of a .jsonl or .parquet file, a folder or a Hub dataset, in order.

    If a dataset has a split to train on, the others are not read, because they are test sets; with
    `verbose` the log names them. Thinking in a separate field is put between `tags`. Rows with the
    same question and gold answer are samples of one problem, whose answers `rule` compares. A row
    without a field, or with an empty one or the wrong type, is dropped with the reason
    `missing_field`, `wrong_type`, `empty_question`, `empty_response`, `several_turns` or, if its
    two sides answer different questions, `two_questions`; a line that is not a JSON object as
    `unreadable_row`. If the source `holds_pairs`, each row gives two responses, chosen and
    rejected, or none.

    Raises:
        DtoError: the source does not exist or cannot be read.
    """
    samples: Counter[str] = Counter()
    pairs = holds_pairs(source)
    rows = _rows(source, verbose=verbose)
    for number, row in enumerate(rows, start=1):
        if isinstance(row, Dropped):
            yield row
            continue
        try:
            question, texts, answer = (read_sides if pairs else read_row)(row, tags)
        except FieldError as error:
            where = f"{source}, row {number}: {error}"
            yield Dropped(f"row/{number:08d}", error.reason, where)
            continue
        problem_id = Problem.make_id(TASK, question, answer)
        problem = Problem(problem_id, TASK, "train", question, answer, rule)
        for text in texts:
            yield Response(problem, samples[problem_id], text, whole=pairs)
            samples[problem_id] += 1


def imported_problems(
    source: str, settings: ProblemSettings, seed: int
) -> Iterator[Problem | Dropped]:
    """The questions of a source to train on, and the dev and test problems of the settings.

    No dev or test problem is among the questions; near duplicates are logged or dropped, as
    `load_problems` does. A question whose gold answer cannot be read is dropped
    (`unreadable_gold`), except in preferences, whose answers are not graded, and one that the
    settings' `filter` leaves out (`not_numeric`). `read_responses` names
    the reasons for which rows are dropped. Raises DtoError if no row can be read, and as
    `load_problems` does.
    """
    seen: set[str] = set()
    taken: list[Problem] = []  # in memory only where other problems are compared with them
    others = settings.model_copy(update={"train": 0})
    waiting: list[Problem] = []
    reason = "it is empty"
    rule = rule_of(settings)
    check_rule(rule)
    for row in read_responses(source, rule=rule, verbose=True):
        if isinstance(row, Dropped):
            reason = f"the last one is dropped as {row.reason}: {row.detail}"
        elif row.problem.id not in seen:
            seen.add(row.problem.id)
            if others.dev or others.test:
                taken.append(row.problem)
            if settings.filter and not numeric(row.problem.answer, rule):
                yield Dropped(row.problem.id, NOT_NUMERIC, f"{row.problem.answer[:80]!r}")
                continue
            if row.whole or not row.problem.answer:
                yield row.problem
                continue
            waiting.append(row.problem)
            if len(waiting) == BLOCK:
                yield from _readable(waiting)
                waiting = []
    yield from _readable(waiting)
    if not seen:
        raise DtoError(f"{source} has no row that can be read: {reason}")
    if others.dev or others.test:
        yield from load_problems(others, seed, taken)


def rule_of(settings: ProblemSettings) -> str:
    """The rule that compares the answers of imported rows."""
    return row_rule(settings.rule or "math", settings.rule_settings)


def _readable(problems: Sequence[Problem]) -> Iterator[Problem | Dropped]:
    faults = unreadable_golds(problems)
    return (faults.get(row.id, row) for row in problems)
