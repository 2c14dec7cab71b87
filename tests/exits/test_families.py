"""Every policy on every family's tags: responses are closed once, by the model's own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from dto.context import Context
from dto.exits import ExitedResponse, answer
from dto.exits.monitor import Monitor
from dto.grading import Grader
from dto.protocols import Sampling
from dto.recipe import Recipe
from dto.records import Problem
from dto.settings import ExitPolicy, MonitorSettings, open_policy
from dto.tags import think_tags
from dto.trajectories import prompt_ids
from tests.engines.scripted import ScriptedEngine
from tests.families import FAMILIES, tokenizer_of

PROBLEM = Problem("p" * 16, "toy", "test", "1 + 1?", "2")
STEPS = ("One and one is 2.", "Wait, is it? It is.", "So it is 2.")
DEER = {"policy": "deer", "threshold": 0.5, "monitor": "paragraph"}
EXITS: dict[str, dict[str, Any]] = {
    "none": {},
    "static": {"policy": "static", "fraction": 0.5},
    "budget": {"policy": "budget", "budget": 20, "grace": 0},
    "deer cue": {**DEER, "monitor": "cue"},
    "deer closed": {**DEER, "inducer": "closed"},
    "deer overlapped": {**DEER, "overlap": True},
    "deer qwen3": {**DEER, "mode": "qwen3", "trial_tokens": 60},  # a tag of many bytes
    "deer compat": {"policy": "deer", "mode": "compat", "confidence": "mean", "threshold": 0.5},
    "deer pro": {**DEER, "mode": "pro"},
    "consistency": {"policy": "consistency", "monitor": "paragraph", "agree": 2},
    "entropy": {"policy": "entropy", "monitor": "paragraph", "smoothing": 1.0, "variance": 9.0},
    "no_thinking": {"policy": "no_thinking"},
    "nowait": {"policy": "nowait"},
}
NEVER_LEAVE = {"none", "nowait"}


def written_by(name: str, requests: list[tuple[str, Sampling]]) -> ScriptedEngine:
    """A model that goes on from its thinking, answers an inducer, and concludes."""
    tokenizer, family = tokenizer_of(name), FAMILIES[name]
    open, close = family.think
    start = "" if family.opens else f"{open}\n"
    main = start + "\n\n".join(STEPS) + f"\n{close}\n\n\\boxed{{2}}"

    def script(text: str, sampling: Sampling) -> Sequence[str]:
        said = text[len(prompt) :]
        requests.append((said, sampling))
        if said.endswith("\\boxed"):
            return ["{2}\n" + close]
        if said.endswith("\\boxed{"):
            return ["2}"]
        if main.startswith(said):
            return [main[len(said) :]]
        if close in said:
            return ["\\boxed{2}"]
        return [f"\n{close}\n\n\\boxed{{2}}"]

    prompt = str(tokenizer.decode(list(prompt_ids(PROBLEM.question, tokenizer, family.settings))))
    return ScriptedEngine(script, tokenizer, resumable=True)


async def responded(
    name: str, exit: dict[str, Any], requests: list[tuple[str, Sampling]], **changes: Any
) -> ExitedResponse:
    family = FAMILIES[name]
    recipe = Recipe(name="test", model=family.settings)
    ctx = Context(recipe, written_by(name, requests), Grader(workers=1))
    prompt = prompt_ids(PROBLEM.question, ctx.tokenizer, family.settings)
    settings = open_policy({"name": "exit", **exit})
    sampling = Sampling(**{"max_tokens": 400, "temperature": 1.0, "top_p": 1.0, **changes})
    return await answer(PROBLEM, prompt, settings, ctx, sampling)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("exit", EXITS)
async def test_a_response_is_closed_once_by_the_models_own_tokens(name: str, exit: str) -> None:
    family, tokenizer = FAMILIES[name], tokenizer_of(name)
    tags = think_tags(tokenizer, family.settings)
    requests: list[tuple[str, Sampling]] = []
    found = await responded(name, EXITS[exit], requests)
    ids = (*found.leading_ids, *found.thinking_ids, *found.inserted_ids, *found.answer_ids)
    whole = str(tokenizer.decode(list(ids)))
    assert found.exit_reason == {"none": "closed", "nowait": "closed", "budget": "budget"}.get(
        exit, "policy"
    ), found.error
    assert found.complete and found.conclusion.endswith("\\boxed{2}")
    assert whole.count(tags.close) == 1 and "</think>" not in whole.replace(tags.close, "")
    # The opening stands once: in the prompt, or else in the response.
    assert whole.count(tags.open) == (0 if family.opens else 1)
    if tags.close_ids:
        size = len(tags.close_ids)
        at = [i for i in range(len(ids)) if ids[i : i + size] == tags.close_ids]
        assert len(at) == 1
    if exit not in NEVER_LEAVE:
        assert tags.close in tokenizer.decode(list(found.inserted_ids))
    thinking = str(tokenizer.decode(list(found.thinking_ids)))
    assert tags.close not in thinking
    if "compat" not in exit:
        assert tags.open not in thinking
    for said, _ in requests:  # the model is never shown another one's tag
        assert "</think>" not in said.replace(tags.close, "")


async def test_a_prompt_that_closed_the_thinking_has_nothing_to_leave() -> None:
    settings = FAMILIES["qwen3"].settings.model_copy(
        update={"template": {"enable_thinking": False}}
    )
    tokenizer = tokenizer_of("qwen3")
    said = "It is so.\n\nWait, yes.\n\n\\boxed{2}"
    prompt = prompt_ids(PROBLEM.question, tokenizer, settings)
    for exit in EXITS:
        engine = ScriptedEngine(lambda text, sampling: [said], tokenizer)
        ctx = Context(Recipe(name="test", model=settings), engine, Grader(workers=1))
        given = open_policy({"name": "exit", **EXITS[exit]})
        found = await answer(PROBLEM, prompt, given, ctx, Sampling(400, temperature=1.0))
        assert (found.exit_reason, found.conclusion, found.thinking_ids) == ("closed", said, ())
        assert len(engine.requests) == 1 and not found.trials


async def test_an_exit_inside_a_close_of_several_tokens_leaves_none_of_it() -> None:
    family, tokenizer = FAMILIES["gpt-oss"], tokenizer_of("gpt-oss")
    tags = think_tags(tokenizer, family.settings)
    before = len(tags.encode(tokenizer, f"{tags.open}\n" + "\n\n".join(STEPS) + "\n"))
    for inside in (1, 5, len(tags.close_ids) - 1):
        exit = {"policy": "budget", "budget": before + inside, "grace": 0}
        found = await responded("gpt-oss", exit, [])
        ids = (*found.leading_ids, *found.thinking_ids, *found.inserted_ids)
        whole = str(tokenizer.decode(list(ids)))
        assert found.exit_reason == "budget"
        assert whole.count(tags.close) == 1 and whole.count("<|end|>") == 1


@pytest.mark.parametrize(
    ("name", "text"), [("r1", "Hm.[/THINK]\\boxed{2}"), ("qwen3", "[THINK]Hm")]
)
async def test_a_response_in_foreign_tags_has_no_grade(name: str, text: str) -> None:
    tokenizer, settings = tokenizer_of(name), FAMILIES[name].settings
    engine = ScriptedEngine(lambda _, sampling: [text], tokenizer)
    ctx = Context(Recipe(name="test", model=settings), engine, Grader(workers=1))
    prompt = prompt_ids(PROBLEM.question, tokenizer, settings)
    found = await answer(PROBLEM, prompt, ExitPolicy(name="none"), ctx, Sampling(400))
    assert (found.exit_reason, found.finish_reason) == ("failed", "failed")
    assert "foreign_tags: " in found.error and '["[THINK]", "[/THINK]"]' in found.error


async def test_every_request_says_how_much_of_the_response_is_written() -> None:
    for exit, changes in EXITS.items():
        requests: list[tuple[str, Sampling]] = []
        await responded("r1", changes, requests, presence_penalty=0.5)
        tokenizer = tokenizer_of("r1")
        for said, sampling in requests:
            if sampling.presence_penalty:
                written = len(tokenizer.encode(said, add_special_tokens=False))
                assert sampling.written == written, (exit, said)
            else:
                assert not sampling.temperature or "compat" in exit  # trials


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("every", [1, 3, 8])
def test_no_trial_begins_inside_a_close_of_several_tokens(name: str, every: int) -> None:
    tokenizer = tokenizer_of(name)
    tags = think_tags(tokenizer, FAMILIES[name].settings)
    ids = tags.encode(tokenizer, f"{STEPS[0]} {STEPS[1]}\n{tags.close}\n\n\\boxed{{2}}")
    monitor = Monitor(tokenizer, MonitorSettings(monitor="tokens", every=every), tags)
    cuts = [found.cut for found in monitor.scan(ids, ended=True)]
    assert cuts and not any(tags.unfinished(ids[:cut]) for cut in cuts)
