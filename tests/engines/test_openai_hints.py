"""What a server lacks is said with its mend: base URL, stop strings, seeds on a CPU, reasoning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dto.engines import open_engine
from dto.errors import EngineError
from tests.engines.served import Served
from tests.engines.server import ANSWER, Bad, serve
from tests.engines.test_openai import ASK, SAMPLING, one, opened, settings

BASES = {
    "": "did you mean model.server={root}/v1?",
    "/": "did you mean model.server={root}/v1?",
    "/v1/chat/completions": "did you mean model.server={root}/v1?",
    "/v1/completions/": "did you mean model.server={root}/v1?",
    "/chat/completions": "did you mean model.server={root}/v1?",
    "/v1/models": "did you mean model.server={root}/v1?",
}
"""What people put behind the port, and what they are told."""


@pytest.mark.parametrize("path", BASES)
async def test_a_base_url_without_v1_is_noticed(nano: Served, path: str) -> None:
    async with serve("vllm", nano.tokenizer) as server:
        root = server.url.removesuffix("/v1")
        with pytest.raises(EngineError) as error:
            async with open_engine(settings(root + path)):
                pass
    assert BASES[path].format(root=root) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["/v1", "/v1/"])
async def test_a_right_base_url_is_not_suspected(nano: Served, path: str) -> None:
    async with serve("chat", nano.tokenizer) as server:
        root = server.url.removesuffix("/v1")
        async with open_engine(settings(root + path)):  # a chat server has no /completions
            pass
        with pytest.raises(EngineError) as error:
            async with open_engine(settings(root + path, api="completions")):
                pass
    assert "does not answer" in str(error.value) and "did you mean" not in str(error.value)


async def test_one_warning_says_that_stop_strings_are_cut_here(
    nano: Served, caplog: pytest.LogCaptureFixture
) -> None:
    stops = tuple(f"<{index}>" for index in range(65))
    async with opened("vllm", nano) as (engine, _):
        for stop in (stops[:64], stops, stops):
            await one(engine, replace(SAMPLING, stop=stop))
            told = [line for line in caplog.messages if "stop strings" in line]
            assert len(told) == (len(stop) > 64)
    assert "takes 64 stop strings" in told[0] and "VLLM_MAX_STOP_STRINGS=64" in told[0]


@pytest.mark.parametrize(
    ("bad", "ended"),
    [
        (Bad(500, {"error": {"message": "EngineCore encountered an issue."}}), True),
        (Bad(500, {"error": {"message": "oops"}}), False),
        (Bad(400, {"error": {"message": "no such thing"}}), False),
    ],
)
async def test_a_server_that_ended_hints_at_seeds_on_a_cpu(
    nano: Served, bad: Bad, ended: bool
) -> None:
    async with opened("vllm", nano, retries=0) as (engine, server):
        server.bad.append(bad)
        error = (await one(engine)).error
    assert ("--no-enable-chunked-prefill" in error) == ended


async def test_a_server_that_is_gone_hints_at_seeds_on_a_cpu(nano: Served) -> None:
    async with serve("vllm", nano.tokenizer) as server:
        engine = open_engine(settings(server.url, retries=0))
        await engine.__aenter__()
    try:
        error = (await one(engine)).error
    finally:
        await engine.__aexit__(None, None, None)
    assert "connection to" in error and "--no-enable-chunked-prefill" in error


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_reasoning_that_a_chat_server_returns_apart_is_part_of_the_text(
    nano: Served, field: str, streams: bool
) -> None:
    async with opened("chat", nano, think=["[T]", "[/T]"]) as (engine, server):
        plain = server.choice

        def thoughtful(*args: Any) -> dict[str, Any]:
            choice = plain(*args)
            if "message" in choice:
                choice["message"][field] = "7 + 8 is 15."
            return choice

        def events(body: dict[str, Any], reply: dict[str, Any]) -> list[Any]:
            parts = [{field: "7 + 8 "}, {field: "is 15."}, {"content": "So "}, {"content": "5."}]
            ends = [None, None, None, "stop"]
            return [
                {"choices": [{"index": 0, "delta": part, "finish_reason": end}]}
                for part, end in zip(parts, ends, strict=True)
            ]

        server.choice, server.events = thoughtful, events  # type: ignore[method-assign]
        if streams:
            text = "".join([chunk.text async for chunk in engine.stream(ASK, SAMPLING)])
            assert text == "[T]\n7 + 8 is 15.\n[/T]\n\nSo 5."
        else:
            (completion,) = await engine.complete(ASK, SAMPLING)
            assert completion.text == f"[T]\n7 + 8 is 15.\n[/T]\n\n{ANSWER}"
