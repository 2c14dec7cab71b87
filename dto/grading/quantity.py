r"""Read numbers exactly: fractions, percent, units, thousands, powers of ten.

`1,000`, `1{,}000`, `1\,000`, `1 000`, `\frac{1}{2}`, `1/2`, `1\frac12` and `1 1/2` (mixed), `.5`,
`0.1\overline{6}`, `1.2\times10^{5}`, `1.2e5`, `27\%`, `百分之27`, `5\text{ million}`, `3万`, `\$5`,
`5 cm^2`, `12 km/h`, `8个`. Nothing is guessed: `2 k` is a product, `5 or 7` is not a number.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from dto.grading.wording import NUMBERS, UNSURE, WRONG

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+)"
_NUMBER = re.compile(
    r"(?P<sign>[-+]?)\s*(?:"
    r"(?P<whole>\d*)\s*\\frac\s*\{\s*(?P<top>\d+)\s*\}\s*\{\s*(?P<bottom>\d+)\s*\}"
    r"|(?:(?P<before>\d+)\s+)?(?P<over>\d+)\s*/\s*(?P<under>\d+)"
    r"|(?P<start>\d+\.\d*)\s*\\(?:overline|bar|dot)\s*\{?(?P<period>\d+)\}?"
    rf"|(?P<decimal>{_DIGITS}(?:\.\d*)?|\.\d+)"
    r"(?:\s*(?:\\times|\\cdot|×|·|\*|x)\s*10\s*\^\s*\{?\s*(?P<power>[-+]?\d+)\s*\}?"
    r"|[eE](?P<e>[-+]?\d+))?"
    r")\s*(?P<percent>%?)\s*"
)
_MONEY = re.compile(r"^(?:[€£¥￥₹]|US|USD|EUR|RMB)\s*(?=[-+]?[\d.])|\s*\b(?:USD|EUR|RMB)$")
_HUNDREDTHS = re.compile(r"^百分之\s*([\d.]+)$")
_UNIT_IN_TEXT = re.compile(
    r"\\(?:text|mbox|mathrm)\s*\{(?P<unit>[A-Za-z .,/-]*)\}(?P<power>(?:\^\s*\{?\s*[23]\s*\}?)?)"
)
_CHINESE = re.compile(r"(?P<scale>[万亿]?)(?P<unit>[\u4e00-\u9fff]{0,5})")
_PART = r"\d[\d.,]*\s*(?:\\text\s*\{[^{}]*\}|[A-Za-z]+|[\u4e00-\u9fff]{1,3})"
_PARTS = re.compile(rf"{_PART}(?:(?:\s*,)?\s*(?:and\b\s*)?{_PART})+")
_TRAILING = re.compile(
    r"\s*\\(?:text|mbox|mathrm)\s*\{[A-Za-z .,/-]+\}(?:\^\s*\{?\s*[23]\s*\}?)?\s*$"
    r"|(?<=[\d}) ])\s*(?<![A-Za-z\\])[A-Za-z]{2,}(?:/[a-z]+)?(?:\^\s*\{?\s*[23]\s*\}?)?\s*$"
)
_POWER = re.compile(r"\s*\^\s*\{?\s*([23])\s*\}?$|([²³])$")
_MOST_DIGITS, _MOST_POWER = 1_000, 400

_SCALES = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9,
    "trillion": 10**12, "万": 10**4, "亿": 10**8,
}  # fmt: skip
_IN_WORDS = {
    word: value
    for words in (
        " ".join((*NUMBERS, "twenty")),
        "zeroth first second third fourth fifth sixth seventh eighth ninth tenth",
        "零 一 二 三 四 五 六 七 八 九 十",
    )
    for value, word in enumerate(words.split())
}  # fmt: skip
_ALTOGETHER = re.compile(r"\s+(?:in total|altogether)$")
_MEGA = re.compile(r"\bM(?=(?:W|Hz|eV|J|Pa|V|N)\b)")
_WORDED = re.compile(r"\\(?:text|mbox|mathrm)\s*\{\s*([a-z]+|[-+]?[\d.,/ ]*\d)\s*\}")
_PERCENT = {"percent", "percentage", "pct"}
_MEASURES: dict[str, dict[str, str]] = {
    "length": {
        "1": "m meter metre 米", "1/1000": "mm millimeter millimetre 毫米",
        "1/100": "cm centimeter centimetre 厘米", "1/10": "dm decimeter 分米",
        "1000": "km kilometer kilometre 千米 公里", "0.0254": "in inch inches",
        "0.3048": "ft foot feet",
        "0.9144": "yd yard", "1609.344": "mi mile", "1/1000000": "micrometer um",
        "1/1000000000": "nm nanometer", "1/10000000000": "angstrom",
    },
    "mass": {
        "1": "g gram 克", "1/1000": "mg milligram 毫克", "1000": "kg kilogram 千克 公斤",
        "1000000": "tonne 吨", "453.59237": "lb lbs pound", "28.349523125": "oz ounce",
    },
    "time": {
        "1": "s sec second 秒", "60": "min minute 分钟", "3600": "h hr hour 小时",
        "86400": "day 天", "604800": "week 周 星期",
    },
    "volume": {
        "1": "l liter litre 升", "1/1000": "ml milliliter millilitre 毫升",
        "3.785411784": "gallon gal", "0.946352946": "quart qt", "0.473176473": "pint pt",
        "0.2365882365": "cup", "0.01478676478125": "tablespoon tbsp",
        "0.00492892159375": "teaspoon tsp",
    },
    "calendar": {"1": "month", "12": "year yr", "120": "decade", "1200": "century centuries"},
    "data": {"1": "bit", "8": "byte", "8000": "kb", "8000000": "mb", "8000000000": "gb",
             "8000000000000": "tb"},
    "land": {"1": "hectare ha", "0.40468564224": "acre"},
    "money": {"1": "dollar", "1/100": "cent"},
    "euro": {"1": "euro"},
    "yuan": {"1": "yuan rmb 元", "1/10": "角"},
    "angle": {"1": "degree 度"},
    "radian": {"1": "radian rad"},
    "force": {"1": "n newton", "1000": "kn"}, 
    "energy": {"1": "j joule", "1000": "kj", "1000000": "megaj", "4.184": "cal calorie",
               "4184": "kcal"},
    "particles": {"1": "ev", "1000": "kev", "1000000": "megaev", "1000000000": "gev"},
    "power": {"1": "w watt", "1000": "kw", "1/1000": "mw", "1000000": "megaw"},
    "pressure": {"1": "pa pascal", "1000": "kpa", "1000000": "megapa",
                 "101325": "atm", "100000": "bar"},
    "voltage": {"1": "v volt"}, "current": {"1": "a amp ampere"}, 
    "frequency": {"1": "hz hertz", "1000": "khz", "1000000": "megahz", "1000000000": "ghz"},
    "temperature": {"1": "k kelvin"}, "amount": {"1": "mol mole"}, "resistance": {"1": "ohm"},
}  # fmt: skip
_UNITS = {
    word: (dimension, Fraction(factor))
    for dimension, sizes in _MEASURES.items()
    for factor, words in sizes.items()
    for word in words.split()
}
_ALIASES = {"mph": "mile/hour", "kph": "km/h"}
# A single letter in \text{} is a unit only if it is one of these: `2\mathrm{i}` is a number.
_LETTERS = frozenset("mgshlLACFJKNVW")
# Outside \text{} a word is a unit only if it is one of these: `2 k` is a product.
_PLAIN = re.compile(
    r"(?:m|mm|cm|dm|km|kg|mg|ml|min|sec|hr|mph|m/s|km/h|mi/h|rad|lbs?|oz|ft|yd|inch|inches|feet|foot|"
    r"(?:centi|kilo|milli|deci)?met(?:er|re)|(?:kilo|milli)?gram|pound|ounce|(?:milli)?lit(?:er|re)|"
    r"yard|mile|second|minute|hour|day|week|month|year|dollar|cent|euro|yuan|degree|radian|unit|"
    r"point|people|person|student|square|cubic|per|times)s?"
)
# A word with vowels after a space is a unit, too: `20 cups` (but not the name of a function).
_NOUN = re.compile(
    r"(?!(?:arc)?(?:sin|cos|tan|cot)h?$|(?:sec|csc|log|exp|sqrt|mod|lim|det|max|min|lcm|gcd|abs)$)"
    r"(?=\w*[aeiouyäöüáéíóúàèâêåæø])[^\W\d_]{3,}"
)
# Words after a number that make it a different number, or several.
NO_UNIT = re.compile(
    r"\b(?:or|and|not|to|more|less|than|most|least|about|factorial|squared|cubed|half|halves|thirds?|"
    r"quarters?|(?:fif|six|seven|eigh|nin|ten|twelf|hundred|thousand|\w*illion)ths?|pi|root|"
    r"times|mod|modulo|base|plus|minus|over|between|out|below|above|under|remainder|negative|"
    r"infinity|infinite|except|if|when|where|unless|but|"
    rf"{UNSURE}|{WRONG}|false|divided|multiplied|alpha|beta|gamma|delta|theta|lambda|omega|sigma|tau|phi|"
    r"halved|doubled|[abc]{2,}|\w*(?:teen|tie|eleven)ths?|twice|double|prime|none|never|inclusive|"
    r"exclusive|upwards?|otherwise|conjugate|inverse|imaginary|choose|raised|kilo|mega|permille|score|"
    r"gross|grand|crore|lakh|factorials?|union|equals?|unknown)\b"
)
_NO_CHINESE_UNIT = re.compile(
    "[或和到至与及多余约几半不十百千万亿点成折的倍减加六七八九零打]|阶乘|倒数|错误|^平方$|^立方$|分之|次方|以上|以下|左右|大于|小于|至少|至多"
)


def no_unit(words: str) -> bool:
    """Whether words after a number change it: words in `NO_UNIT`, and single letters."""
    letter = words.strip(" .")
    return bool(NO_UNIT.search(words)) or (len(letter) == 1 and letter not in _LETTERS)


class Quantity(NamedTuple):
    """A number in an answer; `value` includes percent.

    `unit` holds the words that were read as the unit. `measure` is the dimension of the unit and
    the number in its base unit (`5 cm^2`: length 2, 0.0005); None if it is not a unit of measure.
    """

    value: Fraction
    decimal: bool
    percent: bool
    unit: str
    measure: tuple[str, Fraction] | None = None


@lru_cache(maxsize=1 << 15)
def quantity(text: str) -> Quantity | None:
    """Read a cleaned answer as a number, with or without a unit; None for anything else.

    `3 hours 20 minutes` is their sum, in hours.
    """
    if worded := _WORDED.fullmatch(text):
        text = worded[1]
    if text[:1].isalpha() and text.lower() in _IN_WORDS:
        return Quantity(Fraction(_IN_WORDS[text.lower()]), False, False, "")
    if _PARTS.fullmatch(text):
        return _sum([quantity(part) for part in re.findall(_PART, text)])
    text = _HUNDREDTHS.sub(r"\1%", _MONEY.sub("", text))
    number = _NUMBER.match(text)
    if number is None or len(text) > _MOST_DIGITS:  # int() refuses thousands of digits
        return None
    value = _value(number)
    if value is None:
        return None
    if number["sign"] == "-":
        value = -value
    percent = bool(number["percent"])
    decimal = "." in (number["decimal"] or "")
    rest = text[number.end() :]
    chinese = _CHINESE.fullmatch(rest)
    if chinese:
        if chinese["unit"] not in _UNITS and _NO_CHINESE_UNIT.search(chinese["unit"]):
            return None
        value *= _SCALES.get(chinese["scale"], 1)
        unit, power = chinese["unit"], 1
        for name, exponent in (("平方", 2), ("立方", 3)):
            if unit.startswith(name):
                unit, power = unit[2:], exponent
    else:
        read = _unit(rest, apart=text[number.end() - 1] == " ")
        if read is None:
            return None
        unit, power, scale, is_percent = read
        value, percent = value * scale, percent or is_percent
    if percent:
        value /= 100
    dimension = _measure(unit)
    measure = (f"{dimension[0]} {power}", value * dimension[1] ** power) if dimension else None
    return Quantity(value, decimal, percent, unit if power == 1 else f"{unit}^{power}", measure)


def _sum(parts: list[Quantity | None]) -> Quantity | None:
    """Add quantities of the same dimension, in the unit of the first; None for others."""
    measured = [(part.unit, part.measure) for part in parts if part and part.measure]
    dimensions = {measure[0] for _, measure in measured}
    size = _measure(measured[0][0]) if measured else None
    if len(measured) < len(parts) or len(dimensions) > 1 or size is None:
        return None
    sizes = [unit_size[1] for name, _ in measured if (unit_size := _measure(name))]
    if sizes != sorted(set(sizes), reverse=True):
        return None  # 6 cm and 8 cm are two lengths
    total = sum((measure[1] for _, measure in measured), Fraction(0))
    unit = " ".join(name for name, _ in measured)
    return Quantity(total / size[1], False, False, unit, (dimensions.pop(), total))


def split_unit(text: str) -> tuple[str, str]:
    r"""Split an expression from its unit: `5\sqrt{2}\text{ cm}`, `\frac{\pi}{2} rad`."""
    if not text.isascii() and (number := quantity(text)) and number.unit and not number.decimal:
        return str(number.value), number.unit
    match = _TRAILING.search(text)
    if match is None or not match.start():
        return text, ""
    read = _unit(match[0].strip())
    if read is None or read[2] != 1 or read[3] or not read[0]:
        return text, ""
    unit, power, *_ = read
    return text[: match.start()].rstrip(), unit if power == 1 else f"{unit}^{power}"


def unit_factor(gold: str, given: str) -> Fraction | None:
    """The factor that converts one unit to the other; None if their dimensions differ.

    1 if a unit is missing or unknown.
    """
    sizes = []
    for unit in (gold, given):
        name, _, power = unit.partition("^")
        dimension = _measure(name) if name else None
        sizes.append(
            (f"{dimension[0]} {power or 1}", dimension[1] ** int(power or 1)) if dimension else None
        )
    if sizes[0] is None or sizes[1] is None:
        if gold and given and (sizes[0] or sizes[1]):
            known_unit, words = (gold, given) if sizes[0] else (given, gold)
            return Fraction(1) if mentions(words, known_unit) else None
        return Fraction(1)
    return sizes[0][1] / sizes[1][1] if sizes[0][0] == sizes[1][0] else None


def mentions(words: str, unit: str) -> bool:
    """Whether some words contain a unit, also under another name, and not in a rate."""
    dimension = _measure(unit)
    parts = words.split()
    return dimension is not None and "per" not in parts and dimension in map(_measure, parts)


def _measure(unit: str) -> tuple[str, Fraction] | None:
    """The dimension of a unit and its size in the base unit; also for rates such as `m/s`."""
    over = _ALIASES.get(unit, unit).replace(" per ", "/").split("/")
    entries = (_UNITS.get(part) or _UNITS.get(part.removesuffix("s")) for part in over)
    sizes = [entry for entry in entries if entry is not None]
    if len(sizes) < len(over) or len(sizes) > 2:
        return None
    (measures, size), *rest = sizes
    for other, by in rest:
        measures, size = f"{measures}/{other}", size / by
    return measures, size


def _value(number: re.Match[str]) -> Fraction | None:
    if number["decimal"]:
        plain = number["decimal"].replace(",", "").replace(" ", "").rstrip(".") or "0"
        power = int(number["power"] or number["e"] or 0)
        return None if abs(power) > _MOST_POWER else Fraction(plain) * Fraction(10) ** power
    if number["period"]:
        start, period = number["start"], number["period"]
        digits = len(start.partition(".")[2])
        repeated = Fraction(int(period), 10**digits * (10 ** len(period) - 1))
        return Fraction(start.rstrip(".")) + repeated
    whole, top, bottom = (
        (number["whole"], number["top"], number["bottom"])
        if number["top"]
        else (number["before"], number["over"], number["under"])
    )
    return None if int(bottom) == 0 else Fraction(int(whole or 0)) + Fraction(int(top), int(bottom))


def _unit(rest: str, *, apart: bool = False) -> tuple[str, int, int, bool] | None:
    """Read the unit, its power, a factor as in "million", and whether it is percent.

    `apart`: a space precedes it, so that any noun is a unit.
    """
    in_text = _UNIT_IN_TEXT.fullmatch(rest)
    if in_text:
        rest = in_text["unit"] + in_text["power"]
        if no_unit(in_text["unit"]):
            return None
    power, scale, percent = 1, 1, False
    raised = _POWER.search(rest)
    if raised:
        power, rest = (
            int((raised[1] or raised[2]).translate({178: "2", 179: "3"})),
            rest[: raised.start()],
        )
    if apart:
        rest = _ALTOGETHER.sub("", rest)
    unit: list[str] = []
    for word in (
        _MEGA.sub("mega", rest).lower().replace(".", " ").replace("per cent", "percent").split()
    ):
        if NO_UNIT.fullmatch(word) or word in _IN_WORDS:
            return None
        if word in _SCALES:
            scale *= _SCALES[word]
        elif word in _PERCENT:
            percent = True
        elif word == "of" and unit and apart:
            continue  # pieces of candy
        elif word in ("square", "sq") or word == "cubic":
            power = 3 if word == "cubic" else 2
        elif in_text or _PLAIN.fullmatch(word) or (apart and _NOUN.fullmatch(word)):
            unit.append(word)
        else:
            return None
    if power != 1 and not unit:
        return None  # 5^2 is 25
    return " ".join(unit), power, scale, percent
