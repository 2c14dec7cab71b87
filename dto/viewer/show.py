"""`dto.show`: a row of a run, or a row at hand, in a notebook or a terminal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dto.errors import DtoError
from dto.viewer.data import RunTables
from dto.viewer.render import Shown, html
from dto.viewer.terminal import plain, rich_text

if TYPE_CHECKING:
    from rich.text import Text


@dataclass(frozen=True, slots=True)
class Display:
    """Shows `row` as HTML in a notebook, as text in a terminal, with colours where `rich` prints.

    `row` is the row itself, or the view that joins it with what a run says of it.
    """

    row: Shown

    def _repr_html_(self) -> str:
        return html(self.row)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))

    def __str__(self) -> str:
        return plain(self.row)

    def __rich__(self) -> Text:
        return rich_text(self.row)


def show(row: Path | str | Shown, row_id: str = "") -> Display:
    """A trajectory of a run, joined with its segments, exits, verdicts, version and pairs.

    In a notebook it displays itself as `dto view` would; `print` gives a terminal's form. `row` is
    the run's directory, and `row_id` a trajectory's id or the beginning of one (the first that
    fits; the first of all by default); that of a test problem, `problem/sample`, gives what the
    evaluation answered, which is also what a run without trajectories shows first; so do those of
    DRQA's chains and batch prompts, in full. A Trajectory, an OptimizedTrajectory, a PreferencePair
    or a view in place of the run is shown by itself. Raises DtoError for an id that no row has, and
    for what has no display.
    """
    shown = RunTables.open(row).find(row_id) if isinstance(row, Path | str) else row
    if not isinstance(shown, Shown):
        raise DtoError(
            f"a {type(shown).__name__} has no display: give a run, a Trajectory, an "
            "OptimizedTrajectory or a PreferencePair"
        )
    return Display(shown)
