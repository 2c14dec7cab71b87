"""Write the report of a run: its page, figures as JSON, pictures and tables.

What the page says, section by section, is taken from the report's figures, so that page, tables and
`report.json` agree; a section without its tables says why.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import TypeVar

from dto.recipe import ExitSettings, Recipe
from dto.redact import public_names
from dto.reporting import pictures
from dto.reporting.batch import batch_section, draw_batch
from dto.reporting.cost import OPTIMIZATION, cost_table, paid_for, paid_in_flops, together
from dto.reporting.evaluation import ALL_TASKS, MAX_FAILED
from dto.reporting.funnel import funnel_section
from dto.reporting.page import Headline, LeftOut, Section, drawn, render_page
from dto.reporting.pictures import draw
from dto.reporting.positions import Reliability
from dto.reporting.report import Report, measure
from dto.reporting.reproduce import content_of_sources, reproduction
from dto.reporting.table import Table, arms_table, write_json, write_tables
from dto.runs import manifest
from dto.runs.reader import RunReader
from dto.statistics import shown

DECIDING = {
    "static": ("fraction",),
    "budget": ("budget",),
    "deer": ("monitor", "inducer", "threshold"),
    "consistency": ("monitor", "inducer", "agree"),
    "entropy": ("variance",),
}
"""By policy the settings that are told of an exit though they be the defaults."""


def names_table(recipe: Recipe) -> Table:
    """What stands behind the names of models and exits."""
    names = public_names(list(recipe.evaluate.models))
    base = public_names([recipe.model.name])[recipe.model.name]
    models = {"base": f"{base}, as it is", "trained": f"{base} after {_training(recipe)}"}
    rows = [("model", names[name], models.get(name, "a model of its own"))
            for name in recipe.evaluate.models]  # fmt: skip
    rows += [("exit", exit.name, _exit(exit)) for exit in recipe.evaluate.exits]
    return Table(
        "What the names of models and exits stand for",
        ("what", "name", "stands for"),
        tuple(rows),
        left=2,
        wide=True,
        folded=True,
    )


def _training(recipe: Recipe) -> str:
    train = recipe.train
    return f"training: {train.method}, learning rate {train.learning_rate:g}, seed {recipe.seed}"


def _exit(exit: ExitSettings) -> str:
    if exit.policy == "none":
        return "the model ends its thinking itself"
    main = {key: getattr(exit, key) for key in DECIDING.get(exit.policy, ())}
    own = main | exit.model_dump(mode="json", exclude_defaults=True)
    settings = [f"{key} {value}" for key, value in own.items() if key not in ("name", "policy")]
    return ", ".join([f"policy {exit.policy}", *settings])


def cost_section(report: Report) -> Section | LeftOut:
    """The ledger of the stages, and after how many questions it has paid."""
    title = "What it cost"
    if not report.costs:
        return LeftOut(title, "no stage of the run has a manifest.")
    spent = [cost for cost in report.costs if cost.stage in OPTIMIZATION]
    text = ["Every generated token counts, those of rollouts, of trials and of requests that were "
            "thrown away too."]  # fmt: skip
    if report.break_even is not None:
        text.append(" ".join(paid_for(report.break_even)))
        text.append(" ".join(paid_in_flops(report.break_even)))
    elif spent:
        text.append("After how many questions that is paid for is not known: the base and the "
                    "trained model have to be evaluated, both without an exit and with few "
                    "failures.")  # fmt: skip
    rows = [*report.costs]
    if len(spent) > 1:
        rows.append(together(spent, "without evaluating"))
    columns = {
        "stage": "stage", "generated": "tokens", "read": "read", "from cache": "cached",
        "thrown away": "wasted", "trained on": "trained",
        "attention FLOPs": "attention FLOPs or 0", "model FLOPs": "model FLOPs or 0",
        "seconds": "seconds", "MiB": "MiB",
    }  # fmt: skip
    if any(cost.money is not None for cost in report.costs):
        columns["money"] = "money"
    means = {row.arm: row for row in report.averages or report.rows}
    base = means.get(("base", report.plain))
    tokens = nan if base is None else base.tokens.value
    drawable = sum(cost.tokens + cost.trained_tokens > 0 for cost in report.costs) > 1
    return Section(
        "cost",
        title,
        tuple(text),
        drawn("cost", "Tokens of each stage, and tokens spent in all against questions answered; "
              "the table below has the figures.", pictures.cost, report.costs, report.break_even,
              tokens) if drawable else None,
        (cost_table(rows, columns, "Tokens and time of each stage"),),
        notes=("Generated and trained on are what has to be paid for, from sampling to training; "
               "evaluating is measurement, and no part of it. Read are the tokens of prompts, "
               "from cache those of them that were not computed again; thrown away are generated "
               "tokens that nothing came of. Attention FLOPs are those of scores and sums over "
               "values, forward and, in training, backward. Model FLOPs hold them, and two for "
               "each parameter that takes part (embeddings apart, the LM head with them) and each "
               "token that was read, not from the cache, or generated; six where it was trained "
               "on, four where adapters alone were, two more each for gradient checkpointing and "
               "for a reference model. Seconds and MiB, of the largest "
               "process, are those of the machine that it ran on.",),
    )  # fmt: skip


def reproduce_section(run: RunReader) -> Section:
    """The command, versions, commit, seeds, and hashes of what went in and came out."""
    again = reproduction(run)
    text, commands = [], []
    if again.git:
        commands.append(f"git checkout {shlex.quote(str(again.git['commit']))}")
        if again.git.get("dirty"):
            text.append("The checkout held changes beside the commit below.")
    if again.packaged:
        changed = "; --set has what was changed" if "--set" in again.command else ""
        text.append(f"The recipe comes with the package{changed}.")
    else:
        text.append("Save the recipe at the end under the name that the command has.")
    if again.hidden:
        text.append(
            f"{', '.join(again.hidden)}: shown by the last part of the name, put your own place "
            "there."
        )
    commands.append(again.command)
    text.append(
        f"Run seed {again.seed}: the seed of every request is derived from it and from the row's "
        "id, never from the order."
    )
    versions = ", ".join(f"{name} {version}" for name, version in again.versions.items())
    hashes = (
        *((f"{name}, as it went in", value) for name, value in content_of_sources(run).items()),
        *((f"{stage}: its table" if stage != "train" else "train: the weights", value)
          for stage, value in again.stages.items()),
    )  # fmt: skip
    notes = [f"Versions: {versions or 'not recorded'}."]
    if "train" in again.stages:
        notes.append("With other versions, another device or another number of threads, weights "
                     "may differ in their last digits, and what they answer with them; the hashes "
                     "tell what is the same.")  # fmt: skip
    if again.others:
        notes.append(f"Of another version or commit: {', '.join(again.others)}.")
    return Section(
        "reproduce",
        "Do it again",
        tuple(text),
        tables=(
            Table("Hashes of what went in and what came out",
                ("what", "hash"), hashes, left=2, folded=True),
        ),
        code="\n".join(commands),
        notes=tuple(notes),
        folded=("The recipe: what it sets other than the defaults", again.recipe),
    )  # fmt: skip


R = TypeVar("R")


def run_page(run: RunReader, report: Report) -> str:
    """The HTML of a run's report."""
    recipe = run.recipe
    report = _public(report)
    together = batch_section(report.batch, report.training)
    sections = [
        _front(report, recipe),
        _difficulty(report),
        *([together] if together is not None else []),
        _positions(report),
        _calibration(report),
        cost_section(report),
        funnel_section(report.funnel, report.training, recipe),
        reproduce_section(run),
    ]
    model = f"{public_names([recipe.model.name])[recipe.model.name]} on {recipe.model.engine}"
    asked = report.title.removeprefix(report.name).removeprefix(": ")
    subtitle = f"{model}, {asked or 'nothing evaluated'}, seed {recipe.seed}"
    return render_page(report.name, subtitle, _headlines(report), sections)


def _public(report: Report) -> Report:
    """The same report; models that are folders go by their last part."""
    names = public_names([row.model for row in report.rows])

    def renamed(rows: Sequence[R]) -> tuple[R, ...]:
        return tuple(
            replace(row, model=names.get(row.model, row.model))  # type: ignore[type-var,attr-defined]
            for row in rows
        )

    return replace(
        report,
        rows=renamed(report.rows),
        averages=renamed(report.averages),
        difficulty=renamed(report.difficulty),
        positions=renamed(report.positions),
        trials=renamed(report.trials),
    )


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
    fewest = min(others, key=lambda part: part[2].value, default=None)
    headlines = []
    for part in [*trained, *([fewest] if fewest else [])]:
        row, gain, ratio = part
        change = f"{abs(100 * (1 - ratio.value)):.0f} %"
        mood = "good" if gain.low > 0 else "bad" if gain.high < 0 else "open"
        claim = {"good": "a gain", "bad": "a loss", "open": "no difference shown"}[mood]
        name = row.model if row.exit == report.plain else f"{row.model}, {row.exit}"
        headlines.append(
            Headline(
                f"{name}: the fewest where no loss is shown" if part is fewest else name,
                f"{change} {'fewer' if ratio.value <= 1 else 'more'} tokens",
                f"accuracy {gain:+%} points: {claim}",
                f"{ratio:%} % of the base's tokens",
                mood,
            )
        )
    if (even := report.break_even) is not None:
        paid = "never" if even.questions is None else f"after {even.questions:,} questions"
        spent = f"{even.tokens_spent / 1e6:,.2f} million tokens went into optimizing and training"
        if even.questions_low is not None:
            last = "never" if even.questions_high is None else f"{even.questions_high:,}"
            spent = f"95 %: {even.questions_low:,}…{last}; {spent}"
        if even.model_flops_spent is not None:
            after = even.questions_by_model_flops
            spent += "; in model FLOPs, with all that was read: "
            spent += "never" if after is None else f"after {after:,} questions"
        headlines.append(
            Headline("optimizing and training have paid for themselves", paid, "", spent)
        )
    return headlines


def _front(report: Report, recipe: Recipe) -> Section:
    columns = {
        "model": "model", "exit": "exit", "accuracy %": "accuracy", "gain, points": "gain",
        "tokens": "tokens", "% of base": "ratio", "trial tokens": "trial",
        "trun\u00adcated": "truncated", "failed": "failed",
    }  # fmt: skip
    tables = [
        arms_table(
            [row for row in report.rows if row.task == task],
            columns,
            f"task {task}" if len(report.tasks) > 1 else "",
            left=2,
        )
        for task in report.tasks
    ]
    if report.averages:
        tables.append(
            arms_table(
                report.averages,
                {"model": "model", "exit": "exit", "accuracy %": "accuracy", "gain, points": "gain",
                 "tokens": "tokens alone", "% of base": "ratio"},
                f"mean over {len(report.tasks)} tasks, each counting once",
                left=2,
            )
        )  # fmt: skip
    tables.append(names_table(recipe))
    says = "; ".join(
        f"{row.model}, {row.exit}{f' on {row.task}' if len(report.tasks) > 1 else ''}: "
        f"{shown(row.accuracy.value, '%')} % at {shown(row.tokens.value, ',.0f')} tokens"
        for row in report.rows
    )
    notes = ["In brackets are 95 % intervals, each for itself: the more there are, the more of "
             "them miss. Tokens are the mean of all that a question takes: thinking, answer and "
             "trial answers. Gains and % of base are against the base without an exit, paired by "
             "problem. Truncated responses ran out of tokens and count as not correct, failed "
             "ones have no grade and leave the denominator."]  # fmt: skip
    if any(row.verdict == "too many failed" for row in report.rows):
        notes.append(
            f"Where more than {100 * MAX_FAILED:.0f} % of the responses failed nothing is claimed."
        )
    return Section(
        "front",
        "Accuracy and tokens",
        (
            "Up and to the left is better. The dotted line joins the points that no other beats in "
            "both; bars are 95 % intervals. Whether two differ is told by the paired gains below.",
        ),
        drawn("front", f"Accuracy against tokens. {says}", pictures.front, report.rows),
        tuple(tables),
        notes=tuple(notes),
    )


def _difficulty(report: Report) -> Section | LeftOut:
    title = "Tokens saved by difficulty"
    whole = [r for r in report.difficulty if len(report.tasks) == 1 or r.task == ALL_TASKS]
    if not any(row.ratio is not None for row in whole):
        return LeftOut(
            title, "it needs a base model without an exit and two samples of each problem."
        )
    table = arms_table(
        whole,
        {"base right on": "bin", "model": "model", "exit": "exit", "problems": "problems",
         "accuracy %": "accuracy alone", "gain, points": "gain", "tokens": "tokens alone",
         "% of base": "ratio"},
        "The same figures as a table",
        left=3,
        folded=True,
    )  # fmt: skip
    return Section(
        "difficulty",
        title,
        (
            "How hard a problem is: on which share of its samples the base model is right. One "
            "half of the samples sets that rate, the figures come from the other half, so that "
            "problems with bad luck do not pass for hard ones. A problem whose halves disagree "
            "stands in two bins.",
        ),
        drawn("difficulty", "Tokens saved and points gained, by the base's pass rate; the table "
               "below has the figures.", pictures.difficulty, whole),
        (table,),
    )  # fmt: skip


def _positions(report: Report) -> Section | LeftOut:
    title = "Where the exits lie"
    if not report.positions:
        return LeftOut(title, "the run has no optimized trajectories, and no exit left early.")
    table = Table.of(
        "",
        report.positions,
        {
            "of": (lambda part: part.model or "optimized", ""),
            "outcome or exit": (lambda part: part.group.replace("_", " "), ""),
            "exits": (lambda part: part.exits, ""),
            "did not leave": (lambda part: part.without if part.model else None, ""),
            "median position %": (lambda part: part.median, "%"),
        },
        left=2,
    )
    notes = []
    text = []
    if any(part.stage == "optimize" for part in report.positions):
        text.append("Optimized trajectories: how much of the thinking stands before the boundary "
                    "that they were cut at, by what became of them.")  # fmt: skip
        without = next(part.without for part in report.positions if part.stage == "optimize")
        notes.append(f"{without:,} further trajectories have no optimized version.")
    if any(part.stage == "evaluate" for part in report.positions):
        text.append(
            "Early exits: thinking until the policy left, as a share of what the same model thinks "
            "on the same question and sample when nothing stops it."
        )
    return Section(
        "exits",
        title,
        tuple(text),
        drawn("exits", "Histograms of exit positions; the table below has their medians.",
               pictures.positions, report.positions,
               list(dict.fromkeys(row.model for row in report.rows))),
        (table,),
        notes=tuple(notes),
    )  # fmt: skip


def _calibration(report: Report) -> Section | LeftOut:
    title = "Can the confidence be trusted?"
    if not report.trials:
        return LeftOut(title, "no exit of this evaluation asked for trial answers.")
    table = Table.of(
        "",
        report.trials,
        {
            "model": (lambda part: part.model, ""),
            "exit": (lambda part: part.exit, ""),
            "trials": (lambda part: part.reliability.trials, ""),
            "mean confidence %": (lambda part: _mean_confidence(part.reliability), "%"),
            "right %": (lambda part: part.reliability.accuracy, "%"),
            "ECE": (lambda part: part.reliability.ece, ",.3f"),
        },
        left=2,
    )
    notes = []
    if not all(part.shadow for part in report.trials):
        notes.append("A path that is left makes no further trials, so that doubtful ones are more "
                     "than their share; an exit in shadow mode makes all of them.")  # fmt: skip
    return Section(
        "calibration",
        title,
        ("Trial answers by their confidence, in ten bins, and how many of them are right; larger "
         "points are more trials. On the diagonal a confidence of 0.9 means right nine times in "
         "ten; bars are 95 % intervals. The expected calibration error (ECE) is the mean distance "
         "from the diagonal: 0 is best.",),
        drawn("calibration", "Reliability diagrams; the table below has the errors.",
               pictures.calibration, report.trials),
        (table,),
        notes=tuple(notes),
    )  # fmt: skip


def _mean_confidence(reliable: Reliability) -> float:
    return sum(bin.trials * bin.confidence for bin in reliable.bins) / reliable.trials


def report(run_directory: Path | str) -> Report:
    """Write `report.html`, `report.json`, the picture and the tables below `RUN/report`.

    Everything is compared with the model `base` under the first exit whose policy is none, over
    the same problems and seeds, task by task; with several tasks there is a mean over them. The
    page is one to send around (:mod:`dto.reporting.write`), the picture is `report.png` and
    `report.svg`, the tables are `tables.md`, `tables.csv`, `difficulty.csv`
    (:mod:`dto.reporting.table`). Where questions were asked together, `batch.png` and `batch.svg`
    stand beside them. Raises DtoError when the run has not been evaluated.
    """
    run = RunReader(run_directory)
    result = measure(run.path)
    directory = run / "report"
    directory.mkdir(exist_ok=True)
    write_json(directory / "report.json", result.as_json())
    draw_report(result, directory)
    if result.batch is not None:
        draw_batch(result.batch, directory, run.recipe.name)
    write_tables(directory, result.title, result.rows, result.averages, result.difficulty)
    manifest.write_text(directory / "report.html", run_page(run, result))
    return result


def draw_report(result: Report, directory: Path) -> None:
    """Write `report.png` and `report.svg`: models by names that can be shown to others."""
    names = public_names([row.model for row in result.rows])
    draw([replace(row, model=names[row.model]) for row in result.rows], directory, result.title)
