r"""Remove the wording around an answer, and read the letters of options.

An answer may be followed by a reason (`45, since 50 - 5 = 45`), a consequence (`72, so she sells 72
eggs`), a denial (`5, not 6`) or the number in words (`12 (twelve)`). These are removed only if they
do not change the answer: `5 or 6`, `5, so y = 6`, `5 because of x or 6 because of y` and
`5, which is wrong` stay whole, and so equal nothing.

An option is its letter, with or without parentheses, brackets, quotation marks, fonts and a full
stop. Its text may follow (`C. A girl`), or a reason (`B because …`), a denial (`D, not B`) or "is
correct". Several letters are a set: `AC`, `(A, C)`, `A, C and D`. Circled numbers, `(1)(2)(4)` and
Roman numerals are labels, too; they never equal letters. Nothing is guessed: `B or C` is undecided,
`not B` picks nothing, `A dog` begins with an article.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_REASON = (
    r"(?:(?:because|since|due to|weil|denn|puisque|porque|ya que|pois|perché|poiché|"
    r"потому что|так как)\b|parce qu(?:e\b|['’]))"
)
_SO = (
    r"(?:(?:and )?(?:so|thus|therefore|hence)|which|meaning|giving|making|i\.e\.|that is|donc|"
    r"por lo tanto)"
)
_DENIED = (
    r"(?:(?:and )?(?:not(?! (?:sure|exactly|quite|necessarily|certain|yet|really))|rather than|"
    r"instead of|as opposed to)|nicht|et non|pas|y no)"
)
_CLAUSE = re.compile(
    rf"(?:\s{{0,3}}[,;—–(]\s{{0,3}}|\s--?\s|\s{{1,3}}){_REASON}"
    rf"|\s{{0,3}}[,;—–(]\s{{0,3}}(?:as\b(?! well)|{_DENIED}\s)"
    r"|\s{0,3}[,;(]\s{0,3}which (?:is (?:about|approximately|roughly|around)|leaves)\b"
    r"|\s{0,3}[,;—–(]\s{0,3}(?:whereas|while)\s"
    r"|\s{0,3}[,—–]\s{0,3}the\s(?=(?:least|most|smallest|largest|greatest|supplement|complement)\b"
    r"(?!.*\band\b))"
    r"|\s{1,3}and not\s"
    r"|\s{0,3},\s{0,3}in (?:simplest|lowest|reduced|exact|simplified|standard|interval)"
    r"(?: \w+)? (?:form|terms|notation)\b"
    r"|\s{0,3},\s{0,3}\d[\d.,]*(?: \w+)? (?:more|less|fewer)\b"
    rf"|(?P<so>\s{{0,3}}[,;—–(]\s{{0,3}}{_SO}[\s,])"
    r"|[,，;；]?\s{0,3}(?:因为|因為|由于|由於|而不是|なぜなら|而非)"
    r"|(?P<so2>[,，]\s{0,3}(?:所以|因此))",
    re.IGNORECASE,
)
UNSURE = "maybe|perhaps|possibly"
TAKING_BACK = "actually|wait|oops|correction|sorry"
WRONG = "wrong|incorrect"
_HEDGE = re.compile(
    rf"\b(?:{UNSURE}|might|(?:could|may)\s(?:also\s)?be|depending|unless|otherwise|excluding|actually|"
    r"wait)\b|,\s?(?:or|but)\s\(?[A-J]\b|\b(?:or|but)\s\d"
    r"|\b(?:and|or)\s\S{1,20}\s(?:because|since|as|if|when|for)\b"
)
_REFUTED = re.compile(rf"\b(?:{WRONG}|impossible|contradict\w*|not)\b")
_FIGURE = re.compile(r"\d+(?:[.,]\d+)*")
_WORDS = re.compile(r"[A-Za-z]{2,}|[\u3040-\u30ff\u4e00-\u9fff]")
_ADVERB = re.compile(
    r"(?:(?:therefore|thus|hence|then|so|indeed|clearly|simply|just|again|exactly|now|obviously|"
    r"definitely|most likely|likely|probably|approximately|roughly|about|equal to|given by|daher|"
    r"somit|also|donc|alors|por lo tanto|entonces|portanto|logo|quindi|dunque)\b"
    r"|approx\.|[,:：])\s*",
    re.IGNORECASE,
)
_BOLD = re.compile(r"\*\*([^*\n]+)\*\*")
ENDING = re.compile(  # the verb that ends a statement in Japanese or Korean
    r"\s*(?:です|でした|となります|になります|である|だ|입니다|이다|이에요|예요)[。.]?$"
)
_QUOTES = {'"': '"', "“": "”", "'": "'", "‘": "’", "`": "`", "«": "»", "„": "“", "「": "」"}
_DECORATION = "*$ \t\r\n✅✔☑🎉\ufe0f"
_ASIDE = re.compile(r"([-+$\\]{0,3}[\d.,]+)\s+\(([a-z]+(?:\s+[^\s()]+){2,20})\)")
_IN_WORDS = re.compile(r"(.*\S)\s*\(\s*([A-Za-z]+(?:[ -][A-Za-z]+)?)\s*\)")
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
TEXT_COMMAND = re.compile(r"\\(?:text|mbox|mathrm)\s*\{[^{}]*\}")


def before_clause(text: str) -> str:
    """Remove the clause behind an answer that gives a reason, a consequence or a denial.

    A consequence with other numbers than the last one of the answer stays: `5, so y = 6` is a
    different answer.
    """
    match = _CLAUSE.search(text)
    if match is None or not text[: match.start()].strip():
        return text
    head, rest = text[: match.start()], text[match.end() :]
    if _HEDGE.search(rest):
        return text
    if match["so"] or match["so2"]:
        figures = {figure.replace(",", "") for figure in _FIGURE.findall(rest)}
        head_figures = [figure.replace(",", "") for figure in _FIGURE.findall(head)]
        if not _WORDS.search(rest) or (figures and not set(head_figures[-1:]) & figures):
            return text
        if _REFUTED.search(rest):
            return text
        if (
            "=" in rest
            and _FIGURE.findall(rest.rpartition("=")[2])[:1] != _FIGURE.findall(head)[-1:]
        ):
            return text  # 5, so 5 + 5 = 10
    return head.rstrip()


def tidy(answer: str) -> str:
    """Remove emphasis, quotation marks, adverbs and a clause from an answer."""
    answer = answer.strip()
    if " " in answer or "，" in answer or not answer.isascii():
        while match := _ADVERB.match(answer):
            answer = answer[match.end() :]
        answer = without_clause(answer)
        if "**" in answer:
            answer = _BOLD.sub(r"\1", answer)
    if not answer.isascii():
        answer = ENDING.sub("", answer)
    answer = answer.strip(_DECORATION)
    for left, right in ((r"\(", r"\)"), (r"\[", r"\]")):
        if answer.startswith(left) and answer.endswith(right):
            answer = answer[2:-2].strip(_DECORATION)
    if len(answer) > 2 and _QUOTES.get(answer[0]) in (answer[-1], answer[-2:-1]):
        answer = answer.rstrip(".").strip(answer[0] + _QUOTES[answer[0]]).strip(_DECORATION)
    return answer


def without_clause(answer: str) -> str:
    """Remove a clause, or the number in words, behind an answer: `72, so she sells 72 eggs`."""
    if " " not in answer and answer.isascii():
        return answer
    inside = TEXT_COMMAND.fullmatch(answer)
    if inside:
        words = answer[answer.index("{") + 1 : -1]
        head = before_clause(words)
        return answer if head == words else head
    head = before_clause(answer)
    if len(head) < len(answer) and _balanced(head):
        answer = head
    if (aside := _ASIDE.fullmatch(answer.rstrip("."))) and not _HEDGE.search(aside[2]):
        answer = aside[1]
    named = _IN_WORDS.fullmatch(answer.rstrip("."))
    if named and (value := _number(named[2])) is not None:
        figure = named[1].strip("$* ").split(" ")[0].strip("$*")
        if figure == str(value):
            answer = named[1]
    return answer


def _balanced(head: str) -> bool:
    counts = [head.count(each) for each in "{}([)]"]
    return counts[0] == counts[1] and counts[2] + counts[3] == counts[4] + counts[5]


def _number(words: str) -> int | None:
    """The number of `twelve` or `forty-five`, 0 to 99."""
    first, _, second = words.lower().replace("-", " ").partition(" ")
    if not second and first in NUMBERS:
        return NUMBERS.index(first)
    if first in _TENS and (not second or second in NUMBERS[1:10]):
        return 10 * (_TENS.index(first) + 2) + (NUMBERS.index(second) if second else 0)
    return None


_CIRCLED = {ord("①") + number: f"({number + 1})" for number in range(20)}
_CIRCLED |= {ord("【"): "[", ord("】"): "]", ord("、"): ",", ord("。"): "."}
_FONT = re.compile(
    r"\\[,;:! ()\[\]]|\\(?:text(?:bf|rm|it|sf|tt|normal|sc)?|mbox|hbox|math(?:bf|rm|it|sf|tt|bb)|"
    r"underline|emph|boldsymbol|bm|operatorname|bf|rm|it|sf|tt|bfseries|left|right|[Ll]arge|"
    r"displaystyle|boxed|fbox|q?quad)(?![A-Za-z])"
)
_MARKS = re.compile(r"\\?[{}$]|\*+|[`\"“”„«»「」『』#]|__+")
_LEAD = re.compile(
    r"(?:(?:so|thus|therefore|hence|then|also|donc|daher|simply|clearly|definitely|most likely|"
    r"likely|probably|must be|it is|it['’]s|is|ist|est|es|é)\b"
    r"[,:]?\s*)*(?:(?:the|la|le|el|die|der|das)\s+|l['’]\s*|[ao]\s+(?=alternativa|op[cç]|letra))?"
    r"(?:(?:final|correct|right|best)\s+)*"
    r"(?:(?:(?:option|choice|answer|letter|statement|alternativ[ae]|opci[oó]n|opzione|opção|letra|"
    r"lettera|lettre|buchstabe|antwort|réponse|respuesta)\b|選択肢|正确|选项|選項|选择|选|選|答案)"
    r"\s*(?:(?:is|ist|est|es|é|è)\b|[是为為])?\s*[:=]?\s*)*",
    re.IGNORECASE,
)
_LABEL = r"(?:[IVX]{2,4}|[A-J]|\d{1,2})"
_JOINED = r"(?:[\s,;&+]|(?:and|und|et|y|e)\b|[和与與及])"
_SEVERAL = re.compile(
    "|".join(
        rf"{label}(?:{_JOINED}+{label})+|\(?{label}\)(?:{_JOINED}*\(?{label}\))+"
        for label in (r"(?:[IVX]{2,4}|[A-J])", r"\d{1,2}")
    )
)
_RUN = re.compile(r"(?:([A-J])(?!.*\1)){2,10}")
_BRACKETS = re.compile(r"[(\[<]([^()\[\]<>]*)[)\]>]")
_FIRST = re.compile(r"[(\[]?\s*([A-Za-z])(?![A-Za-z0-9'’])\s*([)\]]?\s*[.:)]?)")
_NUMBERED = re.compile(r"[(\[]?(\d{1,2})(?:[)\]]\s*|\.\s+|:\s)\D")
_CORRECT = re.compile(
    r"\s+is\s+(?:(?:therefore|thus|indeed|clearly)\s+)?(?:the\s+)?(?:only\s+)?"
    r"(?:(?:correct|right|best)(?:\s+(?:answer|option|choice|one))?|answer)"
    r"(?=\s*(?:$|[.,;:!(]|because\b|since\b|as\b))"
)
_CHINESE_END = re.compile(r"(?<=[A-J)])\s*(?:选项|選項|项)?\s*是?(?:正确|正確)?(?:的|答案)?$")
_NAMED = re.compile(
    r"[\w\s,'’.-]{1,60}?(?:\s\(([A-J])\)|,?\s(?:option|choice)\s\(?([A-J])\)?|,\s([A-J]))"
)
_RELATED = re.compile(
    r"\b(?:or|and|not|neither|nor|than|except|but|if|from|to|of|unlike|near|like|in|by|on|with|for|"
    r"wrong|incorrect|no|except|without)\b|n['’]t\b",
    re.IGNORECASE,
)
_VALUE = re.compile(r"\s*,?\s*[-+]?\\?[$€£]?[\d\\]|\s*[(\[]|\s+[-–—]\s+\S|\s*[–—]\s*\w{2}")
_TAKEN_BACK = re.compile(rf"\b(?:{TAKING_BACK})\b", re.IGNORECASE)
_NO_BUT = re.compile(
    r"^\s*(?:or|but)\s|\bI was wrong\b"
    r"|(?:^\s*|[.,;]\s*)(?:[Nn]o|[Ww]ait),?\s+(?:it is\s+)?\(?[A-J]\b(?!['’])"
)
_LONE = re.compile(r"(?<![A-Za-z'’])[A-J](?![A-Za-z'’])")
_ANOTHER_NUMBER = re.compile(r"\b(?:or|and)\b\s*\(?\d|[,\s]\(\d|\d\)")
_ANOTHER = re.compile(
    r".?\s*(?:\(?[A-J]\)"
    r"|(?:(?:[,;/&+]|(?:and|or)(?![a-z])|[和与及或])\s*)+\(?[A-J](?![A-Za-z']))"
)
_OR_LATER = re.compile(
    r"\b(?:or|oder|ou)\s+(?:(?:option|choice)\s+)?\(?[A-J](?:[).:,]+\s*[^\s.).:]|[).]*$)"
    r"|[.;,]\s+(?:(?:option|choice)\s+)?\(?[A-J][).:]+\s|\b(?:[Oo]ption|[Cc]hoice)\s+\(?[A-J]\)?:"
)


def same_choice(gold: str, prediction: str) -> bool | None:
    """Whether a prediction picks the options of the gold answer; None if that has no option."""
    expected = options(gold)
    return None if expected is None else expected == options(prediction)


@lru_cache(maxsize=4096)
def options(text: str) -> frozenset[str] | None:
    """The labels that an answer picks; None if it picks none or is undecided."""
    text = _plain(text)
    text = text[match.end() :] if (match := _LEAD.match(text)) else text
    text = text.strip(" .,;:!")
    brackets = _BRACKETS.fullmatch(text)
    if brackets:
        text = brackets[1].strip()
    text = _CHINESE_END.sub("", text)
    return _all(text) or _all(before_clause(text)) or _first(text) or _last(text)


def _all(text: str) -> frozenset[str] | None:
    """The labels of a text that has nothing else."""
    if len(text) == 1 and text.isalpha() and text.isascii():
        return frozenset(text.upper())
    if re.fullmatch(_LABEL, text):
        return frozenset((text,))
    if _RUN.fullmatch(text):
        return frozenset(text)
    return frozenset(re.findall(_LABEL, text)) if _SEVERAL.fullmatch(text) else None


def _first(text: str) -> frozenset[str] | None:
    """The label at the beginning of a text, if its mark or the following text shows it is one."""
    if number := _NUMBERED.match(text):
        return None if _ANOTHER_NUMBER.search(text, number.end(1)) else frozenset((number[1],))
    match = _FIRST.match(text)
    if match is None:
        return None
    letter, mark, rest = match[1], match[2].strip(), text[match.end() :]
    small = letter.islower()
    if mark:
        if small and not (")" in mark or "]" in mark or not rest or rest[0].isspace()):
            return None
    elif rest:
        valued = _VALUE.match(text, match.end(1)) and not _LONE.search(rest)
        if small or not (valued or _CORRECT.match(text, match.end(1))):
            return None
    if text.endswith("?") or _ANOTHER.match(text, match.end(1)):
        return None
    if re.search(
        rf"(?:^|\s)\(?{chr(ord(letter.upper()) + 1)}[).:]+\s(?!and\b|or\b)", rest
    ) and not (re.search(r"\b(?:both|either|and|or)\b", rest, re.IGNORECASE)):
        return None  # "A. 1 B. 2" lists the options
    if _NO_BUT.search(rest):
        return None
    taken_back = _TAKEN_BACK.search(rest)
    if taken_back and _LONE.search(rest, taken_back.end()):
        return None
    later = _OR_LATER.search(rest)
    if later:
        between = rest[: later.start()]
        marked = re.search(r"\([A-J]\)", between)
        bare = re.search(r"\b[A-J]\b", between) and rest[later.start() :].rstrip(" .")[-1].isupper()
        if not (marked or bare or re.search(r"\b(?:both|either)\b", between, re.IGNORECASE)):
            return None
    return frozenset(letter.upper())


def _last(text: str) -> frozenset[str] | None:
    """The label behind the text of its option: `Paris (B)`, `the second option, B`."""
    named = _NAMED.fullmatch(text)
    if named is None or _RELATED.search(text) or len(_LONE.findall(text)) != 1:
        return None
    return frozenset(named[1] or named[2] or named[3])


def _plain(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_CIRCLED))
    if "\\" in text:
        text = _FONT.sub(" ", text)
    return " ".join(_MARKS.sub("", text).split())
