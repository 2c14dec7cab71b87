r"""The exact fast path: is the prediction plainly the gold answer, or plainly another one?

`compare` answers True or False where that is beyond doubt and None where a computer-algebra system
has to look. What it calls correct is an equal string after normalisation or an equal number:

- LaTeX that changes nothing is dropped: `\left`, `\!`, `\dfrac` for `\frac`, `\frac12`, `\text{}`,
  `$`, degrees, a full stop at the end, full-width digits, white space that separates nothing.
- Numbers are exact fractions: `1,000`, `1{,}000`, `\frac{1}{2}`, `1/2`, `1\frac12` (mixed), `.5`.
- Points and intervals of numbers are compared number by number, in order.
- Units are ignored where only one side has them; `\text{ million}` multiplies.
- 27% equals 0.27 and 27\%, and not 27. (The grader does not see the question: where a question
  asks "what percentage", gold answers should carry the sign.)
- Numerals in different bases, `204_5` and `204_8`, differ.
- Words are compared as words, without regard to case: a parser would take `east` and `seat` for the
  same product of variables.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from dto.records import AnswerKind

_CHARACTERS = str.maketrans("０１２３４５６７８９．，％（）－−–", "0123456789.,%()---")
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\!|\\\$|\$", ""),
        (r"\\[,;: ]|~|\\q?quad(?![A-Za-z])", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\{,\}", ","),
        (r"\\%", "%"),
        (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})(?![A-Za-z])|\\degree(?![A-Za-z])|°", ""),
        (r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\s*\{[^{}]*\})\s*(\d)(?!\d)", r"\1{\2}"),
        (r"\\sqrt\s*(\d)(?!\d)", r"\\sqrt{\1}"),
    )
]
_WRAPPER = re.compile(r"\\(?:text|mbox|mathrm|textbf|mathbf|textrm|textit)\s*\{([^{}]*)\}")
_IDLE_SPACE = re.compile(r"(?<![0-9A-Za-z])\s+|\s+(?![0-9A-Za-z])")
_NUMBER = re.compile(
    r"(?P<sign>[-+]?)\s*(?:"
    r"(?P<whole>\d*)\s*\\frac\s*\{\s*(?P<top>\d+)\s*\}\s*\{\s*(?P<bottom>\d+)\s*\}"
    r"|(?P<over>\d+)\s*/\s*(?P<under>\d+)"
    r"|(?P<decimal>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)"
    r")\s*(?P<percent>%?)\s*"
)
_UNIT_IN_TEXT = re.compile(
    r"\\(?:text|mbox|mathrm)\s*\{(?P<unit>[A-Za-z .,/-]*)\}(?P<power>(?:\^\s*\{?\s*[23]\s*\}?)?)"
)
_LIST = re.compile(r"([(\[])([^()\[\]]+)([)\]])")
_BASE = re.compile(r"\w+_\{?(\d+)\}?")
_WORDS = re.compile(r"[A-Za-z][A-Za-z ]*")
_LETTER = re.compile(r"\(?\s*([A-Za-z])\s*\)?[.:]?|\(([A-Za-z])\).*|([A-Z])\s*[).:].*", re.DOTALL)
_OPTION = re.compile(r"^(?:the\s+)?(?:option|choice|answer)\s*(?:is)?\s*:?\s*", re.IGNORECASE)

_SCALES = {
    "dozen": 12,
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
_PERCENT = {"percent", "percentage", "pct"}
# Outside \text{} a word is taken for a unit only when it is one of these: `2 k` is a product.
_UNIT = re.compile(
    r"mm|cm|km|inch|inches|foot|feet|yards?|miles?|(?:centi|kilo|milli)?met(?:er|re)s?|kg|"
    r"(?:kilo|milli)?grams?|pounds?|ounces?|lit(?:er|re)s?|mph|seconds?|minutes?|hours?|days?|"
    r"weeks?|months?|years?|dollars?|cents?|euros?|degrees?|radians?|units?|points?|square|cubic|"
    r"people|students?"
)
# Words after a number that make it another number, or more than one.
_NO_UNIT = re.compile(
    r"\b(?:or|and|not|to|more|less|than|most|least|about|factorial|squared|cubed|half|halves|thirds?|"
    r"quarters?|fifths?|tenths?|hundredths?|times|mod|modulo|base|plus|minus|over|between)\b"
)


class Quantity(NamedTuple):
    """A number as an answer states it; percent is already in `value`."""

    value: Fraction
    decimal: bool
    percent: bool
    unit: str


def clean(text: str) -> str:
    r"""Without the LaTeX that changes nothing.

    `\text{}` stays, except around words such as "or more": math-verify would not see those there.
    """
    text = text.translate(_CHARACTERS)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = _WRAPPER.sub(lambda m: f" {m[1]} " if _NO_UNIT.search(m[1]) else m[0], text)
    return " ".join(text.split()).rstrip(".;。, ")


def normalise(text: str) -> str:
    r"""The string that equal answers share: `clean`, `\text{}` unwrapped, idle spaces dropped."""
    return _IDLE_SPACE.sub("", _WRAPPER.sub(r" \1 ", clean(text)).strip())


def quantity(text: str) -> Quantity | None:
    """The number, with or without a unit, that a cleaned answer is; None for anything else."""
    number = _NUMBER.match(text)
    if number is None or len(text) > 1_000:  # int() refuses thousands of digits
        return None
    if number["decimal"]:
        value = Fraction(number["decimal"].replace(",", "").rstrip(".") or "0")
    else:
        whole, top, bottom = (
            (number["whole"], number["top"], number["bottom"])
            if number["top"]
            else ("", number["over"], number["under"])
        )
        if int(bottom) == 0:
            return None
        value = Fraction(int(whole or 0)) + Fraction(int(top), int(bottom))
    if number["sign"] == "-":
        value = -value
    rest = text[number.end() :]
    in_text = _UNIT_IN_TEXT.fullmatch(rest)
    words = (in_text["unit"] if in_text else rest).lower().replace(".", " ").split()
    percent = bool(number["percent"])
    unit = []
    for word in words:
        if _NO_UNIT.fullmatch(word):
            return None
        if word in _SCALES:
            value *= _SCALES[word]
        elif word in _PERCENT:
            percent = True
        elif in_text or _UNIT.fullmatch(word):
            unit.append(word)
        else:
            return None
    power = in_text["power"].strip("^{} ") if in_text else ""
    decimal = bool(number["decimal"]) and "." in number["decimal"]
    return Quantity(value / 100 if percent else value, decimal, percent, " ".join(unit) + power)


def compare(gold: str, prediction: str, kind: AnswerKind) -> bool | None:
    r"""True, False, or None where equality takes algebra. Kind `choice` is always decided.

    A letter is a letter with or without parentheses, `\text{}`, a full stop, or the option's text
    behind it.
    """
    gold_text, text = normalise(gold), normalise(prediction)
    if kind == "choice":
        gold_letter, letter = _letter(gold_text), _letter(text)
        return gold_text == text if gold_letter is None else gold_letter == letter
    if not text:
        return False
    if gold_text == text:
        return True
    bases = _BASE.fullmatch(gold_text), _BASE.fullmatch(text)
    if bases[0] and bases[1] and bases[0][1] != bases[1][1]:
        return False
    wanted, given = quantity(clean(gold)), quantity(clean(prediction))
    if wanted and given:
        return _same_quantity(wanted, given)
    wanted_list, given_list = _numbers(clean(gold)), _numbers(clean(prediction))
    if wanted_list and given_list and wanted_list[0] == given_list[0]:
        return _same_numbers(wanted_list[1], given_list[1])
    if _WORDS.fullmatch(gold_text) and _WORDS.fullmatch(text):
        in_words = "\\" in gold or min(len(gold_text), len(text)) > 3
        return gold_text.casefold() == text.casefold() if in_words else None
    return None


def _same_quantity(wanted: Quantity, given: Quantity) -> bool | None:
    if wanted.value == given.value:
        return None if wanted.unit and given.unit and wanted.unit != given.unit else True
    close = abs(wanted.value - given.value) <= abs(wanted.value) / 100_000
    rounded = (wanted.decimal or given.decimal) and close and wanted.percent == given.percent
    return None if rounded else False


def _numbers(text: str) -> tuple[str, list[Quantity]] | None:
    """The brackets and the plain numbers of `(1, 2)` or `[0, 1)`; a parser is slow at these."""
    match = _LIST.fullmatch(text)
    if match is None:
        return None
    numbers = [quantity(part.strip()) for part in match[2].split(",")]
    plain = [number for number in numbers if number and not number.percent and not number.unit]
    return (match[1] + match[3], plain) if len(plain) == len(numbers) else None


def _same_numbers(wanted: list[Quantity], given: list[Quantity]) -> bool | None:
    if len(wanted) != len(given):
        return False
    same = [_same_quantity(*pair) for pair in zip(wanted, given, strict=True)]
    return False if False in same else None if None in same else True


def _letter(text: str) -> str | None:
    match = _LETTER.fullmatch(_OPTION.sub("", text.strip("*")))
    if match is None:
        return None
    return (match[1] or match[2] or match[3]).upper()
