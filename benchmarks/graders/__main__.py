"""Do published graders agree with ours, on the answers of a run or a file? No model is asked.

    python -m benchmarks.graders RUN|FILE|HUB [--graders ours,deer] [--out FOLDER]

`benchmarks.graders.published` says whose they are. The table is printed; counts and disagreements
go to the folder, `RUN/grade` for a run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.graders.agreement import agree
from dto.errors import DtoError


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", metavar="RUN|FILE|HUB", help="a run, or rows of gold, prediction")
    parser.add_argument("--graders", default="ours,math-verify,minerva,deer,deepscaler")
    parser.add_argument("--out", type=Path, help="folder for the report")
    options = parser.parse_args(arguments)
    run = Path(options.source)
    out = run / "grade" if run.is_dir() else Path("runs") / f"grade-{run.stem}"
    names = [name.strip() for name in options.graders.split(",")]
    print(agree(options.source, names, options.out or out))


if __name__ == "__main__":
    try:
        main()
    except DtoError as error:
        sys.exit(str(error))
