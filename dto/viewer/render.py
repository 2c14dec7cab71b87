"""Trees of elements for trajectories, optimized versions, pairs and answers.

Colour is never the only sign: kinds, grades, verdicts and removed text are also named in words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from dto.errors import DtoError
from dto.records import (
    STAYS,
    ExitEstimate,
    OptimizedTrajectory,
    PreferencePair,
    Segment,
    Trajectory,
    Verdict,
)
from dto.tags import KNOWN_TAGS
from dto.viewer.answers import answers_node, batch_node, chain_node
from dto.viewer.data import (
    AnswersView,
    BatchView,
    ChainView,
    Displayable,
    RunTables,
    TrajectoryView,
)
from dto.viewer.markup import answer_text
from dto.viewer.nodes import (
    block,
    change,
    decimal,
    facts_node,
    flops,
    grade,
    heading,
    interval,
    passage,
    verified_rate,
)
from dto.viewer.prompt import Request
from dto.viewer.tree import KINDS, Element, Node, el, run_text, to_html, to_text

if TYPE_CHECKING:
    from rich.text import Text

DENSE = 120  # with more segments the gaps between them would hide them


def kind_class(kind: str) -> str:
    """Return the CSS class for a kind of segment."""
    return f"k-{kind}" if kind in KINDS else "k-other"


def overview(view: TrajectoryView) -> Element | None:
    """Draw segments in proportion to their tokens, and p with its interval at each boundary."""
    if not view.segments:
        return None
    first = view.segments[0].tokens.start
    whole = max(1, view.segments[-1].tokens.end - first)
    estimates = {row.boundary: row for row in view.estimates}
    exit = view.optimized.exit if view.optimized is not None else -1
    ribbon, points, removed = [], [], view.removed
    for segment in view.segments:
        gone = ".gone" if segment.index in removed else ""
        ribbon.append(
            el(
                f"i.{kind_class(segment.kind)}{gone}",
                title=f"{segment.index} {segment.kind}, {segment.tokens.length:,} tokens",
                style=f"--w:{segment.tokens.length / whole * 100:.3f}",
                data_go=segment.index,
            )
        )
        if (row := estimates.get(segment.index)) is not None:
            x = (segment.tokens.end - first) / whole * 100
            points.append(
                el(
                    "i.taken" if exit == segment.index else "i",
                    title=f"after {segment.index}: p {interval(row.p, row.p_low, row.p_high)}",
                    style=f"--x:{x:.3f};{p_style(row)}",
                    data_go=segment.index,
                )
            )
    counts = Counter(segment.kind for segment in view.segments)
    order = {kind: place for place, kind in enumerate(KINDS)}
    legend = [
        el(f"span.kind.{kind_class(kind)}", run_text(kind), f" {counts[kind]}")
        for kind in sorted(counts, key=lambda kind: (order.get(kind, len(order)), kind))
    ]
    drawing = None
    if points:
        line = el(
            "b",
            el("span", f"threshold {view.threshold:g}"),
            style=f"--p:{view.threshold * 100:.1f}",
        )
        scale = [el("span.scale.high", "1"), el("span.scale.low", "p 0")]
        drawing = el("div.points", scale, line, points, aria_hidden="true")
        legend.append(
            el("span.key.dot", "probability p of a right answer at a boundary, 95 % interval")
        )
        legend += [el("span.key.dot.taken", "exit")] * (exit >= 0)
    if removed:
        legend.append(el("span.key.gone", "removed"))
    dense = ".dense" if len(view.segments) > DENSE else ""
    return el(  # the text below says the same: a screen reader skips the drawing
        "figure.map",
        drawing,
        el(f"div.ribbon{dense}", ribbon, aria_hidden="true"),
        el("figcaption", legend),
        aria_label="Exit probability at each boundary, over segments in proportion to their tokens",
    )


def p_style(row: ExitEstimate) -> str:
    """Return the exit estimate p and its interval, in percent, as CSS variables."""
    p = row.p if isfinite(row.p) else 0.5
    return f"--p:{p * 100:.1f};--l:{row.p_low * 100:.1f};--h:{row.p_high * 100:.1f}"


@dataclass(frozen=True, slots=True, repr=False)
class Display:
    """Display of a row or view: HTML in a notebook, text in a terminal, in colour with `rich`."""

    row: Displayable

    def _repr_html_(self) -> str:
        """Return HTML with its own style sheet."""
        style = files("dto.viewer").joinpath("assets/view.css").read_text("utf-8")
        return f"<style>{style}</style>{to_html(node(self.row))}"

    def __repr__(self) -> str:
        return "".join(text for text, _ in to_text(node(self.row))).rstrip("\n")

    def __rich__(self) -> Text:
        from rich.text import Text

        return Text.assemble(*to_text(node(self.row)))


def show(row: Path | str | Displayable, row_id: str = "") -> Display:
    """Show a trajectory of a run with its segments, exits, verdicts, optimized version and pairs.

    A notebook displays the result as `dto view` would; `print` gives text for a terminal. `row` is
    the directory of the run. `row_id` is the id of a trajectory or the start of one; the first
    match is shown, by default the first trajectory. The id of a test problem, `problem/sample`,
    shows the answers of the evaluation, which are also the default of a run without trajectories.
    The full ids of DRQA's chains and batch prompts work too. In place of a run, `row` can be a
    Trajectory, an OptimizedTrajectory, a PreferencePair or a view. Raises DtoError for an unknown
    id and for a type without a display.
    """
    displayable = RunTables(row).find(row_id) if isinstance(row, Path | str) else row
    if not isinstance(displayable, Displayable):
        raise DtoError(
            f"a {type(displayable).__name__} has no display: give a run, a Trajectory, an "
            "OptimizedTrajectory or a PreferencePair"
        )
    return Display(displayable)


def node(record: Displayable) -> Element:
    """Build the tree of a record or view."""
    if isinstance(record, AnswersView):
        return answers_node(record)
    if isinstance(record, ChainView):
        return chain_node(record)
    if isinstance(record, BatchView):
        return batch_node(record)
    if isinstance(record, Trajectory):
        record = TrajectoryView(record, len(record.token_ids))
    if isinstance(record, TrajectoryView):
        return trajectory_node(record)
    id = el("header", el("div.id", run_text(record.id)))
    if isinstance(record, PreferencePair):
        prompt = el("div.question", passage(record.prompt), dir="auto")
        return el("article.dto", id, prompt, _pair(record))
    version = _version(record, (), el("h3", "Optimized"))
    return el("article.dto", id, facts_node(_version_facts(record)), version)


def trajectory_node(view: TrajectoryView) -> Element:
    """Build the tree of a trajectory and everything the run has about it."""
    row = view.trajectory
    version = view.optimized
    paired = any(_is_side_by_side(pair, view) for pair in view.pairs)
    heads = [
        el("h3", name, el(f"span.count.{side}", f"{side} in the pair") if paired else None)
        for name, side in (("Original", "rejected"), ("Optimized", "chosen"))
    ]
    original = el("section.side.original", heads[0], *_original(view))
    sides = original
    if version is not None:
        close = row.text[
            row.thinking.end : row.conclusion.start
        ]  # empty if the thinking never closes
        kept = [
            (segment, row.text[slice(*segment.chars)])
            for segment in view.segments
            if segment.index in version.kept
        ]
        sides = el("div.sides", original, _version(version, kept, heads[1], close))
    return el(
        "article.dto",
        heading(view.problem, row.id, " · ", *run_text(row.model)),
        facts_node(_trajectory_facts(view)),
        _notes(view),
        overview(view),
        sides,
        [_pair(pair) for pair in view.pairs if not _is_side_by_side(pair, view)],
        _request(view.request) if view.request is not None else None,
    )


def _request(request: Request) -> Element:
    """Build the collapsed prompt, as it was sent, with the sampling settings."""
    facts: list[tuple[str, Node | list[Node]]] = [
        (name, run_text(value)) for name, value in request.settings
    ]
    prompt = [
        el("span.special", run_text(text)) if special else run_text(text)
        for text, special in request.pieces
    ]
    return el(
        "details.request",
        el("summary", el("b", "Prompt and sampling settings"),
           el("span.count", f"{request.tokens:,} prompt tokens")),
        facts_node(facts),
        el("p.note", run_text(request.missing)) if request.missing else None,
        el("div.segment", el("div.text", prompt, dir="auto")) if prompt else None,
    )  # fmt: skip


def _trajectory_facts(view: TrajectoryView) -> list[tuple[str, Node | list[Node]]]:
    row = view.trajectory
    answer: list[Node] = [grade(row.grade, row.reason)]
    if row.answer:
        answer += [" ", el("bdi.answer", answer_text(row.answer))]
    if view.optimized is None:
        thinking = f"{view.tokens:,}, thinking {row.thinking_tokens.length:,}"
        facts: list[tuple[str, Node | list[Node]]] = [("tokens", thinking)]
        if row.finish_reason != "stop":
            facts.append(("ended by", row.finish_reason))
        return [("answer", answer), *facts, ("outcome", view.outcome)]
    return [("original", answer), *_version_facts(view.optimized)]


def _version_facts(version: OptimizedTrajectory) -> list[tuple[str, Node | list[Node]]]:
    before, after = version.attention_flops_before, version.attention_flops_after
    facts: list[tuple[str, Node | list[Node]]] = [
        ("outcome", el(f"span.outcome.{version.outcome}", version.outcome.replace("_", " "))),
        ("tokens", change(version.tokens_before, version.tokens_after)),
        ("attention FLOPs", change(before, after, flops)),
        ("right finalizations", f"{version.pass_rate:.0%}".replace("%", " %")),
    ]
    if fresh := verified_rate(version):
        facts.append(("p after pruning", fresh))
    if isfinite(version.join_perplexity):
        facts.append(("perplexity at joins", decimal(version.join_perplexity)))
    return facts


def _notes(view: TrajectoryView) -> list[Node]:
    """List the reason of its grade and the stages that dropped it."""
    notes: list[Node] = []
    if view.trajectory.reason:
        notes.append(el("p.note", f"{view.trajectory.grade}: ", run_text(view.trajectory.reason)))
    for stage, row in view.dropped:
        detail = [", ", *run_text(row.detail)] if row.detail else []
        notes.append(el("p.note", f"dropped by {stage}: ", el("b", run_text(row.reason)), detail))
    return notes


def _original(view: TrajectoryView) -> Iterator[Element]:
    row = view.trajectory
    estimates = {estimate.boundary: estimate for estimate in view.estimates}
    version = view.optimized
    verdicts, others = (
        {verdict.segment: verdict for verdict in group}
        for group in ((version.verdicts, version.counterfactual) if version else ((), ()))
    )
    removed = view.removed
    if not view.segments and row.thinking.length:
        yield block(row.text[slice(*row.thinking)])
    for segment in view.segments:
        text, state = row.text[slice(*segment.chars)], removed.get(segment.index, "")
        judged = verdicts.get(segment.index), others.get(segment.index)
        yield _segment(segment, text, state, *judged)
        if (estimate := estimates.get(segment.index)) is not None:
            yield _exit(estimate, version is not None and version.exit == segment.index)
        elif version is not None and version.exit == segment.index:  # an exit without an estimate
            yield el("div.exit.leave", el("span.taken", "exit"))
    yield from _conclusion(row.text[slice(*row.conclusion)])


def _segment(
    segment: Segment,
    text: str,
    state: str = "",
    verdict: Verdict | None = None,
    other: Verdict | None = None,
) -> Element:
    line = None
    if verdict is not None:
        label = verdict_label(verdict).removesuffix(", pruned")
        second = f" · counterfactual judge: {other.verdict}" if other is not None else ""
        line = el("div.verdict", el("b", label), " ", run_text(verdict.reason), second)
    kind = kind_class(segment.kind)
    return el(
        f"div.segment.{kind}{'.gone' if state else ''}",
        el(
            "div.head",
            el("span.index", str(segment.index)),
            el(f"span.kind.{kind}", run_text(segment.kind)),
            el("span.state", state) if state else None,
            el("span.count", f"{segment.tokens.length:,} tokens"),
        ),
        el("s.text" if state else "div.text", passage(text.rstrip()), dir="auto"),
        line,
        data_segment=segment.index,
    )


def verdict_label(verdict: Verdict) -> str:
    """Name a verdict and whether the segment was pruned or restored."""
    if verdict.pruned:
        return f"{verdict.verdict}, pruned"
    return str(verdict.verdict) + ("" if verdict.verdict in STAYS else ", restored")


def _exit(row: ExitEstimate, taken: bool) -> Element:
    """Build the line after a segment with the estimate at its boundary."""
    detail = f"{row.successes} of {row.rollouts - row.failed} rollouts right · {row.decision}"
    failed = f" · {row.failed} failed" if row.failed else ""
    return el(
        f"div.exit.{row.decision}{'.leave' if taken else ''}",
        el("span.bar", el("i"), style=p_style(row)),
        el("span.p", f"p {interval(row.p, row.p_low, row.p_high)}"),
        el("span.detail", detail, failed, [" · ", *run_text(row.reason)] if row.reason else None),
        el("span.taken", "exit") if taken else None,
        title=f"{row.tokens:,} tokens spent on rollouts",
    )


def _conclusion(text: str) -> Iterator[Element]:
    if text.strip():
        yield block(text.strip("\n"), "after thinking")


def _version(
    version: OptimizedTrajectory,
    pieces: Sequence[tuple[Segment, str]],
    head: Element,
    close: str = "",
) -> Element:
    """Build an optimized version; `pieces` are its kept segments with texts, in order."""
    kept = "".join(text for _, text in pieces).rstrip()  # the exit strips white space
    rest = version.text[version.thinking.start + len(kept) : version.thinking.end]
    name = "finalization" if pieces else "thinking"
    after = version.text[version.thinking.end :].lstrip()
    after = after.removeprefix(close or _known_close(after))
    return el(
        "section.side.optimized",
        head,
        [_segment(segment, text) for segment, text in pieces],
        block(rest.strip("\n"), name) if rest.strip() else None,
        _conclusion(after),
        [
            el("p.note", f"segment {verdict.segment}: {verdict_label(verdict)} ",
               run_text(verdict.reason))
            for verdict in version.verdicts
            if not pieces
        ],
    )  # fmt: skip


def _is_side_by_side(pair: PreferencePair, view: TrajectoryView) -> bool:
    """Return whether a pair is the optimized version over the original, shown side by side."""
    version = view.optimized
    if version is None or pair.chosen_from != "optimized" or pair.rejected_id != view.id:
        return False
    return pair.chosen == version.text and pair.rejected == view.trajectory.text


def _pair(pair: PreferencePair) -> Element:
    """Build a pair with chosen and rejected side by side."""
    chosen = pair.chosen_from.replace("_", " ")
    rejected = pair.rejected_from.replace("_", " ")
    summary = el(
        "summary",
        el("b", "Pair"),
        " ", run_text(chosen), " over ", run_text(rejected),
        el("span.count", "tokens ", change(pair.rejected_tokens, pair.chosen_tokens)),
    )  # fmt: skip
    sides = el(
        "div.sides",
        _side("Chosen", pair.chosen, pair.chosen_tokens, pair.chosen_id),
        _side("Rejected", pair.rejected, pair.rejected_tokens, pair.rejected_id),
    )
    return el("details.pair", summary, sides, open="")


def _side(name: str, text: str, tokens: int, origin: str) -> Element:
    return el(
        f"section.side.{name.lower()}",
        el("h3", name, el("span.count", run_text(origin), f" · {tokens:,} tokens")),
        block(text),
    )


def _known_close(text: str) -> str:
    """The known closing tag, of any model, with which a text begins; empty if there is none."""
    return next((close for _, close in KNOWN_TAGS if text.startswith(close)), "")
