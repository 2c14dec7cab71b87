"""What the engine computes is what the model computes, alone or in company."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import torch

from dto.engines.transformers import TransformersEngine
from dto.protocols import Completion, Sampling
from tests.engines.served import Served

GREEDY = Sampling(max_tokens=40, temperature=0.0, logprobs=0)
SAMPLED = Sampling(max_tokens=60, temperature=1.0, top_p=0.95, seed=7, logprobs=2)


async def one(engine: TransformersEngine, prompt: list[int], sampling: Sampling) -> Completion:
    (completion,) = await engine.complete(prompt, sampling)
    return completion


@pytest.mark.slow
async def test_greedy_is_generate_token_for_token(nano: Served, prompts: list[list[int]]) -> None:
    expected = [nano.generate(prompt, 40) for prompt in prompts[:8]]
    async with nano.engine(slots=6) as engine:
        found = await asyncio.gather(*(one(engine, p, GREEDY) for p in prompts[:8]))
        again = await asyncio.gather(
            *(
                one(engine, [*prompt, *ids[:20]], replace(GREEDY, max_tokens=20))
                for prompt, ids in zip(prompts, expected, strict=False)
            )
        )
    assert [list(completion.token_ids) for completion in found] == expected
    assert [list(completion.token_ids) for completion in again] == [ids[20:] for ids in expected]
    assert all(completion.cached_tokens >= 16 for completion in again)


async def test_first_tokens_do_not_depend_on_what_is_read_with_them(
    nano: Served, prompts: list[list[int]]
) -> None:
    """Trial answers are short: their confidence is that of a prompt's very next token."""
    sampling = replace(GREEDY, max_tokens=2, logprobs=5)
    cut = [prompt[: len(prompt) - index % 7] for index, prompt in enumerate(prompts[:24])]
    async with nano.engine(cache_bytes=1) as engine:
        alone = [await one(engine, prompt, sampling) for prompt in cut]
        for together in (2, 5, 24):
            for first in range(0, len(cut), together):
                part = slice(first, first + together)
                found = await asyncio.gather(*(one(engine, p, sampling) for p in cut[part]))
                for mine, theirs in zip(found, alone[part], strict=True):
                    assert mine.token_ids == theirs.token_ids
                    assert mine.top_logprobs == theirs.top_logprobs  # bit for bit


@pytest.mark.slow
@pytest.mark.parametrize("mates", [7, 64])
async def test_results_do_not_depend_on_batch_mates(
    nano: Served, prompts: list[list[int]], mates: int
) -> None:
    async with nano.engine() as engine:
        alone = await one(engine, prompts[0], SAMPLED)
    others = prompts[1 : mates + 1]
    async with nano.engine() as engine:
        company = [
            asyncio.create_task(one(engine, prompt, Sampling(20 + 3 * i, seed=i, top_k=i % 3)))
            for i, prompt in enumerate(others)
        ]
        await asyncio.sleep(0.05)
        among = await one(engine, prompts[0], SAMPLED)
        await asyncio.gather(*company)
    assert (among.token_ids, among.top_logprobs) == (alone.token_ids, alone.top_logprobs)
    assert among.logprobs == alone.logprobs  # bit for bit


@pytest.mark.slow
async def test_cached_keys_are_those_that_would_be_computed(
    nano: Served, prompts: list[list[int]]
) -> None:
    async with nano.engine() as engine:
        first = await one(engine, prompts[0], SAMPLED)
        longer = [*prompts[0], *first.token_ids[:50]]  # its keys come from decoding
        warm = await one(engine, longer, SAMPLED)
    async with nano.engine(cache_bytes=1) as engine:
        cold = await one(engine, longer, SAMPLED)
    assert warm.cached_tokens == (len(longer) - 1) // 16 * 16 and cold.cached_tokens == 0
    assert replace(warm, cached_tokens=0) == cold  # logprobs too, bit for bit


@pytest.mark.slow
async def test_a_prefix_goes_on_as_the_stream_did(nano: Served, prompts: list[list[int]]) -> None:
    async with nano.engine() as engine:
        whole = await one(engine, prompts[3], SAMPLED)
        for cut in (1, 17, 32):
            rest = await one(
                engine,
                [*prompts[3], *whole.token_ids[:cut]],
                replace(SAMPLED, max_tokens=SAMPLED.max_tokens - cut),
            )
            assert whole.token_ids == whole.token_ids[:cut] + rest.token_ids
        assert engine.capabilities.resumable


async def test_logprobs_are_the_models_own(nano: Served, prompts: list[list[int]]) -> None:
    async with nano.engine() as engine:
        found = await one(engine, prompts[1], SAMPLED)
        scored = await engine.score(prompts[1], found.token_ids)
        cut = await engine.score([*prompts[1], *found.token_ids[:40]], found.token_ids[40:])
        with pytest.raises(Exception, match="context"):
            await engine.score(prompts[1], [5] * engine.context)
    ids = torch.tensor([[*prompts[1], *found.token_ids]])
    with torch.no_grad():
        logprobs = torch.log_softmax(nano.model(ids).logits[0], -1)
    start = len(prompts[1])
    own = [logprobs[start + i - 1, token].item() for i, token in enumerate(found.token_ids)]
    assert found.logprobs is not None and found.top_logprobs is not None
    assert found.logprobs == pytest.approx(own, abs=1e-4)
    assert scored == pytest.approx(own, abs=1e-4)
    assert cut == pytest.approx(own[40:], abs=1e-4)
    for i, likely in enumerate(found.top_logprobs):
        top = logprobs[start + i - 1].topk(2)
        assert list(likely) == top.indices.tolist()
        assert list(likely.values()) == pytest.approx(top.values.tolist(), abs=1e-4)


@pytest.mark.slow
async def test_samples_share_a_prefill_and_count_up_seeds(
    nano: Served, prompts: list[list[int]]
) -> None:
    async with nano.engine(slots=4) as engine:
        samples = await engine.complete(prompts[2], SAMPLED, 6)
        sixth = await one(engine, prompts[2], replace(SAMPLED, seed=SAMPLED.seed + 5))
    assert [s.prompt_tokens for s in samples] == [len(prompts[2])] * 6
    assert [s.cached_tokens for s in samples[:4]] == [0] + [len(prompts[2])] * 3
    assert len({s.token_ids for s in samples}) > 1
    assert samples[5].token_ids == sixth.token_ids


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
async def test_grouped_heads_of_other_architectures(kind: str, nano: Served) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=len(nano.tokenizer), hidden_size=64, intermediate_size=96,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        max_position_embeddings=256, initializer_range=0.2, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    served = Served(AutoModelForCausalLM.from_config(config).eval(), nano.tokenizer)
    prompts = [list(range(5, 5 + length)) for length in (1, 3, 40, 130)]
    expected = [served.generate(prompt, 30) for prompt in prompts]
    async with served.engine() as engine:
        found = await asyncio.gather(
            *(one(engine, prompt, replace(GREEDY, max_tokens=30)) for prompt in prompts)
        )
    assert [list(completion.token_ids) for completion in found] == expected
    assert served.model.config._attn_implementation == "sdpa"


@pytest.mark.slow
async def test_banned_tokens_are_never_sampled(nano: Served, prompts: list[list[int]]) -> None:
    async with nano.engine() as engine:
        for sampling in (GREEDY, SAMPLED):
            free = await one(engine, prompts[0], sampling)
            ids = free.token_ids
            at = next(i for i in range(5, len(ids)) if ids[i] not in ids[:i])
            held, mate = await asyncio.gather(
                one(engine, prompts[0], replace(sampling, banned=(ids[at],))),
                one(engine, prompts[0], sampling),
            )
            assert mate.token_ids == ids  # a batch-mate is free to use it
            assert held.token_ids[:at] == ids[:at]
            assert ids[at] not in held.token_ids
            assert held.logprobs is not None and free.logprobs is not None
            assert held.logprobs[:at] == free.logprobs[:at]
