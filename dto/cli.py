"""The command line: it translates arguments into calls, and errors into one line."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated, NoReturn

import typer

from dto import __version__
from dto.commands.hub import publish, pull
from dto.commands.look import doctor, view
from dto.commands.run import add_run
from dto.commands.tasks import tasks
from dto.errors import NO_ROOM, DtoError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Find, measure and remove overthinking in reasoning models.",
    epilog="Begin with `dto run quickstart`: CPU only, nothing to download. Look: `dto view RUN`.",
)


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


add_run(app)
for command in (view, publish, pull, doctor):
    app.command()(command)
app.add_typer(tasks, name="tasks")


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
