"""Rows a second and peak memory of every stage from import to report, by the number of rows.

    python -m benchmarks.scale [--rows 10000 100000] [--tokens 200] [--keep FOLDER] [--json]

So many responses of about so many tokens (Qwen's vocabulary, several patterns to a response) are
written to a file and go through the commands `import`, `segment`, `estimate`, `optimize`, `prune`,
`pair`, `evaluate` (100 test questions) and `report`, each in a process of its own. Rollouts and
conclusions come from an engine that looks its answers up, so only the pipeline's own work is
measured. The peak is that of the whole tree of processes, the sum of their proportional set sizes
(PSS), taken every 0.5 seconds.
Exponents are those of growth between the smallest and the largest number of rows: 1 is linear, 0
flat. Needs Linux (/proc) and the extra `dev`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import re
import shutil
import sys
import tempfile
from collections.abc import AsyncGenerator, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.large import observe
from dto.engines.models import load_tokenizer
from dto.engines.shared import encode_prompt, unbranched
from dto.extension import Settings
from dto.protocols import Capabilities, Chunk, Completion, Prompt, Sampling, TokenIds
from dto.recipe import ModelSettings
from dto.usage import ModelShape, Usage, charge

SAMPLES = 4
"""Responses to each question."""
TEST = 100
"""Test questions for `evaluate`, without which there is no report."""
STAGES = ("import", "segment", "estimate", "optimize", "prune", "pair", "evaluate", "report")
QUESTION = re.compile(r"What is (\d+) \+ (\d+)\?")
HEAD_TOKENS = 64
"""The question stands in so many tokens at the start of a prompt."""
STEPS = (
    "First I add {a} and {b}: the ones give {c}, and there is a carry to keep in mind.",
    "So the sum of both comes to {c}, if nothing went wrong with the carry on the way.",
    "Wait, let me check that again: {a} plus {b} is {c}, and the carry was added once.",
    "Alternatively, I could start from {b} and count {a} further, which also gives {c}.",
    "Hmm, but maybe the tens deserve another look: {c} splits into tens and ones as before.",
    "Therefore {c} looks right, and the way there was the same twice.",
)


class Given(Settings):
    """Makes the engine, from `model.engine_settings`."""

    after: int = 100  # tokens of a prompt from which on answers are right

    def __call__(self, settings: ModelSettings, name: str) -> Scripted:
        """The engine of a model."""
        return Scripted(settings, name, self.after)


class Scripted:
    """Knows the sum that a prompt asks for, and gives it once the prompt is long enough."""

    def __init__(self, settings: ModelSettings, name: str, after: int) -> None:
        self.model = name
        self.tokenizer: Any = load_tokenizer(settings)
        self.shape: ModelShape | None = ModelShape(28, 12, 128, 1_543_000_000)
        self.context = 32_768
        self.capabilities = Capabilities(resumable=True)
        self._after = after
        self._encoded = lru_cache(4_096)(self._encode)

    async def __aenter__(self) -> Scripted:
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Nothing to stop."""

    def _encode(self, text: str) -> tuple[int, ...]:
        return (*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id)

    async def complete(self, prompt: Prompt, sampling: Sampling, n: int = 1) -> list[Completion]:
        """The sum in braces after an exit, a whole conclusion elsewhere."""
        ids = encode_prompt(prompt, self.tokenizer, self.model)
        first, second = map(int, QUESTION.findall(self.tokenizer.decode(ids[:HEAD_TOKENS]))[0])
        answer = first + second if len(ids) > self._after else first
        boxed = self.tokenizer.decode(ids[-8:]).rstrip().endswith("\\boxed")
        if boxed:
            text, stop = f"{{{answer}}}", "}" if "}" in sampling.stop else None
            tokens = self._encoded(text)[:-1]
        else:
            text, stop = f"The answer is \\boxed{{{answer}}}.", None
            tokens = self._encoded(text)
        charge(Usage(requests=n, prompt=n * len(ids), generated=n * len(tokens)))
        await asyncio.sleep(0)
        done = Completion(tokens, text, "stop", prompt_tokens=len(ids), stop=stop)
        return [done] * n

    def stream(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Chunk]:
        """Not needed here."""
        raise NotImplementedError

    def branched(self) -> Any:
        """Not supported."""
        raise unbranched(self.model)

    async def score(self, prompt: TokenIds, continuation: TokenIds) -> tuple[float, ...]:
        """All tokens are as likely."""
        charge(Usage(requests=1, prompt=len(prompt) + len(continuation)))
        return (-0.1,) * len(continuation)


def rows(count: int, tokens: int) -> Iterator[dict[str, Any]]:
    """Responses to sums, `SAMPLES` to each, one of ten wrong; 4 characters make a token."""
    noise = random.Random(1)
    for number in range(count):
        first, second = divmod(number // SAMPLES, 997)
        given = first + second + (noise.random() < 0.1)
        steps: list[str] = []
        size = 0
        while size < 3 * tokens:
            step = STEPS[0 if not steps else noise.randrange(1, len(STEPS))]
            steps.append(step.format(a=first, b=second, c=given))
            size += len(steps[-1]) + 2
        yield {
            "question": f"What is {first} + {second}?",
            "response": "<think>\n" + "\n\n".join(steps) + f"\n</think>\n\n\\boxed{{{given}}}",
            "answer": str(first + second),
        }


class Measured(NamedTuple):
    """One command: its wall and CPU seconds, peak of its tree and size on disk in bytes."""

    stage: str
    seconds: float
    cpu: float
    peak: int
    rows: int
    disk: int


def measure(count: int, tokens: int, folder: Path) -> Iterator[Measured]:
    """Take so many rows through all stages, in a run directory below `folder`.

    Stages measured there before are returned as they are; one that was interrupted starts anew.
    """
    from tests.vocabularies import R1, model_folder

    folder.mkdir(parents=True, exist_ok=True)
    model, source, run = folder / "model", folder / "rows.jsonl", folder / "run"
    tests = folder / "test.jsonl"
    if not model.is_dir():
        model_folder(R1, model)
    if not tests.exists():
        with source.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows(count, tokens))
        with tests.open("w", encoding="utf-8") as file:
            for n in range(TEST):
                asked = {"problem": f"What is {n} + 7000?", "answer": str(n + 7000)}
                file.write(json.dumps(asked) + "\n")
    changes = {
        "model.engine": "benchmarks.scale:Given",
        "model.engine_settings.after": HEAD_TOKENS + tokens // 3,
        "problems.source": tests,
        "problems.dev": 0,
        "problems.test": TEST,
        "evaluate.models": "[base]",
        "evaluate.samples": 1,
    }
    options = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    dto = [sys.executable, "-c", "from dto.cli import main; main()"]
    record = folder / "measured.jsonl"
    lines = record.read_text().splitlines() if record.exists() else []
    known = [Measured(**json.loads(line)) for line in lines]
    yield from known
    for stage in STAGES[len(known) :]:
        place = run / ("sample" if stage == "import" else stage)
        shutil.rmtree(run if stage == "import" else place, ignore_errors=True)
        if stage == "import":
            command = [*dto, stage, str(source), "--model", str(model), "--out", str(run), *options]
        else:
            command = [*dto, stage, str(run)]
        seen = observe(command, folder / "log", every=0.5)
        done = place / "manifest.json"
        written = json.loads(done.read_text())["rows"] if done.is_file() else 0
        disk = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        row = Measured(stage, seen.seconds, seen.cpu, seen.peak, written, disk)
        with record.open("a") as file:
            file.write(json.dumps(row._asdict()) + "\n")
        yield row


def exponent(few: float, many: float, growth: float) -> float:
    """The power of the number of rows by which a figure grows."""
    return math.log(max(many, 1e-9) / max(few, 1e-9)) / math.log(growth)


def main() -> int:
    """Measure each number of rows; print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--rows", nargs="*", type=int, default=[10_000, 100_000])
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--keep", type=Path, help="keep the runs in this folder, and go on there")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each stage")
    options = parser.parse_args()
    found: dict[int, list[Measured]] = {}
    with tempfile.TemporaryDirectory(prefix="dto-scale-") as temporary:
        for count in options.rows:
            folder = (options.keep or Path(temporary)) / f"{count}x{options.tokens}"
            print(f"{count:,} responses of about {options.tokens:,} tokens", flush=True)
            found[count] = []
            for row in measure(count, options.tokens, folder):
                found[count].append(row)
                if options.json:
                    print(json.dumps({"responses": count, **row._asdict()}), flush=True)
                    continue
                print(
                    f"  {row.stage:<9} {row.seconds:8,.1f} s  {row.cpu:8,.1f} s CPU  "
                    f"{count / row.seconds:8,.0f} rows/s  "
                    f"{row.peak / 2**20:6,.0f} MiB  {row.rows:10,} rows written  "
                    f"{row.disk / 2**20:8,.1f} MiB on disk",
                    flush=True,
                )
    few, many = min(found), max(found)
    if many > few:
        print(f"growth from {few:,} to {many:,}: exponents of CPU seconds, peak and bytes on disk")
        for small, large in zip(found[few], found[many], strict=True):
            powers = {
                name: exponent(getattr(small, name), getattr(large, name), many / few)
                for name in ("cpu", "peak", "disk")
            }
            if options.json:
                print(json.dumps({"growth": [few, many], "stage": small.stage, **powers}))
                continue
            print(f"  {small.stage:<9} " + " ".join(f"{power:5.2f}" for power in powers.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
