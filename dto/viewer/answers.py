"""Trees for the answers to a problem (by model and exit), for chains and for batch prompts."""

from __future__ import annotations

from itertools import groupby

from dto.records import EvaluationRow
from dto.viewer.data import AnswersView, BatchView, ChainView
from dto.viewer.nodes import (
    Element,
    Node,
    block,
    decimal,
    el,
    facts_node,
    flops,
    grade,
    grade_sign,
    heading,
    passage,
    relative_change,
    rows_node,
    run_text,
)

REASONS = {
    "policy": "exited early",
    "budget": "cut off by the budget",
    "closed": "closed its thinking itself",
    "unclosed": "ended without closing its thinking",
    "length": "ran out of tokens",
    "failed": "failed",
}


def answers_node(view: AnswersView) -> Element:
    """Build a card per model and exit, each with its trial answers and their confidence."""
    rows = view.ordered
    longest = max(row.tokens for row in rows)
    several = len({row.model for row in rows}) < len(rows)  # several exits of one model
    models = [
        el("div.cards", [_card(row, view.reference, longest) for row in group])
        for _, group in groupby(rows, key=lambda row: several and row.model)
    ]
    note = "An evaluation stores answers, trial answers and counts, but no response texts."
    return el("article.dto", heading(view.problem, view.id), models, el("p.note", note))


def _card(row: EvaluationRow, plain: EvaluationRow | None, longest: int) -> Element:
    tokens, cost = f"{row.tokens:,} tokens", f"{flops(row.attention_flops)} attention FLOPs"
    if plain is not None and plain is not row:
        tokens += f" ({relative_change(plain.tokens, row.tokens) or '–'})"
        change = relative_change(plain.attention_flops, row.attention_flops)
        cost += f" ({change})" if change else ""
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
        el("h3", run_text(row.model), " · ", run_text(row.exit)),
        el(
            "div.line",
            grade(row.grade),
            el("bdi.answer", run_text(row.answer)) if row.answer else None,
            el("span.count", REASONS.get(row.exit_reason, row.exit_reason)),
        ),
        el("div.spent", bar, aria_hidden="true"),
        el(
            "div.line.count",
            f"{tokens}:",
            [el(f"span.part.{name}", f"{name} {count:,}") for name, count in parts],
            el("span", cost),
        ),
        el("p.note", run_text(row.reason)) if row.reason else None,
        rows_node(
            ("token", "confidence", "trial answer", ""),
            [_trial(row, place) for place in range(len(row.trials))],
        )
        if row.trials
        else None,
    )


def _trial(row: EvaluationRow, place: int) -> Element:
    trial = row.trials[place]
    is_exit = place == row.would_leave
    label = "exit" if row.exit_reason == "policy" else "would exit"
    percent = f"{trial.confidence * 100:.1f}"
    bar = el("span.bar", el("i"), style=f"--l:0;--p:{percent};--h:{percent}")
    return el(
        "tr.leave" if is_exit else "tr",
        el("td.number", f"{trial.position:,}"),
        el("td.confidence", bar, " ", decimal(trial.confidence)),
        el("td", grade_sign(trial.grade), " ", el("bdi", run_text(trial.answer))),
        el("td.fate", label if is_exit else ""),
    )


def chain_node(view: ChainView) -> Element:
    """Build the tree of a chain as the judge reads it, with the judge's options."""
    chain, labelled = view.chain, view.labelled
    facts: list[tuple[str, Node | list[Node]]] = [
        ("answer", [grade(chain.grade), " ", el("bdi", run_text(chain.answer))]),
        ("prompt", [f"{view.prompt_size}, question {chain.number}"]),
        ("tokens", [f"{chain.tokens:,}, for the judge {chain.length:,}"]),
        ("label", [view.outcome.replace("_", " ")]),
        ("cut from", run_text(chain.source_id)),
    ]
    options = [
        el("p.option", el("b", f"{letter}. "), run_text(option), " ", sign)
        for letter, option in zip("ABC", labelled.options if labelled else (), strict=False)
        for sign in [grade_sign("correct") if labelled and letter == labelled.label else None]
    ]
    return el(
        "article.dto",
        heading(view.problem, chain.id),
        facts_node(facts),
        [el("p.note", "dropped by label: ", el("b", run_text(row.reason)), ", ",
            run_text(row.detail))
         for row in view.dropped],
        block(chain.text),
        el("h3", "Options of the judge") if options else None,
        options,
    )  # fmt: skip


def batch_node(view: BatchView) -> Element:
    """Build the tree of a batch prompt: questions with the states of their chains, response."""
    row = view.response
    names = ("", "question", "answer", "chain")
    body = [
        el(
            "tr",
            el("td.number", str(number)),
            el("td", passage(problem.question) if problem
               else run_text(row.problem_ids[number - 1])),
            el("td", grade_sign(row.grades[number - 1]), " ",
               el("bdi", run_text(row.answers[number - 1])), " ", run_text(row.faults[number - 1])),
            el("td", el("b", run_text(state)) if detail else run_text(state), " ",
               run_text(detail)),
        )
        for number, problem in enumerate(view.problems, 1)
        for state, detail in [view.chain_state(number - 1)]
    ]  # fmt: skip
    facts: list[tuple[str, Node | list[Node]]] = [
        ("prompt", [f"{row.k} questions"]),
        ("tokens", [f"{len(row.token_ids):,}, thinking {row.thinking_tokens.length:,}"]),
        ("ended by", [row.finish_reason]),
    ]
    parts = (("thinking", row.thinking), ("after thinking", row.conclusion))
    return el(
        "article.dto",
        el("header", el("div.id", run_text(row.id), " · ", run_text(row.model))),
        facts_node(facts),
        el("p.note", run_text(row.reason)) if row.reason else None,
        rows_node(names, body),
        [block(row.text[slice(*span)].strip("\n"), name) for name, span in parts if span.length],
    )
