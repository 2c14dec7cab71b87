"""The command line: it translates arguments into calls, and errors into one line."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from dto.errors import DtoError, RecipeError
from dto.recipe import Recipe, load_recipe
from dto.runs.run import STAGES, Run, open_run

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Find the early exits in a model's thinking, train on them, leave by them.",
)
nano = typer.Typer(no_args_is_help=True, help="The embedded model.")
app.add_typer(nano, name="nano")

Target = Annotated[str, typer.Argument(metavar="RECIPE|RUN", help="A recipe, or a run directory.")]
Out = Annotated[Path | None, typer.Option(help="Run directory; runs/NAME by default.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on although settings changed.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete the run that is there.")]
Changes = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key.")]


def _recipe(target: str, changes: list[str] | None) -> tuple[Recipe, Path]:
    """The recipe that a file, a packaged recipe or a run directory holds, and the run directory."""
    path = Path(target)
    if path.is_dir():
        return load_recipe(path / "recipe.yaml", _parsed(changes)), path
    if not path.exists():
        from dto.prompts import resource

        packaged = Path(str(resource("pipelines"))) / f"{path.name.removesuffix('.yaml')}.yaml"
        path = packaged if packaged.is_file() and path.parent.name in ("", "pipelines") else path
    recipe = load_recipe(path, _parsed(changes))
    return recipe, Path("runs") / recipe.name


def _parsed(changes: list[str] | None) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for change in changes or []:
        key, equals, value = change.partition("=")
        if not equals:
            raise RecipeError(f"--set {change!r}: write it as key=value, as in sample.samples=4")
        try:
            parsed[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise RecipeError(f"--set {change!r}: {value!r} is not a YAML value") from None
    return parsed


def _within(run: Run, work: Callable[[Run], None]) -> None:
    try:
        work(run)
    except KeyboardInterrupt:
        print(
            f"dto: interrupted; what was computed is kept, go on with: dto run {run.path}",
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
    resume: Resume = False,
    overwrite: Overwrite = False,
    changes: Changes = None,
) -> None:
    """Every stage of a recipe; resumes where it stopped."""
    recipe, place = _recipe(target, changes)
    if dry_run:
        from dto.runs.plan import plan

        for line in plan(recipe):
            print(line)
        return
    from dto.pipeline import run_stages

    run = open_run(out or place, recipe, resume=resume, overwrite=overwrite)
    _within(run, lambda held: _print(run_stages(held, STAGES)))


def _stage_command(stage: str) -> None:
    """`dto STAGE`: this stage alone, from the tables before it."""

    def command(
        target: Target, out: Out = None, resume: Resume = False, changes: Changes = None
    ) -> None:
        from dto.pipeline import run_stages

        recipe, place = _recipe(target, changes)
        # Problems cost nothing and everything begins with them.
        stages = (stage,) if stage == "problems" else ("problems", stage)
        run = open_run(out or place, recipe, resume=resume)
        _within(run, lambda held: _print(run_stages(held, stages)))

    app.command(stage, help=f"The stage {stage} alone.")(command)


for _stage in STAGES:
    _stage_command(_stage)


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(metavar="FILE|HUB", help="Prompt + response rows.")],
    model: Annotated[str, typer.Option(help="The model whose tokenizer encodes them.")],
    recipe: Annotated[str | None, typer.Option(help="Recipe for the stages that follow.")] = None,
    out: Out = None,
    overwrite: Overwrite = False,
    changes: Changes = None,
) -> None:
    """Turn existing responses into trajectories; go on with `dto segment RUN`."""
    from dto.imports import import_responses

    name = Path(source).stem
    if recipe is None:
        settings = Recipe.model_validate({"name": name, "model": {"name": model}})
    else:
        settings, _ = _recipe(recipe, [*(changes or []), f"model.name={model}"])
    run = open_run(out or Path("runs") / name, settings, overwrite=overwrite)
    _within(run, lambda held: import_responses(held, source))
    print(f"{run.path}: go on with dto segment {run.path}")


@nano.command("train")
def nano_train(
    out: Annotated[Path, typer.Option(help="Folder for the weights and the tokenizer.")],
    control: Annotated[
        bool, typer.Option("--control", help="The model that does not overthink.")
    ] = False,
    seed: int = 0,
    steps: int | None = None,
) -> None:
    """Train the embedded model (at most 15 minutes on two cores)."""
    from dto.nano.train import train_nano

    loss = train_nano(out, overthinks=not control, seed=seed, steps=steps)
    print(f"{out}: loss {loss:.4f}")


@app.command()
def doctor() -> None:
    """Versions, memory, accelerator, and the engines that can be used here."""
    from importlib.util import find_spec

    from dto.runs.manifest import provenance

    for package, version in provenance()["versions"].items():
        print(f"{package:<13} {version}")
    import torch

    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    print(f"cores         {os.cpu_count()}")
    print(f"accelerator   {accelerator or 'none'}")
    print("transformers  ready")
    print(f"vllm          {'ready' if find_spec('vllm') else 'not installed: make setup-gpu'}")
    print("openai        ready, needs a server")


def main() -> None:
    """Run the command line; exits with 1 after an error of the user's, 130 after Ctrl-C."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("dto").setLevel(logging.INFO)
    try:
        app(standalone_mode=True)
    except DtoError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        _fail(f"{error.strerror}: {error.filename or 'disk'}; what was computed is kept, make room")


def _fail(message: str) -> None:
    print(f"dto: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
