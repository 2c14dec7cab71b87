"""What a row looks like: trees of elements for trajectories, versions, pairs and answers.

Colour never stands alone: kinds, grades, verdicts and what was cut are also said in words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.resources import files
from math import isfinite

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
from dto.viewer.data import AnswersView, BatchView, ChainView, Shown, TrajectoryView
from dto.viewer.nodes import (
    Element,
    Node,
    block,
    change,
    data,
    decimal,
    el,
    facts_node,
    flops_change,
    grade,
    heading,
    interval,
    passage,
    to_html,
    verified,
)

KINDS = (
    "opening", "understanding", "plan", "derivation", "hypothesis", "verification", "alternative",
    "summary", "conclusion", "loop",
)  # fmt: skip
DENSE = 120  # segments from which on gaps between them would be all that is seen


def kind_class(kind: str) -> str:
    """The class that colours a kind of segment."""
    return f"k-{kind}" if kind in KINDS else "k-other"


def overview(view: TrajectoryView) -> Element | None:
    """The thinking at a glance: segments in proportion, and p with its interval above them."""
    if not view.segments:
        return None
    whole = max(1, view.segments[-1].tokens.end - view.segments[0].tokens.start)
    first = view.segments[0].tokens.start
    estimates = {row.boundary: row for row in view.estimates}
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
            taken = view.optimized is not None and view.optimized.exit == segment.index
            points.append(
                el(
                    "i.taken" if taken else "i",
                    title=f"after {segment.index}: p {probability(row)}",
                    style=f"--x:{x:.3f};{p_style(row)}",
                    data_go=segment.index,
                )
            )
    line = None
    if points and isfinite(view.threshold):
        label = el("span", f"threshold {view.threshold:g}")
        line = el("b", label, style=f"--p:{view.threshold * 100:.1f}")
    counts = Counter(segment.kind for segment in view.segments)
    known = [kind for kind in KINDS if kind in counts]
    legend = [
        el(f"span.kind.{kind_class(kind)}", data(kind), f" {counts[kind]}")
        for kind in (*known, *sorted(set(counts) - set(known)))
    ]
    if points:
        legend.append(el("span.key.dot", "chance p of a right answer at a boundary, 95 % interval"))
    if any("taken" in point.tag for point in points):
        legend.append(el("span.key.dot.taken", "exit"))
    if removed:
        legend.append(el("span.key.gone", "removed"))
    scale = [el("span.scale.high", "1"), el("span.scale.low", "p 0")]
    name = "Exit probability at each boundary, over segments in proportion to their tokens"
    dense = ".dense" if len(view.segments) > DENSE else ""
    return el(  # said in words below: a screen reader passes over the drawing
        "figure.map",
        el("div.points", scale, line, points, aria_hidden="true") if points else None,
        el(f"div.ribbon{dense}", ribbon, aria_hidden="true"),
        el("figcaption", legend),
        aria_label=name,
    )


def p_style(row: ExitEstimate) -> str:
    """Where p and its interval stand on a scale, for the style sheet."""
    p = row.p if isfinite(row.p) else 0.5
    return f"--p:{p * 100:.1f};--l:{row.p_low * 100:.1f};--h:{row.p_high * 100:.1f}"


def probability(row: ExitEstimate) -> str:
    """P with its interval."""
    return interval(row.p, row.p_low, row.p_high)


def html(record: Shown) -> str:
    """A record as HTML that needs nothing beside it, for notebooks."""
    style = files("dto.viewer").joinpath("assets/view.css").read_text("utf-8")
    return f"<style>{style}</style>{to_html(node(record))}"


def node(record: Shown) -> Element:
    """The tree of a record that can be displayed."""
    if isinstance(record, TrajectoryView):
        return trajectory_node(record)
    if isinstance(record, AnswersView):
        return answers_node(record)
    if isinstance(record, ChainView):
        return chain_node(record)
    if isinstance(record, BatchView):
        return batch_node(record)
    if isinstance(record, Trajectory):
        return trajectory_node(TrajectoryView(record, len(record.token_ids)))
    if isinstance(record, OptimizedTrajectory):
        return el(
            "article.dto",
            facts_node(_version_facts(record)),
            _version(record, (), el("h3", "Optimized")),
        )
    if isinstance(record, PreferencePair):
        return el("article.dto", _prompt(record.prompt), _pair(record))
    raise TypeError(f"no display for {type(record).__name__}")


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
        sides = el("div.sides", original, _version(version, _pieces(view), heads[1], _close(row)))
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
        ("attention FLOPs", flops_change(before, after)),
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
        said = verdicts.get(segment.index), others.get(segment.index)
        yield _segment(
            segment, row.text[slice(*segment.chars)], removed.get(segment.index, ""), *said
        )
        estimate = estimates.get(segment.index)
        taken = version is not None and version.exit == segment.index
        if estimate is not None or taken:
            yield _exit(estimate, taken)
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
        second = f" · counterfactual judge: {other.verdict}" if other is not None else ""
        kept = "" if verdict.pruned or verdict.verdict in STAYS else ", restored"
        said = el(
            "div.verdict", el("b", f"{verdict.verdict}{kept}"), " ", data(verdict.reason), second
        )
    gone = f".gone.{state}" if state else ""
    return el(
        f"div.segment.{kind_class(segment.kind)}{gone}",
        el(
            "div.head",
            el("span.index", str(segment.index)),
            el("span.kind", data(segment.kind)),
            el("span.state", state) if state else None,
            el("span.count", f"{segment.tokens.length:,} tokens"),
        ),
        el("s.text" if state else "div.text", passage(text.rstrip()), dir="auto"),
        said,
        data_segment=segment.index,
    )


def _exit(row: ExitEstimate | None, taken: bool) -> Element:
    """The line after a segment: how likely an answer given here is right."""
    label = el("span.taken", "exit") if taken else None
    if row is None:
        return el("div.exit.leave", label)
    detail = f"{row.successes} of {row.rollouts - row.failed} rollouts right · {row.decision}"
    failed = f" · {row.failed} failed" if row.failed else ""
    return el(
        f"div.exit.{row.decision}{'.leave' if taken else ''}",
        el("span.bar", el("i"), style=p_style(row)),
        el("span.p", f"p {probability(row)}"),
        el("span.detail", detail, failed, [" · ", *data(row.reason)] if row.reason else None),
        label,
        title=f"{row.tokens:,} tokens spent on rollouts",
    )


def _conclusion(text: str) -> Iterator[Element]:
    if text.strip():
        yield block(text.strip("\n"), "after thinking")


def _pieces(view: TrajectoryView) -> list[tuple[Segment, str]]:
    """The kept segments as they stand in the version's thinking: the exit cuts white space off."""
    version = view.optimized
    if version is None:
        return []
    by_index = {segment.index: segment for segment in view.segments}
    pieces: list[tuple[Segment, str]] = []
    place = version.thinking.start
    for index in version.kept:
        if (segment := by_index.get(index)) is None:
            break
        whole = view.trajectory.text[slice(*segment.chars)]
        text = next(
            (each for each in (whole, whole.rstrip()) if version.text.startswith(each, place)), None
        )
        if text is None:
            break
        pieces.append((segment, text))
        place += len(text)
    return pieces


def _close(row: Trajectory) -> str:
    """The closing tag of a response; empty where its thinking was never closed."""
    return row.text[row.thinking.end : row.conclusion.start]


def _version(
    version: OptimizedTrajectory,
    pieces: Sequence[tuple[Segment, str]],
    head: Element,
    close: str = "",
) -> Element:
    thinking = version.text[slice(*version.thinking)]
    rest = thinking[sum(len(text) for _, text in pieces) :]
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
            el("p.note", f"segment {each.segment}: {each.verdict}"
               f"{', pruned' if each.pruned else ''} ", data(each.reason))
            for each in version.verdicts
            if not pieces
        ],
    )  # fmt: skip


def _prompt(text: str) -> Element:
    return el("header", el("div.question", passage(text), dir="auto"))


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
