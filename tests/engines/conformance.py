"""What every engine has to do, on the embedded model: a class to inherit, one folder an engine.

The heir's module gives a fixture `engine`, which serves `nano` in float32 with a context of
`CONTEXT`, and puts it and the tests on one event loop. What an engine says it cannot do is not
asked of it, but it has to refuse. An heir for another model overrides the fixtures `nano` and
`prompts`, the class's `recipe`, and how much is asked: a larger model is given fewer tokens.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from contextlib import aclosing, suppress
from dataclasses import replace

import pytest
import torch

from dto.context import Context
from dto.engines import open_engine
from dto.engines.models import shape_of_model
from dto.errors import EngineError
from dto.grading import Grader
from dto.nano import chain_problems
from dto.protocols import Completion, Engine, Sampling
from dto.recipe import EvaluateSettings, ModelSettings, Recipe
from dto.records import EvaluationRow, Problem
from dto.settings import ExitPolicy, open_policy
from dto.stages.evaluate import evaluate
from dto.usage import metered
from tests.engines.served import Served

CONTEXT = 1024
GREEDY = Sampling(max_tokens=40, temperature=0.0)
SAMPLED = Sampling(max_tokens=40, temperature=1.0, top_p=0.95, seed=7)
TOLERANCE = 1e-4  # nats, float32

RECIPE = Recipe(
    name="conformance",
    model=ModelSettings(name="nano", context=CONTEXT),
    evaluate=EvaluateSettings(samples=1, temperature=0.0, max_tokens=600),
)
DEER = {"policy": "deer", "monitor": "paragraph", "inducer": "closed", "threshold": 0.9}

Prompts = list[list[int]]


async def one(engine: Engine, prompt: list[int], sampling: Sampling) -> Completion:
    (completion,) = await engine.complete(prompt, sampling)
    assert completion.finish_reason != "failed", completion.error
    return completion


def endless(engine: Engine, nano: Served, max_tokens: int | None = None) -> Sampling:
    """Goes on to the limit where the engine can be told to."""
    banned = (nano.tokenizer.eos_token_id,) if engine.capabilities.banned else ()
    most = max_tokens or engine.context
    return Sampling(most, temperature=1.0, top_p=1.0, seed=5, banned=banned)


def model_logprobs(nano: Served, ids: list[int]) -> torch.Tensor:
    """[tokens, vocabulary]; row i is about token i + 1."""
    with torch.no_grad():
        return torch.log_softmax(nano.model(torch.tensor([ids])).logits[0], -1)


async def evaluated(
    engine: Engine, exit: ExitPolicy, recipe: Recipe, problems: Sequence[Problem]
) -> list[tuple[object, ...]]:
    """Rows of greedy answers, without confidences, which differ in their last digits."""
    async with Grader(workers=1) as grader:
        ctx = Context(recipe, engine, grader)
        done = await asyncio.gather(*(evaluate(p, exit, ctx) for p in problems))
    rows: list[EvaluationRow] = [each.row for group in done for each in group]
    return [
        (
            *(row.id, row.grade, row.answer, row.exit_reason, row.tokens, row.attention_flops),
            *((trial.position, trial.answer, trial.tokens) for trial in row.trials),
        )
        for row in rows
    ]


class Conformance:
    """The tests, and how much they ask for."""

    recipe = RECIPE
    greedy = GREEDY
    sampled = SAMPLED
    requests = 160  # under way at once
    enough = 600  # tokens within which a response ends
    tolerance = TOLERANCE

    def problems(self) -> Sequence[Problem]:
        """What is evaluated with and without an exit; at least one response leaves early."""
        return chain_problems("test", 8, seed=3)

    async def test_greedy_tokens_are_the_models(
        self, engine: Engine, nano: Served, prompts: Prompts
    ) -> None:
        expected = [nano.generate(prompt, self.greedy.max_tokens) for prompt in prompts[:6]]
        found = await asyncio.gather(*(one(engine, prompt, self.greedy) for prompt in prompts[:6]))
        assert [list(completion.token_ids) for completion in found] == expected
        assert {completion.ids_from for completion in found} <= {"sampled", "encoded"}

    async def test_logprobs_are_the_models_before_temperature(
        self, engine: Engine, nano: Served, prompts: Prompts
    ) -> None:
        if engine.capabilities.logprobs is None:
            with pytest.raises(EngineError):
                await engine.complete(prompts[0], replace(self.greedy, logprobs=0))
            return
        most = min(5, engine.capabilities.logprobs)
        plain = await one(engine, prompts[1], replace(self.sampled, logprobs=0))
        found = await one(engine, prompts[1], replace(self.sampled, logprobs=most))
        assert plain.token_ids == found.token_ids and plain.top_logprobs is None
        start = len(prompts[1])
        expected = model_logprobs(nano, [*prompts[1], *found.token_ids])
        own = [expected[start + i - 1, token].item() for i, token in enumerate(found.token_ids)]
        assert plain.logprobs == pytest.approx(own, abs=self.tolerance)
        assert found.logprobs == pytest.approx(own, abs=self.tolerance)
        assert found.top_logprobs is not None
        for i, likely in enumerate(found.top_logprobs):
            top = expected[start + i - 1].topk(most)
            assert list(likely) == top.indices.tolist()
            assert list(likely.values()) == pytest.approx(top.values.tolist(), abs=self.tolerance)

    async def test_a_seed_gives_the_same_tokens_in_any_company(
        self, engine: Engine, prompts: Prompts
    ) -> None:
        alone = await one(engine, prompts[0], self.sampled)
        mates = [
            asyncio.create_task(
                one(engine, prompt, replace(self.sampled, seed=i, max_tokens=9 + i))
            )
            for i, prompt in enumerate(prompts[1:17])
        ]
        await asyncio.sleep(0.02)
        among, other = await asyncio.gather(
            one(engine, prompts[0], self.sampled),
            one(engine, prompts[0], replace(self.sampled, seed=8)),
        )
        await asyncio.gather(*mates)
        assert among.token_ids == alone.token_ids != other.token_ids

    async def test_sample_j_of_n_has_seed_plus_j(self, engine: Engine, prompts: Prompts) -> None:
        samples = await engine.complete(prompts[2], self.sampled, 5)
        apart = await asyncio.gather(
            *(
                one(engine, prompts[2], replace(self.sampled, seed=self.sampled.seed + j))
                for j in range(5)
            )
        )
        assert [s.token_ids for s in samples] == [s.token_ids for s in apart]
        assert len({s.token_ids for s in samples}) > 1

    async def test_stop_strings_end_across_token_borders(
        self, engine: Engine, nano: Served, prompts: Prompts
    ) -> None:
        whole = await one(engine, prompts[0], self.greedy)
        length = len(whole.token_ids)
        texts = [nano.tokenizer.decode(whole.token_ids[:n]) for n in range(length + 1)]
        for cut in (5, 13, 29)[: 3 if length > 30 else 2]:
            border = len(texts[cut])
            stop = whole.text[border - 2 : border + 2]  # two characters of either token
            completed = next(n for n, text in enumerate(texts) if stop in text)
            found = await one(engine, prompts[0], replace(self.greedy, stop=("@@", stop)))
            assert found.token_ids == whole.token_ids[:completed]
            assert found.text == texts[completed]  # what the token brought beyond the stop too
            assert (found.finish_reason, found.stop) == ("stop", stop)

    async def test_stop_tokens_are_kept(self, engine: Engine, prompts: Prompts) -> None:
        if not engine.capabilities.token_prompts:
            pytest.skip("the server takes no token ids")
        whole = await one(engine, prompts[0], self.greedy)
        token = whole.token_ids[7]
        found = await one(engine, prompts[0], replace(self.greedy, stop_token_ids=(token,)))
        assert found.token_ids == whole.token_ids[: whole.token_ids.index(token) + 1]
        assert (found.finish_reason, found.stop) == ("stop", None)

    async def test_banned_tokens_are_never_sampled(self, engine: Engine, prompts: Prompts) -> None:
        if not engine.capabilities.banned:
            with pytest.raises(EngineError):
                await engine.complete(prompts[0], replace(self.greedy, banned=(5,)))
            return
        for sampling in (self.greedy, self.sampled):
            ids = (await one(engine, prompts[0], sampling)).token_ids
            at = next(i for i in range(5, len(ids)) if ids[i] not in ids[:i])
            held, mate = await asyncio.gather(
                one(engine, prompts[0], replace(sampling, banned=(ids[at],))),
                one(engine, prompts[0], sampling),
            )
            assert mate.token_ids == ids  # a batch-mate is free to use it
            assert held.token_ids[:at] == ids[:at] and ids[at] not in held.token_ids

    async def test_filters_leave_what_is_likely(
        self, engine: Engine, nano: Served, prompts: Prompts
    ) -> None:
        """With one id left sampling is greedy; with k or a share left each id is among those."""
        hot = replace(self.sampled, temperature=1.5, top_p=1.0)
        for changes in ({"top_k": 1}, {"min_p": 0.999}):
            sampling = replace(hot, **changes)
            if not engine.capabilities.filters:
                with pytest.raises(EngineError, match="top_k"):
                    await engine.complete(prompts[0], sampling)
                continue
            found = await one(engine, prompts[0], sampling)
            assert found.token_ids == (await one(engine, prompts[0], self.greedy)).token_ids
        if not engine.capabilities.filters:
            return
        kept, share, free = await asyncio.gather(
            one(engine, prompts[0], replace(hot, top_k=3)),
            one(engine, prompts[0], replace(hot, min_p=0.3)),
            one(engine, prompts[0], hot),
        )
        start = len(prompts[0])

        def expected(ids: tuple[int, ...]) -> torch.Tensor:
            return model_logprobs(nano, [*prompts[0], *ids])[start - 1 : -1] / 1.5

        def low(ids: tuple[int, ...]) -> float:
            """How far the least likely id is below its place's likeliest, in nats at most."""
            logits = expected(ids)
            own = logits.gather(-1, torch.tensor(ids)[:, None])[:, 0]
            return float((logits.amax(-1) - own).max())

        ranks = (expected(kept.token_ids) > expected(kept.token_ids).gather(
            -1, torch.tensor(kept.token_ids)[:, None]
        )).sum(-1)  # fmt: skip
        assert int(ranks.max()) < 3
        assert low(share.token_ids) <= math.log(1 / 0.3) + TOLERANCE < low(free.token_ids)

    async def test_a_presence_penalty_counts_what_the_request_generated(
        self, engine: Engine, nano: Served, prompts: Prompts
    ) -> None:
        """Greedy, against the model's own logits: once for each id, of the response alone."""
        penalty = 2.0
        sampling = replace(self.greedy, presence_penalty=penalty)
        if engine.capabilities.presence is None:
            with pytest.raises(EngineError, match="presence_penalty"):
                await engine.complete(prompts[0], sampling)
            return
        if engine.capabilities.logprobs is None:
            pytest.skip("the server takes text, and its penalty counts tokens of its own")
        found, mate = await asyncio.gather(
            one(engine, prompts[0], sampling), one(engine, prompts[0], self.greedy)
        )
        assert mate.token_ids == (await one(engine, prompts[0], self.greedy)).token_ids
        assert found.token_ids != mate.token_ids
        logits = model_logprobs(nano, [*prompts[0], *found.token_ids])[len(prompts[0]) - 1 :]
        for at, token in enumerate(found.token_ids):
            lowered = logits[at].clone()
            lowered[list(set(found.token_ids[:at]))] -= penalty
            assert lowered.max() - lowered[token] < self.tolerance
        if engine.capabilities.presence == "response":
            cut = 3 * sampling.max_tokens // 8
            for sampled in (sampling, replace(self.sampled, presence_penalty=1.0)):
                whole = await one(engine, prompts[0], sampled)
                head, rest = whole.token_ids[:cut], whole.token_ids[cut:]
                further = replace(sampled, written=cut, max_tokens=sampling.max_tokens - cut)
                assert (await one(engine, [*prompts[0], *head], further)).token_ids == rest

    async def test_the_end_is_in_the_ids_and_not_in_the_text(
        self, engine: Engine, nano: Served, prompts: Prompts
    ) -> None:
        found = await asyncio.gather(
            *(
                one(engine, prompt, replace(self.greedy, max_tokens=self.enough))
                for prompt in prompts[:4]
            )
        )
        ended = next(completion for completion in found if completion.finish_reason == "stop")
        eos = nano.tokenizer.eos_token_id
        assert ended.token_ids[-1] == eos and ended.stop is None
        assert ended.text == nano.tokenizer.decode(ended.token_ids[:-1])
        assert nano.tokenizer.eos_token not in ended.text

    @pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
    async def test_a_stream_brings_the_completion_piece_by_piece(
        self, engine: Engine, nano: Served, prompts: Prompts, temperature: float
    ) -> None:
        """At the highest temperature the text is full of broken characters.

        A busy server may send a short completion in one piece; that it comes while it grows is
        shown where a stream is left.
        """
        logprobs = engine.capabilities.logprobs and 2
        length = 2 * self.sampled.max_tokens
        sampling = replace(
            self.sampled, temperature=temperature, max_tokens=length, logprobs=logprobs
        )
        whole = await one(engine, prompts[3], sampling)
        async with aclosing(engine.stream(prompts[3], sampling)) as stream:
            chunks = [chunk async for chunk in stream]
        assert sum((chunk.token_ids for chunk in chunks), ()) == whole.token_ids
        assert "".join(chunk.text for chunk in chunks) == whole.text
        assert [c.finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert chunks[-1].finish_reason == whole.finish_reason
        if logprobs:
            assert sum((chunk.logprobs or () for chunk in chunks), ()) == pytest.approx(
                whole.logprobs, abs=self.tolerance
            )

    async def test_leaving_a_stream_frees_its_slot(
        self, engine: Engine, nano: Served, prompts: Prompts
    ) -> None:
        sampling = endless(engine, nano)
        with metered() as usage:
            for _ in range(3):
                async with aclosing(engine.stream(prompts[1], sampling)) as stream:
                    taken = 0
                    async for chunk in stream:
                        taken += len(chunk.token_ids)
                        if taken >= 5:
                            break
                assert 5 <= taken < engine.context // 2  # it comes while it grows
        assert usage.requests == 3 and usage.prompt == 3 * len(prompts[1])
        assert 15 <= usage.generated - usage.wasted <= usage.generated < 3 * engine.context // 2
        await self.assert_idle(engine)
        assert (await one(engine, prompts[1], replace(self.greedy, max_tokens=3))).token_ids

    async def test_cancelling_frees_the_slot_and_is_charged(
        self, engine: Engine, nano: Served, prompts: Prompts
    ) -> None:
        sampling = endless(engine, nano)
        most = 3 * engine.context // 2
        for _ in range(20):  # on a busy machine samples may not have begun, or be over, by then
            with metered() as usage:
                task = asyncio.create_task(engine.complete(prompts[0], sampling, 3))
                await asyncio.sleep(0)  # its request goes out before the next one does
            async with aclosing(engine.stream(prompts[1], sampling)) as stream:
                async for _ in stream:  # it began later, so the others have begun as well
                    break
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            if task.cancelled() and 0 < usage.generated < most:
                break
        assert task.cancelled()
        assert usage.requests == 3
        assert 0 < usage.wasted == usage.generated < most
        await self.assert_idle(engine)
        assert (await one(engine, prompts[1], replace(self.greedy, max_tokens=3))).token_ids

    async def assert_idle(self, engine: Engine) -> None:
        """Nothing is computed any more; an heir that can look into its engine does."""

    async def test_counts(self, engine: Engine, nano: Served, prompts: Prompts) -> None:
        prompt = [*prompts[5], *range(5, 105)]
        with metered() as first:
            cold = await engine.complete(prompt, endless(engine, nano, 10), 2)
        with metered() as second:
            warm = await engine.complete(prompt, endless(engine, nano, 10), 2)
        for usage, samples in ((first, cold), (second, warm)):
            assert [sample.prompt_tokens for sample in samples] == [len(prompt)] * 2
            assert (usage.requests, usage.prompt) == (2, 2 * len(prompt))
            assert usage.generated == sum(len(sample.token_ids) for sample in samples)
            assert usage.cached == sum(sample.cached_tokens for sample in samples)
            assert usage.wasted == 0
        assert [sample.token_ids for sample in warm] == [sample.token_ids for sample in cold]
        assert cold[0].cached_tokens < 64 <= warm[0].cached_tokens < len(prompt)
        assert 0 < second.attention_flops < first.attention_flops
        parameters = shape_of_model(nano.model).parameters
        for usage in (first, second):  # a sample's last token is not read again
            computed = usage.prompt - usage.cached + usage.generated - usage.requests
            linear = 2 * parameters * computed
            assert usage.model_flops == pytest.approx(linear + usage.attention_flops)

    async def test_what_does_not_fit_is_a_failed_row(
        self, engine: Engine, nano: Served, prompts: Prompts
    ) -> None:
        for prompt, reason in ([5] * engine.context, "context"), ([], "empty"):
            completions = await engine.complete(prompt, self.greedy, 2)
            assert [completion.finish_reason for completion in completions] == ["failed"] * 2
            assert reason in completions[0].error and completions[0].token_ids == ()
            async with aclosing(engine.stream(prompt, self.greedy)) as stream:
                (chunk,) = [chunk async for chunk in stream]
            assert chunk.finish_reason == "failed" and reason in chunk.error
        last = await one(engine, [5] * (engine.context - 3), endless(engine, nano))
        if engine.capabilities.banned:
            assert (last.finish_reason, len(last.token_ids)) == ("length", 3)

    async def test_messages_are_rendered_once(self, engine: Engine, nano: Served) -> None:
        messages = [{"role": "user", "content": "Start with 7."}]
        ids = nano.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        by_text = await one(engine, messages, self.greedy)  # type: ignore[arg-type]
        by_ids = await one(engine, ids, self.greedy)
        assert (by_text.token_ids, by_text.prompt_tokens) == (by_ids.token_ids, len(ids))

    async def test_scores_are_the_models(
        self, engine: Engine, nano: Served, prompts: Prompts
    ) -> None:
        after = nano.generate(prompts[4], self.greedy.max_tokens * 3 // 4)
        if not engine.capabilities.score:
            with pytest.raises(EngineError):
                await engine.score(prompts[4], after)
            return
        expected = model_logprobs(nano, [*prompts[4], *after])
        start = len(prompts[4])
        own = [expected[start + i - 1, token].item() for i, token in enumerate(after)]
        assert await engine.score(prompts[4], after) == pytest.approx(own, abs=self.tolerance)
        assert await engine.score(prompts[4], after) == pytest.approx(own, abs=self.tolerance)
        assert await engine.score(prompts[4], []) == ()
        with pytest.raises(EngineError, match="context"):
            await engine.score(prompts[4], [5] * engine.context)

    async def test_a_json_schema_is_kept_to_or_refused(
        self, engine: Engine, prompts: Prompts
    ) -> None:
        schema = {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2}
        sampling = replace(self.greedy, json_schema=schema)
        if not engine.capabilities.json_schema:
            with pytest.raises(EngineError, match="JSON"):
                await engine.complete(prompts[0], sampling)
            return
        found = await one(engine, prompts[0], replace(sampling, max_tokens=200, temperature=1.0))
        if found.finish_reason == "stop":  # the model may put white space without end
            assert set(json.loads(found.text)) <= {1, 2}
        assert found.text.lstrip()[:1] in ("[", "")

    async def test_many_coroutines(self, engine: Engine, prompts: Prompts) -> None:
        many = await asyncio.gather(
            *(
                engine.complete(
                    prompts[i % len(prompts)], replace(self.sampled, max_tokens=1 + i % 7, seed=i)
                )
                for i in range(self.requests)
            )
        )
        i = self.requests * 2 // 3 // 7 * 7 + 6
        alone = await one(
            engine, prompts[i % len(prompts)], replace(self.sampled, max_tokens=7, seed=i)
        )
        assert all(done.finish_reason != "failed" for (done,) in many)
        assert many[i][0].token_ids == alone.token_ids[:7]

    @pytest.mark.parametrize("exit", [{}, DEER, {**DEER, "overlap": True}], ids=str)
    async def test_greedy_evaluation_is_that_of_the_transformers_engine_in_sequence(
        self, engine: Engine, exit: dict[str, object]
    ) -> None:
        settings = open_policy({"name": "exit", **exit})
        found = await evaluated(engine, settings, self.recipe, self.problems())
        settings = settings.model_copy(update={"overlap": False})
        async with open_engine(self.recipe.model) as local:
            expected = await evaluated(local, settings, self.recipe, self.problems())
        assert found == expected
        assert {row[1] for row in found} <= {"correct", "wrong", "truncated"}
        assert not exit or "policy" in {row[3] for row in found}
