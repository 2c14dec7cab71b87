"""`dto.show`: a row of a run, or a row at hand, in a notebook or a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dto.errors import DtoError
from dto.records import STAYS, OptimizedTrajectory, PreferencePair, Trajectory, Verdict
from dto.viewer.answers import REASONS
from dto.viewer.data import AnswersView, BatchView, ChainView, RunTables, Shown, TrajectoryView
from dto.viewer.nodes import (
    GRADE_SIGNS,
    change,
    decimal,
    flops_change,
    interval,
    verified,
    visible_text,
)
from dto.viewer.render import html

if TYPE_CHECKING:
    from rich.text import Text

Run = tuple[str, str]  # text, and a style of rich
KIND_STYLES = {
    "opening": "bright_black",
    "understanding": "bright_green",
    "plan": "bright_cyan",
    "derivation": "bright_yellow",
    "verification": "blue",
    "alternative": "magenta",
    "hypothesis": "cyan",
    "summary": "yellow",
    "conclusion": "green",
    "loop": "red",
}
GRADE_STYLES = {"correct": "green", "wrong": "red", "truncated": "yellow", "failed": "red"}


def plain(record: Shown) -> str:
    """The record as text. What was cut stands behind a mark, as text has no strike."""
    return "".join(text for text, _ in _visible(record)).rstrip("\n")


def rich_text(record: Shown) -> Text:
    """The record as a text of `rich`."""
    from rich.text import Text

    return Text.assemble(*_visible(record))


def _visible(record: Shown) -> Iterator[Run]:
    """Ids and names too: a table may be somebody else's."""
    for text, style in _runs(record):
        yield visible_text(text), style


def _runs(record: Shown) -> Iterator[Run]:
    if isinstance(record, Trajectory):
        record = TrajectoryView(record, len(record.token_ids))
    if isinstance(record, TrajectoryView):
        yield from _trajectory(record)
    elif isinstance(record, AnswersView):
        yield from _answers(record)
    elif isinstance(record, ChainView):
        yield from _chain(record)
    elif isinstance(record, BatchView):
        yield from _batch(record)
    elif isinstance(record, OptimizedTrajectory):
        yield f"{record.id}\n", "bold"
        yield from _version(record)
    elif isinstance(record, PreferencePair):
        yield from _pair(record)


def _trajectory(view: TrajectoryView) -> Iterator[Run]:
    row, version = view.trajectory, view.optimized
    yield f"{row.id}", "bold"
    yield f"  {row.model}\n", "bright_black"
    if view.problem is not None:
        yield f"{view.problem.question}\n", ""
        if view.problem.answer_kind != "code":
            yield f"gold answer {view.problem.answer}\n", "bright_black"
    yield from _grade(row.grade)
    yield f" {row.answer or row.reason}  {view.tokens:,} tokens\n", ""
    for stage, dropped in view.dropped:
        yield f"{stage} dropped it, {dropped.reason}: {dropped.detail}\n", "yellow"
    yield "\n", ""
    estimates = {each.boundary: each for each in view.estimates}
    verdicts = {each.segment: each for each in version.verdicts} if version else {}
    if not view.segments:
        yield from _block(row.text[slice(*row.thinking)], "")
    removed = view.removed
    for segment in view.segments:
        fate = removed.get(segment.index, "")
        colour = KIND_STYLES.get(segment.kind, "bright_black")
        yield f"[{segment.index} {segment.kind}{fate and f', {fate}'}]\n", f"bold {colour}"
        yield from _block(row.text[slice(*segment.chars)], "strike dim" if fate else "", bool(fate))
        if (verdict := verdicts.get(segment.index)) is not None:
            yield _verdict(verdict), "italic"
        estimate = estimates.get(segment.index)
        taken = version is not None and version.exit == segment.index
        if estimate is not None:
            p = interval(estimate.p, estimate.p_low, estimate.p_high)
            right = f"{estimate.successes} of {estimate.rollouts - estimate.failed} right"
            yield f"── p {p}  {right}, {estimate.decision}\n", "bright_black"
        if taken:
            yield "══ exit\n", "bold green"
    conclusion = row.text[slice(*row.conclusion)]
    if conclusion.strip():
        yield "[after thinking]\n", "bold"
        yield from _block(conclusion, "")
    if version is not None:
        yield "\noptimized\n", "bold"
        yield from _version(version)
    for pair in view.pairs:
        tokens = change(pair.rejected_tokens, pair.chosen_tokens)
        yield f"\npair: {pair.chosen_from} over {pair.rejected_from}, tokens {tokens}\n", "bold"


def _version(version: OptimizedTrajectory) -> Iterator[Run]:
    yield f"{version.outcome}  tokens {change(version.tokens_before, version.tokens_after)}", ""
    flops = flops_change(version.attention_flops_before, version.attention_flops_after)
    yield f"  attention FLOPs {flops}", ""
    yield f"  finalizations right {version.pass_rate:.0%}", ""
    fresh = verified(version)
    yield (f"  pruned, p {fresh}\n" if fresh else "\n"), ""
    yield from _block(version.text, "")


def _verdict(verdict: Verdict) -> str:
    fate = "" if verdict.pruned or verdict.verdict in STAYS else ", restored"
    return f"   {verdict.verdict}{fate}: {verdict.reason}\n"


def _pair(pair: PreferencePair) -> Iterator[Run]:
    tokens = change(pair.rejected_tokens, pair.chosen_tokens)
    yield f"{pair.id}  tokens {tokens}\n", "bold"
    yield from _block(pair.prompt, "bright_black")
    yield f"\nchosen ({pair.chosen_from}, {pair.chosen_tokens:,} tokens)\n", "bold green"
    yield from _block(pair.chosen, "")
    yield f"\nrejected ({pair.rejected_from}, {pair.rejected_tokens:,} tokens)\n", "bold red"
    yield from _block(pair.rejected, "")


def _answers(view: AnswersView) -> Iterator[Run]:
    yield f"{view.id}\n", "bold"
    if view.problem is not None:
        yield f"{view.problem.question}\n", ""
        if view.problem.answer_kind != "code":
            yield f"gold answer {view.problem.answer}\n", "bright_black"
    for row in view.ordered:
        yield f"\n{row.model} · {row.exit}\n", "bold"
        yield from _grade(row.grade)
        ended = REASONS.get(row.exit_reason, row.exit_reason)
        yield f" {row.answer or row.reason}  {row.tokens:,} tokens, {ended}\n", ""
        for place, trial in enumerate(row.trials):
            yield f"  after {trial.position:>6,}  {decimal(trial.confidence)}  ", ""
            yield from _grade(trial.grade)
            yield f" {trial.answer}", ""
            yield ("  exit\n" if place == row.would_leave else "\n"), "bold"


def _chain(view: ChainView) -> Iterator[Run]:
    chain = view.chain
    yield f"{view.id}\n", "bold"
    if view.problem is not None:
        yield f"{view.problem.question}\n", ""
    yield from _grade(chain.grade)
    yield f" {chain.answer}  {chain.tokens:,} tokens, asked {view.asked}: {view.outcome}\n", ""
    yield from _block(chain.text, "")


def _batch(view: BatchView) -> Iterator[Run]:
    row = view.response
    yield f"{view.id}", "bold"
    yield f"  {len(row.token_ids):,} tokens {row.reason}\n", ""
    for number, problem in enumerate(view.problems, 1):
        yield f"{number}. {problem.question if problem else row.problem_ids[number - 1]}\n   ", ""
        yield from _grade(row.grades[number - 1])
        chain = ": ".join(filter(None, view.fate(number - 1)))
        yield f" {row.answers[number - 1]}  {row.faults[number - 1]} chain {chain}\n", ""
    yield from _block(row.text, "")


def _grade(grade: str) -> Iterator[Run]:
    yield f"{GRADE_SIGNS.get(grade, '')} {grade}", GRADE_STYLES.get(grade, "")


def _block(text: str, style: str, cut: bool = False) -> Iterator[Run]:
    """The lines of a text; those that were cut are marked."""
    for line in text.strip("\n").split("\n"):
        yield ("┆ " if cut else "  "), "bright_black"
        yield line, style
        yield "\n", ""


@dataclass(frozen=True, slots=True)
class Display:
    """Shows `row` as HTML in a notebook, as text in a terminal, with colours where `rich` prints.

    `row` is the row itself, or the view that joins it with what a run says of it.
    """

    row: Shown

    def _repr_html_(self) -> str:
        return html(self.row)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))

    def __str__(self) -> str:
        return plain(self.row)

    def __rich__(self) -> Text:
        return rich_text(self.row)


def show(row: Path | str | Shown, row_id: str = "") -> Display:
    """A trajectory of a run, joined with its segments, exits, verdicts, version and pairs.

    In a notebook it displays itself as `dto view` would; `print` gives a terminal's form. `row` is
    the run's directory, and `row_id` a trajectory's id or the beginning of one (the first that
    fits; the first of all by default); that of a test problem, `problem/sample`, gives what the
    evaluation answered, which is also what a run without trajectories shows first; so do those of
    DRQA's chains and batch prompts, in full. A Trajectory, an OptimizedTrajectory, a PreferencePair
    or a view in place of the run is shown by itself. Raises DtoError for an id that no row has, and
    for what has no display.
    """
    shown = RunTables(row).find(row_id) if isinstance(row, Path | str) else row
    if not isinstance(shown, Shown):
        raise DtoError(
            f"a {type(shown).__name__} has no display: give a run, a Trajectory, an "
            "OptimizedTrajectory or a PreferencePair"
        )
    return Display(shown)
