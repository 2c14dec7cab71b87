r"""Compare answers exactly and fast, without algebra.

`compare` returns True or False if that is certain, and None if a computer-algebra system has to
decide. Answers are equal if their strings are, after normalisation (`dto.grading.notation`), or if
their numbers are, part by part (`dto.grading.structure`):

- Numbers are exact fractions, in the many notations that `dto.grading.quantity` reads.
- Units are ignored if only one side has them, and converted if both measure the same (5 m is
  500 cm). If they measure different things, the answers differ. `\text{ million}` multiplies. A
  single letter directly behind the gold answer's number is not a unit: `3c` is not 3.
- 27% equals 0.27 and 27\%, and not 27. If the question asks for a percentage ("what percent",
  `asks_for_percentage`), 27 equals 27%, too; 0.27 still does, 2700 never.
- Numerals in different bases, `204_5` and `204_8`, differ; so do times of day, 3:30 and 4:40.
- Words are compared as words, ignoring case: a parser would read `east` and `seat` as the same
  product of variables. So are answers with Chinese characters.
- Choices are compared by the letters that `dto.grading.wording` reads.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate

from dto.grading.notation import bare, clean, labelled
from dto.grading.parsing import read
from dto.grading.quantity import Quantity, mentions, quantity
from dto.grading.structure import Node, leaves, same
from dto.grading.wording import NUMBERS, same_choice

FLOATING = 15  # decimals; a difference beyond may be floating-point noise
MOST_LEAVES = 60
MAX_DEPTH = 60  # nested brackets; deeper text is not an answer and would exhaust a parser

_NUMBERS_ALONE = re.compile(r"[\d.]+(?: [\d.]+)+")
_PLAIN = re.compile(r"-?(?:[0-9]+(?:\.[0-9]+)?|\\[dt]?frac\{[0-9]+\}\{[1-9][0-9]*\})")
_PRODUCT = re.compile(r"[-+]?[\d.,]*\d[A-Za-z]")
_MONEY_SIGN = re.compile(r"\\\$|[€£¥₹元]|\b(?:dollar|euro|yuan|rupee)", re.IGNORECASE)
_UNIT_NAMES = {
    r"\$": "dollar", "€": "euro", "£": "pound", "¥": "yuan", "₹": "rupee", "元": "yuan",
    "dollar": "dollar", "euro": "euro", "yuan": "yuan", "rupee": "rupee", "Celsius": "C",
    "Fahrenheit": "F",
}  # fmt: skip
_HALVES = {"am": "a", "a m": "a", "pm": "p", "p m": "p"}
_TEMPERATURE = re.compile(
    r"(?:(?:\\circ\s*\}?\s*\$?|°|degrees?)\s*(?:\\(?:text|mathrm)\s*\{\s*)?[CF](?![a-z])"
    r"|\\(?:text|mathrm)\s*\{\s*K(?=\s*\})|Celsius|Fahrenheit)"
)
_SHARE = re.compile(r"[^:]+:[^:]+")
_BINARY = re.compile(r"(?:[+\-^_*/]|\\(?:times|cdot|div))$")
LONGEST_BINARY = len(r"\times")  # as many characters are read before each sign
_SHARE_IN_WORDS = re.compile(r"(\w+)\s*to\s*(\w+)")
_DEGREES = re.compile(r"\\circ|\\degree|°")
_NUMERAL = re.compile(  # without spaces
    r"([-+]?)\(?([0-9A-F]+(?:\.[0-9A-F]+)?)\)?(?:_\{?\(?(?:base)?|\(?(?:in)?base)"
    r"(\d+|two|three|four|five|six|seven|eight|nine|ten)\)?\}?\)?"
)
_BASES = {name: str(number) for number, name in enumerate(NUMBERS[2:11], 2)}
_TIME = re.compile(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d))?\s*([ap])?\.?(?:m\.?)?", re.I)
_HOUR = re.compile(r"(\d{1,2})\s*([ap])\.?m\.?", re.I)
_WORDS = re.compile(r"[^\W\d_][^\W\d_]*(?:[' -]+[^\W\d_]+)*[' -]*")
_ARTICLE = re.compile(r"^(?:an?|the) (?=..)")
_PLAIN_WORDS = {"yes", "no", "true", "false", "none", "even", "odd", "all", "one", "two"}
_SAME_WORDS = {
    "dne": "does not exist",
    "doesn't exist": "does not exist",
    "infinitely many solutions": "infinitely many",
}
_CHINESE = re.compile("[\u4e00-\u9fff]")
_CHINESE_IDLE = re.compile(r"[\s，。,.；;：:“”\"'！!]+")
_LETTER = re.compile(r"\(?\s*([A-Za-z])\s*\)?[.:]?|\(([A-Za-z])\).*|([A-Z])\s*[).:].*", re.DOTALL)
_PERCENTAGE = re.compile(
    r"\b(?:what(?:['’]s)?|which|how many|(?:find|calculate|compute|determine) the)\s+"
    r"(?:[A-Za-z-]+\s+){0,4}?percent(?:age)?s?\b"
    r"|\b(?:as|in)\s+(?:a|an)?\s*(?:[\w-]+\s+)?percent(?:age)?s?\b|\bhow much percent"
    r"|百分之(?:几|多少)|百分比是|百分率是|百分数(?:表示|是)",
    re.IGNORECASE,
)
_NOT_A_PERCENTAGE = re.compile(r"\bas an?\s+(?:[\w-]+\s+)?(?:decimal|fraction)\b", re.IGNORECASE)
_SIGN = re.compile(r"\s*(?:\\?%|\\text\s*\{\s*(?:\\?%|percent)\s*\}|\bpercent)\s*$")


@lru_cache(maxsize=4096)
def asks_for_percentage(question: str) -> bool:
    """Whether a question asks for its answer in percent, so that the sign may be missing.

    "What percent of …", "by how many percent", "express … as a percentage", 百分之几. False for a
    question that only mentions one ("a 20% discount"), or asks for a decimal or a fraction.
    """
    return bool(_PERCENTAGE.search(question)) and not _NOT_A_PERCENTAGE.search(question)


def without_percent(text: str) -> str:
    """Remove the percent sign at the end."""
    return _SIGN.sub("", text)


def compare(gold: str, prediction: str, rule: str, *, percent: bool = False) -> bool | None:
    r"""True, False, or None if only algebra can decide. Rule `choice` is always decided.

    `percent`: the question asks for a percentage.
    """
    equal = _compare(gold, prediction, rule)
    if not percent or equal or rule != "math":
        return equal
    return _compare(without_percent(gold), without_percent(prediction), rule)


def _compare(gold: str, prediction: str, rule: str) -> bool | None:
    if rule == "choice":
        equal = same_choice(gold, prediction)
        return bare(clean(gold)) == bare(clean(prediction)) if equal is None else equal
    gold_clean, cleaned = clean(gold), clean(prediction)
    gold_text, text = bare(gold_clean), bare(cleaned)
    if not text:
        return False
    if _other_unit(gold, prediction):
        return False
    if gold_text == text:
        return True
    if _depth(text) > MAX_DEPTH:
        return False
    expected, given = quantity(gold_clean), quantity(cleaned)
    if expected and not given and (number := labelled(cleaned)):
        cleaned, given = number, quantity(number)
    elif given and not expected and (number := labelled(gold_clean)):
        gold_clean, expected = number, quantity(number)
    if expected and given and r"\$" in gold + prediction:
        if expected.unit.startswith("cent") and not given.unit:
            given = quantity(f"{cleaned} dollars")
        elif given.unit.startswith("cent") and not expected.unit:
            expected = quantity(f"{gold_clean} dollars")
    if expected and given and not (expected.unit and _PRODUCT.fullmatch(gold_text)):
        if "rad" in expected.unit + given.unit and _DEGREES.search(gold + prediction):
            return False
        return _same_quantity(expected, given)
    nodes = structure(gold_clean), structure(cleaned)
    if min(len(leaves(node)) for node in nodes) > MOST_LEAVES:
        return None  # a child process matches them, under its time limit
    return same(*nodes, leaf)


def _other_unit(gold: str, prediction: str) -> bool:
    """Whether the two name different currencies, or different temperature scales."""
    for sign in (_MONEY_SIGN, _TEMPERATURE):
        if not sign.search(gold):
            continue
        named = [
            {_UNIT_NAMES.get(each, each[-1]) for each in sign.findall(side)}
            for side in (gold, prediction)
        ]
        if named[0] and named[1] and not named[0] & named[1]:
            return True
    return False


@lru_cache(maxsize=1 << 12)
def structure(cleaned: str) -> Node:
    """`dto.grading.parsing.read`, cached."""
    return read(cleaned)


def leaf(gold: str, text: str) -> bool | None:
    """Compare two cleaned answers, or parts, as numbers or words; None if neither decides."""
    gold_text, given_text = bare(gold), bare(text)
    if gold_text == given_text:
        return True
    numerals = _numeral(gold_text), _numeral(given_text)
    if numerals[0] or numerals[1]:
        return _same_numerals(gold_text, given_text, *numerals)
    times = [_TIME.fullmatch(_HOUR.sub(r"\1:00 \2m", each)) for each in (gold_text, given_text)]
    if times[0] and times[1]:
        return _same_time(times[0], times[1])
    if _SHARE.fullmatch(gold_text) and (shares := _SHARE_IN_WORDS.fullmatch(given_text)):
        text = f"{shares[1]}:{shares[2]}"
        if text == gold_text:
            return True
    expected, given = quantity(gold), quantity(text)
    if expected and expected.unit and _PRODUCT.fullmatch(gold_text):
        return True if gold_text == given_text.replace(" ", "") else None
    if expected and given:
        return _same_quantity(expected, given)
    if _NUMBERS_ALONE.fullmatch(text) and not _NUMBERS_ALONE.fullmatch(gold):
        return False  # a parser would multiply them
    if "\\text" in gold and gold_text.casefold() == given_text.casefold():
        return True
    if sorted(gold_text.replace("+", "")) == sorted(given_text.replace("+", "")):
        terms = _terms(gold_text), _terms(given_text)
        if len(terms[0]) > 1 and terms[0] == terms[1]:
            return True  # a sum with its terms in another order
    return _same_words(gold, gold_text, given_text)


def _terms(text: str) -> list[str]:
    """The terms of a sum with their signs, sorted; the whole text if it is not a sum."""
    terms, depth, begin = [], 0, 0
    for index, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character in "=<>,;:|":
            return [text]
        elif depth or character not in "+-" or index == begin:
            continue
        elif not _BINARY.search(text, max(0, index - LONGEST_BINARY), index):
            terms.append(text[begin:index])
            begin = index
    terms.append(text[begin:])
    return sorted(term.lstrip("+") for term in terms)


@lru_cache(maxsize=1 << 16)
def decidable(gold: str, rule: str) -> bool:
    """Whether a gold answer can be compared without a parser: a letter, a number, Chinese text."""
    if rule == "choice" or _PLAIN.fullmatch(gold):
        return True
    cleaned = clean(gold)
    number = quantity(cleaned)
    if number is not None:
        return not (number.unit and _PRODUCT.fullmatch(bare(cleaned)))
    return bool(_CHINESE.search(bare(cleaned)))


def numeric(gold: str, rule: str) -> bool:
    """Whether a gold answer is one number, as the grader reads it: 12, 3/4, 27%, 5 cm.

    Not a letter of a choice, a program, a word, an expression such as 3c, a list or an interval.
    """
    if rule in ("choice", "code"):
        return False
    cleaned = clean(gold)
    number = quantity(cleaned)
    return number is not None and not (number.unit and _PRODUCT.fullmatch(bare(cleaned)))


def readable(gold: str) -> bool:
    """Whether a part of a gold answer is compared as a number or word, without a parser.

    `gold`: the text of a leaf (`dto.grading.structure`).
    """
    text = bare(gold)
    if quantity(gold) is not None or _numeral(text) or _TIME.fullmatch(text):
        return True
    return text == r"\ldots" or bool(_CHINESE.search(text)) or _in_words(gold, text)


def _numeral(text: str) -> tuple[str, str] | None:
    """Digits and base of `204_5`, `204_{five}`, `204 (base 5)`."""
    if "_" not in text and "base" not in text:
        return None
    match = _NUMERAL.fullmatch(text.replace(" ", ""))
    if match is None:
        return None
    base = _BASES.get(match[3], match[3])
    if any(int(digit, 36) >= int(base) for digit in match[2].replace(".", "")):
        return None  # F_2 is a name
    return match[1].replace("+", "") + match[2], base


def _same_numerals(
    gold: str, text: str, expected: tuple[str, str] | None, given: tuple[str, str] | None
) -> bool | None:
    """Compare numerals with their bases; one base may be missing, if the question names it."""
    if expected and given:
        return expected == given
    numeral, other = (expected, text) if expected else (given, gold)
    assert numeral is not None
    return numeral[0] == other if re.fullmatch(r"[-+]?[0-9A-F.]+", other) else False


def _in_words(gold: str, gold_text: str) -> bool:
    if not _WORDS.fullmatch(gold_text):
        return False
    return "\\" in gold or gold_text.casefold() in _PLAIN_WORDS or len(gold_text) > 3


def _same_words(gold: str, gold_text: str, text: str) -> bool | None:
    if _CHINESE.search(gold_text) and quantity(gold_text) is None:
        return _CHINESE_IDLE.sub("", gold_text) == _CHINESE_IDLE.sub("", text)
    if not _WORDS.fullmatch(gold_text):
        return None
    in_words = _in_words(gold, gold_text)
    if _WORDS.fullmatch(text) and (in_words or len(text) > 3):
        words = [_ARTICLE.sub("", each.casefold().strip(" -'")) for each in (gold_text, text)]
        words = [_SAME_WORDS.get(each, each) for each in words]
        return words[0] == words[1] if in_words else None
    if in_words and "\\" in gold:
        return gold_text.casefold() == text.casefold().strip("()[]\"' ")
    letters = _LETTER.fullmatch(gold_text), _LETTER.fullmatch(text)
    if letters[0] and letters[1] and (letters[0][1] and letters[1][1]):
        return letters[0][1] == letters[1][1]
    return None


def _depth(text: str) -> int:
    steps = ((character in "({[") - (character in ")}]") for character in text)
    return max(accumulate(steps), default=0)


def _places(value: Fraction) -> int:
    """The number of decimals that a number needs."""
    twos, fives, rest = 0, 0, value.denominator
    while rest % 2 == 0:
        twos, rest = twos + 1, rest // 2
    while rest % 5 == 0:
        fives, rest = fives + 1, rest // 5
    return max(twos, fives)


def _same_time(expected: re.Match[str], given: re.Match[str]) -> bool:
    halves = [(time[4] or "").lower() for time in (expected, given)]
    same = [(int(time[1]), time[2], time[3] or "00") for time in (expected, given)]
    return same[0] == same[1] and (halves[0] == halves[1] or "" in halves)


def _same_quantity(expected: Quantity, given: Quantity) -> bool | None:
    halves = _HALVES.get(expected.unit), _HALVES.get(given.unit)
    if halves[0] and halves[1] and halves[0] != halves[1]:
        return False
    if expected.unit and given.unit and expected.unit != given.unit:
        if expected.unit.partition("^")[2] != given.unit.partition("^")[2]:
            return False
        if expected.measure and given.measure:
            return expected.measure == given.measure
        if expected.measure or given.measure:
            measured, other = (expected, given) if expected.measure else (given, expected)
            # `5 feet of rope` equals `5 feet`; `5 apples` and `5 feet` differ.
            if not mentions(other.unit, measured.unit):
                return False
    if expected.value == given.value:
        return True
    if expected.decimal and given.decimal:
        places = _places(expected.value), _places(given.value)
        if places[0] == places[1] or min(places) > FLOATING:
            return False  # as many decimals, and a different digit
    close = abs(expected.value - given.value) <= abs(expected.value) / 100_000
    rounded = (expected.decimal or given.decimal) and close and expected.percent == given.percent
    return None if rounded else False
