"""The cue lexicons: one data file a language, all applied together, since models code-switch."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any, Literal, NamedTuple, get_args

CueKind = Literal["verification", "alternative", "hypothesis", "summary", "conclusion"]
KINDS: tuple[CueKind, ...] = get_args(CueKind)
OPENING = "opening"  # kind of the first segment, which no cue opens


class Lexicon(NamedTuple):
    """Phrases by (kind, strong), and the words that may stand before a cue; all in lower case."""

    phrases: dict[tuple[CueKind, bool], tuple[str, ...]]
    openers: frozenset[str]


@cache
def load() -> Lexicon:
    """Read every file in `cues/` and join them."""
    phrases: dict[tuple[CueKind, bool], list[str]] = {}
    openers: set[str] = set()
    for path in sorted(files(__package__).joinpath("cues").iterdir(), key=lambda path: path.name):
        if not path.name.endswith(".toml"):
            continue
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        openers.update(data["openers"])
        for kind in KINDS:
            for strength in ("strong", "weak"):
                group = phrases.setdefault((kind, strength == "strong"), [])
                for phrase in data[kind][strength]:
                    group += _expand(phrase, data["lists"])
    return Lexicon({key: tuple(group) for key, group in phrases.items()}, frozenset(openers))


def _expand(phrase: str, lists: dict[str, list[str]]) -> list[str]:
    for name, words in lists.items():
        if f"{{{name}}}" in phrase:
            return [phrase.replace(f"{{{name}}}", word) for word in words]
    return [phrase]
