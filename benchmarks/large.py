"""Peak memory and rows a second of `dto import`, by the number of rows.

    python -m benchmarks.large [--json] [--form jsonl|json|csv|parquet] [ROWS ...]

Each number of rows is written to a temporary file and imported for the embedded model: questions,
gold answers, the source's verdicts and thinking of about `--characters` characters. The peak is
that of the whole tree of processes (the command, graders), the sum of their proportional set sizes
(PSS), every 0.2 seconds; `command` is that of the command alone. Needs Linux (/proc).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

WORDS = ("so", "the", "sum", "of", "both", "is", "add", "carry", "one", "then", "check", "that")
SAMPLES = 4
"""Responses to each question."""


def rows(count: int, characters: int) -> Iterator[dict[str, Any]]:
    """Responses to sums, 4 to each; one of ten is wrong, and one of twenty verdicts is."""
    noise = random.Random(1)
    for number in range(count):
        first, second = divmod(number // SAMPLES, 211)
        answer = first + second
        steps: list[str] = []
        size = 0
        while size < characters:
            steps.append(f"{' '.join(noise.choices(WORDS, k=12))} {noise.randrange(10**4)}.")
            size += len(steps[-1]) + 2
        given = answer + (noise.random() < 0.1)
        yield {
            "question": f"What is {first} + {second}?",
            "response": "<think>\n" + "\n\n".join(steps) + f"\n</think>\n\n\\boxed{{{given}}}",
            "answer": str(answer),
            "correct": (given == answer) != (noise.random() < 0.05),
        }


def write(path: Path, count: int, characters: int) -> None:
    """Write the rows as a file of the suffix's form."""
    source = rows(count, characters)
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        block = list(rows(1, characters))
        with pq.ParquetWriter(path, pa.Table.from_pylist(block).schema) as parquet:
            while block := [row for _, row in zip(range(1_000), source, strict=False)]:
                parquet.write_table(pa.Table.from_pylist(block))
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            table = csv.DictWriter(file, ["question", "response", "answer", "correct"])
            table.writeheader()
            table.writerows(source)
            return
        array = path.suffix == ".json"
        file.write("[" * array)
        for number, row in enumerate(source):
            file.write((", " if array and number else "") + json.dumps(row) + "\n" * (not array))
        file.write("]" * array)


def memory(process: psutil.Process) -> int:
    """The proportional set size of a process, in bytes; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


class Observed(NamedTuple):
    """A command: its wall and CPU seconds, the peak of its tree and its own, in bytes.

    CPU seconds include those of all processes that the command waited for.
    """

    seconds: float
    cpu: float
    peak: int
    own: int


def observe(command: list[str], log: Path, every: float) -> Observed:
    """Run a command and look at its memory every so many seconds. SystemExit if it fails."""
    start, before, peak, own = time.perf_counter(), os.times(), 0, 0
    with log.open("a") as file:
        process = psutil.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None:
            try:
                tree = [process, *process.children(recursive=True)]
            except psutil.NoSuchProcess:
                break
            sizes = [memory(each) for each in tree]
            peak, own = max(peak, sum(sizes)), max(own, sizes[0])
            time.sleep(every)
    if process.wait():
        raise SystemExit(f"{' '.join(command)}\n{log.read_text()[-4_000:]}")
    after = os.times()
    cpu = sum(after[2:4]) - sum(before[2:4])
    return Observed(time.perf_counter() - start, cpu, peak, own)


def measure(count: int, form: str, characters: int) -> dict[str, Any]:
    """Import rows in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="dto-large-") as folder:
        path = Path(folder) / f"rows.{form}"
        write(path, count, characters)
        run = Path(folder) / "run"
        command = [sys.executable, "-c", "from dto.cli import main; main()", "import", str(path),
                   "--model", "nano", "--out", str(run)]  # fmt: skip
        seen = observe(command, Path(folder) / "log", every=0.2)
        stages = {
            name: json.loads((run / name / "manifest.json").read_text())
            for name in ("problems", "sample")
        }
        return {
            "rows": count,
            "form": form,
            "bytes": path.stat().st_size,
            "peak": seen.peak,
            "command": seen.own,
            "seconds": round(seen.seconds, 1),
            "rows_per_second": round(count / seen.seconds, 1),
            "stages": {name: round(done["seconds"], 1) for name, done in stages.items()},
            "stage_peaks": {name: done["peak_memory"] for name, done in stages.items()},
        }


def main() -> int:
    """Measure each number of rows, print a table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large", description=__doc__)
    parser.add_argument("--json", action="store_true", help="rows as JSON")
    parser.add_argument("--form", default="jsonl", choices=["jsonl", "json", "csv", "parquet"])
    parser.add_argument("--characters", type=int, default=2_000, help="of the thinking")
    parser.add_argument("rows", nargs="*", type=int, default=[5_000, 50_000])
    options = parser.parse_args()
    if not options.json:
        print(f"{'rows':>8}  {'file':>9}  {'tree':>9}  {'command':>9}  {'seconds':>7}  rows/s")
    for count in options.rows:
        row = measure(count, options.form, options.characters)
        if options.json:
            print(json.dumps(row), flush=True)
            continue
        sizes = "  ".join(f"{row[key] / 2**20:5,.0f} MiB" for key in ("bytes", "peak", "command"))
        print(
            f"{count:8,}  {sizes}  {row['seconds']:7,.0f}  {row['rows_per_second']:6,.0f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
