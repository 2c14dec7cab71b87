"""Parts that trees of rows have in common: passages, headings, grades, facts, figures as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite

from dto.records import OptimizedTrajectory, Problem
from dto.sequential import clopper_pearson
from dto.viewer.markup import answer_text, marked_up
from dto.viewer.tree import Element, Node, el, run_text

LONG = 10_000
"""A text with more characters than this is split into blocks."""


def passage(text: str) -> list[Node]:
    """Mark up a text (`marked_up`); long text is split into blocks.

    A browser lays out only the visible blocks.
    """
    if len(text) <= LONG:
        return marked_up(text)
    blocks: list[Node] = []
    place = 0
    while place < len(text):
        end = place + LONG
        cut = (text.rfind(sign, place, end) + len(sign) for sign in ("\n\n", "\n", " "))
        end = next((found for found in cut if found > place + 1), end)
        blocks.append(el("div.block", marked_up(text[place:end])))
        place = end
    return blocks


GRADE_SIGNS = {"correct": "✓", "wrong": "✗", "truncated": "…", "failed": "!"}


def flops(value: float) -> str:
    """Format as `1.2e+08`; a dash where the size of the model is unknown."""
    return f"{value:.1e}" if isfinite(value) else "–"


def decimal(value: float) -> str:
    """Format with two decimals; a dash for nan."""
    return f"{value:.2f}" if isfinite(value) else "–"


def interval(value: float, low: float, high: float) -> str:
    """Format as `0.94 (0.71–1.00)`."""
    return f"{decimal(value)} ({low:.2f}–{high:.2f})"


def verified_rate(version: OptimizedTrajectory) -> str:
    """Format the success rate after a prune, its 95 % interval (Clopper-Pearson) and the rollouts.

    Empty where the rate is unknown.
    """
    trials = version.verified_rollouts
    if not trials or not isfinite(version.verified_p):
        return ""
    low, high = clopper_pearson(round(version.verified_p * trials), trials)
    return f"{interval(version.verified_p, low, high)}, {trials} fresh rollouts"


def relative_change(before: float, after: float) -> str:
    """Format the relative change as `−78 %`; empty where it is unknown."""
    if not (isfinite(before) and isfinite(after)) or before <= 0:
        return ""
    percent = round((after / before - 1) * 100)
    return f"{'+' if percent > 0 else '−' if percent else '±'}{abs(percent)} %"


def change(before: float, after: float, text: Callable[[float], str] = "{:,}".format) -> str:
    """Format as `356 → 80 (−78 %)`; a dash where a value is unknown."""
    if not (isfinite(before) and isfinite(after)):
        return "–"
    return f"{text(before)} → {text(after)} ({relative_change(before, after) or '–'})"


def heading(problem: Problem | None, row_id: str, *further: Node) -> Element:
    """Build the header: question, gold answer and row id."""
    if problem is None:
        return el("header", el("div.id", run_text(row_id), further))
    gold = problem.answer if problem.rule != "code" else ""
    return el(
        "header",
        el("div.id", run_text(problem.task), " · ", run_text(row_id), further),
        el("div.question", passage(problem.question), dir="auto"),
        el("div.gold", el("span.label", "gold answer"), " ", el("bdi", answer_text(gold)))
        if gold
        else None,
    )


def block(text: str, head: str = "") -> Element:
    """Build a passage, with an optional head."""
    above = el("div.head", el("span.kind", head)) if head else None
    return el("div.segment", above, el("div.text", passage(text), dir="auto"))


def rows_node(names: Sequence[str], rows: Sequence[Element]) -> Element:
    """Build a table with these column names."""
    head = el("thead", el("tr", [el("th", name, scope="col") for name in names]))
    return el("table.trial-list", head, el("tbody", rows))


def grade(value: str, reason: str = "") -> Element:
    """Build a grade with sign, word and colour."""
    title = {"title": reason} if reason else {}
    return el(f"span.grade.{value}", f"{GRADE_SIGNS.get(value, '')} {value}", **title)


def grade_sign(value: str) -> Element:
    """Build the sign of a grade; the word is its accessible name."""
    sign = GRADE_SIGNS.get(value, value)
    return el(f"span.grade.{value}", sign, title=value, role="img", aria_label=value)


def facts_node(facts: Sequence[tuple[str, Node | list[Node]]]) -> Element:
    """Build a line of names and values."""
    return el(
        "div.facts",
        [el("div.fact", el("span.label", name), el("span.value", value)) for name, value in facts],
    )
