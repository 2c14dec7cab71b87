"""The properties that the embedded weights are accepted on.

python -m benchmarks.nano [nano|nano-control|FOLDER] [problems]
"""

from __future__ import annotations

import sys

import torch

from dto import nano
from dto.nano.measure import measure


def main() -> None:
    """Measure fresh dev problems at T = 1.0 and print one figure a line."""
    name = sys.argv[1] if len(sys.argv) > 1 else "nano"
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    torch.set_num_threads(1)
    for figure, value in measure(nano.resolve(name), count, seed=7).items():
        print(f"{figure:40s} {value:8.3f}")


if __name__ == "__main__":
    main()
