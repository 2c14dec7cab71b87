"""Seeds derived from what is computed, never from the order in which it is computed."""

from __future__ import annotations

import hashlib

SEED_BITS = 62  # below int64 even after the few units that an engine adds for its n samples


def derive(seed: int, row_id: str, purpose: str, *counters: int) -> int:
    """A seed for one request: a function of run seed, row id and purpose.

    `counters` tell apart the requests that one row makes for one purpose (boundary, round).
    Two requests of a run share a seed only when all four agree.
    """
    text = "\x1f".join([str(seed), row_id, purpose, *map(str, counters)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - SEED_BITS)


def content_id(*parts: str) -> str:
    """A short id that depends on content alone (16 hexadecimal digits)."""
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).hexdigest()
