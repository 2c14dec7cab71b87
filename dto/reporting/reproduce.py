"""How a run is done again: the command, and what it was done with. Nothing names a machine.

Local files and folders are shown by their last part, servers by an address that is none
(`dto.redact`): a report is sent to people whose paths differ, and who need not know ours.
"""

from __future__ import annotations

import re
import shlex
from typing import Any

import yaml

from dto.pipeline import STAGES, needed
from dto.recipe import Recipe
from dto.redact import NO_KEY, Redaction, public_names, texts_of
from dto.reporting.page import Section
from dto.reporting.table import Table
from dto.runs.reader import RunReader


def reproduce_section(run: RunReader) -> Section:
    """The command, the recipe, versions, commit, and hashes of what went in and came out."""
    settings, hidden = public_settings(run.recipe)
    found = {stage: done for stage in STAGES if (done := run.manifest(stage)) is not None}
    last: dict[str, Any] = next(reversed(found.values()), {})
    git, versions = last.get("git"), last.get("versions") or {}
    others = [
        stage
        for stage, done in found.items()
        if any(done.get(key) != last.get(key) for key in ("versions", "git"))
    ]
    text = ["Save the recipe at the end under the name that the command has."]
    if git and git.get("dirty"):
        text.append("The checkout held changes beside the commit below.")
    if hidden:
        text.append(
            f"{', '.join(hidden)}: shown by the last part of the name, put your own place there."
        )
    text.append(
        f"Run seed {run.recipe.seed}: the seed of every request is derived from it and from the "
        "row's id, never from the order."
    )
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    notes = [
        f"Versions: {named or 'not recorded'}.",
        "With other versions, another device or another number of threads, trained weights may "
        "differ in their last digits, and what they answer with them; the hashes tell what is the "
        "same.",
    ]
    if others:
        notes.append(f"Of another version or commit: {', '.join(others)}.")
    commands = [f"git checkout {shlex.quote(str(git['commit']))}"] if git else []
    return Section(
        "reproduce",
        "Do it again",
        tuple(text),
        tables=(
            Table(
                "Hashes of what went in and what came out",
                ("what", "hash"),
                tuple(_hashes(found)),
                left=2,
                folded=True,
            ),
        ),
        notes=tuple(notes),
        code="\n".join([*commands, command(run)]),
        folded=(
            "The recipe: what it sets other than the defaults",
            yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        ),
    )


def command(run: RunReader) -> str:
    """What computes the stages that are finished: not all that the recipe asks for, or more."""
    recipe = run.recipe
    name = public_names([recipe.name])[recipe.name]
    target = (re.sub(r"[^\w.-]+", "-", name).strip("-.") or "recipe") + ".yaml"
    programs = any(
        run.count(stage, answer_kind="code") > 0
        for stage in ("problems", "test")
        if run.table(stage).is_file()
    )
    suffix = " --allow-code-execution" if programs else ""
    owed, finished = needed(recipe), [stage for stage in STAGES if run.manifest(stage)]
    stages = [stage for stage in finished if stage not in ("problems", "test")]
    if recipe.compare.methods or not stages:
        stages = ["run"]
    elif {*owed} <= {*finished}:
        stages = ["run", *(stage for stage in stages if stage not in owed)]
    again = shlex.quote(f"runs/{name}")
    lines = [f"dto {stages[0]} {target}{suffix}"]
    lines += [f"dto {stage} {again}{suffix}" for stage in stages[1:]]
    return "\n".join(lines if stages == ["run"] else [*lines, f"dto report {again}"])


def public_settings(recipe: Recipe) -> tuple[dict[str, Any], list[str]]:
    """What a recipe sets other than the defaults, and which names hide a place.

    Its name and seed, the model and the source of problems are there whatever they are.
    """
    changed = recipe.model_dump(mode="json", exclude_defaults=True)
    own: dict[str, Any] = {"name": recipe.name, "seed": recipe.seed} | changed
    model, problems = recipe.model, recipe.problems
    own["model"] = {"name": model.name, "engine": model.engine} | own.get("model", {})
    own["problems"] = {"source": problems.source} | own.get("problems", {})
    for group in ("model", "judge"):
        if "api_key" in own.get(group, {}):
            own[group]["api_key"] = NO_KEY
    redaction = Redaction.of(recipe)
    hidden = (redaction.replaced.get(text) for _, text in texts_of(own))
    return redaction.data(own), list(dict.fromkeys(filter(None, hidden)))


def _hashes(found: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """What local sources and models held, by the names they are shown with; then each table."""
    hashes = {}
    for done in found.values():
        config = done.get("config") or {}
        for key, value in config.items():
            of, marked, name = key.partition("content of ")
            if key == "weights":
                of, name = "weights of ", str(config.get("model.name"))
            if isinstance(value, str) and (marked or key == "weights"):
                hashes[f"{of}{public_names([name])[name]}, as it went in"] = value
    for stage, done in found.items():
        if done.get("content"):
            made = "the weights" if stage == "train" else "its table"
            hashes[f"{stage}: {made}"] = str(done["content"])
    return list(hashes.items())
