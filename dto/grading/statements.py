r"""Find the answer that a response without a box states in prose.

The last statement counts: "the answer is …", "Answer: …", `#### N`, "答案是 …", "Die Antwort
ist …", "答えは …", a heading "Final Answer" and so on. The answer is the rest of its sentence, or
the block on the next lines: display mathematics, a fence, a list (its items are joined). Emphasis,
quotation marks, adverbs such as "therefore", and a clause behind the answer are removed
(`dto.grading.wording`).

Under rule `choice` a statement counts only if it picks options. There are more such statements:
"the correct choice is B", "I'd go with D", "it must be option A", "leaving D", "C is the correct
answer". A mention in passing, a question, a condition and a negated letter are not statements.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from dto.grading.wording import (
    ENDING,
    TAKING_BACK,
    TEXT_COMMAND,
    WRONG,
    before_clause,
    options,
    tidy,
    without_clause,
)

_LONGEST = 300  # characters of a sentence with an answer
_LONGEST_DISPLAY = 2_000
_MOST_STATEMENTS = 50
_MOST_PLACES = 800  # positions at which a statement may begin
_MOST_ITEMS = 20

_SPACE = r"[\s*_:：]{0,20}"  # bounded, so that a long run is not scanned again from each position
_IS = (
    r"\b(?:is|are|was|equals|(?:would|should|must|will|has to|have to|can only|turns out to|"
    r"comes out to|comes to)(?: be)?)\b"
)
_DENIAL = r"(?:is\s?n[o'’]t|are\s?n[o'’]t|is not|can\s?no?[t'’]+t? be|could not be)"
_ANSWER = re.compile(
    r"answers?(?:\schoice)?[*_]{0,4}"
    r"(?:\s{1,5}(?:to|for|of|in)\s[^.\n:=]{1,60}?|\s?,[^,.\n]{1,30},|\s?\([^()\n]{1,40}\))?"
    r"[*_]{0,4}\s{0,20}"
    rf"(?:(?P<denied>{_DENIAL})|(?:{_IS}(?! not\b)|[:：→⇒]|=(?!=)|[–—-](?=\s)){_SPACE})"
    r"|ans[*_]{0,4}\s{0,3}[.:=]" + _SPACE,
    re.IGNORECASE,
)
_HEADING = re.compile(r"answers?[*_ \t]{0,9}\n\s{0,20}", re.IGNORECASE)
_HEADING_BEFORE = re.compile(
    r"[^\w\n]*(?:(?:the|my|final|correct|short)\s+)*|.*\bfinal\s+", re.IGNORECASE
)
_OTHERS_SAY = re.compile(
    r"\b(?:you|one|some|many|most|people|students?|someone|they)\b[^,]*"
    r"\b(?:thinks?|thought|says?|said|guess(?:es)?|believes?|chooses?|expects?|assumes?)\b",
    re.IGNORECASE,
)
_NOT_MINE = re.compile(
    rf"\b(?:{WRONG}|false|common|naive|naïve|initial|first|previous|earlier|tempting|intuitive|"
    r"possible|expected|obvious|usual|typical|(?:least|second|next)\s\w+)\s+$",
    re.IGNORECASE,
)
_DOUBTED = re.compile(
    r"\b(?:(?:don['’]t|do not) think|doubt|no way|not true|suppose|assume)\b"
    r"|\b(?:half|twice|square|cube|digit|part|sum)(?: of)? the (?:final |correct )?$"
    r"|^\W*if\b.*\bthen (?:the )?$",
    re.IGNORECASE,
)
_WRONG_ABROAD = re.compile(
    r"incorrect|falsch|mauvais|fausse|errad|errônea|sbagliat|неверн|неправ", re.I
)
_NOT_BEST = re.compile(r"(?:\bin|\b(?:least|second|next|not|in)[\s-])$", re.IGNORECASE)
_TAKEN_BACK = re.compile(
    rf"[\s.*$]{{0,9}}(?i:{TAKING_BACK}|no)\b[,:.]?"
    r"(?i:\s(?:no|actually|it is|it['’]s|it should be|should be|that is|that['’]s|i meant)\b,?)"
    r"{0,3}"
    r"[\s,:*$(\\]{0,5}(?:-?\d|[A-J]\b)"
)
_CONDITION = re.compile(r"\b(?:if|had|were|otherwise|suppos\w*|assum\w*|case)\b", re.IGNORECASE)
_LABEL_AHEAD = r"(?=[*_(\[\"'“`$]{0,4}[A-J][)\]*_\"'”`$]{0,4}\s{0,3}(?:[.!\n]|$|\)\s))"
_ANSWER_LETTER = re.compile(r"answer\s{1,3}(?:(?:choice|option)\s)?" + _LABEL_AHEAD, re.IGNORECASE)
_ANSWER_NUMBER = re.compile(r"answer\s{1,3}(?=-?\$?\d[^\s]{0,20}\s{0,3}(?:\n|$))", re.IGNORECASE)
_FIRST_ON_LINE = re.compile(r"(?:.*(?:[,;:]|\b(?:so|thus|hence|therefore)))?[\s*_#>]*(?:final\s)?",
                            re.IGNORECASE)  # fmt: skip
_HASHES = re.compile(r"####\s{0,3}(?=[^\n]*\S)(?!#)")
_TAG = re.compile(r"<answer>\s{0,20}")

_COPULA = (
    r"(?:ist|lautet|wäre|est|serait|es|sería|é|è|seria|sarebbe|adalah|ni|это|является|هي|هو|है|"
    r"は|が|은|는|이)"
)
_ABROAD = re.compile(
    r"(?:[^\W\d_]{2,20})(?:\s{1,3}(?!(?:no|non|não|nicht|pas|не)\b)[^\W\d_]{1,15}){0,4}?[*_]{0,4}\s{0,5}"
    rf"(?:[:：=]|(?<=\s){_COPULA}(?=[\s*:：]|$)|—(?=\s)){_SPACE}",
    re.IGNORECASE,
)
_INVERTED = re.compile(
    r"\b(?:ist|lautet)\s(?:die|meine|unsere)\s(?:(?:richtige|korrekte)\s)?$", re.IGNORECASE
)
_INVERTED_WORD = re.compile(r"antwort[\s*_:]{1,9}(?=[-\d$(*\\]|[A-J]\b)", re.IGNORECASE)
_ASIAN = re.compile(
    r"(?:答え|答之え|解答|回答|正解|正しい(?:答え|選択肢)|정답|답변|답)[*_]{0,4}\s{0,5}"
    r"(?:[:：=]|は|が|은|는|이)[\s*:：、,]{0,20}"
)
_CHINESE = re.compile(
    r"答案\*{0,9}\s{0,20}(?:應該|应该|应|就|便)?[是为為:：=选選][\s*:：]{0,20}"
    r"|答案[】\]][\s*:：]{0,20}|答[:：][\s*]{0,20}"
    r"|[选選][择擇項项]?[是为為:：]?[\s*:：]{0,20}(?=[(（【]?[A-ZＡ-Ｚ])"
)
_NAMES_OPTION = re.compile(r"(?:正确|正確|答案|[是为為应應選选])$")
_RIGHT_CHINESE = re.compile(r"[(（]?[A-J][)）]?(?:是?正[确確]|[。.]?\s*$)")
_NOT_CHINESE = ("不", "没", "沒", "非", "未", "勿", "别", "別")
_EUROPEAN_WORDS = (
    "antwort", "lösung", "réponse", "respuesta", "resposta", "risposta", "ответ", "jawaban",
    "jibu", "antwoord", "odpowiedź", "đáp án", "cevap", "الإجابة", "الجواب", "إجابة", "उत्तर",
    "উত্তর", "คำตอบ", "సమాధానం",
)  # fmt: skip
_RIGHT_ABROAD = re.compile(
    r"richtig(?:e option)?\s{1,3}ist\s{1,3}"
    r"|(?:alternativa|opción|opção|opzione)\s{1,3}(?:correcta|correta|corretta)\s{1,3}"
    r"(?:es|é|è)\s{1,3}(?:(?:la|a|o)\s{1,3})?"
    r"|(?:option|choix)\s{1,3}correcte?\s{1,3}est\s{1,3}",
    re.IGNORECASE,
)

_BEST = re.compile(
    r"(?:correct|right|best)\s{1,3}(?:answer|option|choice|one|alternative|letter|response)s?(?:\s{1,3}choices?)?"
    rf"[*_]{{0,4}}\s{{0,5}}(?:{_IS}|[:：]){_SPACE}",
    re.IGNORECASE,
)
_CHOICE_BEFORE = re.compile(
    r"(?:.*\b(?:my|final|best|correct|right)\s|[\s*_#>]*(?:(?:so|thus),?\s)?)(?:the\s)?",
    re.IGNORECASE,
)
_MY_CHOICE = re.compile(r"choice[*_]{0,4}\s{0,3}(?:is\b|would be\b|[:：])" + _SPACE, re.IGNORECASE)
_VERB = re.compile(
    r"(?:go(?:ing)? with|go for|choose|pick|select|opt for|settle on)\s{1,3}", re.IGNORECASE
)
_I = re.compile(
    r"\b(?:I|i|We|we)(?:['’](?:d|ll|m|re)|\s(?:would|will|shall|am|must|should|can))?"
    r"(?:\s(?:therefore|thus|then|so|have to))?\s$"
)
_WOULD = re.compile(r"(?:['’](?:d|ll|m)|\s(?:would|will|shall|am))(?:\s\w+)?\s$")
_MUST = re.compile(r"(?:must|has to|can only|should|would) be\s{1,3}", re.IGNORECASE)
_IT = re.compile(r"\b(?:it|this|that|which|answer|one|choice)\s$", re.IGNORECASE)
_IT_IS = re.compile(
    r"(?:it['’]s|it is|(?:this|that|which|it) (?:corresponds to|matches|agrees with|is))\s{1,3}"
    r"(?=(?:answer\s)?(?:option|choice|answer)\s)",
    re.IGNORECASE,
)
_LEAVING = re.compile(r"leav(?:ing|es)\s(?:us\s)?(?:with\s)?(?:only\s|just\s)?", re.IGNORECASE)
_IS_CORRECT = re.compile(
    r" is (?:(?:therefore|thus|hence|indeed|clearly) )?(?:the )?(?:only )?"
    r"(?:(?:correct|right|best)(?: (?:answer|option|choice|one))?|answer)"
    r"[*_)]{0,4}(?:[.!,;](?:\s|$)|\s{0,3}(?:\n|$)| because\b| since\b)",
    re.IGNORECASE,
)
_SUBJECT = re.compile(
    r"(?:^|[,;:(]\s*|\b(?i:so|but|thus|therefore|hence|then|that|option|choice|answer|letter|conclude|"
    r"believe|think)\s+)[*_(\"\[$\\]{0,4}([A-J])[*_)\"\]$\\]{0,4}$"
)
_NO_CONCLUSION = re.compile(
    r"\b(?:if|whether|unless|suppos\w*|assum\w*|not|neither|nor|could|might|may|why|first|initially|"
    r"tempt\w*|statement|says?|claims?|otherwise)\b|n['’]t\b",
    re.IGNORECASE,
)

_SENTENCE_END = re.compile(r"[.．](?:\s|$)|[。？]|[?!](?:\s+[A-Z]|\s*$)|</answer>")
_FACTORIAL = re.compile(r"[\d)a-z]\s?!")
_DISPLAY = (
    ("$$", "$$"), (r"\[", r"\]"),
    *((rf"\begin{{{name}}}", rf"\end{{{name}}}")
      for name in ("align*", "align", "aligned", "equation*", "equation", "gather*", "gather")),
)  # fmt: skip
_FENCED = re.compile(r"(`{3,})[\w+-]*\n(.{0,2000}?)\n\s*\1", re.DOTALL)
_ITEM = re.compile(r"[ \t]*(?:[-*•]|\d{1,2}[.)]|\([a-z0-9]{1,3}\)|[a-z]\))[ \t]+(.*)")
_UNDERLINE = re.compile(r"^(?:={3,}|-{3,})\s*\n\s{0,20}")
_MORE = re.compile(r"(?:or|and|oder|et|y)\b|\$\$|\\\[")
_OR_OPTION = re.compile(r"[^;]{1,60}\bor\s+(?:option\s+)?\(?[A-J][).:]\s+\S")
_NEXT_LINE = re.compile(r"[ \t*_:：]{0,20}\n(?:[\s>#_]|\*(?! )){0,40}")
_COMMENT = re.compile(
    r"(?:in|correct|right|helpful|clear|verified|confirmed|consistent|reasonable|straightforward|"
    r"plausible|based|supported|above|boxed|as follows|given (?:above|below|in)|shown)\b",
    re.IGNORECASE,
)
_PROSE = re.compile(
    r"(?:[A-Za-z'’-]+\s+){1,15}?(?:is|are|equals)\s+(?:therefore\s+|thus\s+)?(?P<value>\S.*)"
)
_NO_HEAD = re.compile(
    r"\b(?:not|no|is|are|whose|such|that|which|when|half|twice|double|square)\b|[\d\\=]"
)
_NOT = re.compile(r"not\b|neither\b|no\b", re.IGNORECASE)
_BEGINS = re.compile(
    r"[\s*_(\[\"“'`$\\{]{0,6}(?:text\{|option\s|Option\s)?\(?(?:[A-J]{1,6}|[a-j])(?![A-Za-z'’])"
)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}|[\u4e00-\u9fff]")
_COUNTED = re.compile(r"[-+]?[$€£]?\d[\d.,/]*(?:\s[a-z]{2,15}){1,3}")
_MARKS = re.compile(r"[\s*_()\[\].`$\"]|\\(?:text|mathrm|textbf)|[{}]")
_LETTER_IN = re.compile(r"(?<![A-Za-z\\])[A-J](?![A-Za-z'’])")


class _Statement(NamedTuple):
    end: int  # position at which its answer begins
    denied: bool = False
    subject: str = ""  # the option of "C is correct"
    weak: bool = False  # it counts only if it picks options


def stated_answer(text: str, rule: str = "math") -> str | None:
    """The answer of a text without a box, or None. Long texts are searched, too."""
    if rule == "choice":
        option = stated_option(text)
        if option is not None:
            return option
    last: str | None = None
    words = _ASCII_TRIGGERS if text.isascii() else _TRIGGERS
    for count, statement in enumerate(_statements(text, words)):
        if statement.denied or count > _MOST_STATEMENTS:
            break
        answer = tidy(_content(text, statement.end, rule))
        if last is None:
            last = answer
        if answer and not _COMMENT.match(answer):
            return answer
    if last is not None:
        return last or None
    line = text.strip()
    if "\n" in line or len(line) > _LONGEST:
        return None
    line = without_clause(line)
    return None if len(line) > 100 or _in_words(line) else tidy(line) or None


def stated_option(text: str) -> str | None:
    """The text that picks an option, ignoring the box; None if there is none."""
    denied: set[str] = set()
    for count, statement in enumerate(_statements(text, _TRIGGERS | _WEAK_TRIGGERS)):
        if count > _MOST_STATEMENTS:
            break
        if statement.subject:
            if _others_correct(text, statement.subject) or statement.subject in denied:
                return None
            return statement.subject
        content = _content(text, statement.end, "choice")
        negative = _NOT.match(content)
        if statement.denied or negative:
            denied |= options(content[negative.end() if negative else 0 :]) or set()
            continue
        labels = options(content)
        if labels and not all(label.isdigit() for label in labels):
            return None if labels & denied else tidy(content)
        if not statement.weak and _LETTER_IN.search(content):
            return content or None  # undecided
    return _only_line(text)


def _content(text: str, start: int, rule: str) -> str:
    """The text behind a statement: the rest of its sentence, or a block on the next lines."""
    passed = text[max(0, start - 20) : start]
    below = "\n" in passed[len(passed.rstrip("*_:： \t\n")) :]
    if match := _NEXT_LINE.match(text, start):
        below, start = True, match.end()
    elif below:
        start = text.rindex("\n", 0, start) + 1  # back to the bullet
    rest = text[start : start + _LONGEST_DISPLAY].lstrip()
    if below and not _ITEM.match(rest):
        rest = _UNDERLINE.sub("", rest).lstrip("*_>#: \t\n")
    for left, right in _DISPLAY:
        if rest.startswith(left):
            end = rest.find(right, len(left))
            after = rest[end + len(right) :].lstrip(" \t\n.,*")
            if end > 0 and _MORE.match(after):
                return " ".join(rest[:_LONGEST].split())
            if end > 0:
                inside = rest[len(left) : end].strip().rstrip(".,").strip()
                return inside.replace("&", "") if right.startswith(r"\end") else inside
    if rest.startswith("```") and (fenced := _FENCED.match(rest)):
        return fenced[2].strip()
    if below and (_ITEM.match(rest) and (rule != "choice" or rest[0] in "-*•")):
        items: list[str] = []
        for line in rest.splitlines():
            item = _ITEM.match(line)
            if item and len(items) < _MOST_ITEMS:
                items.append(tidy(_sentence(item[1], rule).rstrip(" ,;.")))
            elif line.strip():
                break
        return ", ".join(items)
    line = rest[:_LONGEST].partition("\n")[0]
    sentence = _sentence(line, rule)
    if sentence:
        context = rest if rule == "choice" else line
        if _TAKEN_BACK.match(context, context.find(sentence) + len(sentence)):
            return " ".join(context[:_LONGEST].split())
    if rule == "choice" and len(sentence) < 8 and _OR_OPTION.search(line, len(sentence)):
        return line  # "C. 42 or D. 43"
    return sentence if sentence.isascii() else ENDING.sub("", sentence)


def _sentence(line: str, rule: str) -> str:
    """The first sentence, without emphasis at its beginning; of "The total is 5." the value."""
    end = _SENTENCE_END.search(line)
    while end and end[0][0] == "!" and _FACTORIAL.match(line, max(0, end.start() - 1)):
        end = _SENTENCE_END.search(line, end.end())
    question = end is not None and end[0][0] in "?？"
    sentence = line[: end.start() + question] if end else line
    sentence = sentence.lstrip("*_ \t")
    prose = _PROSE.fullmatch(sentence) if rule != "choice" and " " in sentence else None
    if prose and not _NO_HEAD.search(sentence[: prose.start("value")].rsplit(None, 1)[0]):
        value = prose["value"]
        if before_clause(sentence[: prose.start("value")]) == sentence[: prose.start("value")] and (
            not _WORD.search(TEXT_COMMAND.sub("", before_clause(value)))
        ):
            return value
    return sentence


def _only_line(text: str) -> str | None:
    """The line that is only an option, or the first line that begins with one."""
    lines = [line for line in text[-5_000:].splitlines() if line.strip()]
    if not lines:
        return None
    alone = [line for line in lines if len(line) < 30 and len(_MARKS.sub("", line)) == 1]
    if len(alone) == 1 and alone[0] in (lines[0], lines[-1]) and len(text) <= 5_000:
        return tidy(alone[0])
    first = lines[0].strip()
    if alone or not _BEGINS.match(first) or len(text) > 5_000 or len(first) > _LONGEST:
        return None
    marked = [line for line in lines if re.match(r"[\s*_(\[]{0,6}[A-Ja-j][).:\]]", line)]
    if len(lines) == 1 or marked == [lines[0]]:
        labels = options(first)
        if labels and not all(label.isdigit() for label in labels):
            return tidy(first)
    return None


def _others_correct(text: str, letter: str) -> bool:
    """Whether another option is called correct as well."""
    lowered = _lowered(text)
    subjects = (s.subject for s in _statements(text, {" is ": _WEAK_TRIGGERS[" is "]}, lowered))
    return any(subject and subject != letter for subject in subjects)


def _statements(
    text: str, triggers: dict[str, str], lowered: str | None = None
) -> Iterator[_Statement]:
    """The statements of a text, last first. Words are searched before any pattern is tried."""
    lowered = _lowered(text) if lowered is None else lowered
    places = {word: at for word in triggers if (at := lowered.rfind(word)) >= 0}
    tried = 0
    while places and tried < _MOST_PLACES:
        tried += 1
        word = max(places, key=places.__getitem__) if len(places) > 1 else next(iter(places))
        at = places[word]
        statement = _read(text, at, triggers[word])
        if statement is not None:
            yield statement
        places[word] = lowered.rfind(word, 0, at)
        if places[word] < 0:
            del places[word]


def _lowered(text: str) -> str:
    lowered = text.lower()
    if len(lowered) != len(text):
        lowered = "".join(low if len(low := char.lower()) == 1 else char for char in text)
    return lowered


_TRIGGERS = {
    "answer": "answer", "ans": "ans", "####": "hashes", "答": "chinese", "选": "chinese",
    "選": "chinese", "正解": "asian", "正しい": "asian", "정답": "asian", "답": "asian",
    **dict.fromkeys(_EUROPEAN_WORDS, "abroad"),
}  # fmt: skip
_ASCII_TRIGGERS = {word: form for word, form in _TRIGGERS.items() if word.isascii()}
_WEAK_TRIGGERS = {
    "correct ": "best", "right ": "best", "best ": "best", "choice": "choice", " is ": "subject",
    "go with": "verb", "going with": "verb", "go for": "verb", "choose": "verb", "pick": "verb",
    "select": "verb", "opt for": "verb", "settle on": "verb", "must be": "must",
    "has to be": "must", "can only be": "must", "should be": "must", "would be": "must",
    "it's": "it", "it is": "it", "it’s": "it", "which ": "it", "this ": "it", "that ": "it",
    "leav": "leaving", "richtig": "right", "alternativa": "right", "opción": "right",
    "opção": "right", "opzione": "right", "option": "right", "choix": "right",
}  # fmt: skip


def _read(text: str, at: int, form: str) -> _Statement | None:
    """The statement whose word is at a position, or None."""
    line = text[max(0, text.rfind("\n", max(0, at - 200), at) + 1, at - 200) : at]
    match: re.Match[str] | None
    if form == "answer":
        if text[at - 1 : at] == "<" and (match := _TAG.match(text, at - 1)):
            return _Statement(match.end())
        if match := _ANSWER.match(text, at):
            sentence = _last_sentence(line)
            if _NOT_MINE.search(line) or _DOUBTED.search(sentence):
                return None
            if " would" in match[0] and _CONDITION.search(sentence):
                return None  # "If it were even, the answer would be 4."
            if len(sentence) > 10 and _OTHERS_SAY.search(sentence):
                return None
            return _Statement(match.end(), bool(match["denied"]))
        if (match := _HEADING.match(text, at)) and _HEADING_BEFORE.fullmatch(line):
            return _Statement(match.end())
        match = _ANSWER_LETTER.match(text, at) or _ANSWER_NUMBER.match(text, at)
        return _Statement(match.end()) if match and _FIRST_ON_LINE.fullmatch(line) else None
    if form == "ans":
        inside = line[-1:].isalpha() or text[at + 3 : at + 4].isalpha()
        match = None if inside else _ANSWER.match(text, at)
        return _Statement(match.end()) if match else None
    if form == "hashes":
        match = _HASHES.match(text, at)
        if match is None or line.strip():
            return None
        tail = tidy(text[match.end() : match.end() + 100].partition("\n")[0])
        return _Statement(match.end()) if tail and not _in_words(tail) else None  # not a heading
    if form in ("chinese", "asian"):
        match = _CHINESE.match(text, at) or _ASIAN.match(text, at)
        if match is None or line.endswith(("错误", "錯誤", "不正确", "不正確")):
            return None
        if match[0] in ("选项", "選項") and not _NAMES_OPTION.search(line):
            after = _RIGHT_CHINESE.match(text, match.end())
            return _Statement(match.end()) if after else None  # "选项B：它太小"
        return _Statement(match.end(), denied=line[-1:] in _NOT_CHINESE)
    if form == "abroad":
        match = _ABROAD.match(text, at)
        if match is None and _INVERTED.search(line):
            match = _INVERTED_WORD.match(text, at)
        if match and _WRONG_ABROAD.search(line[-20:] + match[0]):
            return None
        return _Statement(match.end()) if match else None
    sentence = _last_sentence(line)
    if _NO_CONCLUSION.search(sentence):
        return None
    if form == "subject":
        subject = _SUBJECT.search(sentence)
        if subject is None or not _IS_CORRECT.match(text, at):
            return None
        if re.search(r"\b(?:and|or)\b", sentence):
            return None
        return _Statement(at, subject=subject[1], weak=True)
    before = {"verb": _I, "must": _IT}.get(form)
    if before is not None and not before.search(line):
        return None
    if form == "choice" and not _CHOICE_BEFORE.fullmatch(sentence):
        return None
    pattern = {
        "best": _BEST, "choice": _MY_CHOICE, "verb": _VERB, "must": _MUST, "it": _IT_IS,
        "leaving": _LEAVING, "right": _RIGHT_ABROAD,
    }[form]  # fmt: skip
    match = pattern.match(text, at)
    if match is None or (form in ("best", "choice") and _NOT_BEST.search(line)):
        return None
    if form == "leaving" or (form == "verb" and not _WOULD.search(line)):
        # "I pick A. The host opens B." is a story: only the end of a text is a conclusion.
        rest = text[match.end() : match.end() + _LONGEST + 1].lstrip("*_([\"'$ ")
        rest = re.sub(r"^(?:option|choice|answer)\s", "", rest)[1:]
        if len(rest) >= _LONGEST or _LETTER_IN.search(before_clause(f"A{rest}")[1:]):
            return None
    return _Statement(match.end(), weak=True)


def _last_sentence(line: str) -> str:
    end = max(map(line.rfind, (". ", "! ", "? ", "; ")))
    return line if end < 0 else line[end + 2 :]


def _in_words(line: str) -> bool:
    """Whether a line has words other than the unit of a number."""
    words = _WORD.search(TEXT_COMMAND.sub("", line))
    return words is not None and not _COUNTED.fullmatch(line.rstrip("."))
