"""A replayed point is the live run, row by row."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, product
from pathlib import Path

import pytest

from dto import tables
from dto.calibration.replay import Replay, candidates, check, statics
from dto.context import Context
from dto.engines import open_engine
from dto.errors import RecipeError
from dto.exits.deer import Deer
from dto.exits.loop import confidence
from dto.grading import Grader
from dto.nano import chain_problems
from dto.prompts import render
from dto.protocols import Completion, Sampling
from dto.recipe import (
    CalibrateSettings,
    EvaluateSettings,
    ModelSettings,
    Recipe,
    TraceSettings,
)
from dto.records import EvaluationRow, Problem
from dto.settings import ExitPolicy, open_policy
from dto.stages.evaluate import evaluate
from dto.studies.trace import Trace, trace
from dto.usage import ModelShape
from tests.byte_level import byte_level
from tests.calibration.traces import hand_trace, without_text
from tests.engines.scripted import ScriptedEngine

GRID = CalibrateSettings(
    confidences=("answer", "mean"), thresholds=(0.3, 0.95), min_thinking=(0, 40), cooldown=(0, 30)
)


def exits_of(recipe: Recipe) -> list[ExitPolicy]:
    grid = [*candidates(recipe), *statics(recipe.trace)]
    first = next(exit for exit in grid if exit.policy == "deer")
    return [
        ExitPolicy(name="none"),
        *grid,
        first.model_copy(update={"name": "overlap", "overlap": True}),
        first.model_copy(update={"name": "shadow", "shadow": True}),
        first.model_copy(update={"name": "few", "max_trials": 1, "threshold": 1.0}),
    ]


async def live_and_replayed(
    problems: Sequence[Problem], exits: Sequence[ExitPolicy], ctx: Context, path: Path
) -> list[tuple[EvaluationRow, EvaluationRow]]:
    """The traces go through their table on the way."""
    recorded = await asyncio.gather(*(trace(problem, ctx) for problem in problems))
    rows = sorted(chain(*recorded), key=lambda row: row.id)
    assert tables.write(path, Trace, rows) == len(rows)
    replays = {row.id: Replay(row) for row in tables.read(path, Trace)}
    asked = list(product(exits, problems))
    for exit in exits:
        check(exit, ctx.recipe.trace)
    live = await asyncio.gather(*(evaluate(problem, exit, ctx) for exit, problem in asked))
    return [
        (row, replays[f"{row.problem_id}/{row.sample:03d}"].row(exit))
        for (exit, _), rows in zip(asked, live, strict=True)
        for row, *_ in rows
    ]


def alike(row: EvaluationRow) -> EvaluationRow:
    """Batch-mates move a logprob in its last bits."""
    row = without_text(row)
    trials = tuple(
        replace(trial, confidence=pytest.approx(trial.confidence, abs=1e-4)) for trial in row.trials
    )
    return replace(row, trials=trials)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_a_replayed_row_is_the_live_row_of_the_embedded_model(
    temperature: float, tmp_path: Path
) -> None:
    recipe = Recipe(
        name="test",
        seed=5,
        model=ModelSettings(name="nano", family="nano"),
        evaluate=EvaluateSettings(samples=1, temperature=temperature, top_p=1.0, max_tokens=200),
        trace=TraceSettings(monitors=("cue", "paragraph", "entropy"), entropy=0.3),
        calibrate=GRID,
    )
    exits = exits_of(recipe)
    chosen = [exits[0], *exits[1:-6:17], *exits[-6:]]
    async with open_engine(recipe.model) as engine, Grader(workers=1) as grader:
        ctx = Context(recipe, engine, grader)
        problems = chain_problems("test", 3, seed=3)
        pairs = await live_and_replayed(problems, chosen, ctx, tmp_path / "rows.parquet")
    reasons = {row.exit_reason for row, _ in pairs}
    assert "policy" in reasons and len(reasons) > 1
    assert {len(row.trials) for row, _ in pairs} >= {0, 1, 2}
    for row, replayed in pairs:
        assert alike(row) == replayed


ONE, TWO = "One and one.\n\n", "It is 2.\n\nWait, is it? Yes.\n\nWait, "
MAIN = f"{ONE}{TWO}I am sure.\n</think>\n\n\\boxed{{3}}"


def script(text: str, sampling: Sampling) -> list[str | Completion]:
    """Unsure and wrong before "It is", sure and right after it; the main path ends wrong."""
    said = text[text.rindex("<think>\n") + len("<think>\n") :]
    if "boxed" in said and "</think>\n\n\\boxed{3" not in said:
        right = "It is" in said
        answer = "2}" if right else "7}"
        if said.endswith("\\boxed"):
            answer = "{" + answer
        ids = byte_level().encode(answer, add_special_tokens=False)
        logprobs = (-0.01 if right else -1.0,) * len(ids)
        return [Completion(tuple(ids), answer, "stop", 0, stop="}", logprobs=logprobs)]
    if MAIN.startswith(said):
        return [MAIN[len(said) :]]
    assert said.endswith(render("early_close")), said
    return ["\\boxed{2}" if "It is" in said else "\\boxed{7}"]


@pytest.mark.slow
async def test_a_replayed_row_is_the_live_row_of_a_script(tmp_path: Path) -> None:
    recipe = Recipe(
        name="test",
        evaluate=EvaluateSettings(samples=1, temperature=0.0, max_tokens=400),
        trace=TraceSettings(monitors=("cue", "paragraph", "tokens"), every=5),
        calibrate=GRID.model_copy(update={"min_thinking": (0, 6), "cooldown": (0, 9)}),
    )
    problem = Problem("p" * 16, "toy", "dev", "1 + 1?", "2")
    engine = ScriptedEngine(script, byte_level(), shape=ModelShape(2, 2, 4, 1000))
    async with engine, Grader(workers=1) as grader:
        ctx = Context(recipe, engine, grader)
        pairs = await live_and_replayed([problem], exits_of(recipe), ctx, tmp_path / "rows.parquet")
        [recorded] = await trace(problem, ctx)
    for row, replayed in pairs:
        assert without_text(row) == replayed
    assert {(row.exit_reason, row.grade) for row, _ in pairs} == {
        ("closed", "wrong"),
        ("policy", "wrong"),
        ("policy", "correct"),
    }
    assert {each.monitor for each in recorded.transitions} == {"cue", "paragraph", "tokens"}


async def test_nothing_is_generated_twice(tmp_path: Path) -> None:
    """One main path; one trial for each place and inducer; one conclusion for each place."""
    recipe = Recipe(
        name="test",
        evaluate=EvaluateSettings(samples=1, temperature=0.0, max_tokens=400),
        trace=TraceSettings(fractions=(0.5, 0.5)),
    )
    engine = ScriptedEngine(script, byte_level())
    async with engine, Grader(workers=1) as grader:
        [row] = await trace(
            Problem("p" * 16, "toy", "dev", "1 + 1?", "2"), Context(recipe, engine, grader)
        )
    places = {each.position for each in row.transitions}
    assert len(places) < len(row.transitions)  # a paragraph ends where a cue stands
    assert len(row.trials) == 2 * len(places)
    assert len(row.conclusions) == len(places) + 1
    assert len(engine.requests) == 1 + len(row.trials) + len(row.conclusions)


DEER = Deer(name="x", monitor="paragraph", inducer="closed", threshold=0.9)


@pytest.mark.parametrize("context", [5, 60])
async def test_a_full_context_fails_or_cuts_the_replay_as_it_does_the_run(
    context: int, tmp_path: Path
) -> None:
    recipe = Recipe(name="test", evaluate=EvaluateSettings(samples=1, temperature=0.0))
    problem = Problem("p" * 16, "toy", "dev", "1 + 1?", "2")
    engine = ScriptedEngine(script, byte_level(), context=context)
    async with engine, Grader(workers=1) as grader:
        exits = [ExitPolicy(name="none"), DEER]
        ctx = Context(recipe, engine, grader)
        pairs = await live_and_replayed([problem], exits, ctx, tmp_path / "rows.parquet")
    for row, replayed in pairs:
        assert row.grade == ("failed" if context == 5 else "truncated")
        assert repr(without_text(row)) == repr(replayed)  # attention FLOPs are nan without a shape


def test_tokens_of_a_replayed_exit_by_hand() -> None:
    row = Replay(hand_trace("p", False, [(0.6, False), (0.95, True), (0.99, True)])).row(DEER)
    assert (row.grade, row.exit_reason, row.would_leave) == ("correct", "policy", 1)
    assert (row.thinking_tokens, row.answer_tokens) == (20, 5)
    assert row.trial_tokens == 2 * 2 + 2  # two trials, and what made the transition visible
    assert [trial.position for trial in row.trials] == [10, 20]
    late = Replay(hand_trace("p", False, [(0.95, False)] * 3)).row(
        DEER.model_copy(update={"min_thinking": 15, "cooldown": 15, "threshold": 0.96})
    )
    assert (late.exit_reason, late.tokens) == ("closed", 110 + 2)
    assert [trial.position for trial in late.trials] == [20]


def test_what_went_wrong_when_recorded_fails_the_row_that_needs_it() -> None:
    broken = Replay(hand_trace("p", True, [(0.99, True)], trial_error="engine on fire"))
    assert broken.row(ExitPolicy(name="none")).grade == "correct"
    row = broken.row(DEER)
    assert (row.grade, row.exit_reason) == ("failed", "failed")
    assert "engine on fire" in row.reason


@pytest.mark.parametrize(
    ("exit", "key"),
    [
        (DEER.changed() | {"monitor": "cue"}, "monitor = 'cue'"),
        (DEER.changed() | {"inducer": "inside"}, "inducer = 'inside'"),
        (DEER.changed() | {"trial_tokens": 30}, "trial_tokens = 30"),
        ({"policy": "deer", "mode": "pro"}, "mode = 'pro'"),
        ({"policy": "deer", "mode": "compat"}, "mode = 'compat'"),
        ({"policy": "static", "fraction": 0.4}, "fraction = 0.4"),
        ({"policy": "budget"}, "policy = 'budget'"),
        ({"policy": "entropy", "monitor": "paragraph"}, "policy = 'entropy'"),
    ],
)
def test_what_was_not_recorded_is_refused(exit: dict[str, object], key: str) -> None:
    recorded = TraceSettings(monitors=("paragraph",), inducers=("closed",))
    check(DEER, recorded)
    with pytest.raises(RecipeError, match=f"exit 'x' cannot be replayed: {key}"):
        check(open_policy({"name": "x"} | exit), recorded)


def test_a_confidence_is_that_of_the_live_policy() -> None:
    trace = hand_trace("p", True, [(0.8, True)])
    for kind in ("answer", "mean", "geometric", "min"):
        exit = DEER.model_copy(update={"confidence": kind})
        [trial] = Replay(trace).row(exit).trials
        [said] = trace.trials
        assert trial.confidence == confidence(kind, said.text, said.ends, said.logprobs)
