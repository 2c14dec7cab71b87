"""The commands that compute: run, the single stages, import, calibrate, pilot."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from dto.api import import_recipe, packaged
from dto.commands import (
    Again,
    Changes,
    Code,
    Columns,
    OnRay,
    Out,
    Overwrite,
    Recompute,
    Target,
    Yes,
    consent,
    held,
    on_ray,
    parse_changes,
    parse_columns,
    read_target,
    reading,
)
from dto.errors import DtoError, RecipeError
from dto.pipeline import STAGES, needed, open_run, run_stages, with_questions
from dto.recipe import NAMES, Recipe, make_recipe
from dto.runs.reader import RunReader
from dto.source import Source

logger = logging.getLogger("dto")

Force = Annotated[
    bool, typer.Option("--force", help="Start although the training seems too large here.")
]


def run(
    target: Target,
    out: Out = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and the first prompts.")
    ] = False,
    gpu: Annotated[
        str | None, typer.Option(help="With --dry-run: the GPU for hours, such as h100 or 4090.")
    ] = None,
    pilot: Annotated[
        int | None, typer.Option(min=2, help="Run this many problems, forecast the rest, stop.")
    ] = None,
    recompute: Recompute = False,
    yes: Yes = False,
    overwrite: Overwrite = False,
    force: Force = False,
    ray: OnRay = None,
    code: Code = False,
    changes: Changes = None,
) -> None:
    """Run all stages of a recipe, or resume a run."""
    recipe, place = read_target(target, changes)
    if dry_run:
        from dto.commands.plan import plan

        for line in plan(recipe, gpu, out or place):
            print(line)
        return
    if not force:
        from dto.commands.doctor import check_training

        check_training(recipe, out or place, anew=overwrite)
    where = on_ray(ray)
    if where and recipe.compare.methods:
        raise DtoError("--ray spreads the stages of one run, not a comparison: leave it out")
    ask = consent(recompute or overwrite, yes)
    begin = partial(
        open_run,
        recompute=ask,
        overwrite=overwrite,
        allow_code_execution=code,
    )
    if pilot is not None:
        from dto.forecast import forecast_run

        print(forecast_run(recipe, out or place, pilot, begin, where))
        return
    with held(begin(out or place, recipe)) as opened:
        if recipe.compare.methods:
            from dto.compare.compare import compare

            compare(opened, ask)
        else:
            run_stages(opened, needed(recipe), ray=where)
        _report(opened.path)


def _report(path: Path) -> None:
    if RunReader(path).recipe.compare.methods:
        from dto.compare.report import report as compared

        print(compared([path]))
        print(f"{path}/compare: compare.html, compare.json, tables and pictures")
        return
    from dto.reporting.write import outcome, report

    figures = report(path)
    print(figures)
    if (use := outcome(RunReader(path), figures)) is not None:
        print(f"\n{use}")
    print(f"\nReport page: {path}/report/report.html. Trajectories: dto view {quote(str(path))}")


def report(target: Target, out: Out = None, changes: Changes = None) -> None:
    """Print the results, and write them to report.html."""
    place = out or Path(target)
    if out is None and not (place / "recipe.yaml").is_file():
        _, place = read_target(target, changes)
    with reading(place):
        _report(place)


def _compute(
    stage: str,
    recipe: Recipe,
    place: Path,
    recompute: bool,
    yes: bool,
    code: bool,
    ray: str | None = None,
) -> None:
    """Run one stage; load its questions first, which costs nothing."""
    again = (stage,) if recompute else ()
    ask = consent(recompute, yes)
    opened = open_run(place, recipe, recompute=ask, again=again, allow_code_execution=code)
    with held(opened, stage):
        run_stages(opened, with_questions(recipe, stage), ray=on_ray(ray))


def _stage_command(app: typer.Typer, stage: str) -> None:
    """Add the command `dto STAGE`, which runs this stage alone."""

    def command(
        target: Target,
        out: Out = None,
        recompute: Again = False,
        yes: Yes = False,
        ray: OnRay = None,
        code: Code = False,
        changes: Changes = None,
    ) -> None:
        recipe, place = read_target(target, changes)
        _compute(stage, recipe, out or place, recompute, yes, code, ray)

    about = STAGES[stage].about
    app.command(stage, help=f"{about}\n\n{_ALONE}")(command)


_ALONE = "Runs this stage alone, on the existing tables."


def train(
    target: Target,
    out: Out = None,
    recompute: Again = False,
    yes: Yes = False,
    force: Force = False,
    code: Code = False,
    changes: Changes = None,
) -> None:
    """Run the training alone, on the existing tables."""
    recipe, place = read_target(target, changes)
    if not force:
        from dto.commands.doctor import check_training

        check_training(recipe, out or place, ["train"], anew=recompute)
    _compute("train", recipe, out or place, recompute, yes, code)


def evaluate(
    target: Target,
    out: Out = None,
    replay: Annotated[
        bool,
        typer.Option("--replay", help="Compare exits on recorded traces; generate nothing."),
    ] = False,
    recompute: Again = False,
    yes: Yes = False,
    ray: OnRay = None,
    code: Code = False,
    changes: Changes = None,
) -> None:
    """Run the evaluation alone, or replay many exits on recorded traces."""
    recipe, place = read_target(target, changes)
    place = out or place
    if replay:
        from dto.calibration.calibrate import replay_run

        print(replay_run(place, recipe))
        return
    run, quoted = RunReader(place), quote(str(place))
    if "trained" in recipe.evaluate.models and run.manifest("train") is None:
        raise DtoError(
            f"evaluate.models has `trained`, and {place} has no trained model: evaluate the base "
            "model alone with --set 'evaluate.models=[base]', or train one first with "
            f"`dto run {quoted}`"
        )
    _compute("evaluate", recipe, place, recompute, yes, code, ray)
    from dto.reporting.report import front_section, measure

    result = measure(place)
    print(f"{result.title}\n\n{front_section(result.public())}")
    print(f"\nAll figures and a page: dto report {quoted}. Answers: dto view {quoted}")


def pilot(
    target: Target,
    out: Out = None,
    recompute: Again = False,
    yes: Yes = False,
    changes: Changes = None,
) -> None:
    """Measure how much a model overthinks.

    Counts right answers on the way to wrong ones (pearls), static exits, savings of optimizing.
    """
    from dto.reporting.pilot import study

    recipe, place = read_target(target, changes)
    again = ("pilot",) if recompute else ()
    opened = open_run(out or place, recipe, recompute=consent(recompute, yes), again=again)
    with held(opened, "pilot"):
        run_stages(opened, needed(recipe, "prune", "pilot"), may_be_empty=True)
        print(study(opened.path))
        print(f"\n{opened.path}/pilot: pilot.html, pilot.json")


def calibrate(
    target: Annotated[
        str, typer.Argument(metavar="MODEL|RECIPE|RUN", help="A model, a recipe or a run.")
    ],
    out: Out = None,
    recompute: Recompute = False,
    yes: Yes = False,
    overwrite: Overwrite = False,
    force: Annotated[
        bool, typer.Option("--force", help="Record although too few problems can certify an exit.")
    ] = False,
    code: Code = False,
    changes: Changes = None,
) -> None:
    """Choose an early exit with a certified bound on lost accuracy.

    Records the dev problems with all trial answers, and writes a policy file for recipes.
    """
    from dto.calibration.calibrate import calibrate as calibrate_run
    from dto.calibration.calibrate import check_problems
    from dto.engines import check_installed
    from dto.engines.models import load_tokenizer

    recipe, place = _to_calibrate(target, changes)
    recorded = RunReader(out or place).state("trace") == "finished"
    if not recorded:
        check_installed(recipe.model.engine)
    if not (force or recorded):
        check_problems(recipe, recipe.problems.dev)
    load_tokenizer(recipe.model)  # fail before the run directory exists if there is no such model
    ask = consent(recompute or overwrite, yes)
    opened = open_run(
        out or place, recipe, recompute=ask, overwrite=overwrite, allow_code_execution=code
    )
    with held(opened, "calibrate"):
        if not (force or recorded):  # a source can have fewer problems than it is asked for
            run_stages(opened, needed(recipe, "problems"))
            enough = check_problems(recipe, opened.count("problems", split="dev"))
            logger.info("calibrate %s", enough)
        run_stages(opened, needed(recipe, "trace"))
        print(calibrate_run(opened.path))
        print(f"{opened.path}/calibrate: policy.yaml, calibration.json, calibration.png")


def _to_calibrate(target: str, changes: list[str] | None) -> tuple[Recipe, Path]:
    """Read a recipe or run; any other target is a model (embedded: the quickstart's settings)."""
    path = Path(target)
    if path.suffix in (".yaml", ".yml") or (path / "recipe.yaml").is_file() or packaged(path):
        return read_target(target, changes)
    name = f"calibrate-{path.name}"
    place = Path("runs") / name
    if target in NAMES:
        # More problems prove more than more samples of each problem.
        own = [f"name={name}", f"model.name={target}", "problems.dev=600", "evaluate.samples=1"]
        recipe, _ = read_target("quickstart", [*own, *(changes or [])])
        return recipe, place
    parsed = parse_changes(changes)
    if "problems.source" not in parsed:
        raise RecipeError(
            f"calibrate {target} needs questions: name a recipe, or a file or dataset with --set "
            "problems.source=… (problems.source=chains generates questions)"
        )
    return make_recipe({"name": name, "model": {"name": target}}, parsed, "--set"), place


def import_rows(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|FOLDER|HUB", help="File, folder or Hub dataset of responses or pairs."
        ),
    ],
    model: Annotated[str, typer.Option(help="The model whose tokenizer encodes them.")],
    recipe: Annotated[str | None, typer.Option(help="Recipe for the stages that follow.")] = None,
    columns: Columns = None,
    batch_input: Annotated[
        str | None,
        typer.Option("--input", metavar="FILE", help="The input of an OpenAI batch output."),
    ] = None,
    out: Out = None,
    recompute: Recompute = False,
    yes: Yes = False,
    overwrite: Overwrite = False,
    code: Code = False,
    changes: Changes = None,
) -> None:
    """Import responses or preference pairs.

    The log tells the shape of the rows, and how each field was read. For other columns: --map
    response=attempt --map thinking=trajectories[0] --map answer=meta.gold.

    Rows of prompt + response become trajectories, rows of chosen + rejected become pairs; the last
    lines say what was imported. Dev and test problems come from the recipe's problems.source.
    The last line is the command that continues.
    """
    from dto.tasks import summary

    parsed = parse_changes(changes)
    if columns:
        parsed["sample.map"] = parse_columns(columns)
    if batch_input is not None:
        parsed["sample.batch_input"] = batch_input
    settings = import_recipe(source, model, parsed, recipe, origin="--set")
    ask = consent(recompute or overwrite, yes)
    place = out or Path("runs") / Source.parse(source).stem
    opened = open_run(
        place, settings, recompute=ask, overwrite=overwrite, allow_code_execution=code
    )
    last = "pair" if settings.pair.data == "imported" else "sample"
    with held(opened, last):
        before = summary.read(opened)
        run_stages(opened, needed(settings, "problems", last))
        got = summary.read(opened)
    for line in () if got is None else got.lines():
        print(line)
    for line in () if before is None else before.warnings():  # else the log has them
        print(f"warning: {line}")
    problems, again = settings.problems, f"{place}: continue with: dto run {quote(str(place))}"
    if problems.dev and (problems.test or settings.evaluate.tasks):
        print(again)
        return
    print(
        f"{again} --set problems.source=FILE|HUB --set problems.dev=300 --set problems.test=400\n"
        "(training and evaluation need problems of their own: dev and test problems of that source)"
    )


def add_run(app: typer.Typer) -> None:
    """Add the commands that compute, with the stages in their order."""
    app.command()(run)
    for stage in STAGES.values():
        if stage.name == "train":
            app.command(help=f"{stage.about}\n\n{_ALONE}")(train)
        elif stage.name == "evaluate":
            app.command(help=f"{stage.about}\n\nThis stage alone.")(evaluate)
        elif stage.step:
            _stage_command(app, stage.name)
    app.command()(report)
    app.command()(calibrate)
    app.command()(pilot)
    app.command("import")(import_rows)
