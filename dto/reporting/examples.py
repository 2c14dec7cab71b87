"""Examples of a run before and after: responses and their optimized versions, answers of models.

The rows are chosen by rule, so that nobody picks the nice ones: of each group the row whose share
of saved tokens is the median (the lower one of two; equal ones by id). The page says how many rows
the group has. Answers of the trained model include one that training made wrong, if there is any.

Texts go through `dto.redact`, as everything that can be shared. Test questions of others are not
copied (`dto.redact.withheld_stages`), nor are answers to them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import polars as pl

from dto.records import Trajectory
from dto.redact import Redaction, secrets_of, visible_text, withheld_stages, without_secrets
from dto.reporting.page import OmittedSection, Section
from dto.reporting.table import template
from dto.runs.reader import RunReader

MOST_CHARACTERS = 20_000
"""Of one text; a longer one loses its middle."""
TITLE = "Examples"


class Part(NamedTuple):
    """A piece of a text: kept, cut by the exit, pruned, or a remark of ours."""

    text: str
    kind: Literal["", "cut", "pruned", "left-out"] = ""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two texts of an example."""

    title: str
    detail: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """A question with two texts; `address` is the row in the viewer's page."""

    title: str
    question: str
    answer: str
    sides: tuple[Side, Side]
    address: str


def examples_section(run: RunReader, plain: str, name: str) -> Section | OmittedSection:
    """Build the section; `plain` is the exit without a policy, `name` names the run in commands."""
    found = [*_trajectories(run), *_answers(run, plain)]
    if not found:
        return OmittedSection(TITLE, "the run has no optimized trajectories and keeps no answers.")
    view = "../view.html" if (run / "view.html").is_file() else ""
    redaction, secrets = Redaction.of(run.recipe, run.path), secrets_of(run.recipe)

    def shown(text: str) -> str:
        """A text that can be shared, with its invisible characters marked."""
        return visible_text(without_secrets(redaction.text(text), secrets))

    html = template("examples.html.jinja").render(examples=found, view=view, shown=shown)
    more = "Each title leads to the row in view.html." if view else f"All rows: dto view {name}."
    return Section(
        "examples",
        TITLE,
        (
            "Chosen by rule: of each group the row with the median saving of tokens. Struck "
            f"through: cut by the exit. Struck through and coloured: pruned. {more}",
        ),
        html=html,
    )


def _median(rows: pl.DataFrame) -> str:
    """The id of the row with the median of column `saved`; rows must not be empty."""
    return str(rows.sort("saved", "id")["id"][(len(rows) - 1) // 2])


def _trajectories(run: RunReader) -> list[Example]:
    """A shortened trajectory, one with pruned patterns, and a repaired one, as far as there are."""
    last = next((stage for stage in ("prune", "optimize") if run.table(stage).is_file()), None)
    if last is None or not (run.table("sample").is_file() and run.table("segment").is_file()):
        return []
    pruned = pl.col("verdicts").list.eval(pl.element().struct.field("pruned")).list.sum()
    rows = (
        run.frame(last)
        .select(
            "id",
            "outcome",
            saved=1 - pl.col("tokens_after") / pl.col("tokens_before"),
            pruned=pruned.fill_null(0),
        )
        .collect(engine="streaming")
    )
    shortened = pl.col("outcome") == "shortened"
    groups = {
        "A right response, shortened": shortened,
        "A right response with pruned patterns": shortened & (pl.col("pruned") > 0),
        "A response that was not right, repaired": pl.col("outcome") == "repaired",
    }
    picked: dict[str, str] = {}
    for title, condition in groups.items():
        group = rows.filter(condition)
        others = group.filter(~pl.col("id").is_in(list(picked)))
        if len(others):
            picked[_median(others)] = f"{title}: the median of {len(group):,}"
    return [] if not picked else _read_trajectories(run, last, picked)


def _read_trajectories(run: RunReader, last: str, picked: dict[str, str]) -> list[Example]:
    tokens = pl.col("token_ids").list.len()
    columns = ["id", "problem_id", "text", "thinking", "grade"]
    sampled = _by_id(run.frame("sample").select(*columns, tokens=tokens), picked)
    versions = _by_id(run.frame(last, "id", "exit", "kept", "text", "tokens_after"), picked)
    segments = (
        run.frame("segment", "trajectory_id", "index", "chars")
        .filter(pl.col("trajectory_id").is_in(list(picked)))
        .sort("trajectory_id", "index")
        .collect(engine="streaming")
    )
    problems = _problems(run, "problems", {row["problem_id"] for row in sampled.values()})
    examples = []
    for row_id, title in picked.items():
        row, version = sampled[row_id], versions[row_id]
        text, thinking = row["text"], row["thinking"]
        parts = [Part(text[: thinking["start"]])]
        for _, index, chars in segments.filter(trajectory_id=row_id).iter_rows():
            piece = text[chars["start"] : chars["end"]]
            after, kept = index > version["exit"], index in version["kept"]
            parts.append(Part(piece, "cut" if after else "" if kept else "pruned"))
        parts.append(Part(text[thinking["end"] :]))
        before = Side("Original", f"{row['grade']}, {row['tokens']:,} tokens", _clipped(parts))
        after_text = _clipped([Part(version["text"])])
        optimized = Side("Optimized", f"correct, {version['tokens_after']:,} tokens", after_text)
        question, gold = problems.get(row["problem_id"], ("", ""))
        examples.append(Example(title, question, gold, (before, optimized), f"#{row_id}"))
    return examples


def _answers(run: RunReader, plain: str) -> list[Example]:
    """Answers of base and trained model to test questions: both right, one lost, one gained."""
    path = run.table("evaluate")
    stage = run.test_stage
    if not path.is_file() or "text" not in pl.read_parquet_schema(path):
        return []
    if stage in withheld_stages(run.recipe) or not run.table(stage).is_file():
        return []
    arms = run.frame("evaluate", "id", "model", "exit", "problem_id", "sample", "grade", "tokens")
    arms = arms.filter(pl.col("exit") == plain, pl.col("grade") != "failed")
    base, trained = (arms.filter(model=model) for model in ("base", "trained"))
    rows = (
        trained.join(base, on=["problem_id", "sample"], suffix="_base")
        .with_columns(saved=1 - pl.col("tokens") / pl.col("tokens_base"))
        .collect(engine="streaming")
    )
    right, was = pl.col("grade") == "correct", pl.col("grade_base") == "correct"
    groups = {
        "A test answer, right before and after training": right & was,
        "A test answer that training made wrong": was & ~right,
        "A test answer that training made right": right & ~was,
    }
    picked = {
        _median(group): (title, len(group))
        for title, condition in groups.items()
        if len(group := rows.filter(condition))
    }
    chosen = {row["id"]: row for row in rows.filter(pl.col("id").is_in(list(picked))).to_dicts()}
    wanted = [*picked, *(row["id_base"] for row in chosen.values())]
    texts = _by_id(run.frame("evaluate", "id", "text"), wanted)
    problems = _problems(run, stage, {row["problem_id"] for row in chosen.values()})
    examples = []
    for row_id, (title, count) in picked.items():
        row = chosen[row_id]
        base_text, text = texts[row["id_base"]]["text"], texts[row_id]["text"]
        if not (base_text and text):  # `evaluate.keep_answers` was off
            continue
        before = f"{row['grade_base']}, {row['tokens_base']:,} tokens"
        sides = (
            Side("Base", before, _clipped([Part(base_text)])),
            Side("Trained", f"{row['grade']}, {row['tokens']:,} tokens", _clipped([Part(text)])),
        )
        question, gold = problems.get(row["problem_id"], ("", ""))
        address = f"#{Trajectory.make_id(row['problem_id'], row['sample'])}&list=evaluation"
        title = f"{title}: the median of {count:,}"
        examples.append(Example(title, question, gold, sides, address))
    return examples


def _by_id(frame: pl.LazyFrame, ids: Collection[str]) -> dict[str, dict[str, Any]]:
    """The rows with these ids; a table is scanned, not read whole."""
    rows = frame.filter(pl.col("id").is_in(list(ids))).collect(engine="streaming")
    return {row["id"]: row for row in rows.to_dicts()}


def _problems(run: RunReader, stage: str, ids: Collection[str]) -> dict[str, tuple[str, str]]:
    """Question and gold answer of these problems, as far as they are there."""
    if not run.table(stage).is_file():
        return {}
    rows = _by_id(run.frame(stage, "id", "question", "answer"), ids)
    return {row_id: (row["question"], row["answer"]) for row_id, row in rows.items()}


def _clipped(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts without the middle of a text that is longer than MOST_CHARACTERS."""
    surplus = sum(len(part.text) for part in parts) - MOST_CHARACTERS
    if surplus <= 0:
        return tuple(parts)
    start, end, place, clipped = MOST_CHARACTERS // 2, MOST_CHARACTERS // 2 + surplus, 0, []
    for part in parts:
        head = part.text[: max(0, start - place)]
        tail = part.text[max(0, end - place) :]
        clipped.append(part._replace(text=head))
        if place <= start < place + len(part.text):
            clipped.append(Part(f"[{surplus:,} characters are left out here]", "left-out"))
        clipped.append(part._replace(text=tail))
        place += len(part.text)
    return tuple(part for part in clipped if part.text)
