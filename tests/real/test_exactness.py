"""What the engine computes on a real model is what `generate` computes, alone or in company."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from dto.engines.transformers import TransformersEngine
from dto.protocols import Completion, Sampling
from tests.engines.served import Served

TOKENS = 20
GREEDY = Sampling(max_tokens=TOKENS, temperature=0.0)
QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Anna has 3 apples and buys 4 more. How many apples does she have now? Think step by step.",
    "Translate into French: Good morning, my friend!",
)


@pytest.fixture(scope="module")
def asked(smollm2: Served) -> list[list[int]]:
    """With the model's own template, which has a system message of its own."""
    template = smollm2.tokenizer.apply_chat_template
    return [
        template([{"role": "user", "content": text}], add_generation_prompt=True)["input_ids"]
        for text in QUESTIONS
    ]


@pytest.fixture(scope="module")
def expected(smollm2: Served, asked: list[list[int]]) -> list[list[int]]:
    return [smollm2.generate(prompt, TOKENS) for prompt in asked]


async def one(engine: TransformersEngine, prompt: list[int], sampling: Sampling) -> Completion:
    (completion,) = await engine.complete(prompt, sampling)
    assert completion.finish_reason != "failed", completion.error
    return completion


async def test_greedy_is_generate_token_for_token(
    smollm2: Served, asked: list[list[int]], expected: list[list[int]]
) -> None:
    """Batched with one another and with a sample, then alone, then continued from the cache."""
    async with smollm2.engine(slots=8) as engine:
        mate = asyncio.create_task(one(engine, asked[0], Sampling(9, temperature=1.0, seed=1)))
        found = await asyncio.gather(*(one(engine, prompt, GREEDY) for prompt in asked))
        await mate
        again = await one(engine, asked[2], GREEDY)
        cut = [len(ids) // 2 for ids in expected]
        rest = await asyncio.gather(
            *(
                one(engine, [*prompt, *ids[:at]], replace(GREEDY, max_tokens=TOKENS - at))
                for prompt, ids, at in zip(asked, expected, cut, strict=True)
            )
        )
    assert [list(each.token_ids) for each in found] == expected
    assert list(again.token_ids) == expected[2] and again.cached_tokens >= 16
    assert [list(each.token_ids) for each in rest] == [
        ids[at:] for ids, at in zip(expected, cut, strict=True)
    ]
    assert all(
        each.cached_tokens == (len(prompt) + at - 1) // 16 * 16
        for each, prompt, at in zip(rest, asked, cut, strict=True)
    )


async def test_a_stream_that_is_left_goes_on_where_it_was(
    smollm2: Served, asked: list[list[int]], expected: list[list[int]]
) -> None:
    """The sequential form of early exit: pause, ask for a trial answer, go on."""
    async with smollm2.engine() as engine:
        kept: list[int] = []
        async with aclosing(engine.stream(asked[1], GREEDY)) as stream:
            async for chunk in stream:
                kept += chunk.token_ids
                if len(kept) >= 7:
                    break
        trial = engine.tokenizer.encode("\n**Final Answer**\n\\boxed", add_special_tokens=False)
        await one(engine, [*asked[1], *kept, *trial], replace(GREEDY, max_tokens=4))
        rest = await one(engine, [*asked[1], *kept], replace(GREEDY, max_tokens=TOKENS - len(kept)))
    assert [*kept, *rest.token_ids] == expected[1]
