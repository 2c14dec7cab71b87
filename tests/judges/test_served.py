"""The llm judge on an OpenAI-compatible server, also on one that misbehaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from dto.engines import open_engine
from dto.errors import EngineError
from dto.recipe import JudgeSettings, Recipe
from dto.resources import Resources
from dto.runs.reader import RunReader
from dto.stages.optimize import optimize
from dto.stages.prune import prune
from dto.usage import metered
from tests.judges.server import JudgeServer, Reply, judging, verdicts
from tests.stages.script import EXIT
from tests.stages.test_optimize import estimates

PATTERNS = ["A start. ", "B idle. ", "C idle. ", "D idle. ", "E exit."]
ASKED = {1, 2, 3}  # segments; their patterns are 2, 3 and 4


def settings(url: str, **changes: object) -> JudgeSettings:
    given = {"engine": "openai", "name": "judge", "server": url, "api": "chat", "retries": 0}
    return JudgeSettings.model_validate(given | changes)


def policy(text, number, j):
    """Right as long as the thinking begins as it did."""
    return ("2}" if "A start" in text else "3}") if EXIT in text else "\\boxed{2}"


@pytest.fixture
def pruned(context, problem, build, tokenizer):
    """Prunes so many trajectories with a judge that replies so."""

    @contextmanager
    def serving(reply: Reply, keeps_schema: bool, refuses: dict) -> Iterator[JudgeServer]:
        with judging(tokenizer, reply) as server:
            server.keeps_schema = keeps_schema
            server.refuses = refuses
            yield server

    async def make(reply: Reply, count: int = 1, keeps_schema=True, refuses=(), **changes):
        with serving(reply, keeps_schema, dict(refuses)) as server:
            async with open_engine(settings(server.url)) as judge:
                ctx = context(policy, prune={"judge": "llm", **changes})
                ctx = replace(ctx, judge=judge)

                async def one(sample: int):
                    trajectory, segments = await build(PATTERNS, sample=sample)
                    rows = estimates(segments, *["below"] * 4, "above")
                    optimized = await optimize(problem, trajectory, segments, rows, ctx)
                    return await prune(problem, trajectory, segments, optimized, ctx)

                with metered() as usage, metered("judge") as judged:
                    results = await asyncio.gather(*map(one, range(count)))
        for result in results:  # whatever the judge says: only what was verified is gone
            gone = [row.segment for row in result.verdicts if row.pruned]
            assert (result.verified_p > 0.75) == bool(gone)
            assert set(result.kept) == {0, 1, 2, 3, 4} - {*gone}
        return results, server, usage, judged

    return make


def kinds(result):
    return [row.verdict for row in result.verdicts]


@pytest.mark.parametrize("keeps_schema", [True, False], ids=["schema", "free"])
async def test_verdicts_come_under_a_schema_or_free_and_are_counted(pruned, keeps_schema):
    (result,), server, usage, judged = await pruned(
        lambda question, numbers: verdicts(numbers), keeps_schema=keeps_schema
    )
    assert kinds(result) == ["redundant"] * 3 and all(row.pruned for row in result.verdicts)
    (request,) = server.asked
    assert request.path == "/chat/completions" and request.body["temperature"] == 0.0
    assert ("response_format" in request.body) is keeps_schema
    if keeps_schema:
        held = request.body["response_format"]["json_schema"]
        assert held["strict"] and held["schema"]["required"] == ["2", "3", "4"]
    assert (judged.requests, judged.failed, judged.prompt) == (1, 0, 1000)
    assert judged.generated == server.generated == len(verdicts([2, 3, 4])) + 1
    assert usage.requests and usage.generated < judged.generated


def mixed(question, numbers):
    entries = json.loads(verdicts(numbers))
    entries["3"]["verdict"] = "needless"
    return json.dumps(entries)


BAD: dict[str, tuple[Reply, list[str], str]] = {
    "garbage": (lambda q, n: "%&/ not JSON", ["unjudged"] * 3, "not a JSON object"),
    "empty": (lambda q, n: "", ["unjudged"] * 3, "not a JSON object"),
    "half": (
        lambda q, n: verdicts(n[:1]),
        ["redundant", "unjudged", "unjudged"],
        "has no verdict on this pattern",
    ),
    "wrong indices": (lambda q, n: verdicts([11, 12, 13]), ["unjudged"] * 3, "'11', which is not"),
    "shifted": (lambda q, n: verdicts([1, 2, 3]), ["unjudged"] * 3, "'1', which is not"),
    "duplicate": (
        lambda q, n: verdicts([2])[:-1] + ", " + verdicts(n)[1:],
        ["unjudged", "redundant", "redundant"],
        "two verdicts",
    ),
    "outside the enumeration": (mixed, ["redundant", "unjudged", "redundant"], "needs one verdict"),
    "HTTP 500": (lambda q, n: 500, ["unjudged"] * 3, "answered 500: the judge is ill"),
    "HTTP 400": (lambda q, n: 400, ["unjudged"] * 3, "answered 400: the judge is ill"),
    "truncated": (
        lambda q, n: verdicts(n) + 4096 * " " + "?",
        ["unjudged"] * 3,
        "does not end within 150",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
async def test_a_judge_that_misbehaves_prunes_nothing_that_it_did_not_judge(pruned, name):
    reply, expected, reason = BAD[name]
    limit = {"max_tokens": 150} if name == "truncated" else {}
    (result,), server, _, judged = await pruned(reply, **limit)
    assert kinds(result) == expected
    flagged = [row for row in result.verdicts if row.verdict == "unjudged"]
    assert all(reason in row.reason and not row.pruned for row in flagged)
    assert len(server.asked) == judged.requests == 1  # nothing is asked again
    assert judged.failed == name.startswith("HTTP")
    assert judged.generated == server.generated


async def test_one_trajectory_that_fails_leaves_the_others_alone(pruned):
    def reply(question, numbers):
        return 500 if len(judged_before) == 1 else verdicts(numbers)

    judged_before: list[int] = []

    def counting(question, numbers):
        answer = reply(question, numbers)
        judged_before.append(len(numbers))
        return answer

    results, server, _, judged = await pruned(counting, count=4)
    assert sorted(kinds(result) for result in results) == [
        *[["redundant"] * 3] * 3,
        ["unjudged"] * 3,
    ]
    assert (judged.requests, judged.failed, len(server.asked)) == (4, 1, 4)
    assert judged.generated == server.generated


async def test_a_judge_with_a_temperature_of_its_own(pruned):
    def reply(question, numbers):
        return verdicts(numbers)

    own = {"temperature": 1.0}
    with pytest.raises(EngineError, match=r"judge: temperature = 0\.0: .* \(prune\.temperature"):
        await pruned(reply, refuses=own)
    (result,), server, _, _ = await pruned(reply, refuses=own, temperature=1.0)
    assert kinds(result) == ["redundant"] * 3
    assert "temperature" not in server.asked[0].body


async def test_a_judge_that_is_not_there_is_said_at_the_start(tokenizer):
    with judging(tokenizer, lambda question, numbers: 500) as server:
        url = server.url
        for changes, message in (
            ({"name": "other"}, "does not serve model 'other'; it serves judge"),
            ({"api": "completions"}, "name a Hub id or a folder in judge.tokenizer, or set judge."),
        ):
            with pytest.raises(EngineError, match=message) as error:
                await served(url, **changes)
            assert str(error.value).startswith("judge: ") and "\n" not in str(error.value)
    with pytest.raises(EngineError, match=r"judge: .* failed: .* correct judge\.server"):
        await served(url)


async def served(url: str, **changes: object) -> None:
    recipe = Recipe(name="x", judge=settings(url, **changes), prune={"judge": "llm"})
    async with Resources(RunReader("x", recipe)) as serving:
        await serving.judge()
