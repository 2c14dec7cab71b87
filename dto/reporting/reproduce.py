"""How a run is done again: the command, and what it was done with. Nothing names a machine.

Local files and folders are shown by their last part, servers by an address that is none
(`dto.redact`): a report is sent to people whose paths differ, and who need not know ours.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dto.pipeline import STAGES, needed
from dto.prompts import resource
from dto.recipe import Recipe, load_recipe
from dto.redact import NO_KEY, Redaction, public_names, texts_of
from dto.runs import manifest
from dto.runs.reader import RunReader

MOST_CHANGES = 12
"""With more changes than these a command says less than the recipe itself."""
_ALWAYS = ("seed", "model.name", "model.engine", "problems.source")
"""Settings that are shown though they be the defaults."""


@dataclass(frozen=True, slots=True)
class Reproduction:
    """How to get a run again.

    `recipe` is YAML: what the run's recipe sets other than the defaults; `command` reads it. It has
    a line for each stage where `dto run` would do more than was done, or less.

    `packaged`: the command reads a recipe that comes with the package instead. `hidden` are the
    names that stand for local files, folders and servers. `versions` and `git` are those of the
    last stage; `stages` has what each stage's table holds, as a hash, and `others` names stages
    that another version or commit has computed.
    """

    command: str
    recipe: str
    packaged: bool
    hidden: tuple[str, ...]
    seed: int
    versions: Mapping[str, str]
    git: Mapping[str, Any] | None
    stages: Mapping[str, str]
    others: tuple[str, ...]


def reproduction(run: RunReader) -> Reproduction:
    """Read from the recipe and the manifests of the run."""
    recipe = run.recipe
    own, hidden = public_settings(recipe)
    changes, name = _changes(recipe, own)
    packaged = name is not None and len(changes) <= MOST_CHANGES
    target = shlex.quote(name if name is not None and packaged else f"{_slug(recipe.name)}.yaml")
    if packaged:
        target += "".join(
            f" \\\n    --set {shlex.quote(f'{key}={_value(value)}')}"
            for key, value in changes.items()
        )
    found = {stage: done for stage in STAGES if (done := run.manifest(stage)) is not None}
    last = next(reversed(found.values()), {})
    keys = ("versions", "git")
    return Reproduction(
        command=_command(run, target, [*found]),
        recipe=yaml.safe_dump(nested(own), sort_keys=False, allow_unicode=True),
        packaged=packaged,
        hidden=hidden,
        seed=recipe.seed,
        versions=last.get("versions") or {},
        git=last.get("git"),
        stages={
            stage: str(done["content"]) for stage, done in found.items() if done.get("content")
        },
        others=tuple(
            stage for stage, done in found.items() if any(done.get(k) != last.get(k) for k in keys)
        ),
    )


def _command(run: RunReader, target: str, finished: list[str]) -> str:
    """What computes the stages that are finished: not all that the recipe asks for, or more."""
    suffix = " --allow-code-execution" if _runs_programs(run) else ""
    recipe = run.recipe
    owed = needed(recipe)
    stages = [stage for stage in finished if stage not in ("problems", "test")]
    if recipe.compare.methods or not stages:
        stages = ["run"]
    elif {*owed} <= {*finished}:
        stages = ["run", *(stage for stage in stages if stage not in owed)]
    again = shlex.quote(f"runs/{_public_name(recipe.name)}")
    lines = [f"dto {stages[0]} {target}{suffix}"]
    lines += [f"dto {stage} {again}{suffix}" for stage in stages[1:]]
    return "\n".join(lines if stages == ["run"] else [*lines, f"dto report {again}"])


def public_settings(recipe: Recipe) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What a recipe sets other than the defaults, by dotted key, and which names hide a place."""
    whole = manifest.flatten(recipe.model_dump(mode="json"))
    flat = {"name": recipe.name, **{key: whole[key] for key in _ALWAYS}}
    flat |= manifest.flatten(recipe.model_dump(mode="json", exclude_defaults=True))
    flat |= {key: NO_KEY for key in flat if key.endswith(".api_key")}
    redaction = Redaction.of(recipe)
    hidden = (redaction.replaced.get(text) for _, text in texts_of(flat))
    return redaction.data(flat), tuple(dict.fromkeys(filter(None, hidden)))


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as groups of settings again."""
    data: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        place = data
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return data


def _changes(recipe: Recipe, own: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """What to set on top of the packaged recipe of the same name; its name is None without one."""
    for folder in ("", "baselines/"):
        path = Path(str(resource("pipelines"))) / f"{folder}{recipe.name}.yaml"
        if path.parent.name in ("pipelines", "baselines") and path.is_file():
            break
    else:
        return {}, None
    packaged, _ = public_settings(load_recipe(path))
    changes = {key: value for key, value in own.items() if packaged.get(key) != value}
    default = manifest.flatten(recipe.model_dump(mode="json"))
    changes |= {key: default.get(key) for key in packaged if key not in own}
    return changes, f"pipelines/{folder}{recipe.name}.yaml"


def _value(value: Any) -> str:
    """As it is written after `--set KEY=`: YAML in one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    text = text.strip().removesuffix("...").strip()
    return json.dumps(value, ensure_ascii=False) if "\n" in text else text


def _runs_programs(run: RunReader) -> bool:
    return any(
        run.count(stage, answer_kind="code") > 0
        for stage in ("problems", "test")
        if run.table(stage).is_file()
    )


def _public_name(name: str) -> str:
    return public_names([name])[name]


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", _public_name(name)).strip("-.") or "recipe"


def content_of_sources(run: RunReader) -> dict[str, str]:
    """What local sources held, by the names they are shown with, as hashes."""
    found: dict[str, str] = {}
    for stage in STAGES:
        config: Mapping[str, Any] = (run.manifest(stage) or {}).get("config") or {}
        for key, value in config.items():
            _, marked, source = key.partition("content of ")
            if marked and isinstance(value, str):
                found[_public_name(source)] = value
            elif key == "weights" and isinstance(value, str):
                found[f"weights of {_public_name(str(config.get('model.name')))}"] = value
    return found
