r"""Parse cleaned answers into the records of `dto.grading.structure`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from math import ceil, floor

from dto.grading.notation import bare, typed
from dto.grading.quantity import quantity, split_unit
from dto.grading.structure import (
    EMPTY,
    Assignment,
    Equation,
    Family,
    Items,
    Leaf,
    Matrix,
    Node,
    Region,
    flat,
)

_TOKEN = re.compile(
    r"\\begin\{pmatrix\}|\\end\{pmatrix\}|\\text\s*\{[^{}]*\}|\\[A-Za-z]+|\\.|[^\w\s]", re.DOTALL
)
_OPENING = frozenset({"(", "[", "{", r"\{", r"\langle", r"\begin{pmatrix}"})
_CLOSING = frozenset({")", "]", "}", r"\}", r"\rangle", r"\end{pmatrix}"})
_RELATIONS = {
    "=": "=", "<": "<", ">": ">", r"\leq": "<=", r"\geq": ">=", r"\neq": "!=", r"\in": "in",
    r"\notin": "notin", r"\equiv": "=",
}  # fmt: skip
_TURNED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}
_JOINED = re.compile(r"\\(?:text|mbox|mathrm)\s*\{\s*,?\s*(and|or)\s*,?\s*\}", re.IGNORECASE)
_LOGIC = re.compile(r"\\(?:lor|vee)(?![A-Za-z])|\\(?:land|wedge)(?![A-Za-z])")
_WORD = re.compile(r"(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|[和与及或]", re.IGNORECASE)
_NAME = re.compile(
    r"(?:\\(?:vec|hat|bar|mathbf|mathrm|text|overline)\s*\{\s*[A-Za-z ]+\s*\}"
    r"|\\(?:alpha|beta|gamma|delta|epsilon|theta|lambda|mu|rho|sigma|phi|varphi|omega|Omega|Delta)"
    r"|[A-Za-z]|[A-Z]{2}|[A-Za-z]{3,})'*(?:\s*_\s*(?:[A-Za-z0-9]|\{[A-Za-z0-9+-]+\}))?"
    r"(?:\s*\(\s*[A-Za-z0-9](?:\s*,\s*[A-Za-z0-9])*\s*\))?"
)
_VARIABLE = re.compile(
    r"(?:[A-Za-z]|\\(?:alpha|beta|gamma|theta|lambda|mu|phi|omega))(?:_(?:\w|\{\w+\}))?"
    r"|[fgh]\([A-Za-z]\)"
)
_LETTERS = re.compile(
    r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])"
    r"|\\(?:alpha|beta|gamma|delta|theta|lambda|mu|rho|sigma|phi|varphi|omega)(?![A-Za-z])"
)
_CONDITION = re.compile(
    r"[,;]?\s*[(\[]?\s*(?:\\text\s*\{\s*,?\s*(?:where|for|with)?\s*(?:any|all|every|some)?"
    r"\s*(?:integers?)?\s*\}|\b(?:where|for|with)\b(?:\s+(?:any|all|every|some))?(?:\s+integers?)?)?"
    r"\s*([a-zA-Z])\s*(?:\\in\s*\\mathbb\{?[ZN]\}?|\\text\s*\{\s*is an(?:y)? integer\s*\}|"
    r"is an(?:y)? integer)\s*[)\]]?\s*$"
)
_PROSE = re.compile(r"(?<![A-Za-z\\{])(?!(?:and|or)\b)[A-Za-z]{3,}\s+(?!and\b|or\b)[A-Za-z]{2,}")
_REALS = re.compile(
    r"(?:\\text\s*\{)?\s*all real numbers(?: x)?(?:,? except(?: for)?\s*\}?\s*"
    r"(?:[a-z] ?(?:=|\\neq)\s*)?([^{}]+?))?\s*\}?",
    re.IGNORECASE,
)
_CASES = re.compile(r"\\begin\{cases\}(.+)\\end\{cases\}", re.DOTALL)
_IF = re.compile(r"^(?:\\(?:text|mbox)\s*\{\s*)?(?:if|for|when|where)?\s*\}?\s*|[,.]\s*$")
_FACTOR = re.compile(r"-?\s*(?:[\d.]+|\\(?:frac\{[^{}]*\}\{[^{}]*\}|sqrt\{[^{}]*\}))?|[a-z]")
_ABSOLUTE = re.compile(r"\|\s*([a-zA-Z])\s*\|")
_FOR_ALL = re.compile(
    r"\s*,?\s*\\text\s*\{\s*,?\s*for (?:all|any|every)(?: real)?(?: numbers?)?\s*\}\s*([a-zA-Z])"
    r"\s*(?:\\in\s*\\mathbb\{?R\}?)?\s*\.?$"
)
_NUMBERS = re.compile(r"([(\[])((?:[-+\d./, ]|\\frac\{\d+\}\{\d+\})+)([)\]])")
_INTEGERS = re.compile(r"[ZN]|integer")
_RELATED = re.compile(r"[=<>]|\\(?:leq|geq|neq|in|notin|equiv)(?![A-Za-z])")
_JOINTS = re.compile(
    r"[,;和与及或]|\b(?:and|or)\b|\\(?:lor|vee|land|wedge)(?![A-Za-z])", re.IGNORECASE
)
MOST_LISTED = 100  # integers of a set builder that are listed
_ENDS = ("()", "[]", "[)", "(]")
DEEPEST = 12  # nested brackets that are parsed
_PLUS_MINUS = re.compile(r"\\(pm|mp)(?![A-Za-z])")
_BUILDER = re.compile(r"[A-Za-z]\s*(?:\\mid(?![A-Za-z])|[|:])")
_MODULAR = re.compile(
    r"(.+?)\s*\(?\\(?:pmod|bmod|mod)\s*\{?\s*(\w+)\s*\}?\)?|(.+?)\s*\(?mod\s+(\w+)\)?"
)
_NO_SOLUTION = {"nosolution", "nosolutions", "emptyset", "theemptyset", "norealsolution",
                "norealsolutions", r"\emptyset"}  # fmt: skip


def read(cleaned: str) -> Node:
    """Parse an answer. Never fails: text without structure is a leaf."""
    return _read(typed(_thousands(cleaned)).strip(), 0)


def _thousands(text: str) -> str:
    """In `1,000, 2,000` only a comma with a space behind it separates numbers."""
    if ", " in text:
        return re.sub(r"(?<![\d,.])(\d{1,3}(?:,\d{3})+)(?!\d|,\d)",
                      lambda m: m[1].replace(",", ""), text)  # fmt: skip
    return text


def _read(text: str, depth: int) -> Node:
    text = text.strip().rstrip(".").strip()
    if depth > DEEPEST or quantity(text) is not None:
        return Leaf(text)
    if plain := _NUMBERS.fullmatch(text):  # most points and intervals; the rest is below
        parts = [part.strip() for part in plain[2].split(",")]
        if len(parts) > 1 and all(quantity(part) for part in parts):
            return Items(plain[1] + plain[3], tuple(map(Leaf, parts)))
    if (
        len(text) < 40
        and text[:1] not in "([{"
        and bare(text).replace(" ", "").lower() in _NO_SOLUTION
    ):
        return EMPTY
    if prose := _REALS.fullmatch(text):
        if not prose[1]:
            return Items("()", (Leaf(r"-\infty"), Leaf(r"\infty")))
        return Items("\\", tuple(Leaf(part) for part in _split(prose[1])[0]))
    if text == r"\mathbb{R}":
        return Items("()", (Leaf(r"-\infty"), Leaf(r"\infty")))
    if _INTEGERS.search(text) and (condition := _CONDITION.search(text)) and condition.start() > 0:
        domain = "N" if "{N}" in condition[0] or "mathbb N" in condition[0] else "Z"
        return Family(condition[1], _read(text[: condition.start()], depth + 1), domain)
    if text[:1] + text[-1:] in ("][", "[[", "]]"):  # ]a, b[ is (a, b)
        ends = _apart(text[1:-1], (",", ";"))[0]
        if len(ends) == 2 and all(ends):
            brackets = ("(" if text[0] == "]" else "[") + (")" if text[-1] == "[" else "]")
            return Items(brackets, tuple(_read(part, depth + 1) for part in ends))
    if (every := _FOR_ALL.search(text)) and every.start() > 0:
        return Family(every[1], _read(text[: every.start()], depth + 1), "R")
    if cases := _CASES.fullmatch(text):
        return _cases(cases[1], depth)
    if r"\approx" in text and len(rough := _apart(text, (r"\approx",))[0]) > 1 and rough[0]:
        named = len(rough) == 2 and _is_name(rough[0])
        return _read(" = ".join(rough) if named else rough[0], depth + 1)
    parts, joint = _split(text)
    if len(parts) > 1:
        return _several(parts, joint, depth)
    related = _related(text, depth)
    if related is not None:
        return related
    for sign in (r"\cup", r"\setminus"):
        sides = _apart(text, (sign,))[0]
        if len(sides) > 1 and all(sides):
            if sign == r"\setminus":
                return _without(text, sides, depth)
            return _joined([_read(side, depth + 1) for side in sides])
    wrapped = _wrapped(text, depth)
    if wrapped is None and "pmatrix" in text:
        wrapped = _multiple(text, depth)
    if wrapped is not None:
        return wrapped
    shares = _apart(text, (":",))[0]
    if len(shares) > 2 and all(shares):
        return Items(":", tuple(Leaf(share) for share in shares))
    if modular := _MODULAR.fullmatch(text):
        value, modulus = modular[1] or modular[3], modular[2] or modular[4]
        return Items("%", (_read(value, depth + 1), Leaf(modulus)))
    if _PLUS_MINUS.search(text):
        return _both(text, depth)
    return Leaf(text)


def _split(text: str) -> tuple[list[str], str]:
    """Split at commas, semicolons, "and", "or"; also return the word before the last part."""
    if not _JOINTS.search(text):
        return [text], ""
    text = _JOINED.sub(r" \1 ", text)
    joint = ""
    if _RELATED.search(text) and _LOGIC.search(text):
        text = _LOGIC.sub(lambda m: " or " if m[0] in (r"\lor", r"\vee") else " and ", text)
    words = _WORD.findall(text) if " " in text or not text.isascii() else []
    if words and not _PROSE.search(text):  # a sentence is one leaf
        joint = "or" if words[-1].lower() in ("or", "或") else "and"
        text = _WORD.sub(" , ", text)
    semicolons = _apart(text, (";",))[0]
    if len(semicolons) > 1:
        return [part for part in semicolons if part], joint
    return [part for part in _apart(text, (",",))[0] if part], joint


def _apart(text: str, signs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split at signs outside brackets; also return the signs."""
    if not any(sign in text for sign in signs):
        return [text.strip()], []
    parts, separators, depth, begin = [], [], 0, 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in _OPENING:
            depth += 1
        elif token in _CLOSING:
            depth -= 1
        elif depth <= 0 and token in signs:
            parts.append(text[begin : match.start()].strip())
            separators.append(token)
            begin = match.end()
    return [*parts, text[begin:].strip()], separators


def _several(parts: list[str], joint: str, depth: int) -> Node:
    nodes = [_read(part, depth + 1) for part in parts]
    regions = [node for node in nodes if isinstance(node, Region)]
    if len(regions) == len(nodes) and len({region.variable for region in regions}) == 1:
        places = [region.place for region in regions]
        if joint == "or":
            return Region(regions[0].variable, _joined(places))
        if gap := _with_gap(places):
            return Region(regions[0].variable, gap)
        if both := _both_sides(places):
            return Region(regions[0].variable, both)
        if all(isinstance(place, Items) and place.brackets == "\\" for place in places):
            points = (place.parts for place in places if isinstance(place, Items))
            return Region(regions[0].variable, Items("\\", tuple(chain.from_iterable(points))))
    return Items("", tuple(nodes))


def _both_sides(places: Sequence[Node]) -> Node | None:
    """Read `x > 1` and `x < 3` as one interval."""
    ends = [(place.brackets, *place.parts) for place in places if isinstance(place, Items)
            and len(place.parts) == 2]  # fmt: skip
    if len(ends) != 2 or len(places) != 2:
        return None
    low = [end for end in ends if end[2] == Leaf(r"\infty") and end[1] != Leaf(r"-\infty")]
    high = [end for end in ends if end[1] == Leaf(r"-\infty") and end[2] != Leaf(r"\infty")]
    if len(low) != 1 or len(high) != 1:
        return None
    return Items(low[0][0][0] + high[0][0][1], (low[0][1], high[0][2]))


def _with_gap(places: Sequence[Node]) -> Node | None:
    r"""Read `1 < x < 9` and `x \ne 5` as two intervals."""
    whole = [place for place in places if isinstance(place, Items) and place.brackets in _ENDS]
    gaps = [place for place in places if isinstance(place, Items) and place.brackets == "\\"]
    if len(places) != 2 or len(whole) != 1 or len(gaps) != 1 or len(gaps[0].parts) != 1:
        return None
    (start, end), (point,), brackets = whole[0].parts, gaps[0].parts, whole[0].brackets
    return Items(
        "|", (Items(f"{brackets[0]})", (start, point)), Items(f"({brackets[1]}", (point, end)))
    )


def _related(text: str, depth: int) -> Node | None:
    """Read an equation, an inequality or a membership; None for anything else."""
    if not _RELATED.search(text):
        return None
    operands, signs = _apart(text, tuple(_RELATIONS))
    if not signs or not all(operands):
        return None
    kinds = [_RELATIONS[sign] for sign in signs]
    if set(kinds) == {"="}:
        return _equation(text, operands, depth)
    if kinds == ["in"] and _VARIABLE.fullmatch(bare(operands[0])):
        place = _read(operands[1], depth + 1)
        return Region(bare(operands[0]), place) if isinstance(place, Items) else Leaf(text)
    if len(operands) == 2 and kinds[0] in _TURNED:
        return _one_sided(text, operands, kinds[0])
    if len(operands) == 3:
        return _chain(text, operands, kinds)
    return Leaf(text)


def _equation(text: str, operands: list[str], depth: int) -> Node:
    first, last = operands[0], operands[-1]
    names, _ = _apart(first[1:-1], (",",)) if first[:1] + first[-1:] == "()" else ([], [])
    if len(operands) == 2 and len(names) > 1 and all(_NAME.fullmatch(name) for name in names):
        value = _read(last, depth + 1)
        if isinstance(value, Items) and value.brackets == "()" and len(value.parts) == len(names):
            pairs = zip(names, value.parts, strict=True)
            return Items("", tuple(Assignment(bare(name), part, text) for name, part in pairs))
    if _is_name(first) and (len(operands) == 2 or not _NAME.fullmatch(last)):
        return Assignment(bare(first), _read(last, depth + 1), text)
    if len(operands) == 2 and _is_name(last):
        return Assignment(bare(last), _read(first, depth + 1), text)
    return Equation(first, _read(last, depth + 1), text)


def _is_name(text: str) -> bool:
    return bool(_NAME.fullmatch(text)) and text not in ("e", "i")


def _one_sided(text: str, operands: list[str], kind: str) -> Node:
    left, right = operands
    absolute = _ABSOLUTE.fullmatch(left)
    if absolute and _constant(right) is not None and kind != "!=":
        ends = Leaf(f"-({right})" if not right.isdigit() else f"-{right}"), Leaf(right)
        inside, low, high = {"<": ("()", "(]", "[)"), "<=": ("[]", "()", "()"),
                             ">": ("[]", "()", "()"), ">=": ("()", "(]", "[)")}[kind]  # fmt: skip
        if kind in ("<", "<="):
            return Region(absolute[1], Items(inside, ends), text)
        outside = (Items(low, (Leaf(r"-\infty"), ends[0])), Items(high, (ends[1], Leaf(r"\infty"))))
        return Region(absolute[1], Items("|", outside), text)
    if not _VARIABLE.fullmatch(bare(left)):
        left, right, kind = right, left, _TURNED[kind]
    if not _VARIABLE.fullmatch(bare(left)) or _constant(right) is None:
        return Leaf(text)
    variable, end = bare(left), Leaf(right)
    if kind == "!=":
        return Region(variable, Items("\\", (end,)), text)
    if kind in ("<", "<="):
        place = Items("()" if kind == "<" else "(]", (Leaf(r"-\infty"), end))
    else:
        place = Items("()" if kind == ">" else "[)", (end, Leaf(r"\infty")))
    return Region(variable, place, text)


def _chain(text: str, operands: list[str], kinds: list[str]) -> Node:
    low, middle, high = operands
    if set(kinds) <= {">", ">="}:
        low, high, kinds = high, low, [_TURNED[kind] for kind in reversed(kinds)]
    if not set(kinds) <= {"<", "<="} or not _VARIABLE.fullmatch(bare(middle)):
        return Leaf(text)
    if _constant(low) is None or _constant(high) is None:
        return Leaf(text)
    brackets = ("(" if kinds[0] == "<" else "[") + (")" if kinds[1] == "<" else "]")
    return Region(bare(middle), Items(brackets, (Leaf(low), Leaf(high))))


def _constant(text: str) -> str | None:
    r"""The text if it has no variable: `\sqrt{3}`, `e`, `-\frac{\pi}{2}`."""
    return None if set(_LETTERS.findall(text)) - {"e"} else text


def _cases(inner: str, depth: int) -> Node:
    """Read values with their conditions, in any order."""
    rows = [_apart(row, ("&",))[0] for row in _apart(inner, ("\\\\",))[0] if row.strip()]
    parts = []
    for row in rows:
        value, condition = row[0].rstrip(", "), _IF.sub("", " ".join(row[1:]))
        cells = (_read(value, depth + 1), _read(_IF.sub("", condition), depth + 1))
        parts.append(Items("()", cells))
    return Items("{}", tuple(parts))


def _multiple(text: str, depth: int) -> Node | None:
    """Read a matrix with a factor before it."""
    begin = text.index(r"\begin{pmatrix}") if r"\begin{pmatrix}" in text else 0
    factor = text[:begin].removesuffix(r"\cdot ").strip()
    matrix = _wrapped(text[begin:], depth) if factor else None
    if not isinstance(matrix, Matrix) or not _FACTOR.fullmatch(factor):
        return None
    cells = [[part.text if isinstance(part, Leaf) else None for part in row] for row in matrix.rows]
    if any(cell is None for row in cells for cell in row):
        return None
    return Matrix(tuple(tuple(Leaf(f"{factor}({cell})") for cell in row) for row in cells))


def _joined(places: Sequence[Node]) -> Node:
    """The union of intervals; all numbers but some points if only single points are missing."""
    pieces = [
        part for place in places
        for part in (place.parts if isinstance(place, Items) and place.brackets == "|" else [place])
    ]  # fmt: skip
    ends = [part.parts for part in pieces if isinstance(part, Items) and part.brackets == "()"
            and len(part.parts) == 2]  # fmt: skip
    if len(ends) == len(pieces) > 1:
        starts = {start: end for start, end in ends}
        at: Node | None = Leaf(r"-\infty")
        left_out = []
        while at in starts:
            at = starts.pop(at)
            left_out.append(at)
        if not starts and at == Leaf(r"\infty"):
            return Items("\\", tuple(left_out[:-1]))
    return Items("|", tuple(pieces))


def _without(text: str, sides: list[str], depth: int) -> Node:
    points = _read(sides[1], depth + 1)
    if isinstance(points, Items) and points.brackets == "{}" and sides[0] == r"\mathbb{R}":
        return Items("\\", points.parts) if len(sides) == 2 else Leaf(text)
    return Leaf(text)


def _wrapped(text: str, depth: int) -> Node | None:
    """Read the content of the outer brackets; None if no pair encloses the whole text."""
    tokens = list(_TOKEN.finditer(text))
    if len(tokens) < 2 or tokens[0].start() or tokens[0][0] not in _OPENING:
        return None
    first, last = tokens[0][0], tokens[-1][0]
    if last not in _CLOSING or tokens[-1].end() < len(text):
        rest, unit = split_unit(text)
        node = _wrapped(rest, depth) if unit else None
        if isinstance(node, Items):  # each has this unit
            each = [
                Leaf(rf"{part.text}\text{{ {unit}}}") if isinstance(part, Leaf) else part
                for part in node.parts
            ]
            return Items(node.brackets, tuple(each))
        return node
    level = 0
    for match in tokens[:-1]:
        level += (match[0] in _OPENING) - (match[0] in _CLOSING)
        if level == 0:
            return None
    inner = text[tokens[0].end() : tokens[-1].start()].strip()
    if first == r"\begin{pmatrix}":
        rows = [row for row in _apart(inner, ("\\\\",))[0] if row]
        cells = [_apart(row, ("&",))[0] for row in rows]
        if len({len(row) for row in cells}) != 1:
            return None
        return Matrix(tuple(tuple(_read(cell, depth + 1) for cell in row) for row in cells))
    if first == r"\{":
        return _set(inner, depth)
    parts = [part for part in _apart(inner, (",",))[0] if part]
    if len(parts) == 1 and ";" in inner:
        parts = [part for part in _apart(inner, (";",))[0] if part]
    if first == "{":
        if len(parts) == 1 or quantity(inner) is not None:
            return _set(inner, depth) if _BUILDER.match(inner) else _read(inner, depth + 1)
        return Items("{}", tuple(_read(part, depth + 1) for part in parts))
    brackets = "()" if first == r"\langle" else first + last
    if len(parts) > 1:
        return Items(brackets, tuple(_read(part, depth + 1) for part in parts))
    return _read(inner, depth + 1) if brackets == "()" and inner else None


def _set(inner: str, depth: int) -> Node:
    if not inner:
        return EMPTY
    for sign in (r"\mid", "|", ":"):
        sides = _apart(inner, (sign,))[0]
        if len(sides) == 2 and all(sides):
            place = _read(sides[1], depth + 1)
            variable = bare(_apart(sides[0], (r"\in",))[0][0])
            domain = _apart(sides[0], (r"\in",))[0][1:]
            if domain in ([r"\mathbb{Z}"], [r"\mathbb{N}"]):
                listed = None
                if isinstance(place, Region) and place.variable == variable:
                    listed = _integers(place.place, natural=domain == [r"\mathbb{N}"])
                return listed or Leaf(rf"\{{{inner}\}}")
            if domain not in ([], [r"\mathbb{R}"]):
                return Leaf(rf"\{{{inner}\}}")
            if isinstance(place, Region) and place.variable == variable:
                return place.place
            return Leaf(rf"\{{{inner}\}}")
    parts = [part for part in _apart(inner, (",", ";"))[0] if part]
    return Items("{}", tuple(flat([_read(part, depth + 1) for part in parts])))


def _integers(place: Node, *, natural: bool) -> Node | None:
    """Turn a short interval of integers into a set."""
    if not isinstance(place, Items) or len(place.parts) != 2 or place.brackets not in _ENDS:
        return None
    ends = [quantity(part.text) if isinstance(part, Leaf) else None for part in place.parts]
    if ends[0] is None or ends[1] is None:
        return None
    low, high = ceil(ends[0].value), floor(ends[1].value)
    low += place.brackets[0] == "(" and low == ends[0].value
    high -= place.brackets[1] == ")" and high == ends[1].value
    if high - low > MOST_LISTED or (natural and low < 1):  # is 0 a natural number?
        return None
    return Items("{}", tuple(Leaf(str(number)) for number in range(low, high + 1)))


def _both(text: str, depth: int) -> Node:
    r"""Read `1 \pm 2` as two values; \mp has the opposite sign of the \pm before it."""
    count = text.count(r"\pm")
    if count > 3 or (count == 0):
        return Leaf(text)
    values = [text]
    if r"\mp" in text:
        swapped = [(" + ", " - "), (" - ", " + ")]
        values = [text.replace(r"\pm", plus).replace(r"\mp", minus) for plus, minus in swapped]
    else:
        for _ in range(count):
            values = [value.replace(r"\pm", sign, 1) for value in values for sign in (" + ", " - ")]
    return Items("", tuple(_read(value.strip().removeprefix("+ "), depth + 1) for value in values))
