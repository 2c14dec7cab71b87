"""Values of expressions at points, to 50 digits: sympy's trees, worked out with mpmath.

sympy's own `evalf` does the same and more, fifty times slower: what is no plain arithmetic and no
elementary function (sums, integrals, limits) is left to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mpmath
import sympy

DIGITS = 60
LARGEST = 10**6  # of the argument of a factorial and of an exponent: beyond it is sympy's affair

_CONSTANTS: dict[Any, Callable[[], Any]] = {
    sympy.pi: lambda: +mpmath.mp.pi,
    sympy.E: lambda: +mpmath.mp.e,
    sympy.I: lambda: mpmath.mpc(0, 1),
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Abs": abs, "acos": mpmath.acos, "acosh": mpmath.acosh, "acot": mpmath.acot,
    "acsc": mpmath.acsc, "asec": mpmath.asec, "asin": mpmath.asin, "asinh": mpmath.asinh,
    "atan": mpmath.atan, "atanh": mpmath.atanh, "binomial": mpmath.binomial,
    "ceiling": mpmath.ceil, "conjugate": mpmath.conj, "cos": mpmath.cos, "cosh": mpmath.cosh,
    "cot": mpmath.cot, "csc": mpmath.csc, "exp": mpmath.exp, "factorial": mpmath.factorial,
    "floor": mpmath.floor, "im": mpmath.im, "log": mpmath.log, "re": mpmath.re, "sec": mpmath.sec,
    "sign": mpmath.sign, "sin": mpmath.sin, "sinh": mpmath.sinh, "tan": mpmath.tan,
    "tanh": mpmath.tanh,
}  # fmt: skip


class OtherError(Exception):
    """A value that is not worked out here, or that does not exist."""


def value(found: Any, point: Mapping[str, Any]) -> Any:
    """The value with each symbol at its coordinate: an mpf where it is real, else an mpc.

    `point`: coordinates (int, mpf, mpc) by name. Raises OtherError.
    """
    with mpmath.workdps(DIGITS):
        try:
            result = _value(found, point)
        except (ValueError, ZeroDivisionError, OverflowError, TypeError, KeyError) as error:
            raise OtherError(str(found)) from error
        if not mpmath.isfinite(result):
            raise OtherError(str(found))
        if isinstance(result, mpmath.mpc):
            if abs(result.imag) <= abs(result) * mpmath.mpf(10) ** -50:
                return result.real
            return result
        return mpmath.mpf(result)


def _value(found: Any, point: Mapping[str, Any]) -> Any:
    if found.is_Symbol:
        return point[found.name]
    if found.is_Rational:
        return mpmath.mpf(found.p) / found.q if found.q != 1 else mpmath.mpf(found.p)
    if found.is_Float:
        return mpmath.mpf(str(found))
    if found in _CONSTANTS:
        return _CONSTANTS[found]()
    values = [_value(each, point) for each in found.args]
    if found.is_Add:
        return mpmath.fsum(values)
    if found.is_Mul:
        return mpmath.fprod(values)
    if found.is_Pow:
        if abs(values[1]) > LARGEST:
            raise OtherError(str(found))
        return mpmath.power(*values)
    if isinstance(found, sympy.UnevaluatedExpr):
        return values[0]
    name = type(found).__name__
    function = _FUNCTIONS.get(name)
    if function is None or (name in ("factorial", "binomial") and abs(values[0]) > LARGEST):
        raise OtherError(name)
    return function(*values)
