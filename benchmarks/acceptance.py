"""Does the loop work? The whole of it on the embedded model, at a size that can tell.

    python -m benchmarks.acceptance [--out runs] [--seeds 0 1 2] [--problems 1000]

For each of three fixed seeds the quickstart recipe is run on 1,000 test problems × 4 samples, for
`nano`, which overthinks, and for `nano-control`, which does not. All seeds are reported. Required:

    trained         mean gain ≥ 3 points, the paired 95 % lower bound of each seed > 0,
                    at most 45 % of the tokens
    base with deer  the same gain, at most 50 % of the tokens
    control         no gain, trained and with deer: the 95 % interval over all seeds covers 0

Gains and tokens are against the base model that thinks to its end. Exit code 1 when a line is not
met. Hours on two cores; killed, it goes on where it stopped. Fewer seeds or problems only show
whether it runs: the exit code is then that of the lines all the same.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from dto.pipeline import needed, open_run, run_stages
from dto.prompts import resource
from dto.recipe import load_recipe
from dto.reporting.evaluation import Figures
from dto.reporting.report import Report
from dto.reporting.write import report
from dto.statistics import NOTHING, Estimate

SEEDS = (0, 1, 2)
PROBLEMS, SAMPLES = 1000, 4
MIN_GAIN = 0.03
MAX_TOKENS_TRAINED, MAX_TOKENS_DEER = 0.45, 0.50
DEER = "deer-paragraph-closed"
EXITS = [
    {"name": "none"},
    {
        "name": DEER, "policy": "deer", "monitor": "paragraph", "inducer": "closed",
        "confidence": "answer", "threshold": 0.9,
    },
    {
        "name": "deer-cue-inside", "policy": "deer", "monitor": "cue", "inducer": "inside",
        "confidence": "answer", "threshold": 0.95,
    },
]  # fmt: skip


class Line(NamedTuple):
    """One requirement, what was measured, and whether that meets it."""

    what: str
    measured: str
    required: str
    met: bool


def evaluated(model: str, seed: int, problems: int, out: Path) -> Report:
    """The report of one run, which is begun, gone on with, or only read."""
    name = f"acceptance-{model}-seed{seed}"
    changes = {
        "name": name,
        "seed": seed,
        "model.name": model,
        "problems.test": problems,
        "evaluate.samples": SAMPLES,
        "evaluate.exits": EXITS,
    }
    recipe = load_recipe(Path(str(resource("pipelines"))) / "quickstart.yaml", changes)
    run = open_run(out / name, recipe)
    try:
        run_stages(run, needed(recipe), may_be_empty=True)  # the control may have no pairs
        return report(run.path)
    finally:
        run.close()


def compared(reports: Sequence[Report], model: str, exit: str) -> list[Figures]:
    """One arm against the base, for each seed."""
    return [next(row for row in found.rows if row.arm == (model, exit)) for found in reports]


def _against_base(arms: Sequence[Figures]) -> tuple[list[Estimate], list[Estimate]]:
    """Gains and ratios of tokens; nan for an arm that could not be compared."""
    return [arm.gain or NOTHING for arm in arms], [arm.ratio or NOTHING for arm in arms]


def improvement(label: str, arms: Sequence[Figures], max_tokens: float) -> list[Line]:
    """The lines of an arm that has to be better and shorter."""
    gains, ratios = _against_base(arms)
    gain = fmean(each.value for each in gains)
    lows = [each.low for each in gains]
    ratio = fmean(each.value for each in ratios)
    claimed = all(arm.verdict != "too many failed" for arm in arms)
    return [
        Line(f"{label}: mean gain", _points(gain), f"≥ {_points(MIN_GAIN)}", gain >= MIN_GAIN),
        Line(
            f"{label}: lower bound of each seed",
            ", ".join(map(_points, lows)),
            "> 0, at most 1 % failed",
            claimed and min(lows) > 0,
        ),
        Line(
            f"{label}: tokens of the base's",
            f"{100 * ratio:.1f} %",
            f"≤ {100 * max_tokens:.0f} %",
            ratio <= max_tokens,
        ),
    ]


def no_gain(label: str, arms: Sequence[Figures]) -> Line:
    """The line of an arm on the control: the mean over seeds, whose problems are different ones."""
    gains, _ = _against_base(arms)
    gain = fmean(each.value for each in gains)
    half = sqrt(sum((each.high - each.low) ** 2 for each in gains)) / 2 / len(arms)
    claimed = all(arm.verdict != "too many failed" for arm in arms)
    return Line(
        f"{label}: gain",
        f"{_points(gain)} ({_points(gain - half)}…{_points(gain + half)})",
        "covers 0",
        claimed and gain - half <= 0 <= gain + half,
    )


def lines_of(overthinker: Sequence[Report], control: Sequence[Report]) -> list[Line]:
    """All requirements."""
    return [
        *improvement("trained", compared(overthinker, "trained", "none"), MAX_TOKENS_TRAINED),
        *improvement("base with deer", compared(overthinker, "base", DEER), MAX_TOKENS_DEER),
        no_gain("control, trained", compared(control, "trained", "none")),
        no_gain("control, base with deer", compared(control, "base", DEER)),
    ]


def _points(share: float) -> str:
    return f"{100 * share:+.2f}"


def main() -> int:
    """Run what is owed, print every seed's table, then the lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--problems", type=int, default=PROBLEMS)
    options = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("dto").setLevel(logging.INFO)
    reports: dict[str, list[Report]] = {"nano": [], "nano-control": []}
    for seed in options.seeds:
        for model, found in reports.items():
            found.append(evaluated(model, seed, options.problems, options.out))
            print(found[-1], "\n", flush=True)
    lines = lines_of(reports["nano"], reports["nano-control"])
    cells = [(*line[:3], "met" if line.met else "NOT MET") for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    if (tuple(options.seeds), options.problems) != (SEEDS, PROBLEMS):
        print("Fewer seeds or problems than the acceptance asks for.")
    return 0 if all(line.met for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
