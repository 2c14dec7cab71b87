"""The section of a page that says how to do it again."""

from __future__ import annotations

from pathlib import Path

from dto.recipe import Recipe
from dto.reporting.page import Section, Table
from dto.reporting.reproduce import content_of_sources, reproduction


def reproduce_section(run: Path, recipe: Recipe) -> Section:
    """The command, versions, commit, seeds, and hashes of what went in and came out."""
    found = reproduction(run, recipe)
    text, commands = [], []
    if found.git:
        commands.append(f"git checkout {found.git['commit']}")
        if found.git.get("dirty"):
            text.append("The checkout had changes that are not in the commit below.")
    if found.packaged:
        text.append("The recipe comes with the package; `--set` has what was changed.")
    else:
        text.append("Save the recipe below under the name that the command has.")
    if found.hidden:
        text.append(
            f"{', '.join(found.hidden)}: shown by the last part of the name, put your own place "
            "there."
        )
    commands.append(found.command)
    text.append(
        f"Run seed {found.seed}: the seed of every request is derived from it and from the row's "
        "id, never from the order."
    )
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    hashes = (
        *((f"{name}, as it went in", value) for name, value in content_of_sources(run).items()),
        *((f"{stage}: its table" if stage != "train" else "train: the weights", value)
          for stage, value in found.stages.items()),
    )  # fmt: skip
    notes = [f"Versions: {versions or 'not recorded'}."]
    if found.others:
        notes.append(f"Of another version or commit: {', '.join(found.others)}.")
    return Section(
        "reproduce",
        "Do it again",
        tuple(text),
        tables=(
            Table(("what", "hash"), hashes, left=2, folded=True,
                  caption="Hashes of what went in and what came out"),
        ),
        code="\n".join(commands),
        notes=tuple(notes),
        folded=("The recipe: what it sets other than the defaults", found.recipe),
    )  # fmt: skip
