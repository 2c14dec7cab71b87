"""What an error for the whole scan costs: rollouts, and exits that pass later or not at all.

    python benchmarks/rollouts_scan.py [--boundaries 24]

All figures are exact: dynamic programmes over the stops of the tests that `dto estimate` runs, with
T = 0.75 ± 0.10 and error 0.05. `per boundary` is the default, the others set `estimate.error_scan`
to 0.05. Flat trajectories have the same p at every boundary: the share of them that passes
anywhere, and rollouts a trajectory. In those with an exit p is 0.20 up to the middle, and then as
the column says: the share that passes there at once, at all, and rollouts a trajectory.

Below the same for rules that spend the error over the boundaries without knowing their number.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cache
from math import pi
from typing import NamedTuple

from dto.sequential import SequentialTest, share

THRESHOLD, MARGIN, ERROR, ERROR_SCAN = 0.75, 0.10, 0.05, 0.05
FLAT = (0.60, 0.65, 0.70)
GOOD = (0.85, 0.95)
BEFORE = 0.20
RULES: dict[str, Callable[[int], float]] = {
    "6 / (pi i)^2": lambda i: ERROR_SCAN * 6 / (pi * i) ** 2,
    "1 / (i (i + 1))": lambda i: ERROR_SCAN / (i * (i + 1)),
    "0.1 · 0.9^(i - 1)": lambda i: ERROR_SCAN * 0.1 * 0.9 ** (i - 1),
}


class Scan(NamedTuple):
    """Chances that a boundary passes at once and that any does, and rollouts a trajectory."""

    at_once: float
    anywhere: float
    rollouts: float


@cache
def test(cap: int, pass_error: float) -> SequentialTest:
    return SequentialTest(THRESHOLD, MARGIN, ERROR, cap, min(ERROR, pass_error))


def scan(rates: Sequence[float], cap: int, errors: Sequence[float], exit: int = 0) -> Scan:
    """A scan that stops at its first pass, over boundaries with these rates."""
    going, rollouts, at_once = 1.0, 0.0, 0.0
    for index, (rate, error) in enumerate(zip(rates, errors, strict=True)):
        found = test(cap, error).characteristic(rate)
        if index == exit:
            at_once = found.above
        rollouts += going * found.trials
        going *= 1 - found.above
    return Scan(at_once, 1 - going, rollouts)


def row(name: str, cap: int, errors: Sequence[float]) -> str:
    count = len(errors)
    cells = []
    for rate in FLAT:
        found = scan([rate] * count, cap, errors)
        cells.append(f"{found.anywhere:6.1%} {found.rollouts:6.0f}")
    middle = count // 2
    for rate in GOOD:
        rates = [BEFORE] * middle + [rate] * (count - middle)
        found = scan(rates, cap, errors, middle)
        cells.append(f"{found.at_once:6.1%} {found.anywhere:6.1%} {found.rollouts:6.0f}")
    return f"{name:18}{cap:4}  " + "  ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--boundaries", type=int, default=24)
    count: int = parser.parse_args().boundaries
    heads = [f"flat {rate:.2f}".center(13) for rate in FLAT]
    heads += [f"exit {rate:.2f}".center(20) for rate in GOOD]
    print(f"{count} boundaries, T = {THRESHOLD} ± {MARGIN}")
    print(f"{'':18}{'cap':>4}  " + "  ".join(heads))
    for cap in (32, 48, 64):
        print(row("per boundary", cap, [ERROR] * count))
        print(row("error_scan", cap, [share(ERROR_SCAN, count)] * count))
    for name, rule in RULES.items():
        print(row(name, 32, [rule(index) for index in range(1, count + 1)]))


if __name__ == "__main__":
    main()
