"""The openai engine on a real vLLM server, which serves the embedded model."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio

from dto import llm_judge
from dto.context import Context
from dto.engines import open_engine
from dto.errors import EngineError
from dto.exits.deer import Deer
from dto.grading import Grader
from dto.nano import chain_problems
from dto.protocols import Engine
from dto.recipe import EvaluateSettings, ModelSettings, Recipe, resolve
from dto.records import Dropped, EvaluationRow, Problem, Trajectory
from dto.settings import ExitPolicy
from dto.stages.evaluate import evaluate
from dto.stages.optimize import finalize
from dto.stages.prune import prune
from dto.stages.sample import sample
from dto.usage import metered
from tests.engines.conformance import CONTEXT, Conformance
from tests.segmenting import segment

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")

START_SECONDS = 280
RECIPE = Recipe(
    name="server",
    model=ModelSettings(name="nano", family="nano", context=CONTEXT),
    evaluate=EvaluateSettings(samples=1, temperature=0.0, max_tokens=600),
)
JUDGED = Recipe.model_validate(
    {
        "name": "judged",
        "model": {"name": "nano", "context": CONTEXT},
        "sample": {"samples": 2, "temperature": 1.0, "top_p": 1.0, "max_tokens": 200},
        "segment": {"granularity": "cue"},
        "estimate": {"threshold": 0.3, "margin": 0.2, "cap": 8, "max_tokens": 16},
        "optimize": {"max_tokens": 48},
        "prune": {"judge": "llm", "max_segments": 6, "max_tokens": 350, "temperature": 1.0},
    }
)
NONE = ExitPolicy(name="none")
DEER = Deer(name="deer", threshold=0.9)


def facts(row: EvaluationRow) -> tuple[object, ...]:
    """All but confidences, which differ in the last digits."""
    trials = [(trial.position, trial.answer, trial.tokens) for trial in row.trials]
    return row.id, row.grade, row.answer, row.exit_reason, row.tokens, row.attention_flops, trials


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL. The server is a process group of its own, so that its children end with it."""
    port = free_port()
    log = tmp_path_factory.mktemp("server") / "log"
    options = {
        "model": resolve("nano"),
        "served-model-name": "nano",
        "host": "127.0.0.1",
        "port": port,
        "dtype": "float32",
        "max-model-len": CONTEXT,
        "max-num-batched-tokens": 4 * CONTEXT,
        "max-num-seqs": 64,
        "kv-cache-memory-bytes": 2**27,
        "block-size": 32,
        # Between two tokens of JSON the embedded model would write white space without end.
        "structured-outputs-config": '{"backend": "xgrammar", "disable_any_whitespace": true}',
    }
    with log.open("w") as out:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
                *(part for key, value in options.items() for part in (f"--{key}", str(value))),
                *("--enforce-eager", "--no-enable-chunked-prefill"),
                "--enable-prompt-tokens-details",
            ],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
    try:
        wait_until_well(process, port, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        stop(process)


def wait_until_well(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"the vLLM server did not start:\n{log.read_text()[-3000:]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def settings(server: str, **changes: object) -> ModelSettings:
    return ModelSettings.model_validate(
        {"engine": "openai", "name": "nano", "server": server, **changes}
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(server: str) -> AsyncGenerator[Engine]:
    async with open_engine(settings(server)) as serving:
        yield serving


def running(server: str) -> float:
    """Requests that the server is working on, as its metrics say."""
    page = urllib.request.urlopen(server.replace("/v1", "/metrics")).read().decode()
    return sum(map(float, re.findall(r"^vllm:num_requests_running\{.*\} (.*)$", page, re.M)))


@pytest.mark.asyncio(loop_scope="module")
class TestServer(Conformance):
    @pytest.fixture(autouse=True)
    def _server(self, server: str) -> None:
        self.server = server

    async def assert_idle(self, engine: Engine) -> None:
        """Far sooner than the requests, which go to the end of the context, would end."""
        for _ in range(50):
            if not await asyncio.to_thread(running, self.server):
                return
            await asyncio.sleep(0.02)
        pytest.fail("the server still works on a request that was given up")

    async def test_what_was_found_out(self, engine: Engine) -> None:
        can = engine.capabilities
        assert (can.token_prompts, can.logprobs, can.json_schema) == (True, 20, True)
        assert (can.banned, can.score, can.resumable) == (True, True, False)
        assert engine.context == CONTEXT and engine.shape is not None

    @pytest.mark.parametrize("exit", [NONE, DEER], ids=lambda exit: exit.name)
    async def test_greedy_evaluation_is_that_of_the_transformers_engine(
        self, engine: Engine, exit: ExitPolicy
    ) -> None:
        problems = chain_problems("test", 12, seed=3)
        async with Grader(workers=1) as grader, open_engine(RECIPE.model) as local:

            async def rows(engine: Engine) -> list[EvaluationRow]:
                ctx = Context(RECIPE, engine, grader)
                timed = await asyncio.gather(
                    *(evaluate(problem, exit, ctx) for problem in problems)
                )
                return [each.row for group in timed for each in group]

            served, expected = await rows(engine), await rows(local)
        assert [facts(row) for row in served] == [facts(row) for row in expected]
        assert {row.grade for row in served} <= {"correct", "wrong", "truncated"}
        if exit.policy == "deer":
            assert "policy" in {row.exit_reason for row in served}


async def test_the_served_model_judges_and_every_prune_is_verified(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the embedded model writes is nonsense, but held to the schema.

    It never ends a string of its own accord, so a reason is given a length.
    """
    monkeypatch.setattr(llm_judge, "REASON", {"type": "string", "maxLength": 8})
    async with (
        open_engine(JUDGED.model) as policy,
        Grader(workers=1) as grader,
        open_engine(settings(server)) as judge,
    ):
        assert judge.capabilities.json_schema
        ctx = Context(JUDGED, policy, grader, judge)

        async def judge_one(problem: Problem, sampled: Trajectory) -> int:
            """A response, whole; how many of its patterns were judged."""
            segments = segment(sampled, ctx.tokenizer, JUDGED.segment)
            if isinstance(segments, Dropped) or len(segments) < 3:
                return 0
            whole = await finalize(problem, sampled, segments, ctx, seed=1)
            if isinstance(whole, Dropped):
                return 0
            with metered() as usage, metered("judge") as judging:
                result = await prune(problem, sampled, segments, whole, ctx)
            between = len(segments) - 2
            assert [each.segment for each in result.verdicts] == list(range(1, between + 1))
            cut = [each for each in result.verdicts if each.verdict == "unjudged"]
            assert all("no room in the judge's context" in each.reason for each in cut), cut
            gone = {each.segment for each in result.verdicts if each.pruned}
            assert set(result.kept) == {*whole.kept} - gone
            assert (result.verified_p > JUDGED.estimate.threshold) == bool(gone)
            assert (judging.requests, judging.failed, judging.wasted) == (1, 0, 0)
            judged = between - len(cut)
            assert judging.prompt > 400 and judged * 15 < judging.generated <= 350
            assert usage.requests or all(
                each.verdict in ("keep", "unjudged") for each in result.verdicts
            )
            return judged

        problems = chain_problems("train", 6, seed=5)
        sampled = await asyncio.gather(*(sample(problem, ctx) for problem in problems))
        pairs = [(p, each) for p, rows in zip(problems, sampled, strict=True) for each in rows]
        judged = sum(await asyncio.gather(*(judge_one(*pair) for pair in pairs)))
    assert judged >= 10


async def test_wrong_settings_are_said_at_the_start(server: str) -> None:
    for changes, reason in (
        ({"name": "nano-control"}, "does not serve model 'nano-control'; it serves nano"),
        ({"context": CONTEXT + 1}, "lower it"),
    ):
        with pytest.raises(EngineError, match=reason) as error:
            async with open_engine(settings(server, **changes)):
                pass
        assert "\n" not in str(error.value)
