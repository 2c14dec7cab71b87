"""Branches decoded in one sequence are what separate requests give."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from dto.context import Context
from dto.engines.kv import LENGTH_STEP, KVShape
from dto.engines.linearised import CHAINS, Linearised
from dto.engines.sampling import Request, Sample
from dto.engines.transformers import BRANCHING, TransformersEngine
from dto.errors import EngineError
from dto.exits import ExitedResponse, answer
from dto.exits.deer import Deer
from dto.grading import Grader
from dto.nano import chain_problems
from dto.protocols import Completion, Sampling
from dto.recipe import Recipe
from dto.records import Problem
from dto.settings import open_policy
from dto.trajectories import prompt_ids
from dto.usage import metered
from tests.engines.scripted import ScriptedEngine
from tests.engines.served import Served

MAIN = Sampling(max_tokens=260, temperature=1.0, top_p=0.95, seed=7, logprobs=0)
GREEDY = Sampling(max_tokens=24, temperature=0.0, logprobs=0)


@asynccontextmanager
async def branched(nano: Served) -> AsyncIterator[tuple[TransformersEngine, TransformersEngine]]:
    async with nano.endless() as engine, engine.branched() as view:
        yield engine, view


async def with_branches(
    view: TransformersEngine, prompt: Sequence[int], main: Sampling, every: int, ask: Sequence[int]
) -> tuple[Completion, dict[int, Completion]]:
    """A main stream, and a greedy branch after every so many of its tokens."""
    ids: list[int] = []
    logprobs: list[float] = []
    tasks: dict[int, asyncio.Task[list[Completion]]] = {}
    async with aclosing(view.stream(prompt, main)) as chunks:
        async for chunk in chunks:
            start = len(ids)
            ids += chunk.token_ids
            logprobs += chunk.logprobs or ()
            for cut in range(start + 1, len(ids) + 1):
                if cut % every == 0:
                    branch = (*prompt, *ids[:cut], *ask)
                    tasks[cut] = asyncio.create_task(view.complete(branch, GREEDY))
    branches = {cut: (await task)[0] for cut, task in tasks.items()}
    whole = Completion(tuple(ids), "", "length", len(prompt), logprobs=tuple(logprobs))
    return whole, branches


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_main_and_branches_are_those_of_separate_requests(
    nano: Served, prompts: list[list[int]], temperature: float
) -> None:
    ask = nano.tokenizer.encode("\n\n**Final Answer**\n\\boxed", add_special_tokens=False)
    main = replace(MAIN, temperature=temperature)
    async with branched(nano) as (engine, view):
        for prompt in prompts[:2]:
            found, branches = await with_branches(view, prompt, main, 13, ask)
            (alone,) = await engine.complete(prompt, main)
            assert found.token_ids == alone.token_ids
            assert found.logprobs is not None and alone.logprobs is not None
            # The first comes from reading the prompt, where the engine alone has one row of logits.
            assert found.logprobs[1:] == alone.logprobs[1:]  # bit for bit
            assert found.logprobs[0] == pytest.approx(alone.logprobs[0], abs=1e-5)
            assert len(branches) == MAIN.max_tokens // 13
            prefixes = [(*prompt, *alone.token_ids[:cut], *ask) for cut in branches]
            apart = await asyncio.gather(*(engine.complete(prefix, GREEDY) for prefix in prefixes))
            for (cut, branch), (separate,) in zip(branches.items(), apart, strict=True):
                assert branch.token_ids == separate.token_ids
                assert branch.logprobs == pytest.approx(separate.logprobs, abs=1e-4)
                # The keys of a token are computed with the next one, and the last one has none.
                assert branch.cached_tokens >= len(prompt) + min(cut, MAIN.max_tokens - 1)


@pytest.mark.slow
async def test_greedy_is_generate_token_for_token(nano: Served, prompts: list[list[int]]) -> None:
    async with nano.engine() as engine, engine.branched() as view:
        found = await asyncio.gather(*(view.complete(p, GREEDY) for p in prompts[:40]))
    assert len(found) > CHAINS  # more than decode together, of which none is the other's prefix
    for prompt, (completion,) in zip(prompts, found, strict=False):
        assert list(completion.token_ids) == nano.generate(prompt, 24)


@pytest.mark.slow
async def test_samples_of_a_branch_have_their_own_noise(
    nano: Served, prompts: list[list[int]]
) -> None:
    sampling = Sampling(40, temperature=1.0, top_p=1.0, seed=3)
    async with branched(nano) as (engine, view):
        expected = await engine.complete(prompts[0], sampling, 20)
        with metered() as usage:
            found = await view.complete(prompts[0], sampling, 20)
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]
    assert len({c.token_ids for c in found}) > 1
    assert usage.generated == 20 * 40
    read = usage.prompt - usage.cached
    assert len(prompts[0]) <= read <= len(prompts[0]) + 20  # the last token is always computed


@pytest.mark.slow
async def test_a_conclusion_goes_on_from_the_prefix_that_it_keeps(
    nano: Served, prompts: list[list[int]]
) -> None:
    prompt = prompts[1]
    close = nano.tokenizer.encode("\n</think>\n\n", add_special_tokens=False)
    async with branched(nano) as (engine, view):
        ids: list[int] = []
        async with aclosing(view.stream(prompt, MAIN)) as chunks:
            async for chunk in chunks:
                ids += chunk.token_ids
                if len(ids) > 100:
                    break
        prefix = (*prompt, *ids[:60], *close)
        (found,) = await view.complete(prefix, replace(MAIN, max_tokens=80))
        (expected,) = await engine.complete(prefix, replace(MAIN, max_tokens=80))
        # What the trunk had beyond the cut is gone, and does not shine through.
        (again,) = await view.complete((*prompt, *ids[:30]), replace(MAIN, max_tokens=80))
        (alone,) = await engine.complete((*prompt, *ids[:30]), replace(MAIN, max_tokens=80))
    assert found.cached_tokens >= len(prompt) + 60
    assert found.token_ids == expected.token_ids
    assert again.token_ids == alone.token_ids
    assert again.cached_tokens == len(prompt) + 30 - 1


async def test_what_is_cancelled_is_counted_and_leaves(
    nano: Served, prompts: list[list[int]]
) -> None:
    prompt = prompts[2]
    async with branched(nano) as (_, view):
        with metered() as usage:
            async with aclosing(view.stream(prompt, MAIN)) as chunks:
                first = await anext(chunks)
                branch = asyncio.create_task(view.complete((*prompt, 5, 6), MAIN))
                seen = len(first.token_ids)
                while seen < 20:
                    seen += len((await anext(chunks)).token_ids)
                branch.cancel()
                while seen < 40:
                    seen += len((await anext(chunks)).token_ids)
        assert usage.requests == 2
        assert usage.generated - usage.wasted == seen
        (after,) = await view.complete((*prompt, 5, 6), GREEDY)  # nobody is left behind
        assert len(after.token_ids) == GREEDY.max_tokens


async def test_score_is_that_of_the_engine(nano: Served, prompts: list[list[int]]) -> None:
    async with branched(nano) as (engine, view):
        found = await view.score(prompts[0], [7, 8, 9])
        assert found == pytest.approx(await engine.score(prompts[0], [7, 8, 9]), abs=1e-5)


async def test_the_engine_has_to_serve(nano: Served) -> None:
    with pytest.raises(EngineError, match="not serving"):
        await nano.engine().branched().__aenter__()
    exit = Deer(name="b", overlap="branches")
    exit.check(nano.engine())
    with pytest.raises(EngineError, match="overlap: branches"):
        exit.check(ScriptedEngine({}, nano.tokenizer))


EXITS: list[dict[str, Any]] = [
    {"monitor": "cue", "inducer": "inside"},
    {"monitor": "paragraph", "inducer": "closed", "threshold": 0.9},
    {"monitor": "paragraph", "mode": "pro", "threshold": 0.9},
    {"monitor": "entropy", "inducer": "closed", "entropy": 0.1},
    {"monitor": "tokens", "every": 32, "shadow": True},
    {"policy": "consistency", "monitor": "tokens", "every": 16},
]


@pytest.mark.slow
async def test_exits_are_those_of_the_sequential_form(nano: Served) -> None:
    """Position, answer, grade and tokens of each trial, and every token of the response."""
    recipe = Recipe.model_validate({"name": "test", "model": {"name": "nano", "family": "nano"}})
    sure: dict[Any, list[float]] = {}
    async with nano.engine() as engine, Grader(workers=1) as grader:
        ctx = Context(recipe, engine, grader)

        async def respond(
            exit: dict[str, Any], problem: Problem, sampling: Sampling, overlap: Any
        ) -> ExitedResponse:
            prompt = prompt_ids(problem.question, ctx.tokenizer, recipe.model)
            settings = open_policy({"name": "b", "policy": "deer", "overlap": overlap, **exit})
            response = await answer(problem, prompt, settings, ctx, sampling)
            for trial in response.trials:
                key = (str(exit), problem.id, trial.position)
                sure.setdefault(key, []).append(trial.confidence)
            trials = tuple(replace(trial, confidence=0.0) for trial in response.trials)
            return replace(response, trials=trials)

        for exit in EXITS:
            for index, problem in enumerate(chain_problems("test", 2, seed=1)):
                sampling = Sampling(300, temperature=float(index % 2), top_p=1.0, seed=index)
                expected = await respond(exit, problem, sampling, False)
                assert expected.exit_reason != "failed"
                assert await respond(exit, problem, sampling, "branches") == expected, exit
    assert {key[0] for key in sure} == {str(exit) for exit in EXITS}
    for one, other in sure.values():
        assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.slow
def test_memory_is_bounded_by_what_is_under_way(nano: Served, prompts: list[list[int]]) -> None:
    """A long main chain with many short branches, one after another and several at a time."""
    config = nano.model.config
    shape = KVShape(
        config.num_hidden_layers,
        config.num_key_value_heads,
        config.hidden_size // config.num_attention_heads,
        torch.float32,
        torch.device("cpu"),
    )
    batch = Linearised(nano.model, shape, frozenset())
    prompt = tuple(prompts[0])
    main = Request(prompt, Sampling(400), 400)
    main.samples.append(Sample(main, 0))
    ended = []
    with torch.inference_mode():
        batch.admit(main.samples)
        for step in range(400):
            ended += batch.step()
            if step % 3 == 0:
                ids = (*prompt, *main.samples[0].token_ids, 1, 2, 3)
                branch = Request(ids, GREEDY, 20)
                branch.samples.append(Sample(branch, 0))
                batch.admit(branch.samples)
            under_way = sum(
                len(sample.token_ids) + 4 for sample in batch.samples if sample not in main.samples
            )
            length = len(prompt) + step + 1 + 64 + 2 * under_way + 2 * LENGTH_STEP
            assert batch.cache.kv.nbytes <= 1.25 * (length + 2 * LENGTH_STEP) * shape.token_bytes
    assert len(ended) > 100 and batch.live < 10


async def test_what_is_not_finite_fails_the_sequence_and_leaves_nothing_behind(
    nano: Served, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = 300
    embeddings = nano.model.get_input_embeddings()
    original = embeddings.forward

    def poisoned(ids: torch.Tensor) -> torch.Tensor:
        return original(ids).masked_fill((ids == poison)[..., None], float("nan"))

    monkeypatch.setattr(embeddings, "forward", poisoned)
    prompt = prompts[0]
    async with branched(nano) as (engine, view):
        async with aclosing(view.stream(prompt, MAIN)) as chunks:
            await anext(chunks)
            (failed,) = await view.complete((*prompt, poison), GREEDY)
            last = [chunk async for chunk in chunks][-1]
        (after,) = await view.complete((*prompt, 7), GREEDY)
        (expected,) = await engine.complete((*prompt, 7), GREEDY)
    assert failed.finish_reason == last.finish_reason == "failed"
    assert "not finite" in failed.error and "not finite" in last.error
    assert after.token_ids == expected.token_ids


async def test_few_responses_branch_at_a_time(nano: Served) -> None:
    async with nano.endless() as engine:
        most = under_way = 0

        async def respond() -> None:
            nonlocal most, under_way
            async with engine.branched() as view:
                under_way += 1
                most = max(most, under_way)
                (completion,) = await view.complete([5, 6, 7], replace(GREEDY, max_tokens=4))
                assert len(completion.token_ids) == 4
                under_way -= 1

        await asyncio.gather(*(respond() for _ in range(7)))
        assert most == BRANCHING
