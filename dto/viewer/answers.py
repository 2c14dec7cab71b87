"""The answers to one problem: every model under every exit, with the trials that exits made."""

from __future__ import annotations

from itertools import accumulate, groupby, pairwise

from dto.records import EvaluationRow
from dto.viewer.figures import decimal, saved, scaled
from dto.viewer.nodes import Element, data, el
from dto.viewer.parts import grade, grade_sign, heading
from dto.viewer.views import AnswersView

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
    plain = view.reference
    longest = max(row.tokens for row in rows)
    cards = [_card(row, plain, longest) for row in rows]
    sizes = [len(list(of_model)) for _, of_model in groupby(rows, key=lambda row: row.model)]
    if max(sizes) == 1:
        sizes = [len(rows)]  # models alone, side by side
    ends = [0, *accumulate(sizes)]
    models = [el("div.cards", cards[start:end]) for start, end in pairwise(ends)]
    note = "An evaluation keeps answers, trial answers and counts, not the responses' texts."
    return el("article.dto", heading(view.problem, view.id), models, el("p.note", note))


def _card(row: EvaluationRow, plain: EvaluationRow | None, longest: int) -> Element:
    less = ""
    if plain is not None and plain is not row:
        less = saved(plain.tokens, row.tokens)
    flops = f"{scaled(row.attention_flops)} attention FLOPs"
    if plain is not None and plain is not row and saved(plain.attention_flops, row.attention_flops):
        flops += f" ({saved(plain.attention_flops, row.attention_flops)})"
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
            f"{row.tokens:,} tokens",
            f" ({less})" if less else "",
            ":",
            [el(f"span.part.{name}", f"{name} {count:,}") for name, count in parts],
            el("span", flops),
        ),
        el("p.note", data(row.reason)) if row.reason else None,
        _trials(row) if row.trials else None,
    )


def _trials(row: EvaluationRow) -> Element:
    names = ("token", "confidence", "trial answer", "")
    return el(
        "table.trial-list",
        el("thead", el("tr", [el("th", name, scope="col") for name in names])),
        el("tbody", [_trial(row, place) for place in range(len(row.trials))]),
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
