"""Sections of a report and its page: one HTML file without scripts, with light and dark colours.

A section has text, a picture and tables. `page.html.jinja` lays them out; a terminal shows the
tables and facts. The page escapes all text.
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
    """A picture that is drawn when its SVG is read, and its description in words."""

    name: str
    description: str
    make: Callable[[], Drawing]

    @property
    def svg(self) -> str:
        """Draw the picture. The SVG is not escaped; a dollar sign in a name starts no formula."""
        with rc_context(TEXT):
            return pictures.svg(self.make(), self.name)


def make_figure(
    name: str, description: str, make: Callable[..., Drawing], *arguments: Any
) -> Figure:
    """Return the picture that `make` draws from the arguments."""
    return Figure(name, description, partial(make, *arguments))


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a report.

    `facts` are sentences about this run. Only the page shows `text` (above the tables), `notes`
    (below), `code` (verbatim), `html` (escaped by its maker) and `folded` (title and text, opened
    by a click). A table without rows is not shown.
    """

    id: str
    title: str
    text: tuple[str, ...] = ()
    figure: Figure | None = None
    tables: tuple[Table, ...] = ()
    facts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    code: str = ""
    html: str = ""
    folded: tuple[str, str] | None = None

    def __str__(self) -> str:
        """Format title, tables and facts for a terminal."""
        tables = [table.text() for table in self.tables if table.rows and not table.folded]
        facts = "\n".join(fill(fact, 100) for fact in self.facts)
        title = f"── {self.title}"
        return "\n\n".join(filter(None, [title, *tables, facts]))


@dataclass(frozen=True, slots=True)
class OmittedSection:
    """A section that a run has no data for, and the reason."""

    title: str
    reason: str


@dataclass(frozen=True, slots=True)
class Headline:
    """A card at the top of the page; `mood` of the claim is good, bad or open."""

    title: str
    figure: str
    claim: str
    detail: str
    mood: str = "open"


def render_page(
    title: str,
    subtitle: str,
    headlines: Sequence[Headline],
    sections: Sequence[Section | OmittedSection],
) -> str:
    """Return the HTML of a page."""
    return template("page.html.jinja").render(
        title=title,
        subtitle=subtitle,
        headlines=headlines,
        sections=[section for section in sections if isinstance(section, Section)],
        omitted=[section for section in sections if isinstance(section, OmittedSection)],
        version=__version__,
    )
