"""The command line: it translates arguments into calls, and errors into one line."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Annotated, NoReturn

import typer

from dto import __version__
from dto.commands.doctor import doctor
from dto.commands.hub import add_hub
from dto.commands.nano import nano
from dto.commands.pilot import add_pilot
from dto.commands.target import packaged, parse_changes, read_target
from dto.commands.tasks import tasks
from dto.commands.view import view
from dto.errors import NO_ROOM, DtoError, RecipeError
from dto.recipe import Recipe, make_recipe
from dto.runs.graph import STAGES, needed
from dto.runs.run import Run, open_run

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Find, measure and remove overthinking in reasoning models.",
    epilog="Begin with `dto run quickstart`: CPU only, nothing to download. Look: `dto view RUN`.",
)

Target = Annotated[str, typer.Argument(metavar="RECIPE|RUN", help="A recipe, or a run directory.")]
Out = Annotated[Path | None, typer.Option(help="Run directory; runs/NAME by default.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on although settings changed.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete the run that is there.")]
Again = Annotated[bool, typer.Option("--overwrite", help="Compute it again from the start.")]
Code = Annotated[
    bool,
    typer.Option("--allow-code-execution", help="Run programs that a model wrote, in a sandbox."),
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: sample.samples=8; repeat."),
]

_DOES = {
    "problems": "Read the questions and gold answers; split them.",
    "sample": "Let the model answer the training problems.",
    "batch": "Ask several questions in one prompt (DRQA).",
    "segment": "Cut each thinking into its patterns.",
    "estimate": "Estimate p(correct) when leaving at each boundary.",
    "optimize": "Leave at the first good exit; finalize the answer.",
    "prune": "Judge patterns; drop what rollouts confirm is spare.",
    "pair": "Build the pairs of chosen and rejected to train on.",
    "chain": "Cut batch responses into a chain a question (DRQA).",
    "label": "Label chains as concise, verbose or wrong (DRQA).",
    "train": "Train; keep the best checkpoint on dev problems.",
    "evaluate": "Answer the test problems, every model at every exit.",
    "report": "Sum up: a table here, report.html to send around.",
}
"""What `dto --help` says of each stage."""


def _version(asked: bool) -> None:
    if asked:
        print(f"dto {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_version, help="Show it and exit."),
    ] = False,
) -> None: ...


def _within(run: Run, work: Callable[[Run], None], again: str = "run") -> None:
    try:
        work(run)
    except KeyboardInterrupt:
        print(
            f"dto: interrupted; what was computed is kept, go on with: dto {again} "
            f"{quote(str(run.path))}",
            file=sys.stderr,
        )
        raise
    finally:
        run.close()


def _print(summary: object) -> None:
    if summary is not None:
        print(summary)


@app.command("run")
def run_all(
    target: Target,
    out: Out = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and the first prompts.")
    ] = False,
    pilot: Annotated[
        int | None, typer.Option(min=2, help="Run so many problems; forecast the rest; stop.")
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    code: Code = False,
    changes: Changes = None,
) -> None:
    """Every stage of a recipe; resumes where it stopped."""
    recipe, place = read_target(target, changes)
    if pilot is not None and not dry_run:
        from dto.forecast import run_pilot

        begin = partial(open_run, resume=resume, overwrite=overwrite, allow_code_execution=code)
        print(run_pilot(recipe, out or place, pilot, begin))
        return
    if dry_run:
        from dto.commands.plan import plan

        for line in plan(recipe):
            print(line)
        return
    run = open_run(
        out or place, recipe, resume=resume, overwrite=overwrite, allow_code_execution=code
    )
    if recipe.compare.methods:
        from dto.baselines.compare import compare

        _within(run, lambda held: _print(compare(held)))
        return
    from dto.pipeline import run_stages

    _within(run, lambda held: _print(run_stages(held, needed(recipe))))
    if (run.path / "report/report.html").exists():
        print(
            f"\nThe page: {run.path}/report/report.html. "
            f"Its trajectories: dto view {quote(str(run.path))}"
        )


def _compute(
    stage: str, recipe: Recipe, place: Path, resume: bool, overwrite: bool, code: bool
) -> None:
    from dto.pipeline import run_stages

    # Problems cost nothing and everything begins with them; a report only reads what is there.
    stages = (stage,) if stage in ("problems", "report") else ("problems", stage)
    run = open_run(place, recipe, resume=resume, allow_code_execution=code)
    if overwrite:
        run.clear(stage)
    _within(run, lambda held: _print(run_stages(held, stages)), stage)


def _stage_command(stage: str) -> None:
    """`dto STAGE`: this stage alone, from the tables before it."""

    def command(
        target: Target,
        out: Out = None,
        resume: Resume = False,
        overwrite: Again = False,
        code: Code = False,
        changes: Changes = None,
    ) -> None:
        recipe, place = read_target(target, changes)
        if stage == "report" and recipe.compare.methods:
            _report_comparison(out or place)
            return
        _compute(stage, recipe, out or place, resume, overwrite, code)

    app.command(stage, help=f"{_DOES[stage]}\n\nThis stage alone, from the tables before it.")(
        command
    )


def _report_comparison(run: Path) -> None:
    """What a comparison amounts to stands below compare/, once all its methods are done."""
    from dto.baselines.report import report

    print(report([run]))
    print(f"{run}/compare: compare.html, compare.json, tables and pictures")


def _evaluate(
    target: Target,
    out: Out = None,
    replay: Annotated[
        bool,
        typer.Option("--replay", help="Sweep exits over the run's traces; generate nothing."),
    ] = False,
    resume: Resume = False,
    overwrite: Again = False,
    code: Code = False,
    changes: Changes = None,
) -> None:
    """`dto evaluate`: this stage alone, or what many exits would give on recorded traces."""
    recipe, place = read_target(target, changes)
    if not replay:
        _compute("evaluate", recipe, out or place, resume, overwrite, code)
        return
    from dto.calibration.curve import replay as replay_run

    _print(replay_run(out or place, recipe))


for _stage in STAGES:
    if _stage == "evaluate":
        app.command(_stage, help=f"{_DOES[_stage]}\n\nThis stage alone.")(_evaluate)
    else:
        _stage_command(_stage)
app.command()(view)


@app.command()
def calibrate(
    target: Annotated[
        str, typer.Argument(metavar="MODEL|RECIPE|RUN", help="A model, a recipe or a run.")
    ],
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    code: Code = False,
    changes: Changes = None,
) -> None:
    """Pick an early exit that is certified to lose little.

    Records traces of the dev problems with all trials, and writes a policy file for recipes.
    """
    from dto.calibration.calibrate import calibrate as calibrate_run
    from dto.pipeline import run_stages
    from dto.serving import load_tokenizer

    def work(held: Run) -> None:
        run_stages(held, ("problems", "trace"))
        print(calibrate_run(held.path))
        print(f"{held.path}/calibrate: policy.yaml, calibration.json, calibration.png")

    recipe, place = _to_calibrate(target, changes)
    load_tokenizer(recipe)  # a name that is none begins no run
    run = open_run(
        out or place, recipe, resume=resume, overwrite=overwrite, allow_code_execution=code
    )
    _within(run, work, "calibrate")


def _to_calibrate(target: str, changes: list[str] | None) -> tuple[Recipe, Path]:
    """What is no recipe and no run is a model: an embedded one has the quickstart's settings."""
    from dto.recipe import NAMES

    path = Path(target)
    if path.suffix in (".yaml", ".yml") or (path / "recipe.yaml").is_file() or packaged(path):
        return read_target(target, changes)
    name = f"calibrate-{path.name}"
    place = Path("runs") / name
    if target in NAMES:
        # Problems are what is drawn: more of them prove more than more samples of each.
        own = [f"name={name}", f"model.name={target}", "problems.dev=600", "evaluate.samples=1"]
        recipe, _ = read_target("quickstart", [*own, *(changes or [])])
        return recipe, place
    parsed = parse_changes(changes)
    if "problems.source" not in parsed:
        raise RecipeError(
            f"calibrate {target}: on which questions? Name a recipe, or a file or dataset with "
            "--set problems.source=…; --set problems.source=chains takes generated ones"
        )
    return make_recipe({"name": name, "model": {"name": target}}, parsed, "--set"), place


add_pilot(app, read_target, _within)


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(metavar="FILE|FOLDER|HUB", help="Rows.")],
    model: Annotated[str, typer.Option(help="The model whose tokenizer encodes them.")],
    recipe: Annotated[str | None, typer.Option(help="Recipe for the stages that follow.")] = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    code: Code = False,
    changes: Changes = None,
) -> None:
    """Turn your rows of prompt + response into a run.

    They become trajectories; go on with `dto segment RUN`. Rows of chosen + rejected become pairs;
    go on with `dto train RUN`. Dev and test problems come from the recipe's problems.source;
    without one there are none.
    """
    from dto.pipeline import run_stages
    from dto.tasks.importing import holds_pairs

    name = Path(source).stem
    own = [f"sample.imported={json.dumps(source)}", f"model.name={json.dumps(model)}"]
    if holds_pairs(source):
        own.append("pair.data=imported")
    if recipe is None:
        parsed = parse_changes([*(changes or []), *own])
        apart = {} if "problems.source" in parsed else {"dev": 0, "test": 0}
        given = {"name": name, "problems": {"train": 0, **apart}}
        settings = make_recipe(given, parsed, "--set")
    else:
        settings, _ = read_target(recipe, [*(changes or []), *own])
    place = out or Path("runs") / name
    run = open_run(place, settings, resume=resume, overwrite=overwrite, allow_code_execution=code)
    paired = settings.pair.data == "imported"
    stages = ("problems", "sample", *(("pair",) if paired else ()))
    _within(run, lambda held: _print(run_stages(held, stages)), stages[-1])
    next_ = "train" if paired else "segment"
    print(f"{run.path}: go on with dto {next_} {quote(str(run.path))}")


def _import_rows(source: str, model: str, out: Path | None, changes: list[str] | None) -> None:
    import_(source, model, out=out, changes=changes)


add_hub(app, _within, _import_rows)
app.add_typer(tasks, name="tasks")
app.command()(doctor)
app.add_typer(nano, name="nano")


def main() -> None:
    """Run the command line; exits with 1 after an error of the user's, 130 after Ctrl-C."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("dto").setLevel(logging.INFO)
    for library in ("huggingface_hub", "datasets"):  # they have handlers of their own
        logging.getLogger(library).propagate = False
    try:
        app(standalone_mode=True)
    except DtoError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno in NO_ROOM:
            where = error.filename or "disk"
            _fail(f"{error.strerror}: {where}; what was computed is kept, make room")
        if not isinstance(error, PermissionError) or not error.filename:
            raise
        _fail(f"{error.filename}: {error.strerror}: see who may read and write there")


def _fail(message: str) -> NoReturn:
    print(f"dto: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
