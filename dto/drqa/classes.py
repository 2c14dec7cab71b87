"""Which chain is what, and how many of each are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dto.drqa.records import Verdict


@dataclass(frozen=True, slots=True)
class Balance:
    """Of each class the chains whose rank is below `limits` are kept; `found` counts all."""

    limits: Mapping[Verdict, int]
    found: Mapping[Verdict, int]
