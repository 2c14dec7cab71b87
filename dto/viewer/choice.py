"""Which rows a page shows: conditions on the columns of its list, as in `outcome=repaired`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from dto.errors import DtoError
from dto.extension import nearest

if TYPE_CHECKING:
    from dto.viewer.page import Line

_FORM = re.compile(r"\s*(\w+)\s*(!=|>=|<=|=|>|<)\s*(.*?)\s*", re.DOTALL)
NUMBERS = ("tokens", "after")
"""The columns of numbers: tokens of a row, and of its shorter version (-1 without one)."""
NAMED = ("outcome", "grade", "task", "kind", "verdict", "prompt", "chain", "change", "ending")
"""The columns of names. A list without the column shows no row."""
SHOWN_VALUES = 12


class Condition(NamedTuple):
    """One condition: the column has one of the values, or is larger or smaller than the value."""

    column: str
    sign: str
    values: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.column}{self.sign}{','.join(self.values)}"

    def holds(self, line: Line) -> bool:
        """Whether a line of the list meets it."""
        if self.column in NUMBERS:
            tokens = line.before if self.column == "tokens" else line.after
            return any(_compared(tokens, self.sign, int(value)) for value in self.values)
        if self.column == "id":
            return any(map(line.id.startswith, self.values)) is (self.sign == "=")
        if self.column not in line.names:
            return False
        return bool({*line.names[self.column]} & {*self.values}) is (self.sign == "=")


def _compared(number: int, sign: str, limit: int) -> bool:
    return {
        "=": number == limit, "!=": number != limit, ">": number > limit,
        "<": number < limit, ">=": number >= limit, "<=": number <= limit,
    }[sign]  # fmt: skip


def parse(text: str) -> Condition:
    """Read `column=value,value`, `column!=value`, `tokens>4000` or `id=BEGINNING`.

    Raises DtoError for another form, for a column that no list has, and for numbers that are none.
    """
    match = _FORM.fullmatch(text)
    if match is None or not match[3]:
        raise DtoError(
            f"--filter {text!r}: write a condition, as in outcome=repaired,shortened or tokens>4000"
        )
    column, sign = match[1], match[2]
    values = tuple(value.strip() for value in match[3].split(","))
    columns = ("id", *NUMBERS, *NAMED)
    if column not in columns:
        raise DtoError(
            f"--filter {text!r}: there is no column {column!r}{nearest(column, columns)}: use "
            f"{', '.join(columns)}"
        )
    if column in NUMBERS and not all(re.fullmatch(r"-?\d+", value) for value in values):
        raise DtoError(f"--filter {text!r}: {column} is a number of tokens, as in {column}>4000")
    if column not in NUMBERS and sign not in ("=", "!="):
        raise DtoError(f"--filter {text!r}: {column} has names: compare them with = or !=")
    if column in NUMBERS and sign in ("!=",) and len(values) > 1:
        raise DtoError(f"--filter {text!r}: one number after {sign}")
    return Condition(column, sign, values)


class Choice:
    """The conditions of a page, all of which a row has to meet, and what its rows have instead."""

    def __init__(self, conditions: Sequence[Condition] = ()) -> None:
        self.conditions = tuple(conditions)
        self._seen = {each.column: Counter[str]() for each in conditions if each.column in NAMED}

    def __str__(self) -> str:
        return " and ".join(map(str, self.conditions))

    def takes(self, line: Line) -> bool:
        """Whether the page shows a row."""
        for column, seen in self._seen.items():
            seen.update(line.names.get(column, ()))
        return all(each.holds(line) for each in self.conditions)

    def nothing(self) -> str:
        """What to say if no row meets the conditions: the values that there are."""
        said = [f"no row has {self}"]
        for column, seen in self._seen.items():
            most = [f"{value} ({count:,})" for value, count in seen.most_common(SHOWN_VALUES)]
            said.append(f"{column} is {', '.join(most) or 'in no row'}")
        return "; ".join(said)
