r"""What is no part of an answer: a clause behind it, emphasis and quotation marks around it.

Behind an answer may stand a reason (`45, since 50 - 5 = 45`), a consequence (`72, so she sells 72
eggs`), a denial (`5, not 6`) and the number in words (`12 (twelve)`). They are left out only where
they do not make it another answer: `5 or 6`, `5, so y = 6`, `5 because of x or 6 because of y` and
`5, which is wrong` stay whole, and so equal nothing.
"""

from __future__ import annotations

import re

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
_HEDGE = re.compile(
    r"\b(?:maybe|perhaps|possibly|might|(?:could|may)\s(?:also\s)?be|depending|unless|otherwise|excluding|actually|"
    r"wait)\b|,\s?(?:or|but)\s\(?[A-J]\b|\b(?:or|but)\s\d"
    r"|\b(?:and|or)\s\S{1,20}\s(?:because|since|as|if|when|for)\b"
)
_REFUTED = re.compile(r"\b(?:wrong|incorrect|impossible|contradict\w*|not)\b")
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
_ENDING = re.compile(
    r"\s*(?:です|でした|となります|になります|である|だ|입니다|이다|이에요|예요)[。.]?$"
)
_QUOTES = {'"': '"', "“": "”", "'": "'", "‘": "’", "`": "`", "«": "»", "„": "“", "「": "」"}
_DECORATION = "*$ \t\r\n✅✔☑🎉\ufe0f"
_ASIDE = re.compile(r"([-+$\\]{0,3}[\d.,]+)\s+\(([a-z]+(?:\s+[^\s()]+){2,20})\)")
_IN_WORDS = re.compile(r"(.*\S)\s*\(\s*([A-Za-z]+(?:[ -][A-Za-z]+)?)\s*\)")
_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_TEXT_COMMAND = re.compile(r"\\(?:text|mbox|mathrm)\s*\{[^{}]*\}")


def before_clause(text: str) -> str:
    """An answer without the clause behind it that gives a reason, a consequence or a denial.

    A consequence that holds other numbers than the answer's last one stays: `5, so y = 6` answers
    something else.
    """
    match = _CLAUSE.search(text)
    if match is None or not text[: match.start()].strip():
        return text
    head, rest = text[: match.start()], text[match.end() :]
    if _HEDGE.search(rest):
        return text
    if match["so"] or match["so2"]:
        figures = {figure.replace(",", "") for figure in _FIGURE.findall(rest)}
        own = [figure.replace(",", "") for figure in _FIGURE.findall(head)]
        if not _WORDS.search(rest) or (figures and not set(own[-1:]) & figures):
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
    """Without what is no part of an answer: emphasis, quotation marks, adverbs, a clause."""
    answer = answer.strip()
    if " " in answer or "，" in answer or not answer.isascii():
        while match := _ADVERB.match(answer):
            answer = answer[match.end() :]
        answer = without_clause(answer)
        if "**" in answer:
            answer = _BOLD.sub(r"\1", answer)
    if not answer.isascii():
        answer = _ENDING.sub("", answer)
    answer = answer.strip(_DECORATION)
    for left, right in ((r"\(", r"\)"), (r"\[", r"\]")):
        if answer.startswith(left) and answer.endswith(right):
            answer = answer[2:-2].strip(_DECORATION)
    if len(answer) > 2 and _QUOTES.get(answer[0]) in (answer[-1], answer[-2:-1]):
        answer = answer.rstrip(".").strip(answer[0] + _QUOTES[answer[0]]).strip(_DECORATION)
    return answer


def without_clause(answer: str) -> str:
    """Without a clause, or the number in words, behind an answer: `72, so she sells 72 eggs`."""
    if " " not in answer and answer.isascii():
        return answer
    inside = _TEXT_COMMAND.fullmatch(answer)
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
    """Of `twelve` or `forty-five`, 0 to 99."""
    first, _, second = words.lower().replace("-", " ").partition(" ")
    if not second and first in _SMALL:
        return _SMALL.index(first)
    if first in _TENS and (not second or second in _SMALL[1:10]):
        return 10 * (_TENS.index(first) + 2) + (_SMALL.index(second) if second else 0)
    return None


def ending_gone(answer: str) -> str:
    """Without the verb that ends a statement in Japanese or Korean."""
    return _ENDING.sub("", answer)
