"""Do two sets of questions share some? By word n-grams, as GPT-3 was decontaminated.

Source: 2005.14165, appendix C (13-grams). Departs from it: questions are reported, not cut, and
n-grams are not left out for being frequent: a phrase that contests repeat ("where m and n are
relatively prime …") is found too, and told from a copy by how little of the question it is. A
question of fewer than n words overlaps with its equal alone.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dto.seeds import content_id

WORDS = 13
_WORD = re.compile(r"[\u3400-\u9fff]|(?:(?![\u3400-\u9fff])[^\W_])+")
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that powers of it modulo 2⁶⁴ never vanish

Grams = npt.NDArray[np.uint64]


class Hit(NamedTuple):
    """The row that shares most n-grams with a question, and the first of those.

    `share` is that of the shorter of the two, so that a question that is part of another has 1.
    """

    where: str
    share: float
    phrase: str


def normalised(text: str) -> str:
    """Equal for texts that differ in case, white space and compatibility characters alone."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def same_as(text: str) -> str:
    """A key that questions share which are equal when normalised."""
    return content_id(normalised(text))


def words(text: str) -> list[str]:
    """Runs of letters and digits, and Chinese characters one by one; signs and marks are gaps."""
    return _WORD.findall(normalised(text))


def grams(text: str, n: int = WORDS) -> Grams:
    """One hash of 64 bits for each n-gram, in order; for a shorter text one of all of it."""
    found = words(text)
    if len(found) < n:
        return np.array([_code(normalised(text))], dtype=np.uint64)
    codes = np.array([_code(word) for word in found], dtype=np.uint64)
    powers = np.array([pow(_FACTOR, place + 1, 2**64) for place in range(n)], dtype=np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(codes, n)
    return np.asarray((windows * powers).sum(axis=1, dtype=np.uint64))


@lru_cache(2**16)  # most words are met again and again
def _code(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _once_each(rows: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Rows in order, without those that follow their equal: a phrase may come twice in one."""
    return np.asarray(rows[np.append(True, rows[1:] != rows[:-1])])


class Index:
    """The n-grams of a set of questions, 12 bytes each."""

    def __init__(self, n: int = WORDS) -> None:
        self.n = n
        self._where: list[str] = []
        self._sizes: list[int] = []
        self._added: list[Grams] = []
        self._grams: Grams = np.empty(0, dtype=np.uint64)
        self._rows: npt.NDArray[np.int32] = np.empty(0, dtype=np.int32)

    def add(self, where: str, text: str) -> None:
        """Take a question in; `where` is what a hit calls it."""
        own = grams(text, self.n)
        self._where.append(where)
        self._sizes.append(len(own))
        self._added.append(own)

    def find(self, text: str) -> Hit | None:
        """What a question shares with those in the index."""
        if self._added:
            self._sort()
        if not len(self._grams):
            return None
        own = grams(text, self.n)
        starts = np.searchsorted(self._grams, own, "left")
        ends = np.searchsorted(self._grams, own, "right")
        at = np.flatnonzero(ends > starts)
        if not len(at):
            return None
        holders = [_once_each(self._rows[starts[each] : ends[each]]) for each in at]
        shared = np.bincount(np.concatenate(holders))
        sizes = np.minimum(len(own), np.asarray(self._sizes[: len(shared)]))
        row = int(np.argmax(shared / np.maximum(1, sizes)))
        first = next(int(each) for each, held in zip(at, holders, strict=True) if row in held)
        share = min(1.0, int(shared[row]) / min(len(own), self._sizes[row]))
        phrase = " ".join(words(text)[first : first + self.n])
        return Hit(self._where[row], share, phrase)

    def _sort(self) -> None:
        first = len(self._where) - len(self._added)
        sizes = self._sizes[first:]
        rows = np.repeat(np.arange(first, len(self._where), dtype=np.int32), sizes)
        every = np.concatenate([self._grams, *self._added])
        rows = np.concatenate([self._rows, rows])
        order = np.argsort(every, kind="stable")
        self._grams, self._rows, self._added = every[order], rows[order], []
