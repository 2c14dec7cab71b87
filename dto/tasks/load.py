"""Read questions from generated chains, a task, a file or a dataset of the Hub."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from heapq import nsmallest
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from dto.errors import DtoError
from dto.extension import is_import_path, load
from dto.grading.compare import numeric
from dto.grading.grader import unreadable_golds
from dto.grading.pool import load_rule, row_rule
from dto.recipe import ProblemSettings
from dto.records import RULES, Dropped, Problem, Split
from dto.source import Source
from dto.tasks import TASKS
from dto.tasks.files import Rows, read_source
from dto.tasks.overlap import Index, same_as
from dto.tasks.task import PROMPTS, FieldError, Row, Task, text

_SPLIT_NAMES: Mapping[str, Split] = {
    "test": "test",
    "dev": "dev",
    "validation": "dev",
    "valid": "dev",
    "train": "train",
}
_ORDER: tuple[Split | None, ...] = ("test", "dev", "train", None)
"""Order in which splits are read: a question keeps the first split that has it. None: no split."""
_SLACK = 4096
"""Problems kept beyond those requested, to replace problems with unreadable gold answers."""
NEAR = 0.5
"""Least share of the 13-grams of the shorter of two questions that makes them near duplicates."""
NEAR_DUPLICATE = "near_duplicate"
NOT_NUMERIC = "not_numeric"


class ReadRow(NamedTuple):
    """A row of a source as a problem, or why it is dropped; `where` names the source and row."""

    split: Split | None
    where: str
    row: Problem | Dropped


def load_problems(
    settings: ProblemSettings, seed: int, taken: Collection[Problem] = (), *, at_most: bool = False
) -> Iterator[Problem | Dropped]:
    """Choose as many problems of each split as the settings request; report dropped rows.

    A split comes from the source's split of that name, or else from the rest of its train split or
    of its only one. The hash of their content decides which rows are chosen, not their order.
    Dropped are: rows that `read_problems` cannot read; a question that was read before or is in
    `taken` (`duplicate`), so that splits never share one, nor two that differ only in case and
    white space; and, among the chosen rows, one whose gold answer no answer can be compared with
    (`unreadable_gold`): the next row replaces it. A question that repeats half or more of a
    question of another split, or of one in `taken`, has `near_duplicate` in its metadata, or is
    dropped if the settings say so. Test problems are chosen first, then those of dev. Generated
    chains are not compared: all are alike, and none is in two splits. Raises DtoError as
    `read_problems` does, and for too few problems, unless `at_most`.
    """
    if settings.source == "chains":
        from dto.nano import chain_problems

        rule = row_rule(settings.rule or "math", settings.rule_settings)
        check_rule(rule)
        questions = {row.question for row in taken}
        for split in dict.fromkeys(_SPLIT_NAMES.values()):
            count: int = getattr(settings, split)
            chains = chain_problems(split, count + len(questions), seed)
            unused = (row for row in chains if row.question not in questions)
            yield from (replace(row, rule=rule) for row in islice(unused, count))
        return
    pools: dict[Split | None, list[Problem]] = {}
    most = settings.train + settings.dev + settings.test  # in one pool: the first by their ids
    keys = {same_as(row.question) for row in taken}
    for source_split, where, row in read_problems(settings):
        if isinstance(row, Dropped):
            yield row
        elif (key := same_as(row.question)) in keys:
            yield Dropped(row.id, "duplicate", where)
        else:
            keys.add(key)
            pool = pools.setdefault(source_split, [])
            pool.append(row)
            if len(pool) > most + 2 * _SLACK:
                pool[:] = nsmallest(most + _SLACK, pool, key=_by_id)
    yield from _divide(pools, settings, taken, at_most)


def read_problems(settings: ProblemSettings) -> Iterator[ReadRow]:
    """Read every row of the sources in the settings: test, dev, train, then rows of no split.

    Dropped are rows without gold answer (`no_gold_answer`) or question (`no_question`), rows whose
    fields do not fit the task (`missing_field`, `wrong_type`, `bad_options`), lines that are not
    JSON objects (`unreadable_row`), and rows of `settings.source` that its `filter` leaves out
    (`not_numeric`). Raises DtoError for a source that does not exist or cannot
    be read, and if a field of the first row is missing or has the wrong type: then the settings are
    wrong, not the row.
    """
    if settings.source == "chains":
        raise DtoError("chains are generated and have no rows to read: name another source")
    parts = _parts(settings.source, settings)
    if settings.test_source:
        others = _parts(settings.test_source, settings)
        tests = [part for part in others if part.split == "test"] or others
        parts = [part for part in parts if part.split != "test"]
        parts += [part._replace(split="test") for part in tests]
    parts.sort(key=lambda part: _ORDER.index(part.split))
    for split, place, task, plain, only_numbers, rows in parts:
        first = True
        for number, row in enumerate(rows, start=1):
            where = f"{place}, row {number}"
            if isinstance(row, Dropped):
                yield ReadRow(split, row.detail, row)
                continue
            try:
                problem = (plain if plain and _is_plain(row, task) else task).read(row)
            except FieldError as error:
                if first and error.reason != "bad_options":
                    key = "question" if error.field == task.question else "answer"
                    raise DtoError(f"{where} {error}: set problems.{key}_field") from None
                row_id = Problem.make_id(task.name, where, str(error))
                yield ReadRow(split, where, Dropped(row_id, error.reason, f"{where} {error}"))
                continue
            first = False
            if problem.question and problem.answer:
                kept = not only_numbers or numeric(problem.answer, problem.rule)
                dropped = Dropped(problem.id, NOT_NUMERIC, f"{where}: {problem.answer[:80]!r}")
                yield ReadRow(split, where, problem if kept else dropped)
            else:
                reason = "no_gold_answer" if problem.question else "no_question"
                yield ReadRow(split, where, Dropped(problem.id, reason, where))


class _Part(NamedTuple):
    """Rows of one split that are not read yet, with the task that reads them.

    `place` names the source in messages. `plain` reads rows of a local file that has a task's
    questions in fields `problem` and `answer`. `only_numbers`: drop the rows with other answers.
    """

    split: Split | None
    place: str
    task: Task
    plain: Task | None
    only_numbers: bool
    rows: Rows


def _parts(source: str, settings: ProblemSettings) -> list[_Part]:
    task = _task_of(source, settings)
    only_numbers = settings.filter == "numeric" and source == settings.source
    check_rule(task.rule)
    if task.rows is not None:
        splits = task.splits or {split: split for split in _SPLIT_NAMES.values()}
        return [
            _Part(split, f"{task.name} ({name})", task, None, only_numbers, _returned(task, name))
            for name, split in splits.items()
        ]
    fields_are_set = settings.question_field or settings.answer_field
    plain = (
        replace(task, question="problem", answer="answer", gold=text)
        if source not in TASKS and task.rule not in ("choice", "code") and not fields_are_set
        else None
    )
    parts, names = [], []
    for subset in task.subsets:
        place = Source.parse(task.hub, subset=subset, revision=task.revision)
        for name, rows in read_source(place).items():
            names.append(str(name))
            within = ", ".join(word for word in (subset, name) if word)
            where = f"{task.hub} ({within})" if within else task.hub
            if name is None or not task.splits:
                split = _SPLIT_NAMES.get(name or "")
                parts.append(_Part(split, where, task, plain, only_numbers, rows))
            elif name in task.splits:
                parts.append(_Part(task.splits[name], where, task, plain, only_numbers, rows))
    if not parts:
        missing, existing = ", ".join(task.splits), ", ".join(dict.fromkeys(names))
        raise DtoError(
            f"{task.hub} has no split {missing}, which task {task.name} reads: it has {existing}"
        )
    return parts


def _returned(task: Task, split: str) -> Iterator[Row]:
    """The rows that a task's function returns. Raises DtoError if it fails."""
    assert task.rows is not None
    try:
        for row in task.rows(split):
            if not isinstance(row, Mapping):
                raise TypeError(f"a row is {type(row).__name__}, not a mapping")
            yield row
    except Exception as error:  # the function may hold any code
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise DtoError(f"task {task.name}: rows({split!r}) fails: {reason}") from error


def _task_of(source: str, settings: ProblemSettings) -> Task:
    """The task that a source is, or is read as, with the settings that change it."""
    listed, is_main = TASKS.get(source), source == settings.source
    if is_import_path(source):
        listed = _imported(source, settings.source_settings if is_main else {})
    if listed is not None and not is_main:
        return listed
    task = listed or TASKS.get(settings.task or "") or Task(Path(source).stem, source)
    if listed is None:
        task = replace(task, hub=source, subsets=(None,), revision=None)
    if is_main:
        subsets = task.subsets if settings.subset is None else (settings.subset,)
        revision = settings.revision or task.revision
        task = replace(task, subsets=subsets, revision=revision)
    rule = row_rule(settings.rule, settings.rule_settings) if settings.rule else task.rule
    return replace(
        task,
        name=settings.task or task.name,
        question=settings.question_field or task.question,
        answer=settings.answer_field or task.answer,
        rule=rule,
        prompt=settings.prompt or task.prompt,
    )


def _imported(path: str, settings: Mapping[str, Any]) -> Task:
    """The task of another package. Raises DtoError, in one line, if there is none."""
    try:
        task = load(path, settings)
        task = task() if callable(task) else task
    except Exception as error:  # the function may hold any code
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise DtoError(f"task {path}: {reason}") from error
    if not isinstance(task, Task):
        raise DtoError(
            f"task {path} gives {type(task).__name__}: name a dto.Task, or a function that "
            "returns one"
        )
    return task


def check_rule(rule: str) -> None:
    """Raises DtoError, in one line, for a rule that is not built in and cannot be loaded."""
    if rule not in RULES:
        try:
            load_rule(rule)
        except ValueError as error:
            raise DtoError(f"answer rule {rule}: {error}") from None


def prompt_of(settings: ProblemSettings) -> str:
    """The name of the prompt that asks the questions of `settings.source`.

    For a finished run whose task is of a package that is missing here: that of rule `math`.
    """
    try:
        return settings.prompt or _task_of(settings.source, settings).asked_by
    except DtoError:
        return PROMPTS["math"]


def _is_plain(row: Row, task: Task) -> bool:
    task_fields, plain = {task.question, task.answer}, {"problem", "answer"}
    return plain <= row.keys() and not task_fields <= row.keys()


def _by_id(problem: Problem) -> str:
    return problem.id


def _divide(
    pools: Mapping[Split | None, list[Problem]],
    settings: ProblemSettings,
    taken: Collection[Problem],
    at_most: bool,
) -> Iterator[Problem | Dropped]:
    others = Index()
    for row in taken:
        others.add(row.id, row.question)
    unused = {name: sorted(pool, key=_by_id) for name, pool in pools.items()}
    split: Split
    for split in dict.fromkeys(_SPLIT_NAMES.values()):
        count: int = getattr(settings, split)
        name = next((name for name in (split, "train", None) if unused.get(name)), split)
        rows, unused[name] = unused.get(name, []), []
        chosen: list[Problem] = []
        while rows and len(chosen) < count:
            missing = count - len(chosen)
            block, rows = rows[:missing], rows[missing:]
            faults = unreadable_golds(block)
            yield from faults.values()
            for row in block:
                if row.id in faults:
                    continue
                row = replace(row, split=split)
                hit = others.find(row.question)
                if hit is not None and hit.share >= NEAR:
                    overlap = f"{hit.share:.0%} of {hit.where}"
                    if settings.near_duplicates == "drop":
                        yield Dropped(row.id, NEAR_DUPLICATE, overlap)
                        continue
                    row = replace(row, metadata={**row.metadata, NEAR_DUPLICATE: overlap})
                chosen.append(row)
        unused[name] = rows
        if len(chosen) < count and not at_most:
            raise DtoError(
                f"problems: {settings.source} has {len(chosen):,} usable rows left for {split}, "
                f"the recipe asks for {count:,}: lower problems.{split} or name another source"
            )
        yield from chosen
        for row in chosen:
            others.add(row.id, row.question)
