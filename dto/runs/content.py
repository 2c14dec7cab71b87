"""What files hold, as a hash: what a stage is computed from may change under the same name."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from dto.prompts import resource
from dto.seeds import content_id


def of_path(path: Path) -> str | None:
    """The content of a file, or of all files below a folder but hidden ones; None for neither."""
    if path.is_file():
        return _of_file(path)
    if not path.is_dir():
        return None
    names = sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file())
    shown = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    return content_id(*(f"{name.as_posix()}\n{_of_file(path / name)}" for name in shown))


def of_model(name: str) -> str | None:
    """The content of a model in a local folder; None for one of the Hub."""
    from dto.nano import resolve

    return of_path(Path(resolve(name)))


def of_prompts(family: str) -> str:
    """The prompts that a family of models is given."""
    texts: list[str] = []
    for folder in ("default", family):
        place = resource("prompts") / folder
        if place.is_dir():
            found = sorted(place.iterdir(), key=lambda file: file.name)
            texts += [f"{folder}/{file.name}\n{file.read_text('utf-8')}" for file in found]
    return content_id(*texts)


def _of_file(path: Path) -> str:
    state = path.stat()
    return _hash(path, state.st_size, state.st_ctime_ns)


@cache
def _hash(path: Path, size: int, changed: int) -> str:
    """Once in a process for each state of a file: weights are large, and every stage asks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:16]
