"""DEER in mode fixed with `think_ratio`: thinking that is still open near the limit is closed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dto.calibration.replay import check
from dto.errors import RecipeError
from dto.recipe import TraceSettings, load_recipe
from dto.runs.run import settings_of
from dto.settings import open_policy
from tests.exits.conftest import CLOSE, CONCLUSION, Embedded, Respond
from tests.exits.test_policies import DEER, MAIN, ONE, THINKING, TWO, sure_after

LONG = "One and one. " * 40
UNSURE: Any = lambda kept: ("2}", 0.1)  # noqa: E731
FORCED = len(CONCLUSION) + 1  # tokens of a conclusion, with its EOS


@pytest.mark.parametrize(
    ("main", "ratio", "max_tokens", "kept", "reason"),
    [
        (LONG, 0.5, 100, LONG[:50], "budget"),
        (LONG, 0.51, 100, LONG[:51], "budget"),  # ends inside a word
        (LONG, 0.9, 100, LONG[:90], "budget"),
        (LONG, 0.6, 65, LONG[:38], "budget"),  # 39 tokens; a space at the end is withdrawn
        (LONG, 0.599, 100, LONG[:59], "budget"),  # rounded down
        (LONG, 0.0, 100, "", "budget"),
        # near misses: nothing to force
        (LONG, 1.0, 100, LONG[:100], "length"),
        (LONG, None, 100, LONG[:100], "length"),
        (MAIN, 0.9, 1000, THINKING, "closed"),
        (MAIN, (len(THINKING) + 8) / 100, 100, THINKING, "closed"),  # </think> is the last one
        (MAIN, (len(THINKING) + 10) / 100, 100, THINKING, "closed"),  # the limit is behind it
        (MAIN, (len(THINKING) + 7) / 100, 100, None, "budget"),  # </think is no end yet
    ],
)
@pytest.mark.parametrize("overlap", [False, True])
async def test_open_thinking_is_closed_at_the_limit(
    respond: Respond,
    main: str,
    ratio: float | None,
    max_tokens: int,
    kept: str | None,
    reason: str,
    overlap: bool,
) -> None:
    exit = DEER | {"overlap": overlap} | ({} if ratio is None else {"think_ratio": ratio})
    done = await respond(main, exit, max_tokens=max_tokens, trial=UNSURE)
    response = done.response
    assert response.exit_reason == reason
    if kept is not None:
        assert done.text("thinking_ids") == kept
    if reason == "budget":
        assert done.text("inserted_ids") == CLOSE
        assert done.text("answer_ids") == f"{CONCLUSION}<eos>" and response.complete
        used = len(response.thinking_ids) + response.withdrawn
        assert used == int((ratio or 0) * max_tokens) and response.answer_tokens == FORCED
    plain = await respond(main, max_tokens=max_tokens)
    if reason != "budget":
        assert response.answer_ids == plain.response.answer_ids
        assert response.complete == plain.response.complete


@pytest.mark.parametrize("overlap", [False, True])
async def test_an_exit_before_the_limit_is_as_without_it(respond: Respond, overlap: bool) -> None:
    exit = DEER | {"overlap": overlap}
    free = await respond(MAIN, exit, max_tokens=100, trial=sure_after(TWO))
    cut = len(f"{ONE}\n\n{TWO}") + 2
    for ratio in (0.9, (cut + 1) / 100):
        done = await respond(MAIN, exit | {"think_ratio": ratio}, max_tokens=100,
                             trial=sure_after(TWO))  # fmt: skip
        assert done.response == free.response
        assert done.response.exit_reason == "policy"
    for ratio in (cut / 100, (cut - 8) / 100):  # no trial is made at the last token
        done = await respond(MAIN, exit | {"think_ratio": ratio}, max_tokens=100,
                             trial=sure_after(TWO))  # fmt: skip
        assert done.response.exit_reason == "budget" and len(done.response.trials) == 1
    done = await respond(MAIN, exit | {"think_ratio": cut / 100}, max_tokens=100, trial=UNSURE)
    assert done.response.thinking_ids == free.response.thinking_ids


async def test_the_trials_made_before_the_limit_are_counted(respond: Respond) -> None:
    done = await respond(MAIN, DEER | {"think_ratio": 0.3, "max_trials": 1}, max_tokens=100,
                         trial=UNSURE)  # fmt: skip
    response = done.response
    assert [trial.position for trial in response.trials] == [len(ONE)]
    assert response.exit_reason == "budget" and response.would_leave == -1
    total = len(response.thinking_ids) + response.answer_tokens + response.trial_tokens
    assert total == done.engine.generated


async def test_a_failed_trial_fails_the_response_also_with_a_limit(respond: Respond) -> None:
    exit = DEER | {"think_ratio": 0.5}
    done = await respond(MAIN, exit, max_tokens=100, fails=lambda text: "boxed" in text)
    assert done.response.exit_reason == "failed" and "on fire" in done.response.error


async def test_shadow_forces_nothing(respond: Respond) -> None:
    exit = DEER | {"shadow": True}
    free = await respond(LONG, exit, max_tokens=100, trial=UNSURE)
    done = await respond(LONG, exit | {"think_ratio": 0.5}, max_tokens=100, trial=UNSURE)
    assert done.response == free.response and done.response.exit_reason == "length"


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ratio=st.floats(0.0, 1.0), max_tokens=st.integers(1, 160), resumable=st.booleans())
async def test_thinking_never_exceeds_the_share_and_both_forms_agree(
    respond: Respond, ratio: float, max_tokens: int, resumable: bool
) -> None:
    exit = DEER | {"think_ratio": ratio}
    one, other = [
        (await respond(MAIN, exit | {"overlap": overlap}, max_tokens=max_tokens, trial=UNSURE,
                       resumable=resumable)).response
        for overlap in (False, True)
    ]  # fmt: skip
    assert one == other
    if one.exit_reason == "budget":
        assert len(one.thinking_ids) + one.withdrawn <= ratio * max_tokens
    assert len(one.thinking_ids) + one.answer_tokens <= max_tokens


@pytest.mark.slow
async def test_the_embedded_model_answers_in_time(embedded: Embedded) -> None:
    exit = {"policy": "deer", "monitor": "paragraph", "inducer": "closed", "threshold": 1.0}
    free = await embedded.responses(60, **exit)
    forced = await embedded.responses(60, **exit, think_ratio=0.5)
    assert any(each.exit_reason == "length" for each in free)
    assert not any(each.exit_reason == "length" and not each.answer_ids for each in forced)
    assert sum(each.complete for each in forced) > sum(each.complete for each in free)
    assert {each.exit_reason for each in forced} <= {"budget", "closed", "length"}


def test_traces_have_no_forced_answers() -> None:
    deer = {"name": "x", "policy": "deer", "monitor": "paragraph", "inducer": "closed"}
    check(open_policy(deer), TraceSettings())
    with pytest.raises(RecipeError, match="think_ratio forces an answer where the traces") as error:
        check(open_policy(deer | {"think_ratio": 0.9}), TraceSettings())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("policy", ["consistency", "code"])
def test_other_policies_do_not_have_it(policy: str) -> None:
    with pytest.raises(ValueError, match="think_ratio"):
        open_policy({"name": "x", "policy": policy, "think_ratio": 0.9})


def test_recipes_that_do_not_use_later_settings_keep_their_digests() -> None:
    """A key that is not given is neither in the configuration of a stage nor in a stored recipe."""
    recipe = load_recipe("pipelines/quickstart.yaml")
    text = str(recipe.model_dump(mode="json")) + str(settings_of(recipe))
    for key in ("think_ratio", "teacher", "filter", "evaluate.server", "evaluate.engine"):
        assert key not in text
    given = load_recipe("pipelines/quickstart.yaml", {"problems.filter": "numeric"})
    assert settings_of(given) == settings_of(recipe) | {"problems.filter": "numeric"}
