"""Thinking patterns in text: where one ends and the next begins (2505.21765, section 3).

The cues are here: one data file a language, all applied together, since models code-switch.
`component` finds them at the starts of sentences (spaCy), `patterns` decides where patterns open:
by a linear model of sentences and their `features` in text in Latin letters, by rules elsewhere.
`worker` does all of it for a text, in other processes too. Importing this package loads neither
spaCy nor torch.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any, Literal, NamedTuple, get_args

CueKind = Literal["verification", "alternative", "hypothesis", "summary", "conclusion"]
KINDS: tuple[CueKind, ...] = get_args(CueKind)
OPENING = "opening"  # kind of the first segment, which no cue opens
LOOP = "loop"  # kind of a segment that repeats what stands before it


class Lexicon(NamedTuple):
    """Phrases by (kind, strong), and the words that may stand before a cue; all in lower case.

    `transitions` are the cues that a monitor of early exits looks at (2504.15895, section 3).
    """

    phrases: dict[tuple[CueKind, bool], tuple[str, ...]]
    openers: frozenset[str]
    transitions: tuple[str, ...]


@cache
def load_lexicon() -> Lexicon:
    """Read every file in `cues/` and join them."""
    phrases: dict[tuple[CueKind, bool], list[str]] = {}
    openers: set[str] = set()
    transitions: list[str] = []
    for path in sorted(files(__package__).joinpath("cues").iterdir(), key=lambda path: path.name):
        if not path.name.endswith(".toml"):
            continue
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        openers.update(data["openers"])
        transitions += data["transitions"]
        for kind in KINDS:
            for strength in ("strong", "weak"):
                group = phrases.setdefault((kind, strength == "strong"), [])
                for phrase in data[kind][strength]:
                    group += _expand(phrase, data["lists"])
    groups = {key: tuple(group) for key, group in phrases.items()}
    return Lexicon(groups, frozenset(openers), tuple(transitions))


def _expand(phrase: str, lists: dict[str, list[str]]) -> list[str]:
    for name, words in lists.items():
        if f"{{{name}}}" in phrase:
            return [phrase.replace(f"{{{name}}}", word) for word in words]
    return [phrase]
