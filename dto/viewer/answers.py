"""Trees for the answers to a problem (by model and exit), for chains and for batch prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from dto.records import EvaluationRow, Trial
from dto.viewer.data import AnswersView, BatchView, ChainView
from dto.viewer.markup import answer_text
from dto.viewer.nodes import (
    LONG,
    block,
    change,
    decimal,
    facts_node,
    flops,
    grade,
    grade_sign,
    heading,
    passage,
    relative_change,
    rows_node,
)
from dto.viewer.tree import Element, Node, el, run_text

REASONS = {
    "policy": "exited early",
    "budget": "cut off by the budget",
    "closed": "closed its thinking itself",
    "unclosed": "ended without closing its thinking",
    "length": "ran out of tokens",
    "failed": "failed",
}


NO_TEXTS = (
    "This evaluation has no texts of responses: evaluate.keep_answers was off, the run is of an "
    "earlier version, or they were published without the test questions."
)


def answers_node(view: AnswersView) -> Element:
    """Build a card per model and exit, and the responses of the models side by side.

    A card has the trial answers and their confidence. Below, the response of a model under the
    plain exit is whole, with the places of trials and exits; of other exits there is what differs.
    """
    rows = view.ordered
    longest = max(row.tokens for row in rows)
    several = len({row.model for row in rows}) < len(rows)  # several exits of one model
    models = [
        el("div.cards", [_card(row, view.reference, longest) for row in group])
        for _, group in groupby(rows, key=lambda row: several and row.model)
    ]
    texts = el("p.note", NO_TEXTS)
    if any(row.text for row in rows):
        texts = el("div.sides.responses", [_responses(*each) for each in view.by_model])
    return el(
        "article.dto",
        heading(view.problem, view.id),
        [facts_node(facts) for facts in [_model_changes(view)] if facts],
        models,
        texts,
        el(
            "details.request",
            el("summary", el("b", "Sampling settings")),
            facts_node([(name, run_text(value)) for name, value in view.settings]),
        )
        if view.settings
        else None,
    )


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
            el("bdi.answer", answer_text(row.answer)) if row.answer else None,
            _gained(plain, row),
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
    return el(
        "tr.leave" if is_exit else "tr",
        el("td.number", f"{trial.position:,}"),
        el("td.confidence", _bar(trial), " ", decimal(trial.confidence)),
        el("td", grade_sign(trial.grade), " ", el("bdi", answer_text(trial.answer))),
        el("td.fate", label if is_exit else ""),
    )


def _bar(trial: Trial) -> Element:
    percent = f"{trial.confidence * 100:.1f}"
    return el("span.bar", el("i"), style=f"--l:0;--p:{percent};--h:{percent}")


def _gained(before: EvaluationRow | None, after: EvaluationRow) -> Element | None:
    """Say whether an answer is right only now, or right no longer; None for neither."""
    if before is None or "failed" in (before.grade, after.grade):
        return None
    right = after.grade == "correct"
    if right == (before.grade == "correct"):
        return None
    return el("b.correct", "gained") if right else el("b.wrong", "lost")


def _model_changes(view: AnswersView) -> list[tuple[str, Node | list[Node]]]:
    """Compare the other models with the first one, under the plain exit."""
    plain = [row for row, _ in view.by_model if row is not None]
    facts: list[tuple[str, Node | list[Node]]] = []
    for row in plain[1:]:
        first, gained = plain[0], _gained(plain[0], row)
        grades: list[Node] = [grade(first.grade), " → ", grade(row.grade)]
        if gained is not None:
            grades += [" ", gained]
        models = [*run_text(row.model), " against ", *run_text(first.model), " "]
        facts += [
            ("change", [*models, *grades]),
            ("tokens", change(first.tokens, row.tokens)),
            ("of these thinking", change(first.thinking_tokens, row.thinking_tokens)),
        ]
    return facts


def _responses(plain: EvaluationRow | None, others: list[EvaluationRow]) -> Element:
    """Build the responses of one model: the plain one, and how the others differ from it."""
    whole = [row for row in others if plain is None or not plain.text]
    early = [row for row in others if row not in whole and row.text]
    marks = [mark for row in early if plain is not None for mark in _marks(row, plain)]
    return el(
        "section.side",
        el("h3", run_text((plain or others[0]).model)),
        [_response(plain, [*_own_marks(plain), *marks])] if plain is not None else None,
        [[el("h3", run_text(row.exit)), _response(row, _own_marks(row))] for row in whole],
        [_ending(row, plain) for row in early if plain is not None],
    )


Mark = tuple[int, Element]
"""An element between two characters of a text: a trial, or the place of an exit."""


def _own_marks(row: EvaluationRow) -> list[Mark]:
    marks = [(trial.char, _trial_mark(row, place)) for place, trial in enumerate(row.trials)]
    return [*marks, *([(row.thinking.end, _exit_mark(row))] if row.inserted.length else [])]


def _marks(row: EvaluationRow, plain: EvaluationRow) -> list[Mark]:
    """Marks of another exit in the plain response, up to where the two part."""
    common = _common(row, plain)
    return [(char, mark) for char, mark in _own_marks(row) if char <= common]


def _common(row: EvaluationRow, plain: EvaluationRow) -> int:
    """The offset at which a response leaves the plain one.

    That is its exit if the thinking before it is the same, as on an engine where pauses change no
    token; else the start of the first word that differs.
    """
    end = row.inserted.start if row.inserted.length else len(row.text)
    if plain.text.startswith(row.text[:end]):
        return end
    pairs = enumerate(zip(row.text, plain.text, strict=False))
    same = next((place for place, (own, other) in pairs if own != other), end)
    return max(row.text.rfind(" ", 0, same), row.text.rfind("\n", 0, same)) + 1


def _ending(row: EvaluationRow, plain: EvaluationRow) -> Element:
    """Build what an exit changes: where it leaves the plain response, and what follows."""
    common = _common(row, plain)
    rest: Iterable[Element] = ()
    if row.text == plain.text:
        said = "the response is the plain one"
    elif row.inserted.length and common == row.inserted.start:
        share = row.thinking_tokens / max(1, plain.thinking_tokens)
        said = (
            f"leaves the plain response after {row.thinking_tokens:,} of "
            f"{plain.thinking_tokens:,} thinking tokens ({share:.0%}); ".replace("%)", " %)")
            + f"tokens {change(plain.tokens, row.tokens)}"
        )
        rest = _after_thinking(row)
    else:
        said = f"is the plain response for {common:,} characters, then another sample"
        rest = _parts(row, _own_marks(row), common)
    return el("section.ending", el("h3", run_text(row.exit), _gained(plain, row)),
              el("p.note", said), rest)  # fmt: skip


def _response(row: EvaluationRow, marks: Sequence[Mark]) -> list[Node]:
    if not row.text:
        return [el("p.note", run_text(row.reason or NO_TEXTS))]
    return list(_parts(row, marks, 0))


def _parts(row: EvaluationRow, marks: Sequence[Mark], start: int) -> Iterator[Element]:
    """Build the thinking from an offset on, with marks at their places, and what follows it."""
    start = max(start, row.thinking.start)
    if row.thinking.end > start:
        pieces: list[Node] = []
        for char, mark in sorted(marks, key=lambda mark: mark[0]):
            if char >= start:
                pieces += [*_text(row.text[start:char]), mark]
                start = char
        pieces += _text(row.text[start : row.thinking.end])
        head = [el("span.kind", "thinking"), el("span.count", f"{row.thinking_tokens:,} tokens")]
        is_open = {} if row.thinking.length > LONG else {"open": ""}
        yield el("details.segment", el("summary.head", head), pieces, **is_open)
    yield from _after_thinking(row)


def _after_thinking(row: EvaluationRow) -> Iterator[Element]:
    """Build the text that an exit inserted, and the conclusion."""
    for name, span in (("inserted by the exit", row.inserted), ("conclusion", row.conclusion)):
        if text := row.text[slice(*span)].strip("\n"):
            yield block(text, name)


def _text(text: str) -> list[Node]:
    text = text.strip("\n")
    return [el("div.text", passage(text), dir="auto")] if text else []


def _exit_mark(row: EvaluationRow) -> Element:
    return el("div.exit.leave", el("span.taken", run_text(row.exit), " leaves here"))


def _trial_mark(row: EvaluationRow, place: int) -> Element:
    trial = row.trials[place]
    return el(
        "div.exit",
        _bar(trial),
        el("span", "confidence ", decimal(trial.confidence)),
        el("span", grade_sign(trial.grade), " ", el("bdi", run_text(trial.answer or trial.text))),
        el("span.detail", run_text(row.exit)),
    )


def chain_node(view: ChainView) -> Element:
    """Build the tree of a chain as the judge reads it, with the judge's options."""
    chain, labelled = view.chain, view.labelled
    facts: list[tuple[str, Node | list[Node]]] = [
        ("answer", [grade(chain.grade), " ", el("bdi", answer_text(chain.answer))]),
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
