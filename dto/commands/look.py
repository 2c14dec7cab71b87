"""The commands that look: at a run, at this machine."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from dto.commands.common import RunPath


def view(
    run: RunPath,
    out: Annotated[Path | None, typer.Option(help="The file; RUN/view.html by default.")] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Write the file only.")] = False,
) -> None:
    """Look at trajectories in the browser: one HTML file.

    Segments, exits, prunes, pairs and early exits, of a run that may still be under way.
    """
    from dto.viewer.page import view as write

    path = write(run, out)
    size = path.stat().st_size
    print(f"{path}: " + (f"{size / 1e6:.1f} MB" if size > 1e6 else f"{size / 1e3:.0f} kB"))
    if not no_open and not (_has_screen() and webbrowser.open(path.resolve().as_uri())):
        print("there is no browser here: open the file yourself")


def _has_screen() -> bool:
    """Without one Linux offers browsers for the terminal, which cannot show the page."""
    names = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    return sys.platform != "linux" or any(map(os.environ.get, names))


def doctor() -> None:
    """Which engines this machine has, with versions."""
    from dto.runs.manifest import provenance

    for package, version in provenance()["versions"].items():
        print(f"{package:<13} {version}")
    import torch

    from dto.engines import usable

    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    print(f"cores         {os.cpu_count()}")
    print(f"accelerator   {accelerator or 'none'}")
    for engine, state in usable():
        print(f"{engine:<13} {state}")
