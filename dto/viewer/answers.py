"""The answers to one problem: every model under every exit, with the trials that exits made."""

from __future__ import annotations

from itertools import groupby

from dto.records import EvaluationRow
from dto.viewer.data import AnswersView, BatchView, ChainView
from dto.viewer.nodes import (
    Element,
    Node,
    block,
    data,
    decimal,
    el,
    facts_node,
    flops,
    grade,
    grade_sign,
    heading,
    passage,
    rows_node,
    saved,
)

REASONS = {
    "policy": "left early",
    "budget": "cut by its budget",
    "closed": "closed its thinking",
    "unclosed": "ended in its thinking",
    "length": "ran out of tokens",
    "failed": "failed",
}


def answers_node(view: AnswersView) -> Element:
    """A line for each model and exit; below it each trial answer with its confidence."""
    rows = view.ordered
    longest = max(row.tokens for row in rows)
    several = len({row.model for row in rows}) < len(rows)  # exits; else models side by side
    models = [
        el("div.cards", [_card(row, view.reference, longest) for row in own])
        for _, own in groupby(rows, key=lambda row: several and row.model)
    ]
    note = "An evaluation keeps answers, trial answers and counts, not the responses' texts."
    return el("article.dto", heading(view.problem, view.id), models, el("p.note", note))


def _card(row: EvaluationRow, plain: EvaluationRow | None, longest: int) -> Element:
    tokens, spent = f"{row.tokens:,} tokens", f"{flops(row.attention_flops)} attention FLOPs"
    if plain is not None and plain is not row:
        tokens += f" ({saved(plain.tokens, row.tokens) or '–'})"
        less = saved(plain.attention_flops, row.attention_flops)
        spent += f" ({less})" if less else ""
    whole = max(1, longest)
    parts = (("thinking", row.thinking_tokens), ("answer", row.answer_tokens),
             ("trials", row.trial_tokens))  # fmt: skip
    bar = [
        el(f"i.{name}", title=f"{name}: {count:,} tokens", style=f"--w:{count / whole * 100:.3f}")
        for name, count in parts
        if count
    ]
    return el(
        "section.card",
        el("h3", data(row.model), " · ", data(row.exit)),
        el(
            "div.line",
            grade(row.grade),
            el("bdi.answer", data(row.answer)) if row.answer else None,
            el("span.count", REASONS.get(row.exit_reason, row.exit_reason)),
        ),
        el("div.spent", bar, aria_hidden="true"),
        el(
            "div.line.count",
            f"{tokens}:",
            [el(f"span.part.{name}", f"{name} {count:,}") for name, count in parts],
            el("span", spent),
        ),
        el("p.note", data(row.reason)) if row.reason else None,
        rows_node(
            ("token", "confidence", "trial answer", ""),
            [_trial(row, place) for place in range(len(row.trials))],
        )
        if row.trials
        else None,
    )


def _trial(row: EvaluationRow, place: int) -> Element:
    trial = row.trials[place]
    leaves = place == row.would_leave
    left = "leaves" if row.exit_reason == "policy" else "would leave"
    percent = f"{trial.confidence * 100:.1f}"
    bar = el("span.bar", el("i"), style=f"--l:0;--p:{percent};--h:{percent}")
    return el(
        "tr.leave" if leaves else "tr",
        el("td.number", f"{trial.position:,}"),
        el("td.confidence", bar, " ", decimal(trial.confidence)),
        el("td", grade_sign(trial.grade), " ", el("bdi", data(trial.answer))),
        el("td.fate", left if leaves else ""),
    )


def chain_node(view: ChainView) -> Element:
    """The chain as the judge reads it, and the options that it is shown."""
    chain, labelled = view.chain, view.labelled
    facts: list[tuple[str, Node | list[Node]]] = [
        ("answer", [grade(chain.grade), " ", el("bdi", data(chain.answer))]),
        ("asked", [f"{view.asked}, question {chain.number}"]),
        ("tokens", [f"{chain.tokens:,}, as the judge reads it {chain.length:,}"]),
        ("label", [view.outcome.replace("_", " ")]),
        ("cut from", data(chain.source_id)),
    ]
    options = [
        el("p.option", el("b", f"{letter}. "), data(option), " ", sign)
        for letter, option in zip("ABC", labelled.options if labelled else (), strict=False)
        for sign in [grade_sign("correct") if labelled and letter == labelled.label else None]
    ]
    return el(
        "article.dto",
        heading(view.problem, chain.id),
        facts_node(facts),
        [el("p.note", "label dropped it, ", el("b", data(row.reason)), ": ", data(row.detail))
         for row in view.dropped],
        block(chain.text),
        el("h3", "What the judge chooses from") if options else None,
        options,
    )  # fmt: skip


def batch_node(view: BatchView) -> Element:
    """The questions with what became of each, and the response."""
    row = view.response
    names = ("", "question", "answer", "chain")
    body = [
        el(
            "tr",
            el("td.number", str(number)),
            el("td", passage(problem.question) if problem else data(row.problem_ids[number - 1])),
            el("td", grade_sign(row.grades[number - 1]), " ",
               el("bdi", data(row.answers[number - 1])), " ", data(row.faults[number - 1])),
            el("td", el("b", data(why)) if detail else data(why), " ", data(detail)),
        )
        for number, problem in enumerate(view.problems, 1)
        for why, detail in [view.fate(number - 1)]
    ]  # fmt: skip
    facts: list[tuple[str, Node | list[Node]]] = [
        ("asked", [f"{row.k} together"]),
        ("tokens", [f"{len(row.token_ids):,}, thinking {row.thinking_tokens.length:,}"]),
        ("ended by", [row.finish_reason]),
    ]
    parts = (("thinking", row.thinking), ("after thinking", row.conclusion))
    return el(
        "article.dto",
        el("header", el("div.id", data(row.id), " · ", data(row.model))),
        facts_node(facts),
        el("p.note", data(row.reason)) if row.reason else None,
        rows_node(names, body),
        [block(row.text[slice(*span)].strip("\n"), name) for name, span in parts if span.length],
    )
