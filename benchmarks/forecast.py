"""Was the forecast right? Each figure of a pilot's forecast.json beside what the run then took.

dto run RECIPE --out RUN --pilot 20 && dto run RECIPE --out RUN
python -m benchmarks.forecast RUN-pilot RUN
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from dto.reporting.cost import stage_costs
from dto.runs.reader import RunReader

FIGURES = ("tokens", "trained_tokens", "attention_flops")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pilot", type=Path)
    parser.add_argument("run", type=Path)
    options = parser.parse_args()
    forecast = json.loads((options.pilot / "forecast.json").read_text(encoding="utf-8"))
    stages: dict[str, dict[str, Any]] = {each["stage"]: each for each in forecast["stages"]}
    took = {cost.stage: cost for cost in stage_costs(RunReader(options.run))}
    print(
        "| stage | figure | forecast | took | off by | in the interval |\n|---|---|---|---|---|---|"
    )
    for stage in (name for name in stages if name in took):
        for name in FIGURES:
            expected, actual = stages[stage][name], getattr(took[stage], name)
            if not actual or expected["value"] is None:
                continue
            off = expected["value"] / actual - 1
            held = expected["low"] <= actual <= expected["high"]
            print(
                f"| {stage} | {name} | {expected['value']:.4g} "
                f"({expected['low']:.4g}–{expected['high']:.4g}) | {actual:.4g} | {off:+.0%} "
                f"| {'yes' if held else 'no'} |"
            )


if __name__ == "__main__":
    main()
