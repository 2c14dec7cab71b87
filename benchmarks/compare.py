"""DTO beside the published baselines, over three seeds.

    python -m benchmarks.compare [--out runs] [--seeds 0 1 2]

Runs `pipelines/compare.yaml` for each seed, whose problems, samples and trainings are its own, and
sums up all of them: differences on each problem of each seed, with Holm's correction over all pairs
of methods. What is finished is not done again. Nothing is required of any method: it comes out
where it comes out.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from dto.compare.compare import compare
from dto.compare.report import report
from dto.pipeline import open_run
from dto.prompts import resource
from dto.recipe import load_recipe

SEEDS = (0, 1, 2)


def compared(seed: int, out: Path) -> Path:
    """The run of one seed, which is begun, gone on with, or only read."""
    name = f"compare-seed{seed}"
    changes = {"name": name, "seed": seed}
    recipe = load_recipe(Path(str(resource("pipelines"))) / "compare.yaml", changes)
    run = open_run(out / name, recipe)
    try:
        compare(run)
        print(report([run.path]), "\n", flush=True)
        return run.path
    finally:
        run.close()


def main() -> int:
    """Run what is owed, print every seed's table, then that of all together."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    options = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("dto").setLevel(logging.INFO)
    runs = [compared(seed, options.out) for seed in options.seeds]
    print(report(runs, options.out / "compare-seeds"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
