"""The words by which models mark a thought, a transition and a question: one data file a language.

`en.toml` and `zh.toml` are built in. A recipe names any other by the path of its file, such as
`languages: [en, zh, german.toml]`. All languages of a recipe are applied together, since models
switch between them. Cues and words serve segmentation (`dto.segmentation`), transitions and openers
the monitor of early exits (`dto.exits.monitor`), questions the cutting of batch responses
(`dto.drqa`). A key that a file leaves out is empty.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal, get_args

from pydantic import ValidationError

from dto.extension import Settings, explain

CueKind = Literal["verification", "alternative", "hypothesis", "summary", "conclusion"]
KINDS: tuple[CueKind, ...] = get_args(CueKind)
Role = Literal[
    "wait", "hmm", "but", "so", "alternatively", "maybe", "or", "let", "now", "if", "since", "the",
    "in", "i", "this", "first", "case", "and", "yes",
]  # fmt: skip
Topic = Literal[
    "conclude", "answer", "maybe", "check", "doubt", "plan", "case", "problem", "says", "sum",
    "result", "known", "reply",
]  # fmt: skip
Languages = tuple[str, ...]
"""Codes of built-in languages and paths of files."""
BUILT_IN = DEFAULT = ("en", "zh")
Phrases = tuple[str, ...]


class Cues(Settings):
    """Cues of one kind. Inside a paragraph only a strong cue opens a pattern by the rules."""

    strong: Phrases = ()
    weak: Phrases = ()


class Words(Settings):
    """Words from which the features of a sentence follow (`dto.segmentation.features`)."""

    stop: Phrases = ()
    fillers: Phrases = ()
    roles: Mapping[Role, Phrases] = {}
    topics: Mapping[Topic, Phrases] = {}


class Questions(Settings):
    """Regular expressions for the names of numbered questions, in upper or lower case."""

    numbers: Phrases = ()
    ordinals: Phrases = ()
    next: Phrases = ()
    last: Phrases = ()
    named: Phrases = ()
    unnumbered: Phrases = ()
    before: Phrases = ()
    joints: Phrases = ()
    closings: Phrases = ()
    titles: Phrases = ()
    interjections: Phrases = ()
    figures: Phrases = ()
    over_all: Phrases = ()


class Language(Settings):
    """The data of one language. All words are in lower case."""

    spaces: bool  # between words
    transitions: Phrases = ()
    openers: Phrases = ()
    abbreviations: Phrases = ()
    lists: Mapping[str, Phrases] = {}
    cues: Mapping[CueKind, Cues] = {}
    words: Words = Words()
    questions: Questions = Questions()

    def phrases(self, kind: CueKind, strength: str) -> list[str]:
        """The cues of a kind, `strong` or `weak`; `{name}` gives one for each entry of a list."""
        phrases = getattr(self.cues.get(kind, Cues()), strength)
        for name, entries in self.lists.items():
            word = f"{{{name}}}"
            expanded = ([each.replace(word, entry) for entry in entries] if word in each else [each]
                        for each in phrases)  # fmt: skip
            phrases = [phrase for group in expanded for phrase in group]
        return list(phrases)

    def expressions(self, key: str) -> list[str]:
        """The regular expressions of a key of `questions`, with the lists that they name."""
        own = {
            name: getattr(self.questions, name) for name in ("numbers", "ordinals", "next", "last")
        }
        expressions = []
        for expression in getattr(self.questions, key):
            for name, entries in {**self.lists, **own}.items():
                expression = expression.replace(f"{{{name}}}", f"(?:{any_of(entries)})")
            expressions.append(expression)
        return expressions


def any_of(expressions: Phrases | list[str]) -> str:
    """A regular expression for any of these; for none of them, one that matches nothing."""
    return "|".join(expressions) or "(?!)"


@cache
def load_language(name: str) -> Language:
    """Read the language with a code, or the file with a path.

    Raises ValueError, in one line, for a file that is missing, is no TOML, has an unknown key, or
    has a regular expression that cannot be compiled or whose groups are wrong.
    """
    path = files(__package__) / f"{name}.toml" if name in BUILT_IN else Path(name)
    try:
        language = Language.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(
            f"language {name!r} cannot be read ({error.strerror}): name {' or '.join(BUILT_IN)}, "
            "or the path of a file such as german.toml"
        ) from None
    except ValidationError as error:
        raise ValueError(f"language {name!r}: {explain(error, Language)[1]}") from None
    except ValueError as error:
        raise ValueError(f"language {name!r} is not TOML: {error}") from None
    for key in Questions.model_fields:
        for expression in language.expressions(key):
            try:
                groups = re.compile(expression).groups
            except re.error as error:
                raise ValueError(
                    f"language {name!r}: questions.{key} {expression!r}: {error}"
                ) from None
            if groups != (key == "named"):
                raise ValueError(
                    f"language {name!r}: questions.{key} {expression!r} has {groups} groups (…): "
                    "named has one, for the number, the other keys none; write (?:…) instead"
                )
    return language
