"""A report as one HTML file that can be sent around: no script, no network, light or dark.

A page is a list of sections, each some text, a picture and tables; `page.html.jinja` lays them out.
All text is escaped there. What a section shows is decided by `dto.reporting.write`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure as Drawing

from dto import __version__
from dto.reporting import pictures
from dto.reporting.pictures import TEXT
from dto.reporting.table import Table


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture as SVG, which is not escaped, and what it shows in words."""

    svg: str
    says: str


def drawn(name: str, says: str, make: Callable[..., Drawing], *arguments: Any) -> Figure:
    """The picture that `make` draws; names in it are text, whatever signs they hold."""
    with rc_context(TEXT):
        return Figure(pictures.svg(make(*arguments), name), says)


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page. `code` is shown as it is, `folded` on demand below its title."""

    id: str
    title: str
    text: tuple[str, ...] = ()
    figure: Figure | None = None
    tables: tuple[Table, ...] = ()
    code: str = ""
    notes: tuple[str, ...] = ()
    folded: tuple[str, str] | None = None


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
    return _template().render(
        title=title,
        subtitle=subtitle,
        headlines=headlines,
        sections=[part for part in sections if isinstance(part, Section)],
        left_out=[part for part in sections if isinstance(part, LeftOut)],
        version=__version__,
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("dto.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup
    return environment.get_template("page.html.jinja")
