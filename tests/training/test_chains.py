"""What the controls of DRQA imitate: critiques, and chains of batch prompts, in exact ids."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dto.drqa.records import BatchResponse, Chain, LabelledChain
from dto.recipe import ModelSettings
from dto.records import Dropped, Problem, Span
from dto.runs.reader import RunReader
from dto.tables import write
from dto.training.pairs import Demonstration, batch_answers, critiques
from dto.trajectories import prompt_ids
from tests.training.test_judging import chain

TEXT = "7 plus 5 is 2."


def encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def letters(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """As a model may emit it, not as a text is encoded."""
    return tuple(token for letter in text for token in encoded(tokenizer, letter))


def test_a_verdict_is_imitated_word_for_word(tokenizer: Any) -> None:
    options = ("right and concise", "wrong", "right but could be more concise")
    prompt = encoded(tokenizer, "Which?<think>\n")
    row = replace(chain(0, label="B"), options=options, prompt_ids=prompt)
    closed = replace(row, id="closed", prompt_ids=encoded(tokenizer, "Which?"))
    long = replace(row, id="long", prompt_ids=prompt * 50)
    first, second, third = critiques([row, closed, long], ModelSettings(), tokenizer, 256)
    eos = int(tokenizer.eos_token_id)
    text = "So it is wrong.\n</think>\n\n**Final Answer**\n\\boxed{B}"
    assert first == Demonstration(row.id, prompt, (*encoded(tokenizer, text), eos))
    assert isinstance(second, Demonstration)
    opened = tokenizer.decode(list(second.response_ids[:-1]))
    assert opened == f"<think>\n{text}"  # where the template leaves the thinking to the model
    assert isinstance(third, Dropped) and (third.id, third.reason) == ("long", "too_long")


def test_batch_chains_become_single_answers(tmp_path: Path, tokenizer: Any) -> None:
    """The ids that were sampled, unless the chain's text is not theirs; only concise batch ones."""
    problem = Problem("p0", "chains", "train", "Start with 7. Add 5.", "2")
    lead, body = encoded(tokenizer, "Question 1.\n"), letters(tokenizer, TEXT)
    response = BatchResponse(
        id="r", problem_ids=("p0", "p1"), k=2, model="m", sample=0, seed=0, prompt_ids=(1,),
        token_ids=(*lead, *body, *encoded(tokenizer, "\n\nQuestion 2.")), ids_from="sampled",
        text="", thinking=Span(0, 0), conclusion=Span(0, 0), thinking_tokens=Span(0, 0),
        finish_reason="stop", grades=("correct", "wrong"), answers=("2", ""), faults=("", ""),
    )  # fmt: skip
    exact = Chain(
        id="p0/batch/002/000", problem_id="p0", origin="batch", k=2, sample=0, number=1,
        source_id="r", span=Span(len(lead), len(lead) + len(body)), text=TEXT, tokens=len(body),
        length=5, answer="2", grade="correct",
    )  # fmt: skip
    renamed = replace(exact, id="p0/batch/002/001", span=Span(0, len(lead) + len(body)))
    for stage, record, rows in (
        ("problems", Problem, [problem]),
        ("batch", BatchResponse, [response]),
        ("chain", Chain, [exact, renamed]),
    ):
        (tmp_path / stage).mkdir()
        write(tmp_path / stage / "rows.parquet", record, rows)  # type: ignore[arg-type,type-var]
    labelled: list[LabelledChain] = [
        replace(chain(0, "concise"), id=row.id, problem_id="p0", chain=TEXT, answer="2",
                origin="batch", k=2)
        for row in (exact, renamed)
    ]  # fmt: skip
    others = [chain(7, "concise"), replace(labelled[0], id="w", verdict="wrong")]
    model = ModelSettings()
    rows = batch_answers(RunReader(tmp_path), [*labelled, *others], model, tokenizer, 256)
    closing = encoded(tokenizer, "\n</think>\n\n**Final Answer**\n\\boxed{2}")
    eos = int(tokenizer.eos_token_id)
    prompt = prompt_ids(problem.question, tokenizer, model)
    assert rows == [
        Demonstration(exact.id, prompt, (*body, *closing, eos)),
        Demonstration(renamed.id, prompt, (*encoded(tokenizer, TEXT), *closing, eos)),
    ]
    assert body != encoded(tokenizer, TEXT)
