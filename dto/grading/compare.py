r"""The exact fast path: is the prediction plainly the gold answer, or plainly another one?

`compare` answers True or False where that is beyond doubt and None where a computer-algebra system
has to look. What it calls correct is an equal string after normalisation or an equal number:

- LaTeX that changes nothing is dropped: `\left`, `\!`, `\dfrac` for `\frac`, `\frac12`, `\text{}`,
  `$`, degrees, a full stop at the end, full-width characters, white space that separates nothing.
- Numbers are exact fractions, in the many ways that `dto.grading.quantity` reads.
- Points and intervals of numbers are compared number by number, in order; `1, 2` and `2, 1` agree.
- Units are ignored where only one side has them, converted where both measure the same (5 m is
  500 cm), and where they measure different things the answers differ; `\text{ million}` multiplies.
- 27% equals 0.27 and 27\%, and not 27. Where the question asks for a percentage ("what percent",
  `asks_for_percentage`), 27 equals 27% too; 0.27 still does, 2700 never.
- Numerals in different bases, `204_5` and `204_8`, differ; so do times of day, 3:30 and 4:40.
- Words are compared as words, without regard to case: a parser would take `east` and `seat` for the
  same product of variables. So are answers with Chinese characters.
- A choice is the letters that `dto.grading.choices` reads.
"""

from __future__ import annotations

import re
from functools import lru_cache

from dto.grading.choices import same_choice
from dto.grading.quantity import Quantity, mentions, no_unit, quantity
from dto.records import AnswerKind

MAX_DEPTH = 60  # of nested brackets: what is deeper is no answer, and would exhaust a parser

_CHARACTERS: dict[int, int | str] = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_CHARACTERS |= str.maketrans("−–\u2009\u202f\u3000、【】", "--   ,[]")
_CHARACTERS |= {
    ord(character): text
    for character, text in (
        ("π", r"\pi "), ("×", r"\times "), ("≥", r"\geq "), ("≤", r"\leq "), ("²", "^2"),
        ("³", "^3"), ("∅", r"\emptyset "), ("∞", r"\infty "), ("∪", r" \cup "), ("°", r"^\circ "),
        ("≈", r"\approx "), ("∴", r"\therefore "), ("…", r"\ldots "),
    )
}  # fmt: skip
_ROOT = re.compile(r"√\s*(\d+)")
_COMMANDS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|displaystyle|bigl?|bigr|Bigl?|Bigr)(?![A-Za-z])|(?<!\\)\\!|\\\$", ""),
        (r"(?<=\d)\\,(?=\d{3}(?!\d))", ""),
        (r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])", " "),
        (r"\\%", "%"),
        (r"\\[clv]?dots(?![A-Za-z])", r"\\ldots "),
        (r"\\mathrm\s*\{\s*([ei])\s*\}", r"\1"),
        (
            r"(?:\^\s*(?:\\circ|\{\s*\\circ\s*\})(?![A-Za-z])|\\degree(?![A-Za-z]))\s*(?:[CF]\b)?",
            "",
        ),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\s*\{[^{}]*\})\s*(\d)(?!\d)", r"\1{\2}"),
        (r"\\sqrt\s*(\d)(?!\d)", r"\\sqrt{\1}"),
        (r"\\(leq|geq)slant", r"\\\1"),
        (r"\\varnothing|\\\{\s*\\\}", r"\\emptyset "),
        (r"\{[bB]?matrix\}", "{pmatrix}"),
        (r"^\s*\\(?:approx|therefore)(?![A-Za-z])", ""),
    )
]
_WRAPPER = re.compile(
    r"\\(?:text|mbox|hbox|mathrm|textbf|mathbf|textrm|textit|textnormal|mathit|operatorname)"
    r"\s*\{([^{}]*)\}"
)
_IDLE_SPACE = re.compile(r"(?<![0-9A-Za-z])\s+|\s+(?![0-9A-Za-z])")
_LIST = re.compile(r"([(\[]|\\\{)?([^()\[\]{}]+)([)\]]|\\\})?")
_AND = re.compile(r"\s*,?\s*(?:\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b|[和与及或])\s*", re.I)
_INEQUALITY = re.compile(
    r"([^<>=]+?)(<|\\leq?)(?![A-Za-z])\s*[a-zA-Z]\s*(<|\\leq?)(?![A-Za-z])([^<>=]+)"
)
_NUMBERS_ALONE = re.compile(r"[\d.]+(?: [\d.]+)+")
_PLAIN = re.compile(r"-?(?:[0-9]+(?:\.[0-9]+)?|\\[dt]?frac\{[0-9]+\}\{[1-9][0-9]*\})")
_DOTS = re.compile(r"\\ldots|\.\.\.")
_DEGREES = re.compile(r"\\circ|\\degree|°")
_BASE = re.compile(r"\w+_\{?(\d+)\}?")
_TIME = re.compile(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d))?\s*([ap])?\.?(?:m\.?)?", re.I)
_HOUR = re.compile(r"(\d{1,2})\s*([ap])\.?m\.?", re.I)
_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*")
_PLAIN_WORDS = {"yes", "no", "true", "false", "none", "even", "odd", "all", "one", "two"}
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


def clean(text: str) -> str:
    r"""Without the LaTeX that changes nothing.

    `\text{}` stays, except around words such as "or more" and variables: math-verify would not see
    those there.
    """
    if not text.isascii():
        text = _ROOT.sub(r"\\sqrt{\1}", text).translate(_CHARACTERS)
    if "\\" in text:
        for pattern, replacement in _COMMANDS:
            text = pattern.sub(replacement, text)
        text = _WRAPPER.sub(lambda m: f" {m[1]} " if no_unit(m[1]) else m[0], text)
    text = text.replace("$", "").replace("~", " ").replace("{,}", ",")
    return " ".join(text.split()).lstrip("= ").rstrip(".;。, ")


def normalise(text: str) -> str:
    r"""The string that equal answers share: `clean`, `\text{}` unwrapped, idle spaces dropped."""
    return _bare(clean(text))


def _bare(cleaned: str) -> str:
    if "\\" in cleaned:
        cleaned = _WRAPPER.sub(r" \1 ", cleaned)
    return _IDLE_SPACE.sub("", cleaned.strip())


@lru_cache(maxsize=4096)
def asks_for_percentage(question: str) -> bool:
    """Whether a question wants its answer in percent, so that the sign may be left out.

    "What percent of …", "by how many percent", "express … as a percentage", 百分之几. Not a
    question that only mentions one ("a 20% discount"), or asks for a decimal or a fraction.
    """
    return bool(_PERCENTAGE.search(question)) and not _NOT_A_PERCENTAGE.search(question)


def without_percent(text: str) -> str:
    """Without the sign at its end."""
    return _SIGN.sub("", text)


def compare(gold: str, prediction: str, kind: AnswerKind, *, percent: bool = False) -> bool | None:
    r"""True, False, or None where equality takes algebra. Kind `choice` is always decided.

    `percent`: the question asks for a percentage.
    """
    equal = _compare(gold, prediction, kind)
    if not percent or equal or kind != "math":
        return equal
    return _compare(without_percent(gold), without_percent(prediction), kind)


def _compare(gold: str, prediction: str, kind: AnswerKind) -> bool | None:
    if kind == "choice":
        same = same_choice(gold, prediction)
        return normalise(gold) == normalise(prediction) if same is None else same
    gold_clean, cleaned = clean(gold), clean(prediction)
    gold_text, text = _bare(gold_clean), _bare(cleaned)
    if not text:
        return False
    if gold_text == text:
        return True
    if _depth(text) > MAX_DEPTH:
        return False
    bases = _BASE.fullmatch(gold_text), _BASE.fullmatch(text)
    if bases[0] and bases[1] and bases[0][1] != bases[1][1]:
        return False
    times = [_TIME.fullmatch(_HOUR.sub(r"\1:00 \2m", each)) for each in (gold_text, text)]
    if times[0] and times[1]:
        return _same_time(times[0], times[1])
    wanted, given = quantity(gold_clean), quantity(cleaned)
    if wanted and given:
        if _DEGREES.search(gold + prediction) and "rad" in wanted.unit + given.unit:
            return False
        return _same_quantity(wanted, given)
    wanted_list, given_list = _numbers(gold_clean), _numbers(cleaned)
    if wanted_list and given_list:
        if wanted_list[0] == given_list[0]:
            return _same_numbers(wanted_list[0], wanted_list[1], given_list[1])
        if {wanted_list[0], given_list[0]} & {"{}"} and "" not in (wanted_list[0], given_list[0]):
            return False
    if (wanted_list and given) or (wanted and given_list):
        return False
    if _NUMBERS_ALONE.fullmatch(cleaned) and not _NUMBERS_ALONE.fullmatch(gold_clean):
        return False  # a parser would multiply them
    if "," in text and bool(_DOTS.search(gold_text)) != bool(_DOTS.search(text)):
        return False  # a parser would leave out what the dots stand for
    if gold_text[:1] in ("(", "[") and (interval := _interval(cleaned)):
        return _compare(gold, interval, kind)
    return _same_words(gold, gold_text, text)


@lru_cache(maxsize=1 << 16)
def decidable(gold: str, kind: AnswerKind) -> bool:
    """Whether a gold answer is one that no parser has to read: a letter, a number, Chinese."""
    if kind == "choice" or _PLAIN.fullmatch(gold):
        return True
    cleaned = clean(gold)
    return quantity(cleaned) is not None or bool(_CHINESE.search(_bare(cleaned)))


def for_parser(text: str) -> str:
    """What math-verify is given: cleaned, and a number in a notation that it can read."""
    text = clean(text)
    number = quantity(text)
    if number is None or number.decimal or re.fullmatch(r"[\d\\{}frac+-]+", text):
        return text
    value = number.value
    return (
        str(value)
        if value.denominator == 1
        else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    )


def _interval(text: str) -> str | None:
    r"""`-2 \le x < 7` as `[-2,7)`."""
    match = _INEQUALITY.fullmatch(text)
    if match is None:
        return None
    left, right = ("(" if match[2] == "<" else "["), (")" if match[3] == "<" else "]")
    return f"{left}{match[1].strip()},{match[4].strip()}{right}"


def _same_words(gold: str, gold_text: str, text: str) -> bool | None:
    if _CHINESE.search(gold_text) and quantity(gold_text) is None:
        return _CHINESE_IDLE.sub("", gold_text) == _CHINESE_IDLE.sub("", text)
    if not _WORDS.fullmatch(gold_text):
        return None
    in_words = "\\" in gold or gold_text.casefold() in _PLAIN_WORDS or len(gold_text) > 3
    if _WORDS.fullmatch(text) and (in_words or len(text) > 3):
        return gold_text.casefold() == text.casefold() if in_words else None
    letters = _LETTER.fullmatch(gold_text), _LETTER.fullmatch(text)
    if letters[0] and letters[1] and (letters[0][1] and letters[1][1]):
        return letters[0][1] == letters[1][1]
    return None


def _depth(text: str) -> int:
    deepest = depth = 0
    for character in text:
        if character in "({[":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")}]":
            depth -= 1
    return deepest


def _same_time(wanted: re.Match[str], given: re.Match[str]) -> bool:
    halves = [(time[4] or "").lower() for time in (wanted, given)]
    same = [(int(time[1]), time[2], time[3] or "00") for time in (wanted, given)]
    return same[0] == same[1] and (halves[0] == halves[1] or "" in halves)


def _same_quantity(wanted: Quantity, given: Quantity) -> bool | None:
    if wanted.unit and given.unit and wanted.unit != given.unit:
        if wanted.measure and given.measure:
            return wanted.measure == given.measure
        if wanted.measure or given.measure:
            known, other = (wanted, given) if wanted.measure else (given, wanted)
            # `5 feet of rope` is as good as `5 feet`; `5 apples` and `5 feet` are not the same.
            if not mentions(other.unit, known.unit):
                return False
    if wanted.value == given.value:
        return True
    close = abs(wanted.value - given.value) <= abs(wanted.value) / 100_000
    rounded = (wanted.decimal or given.decimal) and close and wanted.percent == given.percent
    return None if rounded else False


def _numbers(text: str) -> tuple[str, list[Quantity]] | None:
    """The brackets and the plain numbers of `(1, 2)`, `[0, 1)` or `1, 2`; a parser is slow here."""
    match = _LIST.fullmatch(_AND.sub(", ", text))
    if match is None or (match[1] is None) != (match[3] is None):
        return None
    parts = [part.strip() for part in match[2].split(",")]
    numbers = [quantity(part) for part in parts]
    plain = [number for number in numbers if number and not number.percent and not number.unit]
    if len(plain) != len(numbers) or len(plain) < 2:
        return None
    return ((match[1] or "") + (match[3] or "")).replace("\\", ""), plain


def _same_numbers(brackets: str, wanted: list[Quantity], given: list[Quantity]) -> bool | None:
    if len(wanted) != len(given):
        return False
    if brackets in ("", "{}"):
        wanted, given = sorted(wanted), sorted(given)
    same = [_same_quantity(*pair) for pair in zip(wanted, given, strict=True)]
    return False if False in same else None if None in same else True
