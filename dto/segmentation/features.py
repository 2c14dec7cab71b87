"""Split a thinking text into sentences, and compute their features.

The model of `dto.segmentation.patterns` has a weight for each feature, a string `template=value`.
A sentence is described by its first words, by its roles and topics (`dto.languages`), by its place
in its paragraph, by its neighbours, and by how much of it was said before, in the question, or at
the end of the text.

No sentence begins inside LaTeX, code or a quotation (`Masks`). A dollar sign is also money, so
inline math follows Pandoc's rule: no space after the opening sign, no space before the closing
sign, and no digit after it. A sign that is never closed hides nothing.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence, Set
from functools import cache, lru_cache
from itertools import pairwise
from typing import NamedTuple

from dto.languages import DEFAULT, Languages, load_language
from dto.records import Span

# Each alternative is bounded in length, so that a stray opening sign costs a bounded scan.
_HIDDEN = re.compile(
    r"""
      ^[ \t]*```[\s\S]{0,20000}?^[ \t]*```        # code fence
    | `[^`\n]{1,400}`                             # inline code
    | \\\[[\s\S]{0,4000}?\\\]                     # display math
    | \\\((?:(?!\n[ \t]*\n)[\s\S]){0,1000}?\\\)   # inline math
    | \$\$[\s\S]{0,4000}?\$\$
    | (?<![\\$])\$(?![\s$])(?:[^$\n\\]|\\.){0,400}(?<!\s)\$(?![\d$])
    | \\begin\{(\w+\*?)\}[\s\S]{0,4000}?\\end\{\1\}
    | (?<!\w)"(?=\S)(?:[^"\n]|\n(?![ \t]*\n)){0,1500}"
    | “(?:[^”\n]|\n(?![ \t]*\n)){0,1500}”
    | 「[^」\n]{0,1500}」
    | 『[^』\n]{0,1500}』
    | ^[ \t]*>[^\n]*                              # block quotation
    """,
    re.MULTILINE | re.VERBOSE,
)


class Masks:
    """The hidden spans of one text."""

    def __init__(self, text: str) -> None:
        """Find them in one pass, so that a sign inside a hidden span opens no other span."""
        self.spans = [Span(*match.span()) for match in _HIDDEN.finditer(text)]
        self._starts = [span.start for span in self.spans]

    def hide(self, position: int) -> bool:
        """Whether the character at `position` is inside a hidden span."""
        index = bisect_right(self._starts, position) - 1
        return index >= 0 and position < self.spans[index].end


CACHED = 8_192  # results kept of each function that builds features
READ = 300  # characters of a sentence from which features are computed
_BORDER = re.compile(
    r"""[.!?…]["'”’)\]*_]*(?=(\s+))   # the white space is group 1
      | [。！？]["'”’」』）)]*(?=(\s*)) # or group 2
      | (?=(\s*\n\s*))(?<!\s)          # or group 3: a line ends without a stop
    """,
    re.VERBOSE,
)
_DIGITS = frozenset("0123456789")
_BLANK = re.compile(r"\n[ \t]*\n")
_NUMBER = re.compile(r"\s*[(（]?\d{1,3}[.)]")
_MARKERS = re.compile(r"\s*(?:[-*+•#>]+\s*|[(（]?\d{1,3}[.)）、]\s*)*[*_]*")
_WORD = re.compile(r"[a-zß-öø-ɏ]+(?:'[a-zß-öø-ɏ]+)?|\d+")


class Vocabulary(NamedTuple):
    """The words of several languages together."""

    openers: frozenset[str]
    transitions: frozenset[str]
    abbreviations: frozenset[str]
    stop: frozenset[str]
    fillers: frozenset[str]
    roles: dict[str, str]
    topics: dict[str | tuple[str, ...], set[str]]  # by word, "starts-" of one, or pair


@cache
def vocabulary(languages: Languages) -> Vocabulary:
    """Join the words of the languages; of two roles of a word the earlier language's counts."""
    loaded = [load_language(name) for name in languages]
    roles: dict[str, str] = {}
    topics: dict[str | tuple[str, ...], set[str]] = {}
    for language in reversed(loaded):
        roles |= {word: role for role, words in language.roles.items() for word in words}
        for topic, terms in language.topics.items():
            for term in terms:
                word = f"{term[:6].rstrip('-')}-" if term.endswith("-") else term
                topics.setdefault(tuple(term.split()) if " " in term else word, set()).add(topic)
    openers, transitions, abbreviations, stop, fillers = (
        frozenset(word for each in loaded for word in getattr(each, key))
        for key in Vocabulary._fields[:5]
    )
    return Vocabulary(openers, transitions, abbreviations, stop, fillers, roles, topics)


class Sentence(NamedTuple):
    """A sentence of a text: its half-open span of characters, and the basis of its features."""

    start: int
    end: int  # with the white space after it
    text: str  # its first `READ` characters in lower case, without markers and white space
    words: tuple[str, ...]  # numbers are "0"
    role: str
    topics: frozenset[str]
    content: frozenset[str]
    core: str  # the first two words that are no fillers
    paragraph: bool  # whether it opens one
    length: int


def split(text: str, masks: Masks | None = None, languages: Languages = DEFAULT) -> list[Sentence]:
    """Split a text into sentences that tile it. Without blank lines each line is a paragraph."""
    masks, words = masks or Masks(text), vocabulary(languages)
    starts, opens = [0], [True]
    blank = _BLANK.search(text) is not None
    begin = 0
    for match in _BORDER.finditer(text):
        group = 1 if match.end(1) >= 0 else 2 if match.end(2) >= 0 else 3
        first, last = match.span(group)
        if last >= len(text):
            break
        if last <= begin:
            continue
        space = text[first:last]
        lines = space.count("\n")
        stop = match.start() + 1
        if group == 1 and not lines and _runs_on(text, begin, stop, last, words.abbreviations):
            continue
        if masks.hide(last) and masks.hide(last - 1):  # not where a formula begins a sentence
            continue
        starts.append(last)
        opens.append(lines > 0 and (not blank or _BLANK.search(space) is not None))
        begin = last
    return [
        _sentence(text, start, end, open, words)
        for start, end, open in zip(starts, [*starts[1:], len(text)], opens, strict=True)
    ]


def _runs_on(text: str, begin: int, end: int, after: int, abbreviations: Set[str]) -> bool:
    """Whether the stop before `end` ends a list number or an abbreviation, and no sentence."""
    number = _NUMBER.match(text, begin, end)
    if number is not None and number.end() == end:
        return True
    if text[end - 1] != "." or text[after].isupper():
        return False
    word = text[max(begin, end - 8) : end - 1].lower().rpartition(" ")[2]
    return word.lstrip("(") in abbreviations


def _sentence(text: str, start: int, end: int, paragraph: bool, vocabulary: Vocabulary) -> Sentence:
    marked = _MARKERS.match(text, start, end)
    begin = marked.end() if marked is not None else start
    beginning = text[begin : min(end, begin + READ)].rstrip().lower().replace("’", "'")
    words = tuple("0" if word[0] in _DIGITS else word for word in _WORD.findall(beginning))
    distinct = frozenset(words)
    content = frozenset([word[:6] for word in distinct - vocabulary.stop])
    terms = {*distinct, *(f"{start}-" for start in content), *pairwise(words)}
    topics = frozenset[str]().union(*(vocabulary.topics.get(term, ()) for term in terms))
    role = vocabulary.roles.get(words[0], "other") if words else "none"
    core = _core(words, vocabulary.fillers)
    length = len(text[start:end].rstrip())
    return Sentence(start, end, beginning, words, role, topics, content, core, paragraph, length)


def _bucket(value: float, edges: Sequence[float]) -> int:
    return bisect_right(edges, value)


# Roles after which the distance to the next sentence of such a role is a feature.
_TURNS = frozenset(["wait", "hmm", "but", "so", "alternatively", "maybe", "or"])
_SHORT = (15, 30, 50, 80, 120, 180, 260)  # characters of a sentence
_SPAN = (1, 60, 120, 200, 300, 450, 700, 1100)  # characters within a paragraph
_SINCE = (60, 100, 150, 200, 260, 330, 420, 550, 700, 900, 1200)  # characters since a boundary
_COARSE, _COARSER = (120, 300, 600), (100, 200, 400)
_SHARE = (0.2, 0.4, 0.6, 0.8)


class _Place(NamedTuple):
    """The place of a sentence: its paragraph, and the length of the paragraphs around it."""

    first: int  # sentence that opens its paragraph
    after: int  # sentence that opens the next
    size: int  # bucket of the mean number of sentences of the paragraphs around it


def _places(sentences: Sequence[Sentence]) -> list[_Place]:
    firsts = [index for index, each in enumerate(sentences) if each.paragraph or index == 0]
    ends = [*firsts[1:], len(sentences)]
    places = []
    for number, (first, after) in enumerate(zip(firsts, ends, strict=True)):
        low, high = max(0, number - 3), min(len(firsts), number + 4)
        mean = (ends[high - 1] - firsts[low]) / (high - low)
        place = _Place(first, after, _bucket(mean, (1.3, 1.8, 2.5, 4, 7)))
        places += [place] * (after - first)
    return places


class WeightedWords(NamedTuple):
    """Words, and pairs of words, that have a weight."""

    words: frozenset[str]
    pairs: frozenset[tuple[str, str]]


def describe(
    sentences: Sequence[Sentence], weighted: WeightedWords | None = None
) -> list[list[str]]:
    """List the features of each sentence that do not depend on boundaries.

    With `weighted`, features for other words and pairs are left out.
    """
    count = len(sentences)
    places = _places(sentences)
    ending = frozenset[str]().union(*(each.content for each in sentences[-3:]))
    beginning = frozenset[str]().union(*(each.content for each in sentences[:3]))
    last_cue: int | None = None
    last_topic: dict[str, int] = {}
    seen: set[str] = set()
    rows = []
    for index, sentence in enumerate(sentences):
        place, role = places[index], sentence.role
        before = sentences[index - 1] if index else None
        after = sentences[index + 1] if index + 1 < count else None
        par = "P" if sentence.paragraph else "I"
        last = after is None or after.paragraph
        words = (*sentence.words[:3], "-", "-", "-")
        size = _bucket(sentence.length, _SHORT)
        row = [
            "bias", f"1={words[0]}", f"2={words[0]} {words[1]}", f"3={' '.join(words[:3])}",
            f"core={sentence.core}", f"par={par}", f"len={size}{par}",
            f"?={sentence.text[-1:] == '?'}", f"role={role}{par}", f"size={place.size}{par}",
            f"size={place.size}{role}", f"size={place.size}{par}{role}",
            f"in={min(index - place.first, 6)}",
            f"past={_bucket(sentence.start - sentences[place.first].start, _SPAN)}",
            f"left={min(place.after - index, 6)}{par}",
            f"room={_bucket(sentences[place.after - 1].end - sentence.start, _SPAN)}{par}",
            f"last={last}{role}{par}",
        ]  # fmt: skip
        first_words = sentence.words[:12]
        read_words = (
            {*first_words} if weighted is None else weighted.words.intersection(first_words)
        )
        pairs = {*pairwise(first_words)}
        row += map("w=".__add__, read_words)
        row += [f"ww={a} {b}" for a, b in (pairs if weighted is None else pairs & weighted.pairs)]
        row += _topics(sentence.topics, role, par, last)
        for topic in sentence.topics:
            since = _bucket(sentence.start - last_topic.get(topic, -9999), (90, 180, 300, 500, 900))
            row.append(f"t-since={topic}{since}")
            last_topic[topic] = sentence.start
        if before is not None:
            row += [
                f"-len={_bucket(before.length, _SHORT)}", f"-:={before.text[-1:] == ':'}",
                f"-role={before.role} {role}{par}",
                f"-short={before.role}{_bucket(before.length, (20, 45))}",
            ]  # fmt: skip
            if words[0] == (before.words or ("-",))[0]:
                row.append("same")
            row += _topics_before(before.topics, sentence.topics, role)
        doubted = False
        if after is not None:
            doubted = "doubt" in after.topics
            row += [
                f"+?={after.text[-1:] == '?'}", f"+par={par}{size}{after.paragraph}",
                f"+role={role} {after.role}{after.paragraph}",
                f"+short={_bucket(sentence.length, (20, 45))}{after.role}",
            ]  # fmt: skip
            row += _topics_after(after.topics, role, after.paragraph)
        row += _repetition(sentences, index, seen, role)
        distinct = len(sentence.content)
        if distinct:
            at_end = 0.5 if index >= count - 3 else len(sentence.content & ending) / distinct
            end = _bucket(at_end, _SHARE)
            first = _bucket(len(sentence.content & beginning) / distinct, _SHARE)
            row += [
                f"end={end}", f"end={end}{role}", f"end={end}{doubted}", f"ask={first}",
                f"ask={first}{role}", f"end-ask={end}{first}",
            ]  # fmt: skip
            if "conclude" in sentence.topics:
                row.append(f"end-conclude={end}{doubted}")
        if last_cue is not None:
            since = sentence.start - sentences[last_cue].start
            row.append(f"cue={_bucket(since, (60, 120, 200, 300, 450, 700))}{par}")
        if role in _TURNS:
            last_cue = index
        rows.append(row)
    return rows


@lru_cache(CACHED)
def _topics(topics: frozenset[str], role: str, par: str, last: bool) -> list[str]:
    row = []
    for topic in topics:
        row += [
            f"t={topic}", f"t-role={topic}{role}", f"t-par={topic}{par}",
            f"t-last={topic}{last}{par}",
        ]  # fmt: skip
    return row


@lru_cache(CACHED)
def _topics_before(before: frozenset[str], topics: frozenset[str], role: str) -> list[str]:
    row = [f"t-new={topic}" for topic in topics - before]
    for other in before:
        row += [f"-t={other}", f"-t-role={other}{role}"]
        row += [f"tt={other} {topic}" for topic in topics]
    return row


@lru_cache(CACHED)
def _topics_after(after: frozenset[str], role: str, paragraph: bool) -> list[str]:
    row = []
    for topic in after:
        row += [f"+t={topic}", f"+t-role={topic}{role}", f"+t-par={topic}{role}{paragraph}"]
    return row


def _core(words: Sequence[str], fillers: Set[str]) -> str:
    """The first two words that are no fillers; at most four fillers are skipped."""
    at = 0
    while at < min(len(words), 4) and words[at] in fillers:
        at += 1
    return " ".join(words[at : at + 2]) or "-"


def _repetition(sentences: Sequence[Sentence], index: int, seen: set[str], role: str) -> list[str]:
    """Measure how much of a sentence repeats near and earlier ones; adds its words to `seen`."""
    content = sentences[index].content
    near = frozenset[str]().union(*(each.content for each in sentences[max(0, index - 3) : index]))
    ahead = content.union(*(each.content for each in sentences[index + 1 : index + 3]))
    shared = len(content & near) / max(1, len(content))
    around = len(ahead & near) / max(1, len(ahead | near))
    new = len(content - seen) / max(1, len(content))
    row = [
        f"over={_bucket(shared, (0.01, *_SHARE))}",
        f"over={_bucket(shared, (0.2, 0.5, 0.8))}{role}",
        f"around={_bucket(around, (0.05, 0.1, 0.15, 0.2, 0.3))}",
        f"new={_bucket(new, (0.01, 0.2, 0.4, 0.6))}{role}",
    ]
    seen |= content
    return row


Place = tuple[int, int, bool, bool]  # index of the distance, sentences between, paragraphs
Words = tuple[int, str, str]

# The buckets of each distance in characters, on the three scales.
_SCALES = [
    (bisect_right(_SINCE, distance), bisect_right(_COARSE, distance),
     bisect_right(_COARSER, distance))
    for distance in range(_SINCE[-1] + 1)
]  # fmt: skip
DISTANCES = sorted(set(_SCALES))
DISTANCE = [DISTANCES.index(scales) for scales in _SCALES]
COARSER = [scales[2] for scales in DISTANCES]


class BoundaryDistances:
    """Distances to boundaries, and the first words of the sentences there."""

    def __init__(self, sentences: Sequence[Sentence]) -> None:
        """Keep the values that every call needs."""
        self.starts = [each.start for each in sentences]
        self.paragraphs = [each.paragraph for each in sentences]
        self.words = [each.words[0] if each.words else "-" for each in sentences]

    def __call__(self, index: int, opened: int) -> tuple[Place, Words]:
        """Relate a sentence to the sentence `opened`, which opened the open pattern."""
        distance = self.starts[index] - self.starts[opened]
        scale = DISTANCE[distance] if distance < len(DISTANCE) else DISTANCE[-1]
        count = index - opened
        return (
            (scale, count if count < 8 else 8, self.paragraphs[index], self.paragraphs[opened]),
            (COARSER[scale], self.words[opened], self.words[index]),
        )


def since_place(place: Place) -> list[str]:
    """List the features of a place."""
    scale, count, paragraph, other_paragraph = place
    size, coarse, _ = DISTANCES[scale]
    par = "P" if paragraph else "I"
    row = [f"h={size}", f"h={size}{par}", f"h-count={count}"]
    row.append(f"h-par={other_paragraph}{par}{coarse}")
    return [*row, f"h-next={par}"] if count == 1 else row


def since_words(words: Words) -> list[str]:
    """List the features of the first words."""
    size, other, first = words
    return [f"h-1={size}{first}", f"h-11={other} {first}"]
