from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dto.engines.base import Sampling

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


async def test_budget_forces_the_answer(respond: Respond) -> None:
    done = await respond(MAIN, {"policy": "budget", "budget": 10})
    assert done.text("thinking_ids") == MAIN[:10]
    assert done.text("answer_ids") == "\\boxed{2}<eos>"
    assert (done.response.exit_reason, done.response.trial_tokens) == ("budget", 0)
    own = await respond(MAIN, {"policy": "budget", "budget": len(THINKING) + 12})
    assert own.response.exit_reason == "closed"
    assert own.text("thinking_ids") + own.text("answer_ids") == MAIN + "<eos>"


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
