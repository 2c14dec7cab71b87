"""The rows of DRQA: responses to batch prompts, and the chains that were cut and labelled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dto import tables
from dto.records import BatchResponse, Chain, Displayed, Dropped, LabelledChain, Problem
from dto.viewer.nodes import Element, Node, data, el, passage
from dto.viewer.parts import facts_node, grade, grade_sign, heading
from dto.viewer.reading import ById

if TYPE_CHECKING:
    from dto.viewer.data import RunTables


@dataclass(frozen=True, slots=True)
class ChainView(Displayed):
    """A chain with its question, its label and the options as the judge reads them."""

    chain: Chain
    problem: Problem | None = None
    labelled: LabelledChain | None = None
    dropped: tuple[Dropped, ...] = ()

    @property
    def id(self) -> str:
        """The chain's id."""
        return self.chain.id

    @property
    def outcome(self) -> str:
        """The verdict that it is labelled with, or why it is not."""
        if self.labelled is not None:
            return self.labelled.verdict
        return self.dropped[0].reason if self.dropped else "not labelled"

    @property
    def asked(self) -> str:
        """How many questions the prompt had."""
        return "alone" if self.chain.k == 1 else f"{self.chain.k} together"


@dataclass(frozen=True, slots=True)
class BatchView(Displayed):
    """A response to several questions: of each, whether a chain was cut, or why there is none.

    Neither stands where the stage `chain` has not come to it.
    """

    response: BatchResponse
    problems: tuple[Problem | None, ...] = ()
    cut: tuple[bool, ...] = ()
    dropped: tuple[Dropped | None, ...] = ()

    @property
    def id(self) -> str:
        """`k/sample/content` of the questions."""
        return self.response.id

    @property
    def question(self) -> str:
        """The first question."""
        first = self.problems[0] if self.problems else None
        return first.question if first is not None else self.response.text

    @property
    def outcome(self) -> str:
        """How many chains were cut."""
        if any(self.cut):
            return f"{sum(self.cut)} of {self.response.k} cut"
        return "nothing cut" if any(self.dropped) else "not cut yet"

    def fate(self, place: int) -> tuple[str, str]:
        """What became of a question, in a word, and why."""
        if (ended := self.dropped[place]) is not None:
            return ended.reason, ended.detail
        return ("cut" if self.cut[place] else "not yet"), ""


def chains(found: RunTables) -> Iterator[ChainView]:
    """Every chain with its label, by id."""
    problem_of = ById(found.rows("problems", Problem))
    dropped = {row.id: row for row in found.ended("label")}
    labelled = (found.rows("label", LabelledChain, ("prompt_ids",)), lambda row: str(row.id))
    for chain, labels in tables.merge(found.rows("chain", Chain), labelled):
        ended = dropped.get(chain.id)
        yield ChainView(
            chain,
            problem_of(chain.problem_id),
            labels[0] if labels else None,
            (ended,) if ended is not None else (),
        )


def batches(found: RunTables) -> Iterator[BatchView]:
    """Every response to a batch prompt; questions, a kilobyte each, and chains' ids are held."""
    if "batch" not in found.states:
        return
    problems = {row.id: row for row in found.rows("problems", Problem)}
    dropped = {row.id: row for row in found.ended("chain")}
    made = {row.id for row in found.rows("chain", Chain) if row.origin == "batch"}
    for row in found.rows("batch", BatchResponse, ("prompt_ids",)):
        ids = [Chain.make_id(each, "batch", row.k, row.sample) for each in row.problem_ids]
        yield BatchView(
            row,
            tuple(problems.get(each) for each in row.problem_ids),
            tuple(each in made for each in ids),
            tuple(dropped.get(each) for each in ids),
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
    options = []
    for letter, option in zip("ABC", labelled.options if labelled else (), strict=False):
        right = labelled is not None and letter == labelled.label
        sign = grade_sign("correct") if right else None
        options.append(el("p.option", el("b", f"{letter}. "), data(option), " ", sign))
    return el(
        "article.dto",
        heading(view.problem, chain.id),
        facts_node(facts),
        [el("p.note", "label dropped it, ", el("b", data(row.reason)), ": ", data(row.detail))
         for row in view.dropped],
        el("div.segment", el("div.text", passage(chain.text), dir="auto")),
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
        el(
            "table.trial-list",
            el("thead", el("tr", [el("th", name, scope="col") for name in names])),
            el("tbody", body),
        ),
        [
            el(
                "div.segment",
                el("div.head", el("span.kind", name)),
                el("div.text", passage(row.text[slice(*span)].strip("\n")), dir="auto"),
            )
            for name, span in parts
            if span.length
        ],
    )
