"""The server, as clients see it: the official one of OpenAI, and sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx
import pytest

from dto.nano import chain_problems
from dto.serving.live import Ungraded
from dto.serving.model import OpenModel, Serving, open_model, policy_of, serving_recipe

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from openai import APIStatusError, AsyncOpenAI, OpenAI  # noqa: E402

from dto.serving import app as serving_app  # noqa: E402
from dto.serving.app import Desk, Limits, app  # noqa: E402

pytestmark = pytest.mark.slow

QUESTIONS = [problem.question for problem in chain_problems("test", 4, seed=3)]
EXITS = {
    "deer": policy_of({"name": "deer", "policy": "deer", "threshold": 0.8}),
    "low": policy_of({"name": "low", "policy": "budget", "budget": 20}),
}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


class At(NamedTuple):
    """A server, and what stands behind it."""

    url: str
    desk: Desk

    def client(self, key: str = "none") -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def metric(self, line: str) -> float:
        page = httpx.get(f"{self.url}/metrics").text
        found = [row for row in page.splitlines() if row.startswith(f"{line} ")]
        return float(found[0].split()[-1]) if found else 0.0


@contextmanager
def started(limits: Limits | None = None, key: str = "") -> Iterator[At]:
    """A server with the embedded model, on a free port, in a thread of its own."""
    recipe = serving_recipe("nano", {"evaluate.max_tokens": 300, "evaluate.temperature": 0.0})
    ready, box = threading.Event(), list[Any]()

    async def run() -> None:
        async with Serving(recipe) as serving:
            desk = Desk(serving, EXITS, limits or Limits(), key)
            server = uvicorn.Server(uvicorn.Config(app(desk), port=0, log_level="error"))
            running = asyncio.create_task(server.serve())
            while not server.started:
                await asyncio.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            box.extend([server, At(f"http://127.0.0.1:{port}", desk)])
            ready.set()
            await running

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert ready.wait(60)
    try:
        yield box[1]
    finally:
        box[0].should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def at() -> Iterator[At]:
    with started() as server:
        yield server


@pytest.fixture(scope="module")
def model() -> Iterator[OpenModel]:
    with open_model("nano", {"evaluate.max_tokens": 300, "evaluate.temperature": 0.0}) as opened:
        yield opened


def asked(question: str = QUESTIONS[0], **more: Any) -> dict[str, Any]:
    return {"model": "nano", "messages": [{"role": "user", "content": question}], **more}


def test_a_chat_has_what_the_library_gives(at: At, model: OpenModel) -> None:
    for question in QUESTIONS:
        got: Any = at.client().chat.completions.create(**asked(question))
        messages: Any = asked(question)["messages"]
        wanted = model.answer(messages, EXITS["deer"])
        message = got.choices[0].message
        assert message.content == wanted.answer
        assert message.reasoning_content == message.reasoning == wanted.thinking
        assert got.choices[0].finish_reason == "stop"
        said = got.choices[0].exit
        assert (said["reason"], said["position"]) == (wanted.exit_reason, wanted.tokens.thinking)
        assert said["trials_made"] == len(wanted.trials) and "trials" not in said
        usage = got.usage
        assert usage.prompt_tokens == wanted.tokens.prompt
        assert usage.completion_tokens == wanted.tokens.thinking + wanted.tokens.answer
        assert usage.completion_tokens_details.reasoning_tokens == wanted.tokens.thinking
        assert usage.dto["trial"] == wanted.tokens.trial


def test_a_stream_adds_up_to_the_whole(at: At) -> None:
    whole: Any = at.client().chat.completions.create(**asked())
    options = {"stream": True, "stream_options": {"include_usage": True}}
    pieces: list[Any] = list(at.client().chat.completions.create(**asked(**options)))
    deltas = [piece.choices[0].delta for piece in pieces if piece.choices]
    content = "".join(delta.content or "" for delta in deltas)
    thought = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert content == whole.choices[0].message.content
    assert thought.startswith(whole.choices[0].message.reasoning_content.strip())
    assert pieces[-1].usage.model_dump() == whole.usage.model_dump()
    assert pieces[-2].choices[0].finish_reason == "stop"
    assert pieces[-2].choices[0].exit == whole.choices[0].exit
    assert len({piece.id for piece in pieces}) == 1
    first_content = next(i for i, delta in enumerate(deltas) if delta.content)
    assert all(getattr(d, "reasoning_content", None) is None for d in deltas[first_content:])


async def test_the_async_client(at: At) -> None:
    client = AsyncOpenAI(base_url=f"{at.url}/v1", api_key="none")
    alone = [at.client().chat.completions.create(**asked(question)) for question in QUESTIONS]
    together = await asyncio.gather(
        *(client.chat.completions.create(**asked(question)) for question in QUESTIONS * 4)
    )
    for index, got in enumerate(together):  # no answer goes to another question
        wanted = alone[index % len(QUESTIONS)].choices[0].message.content
        assert got.choices[0].message.content == wanted


def test_several_choices_differ_and_can_be_repeated(at: At) -> None:
    drawn = asked(n=3, temperature=1.0, seed=5)
    first, second = (at.client().chat.completions.create(**drawn) for _ in range(2))
    texts = [choice.message.reasoning_content for choice in first.choices]  # type: ignore[attr-defined]
    assert len(set(texts)) == 3
    assert [choice.message.content for choice in first.choices] == [
        choice.message.content for choice in second.choices
    ]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"early_exit": False}, "closed"),
        ({"early_exit": "off"}, "closed"),
        ({"early_exit": "low"}, "budget"),
        ({"early_exit": {"threshold": 1.0}}, "closed"),
        ({"early_exit": {"policy": "budget", "budget": 10}}, "budget"),
        ({"thinking_token_budget": 10}, "budget"),
        ({"reasoning_effort": "low"}, "budget"),
        ({"reasoning_effort": "high"}, "policy"),  # no such exit: the default
        ({}, "policy"),
        ({"early_exit": True}, "policy"),
    ],
)
def test_which_exit_a_request_gets(at: At, fields: dict[str, Any], reason: str) -> None:
    got: Any = at.client().chat.completions.create(**asked(extra_body=fields))
    assert got.choices[0].exit["reason"] == reason


def test_trials_are_shown_on_request(at: At) -> None:
    got: Any = at.client().chat.completions.create(**asked(extra_body={"include_trials": True}))
    trials = got.choices[0].exit["trials"]
    assert trials and set(trials[0]) == {"position", "confidence", "answer", "tokens"}


def test_a_completion_continues_text_or_ids(at: At, model: OpenModel) -> None:
    ids = list(model.serving.prompt(QUESTIONS[0]))
    wanted = model.answer(tuple(ids), EXITS["deer"])
    got: Any = at.client().completions.create(model="nano", prompt=ids)
    assert got.choices[0].text.startswith(wanted.thinking)
    assert got.choices[0].text.endswith(wanted.answer)
    assert "</think>" in got.choices[0].text
    pieces: list[Any] = list(at.client().completions.create(model="nano", prompt=ids, stream=True))
    text = "".join(piece.choices[0].text for piece in pieces)
    closing = "\n</think>\n\n"  # before it the stream also has the words that the exit withdrew
    assert text.partition(closing)[1:] == got.choices[0].text.partition(closing)[1:]


def test_answer_now(at: At) -> None:
    stream = at.client().chat.completions.create(
        **asked(stream=True, extra_body={"early_exit": "off"})
    )
    pieces: list[Any] = []
    for piece in stream:
        pieces.append(piece)
        if len(pieces) == 10:
            said = httpx.post(f"{at.url}/v1/requests/{piece.id}/answer").json()
            assert said == {"id": piece.id, "answering": True}
    assert pieces[-1].choices[0].exit["reason"] == "asked"
    assert "\\boxed" in "".join(p.choices[0].delta.content or "" for p in pieces)
    gone = httpx.post(f"{at.url}/v1/requests/{pieces[0].id}/answer")
    assert gone.status_code == 404


def test_a_client_that_leaves_frees_its_slot(at: At) -> None:
    before = at.metric('dto_requests_total{status="499"}')
    with httpx.stream("POST", at.url + CHAT, json=asked(stream=True, early_exit="off")) as response:
        next(response.iter_lines())
    until(lambda: httpx.get(f"{at.url}/health").json()["live"] == 0, 1.0)
    assert at.metric('dto_requests_total{status="499"}') == before + 1


def until(met: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end
        time.sleep(0.02)


BAD: list[tuple[bytes, int, str]] = [
    (b"", 400, "not JSON"),
    (b"{", 400, "not JSON"),
    (b"\xff\xfe\x00", 400, "not JSON"),
    (b"[]", 400, "no JSON object"),
    (b"[" * 100_000, 400, "nested"),
    (b'{"messages": []}', 400, "messages"),
    (b'{"messages": "hello"}', 400, "messages"),
    (b'{"messages": [{"role": "user"}], "mesages": 1}', 400, "'mesages'"),
    (json.dumps(asked(temperature="hot")).encode(), 400, "temperature"),
    (json.dumps(asked(temperature=-1)).encode(), 400, "temperature"),
    (json.dumps(asked(top_p=0)).encode(), 400, "top_p"),
    (json.dumps(asked(n=0)).encode(), 400, "n:"),
    (json.dumps(asked(max_tokens=0)).encode(), 400, "max_tokens"),
    (json.dumps(asked(stream="yes")).encode(), 400, "stream"),
    (json.dumps(asked(model="gpt-5")).encode(), 404, "gpt-5"),
    (json.dumps(asked(early_exit="fast")).encode(), 400, "'fast'"),
    (json.dumps(asked(early_exit={"policy": "os:system"})).encode(), 400, "import path"),
    (json.dumps(asked(early_exit={"treshold": 1})).encode(), 400, "treshold"),
    (json.dumps(asked(tools=[{"type": "function"}])).encode(), 400, "tools"),
    (json.dumps(asked(logprobs=True)).encode(), 400, "logprobs"),
    (json.dumps(asked(frequency_penalty=1.0)).encode(), 400, "frequency_penalty"),
    (json.dumps(asked("1 + " * 5_000)).encode(), 400, "context"),
    (b'{"a": "' + b"x" * 5 * 2**20 + b'"}', 413, "bytes"),
]


@pytest.mark.parametrize(("body", "status", "said"), BAD, ids=range(len(BAD)))
def test_bad_requests(at: At, body: bytes, status: int, said: str) -> None:
    got = httpx.post(at.url + CHAT, content=body)
    assert got.status_code == status
    error = got.json()["error"]
    assert said in error["message"] and error["code"] == status and error["type"]
    assert httpx.get(f"{at.url}/health").json()["live"] == 0


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", CHAT, 405), ("POST", "/nothing", 404), ("GET", "/", 404)]
)
def test_bad_places(at: At, method: str, path: str, status: int) -> None:
    got = httpx.request(method, at.url + path)
    assert (got.status_code, got.json()["error"]["code"]) == (status, status)


def test_half_a_request_and_a_flood_of_headers_hurt_nobody(at: At) -> None:
    host, port = at.url.removeprefix("http://").split(":")
    half = socket.create_connection((host, int(port)))
    half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 1000\r\n\r\n{")
    flood = socket.create_connection((host, int(port)))
    flood.sendall(b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 40_000)
    assert flood.recv(20).startswith(b"HTTP/1.1 4")
    assert at.client().chat.completions.create(**asked()).choices
    half.close()
    flood.close()


def test_keys_and_limits() -> None:
    with started(Limits(live=1, queue=1, seconds=3.0), "secret") as at:
        for key in ("wrong", "secre", ""):
            with pytest.raises(APIStatusError) as refused:
                at.client(key or "x").chat.completions.create(**asked())
            assert refused.value.status_code == 401
        assert httpx.get(f"{at.url}/v1/models").status_code == 401
        assert httpx.get(f"{at.url}/health").status_code == 200
        assert at.client("secret").models.list().data[0].id == "nano"
        headers = {"authorization": "Bearer secret"}
        with httpx.Client(headers=headers, timeout=30) as client:
            holding = [
                threading.Thread(
                    target=client.post,
                    args=(at.url + CHAT,),
                    kwargs={"json": asked(n=60, temperature=1.0, early_exit="off")},
                )
                for _ in range(2)
            ]
            for thread in holding:
                thread.start()
            until(lambda: at.desk.waiting == 1)
            full = client.post(at.url + CHAT, json=asked())
            assert (full.status_code, full.headers["retry-after"]) == (429, "1")
            for thread in holding:
                thread.join()
        until(lambda: not at.desk.live)


def test_a_response_that_takes_too_long() -> None:
    with started(Limits(seconds=0.3)) as at:
        slow = asked(n=100, temperature=1.0, early_exit="off")
        got = httpx.post(at.url + CHAT, json=slow, timeout=30)
        assert got.status_code == 504 and "0.3 s" in got.json()["error"]["message"]
        until(lambda: not at.desk.live)
        lines = httpx.post(at.url + CHAT, json=slow | {"stream": True}, timeout=30).text
        assert '"code": 504' in lines and lines.rstrip().endswith("data: [DONE]")


def test_a_client_that_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_app, "STALLED_SECONDS", 0.5)
    with started() as at:
        host, port = at.url.removeprefix("http://").split(":")
        body = json.dumps(asked(n=100, stream=True, temperature=1.0, early_exit="off")).encode()
        stuck = socket.socket()
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
        stuck.connect((host, int(port)))
        stuck.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s"
            % (len(body), body)
        )
        until(lambda: len(at.desk.live) == 1)
        assert at.client().chat.completions.create(**asked()).choices
        until(lambda: not at.desk.live, 30)
        stuck.close()


def test_what_is_counted(at: At) -> None:
    before = at.metric('dto_exits_total{reason="policy"}')
    at.client().chat.completions.create(**asked())
    assert at.metric('dto_exits_total{reason="policy"}') == before + 1
    for line in ("dto_first_token_seconds_count", "dto_first_answer_token_seconds_count"):
        assert at.metric(line) > 0
    assert at.metric('dto_tokens_total{part="thinking"}') > 0


async def test_no_grade_without_a_gold_answer() -> None:
    async with Ungraded() as grader:
        graded = await grader.grade_trial(r"\boxed{5}", "", "math")
        assert (graded.grade, graded.answer) == ("failed", "5")
        assert (await grader.grade_conclusion(r"It is \boxed{7}.", "", "math")).answer == "7"
        assert (await grader.grade_answer("7", "", "math")).answer == "7"
