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
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from spacy.language import Language
from spacy.matcher import PhraseMatcher
from spacy.tokenizer import Tokenizer
from spacy.tokens import Doc, Span
from spacy.vocab import Vocab

from dto.segmentation import lexicon
from dto.segmentation.masks import Masks
from dto.segmentation.patterns import Candidate, Granularity, TextSegment, tile
from dto.segmentation.sentences import sentence_start

# The elided forms keep their apostrophe, so that "let's" is two tokens however it is typed.
_INFIX = re.compile(r"\.{2,}|…+|[’'](?:s|m|ll|re|ve|d)\b|[^\w\s]|_+|[\u3400-\u4dbf\u4e00-\u9fff]")

TEXT = "dto_text"  # where a caller may leave the text of a document in its user data
_MOST_BARE = 8  # tokens between "Hmm... wait..." and the sentence that it belongs to

Doc.set_extension("dto_patterns", default=(), force=True)


def tokenizer(vocab: Vocab) -> Tokenizer:
    """Split at white space, around punctuation, and between Chinese characters."""
    return Tokenizer(vocab, infix_finditer=_INFIX.finditer)


@Language.factory("dto_patterns", default_config={"granularity": "pattern"})
def create(nlp: Language, name: str, granularity: Granularity) -> PatternComponent:
    """The factory that spaCy calls; it replaces the tokenizer of `nlp`."""
    nlp.tokenizer = tokenizer(nlp.vocab)
    return PatternComponent(nlp, granularity)


class PatternComponent:
    """State: the compiled lexicon."""

    def __init__(self, nlp: Language, granularity: Granularity) -> None:
        """Compile the lexicon with the tokenizer of `nlp`."""
        self.granularity = granularity
        self._openers = lexicon.load().openers
        self._transitions = frozenset(lexicon.load().transitions)
        self._kinds: dict[int, tuple[str, bool]] = {}
        self._matcher = PhraseMatcher(nlp.vocab, attr="NORM")
        for (kind, strong), phrases in lexicon.load().phrases.items():
            label = f"dto/{kind}/{'strong' if strong else 'weak'}"
            self._kinds[nlp.vocab.strings.add(label)] = (kind, strong)
            if phrases:
                self._matcher.add(label, [nlp.tokenizer(phrase) for phrase in phrases])

    def __call__(self, doc: Doc) -> Doc:
        """Set `doc.spans["patterns"]` and `doc._.dto_patterns`."""
        # Built anew from the tokens at every access, which costs as much as finding the cues.
        text = doc.user_data.get(TEXT) or doc.text
        masks = Masks(text)
        candidates = list(self.candidates(doc, text, masks))
        segments = tile(text, candidates, self.granularity, masks)
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
            begin = sentence_start(doc, text, first, self._openers)
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
            cue.cue.lower() in self._transitions
            and begin - after < _MOST_BARE
            and not any(any(map(str.isalnum, token.text)) for token in doc[after:begin])
        )


def _span(doc: Doc, segment: TextSegment) -> Span:
    span = doc.char_span(segment.start, segment.end, segment.kind, alignment_mode="expand")
    assert span is not None
    return span
