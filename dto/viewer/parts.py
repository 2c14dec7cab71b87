"""What displays of trajectories and of answers share."""

from __future__ import annotations

from collections.abc import Sequence

from dto.records import Problem
from dto.viewer.figures import GRADE_SIGNS
from dto.viewer.nodes import Element, Node, data, el, passage

MEANINGS = {
    "attention FLOPs": "of the attention to earlier tokens, before and after",
    "finalizations right": "of the ends sampled after the exit, how many answer correctly",
    "pruned, p": "the chance of a right answer without what is pruned, 95 % interval; the rollouts "
    "come after the test that it passed, and decided nothing",
    "perplexity at joins": "how surprised the model is where text was cut out",
}


def heading(problem: Problem | None, row_id: str, *further: Node) -> Element:
    """The question, its gold answer, and which row this is."""
    if problem is None:
        return el("header", el("div.id", data(row_id), further))
    gold = problem.answer if problem.answer_kind != "code" else ""
    return el(
        "header",
        el("div.id", data(problem.task), " · ", data(row_id), further),
        el("div.question", passage(problem.question), dir="auto"),
        el("div.gold", el("span.label", "gold answer"), " ", el("bdi", data(gold)))
        if gold
        else None,
    )


def grade(value: str, reason: str = "") -> Element:
    """A grade: a sign, its word and its colour."""
    why = {"title": reason} if reason else {}
    return el(f"span.grade.{value}", f"{GRADE_SIGNS.get(value, '')} {value}", **why)


def grade_sign(value: str) -> Element:
    """The sign alone, where there is no room for the word, which it has as its name."""
    sign = GRADE_SIGNS.get(value, value)
    return el(f"span.grade.{value}", sign, title=value, role="img", aria_label=value)


def facts_node(facts: Sequence[tuple[str, Node | list[Node]]]) -> Element:
    """Names and values in a line; what a name means shows when it is pointed at."""
    cells = [
        el(
            "div.fact",
            el("span.label", name),
            el("span.value", value),
            **({"title": MEANINGS[name]} if name in MEANINGS else {}),
        )
        for name, value in facts
    ]
    return el("div.facts", cells)
