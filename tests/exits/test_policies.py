from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import isnan
from types import SimpleNamespace
from typing import Any

import pytest

from dto.errors import EngineError
from dto.exits.loop import TrialResult
from dto.policies.variants import combine
from dto.protocols import Capabilities, Sampling
from dto.records import Trial
from dto.settings import open_policy
from dto.usage import ModelShape

ONE, TWO, THREE = "One and one.", "It is 2.", "But wait, is it?"
MAIN = f"{ONE}\n\n{TWO}\n\n{THREE}\n\nYes.\n</think>\n\n\\boxed{{2}}"
THINKING = f"{ONE}\n\n{TWO}\n\n{THREE}\n\nYes.\n"
DEER = {"policy": "deer", "monitor": "paragraph", "inducer": "closed", "threshold": 0.9}
CUE = {"policy": "deer", "monitor": "cue", "inducer": "inside", "threshold": 0.95}

Respond = Callable[..., Any]


def sure_after(step: str) -> Callable[[str], tuple[str, float]]:
    """Trials that are sure once `step` was thought."""
    return lambda kept: ("2}", 0.99 if step in kept else 0.5)


async def test_none_lets_the_model_go_on_to_its_end(respond: Respond) -> None:
    done = await respond(MAIN)
    assert done.text("thinking_ids") == THINKING
    assert done.text("answer_ids") == "</think>\n\n\\boxed{2}<eos>"
    assert done.response.conclusion == "\n\n\\boxed{2}"
    assert (done.response.exit_reason, done.response.complete) == ("closed", True)
    assert done.response.trial_tokens == 0


async def test_deer_leaves_at_the_first_sure_paragraph_and_counts_every_token(
    respond: Respond,
) -> None:
    done = await respond(MAIN, DEER, trial=sure_after(TWO))
    response = done.response
    assert done.text("thinking_ids") == f"{ONE}\n\n{TWO}"
    assert done.text("inserted_ids") == "\n</think>\n\n"
    assert done.text("answer_ids") == "\\boxed{2}<eos>"
    assert response.exit_reason == "policy"
    assert [trial.position for trial in response.trials] == [len(ONE), len(f"{ONE}\n\n{TWO}")]
    assert [round(trial.confidence, 6) for trial in response.trials] == [0.5, 0.99]
    assert [trial.grade for trial in response.trials] == ["correct", "correct"]
    assert response.withdrawn == 2  # the blank line after which the trial was made
    assert response.trial_tokens == 2 * len("2}") + 2
    assert len(response.thinking_ids) + response.answer_tokens + response.trial_tokens == (
        done.engine.generated
    )


async def test_attention_flops_by_hand(respond: Respond) -> None:
    done = await respond(MAIN, DEER, trial=sure_after(TWO))
    response, prompt = done.response, done.response.prompt_tokens
    inducer = len("\n</think>\n\n**Final Answer**\n\\boxed{")

    def keys(start: int, end: int) -> int:
        return 4 * sum(range(start + 1, end + 1))

    cut = len(f"{ONE}\n\n{TWO}")
    expected = keys(0, prompt + cut + len("\n</think>\n\n") + len("\\boxed{2}") + 1)
    expected += keys(prompt + cut, prompt + cut + 2)
    for position in (len(ONE), cut):
        expected += keys(prompt + position, prompt + position + inducer + len("2}"))
    assert response.attention_flops(done.engine.shape) == expected
    read = prompt + len("\n</think>\n\n") + 2 * inducer
    written = done.engine.generated
    known = ModelShape(1, 1, 1, 1000)
    assert response.model_flops(known) == expected + 2 * 1000 * (read + written)
    assert isnan(response.model_flops(replace(known, parameters=None)))


async def test_a_path_that_is_never_left_is_the_plain_response(respond: Respond) -> None:
    plain = await respond(MAIN)
    for exit in (DEER, CUE, DEER | {"monitor": "entropy"}):
        done = await respond(MAIN, exit, trial=lambda kept: ("2}", 0.1), unsure=(14, 24))
        assert done.response.thinking_ids == plain.response.thinking_ids
        assert done.response.answer_ids == plain.response.answer_ids
        assert done.response.exit_reason == "closed"
        assert done.response.trials
        assert done.engine.generated == plain.engine.generated + done.response.trial_tokens


async def test_the_seed_stays_only_where_noise_depends_on_position(respond: Respond) -> None:
    def seeds(done: Any) -> list[int]:
        return [sampling.seed for _, sampling in done.engine.requests if sampling.temperature]

    assert set(seeds(await respond(MAIN, DEER))) == {11}
    other = seeds(await respond(MAIN, DEER, resumable=False))
    assert len(set(other)) == len(other) > 2
    assert other == seeds(await respond(MAIN, DEER, resumable=False))


@pytest.mark.parametrize(
    ("main", "positions"),
    [
        ("So 2. Wait, no. Hm", ["So 2."]),
        ("So 2. But wait, no.", ["So 2."]),
        ("So 2.\n\nbut oh, Wait! no.", ["So 2."]),
        ("So 2. Waiting helps. I wait, you wait.", []),
        ("So 2. Hmm, wait. Alternatively: 3.", ["So 2.", "So 2. Hmm, wait."]),
        ("是二。等等，不对。", ["是二。"]),
        ("是二。不过等等，我再想。", ["是二。"]),
        ("Wait, what?", []),  # no trial before any thinking
    ],
)
async def test_a_cue_is_a_word_at_the_start_of_a_sentence(
    respond: Respond, main: str, positions: list[str]
) -> None:
    text = main + "</think>\\boxed{2}"
    done = await respond(text, CUE, trial=lambda kept: ("{2}", 0.5))
    assert [trial.position for trial in done.response.trials] == [
        len(kept.encode()) for kept in positions
    ]
    assert done.text("thinking_ids") == main


async def test_a_cue_is_put_aside_for_the_trial_and_counted(respond: Respond) -> None:
    done = await respond("So 2. But wait, no.</think>x", CUE, trial=lambda kept: ("{2}", 0.99))
    trial_prompts = [text for text, sampling in done.engine.requests if not sampling.temperature]
    assert trial_prompts == ["So 2.\n**Final Answer**\n\\boxed"]
    assert done.text("thinking_ids") == "So 2."
    assert done.response.withdrawn == len(" But wait,")
    assert done.response.trial_tokens == len("{2}") + len(" But wait,")


async def test_entropy_tries_only_after_an_unsure_step(respond: Respond) -> None:
    step = len(f"{ONE}\n\n{TWO}\n\n")
    exit = DEER | {"monitor": "entropy"}
    done = await respond(MAIN, exit, trial=lambda kept: ("2}", 0.1), unsure=(step,))
    assert [trial.position for trial in done.response.trials] == [step - 2]
    done = await respond(MAIN, exit | {"entropy": 0.7}, unsure=(step,))
    assert done.response.trials == ()


async def test_minimum_thinking_and_most_trials(respond: Respond) -> None:
    late = await respond(MAIN, DEER | {"min_thinking": 15}, trial=sure_after(ONE))
    assert late.text("thinking_ids") == f"{ONE}\n\n{TWO}"
    assert len(late.response.trials) == 1
    few = await respond(MAIN, DEER | {"max_trials": 1}, trial=sure_after(TWO))
    assert few.text("thinking_ids") == THINKING
    assert len(few.response.trials) == 1


@pytest.mark.slow
async def test_an_answer_with_inner_braces_is_read_to_its_end(respond: Respond) -> None:
    said = "\\frac{1}{2}\\sqrt{2}}"
    done = await respond(MAIN, DEER | {"trial_tokens": 40}, trial=lambda kept: (said, 1.0))
    [trial] = done.response.trials
    assert trial.answer == "\\frac{1}{2}\\sqrt{2}"
    assert trial.tokens == len(said)
    assert trial.confidence == 1.0


@pytest.mark.parametrize("said", ["}", " }", "two two two", "\\frac{1}{2"])
async def test_no_answer_is_no_confidence(respond: Respond, said: str) -> None:
    done = await respond(MAIN, DEER | {"trial_tokens": 8}, trial=lambda kept: (said, 1.0))
    assert [trial.confidence for trial in done.response.trials] == [0.0] * 3
    assert all(trial.tokens <= 8 for trial in done.response.trials)
    assert done.response.exit_reason == "closed"


async def test_a_response_that_ends_or_runs_out_inside_its_thinking(respond: Respond) -> None:
    for exit in ({}, DEER):
        ended = (await respond(f"{ONE}\n\n{TWO}", exit)).response
        assert (ended.exit_reason, ended.complete) == ("unclosed", False)
        cut = (await respond(MAIN, exit, max_tokens=20)).response
        assert (cut.exit_reason, cut.complete) == ("length", False)
        assert len(cut.thinking_ids) + cut.answer_tokens == 20


async def test_the_conclusion_has_what_is_left_of_the_budget(respond: Respond) -> None:
    done = await respond(MAIN, DEER, max_tokens=len(ONE) + 2 + 3, trial=sure_after(ONE))
    assert done.response.exit_reason == "policy"
    assert not done.response.complete
    assert done.text("answer_ids") == "\\boxe"


@pytest.mark.parametrize(
    "fails",
    [
        lambda text: not text,
        lambda text: "boxed{" in text,
        lambda text: text.endswith("</think>\n\n"),
    ],
    ids=["main", "trial", "conclusion"],
)
async def test_a_request_that_goes_wrong_fails_the_response(
    respond: Respond, fails: Callable[[str], bool]
) -> None:
    done = await respond(MAIN, DEER, trial=sure_after(ONE), fails=fails)
    assert done.response.exit_reason == "failed"
    assert "engine on fire" in done.response.error


async def test_static_keeps_a_share_of_the_thinking(respond: Respond) -> None:
    done = await respond(MAIN, {"policy": "static", "fraction": 0.25})
    assert done.text("thinking_ids") == THINKING[: len(THINKING) // 4]
    assert done.text("answer_ids") == "\\boxed{2}<eos>"
    assert done.response.trial_tokens == 0


async def test_a_think_tag_of_the_models_own_is_not_thinking(respond: Respond) -> None:
    done = await respond("<think>" + MAIN, DEER, trial=sure_after(TWO))
    assert done.text("leading_ids") == "<think>"
    assert done.text("thinking_ids") == f"{ONE}\n\n{TWO}"
    total = len(done.response.thinking_ids) + done.response.answer_tokens
    assert total + done.response.trial_tokens == done.engine.generated


async def test_trials_are_greedy_and_short(respond: Respond) -> None:
    done = await respond(MAIN, DEER | {"trial_tokens": 7})
    trials = [sampling for _, sampling in done.engine.requests if not sampling.temperature]
    assert trials
    assert all(s == Sampling(7, 0.0, 1.0, stop=("}",), logprobs=0) for s in trials)


@pytest.mark.parametrize(
    ("said", "probability", "confidence", "tokens"),
    [
        ("{2}\n</think>", 0.8, 0.8, 12),
        ("{2}. I see.</think>", 0.8, 0.8, 19),
        ("{2}. I see it now.</think>", 0.8, 0.0, 20),  # `</think>` is not there in time
        ("{2}", 1.0, 0.0, 4),  # nor here: EOS ends the trial
        ("{}</think>", 1.0, 0.0, 10),
    ],
)
async def test_mode_qwen3_waits_for_the_end_of_the_thinking(
    respond: Respond, said: str, probability: float, confidence: float, tokens: int
) -> None:
    exit = {"policy": "deer", "mode": "qwen3", "monitor": "cue", "threshold": 0.9}
    done = await respond("So 2. Wait</think>", exit, trial=lambda kept: (said, probability))
    [trial] = done.response.trials
    assert trial.confidence == pytest.approx(confidence)
    assert trial.tokens == tokens


async def test_mode_pro_asks_four_inducers(respond: Respond) -> None:
    exit = {"policy": "deer", "mode": "pro", "monitor": "cue", "threshold": 0.6}
    done = await respond("So 2. Wait</think>", exit, trial=lambda kept: ("{2}", 0.7))
    [trial] = done.response.trials
    assert trial.confidence == pytest.approx(0.7)
    assert trial.tokens == 4 * len("{2}")
    trials = [text for text, sampling in done.engine.requests if not sampling.temperature]
    assert len(set(trials)) == 4
    assert all(text.startswith("So 2.") and text.endswith("\\boxed") for text in trials)
    assert done.response.exit_reason == "policy"
    assert done.response.inducer_tokens == sum(len(text) - len("So 2.") for text in trials)


@pytest.mark.parametrize(
    ("confidences", "expected", "answer"),
    [
        ([0.9, 0.9, 0.9, 0.9], 0.9, "0"),
        ([0.5, 1.0, 1.0, 0.5], 0.5, "1"),
        ([0.0, 0.0, 0.0, 1.0], 0.0, "3"),  # 0.25 - 0.375
        ([0.4], 0.4, "0"),
    ],
)
def test_disagreement_lowers_the_confidence(
    confidences: list[float], expected: float, answer: str
) -> None:
    tried = combine(
        [
            TrialResult(Trial(7, sure, str(number), "wrong", 2), "")
            for number, sure in enumerate(confidences)
        ]
    )
    assert tried.trial.confidence == pytest.approx(expected)
    assert (tried.trial.answer, tried.trial.position) == (answer, 7)
    assert tried.trial.tokens == 2 * len(confidences)


def test_an_inducer_that_fails_fails_the_trial() -> None:
    good, bad = Trial(7, 1.0, "2", "correct", 2), Trial(7, 0.0, "", "failed", 0)
    assert (
        combine([TrialResult(good, ""), TrialResult(bad, "on fire"), TrialResult(good, "")]).error
        == "on fire"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("said", "grade", "answer", "tokens"),
    [
        ("", "truncated", "", 1),  # EOS at once
        ("2", "truncated", "", 2),  # EOS before the brace
        ("}", "wrong", "", 1),
        ("{{2}", "truncated", "", 5),
        ("2\\}", "truncated", "", 4),
        ("2</think>}", "wrong", "2</think>", 10),
        ("2" * 30, "truncated", "", 20),
    ],
)
@pytest.mark.parametrize("overlap", [False, True])
async def test_a_bad_trial_is_counted_and_never_right(
    respond: Respond, said: str, grade: str, answer: str, tokens: int, overlap: bool
) -> None:
    exit = DEER | {"overlap": overlap, "threshold": 0.0, "max_trials": 1}
    done = await respond(MAIN, exit, trial=lambda kept: (said, 1.0))
    [trial] = done.response.trials
    assert (trial.grade, trial.answer, trial.tokens) == (grade, answer, tokens)
    sure = said == "2</think>}"
    assert trial.confidence == pytest.approx(float(sure))
    assert done.response.exit_reason == ("policy" if sure else "closed")


@pytest.mark.parametrize("overlap", [False, True])
async def test_trials_in_a_context_that_is_almost_full(respond: Respond, overlap: bool) -> None:
    prompt = (await respond(MAIN)).response.prompt_tokens
    inducer = len("\n</think>\n\n**Final Answer**\n\\boxed{")
    first = prompt + len(ONE) + inducer
    exit = DEER | {"overlap": overlap}
    room = await respond(MAIN, exit, context=first + 2, trial=lambda kept: ("2}", 0.5))
    assert [(trial.grade, trial.tokens) for trial in room.response.trials] == [
        ("correct", 2), ("truncated", 0), ("truncated", 0)
    ]  # fmt: skip
    tight = await respond(MAIN, exit, context=first + 1, trial=lambda kept: ("2}", 0.5))
    assert [(trial.grade, trial.tokens) for trial in tight.response.trials] == [
        ("truncated", 1), ("truncated", 0), ("truncated", 0)
    ]  # fmt: skip
    none = await respond(MAIN, exit, context=first, trial=lambda kept: ("2}", 1.0))
    assert {(trial.grade, trial.tokens) for trial in none.response.trials} == {("truncated", 0)}
    for done in (room, tight, none):
        assert done.response.exit_reason == "length"
        assert not done.response.complete


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    ("main", "positions", "reason"),
    [
        ("So 2. Wait", [], "unclosed"),  # EOS instead of the token after the cue
        ("So 2. Wait, no", [5], "unclosed"),
        ("So 2. Wait</think>x", [5], "closed"),  # `</think>` in eight tokens: open until the last
        ("So 2.</think> Wait, x. Wait, y", [], "closed"),
        ("So </think", [], "unclosed"),
        ("<think>Wait, 2. Wait, 3</think>x", [15], "closed"),
        ("<think>\nWait, 2.</think>x", [], "closed"),  # nothing was thought yet
    ],
)
async def test_where_thinking_ends(
    respond: Respond, main: str, positions: list[int], reason: str, overlap: bool
) -> None:
    done = await respond(main, CUE | {"overlap": overlap}, trial=lambda kept: ("{2}", 0.5))
    assert [trial.position for trial in done.response.trials] == positions
    assert done.response.exit_reason == reason
    assert done.text("leading_ids") + done.text("thinking_ids") + done.text("answer_ids") == (
        main + "<eos>"
    )
    assert done.response.complete == (reason == "closed")


def able(**changes: Any) -> Any:
    return SimpleNamespace(model="hosted", capabilities=Capabilities(**changes))


@pytest.mark.parametrize(
    ("exit", "can", "said"),
    [
        ({"policy": "deer"}, {"token_prompts": False}, "token prompts"),
        ({"policy": "budget"}, {"token_prompts": False}, "token prompts"),
        ({"policy": "deer"}, {"logprobs": None}, "policy deer needs logprobs"),
        ({"policy": "code"}, {"logprobs": None}, "policy code needs logprobs"),
        ({"policy": "deer", "monitor": "entropy"}, {"logprobs": 5}, "monitor entropy needs the 20"),
        (
            {"policy": "consistency", "monitor": "entropy"},
            {"logprobs": None},
            "monitor entropy needs the 20",
        ),
        ({"policy": "entropy"}, {"logprobs": 5}, "policy entropy needs the 20"),
        ({"policy": "nowait"}, {"banned": False}, "banned tokens"),
        ({"policy": "deer", "mode": "compat"}, {"logprobs": None}, "policy deer needs logprobs"),
        ({"policy": "deer", "mode": "qwen3"}, {"logprobs": None}, "policy deer needs logprobs"),
    ],
)
def test_an_engine_that_cannot_is_refused_at_the_start(
    exit: dict[str, Any], can: dict[str, Any], said: str
) -> None:
    policy = open_policy({"name": "mine", **exit})
    with pytest.raises(EngineError, match=said) as refused:
        policy.check(able(**can))
    assert "'mine'" in str(refused.value)
    assert "use " in str(refused.value)
    assert "\n" not in str(refused.value)
    policy.check(able())


@pytest.mark.parametrize(
    ("exit", "can"),
    [
        ({}, {"token_prompts": False, "logprobs": None, "banned": False}),
        ({"policy": "budget"}, {"logprobs": None}),
        ({"policy": "consistency"}, {"logprobs": None}),
        ({"policy": "deer"}, {"logprobs": 0}),
        ({"policy": "static"}, {"logprobs": None, "banned": False}),
    ],
)
def test_what_a_policy_does_not_need_is_not_asked_for(
    exit: dict[str, Any], can: dict[str, Any]
) -> None:
    open_policy({"name": "mine", **exit}).check(able(**can))
