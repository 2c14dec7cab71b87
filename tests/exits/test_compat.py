"""The published script's decisions, one by one and beside the lock-step version."""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from dto.engines import open_engine
from dto.errors import RecipeError
from dto.exits.path import ExitedResponse, ResponsePath
from dto.grading import Grader
from dto.policies.compat import NEAR_LIMIT, confidence
from dto.prompts import render
from dto.protocols import Completion, Sampling
from dto.recipe import ModelSettings, make_recipe
from dto.records import Problem
from dto.trajectories import prompt_ids
from tests.engines.scripted import ScriptedEngine
from tests.exits import published

TRY = render("trial_inside")
TRY_CHOICE = render("trial_choice")
CLOSE = render("early_close")
CONCLUSION = "\\boxed{2}"


@pytest.mark.slow
async def test_the_same_decisions_as_the_lock_step_version() -> None:
    async with open_engine(ModelSettings(name="nano")) as engine, Grader(workers=1) as grader:
        ctx = published.context(engine, grader)
        generate, prompts = published.batches_of(engine), published.prompts(ctx)
        reasons = set()
        for exit in published.EXITS:
            policy = published.policy_of(**exit)
            ours = await published.by_compat(ctx, policy)
            theirs = await asyncio.to_thread(
                published.by_lockstep, prompts, generate, ctx.tokenizer, policy
            )
            for response, question in zip(ours, theirs, strict=True):
                published.assert_same(response, question, ctx.tokenizer)
                reasons.add(response.exit_reason)
            assert sum(len(response.trials) for response in ours) > 3
    assert reasons == {"policy", "closed", "budget"}


@dataclass
class Outcome:
    """A response, and what was asked for it: text after the prompt, ids, sampling."""

    response: ExitedResponse
    asked: list[tuple[str, tuple[int, ...], Sampling]]
    tokenizer: Any

    @property
    def said(self) -> str:
        return str(self.tokenizer.decode(list(self.response.thinking_ids)))

    @property
    def tried(self) -> list[str]:
        """The thinking before each trial."""
        return [text.split("\n**Final")[0] for text, *_ in self.asked if "**Final" in text]


@pytest.fixture
def follow(tokenizer: Any, problem: Problem) -> Any:
    """A response of a model that says `replies[what it has said]`, closes, and concludes.

    A trial is a text and the probability of each of its tokens, its end among them.
    """

    async def make(
        replies: Mapping[str, str],
        exit: dict[str, Any] | None = None,
        trial: tuple[str, float | list[float]] = ("{2}\n", 0.5),
        *,
        max_tokens: int = 1000,
        temperature: float = 0.0,
        model: Any = tokenizer,
        asked_of: Problem = problem,
    ) -> Outcome:
        def script(text: str, sampling: Sampling) -> tuple[str | Completion]:
            said = text.partition("<think>\n")[2]
            if said.endswith((TRY, TRY_CHOICE)):
                answer, probability = trial
                ids = (*model.encode(answer, add_special_tokens=False), model.eos_token_id)
                stops = [at for each in sampling.stop if (at := answer.find(each)) >= 0]
                ids = ids[:-1] if stops else ids
                if isinstance(probability, float):
                    probability = [probability] * len(ids)
                logprobs = tuple(map(math.log, probability))
                stop = next((each for each in sampling.stop if each in answer), None)
                return (Completion(ids, answer, "stop", 0, stop=stop, logprobs=logprobs),)
            return (CONCLUSION if said.endswith(CLOSE) else replies[said],)

        engine = ScriptedEngine(script, model, context=5000)
        ctx = published.context(engine, Grader(workers=1))
        ids = prompt_ids(asked_of.question, model, ctx.recipe.model)
        path = ResponsePath(ids, ctx, Sampling(max_tokens, temperature=temperature, seed=3))
        response = await published.policy_of(**(exit or {})).leave(path, asked_of, ctx)
        asked = [
            (str(model.decode(list(ids))).partition("<think>\n")[2], ids, sampling)
            for ids, sampling, _ in engine.requests
        ]
        return Outcome(response, asked, model)

    return make


async def test_a_sure_trial_closes_the_thinking_and_concludes(follow: Any) -> None:
    done = await follow({"": "One.\nWait, no."}, trial=("{2}\n", 0.96))
    response = done.response
    assert (done.said, response.exit_reason) == ("One.\n", "policy")
    assert response.conclusion == CONCLUSION
    assert response.complete
    [trial] = response.trials
    assert (trial.position, trial.answer, trial.grade) == (len("One.\n"), "2", "correct")
    assert trial.confidence == pytest.approx(0.96)
    assert response.withdrawn == len("Wait")
    assert response.trial_tokens == len("{2}\n") + len("Wait")
    assert done.asked[-1][2].max_tokens == 1000 - len("One.\n" + CLOSE)


async def test_what_is_sure(follow: Any) -> None:
    replies = {"": "One.\nWait.</think>", "One.\nWait": ".</think>"}
    [trial] = (await follow(replies, trial=("{2}\n", [0.1, 0.9, 0.6, 0.3]))).response.trials
    assert trial.confidence == pytest.approx(0.6)  # of `2`, `}` and the line's end
    [trial] = (await follow(replies, trial=("{2}", [0.1, 0.9, 0.6, 0.3]))).response.trials
    assert trial.confidence == pytest.approx(0.6)  # of `2`, `}` and the end of the sequence
    as_sure = await follow(replies, {"threshold": 1.0}, trial=("{2}\n", 1.0))
    assert as_sure.response.exit_reason == "closed"


@pytest.mark.parametrize(
    ("replies", "said", "tried"),
    [
        (
            {"": "One.\nWaiting is no cue.</think>", "One.\nWait": "ing is no cue.</think>"},
            "One.\nWaiting is no cue.",
            ["One.\n"],
        ),
        ({"": "But wait. Alternatively, 2.</think>"}, "But wait. Alternatively, 2.", []),
        ({"": "One.", "One.Wait": ", two.</think>"}, "One.Wait, two.", ["One."]),
        ({"": "Wait, two.</think>", "Wait": ", two.</think>"}, "Wait, two.", [""]),
    ],
    ids=["inside a word", "in lower case", "end of sequence", "before any thinking"],
)
async def test_what_is_a_transition(
    follow: Any, replies: dict[str, str], said: str, tried: list[str]
) -> None:
    done = await follow(replies)
    assert (done.said, done.tried) == (said, tried)
    assert (done.response.exit_reason, done.response.conclusion) == ("closed", CONCLUSION)


async def test_after_the_last_trial_only_the_close_tag_ends_the_thinking(follow: Any) -> None:
    replies = {"": "One.\nWait, no.", "One.\nWait": ", no. Wait, yes.</think>"}
    done = await follow(replies, {"max_trials": 1})
    assert (done.said, done.tried) == ("One.\nWait, no. Wait, yes.", ["One.\n"])
    ended = await follow(replies | {"One.\nWait": ", no."}, {"max_trials": 1})
    assert (ended.said, ended.response.exit_reason) == ("One.\nWait, no.", "budget")
    assert ended.response.conclusion == CONCLUSION


async def test_near_the_limit_the_answer_is_forced_without_a_trial(follow: Any) -> None:
    exit = {"think_ratio": 0.5}
    budget = NEAR_LIMIT + len("One.\n")
    replies = {"": "One.\nWait.</think>", "One.\nWait": ".</think>"}
    near = await follow(replies, exit, max_tokens=2 * budget)
    assert (near.said, near.tried, near.response.exit_reason) == ("One.\n", [], "budget")
    assert near.response.conclusion == CONCLUSION
    far = await follow(replies, exit, max_tokens=2 * budget + 2)
    assert (far.said, far.tried, far.response.exit_reason) == ("One.\nWait.", ["One.\n"], "closed")
    long = await follow({"": "1" * 200}, exit, max_tokens=100)
    assert (long.said, long.response.exit_reason) == ("1" * 50, "budget")


async def test_a_trial_of_one_token_is_a_wrong_answer(follow: Any) -> None:
    done = await follow({"": "One.\nWait, no."}, trial=("", 0.99))
    response = done.response
    assert (response.exit_reason, response.conclusion) == ("zero_division", "")
    assert response.complete  # so it is graded, and wrong
    assert response.trials[0].confidence == 0.0


async def test_trials_are_samples_with_the_script_s_stops(follow: Any, problem: Problem) -> None:
    said = {"": "One.\nWait.</think>", "One.\nWait": ".</think>"}
    done = await follow(said, temperature=0.6)
    [(_, _, sampling)] = [each for each in done.asked if "**Final" in each[0]]
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (1.0, 1.0, 20)
    assert "}\\" in sampling.stop
    assert "}" not in sampling.stop
    seeds = [sampling.seed for *_, sampling in done.asked]
    assert len(set(seeds)) == len(seeds)
    assert {each[2].temperature for each in (await follow(said)).asked} == {0.0}
    cut = await follow(said, trial=("{\\frac{3}{4}\\", 0.99))
    assert (cut.response.trials[0].grade, cut.response.exit_reason) == ("truncated", "policy")
    choice = Problem("c" * 16, "toy", "test", "1 + 1?", "B", "choice")
    asked = await follow(said, asked_of=choice)
    assert any(text.endswith("rather than the option, is \\boxed") for text, *_ in asked.asked)


async def test_every_request_has_the_bos_twice(follow: Any, tokenizer: Any) -> None:
    bos, id = tokenizer.bos_token, tokenizer.bos_token_id
    twice = copy.deepcopy(tokenizer)
    twice.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, id)]
    )
    done = await follow({"": "One.\nWait.</think>", "One.\nWait": ".</think>"}, model=twice)
    assert {ids[:2] for _, ids, _ in done.asked} == {(id, id)}
    assert done.response.trials[0].position == len("One.\n")


async def test_a_request_that_goes_wrong_fails_the_response(follow: Any) -> None:
    done = await follow({"": "One.\nWait"}, asked_of=Problem("x", "", "test", "?" * 6000, "2"))
    assert done.response.exit_reason == "failed"
    assert "context" in done.response.error


@pytest.mark.parametrize(
    ("exit", "message"),
    [
        ({"overlap": True}, "unknown key 'evaluate.exits.0.overlap'; allowed: name, policy, mode"),
        ({"shadow": True}, "unknown key 'evaluate.exits.0.shadow'"),
        ({"monitor": "paragraph"}, "unknown key 'evaluate.exits.0.monitor'"),
        ({"min_thinking": 5}, "unknown key 'evaluate.exits.0.min_thinking'"),
        ({"confidence": "answer"}, "Input should be 'mean', 'geometric' or 'min'"),
    ],
)
def test_what_the_script_does_not_know_is_refused(exit: dict[str, Any], message: str) -> None:
    compat = {"name": "x", "policy": "deer", "mode": "compat", **exit}
    with pytest.raises(RecipeError, match=message) as refused:
        make_recipe({"name": "r", "evaluate": {"exits": [compat]}})
    assert "\n" not in str(refused.value)


@given(st.lists(st.floats(-20.0, 0.0), min_size=1))
def test_confidences(logprobs: list[float]) -> None:
    low, middle, high = (confidence(kind, logprobs) for kind in ("min", "geometric", "mean"))
    assert 0.0 <= low <= middle * (1 + 1e-9)
    assert middle <= high * (1 + 1e-9) <= 1 + 1e-6
    assert low == math.exp(min(logprobs))
    assert high == pytest.approx(sum(map(math.exp, logprobs)) / len(logprobs))
