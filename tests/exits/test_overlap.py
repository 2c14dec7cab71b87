"""One path read in one go, in pieces and with pauses: the same transitions, trials and exits."""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dto.exits import ExitedResponse
from dto.exits.loop import AT_ONCE
from dto.exits.monitor import ENTROPY_LOGPROBS, Monitor, Transition
from dto.recipe import resolve
from dto.settings import MonitorSettings
from dto.text import StopReader
from dto.usage import metered

Respond = Callable[..., Any]
Top = Mapping[int, float]

ONE, TWO, THREE = "One and one.", "It is 2.", "But wait, is it?"
THINKING = f"{ONE}\n\n{TWO}\n\n{THREE}\n\nSo. Wait, yes.\n"
MAIN = f"{THINKING}</think>\n\n\\boxed{{2}}"
DEER = {"policy": "deer", "monitor": "paragraph", "threshold": 0.9}
CLOSED = DEER | {"inducer": "closed"}
MONITORS: tuple[dict[str, Any], ...] = (
    {"monitor": "cue"},
    {"monitor": "paragraph"},
    {"monitor": "entropy"},
    {"monitor": "tokens", "every": 7},
)
PIECES = (
    "Wait", " wait", "Waiting", "w", "W", "Hm", "m", "Alternatively", "But ", ". ", ".", ",", " ",
    "so.\n\nAs 1", "so. Wait", ".\nBut wait", "! Hmm", "是。等等", ". Alternatively,", ": oh, wait",
    "\n", "\n\n", "1\n", "\nW", "ait", "so 2",
    "等等", "等", "。", "é", "🙂", "<think>", "<", "</think>",
)  # fmt: skip
SURE, UNSURE = {0: 0.0}, {0: math.log(0.5), 1: math.log(0.5)}


@pytest.fixture(scope="session", params=["bytes", "merged", "nano"])
def spelling(
    request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedTokenizerBase:
    if request.param == "bytes":
        return tokenizer
    if request.param == "merged":  # tokens that end half way into a cue or a paragraph's end
        merged = copy.deepcopy(tokenizer)
        merged.add_tokens(["1\n", "\nW", ". W", " wa", "oh, wait", "</thi", "\n\nAs"])
        return merged
    nano: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(resolve("nano"))
    return nano


def paused(
    monitor: Monitor, ids: Sequence[int], tops: Sequence[Top], backend: Any
) -> Iterator[Transition]:
    """What the sequential form sees of an engine that stops where it is asked to."""
    at = 0
    while at < len(ids) and not monitor.closed:
        ask = monitor.pause()
        reader = StopReader(backend, ask.get("stop", ()))
        begun = at
        for token in ids[begun:]:
            at += 1
            if reader.read(token)[1] is not None or at - begun == ask.get("limit"):
                break
        told = tops[begun:at] if ask.get("logprobs") == ENTROPY_LOGPROBS else None
        for found in monitor.scan(ids[begun:at], told, ended=at == len(ids)):
            assert found.seen == at, "tokens were generated beyond a transition"
            yield found


@pytest.mark.slow
@pytest.mark.parametrize("monitor", MONITORS, ids=lambda monitor: str(monitor["monitor"]))
def test_transitions_depend_on_the_tokens_alone(
    spelling: PreTrainedTokenizerBase, monitor: dict[str, Any]
) -> None:
    settings = MonitorSettings.model_validate(monitor)
    backend = spelling.backend_tokenizer  # type: ignore[attr-defined]
    seen: list[Transition] = []

    @example(text="So 1. Wait\nWait, 2.\n\n1\n\nAs 3", unsure=[True], cuts=[])
    @example(text="So 1.\n\nIt is 2. Wait, no", unsure=[True], cuts=[3])
    @example(text="\n\n\nWWait", unsure=[False], cuts=[])
    @given(
        text=st.lists(st.sampled_from(PIECES), max_size=24).map("".join),
        unsure=st.lists(st.booleans(), min_size=1),
        cuts=st.lists(st.integers(0, 100)),
    )
    def check(text: str, unsure: list[bool], cuts: list[int]) -> None:
        ids = spelling.encode(text, add_special_tokens=False)
        tops = [UNSURE if unsure[i % len(unsure)] else SURE for i in range(len(ids))]
        whole = list(Monitor(spelling, settings).scan(ids, tops, ended=True))
        pieces = Monitor(spelling, settings)
        borders = sorted({0, len(ids), *(cut for cut in cuts if cut < len(ids))})
        in_pieces = [
            found
            for start, end in pairwise(borders)
            for found in pieces.scan(ids[start:end], tops[start:end], ended=end == len(ids))
        ]
        assert in_pieces == whole
        assert list(paused(Monitor(spelling, settings), ids, tops, backend)) == whole
        assert [found.cut for found in whole] == sorted({found.cut for found in whole})
        for cut, at in whole:
            assert 0 < cut <= at < len(ids)
            kept = spelling.decode(ids[:cut])
            assert text.startswith(kept), "cut inside a character"
            assert "</think>" not in spelling.decode(ids[:at])
        seen.extend(whole)

    check()
    assert seen


TRIALS: dict[str, Callable[[str], tuple[str, float]]] = {
    "never": lambda kept: ("2}", 0.5),
    "first": lambda kept: ("2}", 0.99),
    "second": lambda kept: ("2}", 0.99 if TWO in kept else 0.5),
    # The first sure one takes longest to say so.
    "long": lambda kept: ("2.000000000}" if TWO not in kept else "2}", 1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("trial", TRIALS)
@pytest.mark.parametrize(
    "exit",
    [
        *MONITORS,
        {"monitor": "cue", "inducer": "inside"},
        {"max_trials": 1},
        {"min_thinking": 15, "cooldown": 20},
        {"trial_share": 0.1},
        {"shadow": True},
        {"mode": "pro"},
        {"mode": "qwen3"},
    ],
    ids=str,
)
async def test_overlapped_rows_are_the_sequential_ones(
    respond: Respond, exit: dict[str, Any], trial: str
) -> None:
    exit = (DEER if "mode" in exit else CLOSED) | exit  # the other modes have their own inducer
    box = "{" if exit.get("inducer", "inside") == "inside" else ""
    said = TRIALS[trial]
    options: dict[str, Any] = {
        "trial": lambda kept: (box + said(kept)[0] + "\n</think>", said(kept)[1]),
        "unsure": (14, 24, 42),
    }
    one_by_one = await respond(MAIN, exit, **options)
    assert one_by_one.engine.most_under_way <= (4 if exit.get("mode") == "pro" else 1)
    for piece, slow in ((1, 0.0), (5, 0.0), (1000, 0.0), (1, 1e-5), (3, 1e-4)):
        with metered() as usage:
            done = await respond(MAIN, exit | {"overlap": True}, piece=piece, slow=slow, **options)
        assert done.response == one_by_one.response
        assert done.engine.under_way == 0
        assert done.engine.generated == usage.generated >= one_by_one.engine.generated


async def test_the_main_path_never_waits_and_trials_are_bounded(respond: Respond) -> None:
    main = "".join(f"Step {number}.\n\n" for number in range(30)) + "</think>\\boxed{2}"
    done = await respond(main, CLOSED | {"overlap": True}, slow=1e-4, piece=3)
    assert len(done.response.trials) == 30
    assert 2 < done.engine.most_under_way <= 1 + AT_ONCE
    assert [text for text, _ in done.engine.requests].count("") == 1  # one stream, from the start


async def test_an_exit_aborts_the_path_and_counts_what_was_in_vain(respond: Respond) -> None:
    main = f"{ONE}\n\n{TWO}\n\n" + "More.\n\n" * 100 + "</think>\\boxed{2}"
    done = await respond(main, CLOSED | {"overlap": True}, trial=TRIALS["first"])
    response = done.response
    assert done.text("thinking_ids") == ONE
    assert len(response.trials) == 1
    kept = len(response.thinking_ids) + response.answer_tokens + response.trial_tokens
    assert kept < done.engine.generated < len(main)


async def test_shadow_says_where_the_policy_would_have_left(respond: Respond) -> None:
    plain = (await respond(MAIN)).response
    left = (await respond(MAIN, CLOSED, trial=TRIALS["second"])).response
    shadow = (await respond(MAIN, CLOSED | {"shadow": True}, trial=TRIALS["second"])).response
    assert (shadow.thinking_ids, shadow.answer_ids) == (plain.thinking_ids, plain.answer_ids)
    assert (shadow.exit_reason, shadow.withdrawn) == ("closed", 0)
    assert len(shadow.trials) == 3
    assert shadow.would_leave == left.would_leave == 1
    assert shadow.trials[:2] == left.trials
    assert plain.would_leave == -1


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    ("exit", "positions"),
    [
        ({}, [12, 22, 40]),
        ({"cooldown": 10}, [12, 22, 40]),
        ({"cooldown": 11}, [12, 40]),
        ({"min_thinking": 13}, [22, 40]),
        ({"max_trials": 2}, [12, 22]),
        ({"trial_share": 0.09}, [12, 40]),  # 2 tokens > 0.09 x 22; 2 <= 0.09 x 40
    ],
)
async def test_where_trials_are_made(
    respond: Respond, exit: dict[str, Any], positions: list[int], overlap: bool
) -> None:
    done = await respond(MAIN, CLOSED | exit | {"overlap": overlap}, trial=TRIALS["never"])
    assert [trial.position for trial in done.response.trials] == positions


@pytest.mark.parametrize(
    "fails",
    [
        lambda text: not text,
        lambda text: "boxed{" in text,
        lambda text: TWO in text and "boxed{" in text,
        lambda text: text.endswith("</think>\n\n"),
    ],
    ids=["main", "trial", "second trial", "conclusion"],
)
async def test_failures_are_the_same(respond: Respond, fails: Callable[[str], bool]) -> None:
    def of(overlap: bool) -> Any:
        exit = CLOSED | {"overlap": overlap}
        return respond(MAIN, exit, trial=TRIALS["second"], fails=fails, slow=1e-5)

    apart, done = await of(False), await of(True)
    assert done.response.exit_reason == "failed"
    assert done.response.error == apart.response.error
    assert "engine on fire" in done.response.error
    assert done.response.trials == apart.response.trials
    assert done.engine.under_way == 0


async def test_nothing_is_under_way_after_a_cancellation_or_an_error(respond: Respond) -> None:
    engines: list[Any] = []
    for turns in range(1, 40, 3):
        made = asyncio.create_task(
            respond(MAIN, CLOSED | {"overlap": True}, slow=1e-2, engines=engines)
        )
        for _ in range(turns):
            await asyncio.sleep(0)
        made.cancel()
        with pytest.raises(asyncio.CancelledError):
            await made
    assert any(engine.most_under_way > 2 for engine in engines)

    def broken(kept: str) -> tuple[str, float]:
        raise RuntimeError("no such answer")

    with pytest.raises(RuntimeError, match="no such answer"):
        await respond(MAIN, CLOSED | {"overlap": True}, trial=broken, engines=engines)
    assert [engine.under_way for engine in engines] == [0] * len(engines)


@pytest.mark.slow
@pytest.mark.parametrize(
    "exit",
    [
        {"monitor": "paragraph", "threshold": 0.9},
        {"monitor": "cue", "threshold": 0.6},
        {"monitor": "entropy", "entropy": 0.1, "threshold": 0.9},
        {"monitor": "tokens", "every": 9, "threshold": 0.9},
        {"monitor": "paragraph", "threshold": 1.0},
    ],
    ids=str,
)
async def test_the_embedded_model_leaves_at_the_same_places(
    embedded: Any, exit: dict[str, Any]
) -> None:
    exit = {"policy": "deer", "inducer": "closed"} | exit
    apart, overlapped = await asyncio.gather(
        embedded.responses(**exit), embedded.responses(**exit, overlap=True)
    )
    assert list(map(to_five_digits, apart)) == list(map(to_five_digits, overlapped))
    assert any(response.trials for response in apart)
    left = {response.exit_reason == "policy" for response in apart}
    assert left == {False} if exit["threshold"] == 1.0 else True in left


def to_five_digits(response: ExitedResponse) -> ExitedResponse:
    """Logprobs may differ in their last bits with what they are computed with; tokens do not."""
    trials = (replace(trial, confidence=round(trial.confidence, 5)) for trial in response.trials)
    return replace(response, trials=tuple(trials))
