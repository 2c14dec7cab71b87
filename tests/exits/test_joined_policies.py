"""Every policy from end to end on the vocabularies that people use."""

from __future__ import annotations

import pytest

from dto.calibration.replay import Replay
from dto.context import Context
from dto.exits.monitor import Monitor
from dto.grading import Grader
from dto.protocols import Completion
from dto.recipe import (
    EvaluateSettings,
    SegmentSettings,
    TraceSettings,
)
from dto.records import ExitEstimate, OptimizedTrajectory, Problem
from dto.settings import MonitorSettings, open_policy
from dto.stages.evaluate import evaluate
from dto.stages.optimize import optimize
from dto.studies.trace import trace
from dto.trajectories import make_trajectory
from tests.calibration.traces import without_text
from tests.exits.speaking import (
    EXITS,
    LONG,
    RECIPE,
    THINKING,
    Speaker,
    decode,
    encode,
    respond,
    sure_in_a_display,
    tokenizer,
)
from tests.segmenting import segment
from tests.stages.script import Scripted
from tests.vocabularies import NAMES, R1, vocabulary


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("exit", EXITS)
async def test_whatever_a_policy_sends_is_what_the_tokenizer_writes(name: str, exit: str) -> None:
    main = f"{THINKING}</think>\n\n\\boxed{{8}}"
    response, engine = await respond(name, EXITS[exit], main)
    assert response.exit_reason in ("policy", "budget"), response.error
    for ids in engine.asked:
        assert list(ids) == encode(name, decode(name, ids))
        assert exit == "static" or "\\\n" not in decode(name, ids)
    whole = (*response.leading_ids, *response.thinking_ids, *response.inserted_ids)
    assert whole == engine.asked[-1]
    if exit not in ("static", "no_thinking"):
        kept = decode(name, whole).partition("</think>")[0].rstrip()
        assert THINKING.startswith(kept)
        assert THINKING.removeprefix(kept).startswith("\n")
    if exit != "static":
        generated = len(response.thinking_ids) + response.answer_tokens + response.trial_tokens
        assert generated == engine.generated


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
async def test_an_exit_keeps_what_closes_a_formula(name: str) -> None:
    """The closing bracket is one token with the end of the paragraph."""
    _, engine = await respond(name, EXITS["deer"], f"{THINKING}</think>\n\n8")
    trials = [decode(name, ids) for ids in engine.asked if "Final Answer" in decode(name, ids)]
    assert trials == [
        f"{kept}\n\n**Final Answer**\n\\boxed"
        for kept in (
            "So that is \\( x = 8 \\).",
            "So that is \\( x = 8 \\).\n\nWait, is \\[ 5 + 3 = 8 \\]",
        )
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("closed", ["", f"</think>\n\n{LONG}"])
@pytest.mark.parametrize("thinking", [THINKING, "It is 8. It is, is it"])
async def test_a_forced_answer_follows_the_thinking(name: str, thinking: str, closed: str) -> None:
    """`budget` puts an answer in place of a conclusion that does not end."""
    exit = {"policy": "budget", "budget": 300, "trial_tokens": 10, "think_ratio": 1.0}
    main = thinking + closed
    response, engine = await respond(name, exit, main, conclusion=LONG)
    assert (response.exit_reason, response.finish_reason) == ("budget", "stop")
    whole = (*response.leading_ids, *response.thinking_ids, *response.inserted_ids)
    assert whole == engine.asked[-1]
    assert list(whole) == encode(name, decode(name, whole))
    assert main.startswith(decode(name, whole).partition("</think>")[0].rstrip())
    assert "8</think>" not in decode(name, whole)
    generated = len(response.thinking_ids) + response.answer_tokens + response.trial_tokens
    assert generated == engine.generated


@pytest.mark.parametrize("name", NAMES)
async def test_a_quoted_tag_ends_neither_the_search_nor_the_path(name: str) -> None:
    quoted = [encode(name, part) for part in ("The `</", "think>` is a tag.\n\n")]
    ids = [*quoted[0], *quoted[1], *encode(name, "So 8.\n\nWait, ")]
    assert vocabulary(name).think[1] not in ids
    exit = MonitorSettings(monitor="cue")
    monitor = Monitor(tokenizer(name), exit)
    [found] = monitor.scan(ids, ended=False)
    assert decode(name, ids[: found.cut]).rstrip() == "The `</think>` is a tag.\n\nSo 8."
    closed = [vocabulary(name).think[1], *encode(name, "8.\n\nWait, ")]
    assert not [*monitor.scan(closed, ended=False)] and monitor.closed


@pytest.mark.parametrize("name", NAMES)
async def test_finalize_joins_at_every_boundary(name: str) -> None:
    """No `.\n\n` with another blank line behind it."""
    words = vocabulary(name)
    problem = Problem("p" * 16, "toy", "train", "5 + 3?", "8")
    reply = "\\boxed{8}"
    ids = [*encode(name, f"{THINKING} So. Wait, 8.</think>\n\n{reply}"), words.end_ids[0]]
    async with Grader(workers=1) as grader:
        ctx = Context(RECIPE, Scripted(words.tokenizer, lambda *_: reply), grader)
        row = await make_trajectory(
            problem,
            Completion(tuple(ids), "", "stop"),
            model="m",
            sample=0,
            seed=0,
            prompt_ids=encode(name, "<think>\n"),
            tokenizer=words.tokenizer,
            grader=grader,
        )
        segments = segment(row, words.tokenizer, SegmentSettings(granularity="cue"))
        assert isinstance(segments, list) and len(segments) > 5
        for each in segments:
            passed = ExitEstimate(
                each.id, row.id, each.index, 16, 16, 0, 0, 1.0, 0.8, 1.0, "above", 0
            )
            result = await optimize(problem, row, segments, [passed], ctx)
            assert isinstance(result, OptimizedTrajectory)
            said = [token for token in result.token_ids if token not in words.end_ids]
            assert said == encode(name, result.text)
            assert result.token_ids[: each.exit - 1] == row.token_ids[: each.exit - 1]
            kept = row.text[: each.chars.end].rstrip()
            assert result.text.removeprefix(kept).startswith("\n\nMy reasoning")


@pytest.mark.parametrize("name", [R1])
async def test_a_replay_counts_what_a_join_replaces(name: str) -> None:
    main = f"It is 8. Wait, it is \\[ 8. \\] Wait.\n\n{THINKING}</think>\n\n\\boxed{{8}}"
    engine = Speaker(tokenizer(name), main, trial=sure_in_a_display)
    problem = Problem("p" * 16, "toy", "test", "5 + 3?", "8")
    evaluated = EvaluateSettings(samples=1, temperature=0.0, max_tokens=400)
    traced = TraceSettings(monitors=("cue", "paragraph"), fractions=(0.1, 0.5))
    recipe = RECIPE.model_copy(update={"evaluate": evaluated, "trace": traced})
    ctx = Context(recipe, engine, Grader(workers=1))
    [recorded] = await trace(problem, ctx)
    assert any(each.kept < each.position for each in recorded.conclusions)
    for exit in (EXITS["deer"], EXITS["deer closed"], EXITS["static"], {"policy": "none"}):
        settings = open_policy({"name": "exit", **exit})
        [live] = await evaluate(problem, settings, ctx)
        assert Replay(recorded).row(settings) == without_text(live.row)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("policy", ["none", "nowait", "deer"])
async def test_thinking_that_ends_without_a_close_is_unclosed(name: str, policy: str) -> None:
    exit: dict[str, object] = {"threshold": 1.0} if policy == "deer" else {}
    response, engine = await respond(name, {"policy": policy} | exit, THINKING)
    assert (response.exit_reason, response.complete) == ("unclosed", False)
    assert response.answer_ids in ((), (engine.tokenizer.eos_token_id,))
