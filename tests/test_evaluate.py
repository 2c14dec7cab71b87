from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import polars as pl
import pytest

from dto.context import Context
from dto.engines import open_engine
from dto.errors import DtoError, EngineError
from dto.exits import ExitedResponse, answer
from dto.exits.deer import Deer
from dto.grading import Grader
from dto.nano import chain_problems
from dto.pipeline import open_run, run_stages, stage_of, with_questions
from dto.policies.without_trials import Budget, Static
from dto.protocols import Capabilities, Completion, Engine, Prompt, Sampling
from dto.recipe import EvaluateSettings, ModelSettings, Recipe
from dto.records import EvaluationRow, derive
from dto.runs.run import OpenRun, agree
from dto.settings import ExitPolicy
from dto.stages.evaluate import evaluate
from dto.trajectories import prompt_ids
from dto.usage import metered

NONE = ExitPolicy(name="none")
DEER = Deer(name="deer", monitor="paragraph", inducer="closed", threshold=0.9)
PROBLEMS = chain_problems("test", 4, seed=3)


@pytest.fixture
async def ctx() -> AsyncIterator[Context]:
    recipe = Recipe(
        name="test",
        seed=5,
        model=ModelSettings(name="nano", family="nano"),
        evaluate=EvaluateSettings(samples=2, temperature=1.0, top_p=1.0, max_tokens=400),
    )
    async with open_engine(recipe.model) as engine, Grader(workers=1) as grader:
        yield Context(recipe, engine, grader)


async def rows_of(exit: ExitPolicy, ctx: Context) -> list[EvaluationRow]:
    timed = await asyncio.gather(*(evaluate(problem, exit, ctx) for problem in PROBLEMS))
    assert all(each.seconds > 0 for each in chain(*timed))
    return [each.row for each in chain(*timed)]


@pytest.mark.slow
async def test_every_generated_token_is_in_a_row(ctx: Context) -> None:
    for exit in (
        NONE,
        DEER,
        Deer(name="cue", monitor="cue", threshold=0.95),
        Deer(name="entropy", monitor="entropy", inducer="closed"),
        Budget(name="budget", budget=30),
    ):
        with metered() as usage:
            rows = await rows_of(exit, ctx)
        assert usage.generated == sum(row.tokens for row in rows)
        assert usage.wasted == 0
        assert not {row.grade for row in rows} & {"failed"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "exit",
    [
        DEER.model_copy(update={"overlap": True}),
        Static(name="half", fraction=0.5),
    ],
    ids=lambda exit: str(exit.policy),
)
async def test_what_is_generated_in_vain_stands_beside_the_rows(
    ctx: Context, exit: ExitPolicy
) -> None:
    with metered() as usage:
        timed = [each for problem in PROBLEMS for each in await evaluate(problem, exit, ctx)]
    wasted = sum(each.wasted for each in timed)
    assert 0 < wasted == usage.wasted
    assert usage.generated == sum(each.row.tokens for each in timed) + wasted


@pytest.mark.slow
async def test_overlapped_rows_are_the_sequential_ones(ctx: Context) -> None:
    apart = await rows_of(DEER, ctx)
    overlapped = await rows_of(replace_exit(DEER, overlap=True), ctx)
    assert [sure(row) for row in overlapped] == [sure(row) for row in apart]
    assert {row.exit_reason for row in apart} >= {"policy"}


def sure(row: EvaluationRow) -> EvaluationRow:
    """Logprobs may differ in their last bits with what they are computed with; tokens do not."""
    trials = (replace(trial, confidence=round(trial.confidence, 5)) for trial in row.trials)
    return replace(row, trials=tuple(trials))


async def test_a_cancelled_row_leaves_nothing_under_way(ctx: Context) -> None:
    [problem, *_] = PROBLEMS
    for seconds in (0.0, 0.02, 0.05):
        with metered() as usage:
            row = asyncio.create_task(
                evaluate(problem, replace_exit(DEER, overlap=True, threshold=1.0), ctx)
            )
            await asyncio.sleep(seconds)
            row.cancel()
            with pytest.raises(asyncio.CancelledError):
                await row
        at_once = replace(usage)
        assert len(asyncio.all_tasks()) == 1
        await asyncio.sleep(0.05)
        assert usage == at_once, "something was charged after the end"


@pytest.mark.slow
@pytest.mark.parametrize("monitor", ["paragraph", "cue", "entropy"])
async def test_pausing_for_trials_changes_no_token(ctx: Context, monitor: str) -> None:
    """A threshold of 1 is never passed: every path is paused, tried, and taken up again."""
    never = replace_exit(DEER, name="never", monitor=monitor, threshold=1.0)

    async def response(number: int, exit: ExitPolicy) -> ExitedResponse:
        prompt = prompt_ids(PROBLEMS[number].question, ctx.tokenizer, ctx.recipe.model)
        sampling = Sampling(400, temperature=1.0, top_p=1.0, seed=number)
        return await answer(PROBLEMS[number], prompt, exit, ctx, sampling)

    pairs = await asyncio.gather(
        *(asyncio.gather(response(n, NONE), response(n, never)) for n in range(len(PROBLEMS)))
    )
    assert any(paused.trials for _, paused in pairs)
    for plain, paused in pairs:
        assert (plain.thinking_ids, plain.answer_ids) == (paused.thinking_ids, paused.answer_ids)
        assert plain.exit_reason == paused.exit_reason


@pytest.mark.slow
async def test_policies_share_their_seeds(ctx: Context) -> None:
    plain, early = await rows_of(NONE, ctx), await rows_of(DEER, ctx)
    assert [row.seed for row in plain] == [row.seed for row in early]
    assert len({row.seed for row in plain}) == len(plain)


@pytest.mark.slow
async def test_a_row_says_what_happened(ctx: Context) -> None:
    [problem, *_] = PROBLEMS
    row, second = (each.row for each in await evaluate(problem, DEER, ctx))
    assert row.id == f"base/deer/{problem.id}/000"
    assert row.seed == derive(5, problem.id, "evaluate")
    assert second.seed == row.seed + 1
    assert row.tokens == row.thinking_tokens + row.answer_tokens + row.trial_tokens
    assert row.attention_flops > 0
    assert all(0 <= trial.confidence <= 1 for trial in row.trials)
    if row.exit_reason == "policy":
        assert row.trials[-1].confidence > 0.9
        assert row.trials[-1].position == row.thinking_tokens
    again = (await evaluate(problem, DEER, ctx))[0]
    assert again.row == row


async def test_a_prompt_without_room_is_a_failed_row(ctx: Context) -> None:
    [problem, *_] = PROBLEMS
    long = replace(problem, question="Start with 7. " * 1000)
    rows = [each.row for each in await evaluate(long, DEER, ctx)]
    assert [row.grade for row in rows] == ["failed", "failed"]
    assert "context is" in rows[0].reason
    assert rows[0].tokens == 0


async def test_a_response_cut_by_its_limit_is_truncated(ctx: Context) -> None:
    recipe = ctx.recipe
    short = recipe.model_copy(
        update={"evaluate": recipe.evaluate.model_copy(update={"max_tokens": 10})}
    )
    rows = await rows_of(NONE, replace(ctx, recipe=short))
    assert {(row.grade, row.exit_reason, row.tokens) for row in rows} == {
        ("truncated", "length", 10)
    }


class Broken:
    """An engine on which every request fails."""

    capabilities = Capabilities(resumable=True)
    model = "broken"
    shape = None
    context = 1000

    def __init__(self, engine: Engine) -> None:
        self.tokenizer = engine.tokenizer

    async def complete(self, prompt: Prompt, sampling: Sampling, n: int = 1) -> list[Completion]:
        return [Completion((), "", "failed", len(prompt), error="connection lost")] * n


async def test_an_engine_error_is_a_failed_row_with_its_reason(ctx: Context) -> None:
    rows = await rows_of(DEER, replace(ctx, engine=Broken(ctx.engine)))
    assert {(row.grade, row.reason) for row in rows} == {("failed", "connection lost")}
    assert all(math.isnan(row.attention_flops) for row in rows)


def replace_exit(exit: ExitPolicy, **changes: object) -> ExitPolicy:
    return exit.model_copy(update=changes)


def a_run(folder: Path, **exit: object) -> OpenRun:
    recipe = {
        "name": "r",
        "model": {"name": "nano", "family": "nano"},
        "problems": {"train": 0, "dev": 0, "test": 2},
        "evaluate": {
            "samples": 2,
            "temperature": 1.0,
            "max_tokens": 200,
            "models": ["base"],
            "exits": [{"name": "early", "policy": "deer", "monitor": "paragraph", **exit}],
        },
    }
    return open_run(folder / "run", Recipe.model_validate(recipe))


@pytest.mark.slow
def test_a_run_keeps_wasted_tokens_beside_its_table(tmp_path: Path) -> None:
    run = a_run(tmp_path, overlap=True, inducer="closed", threshold=0.5)
    run_stages(run, with_questions(run.recipe, "evaluate"))
    run.close()
    rows = pl.read_parquet(run / "evaluate" / "rows.parquet")
    beside = pl.read_parquet(run / "evaluate" / "timings.parquet")
    usage = pl.read_parquet(run / "evaluate" / "usage.parquet")
    assert rows["id"].to_list() == beside["id"].to_list()
    assert beside["wasted"].sum() == usage["wasted"].sum() > 0
    assert usage["generated"].sum() == rows["tokens"].sum() + beside["wasted"].sum()


class Refused(Deer):
    def check(self, engine: Engine) -> None:
        self.require("it needs more than there is", False, engine)


def test_a_run_refuses_an_exit_before_it_asks_for_a_token(tmp_path: Path) -> None:
    run = a_run(tmp_path, policy="tests.test_evaluate:Refused")
    with pytest.raises(EngineError, match="exit 'early': it needs more"):
        run_stages(run, with_questions(run.recipe, "evaluate"))
    run.close()
    assert not (run / "evaluate" / "manifest.json").exists()


def task_file(folder: Path, name: str, *questions: str) -> str:
    path = folder / f"{name}.jsonl"
    rows = [{"problem": question, "answer": "2"} for question in questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def several(folder: Path, *tasks: str, **changes: object) -> OpenRun:
    evaluate = {
        "samples": 1, "max_tokens": 40, "temperature": 1.0, "models": ["base"], "tasks": tasks,
    }  # fmt: skip
    recipe = {
        "name": "r",
        "model": {"name": "nano", "family": "nano"},
        "problems": {"train": 2, "dev": 0, "test": 0},
        "evaluate": evaluate | changes,
    }
    return open_run(folder / "run", Recipe.model_validate(recipe), recompute=agree)


def test_one_evaluation_covers_several_tasks(tmp_path: Path) -> None:
    seen = next(iter(chain_problems("train", 1, seed=0))).question
    small = task_file(tmp_path, "small", "Start with 1. Add 1.", "Start with 3. Subtract 1.", seen)
    run = several(tmp_path, small, "chains", limit=3)
    run_stages(run, with_questions(run.recipe, "evaluate"))
    run.close()
    asked = pl.read_parquet(run / "test" / "rows.parquet")
    assert sorted(asked["task"]) == ["chains"] * 3 + ["small"] * 2
    assert set(asked["split"]) == {"test"}
    [dropped] = (run / "test" / "dropped.jsonl").read_text().splitlines()
    assert json.loads(dropped)["reason"] == "duplicate", "the run trains on it"
    rows = pl.read_parquet(run / "evaluate" / "rows.parquet")
    assert set(rows["problem_id"]) == set(asked["id"])
    assert len(rows) == 5


@pytest.mark.slow
def test_test_sets_lose_gold_answers_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [{"problem": "a?", "answer": r"\neg p"}, {"problem": "b?", "answer": "x>2"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = several(tmp_path, str(path))
    run_stages(run, ["problems", "test"])
    run.close()
    assert pl.read_parquet(run / "test" / "rows.parquet")["answer"].to_list() == ["x>2"]
    [dropped] = (run / "test" / "dropped.jsonl").read_text().splitlines()
    assert json.loads(dropped)["reason"] == "unreadable_gold"
    assert "neg p" in json.loads(dropped)["detail"]


@pytest.mark.slow
def test_another_task_leaves_the_answers_to_the_others_alone(tmp_path: Path) -> None:
    first = task_file(tmp_path, "first", "Start with 1. Add 1.")
    second = task_file(tmp_path, "second", "Start with 3. Subtract 1.")

    run = several(tmp_path, first)
    run_stages(run, with_questions(run.recipe, "evaluate"))
    run.close()
    before = pl.read_parquet(run / "evaluate" / "usage.parquet")
    run = several(tmp_path, first, second)
    run_stages(run, ["problems", "test"])
    stage = stage_of(run.recipe, "evaluate")
    assert not run.finished(stage, run.config(stage))
    kept = [json.loads(line) for line in (run / "evaluate" / "journal").read_text().splitlines()]
    assert [line["key"] for line in kept[1:]] == before["key"].to_list()
    run_stages(run, ["evaluate"])
    run.close()
    assert len(pl.read_parquet(run / "evaluate" / "rows.parquet")) == 2
    run = several(tmp_path, second)
    run_stages(run, with_questions(run.recipe, "evaluate"))
    run.close()
    rows = pl.read_parquet(run / "evaluate" / "rows.parquet")
    assert len(rows) == 1 and before["key"][0] not in rows["id"][0]


def test_a_task_without_a_usable_problem_is_refused(tmp_path: Path) -> None:
    run = several(tmp_path, task_file(tmp_path, "empty"))
    with pytest.raises(DtoError, match="has no usable problem"):
        run_stages(run, with_questions(run.recipe, "evaluate"))
    run.close()
    with pytest.raises(ValueError, match="tasks has 'a' twice"):
        EvaluateSettings(tasks=("a.jsonl", "x/a"))
