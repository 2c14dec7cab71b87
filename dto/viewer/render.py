"""What a row looks like: trees of elements for trajectories, versions, pairs and answers.

Colour never stands alone: kinds, grades, verdicts and what was cut are also said in words.
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
from dto.tags import known_close
from dto.viewer.answers import answers_node, batch_node, chain_node
from dto.viewer.data import (
    AnswersView,
    BatchView,
    ChainView,
    RunTables,
    Shown,
    TrajectoryView,
)
from dto.viewer.nodes import (
    KINDS,
    Element,
    Node,
    block,
    change,
    data,
    decimal,
    el,
    facts_node,
    flops,
    grade,
    heading,
    interval,
    passage,
    to_html,
    to_text,
    verified,
)

if TYPE_CHECKING:
    from rich.text import Text

DENSE = 120  # segments from which on gaps between them would be all that is seen


def kind_class(kind: str) -> str:
    """The class that colours a kind of segment."""
    return f"k-{kind}" if kind in KINDS else "k-other"


def overview(view: TrajectoryView) -> Element | None:
    """The thinking at a glance: segments in proportion, and p with its interval above them."""
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
        el(f"span.kind.{kind_class(kind)}", data(kind), f" {counts[kind]}")
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
        legend.append(el("span.key.dot", "chance p of a right answer at a boundary, 95 % interval"))
        legend += [el("span.key.dot.taken", "exit")] * (exit >= 0)
    if removed:
        legend.append(el("span.key.gone", "removed"))
    dense = ".dense" if len(view.segments) > DENSE else ""
    return el(  # said in words below: a screen reader passes over the drawing
        "figure.map",
        drawing,
        el(f"div.ribbon{dense}", ribbon, aria_hidden="true"),
        el("figcaption", legend),
        aria_label="Exit probability at each boundary, over segments in proportion to their tokens",
    )


def p_style(row: ExitEstimate) -> str:
    """Where p and its interval stand on a scale, for the style sheet."""
    p = row.p if isfinite(row.p) else 0.5
    return f"--p:{p * 100:.1f};--l:{row.p_low * 100:.1f};--h:{row.p_high * 100:.1f}"


@dataclass(frozen=True, slots=True, repr=False)
class Display:
    """Shows `row` as HTML in a notebook, as text in a terminal, with colours where `rich` prints.

    `row` is the row itself, or the view that joins it with what a run says of it.
    """

    row: Shown

    def _repr_html_(self) -> str:
        """HTML that needs nothing beside it."""
        style = files("dto.viewer").joinpath("assets/view.css").read_text("utf-8")
        return f"<style>{style}</style>{to_html(node(self.row))}"

    def __repr__(self) -> str:
        return "".join(text for text, _ in to_text(node(self.row))).rstrip("\n")

    def __rich__(self) -> Text:
        from rich.text import Text

        return Text.assemble(*to_text(node(self.row)))


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


def node(record: Shown) -> Element:
    """The tree of a record that can be displayed."""
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
    id = el("header", el("div.id", data(record.id)))
    if isinstance(record, PreferencePair):
        asked = el("div.question", passage(record.prompt), dir="auto")
        return el("article.dto", id, asked, _pair(record))
    version = _version(record, (), el("h3", "Optimized"))
    return el("article.dto", id, facts_node(_version_facts(record)), version)


def trajectory_node(view: TrajectoryView) -> Element:
    """All there is about a trajectory, on one page."""
    row = view.trajectory
    version = view.optimized
    paired = any(_stands_above(pair, view) for pair in view.pairs)
    heads = [
        el("h3", name, el(f"span.count.{side}", f"{side} in the pair") if paired else None)
        for name, side in (("Original", "rejected"), ("Optimized", "chosen"))
    ]
    original = el("section.side.original", heads[0], *_original(view))
    sides = original
    if version is not None:
        close = row.text[row.thinking.end : row.conclusion.start]  # empty where it never closed
        kept = [
            (segment, row.text[slice(*segment.chars)])
            for segment in view.segments
            if segment.index in version.kept
        ]
        sides = el("div.sides", original, _version(version, kept, heads[1], close))
    return el(
        "article.dto",
        heading(view.problem, row.id, " · ", *data(row.model)),
        facts_node(_trajectory_facts(view)),
        _notes(view),
        overview(view),
        sides,
        [_pair(pair) for pair in view.pairs if not _stands_above(pair, view)],
    )


def _trajectory_facts(view: TrajectoryView) -> list[tuple[str, Node | list[Node]]]:
    row = view.trajectory
    answer: list[Node] = [grade(row.grade, row.reason)]
    if row.answer:
        answer += [" ", el("bdi.answer", data(row.answer))]
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
        ("finalizations right", f"{version.pass_rate:.0%}".replace("%", " %")),
    ]
    if fresh := verified(version):
        facts.append(("pruned, p", fresh))
    if isfinite(version.join_perplexity):
        facts.append(("perplexity at joins", decimal(version.join_perplexity)))
    return facts


def _notes(view: TrajectoryView) -> list[Node]:
    """Where it ended, and what made its grade fail."""
    notes: list[Node] = []
    if view.trajectory.reason:
        notes.append(el("p.note", f"{view.trajectory.grade}: ", data(view.trajectory.reason)))
    for stage, row in view.dropped:
        detail = [": ", *data(row.detail)] if row.detail else []
        notes.append(el("p.note", f"{stage} dropped it, ", el("b", data(row.reason)), detail))
    return notes


def _original(view: TrajectoryView) -> Iterator[Element]:
    row = view.trajectory
    estimates = {each.boundary: each for each in view.estimates}
    version = view.optimized
    verdicts = {each.segment: each for each in version.verdicts} if version else {}
    others = {each.segment: each for each in version.counterfactual} if version else {}
    removed = view.removed
    if not view.segments and row.thinking.length:
        yield block(row.text[slice(*row.thinking)])
    for segment in view.segments:
        text, state = row.text[slice(*segment.chars)], removed.get(segment.index, "")
        said = verdicts.get(segment.index), others.get(segment.index)
        yield _segment(segment, text, state, *said)
        if (estimate := estimates.get(segment.index)) is not None:
            yield _exit(estimate, version is not None and version.exit == segment.index)
        elif version is not None and version.exit == segment.index:  # where answers are, untested
            yield el("div.exit.leave", el("span.taken", "exit"))
    yield from _conclusion(row.text[slice(*row.conclusion)])


def _segment(
    segment: Segment,
    text: str,
    state: str = "",
    verdict: Verdict | None = None,
    other: Verdict | None = None,
) -> Element:
    said = None
    if verdict is not None:
        fate = verdict_fate(verdict).removesuffix(", pruned")
        second = f" · counterfactual judge: {other.verdict}" if other is not None else ""
        said = el("div.verdict", el("b", fate), " ", data(verdict.reason), second)
    kind = kind_class(segment.kind)
    return el(
        f"div.segment.{kind}{'.gone' if state else ''}",
        el(
            "div.head",
            el("span.index", str(segment.index)),
            el(f"span.kind.{kind}", data(segment.kind)),
            el("span.state", state) if state else None,
            el("span.count", f"{segment.tokens.length:,} tokens"),
        ),
        el("s.text" if state else "div.text", passage(text.rstrip()), dir="auto"),
        said,
        data_segment=segment.index,
    )


def verdict_fate(verdict: Verdict) -> str:
    """A verdict, and what came of it."""
    if verdict.pruned:
        return f"{verdict.verdict}, pruned"
    return str(verdict.verdict) + ("" if verdict.verdict in STAYS else ", restored")


def _exit(row: ExitEstimate, taken: bool) -> Element:
    """The line after a segment: how likely an answer given here is right."""
    detail = f"{row.successes} of {row.rollouts - row.failed} rollouts right · {row.decision}"
    failed = f" · {row.failed} failed" if row.failed else ""
    return el(
        f"div.exit.{row.decision}{'.leave' if taken else ''}",
        el("span.bar", el("i"), style=p_style(row)),
        el("span.p", f"p {interval(row.p, row.p_low, row.p_high)}"),
        el("span.detail", detail, failed, [" · ", *data(row.reason)] if row.reason else None),
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
    """`pieces` are the kept segments with their texts, which the thinking begins with."""
    kept = "".join(text for _, text in pieces).rstrip()  # as the exit cuts white space off
    rest = version.text[version.thinking.start + len(kept) : version.thinking.end]
    name = "finalization" if pieces else "thinking"
    after = version.text[version.thinking.end :].lstrip()
    after = after.removeprefix(close or known_close(after))
    return el(
        "section.side.optimized",
        head,
        [_segment(segment, text) for segment, text in pieces],
        block(rest.strip("\n"), name) if rest.strip() else None,
        _conclusion(after),
        [
            el("p.note", f"segment {each.segment}: {verdict_fate(each)} ", data(each.reason))
            for each in version.verdicts
            if not pieces
        ],
    )  # fmt: skip


def _stands_above(pair: PreferencePair, view: TrajectoryView) -> bool:
    """Whether a pair is the optimized version over its original, which stand side by side."""
    version = view.optimized
    if version is None or pair.chosen_from != "optimized" or pair.rejected_id != view.id:
        return False
    return pair.chosen == version.text and pair.rejected == view.trajectory.text


def _pair(pair: PreferencePair) -> Element:
    """Chosen beside rejected."""
    chosen = pair.chosen_from.replace("_", " ")
    rejected = pair.rejected_from.replace("_", " ")
    summary = el(
        "summary",
        el("b", "Pair"),
        " ", data(chosen), " over ", data(rejected),
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
        el("h3", name, el("span.count", data(origin), f" · {tokens:,} tokens")),
        block(text),
    )
