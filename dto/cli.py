"""The command line: translates arguments into calls, and errors into one line."""

from __future__ import annotations

import logging
import os
import re
import sys
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Annotated, NoReturn

import typer

from dto import __version__
from dto.commands import Target, read_target, reading
from dto.commands.hub import publish, pull
from dto.commands.run import add_run
from dto.commands.serve import serve
from dto.commands.tasks import tasks
from dto.errors import NO_ROOM, DtoError
from dto.processes import collect_rarely

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Find, measure and remove overthinking in reasoning models.",
    epilog="Start with `dto run quickstart` (CPU, no downloads), then `dto view runs/quickstart`.",
)


def _version(show: bool) -> None:
    if show:
        print(f"dto {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_version, help="Show the version and exit."
        ),
    ] = False,
) -> None: ...


def view(
    target: Target,
    out: Annotated[
        Path | None, typer.Option(help="HTML file to write; RUN/view.html by default.")
    ] = None,
    no_open: Annotated[
        bool, typer.Option("--no-open", help="Write the file without opening a browser.")
    ] = False,
    whole: Annotated[
        bool,
        typer.Option("--all", help="Show all rows of a large run, not the first of each list."),
    ] = False,
    filter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="Show only rows with outcome=repaired, tokens>4000, …; repeatable, all hold.",
        ),
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the page until Ctrl-C; a reload shows new rows.")
    ] = False,
    port: Annotated[int, typer.Option(help="Port of --serve; 0 takes a free one.")] = 8765,
    host: Annotated[
        str, typer.Option(help="Address of --serve; 0.0.0.0 lets other machines in.")
    ] = "localhost",
) -> None:
    """Show trajectories in the browser, as one HTML file.

    Shows segments, exits, pruned patterns, pairs and early exits. The run may be in progress.
    """
    run = Path(target)
    if not run.is_dir():
        _, run = read_target(target, None)
        if not run.is_dir():
            raise DtoError(f"there is no run {run} yet: start it with `dto run {quote(target)}`")
    if serve:
        _serve(run, out, whole, filter or (), host, port)
        return
    from dto.viewer.page import view as write

    with reading(run):
        path = write(run, out or _filtered(run, filter), whole=whole, filter=filter or ())
    size = path.stat().st_size
    print(f"{path}: " + (f"{size / 1e6:.1f} MB" if size > 1e6 else f"{size / 1e3:.0f} kB"))
    if not no_open and not (_has_screen() and webbrowser.open(path.resolve().as_uri())):
        print("no browser was found: open the file yourself")


def _filtered(run: Path, filter: list[str] | None) -> Path | None:
    """The file of a page with a filter: beside the page with all rows, not in its place."""
    return run / f"view-{re.sub(r'[^0-9a-zA-Z]+', '-', '-'.join(filter))}.html" if filter else None


def _serve(
    run: Path, out: Path | None, whole: bool, filter: Sequence[str], host: str, port: int
) -> None:
    from dto.viewer.serve import addresses, open_server

    with open_server(run, out, whole=whole, filter=filter, host=host, port=port) as server:
        print(*addresses(server, host), "Ctrl-C ends it", sep="\n", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def _has_screen() -> bool:
    """Whether there is a screen: without one, Linux offers text browsers that cannot show it."""
    names = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    return sys.platform != "linux" or any(map(os.environ.get, names))


def doctor() -> None:
    """Show what this machine has, and what is missing.

    A missing part comes with what it is needed for, and the way to get it.
    """
    from dto.commands import indented
    from dto.commands.doctor import diagnose

    complete = True
    for fine, name, state in diagnose():
        complete = complete and fine
        for line in indented(state, f"{name:<15} ", " " * 16):
            print(line)
    raise typer.Exit(0 if complete else 1)


add_run(app)
for command in (view, serve, publish, pull, doctor):
    app.command()(command)
app.add_typer(tasks, name="tasks")


def main() -> None:
    """Run the command line; exits with 1 after a user error, 130 after Ctrl-C."""
    collect_rarely()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    if sys.platform == "win32":  # a file or a pipe has a code page there
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(encoding="utf-8", errors="replace")
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
            _fail(
                f"{error.strerror}: {where}; finished rows are kept: free some space and run the "
                "same command again"
            )
        if not isinstance(error, PermissionError) or not error.filename:
            raise
        _fail(f"{error.filename}: {error.strerror}: check the permissions of this path")


def _fail(message: str) -> NoReturn:
    print(f"dto: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
