"""Find questions that two sets share.

Word n-grams decide, as in the decontamination of GPT-3 (2005.14165, appendix C: 13-grams).
Departures: questions are reported, not cut, and frequent n-grams are kept. A phrase that contests
repeat ("where m and n are relatively prime …") is therefore found too; it is a small share of its
question, unlike a copy. A question of fewer than n words overlaps only with an equal one.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dto.records import content_id

WORDS = 13
_WORD = re.compile(r"[\u3400-\u9fff]|(?:(?![\u3400-\u9fff])[^\W_])+")
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that powers of it modulo 2⁶⁴ never vanish

Grams = npt.NDArray[np.uint64]


class Hit(NamedTuple):
    """The row that shares the most n-grams with a question, and the first n-gram they share.

    `share` counts the n-grams of the shorter of the two: 1 if one question is part of the other.
    """

    where: str
    share: float
    phrase: str


def normalised(text: str) -> str:
    """Normalise case, white space and compatibility characters."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def same_as(text: str) -> str:
    """A key that is equal for questions that are equal when normalised."""
    return content_id(normalised(text))


def words(text: str) -> list[str]:
    """Split into runs of letters and digits, and single Chinese characters; drop all else."""
    return _WORD.findall(normalised(text))


def grams(text: str, n: int = WORDS) -> Grams:
    """A 64-bit hash for each n-gram, in order; a single one for a text of fewer than n words."""
    tokens = words(text)
    if len(tokens) < n:
        return np.array([_code(normalised(text))], dtype=np.uint64)
    codes = np.array([_code(word) for word in tokens], dtype=np.uint64)
    powers = np.array([pow(_FACTOR, place + 1, 2**64) for place in range(n)], dtype=np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(codes, n)
    return np.asarray((windows * powers).sum(axis=1, dtype=np.uint64))


@lru_cache(2**16)  # most words recur
def _code(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class Index:
    """The n-grams of a set of questions, at 12 bytes each."""

    def __init__(self, n: int = WORDS) -> None:
        self.n = n
        self._where: list[str] = []
        self._sizes: list[int] = []
        self._added: list[Grams] = []
        self._grams: Grams = np.empty(0, dtype=np.uint64)
        self._rows: npt.NDArray[np.int32] = np.empty(0, dtype=np.int32)

    def add(self, where: str, text: str) -> None:
        """Add a question; `where` names it in a hit."""
        hashes = grams(text, self.n)
        self._where.append(where)
        self._sizes.append(len(hashes))
        self._added.append(np.unique(hashes))  # a question may repeat a phrase

    def find(self, text: str) -> Hit | None:
        """Find the question of the index that shares most with this one, if any."""
        if self._added:
            self._sort()
        if not len(self._grams):
            return None
        hashes = grams(text, self.n)
        starts = np.searchsorted(self._grams, hashes, "left")
        ends = np.searchsorted(self._grams, hashes, "right")
        places = np.flatnonzero(ends > starts)
        if not len(places):
            return None
        holders = [self._rows[starts[place] : ends[place]] for place in places]
        shared = np.bincount(np.concatenate(holders))
        sizes = np.minimum(len(hashes), np.asarray(self._sizes[: len(shared)]))
        row = int(np.argmax(shared / np.maximum(1, sizes)))
        first = next(int(place) for place, rows in zip(places, holders, strict=True) if row in rows)
        share = min(1.0, int(shared[row]) / min(len(hashes), self._sizes[row]))
        phrase = " ".join(words(text)[first : first + self.n])
        return Hit(self._where[row], share, phrase)

    def _sort(self) -> None:
        added = range(len(self._where) - len(self._added), len(self._where))
        rows = np.repeat(np.array(added, dtype=np.int32), [len(hashes) for hashes in self._added])
        hashes = np.concatenate([self._grams, *self._added])
        rows = np.concatenate([self._rows, rows])
        order = np.argsort(hashes, kind="stable")
        self._grams, self._rows, self._added = hashes[order], rows[order], []
