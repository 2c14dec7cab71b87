"""`RUN/log.txt`: what the commands on a run log, with the time, one after another.

It has the lines of the logger `dto` and the warnings of libraries, as the terminal shows them, and
how each command ended. Values of keys and tokens are replaced (`dto.redact`); local paths are not,
since the file is never published. If it cannot be written, a warning says so once and the run goes
on.
"""

from __future__ import annotations

import logging
import shlex
import sys
import time
import traceback
from pathlib import Path

from dto import __version__
from dto.errors import DtoError
from dto.recipe import Recipe
from dto.redact import secrets_of, without_secrets

LOG = "log.txt"
TIME = "%Y-%m-%d %H:%M:%S%z"

logger = logging.getLogger("dto")


class RunLog(logging.Handler):
    """Appends messages to the log of a run, from its creation until `close`."""

    def __init__(self, run: Path, recipe: Recipe) -> None:
        super().__init__(logging.INFO)
        self.path = run / LOG
        self._secrets = secrets_of(recipe)
        self._failed = False
        root = logging.getLogger()
        # As the only handler of the root it would hide the warnings of libraries from stderr.
        self._source = root if root.handlers else logger
        self._source.addHandler(self)
        program = Path(sys.argv[0]).stem
        command = shlex.join([program, *sys.argv[1:]]) if program == "dto" else "called from Python"
        self.note(f"dto {__version__}: {command}")

    def filter(self, record: logging.LogRecord) -> bool:
        """Leave out what libraries log below a warning."""
        ours = record.name == "dto" or record.name.startswith("dto.")
        return ours or record.levelno >= logging.WARNING

    def emit(self, record: logging.LogRecord) -> None:
        """Append a message; called by `logging`."""
        try:
            level = f"{record.levelname}: " if record.levelno > logging.INFO else ""
            self.note(level + self.format(record), record.created)
        except Exception:  # a message with wrong arguments
            self.handleError(record)

    def note(self, text: str, at: float | None = None) -> None:
        """Append a text that is not logged elsewhere; further lines of it are indented."""
        stamp = time.strftime(TIME, time.localtime(at))
        text = without_secrets(text, self._secrets).rstrip().replace("\n", "\n    ")
        try:
            with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{stamp} {text}\n")
        except OSError as error:
            if not self._failed:
                self._failed = True
                logger.warning("%s cannot be written: %s; the run goes on", self.path, error)

    def close(self) -> None:
        """Write how the command ended: with an error, if one is being handled, or well."""
        if self not in self._source.handlers:
            return
        self._source.removeHandler(self)
        error = sys.exception()
        if isinstance(error, KeyboardInterrupt):
            self.note("interrupted")
        elif isinstance(error, DtoError):
            self.note(f"error: {error}")
        elif isinstance(error, Exception):
            self.note("".join(traceback.format_exception(error)))
        else:
            self.note("ended")
        super().close()
