r"""Options: which letters an answer picks.

An option is its letter, with or without parentheses, brackets, quotation marks, fonts and a full
stop. Its text may stand behind it (`C. A girl`), and so may a reason (`B because …`), a denial
(`D, not B`) or "is correct". Several letters are a set: `AC`, `(A, C)`, `A, C and D`. Circled
numbers, `(1)(2)(4)` and Roman numerals are labels as well; they never equal letters.

Nothing is guessed: `B or C` is undecided, `not B` picks nothing, `A dog` begins with an article.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from dto.grading.clauses import before_clause

_CIRCLED = {ord("①") + number: f"({number + 1})" for number in range(20)}
_CIRCLED |= {ord("【"): "[", ord("】"): "]", ord("、"): ",", ord("。"): "."}
_FONT = re.compile(
    r"\\[,;:! ()\[\]]|\\(?:text(?:bf|rm|it|sf|tt|normal|sc)?|mbox|hbox|math(?:bf|rm|it|sf|tt|bb)|"
    r"underline|emph|boldsymbol|bm|operatorname|bf|rm|it|sf|tt|bfseries|left|right|[Ll]arge|"
    r"displaystyle|boxed|fbox|q?quad)(?![A-Za-z])"
)
_DECORATION = re.compile(r"\\?[{}$]|\*+|[`\"“”„«»「」『』#]|__+")
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
_TAKEN_BACK = re.compile(r"\b(?:actually|wait|oops|correction|sorry)\b", re.IGNORECASE)
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
    """Whether a prediction picks the gold answer's options; None: the gold answer is no option."""
    wanted = options(gold)
    return None if wanted is None else wanted == options(prediction)


@lru_cache(maxsize=4096)
def options(text: str) -> frozenset[str] | None:
    """The labels that an answer picks, or None where it picks none or is undecided."""
    text = _plain(text)
    text = text[match.end() :] if (match := _LEAD.match(text)) else text
    text = text.strip(" .,;:!")
    brackets = _BRACKETS.fullmatch(text)
    if brackets:
        text = brackets[1].strip()
    text = _CHINESE_END.sub("", text)
    return _all(text) or _all(before_clause(text)) or _first(text) or _last(text)


def _all(text: str) -> frozenset[str] | None:
    """The labels of a text that holds nothing else."""
    if len(text) == 1 and text.isalpha() and text.isascii():
        return frozenset(text.upper())
    if re.fullmatch(_LABEL, text):
        return frozenset((text,))
    if _RUN.fullmatch(text):
        return frozenset(text)
    return frozenset(re.findall(_LABEL, text)) if _SEVERAL.fullmatch(text) else None


def _first(text: str) -> frozenset[str] | None:
    """The label that begins a text, where its mark or what follows says that it is one."""
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
    """The label behind what it stands for: `Paris (B)`, `the second option, B`."""
    named = _NAMED.fullmatch(text)
    if named is None or _RELATED.search(text) or len(_LONE.findall(text)) != 1:
        return None
    return frozenset(named[1] or named[2] or named[3])


def _plain(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_CIRCLED))
    if "\\" in text:
        text = _FONT.sub(" ", text)
    return " ".join(_DECORATION.sub("", text).split())
