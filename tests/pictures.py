"""Pictures of the same data are drawn once: matplotlib takes longer than all else in a report.

That the same data give the same bytes is tested where they are `drawn_anew`.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dto.hub import card
from dto.reporting import write
from dto.reporting.page import Figure

DRAWN: dict[tuple[str, str, bytes], Any] = {}
SVG, REPORT, LENGTHS = Figure.svg, write.draw_report, card.draw_lengths


def once(name: str, place: str, data: Any, draw: Callable[[], Any]) -> Any:
    """What `draw` returned for the same data before."""
    key = (name, place, pickle.dumps(data))
    if key not in DRAWN:
        DRAWN[key] = draw()
    return DRAWN[key]


def svg(figure: Figure) -> str:
    assert SVG.fget is not None
    make: Any = figure.make  # a partial
    return str(once(make.func.__qualname__, figure.name, make.args, lambda: SVG.fget(figure)))


def draw_report(result: Any, *paths: Path) -> None:
    for path in paths:
        write_bytes(path, (result.public().rows, result.title), partial(REPORT, result, path))


def draw_lengths(lengths: Any, path: Path) -> None:
    counts = {name: values.to_list() for name, values in lengths.items()}
    write_bytes(path, counts, partial(LENGTHS, lengths, path))


def write_bytes(path: Path, data: Any, draw: Callable[[], object]) -> None:
    def drawn() -> bytes:
        draw()
        return path.read_bytes()

    path.write_bytes(once("file", path.name, data, drawn))


def use(patch: pytest.MonkeyPatch, *, anew: bool = False) -> None:
    """Draw each picture once, or anew."""
    patch.setattr(Figure, "svg", SVG if anew else property(svg))
    for module in (write, card):
        patch.setattr(module, "draw_report", REPORT if anew else draw_report)
    patch.setattr(card, "draw_lengths", LENGTHS if anew else draw_lengths)
