"""Policies are opened by short name or import path, each with the keys that it reads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dto.errors import RecipeError
from dto.exits.deer import Deer
from dto.policies.compat import Compat
from dto.policies.without_trials import Budget
from dto.recipe import known_recipe, make_recipe
from dto.settings import POLICIES, ExitPolicy, OpaquePolicy, open_policy
from tests.exits.conftest import Respond

TRIALS = [
    "monitor", "every", "entropy", "overlap", "shadow", "min_thinking", "cooldown", "max_trials",
    "trial_share",
]  # fmt: skip
KEYS = {
    "none": [],
    "static": ["fraction"],
    "budget": ["budget", "grace", "think_ratio", "trial_tokens"],
    "deer": [*TRIALS, "mode", "inducer", "confidence", "threshold", "trial_tokens", "think_ratio"],
    "deer compat": ["mode", "confidence", "threshold", "max_trials", "trial_tokens", "think_ratio"],
    "deer qwen3": [*TRIALS, "mode", "threshold", "trial_tokens"],
    "deer pro": [*TRIALS, "mode", "confidence", "threshold", "trial_tokens"],
    "consistency": [*TRIALS, "agree", "inducer", "confidence", "trial_tokens"],
    "entropy": [*TRIALS, "smoothing", "variance"],
    "no_thinking": [],
    "nowait": [],
    "code": [*TRIALS, "inducer", "threshold", "trial_tokens"],
}
VALUES: dict[str, Any] = {
    "monitor": "tokens", "every": 7, "entropy": 0.5, "overlap": True, "shadow": True,
    "min_thinking": 3, "cooldown": 4, "max_trials": 5, "trial_share": 0.25, "fraction": 0.25,
    "budget": 30, "grace": 0, "think_ratio": 0.5, "trial_tokens": 9, "inducer": "closed",
    "confidence": "min", "threshold": 0.75, "agree": 2, "smoothing": 0.4, "variance": 0.5,
}  # fmt: skip
MODULE = """
import dto

class Phrase(dto.ExitPolicy):
    phrase: str = "so"

    async def leave(self, path, problem, ctx):
        while path.thinking and self.phrase not in path.text():
            await path.advance(stop=("\\n\\n",))
        return await path.leave()

number = 5
"""
MAIN = "One and one.\n\nso it is 2.\n\nWait, is it?\n</think>\n\n\\boxed{2}"


def settings_of(policy: str) -> dict[str, Any]:
    """An exit that sets every key of a policy, no key to its default."""
    name, _, mode = policy.partition(" ")
    settings = {"name": "x", "policy": name, **{key: VALUES.get(key) for key in KEYS[policy]}}
    if "mode" in settings:
        settings["mode"] = mode or "fixed"
    return settings


def recipe_of(exit: Any) -> Any:
    return make_recipe({"name": "r", "evaluate": {"exits": [exit]}})


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package outside dto, in a folder that Python searches; gone afterwards."""
    (tmp_path / "leaving.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "leaving", raising=False)
    return "leaving:Phrase"


def test_the_table_has_every_policy() -> None:
    assert set(KEYS) == set(POLICIES)
    assert {key for keys in KEYS.values() for key in keys} == {*VALUES, "mode"}


@pytest.mark.parametrize("policy", KEYS)
def test_a_policy_has_the_keys_that_it_reads_and_no_others(policy: str) -> None:
    settings = settings_of(policy)
    opened = open_policy(settings)
    assert opened.changed() == settings
    for key in {*VALUES} - {*settings}:
        with pytest.raises(RecipeError) as refused:
            recipe_of(settings | {key: VALUES[key]})
        message = str(refused.value)
        assert f"unknown key 'evaluate.exits.0.{key}'" in message and "\n" not in message
        allowed = message.partition("allowed: ")[2].split(", ")
        assert sorted(allowed) == sorted({"name", "policy", *KEYS[policy]})


@pytest.mark.parametrize("policy", KEYS)
@pytest.mark.parametrize("only", [{}, {"exclude_unset": True}, {"exclude_defaults": True}])
def test_a_policy_survives_the_recipe_of_its_run(policy: str, only: dict[str, bool]) -> None:
    for exit in (settings_of(policy), {"name": "x", **only_required(policy)}):
        recipe = recipe_of(exit)
        dumped = yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json", **only)))
        [again] = make_recipe(dumped).evaluate.exits
        [first] = recipe.evaluate.exits
        assert (type(again), again.model_dump()) == (type(first), first.model_dump())


def only_required(policy: str) -> dict[str, str]:
    name, _, mode = policy.partition(" ")
    return {"policy": name} | ({"mode": mode} if mode else {})


def test_a_policy_built_in_python_names_itself(module: str) -> None:
    assert Deer(name="x", threshold=0.5).changed() == {
        "name": "x", "policy": "deer", "threshold": 0.5
    }  # fmt: skip
    assert ExitPolicy(name="x") == open_policy({"name": "x"})
    assert Budget(name="x") == open_policy({"name": "x", "policy": "budget"})
    foreign = type(open_policy({"name": "x", "policy": module}))
    assert open_policy(foreign(name="y").changed()) == foreign(name="y")
    assert isinstance(open_policy(Compat(name="x", mode="compat").changed()), Compat)


@pytest.mark.parametrize(
    ("exit", "message"),
    [
        ({"policy": "dear"}, r"policy 'dear' is neither built in \(did you mean 'deer'\?\)"),
        ({"policy": "dear"}, "use none, static, budget, deer, consistency, entropy, no_thinking"),
        ({"policy": "deer", "mode": "qwen"}, "evaluate.exits.0.mode = 'qwen': Input should be"),
        ({"policy": "absent.exits:Phrase"}, "policy 'absent.exits:Phrase': module 'absent' is"),
        ({"policy": "leaving:Phrases"}, r"defines no 'Phrases' \(did you mean 'Phrase'\?\)"),
        ({"policy": "leaving:number"}, "'leaving:number' is not a subclass of dto.ExitPolicy"),
        ({"policy": "leaving:dto.Problem"}, "is not a subclass of dto.ExitPolicy"),
        ({"policy": "leaving:Phrase", "phrases": "a"},
         r"key 'evaluate.exits.0.phrases' \(did you mean 'phrase'\?\); allowed: name, policy, phr"),
        ({"policy": "leaving:Phrase", "phrase": 5}, "evaluate.exits.0.phrase = 5: Input should be"),
        ("deer", "an exit is a mapping, such as {name: early, policy: deer}"),
        ({"policy": 7}, "'7' is neither built in"),
    ],
)  # fmt: skip
def test_a_policy_that_cannot_be_opened_is_refused_in_one_line(
    module: str, exit: Any, message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as refused:
        recipe_of({"name": "x", **exit} if isinstance(exit, dict) else exit)
    assert "\n" not in str(refused.value) and "evaluate.exits.0" in str(refused.value)


async def test_a_policy_of_another_package_leaves(module: str, respond: Respond) -> None:
    done = await respond(MAIN, {"policy": module, "phrase": "so"})
    assert done.text("thinking_ids") == "One and one.\n\nso it is 2."
    assert (done.response.exit_reason, done.response.conclusion) == ("policy", "\\boxed{2}")
    assert done.response.withdrawn == len("\n\n")
    plain, never = await respond(MAIN), await respond(MAIN, {"policy": module, "phrase": "no"})
    assert never.response == plain.response
    cut = await respond(MAIN, {"policy": module, "phrase": "no"}, max_tokens=20)
    assert (cut.response.exit_reason, cut.response.complete) == ("length", False)


async def test_the_recipe_of_a_run_is_read_without_its_packages(respond: Respond) -> None:
    exit = {"name": "x", "policy": "absent.exits:Phrase", "phrase": "so"}
    early = {"name": "early", "policy": "deer", "threshold": 0.5}
    data = {"name": "r", "evaluate": {"exits": [exit, {**early, "aura": "blue"}]}}
    recipe, unknown = known_recipe(data, "recipe")
    policy, deer = recipe.evaluate.exits
    assert unknown == ("evaluate.exits.1.aura",)
    assert isinstance(policy, OpaquePolicy) and isinstance(deer, Deer)
    assert recipe.model_dump()["evaluate"]["exits"][0] == exit
    assert (policy.changed(), deer.changed()) == (exit, early)
    with pytest.raises(RecipeError, match=r"exit 'x': policy absent\.exits:Phrase was not im"):
        await respond(MAIN, policy=policy)
