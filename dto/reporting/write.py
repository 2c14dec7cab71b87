"""Write the report of a run: its page, figures as JSON, picture and tables.

The page says how the run is done again, and names no machine: local files and folders are shown by
their last part, servers by an address that is none (`dto.redact`). It is sent to people whose paths
differ, and who need not know ours.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from dto.pipeline import STAGES, needed
from dto.recipe import Recipe
from dto.redact import NO_KEY, Redaction, public_names, texts_of
from dto.reporting.page import Headline, Section, render_page
from dto.reporting.pictures import draw
from dto.reporting.report import Report, measure
from dto.reporting.table import Table, papers_table, write_json
from dto.runs.manifest import write_text
from dto.runs.reader import RunReader


def report(run_directory: Path | str) -> Report:
    """Write `report.html`, `report.json`, the picture and the tables below `RUN/report`.

    Everything is compared with the model `base` under the first exit whose policy is none, over
    the same problems and seeds, task by task; with several tasks there is a mean over them. The
    page is one to send around, the picture is `report.png` and `report.svg`. `tables.md` and
    `tables.csv` are laid out as in the papers, and hold shares as percent and as they are. Raises
    DtoError when the run has not been evaluated.
    """
    run = RunReader(run_directory)
    result = measure(run.path)
    directory = run / "report"
    directory.mkdir(exist_ok=True)
    for stale in ("difficulty.csv", "batch.png", "batch.svg"):  # of earlier versions
        (directory / stale).unlink(missing_ok=True)
    write_json(directory / "report.json", result.as_json())
    draw_report(result, directory)
    _write_tables(directory, result)
    write_text(directory / "report.html", run_page(run, result.public()))
    return result


def draw_report(result: Report, directory: Path) -> None:
    """Write `report.png` and `report.svg`: models by names that can be shown to others."""
    draw(result.public().rows, directory, result.title)


def _write_tables(directory: Path, result: Report) -> None:
    papers = papers_table(result.rows, result.averages)
    parts = [
        f"# {result.title}",
        "Accuracy in %, tokens of a response with its trials, and these in % of the base's.",
        papers.markdown(),
    ]
    write_text(directory / "tables.md", "\n\n".join(parts) + "\n")
    write_text(directory / "tables.csv", papers.csv())


def run_page(run: RunReader, report: Report) -> str:
    """The HTML of a run's report; its models by names that can be shown to others."""
    recipe = run.recipe
    model = f"{public_names([recipe.model.name])[recipe.model.name]} on {recipe.model.engine}"
    asked = report.title.removeprefix(report.name).removeprefix(": ")
    subtitle = f"{model}, {asked or 'nothing evaluated'}, seed {recipe.seed}"
    sections = [*report.sections(), reproduce_section(run)]
    return render_page(report.name, subtitle, _headlines(report), sections)


def _headlines(report: Report) -> list[Headline]:
    """The trained model, the fewest tokens that no loss is shown of, and when it has paid."""
    failed = {row.arm for row in report.rows if row.verdict == "too many failed"}
    compared = [
        (row, row.gain, row.ratio)
        for row in report.averages or report.rows
        if row.arm not in failed and row.gain is not None and row.ratio is not None
    ]
    trained = [part for part in compared if part[0].arm == ("trained", report.plain)]
    others = [part for part in compared if part not in trained and part[1].high >= 0]
    headlines = []
    for row, gain, ratio in [*trained, *sorted(others, key=lambda part: part[2].value)[:1]]:
        name = row.model if row.exit == report.plain else f"{row.model}, {row.exit}"
        mood = "good" if gain.low > 0 else "bad" if gain.high < 0 else "open"
        claim = {"good": "a gain", "bad": "a loss", "open": "no difference shown"}[mood]
        change = "fewer" if ratio.value <= 1 else "more"
        headlines.append(
            Headline(
                name if row.model == "trained" and row.exit == report.plain
                else f"{name}: the fewest where no loss is shown",
                f"{abs(100 * (1 - ratio.value)):.0f} % {change} tokens",
                f"accuracy {gain:+%} points: {claim}",
                f"{ratio:%} % of the base's tokens",
                mood,
            )
        )  # fmt: skip
    if (even := report.break_even) is not None:
        what = "optimizing and training have paid for themselves"
        spent = f"{even.tokens.spent / 1e6:,.2f} million tokens went into them"
        headlines.append(Headline(what, even.tokens.after, "", spent))
    return headlines


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
        run.count(stage, rule="code") > 0
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
