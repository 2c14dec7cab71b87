"""What answers are, as numbers at a few points, and when two of them may be equal.

For `benchmarks.nearmiss.reading`.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from operator import mul
from typing import NamedTuple

POINTS = 3
ROUNDED = 1e-4  # relative difference below which decimals are not said to differ
DEGREE = complex(math.pi / 180)
NOISE = 1e-9  # the same for floating point
MOST_BITS = 20_000  # of a power or factorial

Scalar = Fraction | complex
Number = tuple[Scalar, ...]  # one value at each point

# What a unit measures, and its size: written down anew, for it checks the grader's table.
UNITS: dict[str, dict[str, str]] = {
    "length": {
        "mm": "0.001", "cm": "0.01", "centimeter": "0.01", "m": "1", "meter": "1", "km": "1000",
        "kilometer": "1000", "inch": "0.0254", "in": "0.0254", "foot": "0.3048", "ft": "0.3048",
        "yard": "0.9144", "mile": "1609.344", "厘米": "0.01", "米": "1", "千米": "1000",
    },
    "mass": {
        "mg": "1e-6", "g": "0.001", "gram": "0.001", "kg": "1", "kilogram": "1", "pound": "0.4536",
        "ounce": "0.02835", "ton": "1000", "克": "0.001", "千克": "1", "吨": "1000",
    },
    "time": {
        "second": "1", "minute": "60", "hour": "3600", "day": "86400", "week": "604800",
        "month": "2629746", "year": "31556952", "秒": "1", "分钟": "60", "小时": "3600", 
        "天": "86400",
    },
    "dollars": {"cent": "0.01", "dollar": "1"},
    "euros": {"euro": "1"},
    "yen": {"yen": "1", "yuan": "0.7", "元": "0.7"},
    "volume": {"ml": "0.001", "liter": "1", "gallon": "3.785", "升": "1", "毫升": "0.001"},
    "angle": {"degree": "0.0174533", "radian": "1"},
}  # fmt: skip
PLURALS = {"inches": "inch", "feet": "foot"}


class UnreadableError(Exception):
    """This reader does not know what the text means."""


class Value(NamedTuple):
    """What an answer, or a part of it, is.

    `shape` says how it is built: `number`, `list` (also sets: in any order), `row` with its
    brackets, `matrix`, `relation` with its sign, `quantity` with what its unit measures.
    """

    shape: str
    number: Number = ()
    parts: tuple[Value, ...] = ()


def measure(word: str) -> tuple[str, Fraction] | None:
    """What a unit measures and its size, or None for words that are no unit in `UNITS`."""
    word = PLURALS.get(word, word)
    for dimension, sizes in UNITS.items():
        size = sizes.get(word, sizes.get(word.removesuffix("s")))
        if size is not None:
            return dimension, Fraction(size)
    return None


@lru_cache(maxsize=256)
def at_points(letter: str) -> Number:
    """What a letter is at each point: i and e are themselves."""
    if letter in ("i", "e"):
        return (1j if letter == "i" else complex(math.e),) * POINTS
    points = random.Random(re.sub(r"_\{(.*)\}", r"_\1", letter))
    return tuple(Fraction(points.randint(101, 399), 97) for _ in range(POINTS))


def constant(value: Scalar) -> Value:
    """The same number at each point."""
    return Value("number", (value,) * POINTS)


def numbers(value: Value) -> Number:
    """Of a value that is a number; raises UnreadableError for others."""
    if value.shape != "number":
        raise UnreadableError
    return value.number


def both(work: Callable[[Scalar, Scalar], Scalar], one: Value, other: Value) -> Value:
    """Two numbers combined at each point; raises UnreadableError for others."""
    return Value("number", at_each(work, numbers(one), numbers(other)))


def at_each(work: Callable[[Scalar, Scalar], Scalar], one: Number, other: Number) -> Number:
    """The values of `work` at each point, exact where both sides are."""
    if not one or not other:
        raise UnreadableError
    return tuple(
        work(a, b)
        if isinstance(a, Fraction) and isinstance(b, Fraction)
        else work(complex(a), complex(b))
        for a, b in zip(one, other, strict=True)
    )


def raised(base: Scalar, exponent: Scalar) -> Scalar:
    """A power: exact for whole exponents and perfect squares. Raises UnreadableError where huge."""
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if exponent.denominator == 1:
            size = max(base.numerator.bit_length(), base.denominator.bit_length())
            if size * abs(exponent) > MOST_BITS:
                raise UnreadableError
            return base ** int(exponent)
        if base > 0 and exponent == Fraction(1, 2):
            root = Fraction(math.isqrt(base.numerator), math.isqrt(base.denominator))
            if root * root == base:
                return root
    return complex(base) ** complex(exponent)


def whole(value: Scalar) -> int:
    """A small whole number; raises UnreadableError for others."""
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value < 1000:
        raise UnreadableError
    return int(value)


def absolute(value: Scalar) -> Scalar:
    """The size of a number."""
    return abs(value) if isinstance(value, Fraction) else complex(abs(value))


def binomial(above: Scalar, below: Scalar) -> Scalar:
    """Of small whole numbers; raises UnreadableError for others."""
    return Fraction(math.comb(whole(above), whole(below)))


def scaled(value: Value, factor: Scalar) -> Value:
    """A number, a quantity or a matrix times a factor; raises UnreadableError for others."""
    if value.number and not value.shape.startswith("relation"):
        return value._replace(number=at_each(mul, value.number, (factor,) * POINTS))
    if value.shape in ("row matrix", "row"):
        return value._replace(parts=tuple(scaled(part, factor) for part in value.parts))
    raise UnreadableError


def same(one: Value, other: Value, tolerance: float) -> bool:
    """Whether they may be equal."""
    if "list" in (one.shape, other.shape):
        left, right = (each.parts if each.shape == "list" else (each,) for each in (one, other))
        return all(any(same(a, b, tolerance) for b in right) for a in left) and all(
            any(same(a, b, tolerance) for a in left) for b in right
        )
    if one.shape != other.shape:  # a unit may be left out, or said in other words
        words = [each.shape.split(" ") for each in (one, other)]
        if not all(each[0] in ("number", "quantity") for each in words):
            return False
        if all(len(each) > 1 and each[1] in UNITS for each in words):
            return False
    elif len(one.parts) != len(other.parts) or not all(
        same(a, b, tolerance) for a, b in zip(one.parts, other.parts, strict=True)
    ):
        return False
    elif one.shape.startswith("relation") and one.number:
        return _proportional(one, other, tolerance)
    return all(_close(a, b, tolerance) for a, b in zip(one.number, other.number, strict=True))


def _proportional(one: Value, other: Value, tolerance: float) -> bool:
    pairs = list(zip(one.number, other.number, strict=True))
    crossed = all(_close(a * d, b * c, tolerance) for a, b in pairs for c, d in pairs)
    if not crossed or one.shape[-1] == "=" or one.shape.endswith("ne"):
        return crossed
    return all((complex(a) * complex(b).conjugate()).real >= 0 for a, b in pairs)


def _close(one: Scalar, other: Scalar, tolerance: float) -> bool:
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return abs(one - other) <= Fraction(tolerance) * max(abs(one), abs(other))
    left, right = complex(one), complex(other)
    size = max(abs(left), abs(right))
    return abs(left - right) <= max(tolerance, NOISE) * size + NOISE
