"""`dto view`: a run's trajectories and answers as one HTML file."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer


def view(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    out: Annotated[Path | None, typer.Option(help="The file; RUN/view.html by default.")] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Write the file only.")] = False,
) -> None:
    """Look at trajectories in the browser: one HTML file.

    Segments, exits, prunes, pairs and early exits, of a run that may still be under way.
    """
    from dto.viewer.page import view as write

    path = write(run, out)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    if not no_open and not (_has_screen() and webbrowser.open(path.resolve().as_uri())):
        print("there is no browser here: open the file yourself")


def _has_screen() -> bool:
    """Without one Linux offers browsers for the terminal, which cannot show the page."""
    names = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    return sys.platform != "linux" or any(map(os.environ.get, names))
