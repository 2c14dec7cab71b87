"""A report's sections, and its page: one HTML file to send around, no script, light or dark.

A section is some text, a picture and tables; `page.html.jinja` lays them out, and a terminal shows
the tables and what was found. All text is escaped in the page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from textwrap import fill
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure as Drawing

from dto import __version__
from dto.reporting import pictures
from dto.reporting.pictures import TEXT
from dto.reporting.table import Table, template


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture, drawn when its SVG is asked for, and what it shows in words."""

    name: str
    says: str
    make: Callable[[], Drawing]

    @property
    def svg(self) -> str:
        """Not escaped; names in it are text, whatever signs they hold."""
        with rc_context(TEXT):
            return pictures.svg(self.make(), self.name)


def drawn(name: str, says: str, make: Callable[..., Drawing], *arguments: Any) -> Figure:
    """The picture that `make` draws of the arguments."""
    return Figure(name, says, partial(make, *arguments))


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a report.

    `facts` are sentences about this run. `text` before and `notes` after the tables, which say how
    to read them, are for the page alone, and so are `code`, shown as it is, and `folded`, shown on
    demand below its title. A table without rows is not shown.
    """

    id: str
    title: str
    text: tuple[str, ...] = ()
    figure: Figure | None = None
    tables: tuple[Table, ...] = ()
    facts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    code: str = ""
    folded: tuple[str, str] | None = None

    def __str__(self) -> str:
        """For a terminal."""
        tables = [table.text() for table in self.tables if table.rows and not table.folded]
        facts = "\n".join(fill(fact, 100) for fact in self.facts)
        title = f"── {self.title}"
        return "\n\n".join(filter(None, [title, *tables, facts]))


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A section that a run has no tables for, and why."""

    title: str
    why: str


@dataclass(frozen=True, slots=True)
class Headline:
    """A figure worth reading first; `mood`, of its claim, is good, bad or open."""

    what: str
    figure: str
    claim: str
    detail: str
    mood: str = "open"


def render_page(
    title: str,
    subtitle: str,
    headlines: Sequence[Headline],
    sections: Sequence[Section | LeftOut],
) -> str:
    """The HTML of a page."""
    return template("page.html.jinja").render(
        title=title,
        subtitle=subtitle,
        headlines=headlines,
        sections=[part for part in sections if isinstance(part, Section)],
        left_out=[part for part in sections if isinstance(part, LeftOut)],
        version=__version__,
    )
