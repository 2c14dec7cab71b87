"""The spaCy component that finds thinking patterns, registered as the factory `dto_patterns`.

    nlp = spacy.blank("xx")
    nlp.add_pipe("dto_patterns", config={"granularity": "pattern"})
    doc = nlp(thinking)
    doc.spans["patterns"]        # spans that tile the document, labelled with their kind
    doc._.dto_patterns           # the same as TextSegments: character offsets, cue, kind

The component brings its own tokenizer rules (`tokenizer`), because a cue must be a token border in
any language: Chinese is cut into characters, and punctuation always stands alone.

Source: 2505.21765 (section 3) cuts at linguistic cues and names two, "Wait" and "Alternatively".
Departures: cues come from lexicons, count only at the start of a sentence and outside LaTeX, code
and quotations, and are candidates that :mod:`dto.segmentation.patterns` accepts or merges.

The sentence of a cue may begin with openers ("But wait", "不过，等等"), a sentence of
openers alone ("Hmm. Wait"), and at the start of a line a list or heading marker ("1. **Wait**").
Models write ellipses, bare lines and lower case, so a sentence can end in three dots or a newline,
and a lower case cue counts wherever it is clear that a sentence ended.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Set
from itertools import product
from typing import get_args

from spacy.language import Language
from spacy.matcher import PhraseMatcher
from spacy.tokenizer import Tokenizer
from spacy.tokens import Doc
from spacy.tokens import Span as DocSpan
from spacy.vocab import Vocab

from dto.languages import DEFAULT, KINDS, Languages, Strength, load_language
from dto.segmentation.features import Masks, Vocabulary, split, vocabulary
from dto.segmentation.patterns import Candidate, Granularity, TextSegment, tile

_MARKERS = re.compile(r"\s*(?:[-*+•#]+\s*|[(（]?\d{1,3}[.)）、]\s*)*[*_]*")
_LONGEST_MARKERS = 40
_MOST_OPENERS = 4  # a model that is caught in a loop ("No. No. No. …") must not cost quadratic time
_ENDS = frozenset(".!?…。！？")
_CLOSERS = frozenset("\"”’')]）】」』*_")
_GLUE = frozenset(",，、-—–*_~")


def sentence_start(doc: Doc, text: str, cue: int, words: Vocabulary) -> int | None:
    """The token that begins the sentence of the cue at token `cue`; None inside a sentence.

    `text` is `doc.text`, which is built anew at every access.
    """
    start = _skip_openers(doc, text, cue, words)
    begin = start
    for _ in range(_MOST_OPENERS):
        if start is None:
            break
        begin = start
        end = start
        while end > 0 and (doc[end - 1].text[0] in _ENDS or doc[end - 1].text in _GLUE):
            end -= 1
        if end == 0 or end == start or doc[end - 1].norm_ not in words.openers:
            break
        start = _skip_openers(doc, text, end, words)
    return begin


def _skip_openers(doc: Doc, text: str, start: int, words: Vocabulary) -> int | None:
    """Walk back over openers and what joins them to the cue, to where a sentence begins."""
    for _ in range(_MOST_OPENERS):
        lower = doc[start].text[0].islower()
        line = _line_start(doc, text, start, lower)
        if line is not None:
            return line
        if _after_end(doc, start, lower, words.abbreviations):
            return start
        back = start - 1
        while back > 0 and (doc[back].text in _GLUE or doc[back].is_space):
            back -= 1
        if doc[back].norm_ in words.openers:
            start = back
        elif back > 0 and doc[back - 1].norm_ + doc[back].norm_ in words.openers:
            start = back - 1  # two Chinese characters
        else:
            return None
    return None


def _line_start(doc: Doc, text: str, start: int, lower: bool) -> int | None:
    """The first token of the line, if only list or heading markers stand before `start`."""
    offset = doc[start].idx
    newline = text.rfind("\n", max(0, offset - _LONGEST_MARKERS), offset)
    if newline < 0 and offset > _LONGEST_MARKERS:
        return None
    line = newline + 1
    if not _MARKERS.fullmatch(text, line, offset):
        return None
    if lower and newline > 0 and (text[newline - 1].isalpha() or text[newline - 1] == ","):
        return None  # a wrapped line
    while start > 0 and doc[start - 1].idx >= line:
        start -= 1
    return start


def _after_end(doc: Doc, start: int, lower: bool, abbreviations: Set[str]) -> bool:
    """Whether a sentence ends right before token `start`."""
    back = start - 1
    while back >= 0 and (doc[back].is_space or doc[back].text in _CLOSERS):
        back -= 1
    if back < 0:
        return True
    end = doc[back].text
    if end[0] not in _ENDS:
        return False
    before = doc[back - 1].norm_ if back else ""
    if len(end) > 1 or end == "…":
        return before not in {",", "，"}  # 1, 2, ..., n
    letter = len(before) == 1 and before.isascii() and before.isalpha()
    return not (lower and end == "." and (letter or before in abbreviations))


# The elided forms keep their apostrophe, so that "let's" is two tokens however it is typed.
_INFIX = re.compile(r"\.{2,}|…+|[’'](?:s|m|ll|re|ve|d)\b|[^\w\s]|_+|[\u3400-\u4dbf\u4e00-\u9fff]")

TEXT = "dto_text"  # where a caller may leave the text of a document in its user data
_MOST_BARE = 8  # tokens between "Hmm... wait..." and the sentence that it belongs to

Doc.set_extension("dto_patterns", default=(), force=True)


def tokenizer(vocab: Vocab) -> Tokenizer:
    """Split at white space, around punctuation, and between Chinese characters."""
    return Tokenizer(vocab, infix_finditer=_INFIX.finditer)


@Language.factory(
    "dto_patterns", default_config={"granularity": "pattern", "languages": list(DEFAULT)}
)
def create(
    nlp: Language, name: str, granularity: Granularity, languages: Sequence[str]
) -> PatternComponent:
    """Make the component for spaCy, and replace the tokenizer of `nlp`."""
    nlp.tokenizer = tokenizer(nlp.vocab)
    return PatternComponent(nlp, granularity, tuple(languages))


class PatternComponent:
    """Finds the patterns of a document. State: the cues of its languages, compiled."""

    def __init__(self, nlp: Language, granularity: Granularity, languages: Languages) -> None:
        """Compile the cues with the tokenizer of `nlp`."""
        self.granularity = granularity
        self.languages = languages
        loaded = [load_language(name) for name in languages]
        self._words = vocabulary(languages)
        self._kinds: dict[int, tuple[str, bool]] = {}
        self._matcher = PhraseMatcher(nlp.vocab, attr="NORM")
        for kind, strength in product(KINDS, get_args(Strength)):
            label = f"dto/{kind}/{strength}"
            self._kinds[nlp.vocab.strings.add(label)] = (kind, strength == "strong")
            if phrases := [cue for language in loaded for cue in language.phrases(kind, strength)]:
                self._matcher.add(label, [nlp.tokenizer(phrase) for phrase in phrases])

    def __call__(self, doc: Doc) -> Doc:
        """Set `doc.spans["patterns"]` and `doc._.dto_patterns`."""
        # Built anew from the tokens at every access, which costs as much as finding the cues.
        text = doc.user_data.get(TEXT) or doc.text
        masks = Masks(text)
        candidates = list(self.candidates(doc, text, masks))
        sentences = split(text, masks, self.languages)
        segments = tile(text, candidates, sentences, self.granularity)
        doc._.dto_patterns = segments
        doc.spans["patterns"] = [_span(doc, segment) for segment in segments if len(doc)]
        return doc

    def candidates(self, doc: Doc, text: str, masks: Masks) -> Iterator[Candidate]:
        """Cues at the starts of sentences, one a sentence: a strong one wins, then the first.

        "Wait..." alone belongs to the sentence behind it.
        """
        best: Candidate | None = None
        after = 0  # the token behind the cue of `best`
        for match, first, last in sorted(self._matcher(doc), key=lambda hit: (hit[1], -hit[2])):
            begin = sentence_start(doc, text, first, self._words)
            if begin is None:
                continue
            start, cue_start = doc[begin].idx, doc[first].idx
            if masks.hide(cue_start):
                continue
            kind, strong = self._kinds[match]
            cue = text[cue_start : doc[last - 1].idx + len(doc[last - 1])]
            candidate = Candidate(start, cue, kind, strong)
            if best is None or not (best.start == start or self._bare(doc, best, after, begin)):
                if best is not None:
                    yield best
                best, after = candidate, last
            elif candidate.strong > best.strong:
                best, after = candidate._replace(start=best.start), last
            else:
                after = max(after, last)
        if best is not None:
            yield best

    def _bare(self, doc: Doc, cue: Candidate, after: int, begin: int) -> bool:
        """Whether a cue stands alone before a sentence, and is no more than "wait"."""
        return (
            cue.cue.lower() in self._words.transitions
            and begin - after < _MOST_BARE
            and not any(any(map(str.isalnum, token.text)) for token in doc[after:begin])
        )


def _span(doc: Doc, segment: TextSegment) -> DocSpan:
    span = doc.char_span(segment.start, segment.end, segment.kind, alignment_mode="expand")
    assert span is not None
    return span
