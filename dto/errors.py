"""Errors that a user can act on: each names the thing, the value and the way out."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DtoError(Exception):
    """A user error or an external obstacle; the CLI prints it in one line and exits with 1."""


class RecipeError(DtoError):
    """A recipe cannot be read, or has a key or value that is not allowed."""


class RunConflictError(DtoError):
    """A run directory cannot be used: in use, not a run, or recomputing was not agreed to."""


class EngineError(DtoError):
    """An engine cannot be built, or does not support a request.

    A single failed request raises nothing: it returns a :class:`dto.protocols.Completion` with
    finish reason ``failed``.
    """


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into a DtoError of one line that names the way out."""
    try:
        yield
    except OSError as error:
        why = f"cannot write {path}: {error.strerror or error}"
        if error.errno in NO_ROOM:
            way = "finished rows are kept; free some space and run the same command again"
        else:
            way = "choose a directory that you can write to"
        raise DtoError(f"{why} — {way}") from error
