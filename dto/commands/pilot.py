"""`dto pilot`: the papers' pilot studies on one's own model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from dto.recipe import Recipe
from dto.runs.run import Run, open_run

STAGES = ("problems", "sample", "segment", "estimate", "optimize", "prune", "pilot")


def add_pilot(
    app: typer.Typer,
    read: Callable[[str, list[str] | None], tuple[Recipe, Path]],
    within: Callable[[Run, Callable[[Run], None], str], None],
) -> None:
    """Add the command; `read` and `within` are the command line's ways to a recipe and a run."""

    @app.command()
    def pilot(
        target: Annotated[
            str, typer.Argument(metavar="RECIPE|RUN", help="A recipe, or a run directory.")
        ],
        out: Annotated[
            Path | None, typer.Option(help="Run directory; runs/NAME by default.")
        ] = None,
        resume: Annotated[
            bool, typer.Option("--resume", help="Go on although settings changed.")
        ] = False,
        overwrite: Annotated[
            bool, typer.Option("--overwrite", help="Compute the static exits again.")
        ] = False,
        changes: Annotated[
            list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key.")
        ] = None,
    ) -> None:
        """How much does this model overthink? A study of it.

        Pearls (right answers on the way to wrong ones), static exits, what optimizing saves.
        """
        from dto.pipeline import run_stages
        from dto.reporting.pilot import study

        def work(held: Run) -> None:
            if overwrite:
                held.clear("pilot")
            run_stages(held, STAGES)
            print(study(held.path))
            print(f"\n{held.path}/pilot: pilot.json")

        recipe, place = read(target, changes)
        within(open_run(out or place, recipe, resume=resume), work, "pilot")
