"""Errors that a user can act on: each names the thing, the value and the way out."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DtoError(Exception):
    """A mistake or an obstacle outside the code; the CLI prints it as one line and exits with 1."""


class RecipeError(DtoError):
    """A recipe that cannot be read, or holds a key or a value that is not allowed."""


class RunConflictError(DtoError):
    """A run directory that was begun with another configuration."""


class EngineError(DtoError):
    """An engine that cannot be built, or cannot do what it is asked for.

    A single request that goes wrong is no exception: it comes back as a
    :class:`dto.protocols.Completion` whose finish reason is ``failed``.
    """


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into one clear line: nothing already written is lost."""
    try:
        yield
    except OSError as error:
        why = f"cannot write {path}: {error.strerror or error}"
        if error.errno in NO_ROOM:
            way = "what was computed is kept; make room and start the same command again"
        else:
            way = "choose a place that can be written"
        raise DtoError(f"{why} — {way}") from error
