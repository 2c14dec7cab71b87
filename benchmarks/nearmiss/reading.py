r"""A second reader of answers, independent of the grader: are two of them shown to differ?

`differ` reads both at a few fixed points (a number for each letter) and compares what comes out:
numbers exactly as fractions where they are rational, else as floating point; points, intervals and
matrices element by element; lists and sets in any order; equations and inequalities up to a factor;
units of measure converted. Where it cannot read, nothing is shown. It shares no code with
`dto.grading.compare` and none with math-verify, so that it can measure both
(`benchmarks.nearmiss`); it grades nothing.
"""

from __future__ import annotations

import cmath
import math
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from operator import add, mul, sub, truediv

from benchmarks.nearmiss.tokens import OPENING, RELATIONS, Token, tokens
from benchmarks.nearmiss.values import (
    DEGREE,
    ROUNDED,
    Scalar,
    UnreadableError,
    Value,
    absolute,
    at_each,
    at_points,
    binomial,
    both,
    constant,
    measure,
    numbers,
    raised,
    same,
    scaled,
    whole,
)  # fmt: skip

_TURNED = {">": "<", r"\ge": r"\le"}
_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    r"\sin": cmath.sin, r"\cos": cmath.cos, r"\tan": cmath.tan, r"\exp": cmath.exp,
    r"\cot": lambda x: 1 / cmath.tan(x), r"\sec": lambda x: 1 / cmath.cos(x),
    r"\csc": lambda x: 1 / cmath.sin(x), r"\arcsin": cmath.asin, r"\arccos": cmath.acos,
    r"\arctan": cmath.atan, r"\sinh": cmath.sinh, r"\cosh": cmath.cosh, r"\tanh": cmath.tanh,
    r"\ln": cmath.log, r"\log": cmath.log10,
}  # fmt: skip
_CURRENCIES = {r"\$": "dollars", "€": "euros", "¥": "yen"}
_SEPARATORS = {"and", "or"}


def differ(one: str, other: str) -> bool:
    """Whether two answers are shown to mean different things; False where that is not certain."""
    words = as_words(one), as_words(other)
    if words[0] and words[1]:
        return words[0] != words[1]
    try:
        values = read(one), read(other)
    except UnreadableError:
        return False
    rounded = any(re.search(r"\d?\.\d", text) for text in (one, other))
    return not same(*values, ROUNDED if rounded else 0.0)


def as_words(text: str) -> str:
    r"""The words that an answer is, in small letters; empty for anything that may be mathematics.

    Words in `\text{}` are words, as are Chinese ones and more than three Latin letters in a row.
    """
    bare = re.sub(r"\\(?:text|mbox|textbf|mathrm)\s*\{([^{}]*)\}", r" \1 ", text)
    bare = " ".join(bare.split()).strip("$. ").casefold()
    if not re.fullmatch(r"[^\W\d_]+(?:(?: |['’-])[^\W\d_]+)*|\([a-z]\)", bare):
        return ""
    return bare if "\\" in text or len(bare) > 3 or not bare.isascii() else ""


@lru_cache(maxsize=4096)
def read(text: str) -> Value:
    """What an answer is. Raises UnreadableError."""
    try:
        return _Reader(tokens(text)).answer()
    except (ArithmeticError, ValueError, IndexError, RecursionError) as error:
        raise UnreadableError from error


class _Reader:
    """Recursive descent over the tokens of one answer, with a value at each point."""

    def __init__(self, found: Sequence[Token]) -> None:
        self._tokens = found
        self._at = 0
        self._branch = 1  # what ± is
        self._branches = False

    def answer(self) -> Value:
        parts = self._items(())
        return parts[0] if len(parts) == 1 else Value("list", parts=tuple(parts))

    def _peek(self) -> str:
        return self._tokens[self._at].text if self._at < len(self._tokens) else ""

    def _kind(self) -> str:
        return self._tokens[self._at].kind if self._at < len(self._tokens) else ""

    def _take(self, *expected: str) -> str:
        text = self._peek()
        if not text or (expected and text not in expected):
            raise UnreadableError
        self._at += 1
        return text

    def _skip(self, text: str) -> bool:
        """Whether this comes next; it is taken then."""
        self._at += (found := self._peek() == text)
        return found

    def _items(self, ends: Sequence[str]) -> list[Value]:
        parts: list[Value] = []
        while True:
            parts.extend(self._branched())
            begin = self._at
            while self._peek() in (",", ";") or self._words() in _SEPARATORS:
                self._at += 1
            if self._at == begin:
                break
        if self._peek() not in (*ends, ""):
            raise UnreadableError
        return parts

    def _words(self) -> str:
        """The words of a token in text mode."""
        if self._kind() != "text":
            return ""
        return re.sub(r"^\\\w+\s*\{|\}$", "", self._peek()).strip(" .").lower()

    def _branched(self) -> Iterator[Value]:
        begin, self._branch, self._branches = self._at, 1, False
        yield self._relation()
        if self._branches:
            self._at, self._branch = begin, -1
            yield self._relation()
        self._branch = 1

    def _relation(self) -> Value:
        sides, signs = [self._union()], []
        while self._peek() in (*RELATIONS, r"\in"):
            signs.append(self._take())
            sides.append(self._union())
        if not signs:
            return sides[0]
        if signs == [r"\in"]:
            return sides[1]
        chain = []
        for sign, left, right in zip(signs, sides, sides[1:], strict=False):
            if sign in _TURNED:
                sign, left, right = _TURNED[sign], right, left
            if left.shape == right.shape == "number":
                chain.append(Value(f"relation {sign}", at_each(sub, left.number, right.number)))
            elif left.shape in ("number", right.shape):  # (x, y) = (1, 2)
                chain.append(Value(f"relation {sign}", parts=(left, right)))
            else:
                raise UnreadableError
        return chain[0] if len(chain) == 1 else Value("row chain", parts=tuple(chain))

    def _union(self) -> Value:
        parts, signs = [self._ratio()], set()
        while self._peek() in (r"\cup", r"\cap", r"\setminus"):
            signs.add(self._take())
            parts.append(self._ratio())
        if len(signs) > 1:
            raise UnreadableError
        shape = "list" if r"\cup" in signs else f"row {''.join(signs)}"
        return Value(shape, parts=tuple(parts)) if signs else parts[0]

    def _ratio(self) -> Value:
        parts = [self._sum()]
        while self._skip(":"):
            parts.append(self._sum())
        ratios = [
            Value("number", at_each(truediv, one.number, other.number))
            for one, other in pairwise(parts)
        ]
        return Value("row ratio", parts=tuple(ratios)) if ratios else parts[0]

    def _sum(self) -> Value:
        total: Value | None = None
        while total is None or self._peek() in ("+", "-", r"\pm"):
            factor = 1
            while self._peek() in ("+", "-", r"\pm"):
                sign = self._take()
                self._branches |= sign == r"\pm"
                factor *= -1 if sign == "-" else self._branch if sign == r"\pm" else 1
            term = self._product()
            if factor < 0:
                term = scaled(term, Fraction(-1))
            if total is None:
                total = term
            elif total.shape == term.shape and not term.parts:
                total = Value(term.shape, at_each(add, total.number, term.number))
            else:
                raise UnreadableError
        return total

    def _begins_factor(self) -> bool:
        text, kind = self._peek(), self._kind()
        if kind in ("number", "letter"):
            return True
        if kind == "text":
            return self._words() not in _SEPARATORS
        return text in (
            "(", "[", "{", r"\{", r"\frac", r"\sqrt", r"\pi", r"\infty", r"\binom", r"\emptyset",
            r"\$", "€", "¥",
        ) or text in _FUNCTIONS  # fmt: skip

    def _product(self) -> Value:
        before = self._at
        value = self._power()
        while True:
            if self._skip(r"\cdot"):
                value = both(mul, value, self._signed_power())
            elif self._skip("/"):
                value = both(truediv, value, self._signed_power())
            elif self._kind() == "text" and self._words() not in _SEPARATORS:
                value = self._measured(value)
            elif self._at - before == 1 and self._mixed():
                part = self._base()
                if self._skip("/"):
                    part = both(truediv, part, self._base())
                value = self._with_signs(both(add, value, part))
            elif self._begins_factor():
                value = both(mul, value, self._power())
            else:
                return value

    def _mixed(self) -> bool:
        r"""Whether `4\frac{2}{3}`, or `4 2/3`, has just begun: a sum."""
        if not self._tokens[self._at - 1].text.isdigit():
            return False
        following = [token.text for token in self._tokens[self._at : self._at + 7]]
        pattern = "".join("9" if text.isdigit() else text for text in following)
        return bool(re.match(r"\\frac(?:\{9\}(?:\{9\}|9)|9(?:\{9\})?)|9/9", pattern))

    def _signed_power(self) -> Value:
        if self._skip("-"):
            return scaled(self._signed_power(), Fraction(-1))
        return self._signed_power() if self._skip("+") else self._power()

    def _power(self) -> Value:
        return self._with_signs(self._base())

    def _with_signs(self, value: Value) -> Value:
        """A value with what stands behind it: a power, a factorial, degrees, percent."""
        while self._peek() in ("^", "!", "°", "%"):
            sign, known = self._take(), numbers(value)
            if sign == "^":
                value = both(raised, value, self._group())
            elif sign == "!":
                value = Value("number", tuple(Fraction(math.factorial(whole(n))) for n in known))
            else:
                value = scaled(value, DEGREE if sign == "°" else Fraction(1, 100))
        return value

    def _group(self) -> Value:
        r"""The argument of `^` or `\frac`: braces, a sign and a factor, or one digit of several."""
        if self._skip("{"):
            value = self._sum()
            self._take("}")
            return value
        return self._signed_power() if self._peek() in ("+", "-") else self._base()

    def _base(self) -> Value:
        kind, text = self._kind(), self._take()
        if kind == "number":
            return constant(self._numeral(text))
        if kind == "letter":
            return Value("number", at_points(text))
        if text in OPENING:
            return self._bracketed(text)
        if text in _CURRENCIES:
            return Value(f"quantity {_CURRENCIES[text]}", numbers(self._base()))
        if text == "|":
            value = self._sum()
            self._take("|")
            return Value("number", tuple(map(absolute, value.number)))
        if text == r"\frac":
            return both(truediv, self._part(), self._part())
        if text == r"\binom":
            return both(binomial, self._part(), self._part())
        if text == r"\sqrt":
            return self._root()
        if text in (r"\pi", r"\infty"):
            return constant(complex(math.pi if text == r"\pi" else 1.234e150))
        if text == r"\emptyset":
            return Value("list")
        if text in _FUNCTIONS:
            return self._applied(text)
        if text.startswith(r"\begin") and text.endswith("matrix}"):
            return self._matrix()
        raise UnreadableError

    def _part(self) -> Value:
        r"""An argument of `\frac`; without braces it is one digit: `\frac43`."""
        if self._kind() == "number" and len(self._peek()) > 1:
            token = self._tokens[self._at]
            digits = [token._replace(text=digit) for digit in token.text]
            self._tokens = [*self._tokens[: self._at], *digits, *self._tokens[self._at + 1 :]]
        return self._group()

    def _numeral(self, text: str) -> Scalar:
        if re.search("[eE]", text) and "\\" not in text:
            return Fraction(text)
        start, _, period = text.partition(r"\overline")
        plain = re.sub(r"[^\d.]", "", start)
        whole, _, behind = plain.partition(".")
        if period:
            digits = re.sub(r"\D", "", period)
            repeated = Fraction(int(digits), 10 ** len(digits) - 1)
            return Fraction(plain.rstrip(".") or 0) + repeated * Fraction(1, 10 ** len(behind))
        if not self._skip("_"):
            return Fraction(plain)
        braced = self._skip("{")
        base = Fraction(int(self._take()))
        if braced:
            self._take("}")
        places = range(len(whole) - 1, -len(behind) - 1, -1)
        placed = zip(whole + behind, places, strict=True)
        total: Scalar = Fraction(0)
        for digit, at in placed:
            total = total + int(digit) * raised(base, Fraction(at))
        return total

    def _bracketed(self, opening: str) -> Value:
        ends = OPENING[opening]
        if opening == "{":
            value = self._sum()
            self._take("}")
            return value
        parts = self._items(tuple(ends))
        closing = self._take(*ends)
        if opening == r"\{":
            return Value("list", parts=tuple(parts))
        if len(parts) > 1:
            return Value(f"row {opening}{closing}", parts=tuple(parts))
        if opening + closing not in ("()", "[]"):
            raise UnreadableError
        return parts[0]

    def _root(self) -> Value:
        degree = constant(Fraction(2))
        if self._skip("["):
            degree = self._sum()
            self._take("]")
        inner = self._power() if self._peek() == "(" else self._part()
        return both(raised, inner, both(truediv, constant(Fraction(1)), degree))

    def _applied(self, name: str) -> Value:
        base = power = None
        while self._peek() in ("^", "_"):
            if self._take() == "^":
                power = self._group()
            else:
                base = self._part()
        if self._peek() in ("(", "[", "{"):
            argument = self._base()
        else:
            argument = self._power()
            while self._begins_factor() and self._peek() not in (*_FUNCTIONS, "(", "["):
                argument = both(mul, argument, self._power())
        value = Value("number", tuple(_FUNCTIONS[name](complex(n)) for n in numbers(argument)))
        if base is not None:
            value = both(lambda a, b: cmath.log(a) / cmath.log(b), argument, base)
        return value if power is None else both(raised, value, power)

    def _matrix(self) -> Value:
        rows: list[Value] = []
        cells: list[Value] = []
        while True:
            cells.append(self._sum())
            following = self._take()
            if following == "&":
                continue
            rows.append(Value("row", parts=tuple(cells)))
            cells = []
            if following == r"\\" and self._peek().startswith(r"\end"):
                following = self._take()
            if following.startswith(r"\end"):
                return Value("row matrix", parts=tuple(rows))
            if following != r"\\":
                raise UnreadableError

    def _measured(self, value: Value) -> Value:
        """A number with the unit behind it, in the base unit; other words are kept as they are."""
        words = self._words()
        self._at += 1
        power: Scalar = self._group().number[0] if self._skip("^") else Fraction(1)
        if not isinstance(power, Fraction):
            raise UnreadableError
        known = numbers(value)
        if words in ("%", r"\%", "percent"):
            return scaled(value, Fraction(1, 100))
        for named, exponent in (("square ", 2), ("cubic ", 3)):
            if words.startswith(named):
                words, power = words.removeprefix(named), Fraction(exponent)
        unit = measure(words)
        if unit is None:
            return Value(f"quantity {words} {power}", known)
        if unit[0] == "angle":
            return scaled(value, DEGREE) if words.startswith("degree") else value
        base = scaled(value, raised(unit[1], power))
        return Value(f"quantity {unit[0]} {power}".removesuffix(" 1"), base.number)
