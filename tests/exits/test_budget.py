from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dto.exits import ExitedResponse
from tests.exits.conftest import CLOSE, Embedded, Respond

END = "\n</think>\n\n\\boxed{2}"


async def forced(respond: Respond, main: str, **exit: int | float) -> Any:
    return await respond(main + END, {"policy": "budget", **exit})


@pytest.mark.parametrize(
    ("main", "exit", "kept"),
    [
        ("One and one. It is two. Yes.", {"budget": 5, "grace": 20}, "One and one."),
        ("One and one. It is two. Yes.", {"budget": 12, "grace": 20}, "One and one."),
        ("One and one. It is two. Yes.", {"budget": 14, "grace": 20}, "One and one. It is two."),
        ("One and one. It is two. Yes.", {"budget": 5, "grace": 3}, "One a"),
        ("One and one. It is two. Yes.", {"budget": 5, "grace": 0}, "One a"),
        ("One and one. It is two. Yes.", {"budget": 4, "grace": 0}, "One"),  # a space says nothing
        ("So x is 3.5 metres! Then on.", {"budget": 4, "grace": 20}, "So x is 3.5 metres!"),
        ("So x is 3.5 metres! Then on.", {"budget": 10, "grace": 20}, "So x is 3.5 metres!"),
        ("So x is 3. Then on.", {"budget": 4, "grace": 20}, "So x is 3."),
        ("**One and one.** Then on.", {"budget": 16, "grace": 20}, "**One and one.**"),
        ("One and one\nis two", {"budget": 4, "grace": 20}, "One and one"),
        ("一加一等于二。是吗？", {"budget": 6, "grace": 60}, "一加一等于二。"),
        ("一加一等于二。是吗？", {"budget": 7, "grace": 0}, "一加"),  # two characters and a byte
    ],
)
async def test_the_thinking_ends_with_its_sentence_or_at_a_border(
    respond: Respond, main: str, exit: dict[str, int], kept: str
) -> None:
    done = await forced(respond, main, **exit)
    response: ExitedResponse = done.response
    assert done.text("thinking_ids") == kept
    assert done.text("inserted_ids") == CLOSE
    assert done.text("answer_ids") == "\\boxed{2}<eos>"
    assert (response.exit_reason, response.complete) == ("budget", True)
    used = len(response.thinking_ids) + response.withdrawn
    assert used <= exit["budget"] + exit["grace"]
    assert used + response.answer_tokens == done.engine.generated


async def test_thinking_within_the_budget_is_left_alone(respond: Respond) -> None:
    for budget in (len("One."), 500):
        plain = await respond("One." + END)
        done = await forced(respond, "One." + END, budget=budget + len(END), grace=0)
        assert done.response.exit_reason == "closed"
        assert done.response.thinking_ids == plain.response.thinking_ids
    in_grace = await forced(respond, "One and one", budget=3, grace=30)
    assert in_grace.text("thinking_ids") in ("One and one", "One and one\n")


async def test_thinking_that_ends_unclosed_is_closed(respond: Respond) -> None:
    done = await respond("One and one.", {"policy": "budget", "budget": 100})
    assert done.text("thinking_ids") == "One and one."
    assert (done.response.exit_reason, done.response.complete) == ("budget", True)
    assert done.response.withdrawn == 1  # its end of sequence


async def test_a_share_of_the_tokens_is_kept_for_the_conclusion(respond: Respond) -> None:
    done = await respond("One. " * 50, {"policy": "budget", "think_ratio": 0.5}, max_tokens=120)
    assert done.text("thinking_ids") == "One. " * 9 + "One."
    assert done.response.exit_reason == "budget"
    assert done.response.complete


async def test_a_conclusion_that_does_not_end_gives_way_to_a_bare_answer(respond: Respond) -> None:
    exit = {"policy": "budget", "budget": 5, "grace": 20}
    for main in ("One and one. It is two.", "One and one.\n</think>\n\n" + "So it is. " * 9):
        done = await respond(main, exit, max_tokens=60, conclusion="So it is. " * 9)
        response = done.response
        assert done.text("thinking_ids").rstrip() == "One and one."
        assert done.text("inserted_ids") == "\n</think>\n\n**Final Answer**\n\\boxed{"
        assert done.text("answer_ids") == "2}"
        assert response.conclusion == "\n\n**Final Answer**\n\\boxed{2}"
        assert (response.exit_reason, response.complete) == ("budget", True)
        assert (
            len(response.thinking_ids) + response.answer_tokens + response.withdrawn
            == done.engine.generated
        )


@pytest.mark.parametrize("fails", [lambda text: not text, lambda text: CLOSE in text])
async def test_a_request_that_goes_wrong_fails_the_response(respond: Respond, fails: Any) -> None:
    done = await respond("One.", {"policy": "budget", "budget": 2}, fails=fails)
    assert (done.response.exit_reason, done.response.error) == ("failed", "engine on fire")


@given(
    words=st.lists(st.sampled_from(["So", "3.", "3.5", "two.", "\n", "!"]), max_size=30),
    budget=st.integers(1, 60),
    grace=st.integers(0, 30),
    max_tokens=st.integers(2, 120),
    ratio=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_an_answer_is_always_left(
    respond: Respond, words: list[str], budget: int, grace: int, max_tokens: int, ratio: float
) -> None:
    exit = {"policy": "budget", "budget": budget, "grace": grace, "think_ratio": ratio}
    done = await respond(" ".join(words) + END, exit, max_tokens=max_tokens)
    response = done.response
    assert response.complete
    assert "\\boxed{2}" in response.conclusion
    assert len(response.thinking_ids) + len(response.answer_ids) <= max_tokens
    if response.exit_reason == "budget":
        assert len(response.thinking_ids) <= budget + grace


@pytest.mark.slow
async def test_the_embedded_model_always_answers(embedded: Embedded) -> None:
    for max_tokens in (4, 20, 40, 200):
        for response in await embedded.responses(max_tokens, policy="budget", budget=30, grace=25):
            assert response.complete
            assert "\\boxed{" in response.conclusion
            assert len(response.thinking_ids) <= 55
            assert len(response.thinking_ids) + response.answer_tokens <= max_tokens
            if max_tokens == 200 and response.exit_reason == "budget":
                text = embedded.ctx.tokenizer.decode(response.thinking_ids)
                assert text.endswith(".")
