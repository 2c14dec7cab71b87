"""The ids and texts of responses and trials that an evaluation keeps."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import pytest

from dto import tables
from dto.context import Context
from dto.engines import open_engine
from dto.grading import Grader
from dto.nano import chain_problems
from dto.protocols import Chunk, Completion, Engine
from dto.recipe import EvaluateSettings, ModelSettings, Recipe
from dto.records import NOWHERE, EvaluationRow, Problem, Span
from dto.runs.journal import Entry, Journal, read_entries
from dto.settings import open_policy
from dto.stages.evaluate import evaluate
from dto.text import decode, decode_response
from dto.trajectories import prompt_ids
from tests.exits.speaking import EXITS, RECIPE, THINKING, Speaker, sure_in_a_display, tokenizer
from tests.vocabularies import NAMES, vocabulary

EVERY = EXITS | {
    "none": {"policy": "none"},
    "deer paragraph": {"policy": "deer", "monitor": "paragraph", "threshold": 0.6},
    "overlapped": {"policy": "deer", "monitor": "paragraph", "threshold": 0.6, "overlap": True},
    "shadow": {"policy": "deer", "monitor": "paragraph", "threshold": 0.6, "shadow": True},
    "qwen3": {"policy": "deer", "mode": "qwen3", "monitor": "paragraph", "threshold": 0.6},
    "forced": {"policy": "deer", "threshold": 1.0, "think_ratio": 0.1},
    "nowait": {"policy": "nowait"},
    "compat": {"policy": "deer", "mode": "compat", "threshold": 0.6},
}


@dataclass
class Recorded:
    """An engine that keeps every context that it had: prompt and completion of each request."""

    engine: Any
    contexts: list[tuple[int, ...]] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    async def complete(self, prompt: Any, *request: Any) -> list[Completion]:
        done: list[Completion] = await self.engine.complete(prompt, *request)
        self.contexts += [(*prompt, *each.token_ids) for each in done]
        return done

    async def stream(self, prompt: Any, sampling: Any) -> AsyncGenerator[Chunk]:
        ids = tuple(prompt)
        async with aclosing(self.engine.stream(prompt, sampling)) as chunks:
            async for chunk in chunks:
                ids += chunk.token_ids
                self.contexts.append(ids)
                yield chunk


async def check(row: EvaluationRow, problem: Problem, ctx: Context, exit: str) -> None:
    """Ids, text, counts, places and grade of a row agree."""
    ids, (left, closed) = row.token_ids, row.inserted_tokens
    prompt = prompt_ids(problem.question, ctx.tokenizer, ctx.recipe.model, problem.prompt)
    engine = cast(Recorded, ctx.engine)
    if exit == "compat":  # its response is text, encoded anew for each request
        contexts = [decode(ctx.tokenizer, each) for each in engine.contexts]
        whole = decode(ctx.tokenizer, prompt) + decode(ctx.tokenizer, ids)
        assert any(each.endswith(whole) for each in contexts)
    else:
        assert (*prompt, *ids) in engine.contexts
    assert row.text == decode_response(ctx.tokenizer, ids, ctx.tags)
    assert row.answer_tokens + row.thinking_tokens == len(ids) - (closed - left)
    assert bool(closed - left) == (row.exit_reason in ("policy", "budget") or exit == "compat")
    thinking, inserted = ids[left - row.thinking_tokens : left], ids[left:closed]
    assert decode(ctx.tokenizer, thinking) == row.text[slice(*row.thinking)]
    assert decode(ctx.tokenizer, inserted) == row.text[slice(*row.inserted)]
    assert row.thinking.end == row.inserted.start <= row.inserted.end <= len(row.text)
    assert row.thinking.end <= row.conclusion.start <= row.conclusion.end
    for trial in row.trials:
        assert trial.tokens == len(trial.token_ids) or exit == "deer pro"
        if trial.position <= len(ids) and exit != "compat":
            assert decode(ctx.tokenizer, ids[: trial.position]) == row.text[: trial.char]
        assert trial.text or exit == "code"
        assert trial.answer in trial.text
    if row.grade in ("correct", "wrong"):
        again = await ctx.grader.grade_conclusion(
            row.text[slice(*row.conclusion)], problem.answer, problem.rule, problem.question
        )
        assert (again.grade, again.answer) == (row.grade, row.answer)


@pytest.fixture
async def embedded() -> AsyncIterator[Context]:
    recipe = Recipe(
        name="test",
        model=ModelSettings(name="nano", family="nano"),
        evaluate=EvaluateSettings(samples=1, temperature=1.0, top_p=1.0, max_tokens=400),
    )
    async with open_engine(recipe.model) as engine, Grader(workers=1) as grader:
        yield Context(recipe, cast(Engine, Recorded(engine)), grader)


@pytest.mark.slow
async def test_rows_of_the_embedded_model_can_be_read_and_graded_again(embedded: Context) -> None:
    reasons = set()
    for name, settings in EVERY.items():
        for problem in chain_problems("test", 4, seed=3):
            [timed] = await evaluate(problem, open_policy({"name": name, **settings}), embedded)
            await check(timed.row, problem, embedded, name)
            reasons.add(timed.row.exit_reason)
    assert reasons >= {"policy", "budget", "closed"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if vocabulary(name).opens])
@pytest.mark.parametrize("exit", [name for name in EVERY if name != "compat"])
async def test_rows_of_other_vocabularies_can_be_read_and_graded_again(
    name: str, exit: str
) -> None:
    main = f"{THINKING}</think>\n\nIt is \\boxed{{8}}"
    engine = Recorded(Speaker(tokenizer(name), main, trial=sure_in_a_display))
    problem = Problem("p" * 16, "toy", "test", "5 + 3?", "8")
    evaluated = EvaluateSettings(samples=1, temperature=0.0, max_tokens=400)
    model = ModelSettings(family="default", template=vocabulary(name).template)
    recipe = RECIPE.model_copy(update={"evaluate": evaluated, "model": model})
    async with Grader(workers=1) as grader:
        ctx = Context(recipe, cast(Engine, engine), grader)
        [timed] = await evaluate(problem, open_policy({"name": exit, **EVERY[exit]}), ctx)
        await check(timed.row, problem, ctx, exit)


@pytest.mark.slow
async def test_a_switch_leaves_them_out(embedded: Context, tmp_path: Path) -> None:
    """The other columns are the same, and a journal or table of either kind is read again."""
    problem = chain_problems("test", 1, seed=3)[0]
    exit = open_policy({"name": "deer", **EVERY["deer paragraph"]})
    recipe = embedded.recipe.model_dump(exclude_unset=True)
    assert "keep_answers" not in Recipe(name="x").model_dump(mode="json")["evaluate"]
    recipe["evaluate"]["keep_answers"] = False
    [kept] = await evaluate(problem, exit, embedded)
    [bare] = await evaluate(problem, exit, replace(embedded, recipe=Recipe.model_validate(recipe)))
    assert kept.row.text and kept.row.trials[0].token_ids and kept.row.trials[0].text
    trials = tuple(replace(trial, token_ids=(), text="", char=0) for trial in kept.row.trials)
    nowhere = dict.fromkeys(("inserted_tokens", "thinking", "inserted", "conclusion"), NOWHERE)
    assert bare.row == replace(kept.row, token_ids=(), text="", trials=trials, **nowhere)
    for number, row in enumerate((kept.row, bare.row)):
        path = tmp_path / f"{number}.parquet"
        tables.write(path, EvaluationRow, [row])
        assert list(tables.read(path, EvaluationRow)) == [row]
        without = ("token_ids", "text")
        assert list(tables.read(path, EvaluationRow, without)) == [
            replace(row, token_ids=(), text="")
        ]
        journal = Journal(tmp_path / f"{number}.journal", EvaluationRow, {})
        journal.append(Entry("base/deer/p", [row]))
        journal.close()
        [entry] = read_entries(journal.path, EvaluationRow)
        assert entry.rows == [row]


def test_tables_and_journals_of_earlier_versions_are_read(tmp_path: Path) -> None:
    row = EvaluationRow(
        "base/none/p/000", "base", "none", "p", 0, 1, "correct", "2", "", "closed", 5, 3, 0, 8, 4,
        1.0, (), -1, 2.0, (1, 2), Span(1, 2), "ab", Span(0, 1), Span(1, 1), Span(1, 2),
    )  # fmt: skip
    path = tmp_path / "rows.parquet"
    tables.write(path, EvaluationRow, [row])
    new = ["token_ids", "inserted_tokens", "text", "thinking", "inserted", "conclusion"]
    pq.write_table(pq.read_table(path).drop_columns(new), path)
    nowhere = dict.fromkeys(("inserted_tokens", "thinking", "inserted", "conclusion"), NOWHERE)
    bare = replace(row, token_ids=(), text="", **nowhere)
    assert list(tables.read(path, EvaluationRow)) == [bare]
    journal = Journal(tmp_path / "journal", EvaluationRow, {})
    journal.append(Entry("base/none/p", [row]))
    journal.close()
    lines = journal.path.read_text("utf-8").splitlines()
    entry = json.loads(lines[1])
    for column in new:
        del entry["rows"][0][column]
    journal.path.write_text(f"{lines[0]}\n{json.dumps(entry)}\n", "utf-8")
    [read] = read_entries(journal.path, EvaluationRow)
    assert read.rows == [bare]
