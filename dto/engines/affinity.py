"""Recognise prompts that begin alike, so that they meet one prefix cache.

A prefix cache keeps whole blocks of tokens, so prompts are compared block by block. A block that
many different ones have followed is a template (a system prompt, a few examples): it is shared by
requests that have nothing else in common, and does not keep them together.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from dto.protocols import Prompt

BLOCK = 64
"""Tokens that are compared together."""
KNOWN_BLOCKS = 200_000
"""Blocks that are remembered; the least recently used are forgotten."""
SHARED = 0.5
"""Least share of a prompt that must be known."""
TEMPLATE = 16
"""Different blocks after a block that make it a template."""


class Prefixes:
    """Remembers a number for each beginning of a prompt: a session, or a set of servers.

    Zero counts as unknown.
    """

    def __init__(self) -> None:
        self._values: OrderedDict[int, int] = OrderedDict()
        self._followers: dict[int, int] = {}

    def find(self, blocks: Sequence[int]) -> int | None:
        """The number of the longest known beginning; None if that is short, or a template."""
        for count in range(len(blocks), 0, -1):
            if value := self._values.get(blocks[count - 1], 0):
                is_template = self._followers.get(blocks[count - 1], 0) >= TEMPLATE
                whole = count == len(blocks)
                if whole or (count >= SHARED * len(blocks) and not is_template):
                    return value
                return None
        return None

    def put(self, blocks: Sequence[int], value: int) -> None:
        """Remember the number for all beginnings of a prompt that have no other yet."""
        before: int | None = None
        for block in blocks:
            if block not in self._values:
                self._values[block] = value
                if before is not None:
                    self._followers[before] = self._followers.get(before, 0) + 1
            self._values.move_to_end(block)
            before = block
        while len(self._values) > KNOWN_BLOCKS:
            self._followers.pop(self._values.popitem(last=False)[0], None)

    def add(self, blocks: Sequence[int], place: int) -> None:
        """Remember that a server, too, has read a prompt: numbers are sets of servers, as bits."""
        self.put(blocks, 0)
        for block in blocks:
            self._values[block] |= 1 << place

    def forget(self, place: int) -> None:
        """Forget what a server has read, whose cache is lost."""
        for block in self._values:
            self._values[block] &= ~(1 << place)


def blocks_of(prompt: Prompt) -> list[int]:
    """A hash of each beginning of a prompt that ends with a whole block, and of the whole."""
    blocks, known = [], 0
    for start in range(0, len(prompt), BLOCK):
        part = prompt[start : start + BLOCK]
        known = hash((known, *(each if isinstance(each, int) else repr(each) for each in part)))
        blocks.append(known)
    return blocks
