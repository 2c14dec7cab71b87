"""Train the embedded model (at most 15 minutes on two cores): `make nano`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.nano.train import train_nano


def main() -> int:
    """Train, and say what the loss came to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nano", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--control", action="store_true", help="the model that does not overthink")
    parser.add_argument("--seed", type=int, default=0, help="of corpus, weights and order")
    parser.add_argument("--steps", type=int, help="fewer than usual: to try it out")
    options = parser.parse_args()
    loss = train_nano(
        options.out, overthinks=not options.control, seed=options.seed, steps=options.steps
    )
    print(f"{options.out}: loss {loss:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
