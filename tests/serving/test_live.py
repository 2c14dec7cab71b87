"""A response that shows itself as it is thought is the response that `evaluate` gives."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

import dto
from dto.context import Context, sampling
from dto.errors import DtoError
from dto.exits import answer
from dto.grading import Grader
from dto.nano import chain_problems
from dto.records import Problem
from dto.serving.live import _beginning
from dto.serving.model import OpenModel, open_model, policy_of
from dto.settings import ExitPolicy
from dto.trajectories import prompt_ids

PROBLEMS = list(chain_problems("test", 6, seed=3))
TOKENS = 300
EXITS: dict[str, Any] = {
    "none": "none",
    "deer": {"policy": "deer", "threshold": 0.8},
    "overlapped": {"policy": "deer", "threshold": 0.8, "overlap": True},
    "branches": {"policy": "deer", "threshold": 0.8, "overlap": "branches"},
    "compat": {"policy": "deer", "mode": "compat", "threshold": 0.8},
    "consistency": {"policy": "consistency", "agree": 2},
    "entropy": "entropy",
    "budget": {"policy": "budget", "budget": 40},
    "no_thinking": "no_thinking",
    "nowait": "nowait",
}


@pytest.fixture(scope="module")
def model() -> Iterator[OpenModel]:
    settings = {"evaluate.max_tokens": TOKENS, "evaluate.temperature": 0.0}
    with open_model("nano", settings) as opened:
        yield opened


async def evaluated(model: OpenModel, problem: Problem, exit: ExitPolicy) -> dto.ExitedResponse:
    """The response of the stage `evaluate`, on the engine of the model."""

    async def work() -> dto.ExitedResponse:
        ctx: Context = model.serving.ctx
        async with Grader() as grader:
            ctx = Context(ctx.recipe, ctx.engine, grader)
            prompt = prompt_ids(problem.question, ctx.tokenizer, ctx.recipe.model)
            drawn = sampling(ctx.recipe.evaluate, TOKENS, 5)
            return await answer(problem, prompt, exit, ctx, drawn)

    future = asyncio.run_coroutine_threadsafe(work(), model.loop)
    return await asyncio.wrap_future(future)


@pytest.mark.slow
@pytest.mark.parametrize("exit", EXITS)
async def test_the_same_tokens_as_evaluate(model: OpenModel, exit: str) -> None:
    policy = policy_of(EXITS[exit])
    for problem in PROBLEMS:
        wanted = await evaluated(model, problem, policy)
        events = [event async for event in model.stream(problem.question, policy, seed=5)]
        reply = events[-1]
        assert isinstance(reply, dto.Reply)
        got = reply.response
        assert got.token_ids == wanted.token_ids
        assert (got.exit_reason, got.withdrawn) == (wanted.exit_reason, wanted.withdrawn)
        assert [(trial.position, trial.answer) for trial in got.trials] == [
            (trial.position, trial.answer) for trial in wanted.trials
        ]
        check_events(events, policy)


def check_events(events: list[Any], policy: ExitPolicy) -> None:
    """The reply is the sum of the events before it, which come in their order."""
    *before, reply = events
    kinds = [type(event) for event in before if type(event) is not dto.Tried]
    assert kinds == sorted(kinds, key=[dto.Thinking, dto.Left, dto.Answering].index)
    assert kinds.count(dto.Left) == 1
    answered = [event for event in before if isinstance(event, dto.Answering)]
    begin = max((i for i, event in enumerate(answered) if event.anew), default=0)
    assert "".join(event.text for event in answered[begin:]) == reply.answer
    thought = "".join(event.text for event in before if isinstance(event, dto.Thinking))
    if (
        policy.policy != "deer" or getattr(policy, "mode", "") != "compat"
    ):  # it sends text of its own
        assert thought.startswith(reply.thinking.strip())
    tried = [event.trial for event in before if isinstance(event, dto.Tried)]
    assert tried in ([], list(reply.trials))
    parts = reply.tokens
    made = len(reply.response.thinking_ids) + reply.response.answer_tokens
    assert parts.thinking + parts.answer == made
    assert parts.generated >= made + parts.trial


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 1, 2, 5, 20, 60])
@pytest.mark.parametrize("exit", ["none", "deer", "overlapped"])
def test_an_answer_is_there_whenever_it_is_asked_for(
    model: OpenModel, exit: str, after: int
) -> None:
    for problem in PROBLEMS[:2]:
        events = model.stream(problem.question, EXITS[exit])
        left: list[dto.Left] = []
        for number, event in enumerate(events):
            if number == after:
                events.answer_now()
            if isinstance(event, dto.Left):
                left.append(event)
        assert isinstance(event, dto.Reply)
        assert event.boxed is not None and event.finish_reason == "stop"
        assert len(left) == 1
        assert event.exit_reason in ("asked", "closed", "policy")


@pytest.mark.slow
def test_an_answer_without_room_for_a_conclusion(model: OpenModel) -> None:
    stream = model.stream(PROBLEMS[0].question, max_tokens=12)
    events = []
    for event in stream:
        events.append(event)
        if len(events) == 8:
            stream.answer_now()
    assert isinstance(reply := events[-1], dto.Reply)
    assert reply.boxed is not None
    assert reply.exit_reason == "asked"


@pytest.mark.slow
def test_a_loop_that_is_left_early_frees_the_engine(model: OpenModel) -> None:
    first = next(iter(model.stream(PROBLEMS[0].question)))

    async def under_way() -> int:
        for _ in range(200):
            if not asyncio.all_tasks() - {asyncio.current_task()}:
                break
            await asyncio.sleep(0.01)
        return len(asyncio.all_tasks()) - 1

    assert asyncio.run_coroutine_threadsafe(under_way(), model.loop).result(10) == 0
    assert isinstance(first, dto.Thinking)


@pytest.mark.slow
async def test_many_at_once_are_not_mixed_up(model: OpenModel) -> None:
    replies = await asyncio.gather(
        *(model.answer_async(problem.question, EXITS["deer"]) for problem in PROBLEMS * 3)
    )
    alone = [model.answer(problem.question, EXITS["deer"]) for problem in PROBLEMS]
    for index, reply in enumerate(replies):
        assert reply.response.token_ids == alone[index % len(PROBLEMS)].response.token_ids


@pytest.mark.slow
def test_a_stop_text_ends_the_answer_and_never_the_thinking(model: OpenModel) -> None:
    whole = model.answer(PROBLEMS[0].question)
    cut = model.answer(PROBLEMS[0].question, stop=("Answer",))
    assert "Answer" in whole.answer
    assert cut.answer == whole.answer.partition("Answer")[0]
    assert (cut.thinking, cut.finish_reason) == (whole.thinking, "stop")
    assert model.answer(PROBLEMS[0].question, stop=("last digit",)).thinking == whole.thinking


@pytest.mark.slow
@pytest.mark.parametrize(
    ("exit", "options", "said"),
    [
        ("deeer", {}, "deeer"),
        ({"policy": "deer", "threshold": 2}, {}, "threshold"),
        ("static", {}, "static"),
        ("none", {"max_token": 5}, "'max_token' is no option"),
        ("missing.yaml", {}, "missing.yaml"),
    ],
)
def test_what_is_refused(model: OpenModel, exit: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(DtoError, match=said):
        model.answer("1 + 1?", exit, **options)


@pytest.mark.slow
def test_messages_and_ids_are_prompts_too(model: OpenModel) -> None:
    served = model.serving
    question = PROBLEMS[0].question
    ids = served.prompt(question)
    by_ids = model.answer(ids, seed=1)
    assert by_ids.response.token_ids == model.answer(question, seed=1).response.token_ids
    asked: Any = [{"role": "user", "content": question}]
    assert model.answer(asked, seed=1).tokens.prompt == len(served.prompt(asked))
    with pytest.raises(DtoError, match="context is"):
        model.answer("1 + " * 4_000)


def test_ten_lines_of_a_user() -> None:
    """`dto.answer` opens a model by its name and closes it again."""
    with pytest.raises(DtoError, match="no-such-folder"):
        dto.answer("1 + 1?", model="./no-such-folder")


@pytest.mark.parametrize(
    ("text", "tags", "held"),
    [
        ("It is 5.", ("</think>",), ""),
        ("It is 5.<", ("</think>",), "<"),
        ("It is 5.</thin", ("</think>",), "</thin"),
        ("a < b", ("</think>",), ""),
        ("<", ("<think>", "</think>"), "<"),
        ("<<", ("</think>",), "<"),
        ("", ("</think>",), ""),
    ],
)
def test_what_may_be_the_beginning_of_a_tag(text: str, tags: tuple[str, ...], held: str) -> None:
    assert _beginning(text, tags) == held
