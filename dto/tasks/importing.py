"""Read rows of prompt and response, for the stages from `segment` on.

Rows of chosen and rejected are two responses to one prompt each, for the stages from `pair` on.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from dto.errors import DtoError
from dto.grading.compare import numeric
from dto.grading.grader import unreadable_golds
from dto.grading.pool import row_rule
from dto.records import Dropped, Problem, content_id
from dto.source import Source
from dto.tags import DEFAULT_TAGS, ThinkTags
from dto.tasks.batches import batch_files, batch_rows
from dto.tasks.files import Rows, read_source
from dto.tasks.load import NOT_NUMERIC, check_rule, load_problems
from dto.tasks.rows import read_row, read_sides
from dto.tasks.shapes import NO_COLUMNS, Columns, find
from dto.tasks.survey import WINDOW, Readings, no_value, survey
from dto.tasks.task import FieldError, Row

if TYPE_CHECKING:
    from dto.recipe import ProblemSettings

logger = logging.getLogger("dto")

TASK = "imported"
BLOCK = 1024  # gold answers that are checked together


class Response(NamedTuple):
    """A row as one response; `text` has the tags of the row, or tags derived from its fields.

    `correct` is the source's own verdict on this response; `cut`: the source says that the limit of
    tokens cut it off. `left_out` names the parts of its row that were not imported
    (`system_prompt`, `image`, `tools`, `generations`, another `prompt` that was sent) or were
    rewritten (`tags`).
    """

    problem: Problem
    sample: int
    text: str
    whole: bool = False  # one side of a preference: without tags it has no thinking
    correct: bool | None = None
    left_out: tuple[str, ...] = ()
    cut: bool = False


def holds_pairs(
    source: str,
    columns: Columns = NO_COLUMNS,
    batch_input: str | None = None,
    *,
    tags: ThinkTags = DEFAULT_TAGS,
    rows: Rows | None = None,
) -> bool:
    """Whether the first rows of a source are preferences: a chosen and a rejected response (TRL).

    `rows`: the rows of a source that is not written yet. Raises DtoError where `survey` does, and
    for a source that cannot be read.
    """
    where = source if rows is None else "the rows"
    return survey(_rows(source, batch_input) if rows is None else rows, where, columns, tags)


def json_line(row: Row) -> str:
    """A row as JSON; half a surrogate pair, which no file can hold, is escaped."""
    line = json.dumps(row, ensure_ascii=False, default=str)
    try:
        line.encode()
    except UnicodeEncodeError:
        return json.dumps(row, default=str)
    return line


def _rows(source: str, batch_input: str | None = None, *, verbose: bool = False) -> Rows:
    """The rows to train on: of a dataset the splits that begin with `train`, if it has any.

    Of an OpenAI batch, the output with its requests. With `verbose`, log the names of the other
    splits.
    """
    if (files := batch_files(source, batch_input)) is not None:
        return batch_rows(files)
    splits = read_source(Source.parse(source))
    train = {name: rows for name, rows in splits.items() if (name or "").startswith("train")}
    others = sorted(str(name) for name in splits.keys() - train.keys()) if train else []
    if others and verbose:
        logger.info("%s: split %s is not imported", source, ", ".join(others))
    return chain.from_iterable((train or splits).values())


def read_responses(
    source: str,
    *,
    tags: ThinkTags = DEFAULT_TAGS,
    rule: str = "math",
    columns: Columns = NO_COLUMNS,
    batch_input: str | None = None,
    verbose: bool = False,
) -> Iterator[Response | Dropped]:
    """Read the rows of a .jsonl or .parquet file, a folder or a Hub dataset, in order.

    Each row is read by its own shape (`dto.tasks.shapes`); the paths in `columns` (`sample.map`)
    replace those of its fields. With `verbose` the log has the shapes, and how each field was read.
    If a dataset has a split to train on, the others are not read, because they are test sets; with
    `verbose` the log names them. Thinking in a separate field is put between `tags`. Rows with the
    same question and gold answer are samples of one problem, whose answers `rule` compares.

    A row without a field, or with an empty one or the wrong type, is dropped with the reason
    `missing_field`, `wrong_type`, `empty_question`, `empty_response`, `several_turns`,
    `unequal_lists`, `several_golds`, `templated_prompt` or, if its two sides answer different
    questions, `two_questions`; one that repeats responses under another filter of lm-eval as
    `duplicate`; one whose columns contradict each other beyond the first rows as `undecided`; a
    line that is not a JSON object as `unreadable_row`. Of a row with several responses, empty ones
    are dropped alone, after the others. If the source `holds_pairs`, each row gives two responses,
    chosen and rejected, or none.

    Raises:
        DtoError: the source does not exist or cannot be read, or a user has to decide how.
    """
    samples: Counter[str] = Counter()
    variants: dict[str, str] = {}  # by question and responses
    readings, told = Readings(), list[str]()
    unseen, names = dict(columns), dict[str, None]()
    pairs = holds_pairs(source, columns, batch_input, tags=tags)
    rows = _rows(source, batch_input, verbose=verbose)
    for number, row in enumerate(rows, start=1):
        if isinstance(row, Dropped):
            yield row
            continue
        if unseen:
            names |= dict.fromkeys(map(str, row))
            unseen = {field: path for field, path in unseen.items() if find(row, path) is None}
        row_id, where = f"row/{number:08d}", f"{source}, row {number}"
        try:
            read = (read_sides if pairs else read_row)(row, tags, columns)
        except FieldError as error:
            yield Dropped(row_id, error.reason, f"{where}: {error}")
            continue
        key = content_id(read.question, read.answer, *read.texts) if read.variant else ""
        if read.variant and variants.setdefault(key, read.variant) != read.variant:
            before = variants[key]
            detail = f"{where}: filter {read.variant} repeats the responses of filter {before}"
            yield Dropped(row_id, "duplicate", detail)
            continue
        readings.add(row, read)
        if verbose and number == WINDOW:
            told = _tell(readings, told)
        problem_id = Problem.make_id(TASK, read.question, read.answer)
        problem = Problem(problem_id, TASK, "train", read.question, read.answer, rule)
        for text, correct, cut in zip(read.texts, read.correct, read.cut, strict=True):
            if not text:
                continue
            sample = samples[problem_id]
            yield Response(problem, sample, text, pairs, correct, read.left_out, cut)
            samples[problem_id] += 1
        for place, text in enumerate(read.texts, start=1):
            if not text:
                detail = f"{where}: response {place} of {len(read.texts)} is empty"
                yield Dropped(f"{row_id}/{place}", "empty_response", detail)
    for field, path in unseen.items() if names else ():
        raise no_value(field, path, names)
    if verbose:
        _tell(readings, told)


def is_whole(dropped: Dropped) -> bool:
    """Whether what was dropped is a row of the source, not one of the responses of a row."""
    return dropped.id.count("/") < 2


def _tell(readings: Readings, told: Sequence[str]) -> list[str]:
    """Log how rows were read, unless the log has it; return the lines."""
    lines = list(readings.lines())
    if lines != told:
        for line in lines:
            logger.info("%s", line)
    return lines


def imported_problems(
    source: str,
    settings: ProblemSettings,
    seed: int,
    *,
    tags: ThinkTags = DEFAULT_TAGS,
    columns: Columns = NO_COLUMNS,
    batch_input: str | None = None,
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
    rows = read_responses(
        source, tags=tags, rule=rule, columns=columns, batch_input=batch_input, verbose=True
    )
    for row in rows:
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
