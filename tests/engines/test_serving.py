"""Streams, stops, cancellation, failures, many coroutines: how the engine serves."""

from __future__ import annotations

import asyncio
import weakref
from contextlib import aclosing, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from dto.engines import batch, open_engine
from dto.engines.batch import Batch
from dto.engines.sampling import Sample
from dto.engines.transformers import TransformersEngine
from dto.errors import EngineError
from dto.protocols import Sampling
from dto.recipe import ModelSettings
from dto.usage import attention_flops, forward_flops, metered
from tests.engines.served import Served

LONG = Sampling(max_tokens=1500, temperature=3.0, top_p=1.0, seed=3)


@pytest.mark.slow
async def test_a_stream_brings_the_completion_piece_by_piece(
    nano: Served, prompts: list[list[int]]
) -> None:
    """At this temperature the text is full of broken characters, which must match as well."""
    sampling = replace(LONG, max_tokens=120, logprobs=1)
    async with nano.endless() as engine:
        (whole,) = await engine.complete(prompts[0], sampling)
        async with aclosing(engine.stream(prompts[0], sampling)) as stream:
            chunks = [chunk async for chunk in stream]
    assert len(chunks) > 1
    assert sum((chunk.token_ids for chunk in chunks), ()) == whole.token_ids
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert sum((chunk.logprobs or () for chunk in chunks), ()) == whole.logprobs
    assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]


async def test_eos_is_kept_in_the_ids_and_not_in_the_text(
    nano: Served, prompts: list[list[int]]
) -> None:
    eos = nano.tokenizer.eos_token_id
    (first, *_) = nano.generate(prompts[0], 1)
    engine = nano.engine()
    engine.end_ids = frozenset({eos, first})
    async with engine:
        (ended,) = await engine.complete(prompts[0], replace(LONG, temperature=0.0))
    assert (ended.token_ids, ended.text) == ((first,), "")
    assert (ended.finish_reason, ended.stop) == ("stop", None)


async def test_stop_strings_cross_token_borders(nano: Served, prompts: list[list[int]]) -> None:
    greedy = Sampling(max_tokens=60, temperature=0.0)
    async with nano.engine() as engine:
        (whole,) = await engine.complete(prompts[0], greedy)
        for cut in (5, 13, 29):
            ends = [len(nano.tokenizer.decode(whole.token_ids[:n])) for n in range(1, 60)]
            border = ends[cut]
            stop = whole.text[border - 2 : border + 2]  # two characters of either token
            completed = next(
                n for n in range(1, 60) if stop in nano.tokenizer.decode(whole.token_ids[:n])
            )
            (found,) = await engine.complete(prompts[0], replace(greedy, stop=("@@", stop)))
            assert found.token_ids == whole.token_ids[:completed]
            assert (found.finish_reason, found.stop) == ("stop", stop)
        token = whole.token_ids[7]
        (found,) = await engine.complete(prompts[0], replace(greedy, stop_token_ids=(token,)))
        assert found.token_ids == whole.token_ids[: whole.token_ids.index(token) + 1]
        assert (found.finish_reason, found.stop) == ("stop", None)


async def test_cancelling_frees_the_slot_and_is_charged(
    nano: Served, prompts: list[list[int]]
) -> None:
    async with nano.endless(slots=2) as engine:
        with metered() as usage:
            task = asyncio.create_task(engine.complete(prompts[0], LONG))
        await asyncio.sleep(0)
        async with aclosing(engine.stream(prompts[1], LONG)) as stream:
            await anext(stream)  # in the same batch, so the first has begun as well
            with metered() as idle:
                waiting = asyncio.create_task(engine.complete(prompts[2], LONG))
            await asyncio.sleep(0)
            for cancelled in (task, waiting):
                cancelled.cancel()
                with suppress(asyncio.CancelledError):
                    await cancelled
        assert (usage.requests, idle.requests) == (1, 1)
        assert 0 < usage.wasted == usage.generated
        assert usage.prompt == len(prompts[0])
        assert idle.prompt == idle.generated == 0  # it never had a slot
        with metered() as usage:
            async with aclosing(engine.stream(prompts[1], LONG)) as stream:
                taken = 0
                async for chunk in stream:
                    taken += len(chunk.token_ids)
                    if taken >= 5:
                        break
        assert usage.generated - usage.wasted == taken
        (free,) = await asyncio.wait_for(
            engine.complete(prompts[1], Sampling(max_tokens=3, temperature=0.0)), 20
        )
        assert free.finish_reason == "length"


async def test_usage_of_a_request(nano: Served, prompts: list[list[int]]) -> None:
    prompt, sampling = prompts[4], Sampling(max_tokens=10, temperature=3.0, top_p=1.0)
    async with nano.engine() as engine:
        with metered() as usage:
            samples = await engine.complete(prompt, sampling, 2)
        shape = engine.shape
    generated = [len(sample.token_ids) for sample in samples]
    assert (usage.requests, usage.prompt, usage.cached) == (2, 2 * len(prompt), len(prompt))
    assert (usage.generated, usage.wasted) == (sum(generated), 0)
    assert usage.attention_flops == attention_flops(
        shape, 0, len(prompt) + generated[0] - 1
    ) + attention_flops(shape, len(prompt), len(prompt) + generated[1] - 1)
    assert usage.model_flops == forward_flops(
        shape, 0, len(prompt) + generated[0] - 1
    ) + forward_flops(shape, len(prompt), len(prompt) + generated[1] - 1)


@pytest.mark.slow
async def test_a_thousand_coroutines(nano: Served, prompts: list[list[int]]) -> None:
    async with nano.engine(slots=64) as engine:
        many = await asyncio.gather(
            *(
                engine.complete(prompts[i % 80], Sampling(max_tokens=1 + i % 12, seed=i // 80))
                for i in range(1000)
            )
        )
        (alone,) = await engine.complete(prompts[31], Sampling(max_tokens=8, seed=6))
    assert all(len(done) == 1 and done[0].finish_reason != "failed" for done in many)
    index = 31 + 80 * 6
    assert many[index][0].token_ids == alone.token_ids[: 1 + index % 12]


async def test_rows_whose_logits_are_not_finite_fail_alone(
    nano: Served, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = 300
    bad = [*prompts[0], poison]
    with torch.no_grad():
        weight = nano.model.get_input_embeddings().weight
        kept = weight[poison].clone()
    sampling = Sampling(max_tokens=12, temperature=0.0)
    expected = [nano.generate(prompt, 12) for prompt in prompts[:4]]
    original = nano.model.get_input_embeddings().forward

    def poisoned(ids: torch.Tensor) -> torch.Tensor:
        return original(ids).masked_fill((ids == poison)[..., None], float("nan"))

    monkeypatch.setattr(nano.model.get_input_embeddings(), "forward", poisoned)
    async with nano.engine(slots=8) as engine:
        with metered() as usage:
            failed, *good = await asyncio.gather(
                *(engine.complete(p, sampling) for p in (bad, *prompts[:4]))
            )
        after = await asyncio.gather(*(engine.complete(p, sampling) for p in prompts[:4]))
    assert (failed[0].finish_reason, failed[0].token_ids) == ("failed", ())
    assert "not finite" in failed[0].error
    assert [list(done[0].token_ids) for done in good] == expected
    assert [list(done[0].token_ids) for done in after] == expected
    assert usage.wasted == 1
    assert torch.equal(weight[poison], kept)


async def test_a_failing_step_fails_what_is_under_way_and_no_more(
    nano: Served, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import dto.engines.sampling as sampling

    def broken(*args: object) -> None:
        raise MemoryError("no room")

    expected = nano.generate(prompts[0], 3)
    async with nano.engine() as engine:
        with monkeypatch.context() as patch:
            patch.setattr(sampling, "choose", broken)
            done = await asyncio.gather(*(engine.complete(p, LONG) for p in prompts[:3]))
        assert {completion.error for (completion,) in done} == {"engine: MemoryError: no room"}
        (good,) = await engine.complete(prompts[0], Sampling(max_tokens=3, temperature=0.0))
        assert list(good.token_ids) == expected


async def test_a_batch_that_failed_is_freed_before_the_next_is_made(
    nano: Served, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the next batch takes half of what is free."""
    made: list[weakref.ref[Batch]] = []
    alive: list[int] = []
    begin = Batch.__init__

    def watched(self: Batch, *args: Any) -> None:
        alive.append(sum(each() is not None for each in made))
        begin(self, *args)
        made.append(weakref.ref(self))

    def broken(*args: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("dto.engines.transformers.worker_count", lambda *_: 1)
    monkeypatch.setattr(batch._log, "disabled", True)  # pytest keeps what is logged, frames and all
    monkeypatch.setattr(Batch, "__init__", watched)
    monkeypatch.setattr(Batch, "step", broken)
    async with nano.engine() as engine:
        for _ in range(2):
            (failed,) = await engine.complete(prompts[0], LONG)
            assert failed.error == "engine: MemoryError: no room"
    assert alive == [0, 0, 0]


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
async def test_a_gpu_is_free_between_two_uses(
    nano: Served,
    prompts: list[list[int]],
    device: str,
    given: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The training that follows is another process. A model in training stays where it is."""
    done: list[str] = []
    engine = nano.engine() if given else TransformersEngine(ModelSettings())
    monkeypatch.setattr(engine.hf_model, "to", lambda device: done.append(str(device)))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("empty"))
    engine._device = torch.device(device)
    for _ in range(2):
        async with engine:
            await engine.complete(prompts[0], Sampling(max_tokens=3, temperature=0.0))
    expected = {
        ("cpu", False): ["cpu"], ("cuda:0", False): ["cuda:0", "cpu", "empty"],
        ("cpu", True): [], ("cuda:0", True): ["empty"],
    }  # fmt: skip
    assert done == 2 * expected[device, given]


async def test_an_engine_without_memory_says_so_at_the_start(nano: Served) -> None:
    was = nano.model.config._attn_implementation
    with pytest.raises(EngineError, match=r"cannot start .* lower model\.cache_bytes"):
        async with asyncio.timeout(60), nano.engine(cache_bytes=10**15):
            pass
    assert nano.model.config._attn_implementation == was


async def test_an_engine_that_cannot_begin_anew_fails_every_request(
    nano: Served, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(60), nano.engine() as engine:

        def out_of_memory(*args: object) -> None:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(Batch, "admit", out_of_memory)
        monkeypatch.setattr(Batch, "__init__", out_of_memory)
        for _ in range(3):
            (failed,) = await engine.complete(prompts[0], LONG)
            assert (failed.finish_reason, failed.token_ids) == ("failed", ())
            assert "out of memory" in failed.error


@pytest.mark.slow
async def test_fewer_rows_decode_together_the_longer_they_may_become(
    nano: Served, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    live, step = [], Batch.step

    def counted(batch: Batch) -> list[Sample]:
        live.append(batch.live)
        most.append(batch.cache.kv.nbytes)
        return step(batch)

    monkeypatch.setattr(Batch, "step", counted)
    rows_of: dict[int, int] = {}
    bound = 30 * 2**20
    for tokens in (8, 400):
        live, most = [], [0]
        async with nano.engine(slots=64, kv_bytes=bound) as engine:
            sampling = replace(LONG, max_tokens=tokens)
            ended = await asyncio.gather(
                *(engine.complete(prompts[i % 8], sampling) for i in range(80))
            )
        assert all(completion.finish_reason != "failed" for [completion] in ended)
        assert max(most) < bound
        rows_of[tokens] = max(live)
    assert rows_of[8] > 48 and 8 <= rows_of[400] < 32


async def test_leaving_fails_what_is_under_way(nano: Served, prompts: list[list[int]]) -> None:
    engine = nano.endless()
    async with engine:
        task = asyncio.create_task(engine.complete(prompts[0], LONG))
        await asyncio.sleep(0)
    (completion,) = await task
    assert completion.finish_reason == "failed" and "closed" in completion.error
    with pytest.raises(EngineError, match="async with"):
        await engine.complete(prompts[0], LONG)


async def test_a_model_in_training_gets_back_what_it_had(
    nano: Served, prompts: list[list[int]]
) -> None:
    nano.model.train()
    engine = nano.engine()
    try:
        for _ in range(2):
            async with engine:
                assert not nano.model.training
                (done,) = await engine.complete(prompts[0], Sampling(max_tokens=2))
                assert done.cached_tokens == 0  # weights may have changed since the last use
        assert nano.model.training and nano.model.config._attn_implementation == "sdpa"
    finally:
        nano.model.eval()


async def test_what_cannot_be_served_is_said(nano: Served, prompts: list[list[int]]) -> None:
    async with nano.endless(context=100) as engine:
        (done,) = await engine.complete([5] * 100, LONG)
        assert done.finish_reason == "failed"
        assert done.error == (
            "prompt has 100 tokens, context is 100: shorten it or raise model.context"
        )
        (done,) = await engine.complete([], LONG)
        assert done.finish_reason == "failed" and "empty" in done.error
        (done,) = await engine.complete([5] * 97, LONG)
        assert (done.finish_reason, len(done.token_ids)) == ("length", 3)
        with pytest.raises(EngineError, match="JSON schema"):
            await engine.complete(prompts[0], replace(LONG, json_schema={}))
        template = nano.tokenizer.chat_template
        try:
            nano.tokenizer.chat_template = None
            with pytest.raises(EngineError, match="no chat template"):
                await engine.complete([{"role": "user", "content": "Hi"}], LONG)
        finally:
            nano.tokenizer.chat_template = template
    with pytest.raises(EngineError, match=r"model\.context is 9,999"):
        nano.engine(context=9999)


async def test_messages_are_rendered_once(nano: Served) -> None:
    messages = [{"role": "user", "content": "Start with 7."}]
    ids = nano.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    async with nano.engine() as engine:
        (by_text,) = await engine.complete(messages, replace(LONG, max_tokens=5))
        (by_ids,) = await engine.complete(ids, replace(LONG, max_tokens=5))
    assert (by_text.token_ids, by_text.prompt_tokens) == (by_ids.token_ids, len(ids))


def test_open_engine_says_what_is_missing(tmp_path: Path) -> None:
    engine = open_engine(ModelSettings(name="nano", slots=4))
    assert engine.model == "nano" and engine.context == 2048
    with pytest.raises(EngineError, match="cannot be loaded") as error:
        open_engine(ModelSettings(), str(tmp_path / "missing"))
    assert "\n" not in str(error.value)
    if find_spec("vllm") is None:
        with pytest.raises(EngineError, match=r"vllm is not installed.*make setup"):
            open_engine(ModelSettings(engine="vllm"))
