"""`dto publish` and `dto pull`: upload runs and models to the Hub, and download them."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from dto.commands import Changes, Columns, Out, RunPath, held, reading
from dto.commands.run import import_rows
from dto.errors import DtoError
from dto.pipeline import open_run
from dto.recipe import read_recipe
from dto.runs.run import agree


def publish(
    target: RunPath,
    name: Annotated[
        str, typer.Argument(metavar="USER/NAME", help="Name of the repository on the Hub.")
    ],
    model: Annotated[
        bool, typer.Option("--model", help="Publish the trained model with its evaluation.")
    ] = False,
    only: Annotated[
        str, typer.Option(metavar="TABLES", help="Publish only these tables, as in pairs,exits.")
    ] = "",
    test_sets: Annotated[
        bool,
        typer.Option("--test-sets", help="Include questions and answers of public test sets."),
    ] = False,
    private: Annotated[
        bool, typer.Option("--private", help="Create the repository as private.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the folder, show the card, upload nothing.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing dataset or model.")
    ] = False,
    license: Annotated[
        str | None, typer.Option(help="Licence of the rows; the source's licence by default.")
    ] = None,
) -> None:
    """Publish a run on the Hub, as one dataset with a card.

    Uploads one commit; unchanged content makes no new commit.
    """
    from dto.hub.publish import publish as publish_run

    if not (target / "recipe.yaml").is_file():
        raise DtoError(f"{target} is not a run directory: it has no recipe.yaml")
    recipe, _ = read_recipe(target / "recipe.yaml")
    # Nothing is computed, so nothing that a change would compute again stands in the way.
    run = open_run(target, recipe, recompute=agree)
    with held(run, "publish"), reading(target, refuse=True):
        done = publish_run(
            run,
            name,
            model=model,
            only=tuple(part.strip() for part in only.split(",") if part.strip()),
            test_sets=test_sets,
            private=private,
            dry_run=dry_run,
            overwrite=overwrite,
            license=license,
        )
        if done.uploaded is None:
            print(done.card)
            print(f"{done.folder}: nothing was uploaded; publish it without --dry-run")
            return
        place = f"{done.uploaded.url} ({'private' if done.uploaded.private else 'public'})"
        state = f"commit {done.uploaded.commit}" if done.uploaded.changed else "unchanged"
        print(f"{place}: {state}")


def pull(
    name: Annotated[str, typer.Argument(metavar="USER/NAME", help="A dataset on the Hub.")],
    out: Out = None,
    revision: Annotated[
        str | None, typer.Option(help="Commit or branch of a published run.")
    ] = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="Download the trained model as well.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="For other datasets: the model whose tokenizer to use.")
    ] = None,
    columns: Columns = None,
    changes: Changes = None,
) -> None:
    """Download a published run from the Hub.

    Other datasets of responses or preference pairs are imported.
    """
    from dto.hub.pull import is_run, pending_stages
    from dto.hub.pull import pull as pull_run

    if not is_run(name, revision):
        if model is None:
            raise DtoError(
                f"{name} is not a run of dto: to import its rows, name the model whose tokenizer "
                f"to use: `dto pull {name} --model MODEL`"
            )
        if revision is not None:
            raise DtoError(
                f"--revision: {name} is not a run of dto, and its rows are read at the newest "
                "revision: leave --revision out"
            )
        import_rows(name, model, columns=columns, out=out, changes=changes)
        return
    if changes or columns:
        raise DtoError(f"{name} is a run with its own recipe: pull it, then `dto run --set …`")
    place = out or Path("runs") / name.rpartition("/")[2]
    stages = pull_run(name, place, revision=revision, weights=weights)
    print(f"{place}: {', '.join(stages)}; continue with: dto run {quote(str(place))}")
    for stage in pending_stages(place):
        print(f"{stage}: test questions were not published; dto run reads them from their source")
    if "train" in stages and not (place / "train" / "model").is_dir():
        print(
            "the trained model was not downloaded; to get it: "
            f"dto pull {name} --out {quote(str(place))} --weights"
        )
