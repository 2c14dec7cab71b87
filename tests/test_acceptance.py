"""The verdicts of `benchmarks.acceptance`; its runs take hours."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.acceptance import DEER, Line, lines_of
from dto.reporting.evaluation import Figures
from dto.statistics import Estimate


def arm(model: str, exit: str, gain: float, half: float, ratio: float, **changes: Any) -> Figures:
    verdict = changes.get("verdict", "gain")
    nothing = Estimate(0.5, 0.5, 0.5, 4000, 1000)
    return Figures(
        "toy", model, exit, 1000, 4000, 0, 0, nothing, nothing,
        Estimate(gain, gain - half, gain + half, 8000, 1000),
        Estimate(ratio, ratio, ratio, 8000, 1000),
        verdict,
    )  # fmt: skip


def lines(
    trained: tuple[float, ...] = (0.05, 0.04, 0.03),
    half: float = 0.02,
    ratio: float = 0.40,
    deer_ratio: float = 0.45,
    control: float = 0.001,
    verdict: str = "gain",
) -> dict[str, Line]:
    overthinker = [
        SimpleNamespace(
            rows=(
                arm("trained", "none", gain, half, ratio, verdict=verdict),
                arm("base", DEER, gain, half, deer_ratio),
            )
        )
        for gain in trained
    ]
    calm = [
        SimpleNamespace(
            rows=(
                arm("trained", "none", control, 0.01, 0.9),
                arm("base", DEER, control, 0.01, 0.9),
            )
        )
        for _ in trained
    ]
    return {line.what: line for line in lines_of(overthinker, calm)}  # type: ignore[arg-type]


def test_all_met() -> None:
    assert len(lines()) == 8
    assert all(line.met for line in lines().values())


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({"trained": (0.04, 0.03, 0.015), "half": 0.01}, {"trained: mean gain"}),
        ({"trained": (0.10, 0.10, 0.015)}, {"trained: lower bound of each seed"}),
        ({"ratio": 0.46}, {"trained: tokens of the base's"}),
        ({"verdict": "too many failed"}, {"trained: lower bound of each seed"}),
        ({"deer_ratio": 0.51}, {"base with deer: tokens of the base's"}),
        # ±1 point for a seed is ±0.58 for the mean of three
        ({"control": 0.007}, {"control, trained: gain", "control, base with deer: gain"}),
        ({"control": -0.007}, {"control, trained: gain", "control, base with deer: gain"}),
    ],
)
def test_one_missed_line(changes: dict[str, Any], missed: set[str]) -> None:
    found = {what for what, line in lines(**changes).items() if not line.met}
    if "trained" in changes:  # deer's gains are the same in this table
        found = {what for what in found if not what.startswith("base with deer")}
    assert found == missed
