r"""Compare expressions and equations: math-verify parses them, numerical values decide.

Runs in the child processes of `dto.grading.pool`; importing it imports sympy.

A parse is accepted only if it contains every letter, numeral and prime of the text (`3c` is not 3,
`f'(x)` is not `f(x)`). A text that is parsed only in part equals nothing but the same text; a gold
answer that is parsed only in part is unreadable.

- Constants without decimals must be equal exactly (rational numbers), or to 50 digits, relative to
  their size: `1/2^{99}` and `1/2^{98}` differ. If one side is a decimal number: to six places and
  five significant digits.
- Expressions with variables must have the same value, to 45 digits, at random points (Schwartz
  1980, Zippel 1979). Points at which one of them is not real count only if there are no others.
- The differences of the sides of equations must be proportional at such points; of inequalities
  with a positive factor, or with a negative one and the sign reversed.

math-verify compares everything else (sets that need algebra, unevaluated limits, …).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any
from zlib import crc32

import mpmath
import sympy
from latex2sympy2_extended.latex2sympy2 import (
    ConversionConfig,
    NormalizationConfig,
    latex2sympy,
    normalize_latex,
)
from latex2sympy2_extended.logic import And
from latex2sympy2_extended.symbols import GREEK_LETTER_MAP
from math_verify import verify
from math_verify.grader import should_treat_as_complex
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

from dto.grading.compare import leaf, readable, structure
from dto.grading.notation import bare, clean
from dto.grading.pool import UnreadableError
from dto.grading.quantity import quantity, split_unit, unit_factor
from dto.grading.structure import leaves, same

DIGITS = 60
LARGEST = 10**6  # argument of a factorial, and exponent; sympy evaluates larger ones

_CONSTANTS: dict[Any, Callable[[], Any]] = {
    sympy.pi: lambda: +mpmath.mp.pi,
    sympy.E: lambda: +mpmath.mp.e,
    sympy.I: lambda: mpmath.mpc(0, 1),
}
_ALIKE = (
    "acos acosh acot acsc asec asin asinh atan atanh binomial cos cosh cot csc exp factorial floor "
    "im log re sec sign sin sinh tan tanh"
)
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(mpmath, name) for name in _ALIKE.split()},
    **{"Abs": abs, "ceiling": mpmath.ceil, "conjugate": mpmath.conj},
}


def _computed(node: Any, point: Mapping[str, Any]) -> Any:
    """The value of an expression at a point.

    `point`: coordinates (int, mpf, mpc) by name. sympy's own `evalf` does the same and more, fifty
    times slower. Raises ValueError for anything but arithmetic and elementary functions (sums,
    integrals, limits), so that `evalf` evaluates it. Other errors mean that there is no value.
    """
    if node.is_Symbol:
        return point[node.name]
    if node.is_Rational:
        return mpmath.mpf(node.p) / node.q if node.q != 1 else mpmath.mpf(node.p)
    if node.is_Float:
        return mpmath.mpf(str(node))
    if node in _CONSTANTS:
        return _CONSTANTS[node]()
    values = [_computed(argument, point) for argument in node.args]
    if node.is_Add:
        return mpmath.fsum(values)
    if node.is_Mul:
        return mpmath.fprod(values)
    if node.is_Pow:
        if abs(values[1]) > LARGEST:
            raise ValueError(str(node))
        return mpmath.power(*values)
    if isinstance(node, sympy.UnevaluatedExpr):
        return values[0]
    name = type(node).__name__
    function = _FUNCTIONS.get(name)
    if function is None or (name in ("factorial", "binomial") and abs(values[0]) > LARGEST):
        raise ValueError(name)
    return function(*values)


_NORMAL = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none",
    equations=False,
)  # fmt: skip
_CONVERSION = ConversionConfig(interpret_as_mixed_fractions=False, lowercase_symbols=False)

_NUMBER = r"\frac{17}{19}"  # not a likely gold answer
POINTS = 12  # three positive, one negative, five of mixed signs, three far away
CLOSE = mpmath.mpf("1e-45")
CONSTANT_DIGITS, CONSTANT_CLOSE = 60, sympy.Float("1e-50", 60)
HUGE = 1e300
FAR = 1e-4  # relative difference that rounding cannot explain
PLACES, ROUNDED = 6, sympy.Rational(1, 100_000)  # decimal numbers

_DIFFERENTIAL = re.compile(r"(?<![A-Za-z\\{_])d(?![A-Za-z_])")  # parsers expect an integral
_DIVISOR = re.compile(r"\\(?:operatorname\s*\{\s*)?([gl])c[dm]\s*\}?\s*\(")
# Sums and waves of integers are compared at integers, where (-1)^n is cos(n pi).
_INDICES = frozenset("nkmjNK")
_WHOLE = (sympy.Sum, sympy.Product, sympy.sin, sympy.cos)
_PRIMED = re.compile(r"([A-Za-z])('+)")
_COEFFICIENT = re.compile(r"(\d)\s*(?=\()")
_MIXED = re.compile(r"(?<![\d.}^_{])(\d+)\s*(\\frac\s*\{\s*\d+\s*\}\s*\{\s*\d+\s*\})")
_CHOOSE = re.compile(r"\\binom\s*\{([^{}]+)\}\s*\{([^{}]+)\}")  # sympy would evaluate it
_FRACTION = re.compile(r"\\frac\s*\{\s*-?\s*(\d+)\s*\}\s*\{\s*-?\s*(\d+)\s*\}")
_RATIO = re.compile(r"^\s*([^:{}]+?)\s*:\s*([^:{}]+?)\s*$")
_MATHS = re.compile(r"\\(?:mathbb|mathcal|begin|end)\s*\{[^{}]*\}")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_NUMERAL = re.compile(r"\d+(?:\.\d+)?|\.\d+")
_LETTER = re.compile("[A-Za-z]")
_LOST = frozenset({"angle", "measuredangle", "triangle", "perp", "parallel", "land", "lor"})
# Letters that are not symbols if the parse has nodes of these types.
_MEANT = (
    ("e", {"exp", "log", "Exp1"}), ("i", {"ImaginaryUnit"}), ("d", {"Integral", "Derivative"}),
)  # fmt: skip
_GREEK = frozenset(GREEK_LETTER_MAP.values()) - {"pi"}


def equal(gold: str, prediction: str | None) -> bool:
    """Whether two answers are equal, part by part. Raises UnreadableError.

    Without a prediction, compare the gold answer with a number, to find out whether every
    comparison with it is too expensive.
    """
    gold = clean(gold)
    _check(gold)
    if prediction is None:
        return not any(_compared(text, _NUMBER) for text in leaves(structure(gold)))
    return bool(same(structure(gold), structure(clean(prediction)), _compared))


@lru_cache(maxsize=1000)
def _check(gold: str) -> None:
    for text in leaves(structure(gold)):
        if not readable(text) and expression(text) is None:
            raise UnreadableError(text)


def _compared(gold: str, given: str) -> bool:
    decided = leaf(gold, given)
    if decided is not None:
        return decided
    try:
        return _same_leaves(gold, given)
    except UnreadableError:
        if readable(gold):
            return False  # a word beside an expression
        raise


def _same_leaves(gold: str, given: str) -> bool:
    values = _fingerprint(gold), _fingerprint(given)
    if values[0] is not None and values[1] is not None:
        size = max(abs(values[0]), abs(values[1]))
        if abs(values[0] - values[1]) > FAR * size:
            return False
    gold, gold_unit = split_unit(gold)
    given, given_unit = split_unit(given)
    factor = unit_factor(gold_unit, given_unit)
    read_gold = expression(gold)
    if read_gold is None:
        raise UnreadableError(gold)
    if factor is None:
        return False
    if bare(gold).replace(" ", "") == bare(given).replace(" ", "") and factor == 1:
        return True
    read_given = expression(given)
    if read_given is None:
        return False
    if factor != 1:
        read_gold = sympy.Rational(factor.numerator, factor.denominator) * read_gold
    return _equal(read_gold, read_given)


@lru_cache(maxsize=1 << 14)
def _fingerprint(text: str) -> float | None:
    """The value at the first point, if it is enough to distinguish two texts; otherwise None."""
    bare_text, unit = split_unit(text)
    parsed = None if unit else expression(bare_text)
    if not isinstance(parsed, sympy.Expr) or _of_integers(parsed) or parsed.atoms(AppliedUndef):
        return None
    first = _value(parsed, 0)
    return float(first) if isinstance(first, mpmath.mpf) and abs(first) < HUGE else None


@lru_cache(maxsize=4096)
def expression(text: str) -> Any:
    """Parse a text by math-verify; None if it parses nothing, or not the whole text."""
    number = quantity(text)
    if number is not None and not number.decimal and not number.unit:
        return sympy.Rational(number.value.numerator, number.value.denominator)
    percent = text.rstrip().endswith("%")
    latex = text.rstrip().removesuffix("%")
    latex = _PRIMED.sub(lambda m: f"{m[1]}_{{{'prime' * len(m[2])}}}", latex)
    if "int" not in latex and r"\frac{d" not in latex:
        latex = _DIFFERENTIAL.sub("d_{0}", latex)
    latex = _DIVISOR.sub(r"\1_{d}(", latex)
    latex = _COEFFICIENT.sub(r"\1 \\cdot ", _MIXED.sub(r"(\1+\2)", latex))
    latex = _CHOOSE.sub(r"\\frac{(\1)!}{(\2)! \\cdot ((\1)-(\2))!}", latex)
    latex = _RATIO.sub(r"\\frac{\1}{\2}", normalize_latex(latex, _NORMAL))
    try:
        found = latex2sympy(
            latex, is_real=not should_treat_as_complex(latex), normalization_config=None,
            conversion_config=_CONVERSION,
        )  # fmt: skip
    except MemoryError:
        raise
    except Exception:  # its parser can raise anything for a text that is not mathematics
        return None
    if not isinstance(found, sympy.Basic | sympy.MatrixBase) or not _whole(latex, found):
        return None
    if percent:
        return found / 100 if isinstance(found, sympy.Expr) else None
    return found


def _whole(latex: str, parsed: Any) -> bool:
    """Whether the parse of a text contains every letter and numeral of it."""
    names, kinds, values = set(), set(), set()
    for each in sympy.preorder_traversal(parsed):
        kinds.add(type(each).__name__)
        if getattr(each, "is_Symbol", False):
            names.add(each.name)
        elif getattr(each, "is_Rational", False):
            top, bottom = abs(int(each.p)), int(each.q)
            values |= {Fraction(top), Fraction(bottom), Fraction(top, bottom)}
        elif getattr(each, "is_Float", False):
            values.add(abs(Fraction(str(each))).limit_denominator(10**12))
        elif isinstance(each, AppliedUndef):
            names.add(each.func.__name__)
    letters = set("".join(names))
    for letter, meant in _MEANT:
        if kinds & meant:
            letters.add(letter)
    commands = set(_COMMAND.findall(_MATHS.sub("", latex))) if "\\" in latex else set()
    if commands & _LOST:
        return False
    greek = commands & _GREEK
    if greek:
        read = {name.lower() for name in names | kinds}
        if any(not any(name.lower() in each for each in read) for name in greek):
            return False
    plain = _COMMAND.sub(" ", _MATHS.sub("", latex)) if commands else latex
    if not set(_LETTER.findall(plain)) <= letters:
        return False
    parsed_names = "".join(names)
    for fraction in _FRACTION.finditer(latex):  # the parser reduces it
        top, bottom = int(fraction[1]), int(fraction[2])
        if bottom and Fraction(top, bottom) in values:
            values |= {Fraction(top), Fraction(bottom)}
    for numeral in _NUMERAL.findall(latex):
        value = Fraction(numeral)
        contained = value in values or value.limit_denominator(10**12) in values
        if not contained and numeral not in parsed_names and value not in (0, 1, 2, 10):
            return False
    return True


def _equal(gold: Any, given: Any) -> bool:
    if isinstance(gold, sympy.Expr) and isinstance(given, sympy.Expr):
        decided = _same_values(gold, given)
        if decided is not None:
            return decided
    elif isinstance(gold, Relational):
        if not isinstance(given, Relational):
            return False
        return _same_relations(gold, given)
    elif isinstance(gold, And) and isinstance(given, And):
        pairs = list(zip(gold._unsorted_args, given._unsorted_args, strict=False))
        return len(gold.args) == len(given.args) and all(
            isinstance(one, Relational) and isinstance(other, Relational)
            and _same_relations(one, other)
            for one, other in pairs
        )  # fmt: skip
    return bool(verify([gold], [given], timeout_seconds=None))


def _same_values(gold: sympy.Expr, given: sympy.Expr) -> bool | None:
    if gold == given or _arranged(gold) == _arranged(given):
        return True
    names = _names(gold) | _names(given)
    if gold.atoms(AppliedUndef) or given.atoms(AppliedUndef):
        return None
    if not names:
        return _same_constants(gold, given)
    agree = real = 0
    undecided = False
    whole = names <= _INDICES and any(map(_of_integers, (gold, given)))
    for index in range(POINTS):
        values = [_value(each, index, whole=whole) for each in (gold, given)]
        if values[0] is None or values[1] is None:
            undecided = True
            continue
        both_real = all(isinstance(each, mpmath.mpf) for each in values)
        if _close(values[0], values[1], CLOSE):
            agree += 1
            real += both_real
        elif both_real or (real == 0 and index == POINTS - 1):
            return False
    if agree == 0:
        return None if undecided else False
    return real >= 3 or agree == POINTS


def _same_constants(gold: sympy.Expr, given: sympy.Expr) -> bool | None:
    if gold.has(sympy.Float) or given.has(sympy.Float):
        rough = [each.evalf(CONSTANT_DIGITS) for each in (gold, given)]
        if not all(value.is_number for value in rough):
            return None
        if any(isinstance(each.doit(), sympy.Float) for each in (gold, given)):
            rounded = [value.round(PLACES) for value in rough]
            return rounded[0] == rounded[1] and _close(rough[0], rough[1], ROUNDED)
        return _close(rough[0], rough[1], sympy.Float("1e-12"))
    (one, first), (other, second) = _constant(gold), _constant(given)
    if one.is_Rational and other.is_Rational:
        return bool(one == other)
    if not (first.is_number and second.is_number):
        return None
    if not (first.is_finite and second.is_finite):
        return bool(one == other)
    return _close(first, second, CONSTANT_CLOSE)


@lru_cache(maxsize=1 << 14)
def _constant(constant: Any) -> tuple[Any, Any]:
    """A constant, evaluated, and its value."""
    evaluated = constant.doit()
    return evaluated, evaluated.evalf(CONSTANT_DIGITS)


@lru_cache(maxsize=1 << 12)
def _arranged(node: Any) -> Any:
    """Put the terms of sums and products into sympy's order; keep powers of numbers."""
    if not node.args or not (node.is_Add or node.is_Mul):
        return node
    return node.func(*map(_arranged, node.args))


def _close(one: Any, other: Any, tolerance: Any) -> bool:
    if one == other:
        return True
    size = max(abs(one), abs(other))
    return bool(abs(one - other) <= tolerance * size)


def _of_integers(node: Any) -> bool:
    return bool(node.has(*_WHOLE)) or any(power.base == -1 for power in node.atoms(sympy.Pow))


def _names(node: Any) -> set[str]:
    return {str(symbol) for symbol in node.free_symbols}


@lru_cache(maxsize=1 << 14)
def _value(node: Any, index: int, *, whole: bool = False) -> Any:
    """The value at one of the points; None if it has none. `whole`: a point of integers."""
    point = {name: _coordinate(name, index, whole=whole) for name in _names(node)}
    errors = (ValueError, ZeroDivisionError, OverflowError, TypeError, KeyError)
    with mpmath.workdps(DIGITS), contextlib.suppress(*errors):
        result = _computed(node, point)
        if mpmath.isfinite(result):
            if not isinstance(result, mpmath.mpc):
                return mpmath.mpf(result)
            real = abs(result.imag) <= abs(result) * mpmath.mpf(10) ** -50
            return result.real if real else result
    exact = {each: sympy.Rational(str(point[str(each)])) if each.name != "i" else sympy.I
             for each in node.free_symbols}  # fmt: skip
    try:
        rough = node.subs(exact).doit().evalf(CONSTANT_DIGITS)
        number = mpmath.mpmathify(rough)
    except MemoryError:
        raise
    except Exception:  # sympy has many ways to report that there is no value
        return None
    if not mpmath.isfinite(number):
        return None
    return number.real if mpmath.im(number) == 0 else number


def _coordinate(name: str, index: int, *, whole: bool) -> Any:
    """A number that depends only on the name; `i` is the imaginary unit."""
    if name == "i":
        return mpmath.mpc(0, 1)
    size = crc32(f"{name} {index}".encode()) % 997 + 211
    if whole:
        return mpmath.mpf(size // 40)
    size = mpmath.mpf(size) / 512  # exact in binary
    if index > 8:
        return {9: size + 20, 10: -size - 20, 11: size + 1000}[index]
    negative = index == 3 or (index > 3 and ord(name[-1]) >> (index - 4) & 1)
    return -size if negative else size


def _same_relations(gold: Any, given: Any) -> bool:
    """Whether one is a multiple of the other, in its sides or numerators, at random points."""
    turned = {
        sympy.StrictLessThan: sympy.StrictGreaterThan, sympy.LessThan: sympy.GreaterThan,
        sympy.StrictGreaterThan: sympy.StrictLessThan, sympy.GreaterThan: sympy.LessThan,
    }  # fmt: skip
    sides = [each.lhs - each.rhs for each in (gold, given)]
    ratio = _ratio(*sides)
    equation = isinstance(gold, sympy.Eq | sympy.Ne)
    if equation and type(gold) is type(given):
        if ratio is not None:
            return True
        return _ratio(*(sympy.fraction(sympy.together(side))[0] for side in sides)) is not None
    if not isinstance(ratio, mpmath.mpf):
        return False
    expected = type(gold) if ratio > 0 else turned.get(type(gold))
    return isinstance(given, expected) if expected else False


def _ratio(one: Any, other: Any) -> Any:
    """The constant factor between two expressions; None if there is none."""
    if _names(one) != _names(other):
        return None
    first = None
    known = 0
    for index in range(POINTS):
        values = [_value(each, index) for each in (one, other)]
        if values[0] is None or values[1] is None:
            continue
        if values[1] == 0 or values[0] == 0:
            return None
        ratio = values[0] / values[1]
        if first is not None and not _close(first, ratio, CLOSE):
            return None
        first, known = ratio, known + 1
    return first if known >= 3 else None
