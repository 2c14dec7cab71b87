r"""The structure of answers: a value, several values, a tuple, an interval, a matrix.

`dto.grading.parsing.read` parses cleaned text down to leaves (numbers, expressions, words), which
are text; `same` compares two answers, and calls a function for each pair of leaves.

- `x<3`, `(-\infty,3)`, `x \in (-\infty,3)` and `\{x \mid x<3\}` are one region; so are unions and
  inequalities joined by "or". If both sides name their variable, it has to be the same.
- A list `1, 2`, with "and" or "or", has no order; neither has a set, which also has no repetitions.
  `\{1,2\}` and `1, 2` are equal. `(1,2)` is a tuple: `1, 2` in that order equals it as an answer;
  as the gold answer `1, 2` is a list, and no tuple equals it.
- `1 \pm \sqrt{2}` are two values.
- `x = 5` equals 5; `x = 5` and `y = 5` differ. `9 = y` is `y = 9`.
- A column or row of numbers equals the tuple of its entries; a row and a column differ.
- `3 \pmod 7` equals 3: the question names the modulus.
- `k \in \mathbb{Z}` behind a value may be missing, and the letter may differ.
- `\begin{cases}` is a set of values with their conditions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

from dto.grading.notation import bare
from dto.grading.quantity import quantity

MOST_PARTS = 1_000  # of one list; a longer one is not an answer
_LETTER = re.compile(r"(?<![\\A-Za-z])(?![ei](?![A-Za-z]))[A-Za-z]+")  # e and i are numbers
_UNSOLVED = re.compile(
    r"(?:[\d\s.+*/^(){}|'!_-]|\\(?:cdot|times|frac|sqrt|sin|cos|tan|log|ln)(?![A-Za-z])|[a-z])+"
)
_UNIT_TERM = re.compile(
    r"([+-]?)\s*([^ijk+=,;-]*?(?:\([^()]*\))?)\s*(?:\\cdot\s*)?(?:\\(?:hat|vec)\s*\{?\s*)?"
    r"\\?([ijk])(?:math)?\s*\}?(?![A-Za-z])\s*"
)
_UNIT_VECTORS = re.compile(
    rf"(?:{_UNIT_TERM.pattern.replace('([+-]?)', '[+-]?').replace('([ijk])', '[ijk]')}){{2,3}}"
)
AT_ONCE = 20  # most unordered parts that are compared without algebra beyond the first

Leaves = Callable[[str, str], bool | None]


class Leaf(NamedTuple):
    """A number, an expression, an equation or a word, as text for the comparison of leaves."""

    text: str


class Items(NamedTuple):
    r"""Several answers: `brackets` is one of `""` (a list), `{}`, `()`, `[]`, `[)`, `(]`.

    `\` means all real numbers but these, `|` a union, `%` a value and its modulus, `:` a ratio of
    three or more.
    """

    brackets: str
    parts: tuple[Node, ...]


class Matrix(NamedTuple):
    """Rows of entries."""

    rows: tuple[tuple[Node, ...], ...]


class Assignment(NamedTuple):
    """`name = value`; `text` is the whole equation."""

    name: str
    value: Node
    text: str


class Equation(NamedTuple):
    """`left = value` if the left side is not a name; `text` is the whole equation."""

    left: str
    value: Node
    text: str


class Region(NamedTuple):
    """The region of a variable; `text` is the inequality, if it is one."""

    variable: str
    place: Node
    text: str = ""


class Family(NamedTuple):
    r"""A value for every integer: `k \pi, k \in \mathbb{Z}`."""

    variable: str
    value: Node
    domain: str = "Z"


Node = Leaf | Items | Matrix | Assignment | Equation | Region | Family
EMPTY = Items("{}", ())


def leaves(node: Node) -> list[str]:
    """The texts of all leaves, without the names in equations."""
    if isinstance(node, Leaf):
        return [node.text]
    if isinstance(node, Assignment):
        return leaves(node.value)
    if isinstance(node, Equation):
        return [node.text] if isinstance(node.value, Leaf) else leaves(node.value)
    if isinstance(node, Region):
        return leaves(node.place)
    if isinstance(node, Family):
        return leaves(node.value)
    parts = node.parts if isinstance(node, Items) else [part for row in node.rows for part in row]
    return [text for part in parts for text in leaves(part)]


def same(gold: Node, given: Node, leaf: Leaves) -> bool | None:
    """Whether two answers are equal; None if a pair of leaves is undecided."""
    gold, given = _alone(gold), _alone(given)
    if isinstance(gold, Family) or isinstance(given, Family):
        return _same_families(gold, given, leaf)
    if isinstance(gold, Equation) or isinstance(given, Equation):
        return _same_equations(gold, given, leaf)
    if isinstance(gold, Assignment) and isinstance(given, Assignment):
        if bare(gold.name) == bare(given.name):
            return same(gold.value, given.value, leaf)
        if isinstance(gold.value, Leaf) and isinstance(given.value, Leaf):
            mixed = _mentions(gold.value.text, given.name) or _mentions(given.value.text, gold.name)
            return leaf(gold.text, given.text) if mixed else False
        return False
    if isinstance(gold, Assignment):
        return same(gold.value, given, leaf)
    if isinstance(given, Assignment):
        return same(gold, given.value, leaf)
    if isinstance(gold, Region) or isinstance(given, Region):
        return _same_regions(gold, given, leaf)
    for side in (gold, given):
        if isinstance(side, Items) and side.brackets == "%" and not _both_modular(gold, given):
            value = side.parts[0]
            return same(value, given, leaf) if side is gold else same(gold, value, leaf)
    return _same_inside(gold, given, leaf)


def _same_inside(gold: Node, given: Node, leaf: Leaves) -> bool | None:
    """Whether two parts of a set, a tuple or a list are equal: there `{5}` is not 5."""
    if gold == given:
        return True
    if isinstance(gold, Matrix) or isinstance(given, Matrix):
        return _same_matrices(gold, given, leaf)
    if isinstance(gold, Items) and gold.brackets == "()":
        given = _vector(given)
    if isinstance(given, Items) and given.brackets == "()":
        gold = _vector(gold)
    if isinstance(gold, Items) and isinstance(given, Items):
        return _same_items(gold, given, leaf)
    if isinstance(gold, Leaf) and isinstance(given, Leaf):
        return leaf(gold.text, given.text)
    if isinstance(gold, Items | Leaf) and isinstance(given, Items | Leaf):
        return False
    return same(gold, given, leaf)


def _alone(node: Node) -> Node:
    """Unwrap `{5}`, which equals 5 as an answer."""
    single = isinstance(node, Items) and node.brackets == "{}" and len(node.parts) == 1
    if isinstance(node, Items) and single and node.parts[0] != EMPTY:
        return node.parts[0]
    return node


def _both_modular(gold: Node, given: Node) -> bool:
    return all(isinstance(side, Items) and side.brackets == "%" for side in (gold, given))


def _same_families(gold: Node, given: Node, leaf: Leaves) -> bool | None:
    """Compare families: one side may omit that its letter is an integer; letters may differ."""
    if isinstance(gold, Family) and isinstance(given, Family):
        if gold.domain != given.domain:
            return False
        value = renamed(given.value, given.variable, gold.variable)
        return same(gold.value, value, leaf)
    family, other = (gold, given) if isinstance(gold, Family) else (given, gold)
    assert isinstance(family, Family)
    value = family.value
    if isinstance(value, Region) or (isinstance(value, Items) and value.brackets):
        return False  # the integers of an interval
    return same(value, other, leaf) if family is gold else same(other, value, leaf)


def renamed(node: Node, name: str, other: str) -> Node:
    """Replace the letter of a variable."""
    if isinstance(node, Leaf):
        return Leaf(re.sub(rf"(?<![\\A-Za-z]){name}(?![A-Za-z])", other, node.text))
    if isinstance(node, Items):
        return Items(node.brackets, tuple(renamed(part, name, other) for part in node.parts))
    if isinstance(node, Assignment):
        return Assignment(node.name, renamed(node.value, name, other), node.text)
    return node


def _same_equations(gold: Node, given: Node, leaf: Leaves) -> bool | None:
    if isinstance(gold, Equation):
        if not _LETTER.search(gold.left) and not isinstance(given, Equation):
            return same(gold.value, given, leaf)
        if isinstance(given, Equation) and bare(gold.left) == bare(given.left):
            return same(gold.value, given.value, leaf)
        if isinstance(given, Equation | Assignment) and isinstance(gold.value, Leaf):
            return leaf(gold.text, given.text)
        return False
    assert isinstance(given, Equation)
    if not _LETTER.search(given.left):  # 3 + 5 = 9 is false
        value = given.value
        holds = leaf(given.left, value.text) if isinstance(value, Leaf) else True
        equal = same(gold, value, leaf) if holds is not False else False
        return equal and holds
    if given.left.startswith("(") and "," in given.left:
        return False  # a point whose coordinates are not names
    if isinstance(gold, Assignment) and given.value == Leaf("0"):
        return leaf(gold.text, given.text)  # the line x = 3 is x - 3 = 0
    constant = not any(_LETTER.search(text) for text in leaves(gold))
    if constant and _LETTER.search(given.left) and _UNSOLVED.fullmatch(given.left):
        return False  # 2x + 3 = 7 is not solved yet
    if isinstance(gold, Assignment):
        return leaf(gold.text, given.text) if isinstance(gold.value, Leaf) else False
    return same(gold, given.value, leaf)


def _same_regions(gold: Node, given: Node, leaf: Leaves) -> bool | None:
    if isinstance(gold, Region) and isinstance(given, Region):
        return gold.variable == given.variable and same(gold.place, given.place, leaf)
    region, other = (gold, given) if isinstance(gold, Region) else (given, gold)
    assert isinstance(region, Region)
    if isinstance(other, Leaf) and region.text:  # -x < -3
        pair = region.text, other.text
        return leaf(*(pair if region is gold else pair[::-1]))
    place = region.place
    return same(place, given, leaf) if region is gold else same(gold, place, leaf)


def _mentions(text: str, name: str) -> bool:
    return bool(re.search(rf"(?<![A-Za-z\\]){re.escape(bare(name)[:1])}", text))


def _same_items(gold: Items, given: Items, leaf: Leaves) -> bool | None:
    brackets = gold.brackets, given.brackets
    if brackets == ("()", ""):
        named = [part.name.lstrip("\\") for part in given.parts if isinstance(part, Assignment)]
        if named and named != sorted(set(named)):
            return False  # (1,2) is not y = 1, x = 2
        return _in_order(gold.parts, _values(given.parts), leaf)
    names = {part.name for part in gold.parts if isinstance(part, Assignment)}
    if brackets == ("", "()") and len(names) == len(gold.parts):
        return _in_order(_values(gold.parts), given.parts, leaf)
    if brackets[0] != brackets[1] and set(brackets) != {"", "{}"}:
        return False
    if brackets[0] == ":":
        shares = [
            [Leaf(rf"\frac{{{part.text}}}{{{side.parts[0].text}}}") for part in side.parts[1:]
             if isinstance(part, Leaf) and isinstance(side.parts[0], Leaf)]
            for side in (gold, given)
        ]  # fmt: skip
        return _in_order(shares[0], shares[1], leaf)
    unnamed = not any(isinstance(part, Assignment) for part in given.parts)
    if brackets == ("", "") and len(names) == len(gold.parts) > 1 and unnamed:
        return _in_order(_values(gold.parts), given.parts, leaf)
    if brackets[0] in ("", "{}", "|", "\\"):
        sides = [flat(side.parts) for side in (gold, given)]
        if brackets == ("{}", "{}"):
            sides = [list(dict.fromkeys(side)) for side in sides]
        return _in_any_order(sides[0], sides[1], leaf)
    return _in_order(gold.parts, given.parts, leaf)


def _values(parts: Sequence[Node]) -> list[Node]:
    return [part.value if isinstance(part, Assignment) else part for part in parts]


def flat(parts: Sequence[Node]) -> list[Node]:
    r"""`x = 1, 2` and `-2, 1 \pm \sqrt{5}` are lists of two and three values."""
    nodes: list[Node] = []
    for part in parts:
        if isinstance(part, Items) and part.brackets == "":
            nodes += flat(part.parts)
        elif (
            isinstance(part, Assignment)
            and isinstance(part.value, Items)
            and not part.value.brackets
        ):
            nodes += [Assignment(part.name, each, part.text) for each in flat(part.value.parts)]
        else:
            nodes.append(part)
    return nodes


def _in_order(gold: Sequence[Node], given: Sequence[Node], leaf: Leaves) -> bool | None:
    if len(gold) != len(given):
        return False
    decided = True
    for pair in zip(gold, given, strict=True):
        equal = _same_inside(*pair, leaf)
        if equal is False:
            return False
        decided = decided and equal is not None
    return True if decided else None


def _in_any_order(gold: Sequence[Node], given: Sequence[Node], leaf: Leaves) -> bool | None:
    """Whether the parts can be paired: a perfect matching, by augmenting paths."""
    if len(gold) != len(given) or len(gold) > MOST_PARTS:
        return False
    expected, rest = _unlike(gold, given)
    cells = []
    for part in expected:
        row = [_same_inside(part, other, leaf) for other in rest]
        if not any(cell is not False for cell in row):
            return False
        if True not in row and len(expected) > AT_ONCE:
            return None
        cells.append(row)
    if _matched([[cell is True for cell in row] for row in cells]):
        return True
    possible = _matched([[cell is not False for cell in row] for row in cells])
    return None if possible else False


def _unlike(gold: Sequence[Node], given: Sequence[Node]) -> tuple[list[Node], list[Node]]:
    """Remove parts that are equal texts or plain numbers from both."""
    counts = Counter(map(_key, given))
    left = []
    for part, key in zip(gold, map(_key, gold), strict=True):
        if counts[key]:
            counts[key] -= 1
        else:
            left.append(part)
    over = []
    for part, key in zip(given, map(_key, given), strict=True):
        if counts[key]:
            counts[key] -= 1
            over.append(part)
    return left, over


def _key(part: Node) -> Node | Fraction:
    number = quantity(part.text) if isinstance(part, Leaf) else None
    return part if number is None or number.unit or number.decimal else number.value


def _matched(allowed: list[list[bool]]) -> bool:
    partner: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        for column, allows in enumerate(allowed[row]):
            if allows and column not in tried:
                tried.add(column)
                if column not in partner or place(partner[column], tried):
                    partner[column] = row
                    return True
        return False

    return all(place(row, set()) for row in range(len(allowed)))


def _vector(node: Node) -> Node:
    """Read `3i - j + 2k` as a tuple."""
    if not isinstance(node, Leaf) or not _UNIT_VECTORS.fullmatch(node.text):
        return node
    parts = {}
    for term in _UNIT_TERM.finditer(node.text):
        sign, size, name = term[1].strip(), term[2].strip(" *"), term[3]
        if name in parts:
            return node
        parts[name] = f"{'-' if sign == '-' else ''}{size or '1'}"
    names = "ijk" if "k" in parts else "ij"
    return Items("()", tuple(Leaf(parts.get(name, "0")) for name in names))


def _same_matrices(gold: Node, given: Node, leaf: Leaves) -> bool | None:
    rows = [_rows(_vector(node)) for node in (gold, given)]
    if rows[0] is None or rows[1] is None:
        return False
    vector = not (isinstance(gold, Matrix) and isinstance(given, Matrix))
    if vector:  # a tuple beside a row or a column
        rows = [
            [tuple(part for row in side for part in row)] if min(len(side), len(side[0])) == 1
            else side
            for side in rows if side
        ]  # fmt: skip
    gold_rows, given_rows = rows
    assert gold_rows is not None and given_rows is not None
    if [len(row) for row in gold_rows] != [len(row) for row in given_rows]:
        return False
    cells = [[part for row in side for part in row] for side in (gold_rows, given_rows)]
    return _in_order(cells[0], cells[1], leaf)


def _rows(node: Node) -> list[tuple[Node, ...]] | None:
    if isinstance(node, Matrix):
        return list(node.rows)
    if isinstance(node, Items) and node.brackets in ("()", "[]"):
        inner = [part.parts for part in node.parts if isinstance(part, Items)
                 and part.brackets in ("()", "[]")]  # fmt: skip
        if len(inner) == len(node.parts) and len({len(row) for row in inner}) == 1:
            return inner
        return [node.parts]
    return None
