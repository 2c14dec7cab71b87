r"""How the graders of published repositories decide, for comparison with ours.

Written anew from what they do; each is small, and asks math-verify, as ours does, where they ask
sympy. What they are given is the answer that ours extracts: rules differ here, not searches.

- `contains` (2505.21765 as its formula reads): the gold answer stands somewhere in the answer, so
  that 7 is found in 17.
- `minerva` (the MATH and Minerva evaluations, 2103.03874 and 2206.14858): equal strings after
  normalisation. Signs of percent, money and degrees, units in `\text{}` and a short left side as in
  `x=` are dropped, 0.5 is `\frac{1}{2}`; no other two notations of a number are equal.
- `deer` (the script with 2504.15895, which takes Qwen2.5-Math's evaluation): numbers are equal
  within 1e-4 relative, and so are a number and its hundredth or hundredfold (27, 0.27, 2700); kinds
  of brackets are not told apart; else algebra.
- `deepscaler` (the reward of DeepScaleR, data of 2508.17803, after PRM800K, 2305.20050): `minerva`
  or algebra, where an integer answer must be given as an integer, a fraction reduced as in the gold
  answer, and a tuple with the same brackets.
- `math-verify`: the library alone.

Where they ask math-verify, it compares in a child process (`equal`; `dto.grading.pool`), whose CPU
time is limited.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any, Literal

from dto.grading.extract import MAX_ANSWER
from dto.grading.pool import UNREADABLE_GOLD, ComparisonError, UnreadableError, WorkerPool
from dto.protocols import Graded

Rules = Literal["ours", "math-verify", "minerva", "contains", "deer", "deepscaler"]
RULES: tuple[Rules, ...] = ("ours", "math-verify", "minerva", "contains", "deer", "deepscaler")

_IDLE = re.compile(
    r"\\left(?![A-Za-z])|\\right(?![A-Za-z])|\\[!,;: $]|\$|\\?%|\^\s*\{?\s*\\circ\s*\}?"
    r"|\\(?:text|mbox)\s*\{\s*[a-z][a-z ,./]*\}(?:\^\{?[23]\}?)?|\s+"
)
_WRAPPED = re.compile(r"\\(?:text|mbox|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_SHORT_FRACTION = re.compile(r"\\frac\s*(\d)\s*(\d)(?!\d)")
_SLASH = re.compile(r"(-?\d+)/(\d+)")
_FRACTION = re.compile(r"-?(?:\d+/\d+|\\frac\{-?\d+\}\{-?\d+\})")
_LEFT_SIDE = re.compile(r"^[A-Za-z]{1,2}=")
_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_INTEGER = re.compile(r"[-+]?\d+")
_BRACKETS = re.compile(r"[(\[](.+)[)\]]")


class PublishedGrader:
    """Grades answers as one of these graders does. An async context manager.

    An answer is `wrong` where math-verify exceeds the limits on it, or does not read the gold
    answer, as they have it; `failed` where a child was ended from outside.
    """

    def __init__(self, rules: Rules, workers: int, time_limit: float = 5.0) -> None:
        self._rules: Rules = rules
        self._pool = WorkerPool(workers, time_limit, __name__)
        self._known: dict[tuple[str, str], Graded] = {}

    async def grade_answer(self, answer: str, gold: str) -> Graded:
        """Grade an answer that has been extracted already."""
        answer, gold = answer.strip(), gold.strip()
        shown = answer[:MAX_ANSWER]
        equal: bool | None = answer == gold
        if not equal and answer and len(answer) <= max(MAX_ANSWER, 2 * len(gold)):
            equal = decide(self._rules, gold, answer)
        if equal is not None:
            return Graded("correct" if equal else "wrong", shown)
        if (gold, answer) not in self._known:
            try:
                equal, reason = await self._pool.equal(gold, answer), ""
            except ComparisonError as error:
                reason = str(error)
                if reason != UNREADABLE_GOLD and not error.repeatable:
                    return Graded("failed", shown, reason)
            self._known[gold, answer] = Graded("correct" if equal else "wrong", shown, reason)
        return self._known[gold, answer]

    async def __aenter__(self) -> PublishedGrader:
        """Nothing is started yet."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """End the children."""
        await self._pool.close()


def equal(gold: str, prediction: str | None) -> bool:
    """Whether math-verify by itself takes the two for equal: what a child does."""
    from math_verify import verify

    read_gold = _parsed(gold)
    if not read_gold:
        raise UnreadableError(gold)
    return prediction is None or bool(verify(read_gold, _parsed(prediction), timeout_seconds=None))


@lru_cache(maxsize=1000)
def _parsed(text: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    boxed, config = rf"\boxed{{{text}}}", [LatexExtractionConfig()]
    return list(parse(boxed, config, fallback_mode="no_fallback", parsing_timeout=None))


def decide(rules: Rules, gold: str, prediction: str) -> bool | None:
    """Whether the two are equal to one of these graders; None: math-verify decides."""
    if rules == "math-verify" or gold == prediction:
        return None if gold != prediction else True
    if rules == "contains":
        return normal(gold) in normal(prediction)
    if normal(gold) == normal(prediction):
        return True
    if rules == "minerva":
        return False
    return _deer(gold, prediction) if rules == "deer" else _deepscaler(gold, prediction)


def normal(text: str) -> str:
    """The string of the MATH and Minerva evaluations."""
    text = text.strip().rstrip(".").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = _WRAPPED.sub(r"\1", _IDLE.sub("", text.replace("{,}", ",")))
    text = _GROUPED.sub("", _LEFT_SIDE.sub("", _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text)))
    if slash := _SLASH.fullmatch(text):
        return rf"\frac{{{slash[1]}}}{{{slash[2]}}}"
    return r"\frac{1}{2}" if text in ("0.5", ".5") else text.removesuffix(".0")


def _deer(gold: str, prediction: str) -> bool | None:
    wanted, given = _float(gold), _float(prediction)
    if wanted is not None and given is not None:
        return any(
            math.isclose(each, given, rel_tol=1e-4) for each in (wanted / 100, wanted, wanted * 100)
        )
    inside = [_BRACKETS.fullmatch(normal(text)) for text in (gold, prediction)]
    if inside[0] and inside[1]:
        pairs = [match[1].split(",") for match in inside if match]
        if len(pairs[0]) == len(pairs[1]):
            found = [one == other or _deer(one, other) for one, other in zip(*pairs, strict=True)]
            if None not in found:
                return all(found)
    return None


def _deepscaler(gold: str, prediction: str) -> bool | None:
    texts = normal(gold), normal(prediction)
    if not texts[1]:
        return False
    inside = [_BRACKETS.fullmatch(text) for text in texts]
    if inside[0] or inside[1]:
        same = {text[0] + text[-1] for text in texts}
        counts = {text.count(",") for text in texts}
        if "," in texts[0] + texts[1] and (len(same) > 1 or len(counts) > 1):
            return False
    if all(_FRACTION.fullmatch(text) for text in texts):
        return False
    whole = [bool(_INTEGER.fullmatch(text)) for text in texts]
    return False if whole[0] != whole[1] or all(whole) else None


def _float(text: str) -> float | None:
    plain = text.strip().strip("$").replace(",", "").replace("\\%", "%").replace("\\$", "")
    percent = plain.endswith("%")
    try:
        number = float(plain.removesuffix("%"))
    except ValueError:
        return None
    return number / 100 if percent else number
