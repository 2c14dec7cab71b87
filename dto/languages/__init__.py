"""The words by which models mark a thought, a transition and a question: one data file a language.

`en.toml` and `zh.toml` are built in. A recipe names any other by the path of its file:
`languages: [en, zh, german.toml]`. All languages of a recipe are applied together, since models
switch between them. Segmentation (`dto.segmentation`) reads cues, roles and topics. The monitor of
early exits (`dto.exits.monitor`) reads transitions and openers. DRQA (`dto.drqa`) reads questions.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal, get_args

from pydantic import ValidationError

from dto.errors import DtoError
from dto.extension import Settings, explain

CueKind = Literal["verification", "alternative", "hypothesis", "summary", "conclusion"]
Strength = Literal["strong", "weak"]
Role = Literal[
    "wait", "hmm", "but", "so", "alternatively", "maybe", "or", "let", "now", "if", "since", "the",
    "in", "i", "this", "first", "case", "and", "yes",
]  # fmt: skip
Topic = Literal[
    "conclude", "answer", "maybe", "check", "doubt", "plan", "case", "problem", "says", "sum",
    "result", "known", "reply",
]  # fmt: skip
QuestionKey = Literal[
    "numbers", "ordinals", "next", "last", "named", "unnumbered", "before", "joints", "closings",
    "titles", "interjections", "figures", "over_all",
]  # fmt: skip
KINDS: tuple[CueKind, ...] = get_args(CueKind)
DEFAULT = ("en", "zh")
"""The built-in languages."""
Languages = tuple[str, ...]
"""Built-in languages and paths of files."""
Phrases = tuple[str, ...]


class Language(Settings):
    """The data of one language, in lower case. `en.toml` explains the keys."""

    spaces: bool
    transitions: Phrases = ()
    openers: Phrases = ()
    abbreviations: Phrases = ()
    stop: Phrases = ()
    fillers: Phrases = ()
    roles: Mapping[Role, Phrases] = {}
    topics: Mapping[Topic, Phrases] = {}
    lists: Mapping[str, Phrases] = {}
    cues: Mapping[CueKind, Mapping[Strength, Phrases]] = {}
    questions: Mapping[QuestionKey, Phrases] = {}

    def phrases(self, kind: CueKind, strength: Strength) -> list[str]:
        """The cues of a kind; `{name}` gives one for each entry of a list."""
        phrases = list(self.cues[kind].get(strength, ())) if kind in self.cues else []
        for name, entries in self.lists.items():
            word = f"{{{name}}}"
            phrases = [phrase.replace(word, entry) for phrase in phrases
                       for entry in (entries if word in phrase else ("",))]  # fmt: skip
        return phrases

    def expressions(self, key: QuestionKey) -> list[str]:
        """The regular expressions of a key; `{name}` matches any entry of a list."""
        expressions = []
        for expression in self.questions.get(key, ()):
            for name, entries in (*self.lists.items(), *self.questions.items()):
                expression = expression.replace(f"{{{name}}}", f"(?:{any_of(entries)})")
            expressions.append(expression)
        return expressions


def any_of(expressions: Iterable[str]) -> str:
    """A regular expression for any of these; for none, one that matches nothing."""
    return "|".join(expressions) or "(?!)"


class LanguageError(DtoError, ValueError):
    """The file of a language is missing or wrong."""


@cache
def load_language(name: str) -> Language:
    """Read a built-in language, or the file with a path.

    Raises LanguageError, in one line, for a file that is missing, is not TOML or has an unknown
    key, and for a regular expression that is wrong.
    """
    path = files(__package__) / f"{name}.toml" if name in DEFAULT else Path(name)
    try:
        language = Language.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise LanguageError(
            f"language {name!r} cannot be read ({error.strerror}): use {', '.join(DEFAULT)} or the "
            "path of a file, such as german.toml"
        ) from None
    except ValueError as error:
        what = explain(error, Language)[1] if isinstance(error, ValidationError) else str(error)
        raise LanguageError(f"language {name!r}: {what}") from None
    for key in language.questions:
        for expression in language.expressions(key):
            try:
                groups = re.compile(expression).groups
                wrong = f"it has {groups} groups: named has one, for the number, other keys none"
            except re.error as error:
                groups, wrong = -1, str(error)
            if groups != (key == "named"):
                raise LanguageError(f"language {name!r}: questions.{key} {expression!r}: {wrong}")
    return language
