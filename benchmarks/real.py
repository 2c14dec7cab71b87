"""Does the loop work on a real LLM? All of it on SmolLM2-135M, taught to overthink.

    make real                           # once: fetches the model, merges the adapter
    .venv/bin/python -m benchmarks.real [--out runs/real] [--set KEY=VALUE ...]

The model of `benchmarks/overthink.py` is a pretrained LLM with an adapter: 49,152 tokens, English,
numbers of two digits. It was trained to think too long and to lose right answers, and never on an
answer inducer of dto's. `benchmarks/real.yaml` samples its responses to 60 problems, optimizes
them, trains it with LoRA, and asks 100 other problems of the base and the trained model, each with
and without DEER. None of these questions was in the adapter's training. What it can show is that
tokens and exits work on a real LLM; accuracy on 100 questions has its interval, and is undecided
where that covers 0. Killed, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path

from benchmarks.overthink import EXAMPLES, SEED
from benchmarks.word_problems import problems
from dto.pipeline import needed, open_run, run_stages
from dto.recipe import load_recipe
from dto.reporting.write import report

TRAIN_SEED, TEST_SEED = 101, 102
TRAIN, TEST = 400, 400


def write_problems(directory: Path, train: int = TRAIN, test: int = TEST) -> None:
    """Questions that the adapter was not trained on, in train.jsonl and test.jsonl."""
    directory.mkdir(parents=True, exist_ok=True)
    seen = frozenset(row.question for row in problems(SEED, EXAMPLES))
    for name, seed, count in (("train", TRAIN_SEED, train), ("test", TEST_SEED, test)):
        rows = problems(seed, count, exclude=seen)
        seen |= {row.question for row in rows}
        lines = [json.dumps({"problem": row.question, "answer": str(row.answer)}) for row in rows]
        (directory / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    """Run what is missing and print the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("dto").setLevel(logging.INFO)
    write_problems(Path("runs/real-problems"))
    changes = dict(pair.split("=", 1) for pair in options.set)
    recipe = load_recipe(Path(__file__).with_suffix(".yaml"), changes)
    run = open_run(options.out, recipe)
    try:
        run_stages(run, needed(recipe))
        print(report(run.path))
    finally:
        run.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
