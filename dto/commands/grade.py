"""The command `dto grade`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def grade(
    source: Annotated[
        str, typer.Argument(metavar="RUN|FILE|HUB", help="A run, or rows of gold and prediction.")
    ],
    graders: Annotated[
        str, typer.Option(help="Two or more, with commas between.")
    ] = "ours,math-verify,minerva,deer,deepscaler",
    out: Annotated[Path | None, typer.Option(help="Folder for the report.")] = None,
) -> None:
    """Do published graders agree with ours?

    On the answers of a run or a file; no model is asked.
    """
    from dto.grading.agreement import agree

    run = Path(source)
    place = run / "grade" if run.is_dir() else Path("runs") / f"grade-{run.stem}"
    print(agree(source, [name.strip() for name in graders.split(",")], out or place))
