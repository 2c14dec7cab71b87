"""Write the report of a run: page, figures as JSON, picture and tables; and how to use its model.

The page says how to reproduce the run and can be shared: local paths are shortened to their last
part and servers are replaced by a placeholder (`dto.redact`).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from textwrap import fill
from typing import Any

import yaml

from dto.pipeline import STAGES, needed, shown_prompts
from dto.recipe import Recipe
from dto.records import Problem
from dto.redact import NO_KEY, Redaction, public_names, texts_of
from dto.reporting.evaluation import minus
from dto.reporting.examples import examples_section
from dto.reporting.page import Headline, OmittedSection, Section, render_page
from dto.reporting.pictures import front, save
from dto.reporting.report import Report, measure
from dto.reporting.table import Table, papers_table, write_json
from dto.reporting.training import SHRUNK, thinking_sentence
from dto.runs.manifest import write_text
from dto.runs.reader import RunReader
from dto.statistics import Estimate, shown

QUESTION = "Your question"
TASK = "math500"
UNSHOWN = "no difference shown"


def report(run_directory: Path | str) -> Report:
    """Write `report.html`, `report.json`, the picture and the tables to `RUN/report`.

    Every arm is compared with the model `base` under the first exit whose policy is none, over the
    same problems and seeds, by task; with several tasks there is also a mean over them. The picture
    is `report.png` and `report.svg`. `tables.md` (shares in percent) and `tables.csv` (shares as
    fractions) have the layout of the papers. Raises DtoError when the run has not been evaluated.
    """
    run = RunReader(run_directory)
    result = measure(run.path)
    directory = run / "report"
    directory.mkdir(exist_ok=True)
    for stale in ("difficulty.csv", "batch.png", "batch.svg"):  # of earlier versions
        (directory / stale).unlink(missing_ok=True)
    write_json(directory / "report.json", result.as_json())
    draw_report(result, directory / "report.png", directory / "report.svg")
    _write_tables(directory, result)
    write_text(directory / "report.html", run_page(run, result.public()))
    return result


def draw_report(result: Report, *paths: Path) -> None:
    """Write accuracy against tokens to PNG and SVG files, with local model paths shortened."""
    rows = result.public().rows
    save(lambda: front(rows, result.title), *paths)


def _write_tables(directory: Path, result: Report) -> None:
    papers = papers_table(result.rows, result.averages)
    parts = [
        f"# {result.title}",
        "Accuracy in %, tokens per response including trials, and tokens in % of the base.",
        papers.markdown(),
    ]
    write_text(directory / "tables.md", "\n\n".join(parts) + "\n")
    write_text(directory / "tables.csv", papers.csv())


def run_page(run: RunReader, report: Report) -> str:
    """Return the HTML of a report, with local model paths shortened."""
    recipe = run.recipe
    model = f"{public_names([recipe.model.name])[recipe.model.name]} on {recipe.model.engine}"
    problems = report.title.removeprefix(report.name).removeprefix(": ")
    subtitle = f"{model}, {problems or 'not evaluated'}, seed {recipe.seed}"
    first, *others = report.sections()
    name = shlex.quote(f"runs/{public_names([recipe.name])[recipe.name]}")
    examples = examples_section(run, report.plain, name)
    more = (use_section(run, report), reproduce_section(run))
    sections = [first, examples, *others, *more]
    return render_page(report.name, subtitle, _headlines(report), sections)


def _headlines(report: Report) -> list[Headline]:
    """Build the cards: the trained model, the shortest arm without a shown loss, the break-even."""
    failed = {row.arm for row in report.rows if row.verdict == "too many failed"}
    compared = [
        (row, row.gain, row.ratio)
        for row in report.averages or report.rows
        if row.arm not in failed and row.gain is not None and row.ratio is not None
    ]
    bases = base_accuracies(report)
    if report.recipe.train.method == "none":
        compared = [part for part in compared if part[0].model != "trained"]
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
                else f"{name}: fewest tokens without a shown loss",
                f"{abs(100 * (1 - ratio.value)):.0f} % {change} tokens",
                f"accuracy {shown(bases[row.task].value, '%')} → {shown(row.accuracy.value, '%')} "
                f"%: {gain:+%} points, {claim}",
                f"{row.accuracy:%} % right, {ratio:%} % of the base tokens",
                mood,
            )
        )  # fmt: skip
    if (even := report.break_even) is not None:
        spent = f"{even.tokens.spent / 1e6:,.2f} million tokens spent on optimizing and training"
        headlines.append(Headline("break-even", even.tokens.after, "", spent))
    return headlines


def reproduce_section(run: RunReader) -> Section:
    """Build the section with command, recipe, versions, commit, and input and output hashes."""
    settings, hidden = public_settings(run.recipe)
    manifests = {
        stage: manifest for stage in STAGES if (manifest := run.manifest(stage)) is not None
    }
    last: dict[str, Any] = next(reversed(manifests.values()), {})
    git, versions = last.get("git"), last.get("versions") or {}
    others = [
        stage
        for stage, manifest in manifests.items()
        if any(manifest.get(key) != last.get(key) for key in ("versions", "git"))
    ]
    text = ["Save the recipe below under the file name in the command."]
    if git and git.get("dirty"):
        text.append("The checkout had uncommitted changes on top of the commit below.")
    if hidden:
        text.append(
            f"Local paths are shortened to their last part: {', '.join(hidden)}. Replace them with "
            "your own paths."
        )
    text.append(
        f"Run seed {run.recipe.seed}: the seed of every request is derived from it and from the "
        "row's id, never from the order."
    )
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    notes = [
        f"Versions: {named or 'not recorded'}.",
        "With other versions, another device or another number of threads, trained weights may "
        "differ in their last digits, and so may their answers. Compare the hashes to see which "
        "tables are the same.",
    ]
    if others:
        notes.append(f"Computed with another version or commit: {', '.join(others)}.")
    commands = [f"git checkout {shlex.quote(str(git['commit']))}"] if git else []
    return Section(
        "reproduce",
        "Reproduce this run",
        tuple(text),
        tables=(
            Table(
                "Hashes of inputs and outputs",
                ("file", "hash"),
                tuple(_hashes(manifests)),
                left=2,
                folded=True,
            ),
        ),
        notes=tuple(notes),
        code="\n".join([*commands, command(run)]),
        folded=(
            "The recipe: settings that differ from the defaults",
            yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        ),
    )


def command(run: RunReader) -> str:
    """Return the commands for the finished stages, which can be fewer or more than the recipe's."""
    recipe = run.recipe
    name = public_names([recipe.name])[recipe.name]
    target = (re.sub(r"[^\w.-]+", "-", name).strip("-.") or "recipe") + ".yaml"
    programs = any(
        row.rule == "code"
        for stage in ("problems", "test")
        if run.table(stage).is_file()
        for row in run.rows(stage, Problem)
    )
    suffix = " --allow-code-execution" if programs else ""
    required, finished = needed(recipe), [stage for stage in STAGES if run.manifest(stage)]
    stages = [stage for stage in finished if stage not in ("problems", "test")]
    if recipe.compare.methods or not stages:
        stages = ["run"]
    elif {*required} <= {*finished}:
        stages = ["run", *(stage for stage in stages if stage not in required)]
    path = shlex.quote(f"runs/{name}")
    lines = [f"dto {stages[0]} {target}{suffix}"]
    lines += [f"dto {stage} {path}{suffix}" for stage in stages[1:]]
    return "\n".join(lines if stages == ["run"] else [*lines, f"dto report {path}"])


def public_settings(recipe: Recipe) -> tuple[dict[str, Any], list[str]]:
    """Return the settings that differ from the defaults, and the names of shortened local paths.

    Name, seed, model and source of problems are always included.
    """
    changed = recipe.model_dump(mode="json", exclude_defaults=True)
    settings: dict[str, Any] = {"name": recipe.name, "seed": recipe.seed} | changed
    model, problems = recipe.model, recipe.problems
    settings["model"] = {"name": model.name, "engine": model.engine} | settings.get("model", {})
    settings["problems"] = {"source": problems.source} | settings.get("problems", {})
    teacher = settings.get("batch", {}).get("teacher", {})
    for group in (settings["model"], settings.get("judge", {}), teacher):
        if "api_key" in group:
            group["api_key"] = NO_KEY
    redaction = Redaction.of(recipe)
    hidden = (redaction.replacements.get(text) for _, text in texts_of(settings))
    return redaction.data(settings), list(dict.fromkeys(filter(None, hidden)))


def _hashes(manifests: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """List the hashes of local sources and models, then of the table of each stage."""
    hashes = {}
    for manifest in manifests.values():
        config = manifest.get("config") or {}
        for key, value in config.items():
            prefix, marker, name = key.partition("content of ")
            if key == "weights":
                prefix, name = "weights of ", str(config.get("model.name"))
            if isinstance(value, str) and (marker or key == "weights"):
                hashes[f"input: {prefix}{public_names([name])[name]}"] = value
    for stage, manifest in manifests.items():
        if manifest.get("content"):
            output = "weights" if stage == "train" else "table"
            hashes[f"{stage}: {output}"] = str(manifest["content"])
    return list(hashes.items())


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out of a run: sentences, commands by their purpose, a program that asks the model.

    They also hold when the base model was kept, which the sentences then say.
    """

    sentences: tuple[str, ...]
    commands: tuple[tuple[str, str], ...]
    program: str = ""

    def __str__(self) -> str:
        """Format for a terminal."""
        width = max((len(name) for name, _ in self.commands), default=0)
        indent = "\n" + " " * (width + 2)
        lines = [
            f"{name:<{width}}  {command}".replace("\n", indent) for name, command in self.commands
        ]
        sentences = (fill(sentence, 100) for sentence in self.sentences)
        return "\n".join(["── Use it", "", *sentences, "", *lines])


def outcome(run: RunReader, report: Report, place: str = "") -> Outcome | None:
    """Build the outcome of a run in `place` (default: its path); None if it trained no model."""
    training = run.manifest("train")
    if training is None:
        return None
    path = place or str(run.path)
    sentences = [result_sentence(report, training)]
    if report.curve is not None and (shrunk := thinking_sentence(report.curve, SHRUNK)):
        sentences.append(shrunk)
    if not (run / "train" / "model").is_dir():
        quoted = shlex.quote(path)
        commands = {
            "download": f"dto pull USER/NAME --out {quoted} --weights",
            "train": f"dto train {quoted} --recompute",
        }
        return Outcome((*sentences, "The model is not in this directory."), tuple(commands.items()))
    folder = f"{path}/train/model"
    commands = {
        "model": folder,
        "serve": serve_command(run.recipe, folder),
        "load": f"AutoModelForCausalLM.from_pretrained({_literal(folder)})",
        "evaluate": evaluate_command(run.recipe, path),
    }
    if training.get("kept_step"):  # a base model is not published
        commands["publish"] = f"dto publish {shlex.quote(path)} USER/NAME --model"
    return Outcome(tuple(sentences), tuple(commands.items()), program(run.recipe, folder))


def result_sentence(report: Report, training: Mapping[str, Any]) -> str:
    """Say in one sentence what training has changed, with 95 % intervals, or that it has not."""
    reason = str(training.get("reason") or "no reason is recorded")
    if report.recipe.train.method == "none":
        return "Nothing was trained (train.method is none): `trained` is the base model."
    if not training.get("kept_step"):
        reason = reason if "base is kept" in reason else f"base is kept: {reason}"
        return f"{reason[0].upper()}{reason[1:]}. The model of this run is the base model."
    rows = report.averages or report.rows
    row = next((row for row in rows if row.arm == ("trained", report.plain)), None)
    if row is None or row.gain is None or row.ratio is None or isnan(row.gain.value):
        return f"The trained model was not compared with the base on test problems; {reason}."
    if row.verdict == "too many failed":
        return f"Too many test responses failed to compare the trained model; {reason}."
    verdict = {"gain": "a gain", "loss": "a loss"}.get(row.verdict, row.verdict)
    if not verdict:  # a mean over tasks
        verdict = "a gain" if row.gain.low > 0 else "a loss" if row.gain.high < 0 else UNSHOWN
    over = f"the mean over {len(report.tasks)} tasks" if report.averages else "the test problems"
    before = base_accuracies(report)[row.task]
    return (
        f"On {over}, training changed accuracy from {shown(before.value, '%')} to "
        f"{shown(row.accuracy.value, '%')} %, by {row.gain:+%} points ({verdict}), and saved "
        f"{minus(1.0, row.ratio):%…} % of the tokens."
    )


def base_accuracies(report: Report) -> dict[str, Estimate]:
    """The accuracy of the base model without an exit by task, or the mean over tasks."""
    rows = report.averages or report.rows
    return {row.task: row.accuracy for row in rows if row.arm == ("base", report.plain)}


def serve_command(recipe: Recipe, folder: str) -> str:
    """The command that serves the model with vLLM, with the flags that the recipe's settings need.

    The default sampling of the server is that of the model's generation_config.json.
    """
    model = recipe.model
    flags = {
        "--max-model-len": model.context,
        "--tensor-parallel-size": model.tensor_parallel if model.tensor_parallel > 1 else None,
        "--dtype": None if model.dtype == "auto" else model.dtype,
    }
    given = [f"{flag} {value}" for flag, value in flags.items() if value is not None]
    return " ".join(["vllm serve", shlex.quote(folder), *given])


def evaluate_command(recipe: Recipe, path: str) -> str:
    """The command that evaluates the model on another task, in a run of its own."""
    changes = [
        f"model.name={path}/train/model",
        "evaluate.models=[base]",
        f"evaluate.tasks=[{TASK}]",
    ]
    if recipe.model.engine == "openai":  # its server has the base model
        changes.append("model.engine=transformers")
    if recipe.evaluate.server is not None:
        changes.append("evaluate.server=null")
    parts = [f"--set {shlex.quote(change)}" for change in changes]
    start = f"dto evaluate {shlex.quote(path)} --out {shlex.quote(f'{path}-{TASK}')}"
    return " \\\n  ".join([start, *parts])


def program(recipe: Recipe, folder: str) -> str:
    """A program that asks the model as the run did: prompt, chat template and sampling."""
    model, sampling = recipe.model, recipe.evaluate
    question = next(shown_prompts(recipe, (), [QUESTION]))[1]
    messages = [{"role": "user", "content": question}]
    if model.system is not None:
        messages.insert(0, {"role": "system", "content": model.system})
    lines = "".join(f"    {_literal(message)},\n" for message in messages)
    arguments = "".join(f"    {name}={value!r},\n" for name, value in model.template.items())
    options = [f"max_new_tokens={sampling.max_tokens}"]
    if sampling.temperature:
        options += ["do_sample=True", f"temperature={sampling.temperature:g}"]
        options += [f"top_p={sampling.top_p:g}", f"top_k={sampling.top_k}"]
        options += [f"min_p={sampling.min_p:g}"] if sampling.min_p else []
    else:
        options.append("do_sample=False")
    return f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {_literal(folder)}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="auto")
messages = [
{lines}]
prompt = tokenizer.apply_chat_template(
    messages,
    add_generation_prompt=True,
    return_dict=True,
    return_tensors="pt",
{arguments}).to(model.device)
output = model.generate(**prompt, {", ".join(options)})
print(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :]))
"""


def _literal(data: Any) -> str:
    """Plain data as Python source."""
    return json.dumps(data, ensure_ascii=False)


def use_section(run: RunReader, report: Report) -> Section | OmittedSection:
    """Build the section of the page; the run is named as in the commands that reproduce it."""
    name = public_names([run.recipe.name])[run.recipe.name]
    use = outcome(run, report, f"runs/{name}")
    if use is None:
        return OmittedSection("Use it", "the run has trained no model.")
    commands = dict(use.commands)
    where = commands.pop("model", "")
    commands.pop("load", None)
    text = [*use.sentences, *([f"The model is in {where}."] if where else [])]
    folded = ("Load it with transformers", use.program) if use.program else None
    notes = ("The folder has the weights in safetensors, the tokenizer, the chat template and the "
             "generation config. The first command needs vLLM; the second evaluates the model on "
             f"another task, here {TASK}.",)  # fmt: skip
    return Section("use", "Use it", tuple(text), notes=notes if where else (),
                   code="\n".join(commands.values()), folded=folded)  # fmt: skip
