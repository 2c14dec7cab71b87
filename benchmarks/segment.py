"""Segmentation: MB/s of one process beside a blank spaCy sentencizer, and memory over many traces.

    python benchmarks/segment.py [--traces 20000] [--file traces.jsonl …]

Files are .jsonl with a `thinking` field. Throughput is CPU time; the two pipelines take turns, and
the ratio is of the medians.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import spacy

from dto.segmentation.worker import segment_texts

ROUNDS = 5
BATCH = 50
OPENINGS = (
    "",
    "",
    "",
    "Wait, ",
    "But wait, ",
    "So ",
    "Alternatively, ",
    "Hmm. ",
    "等等，",
    "Or maybe ",
)
WORDS = (  # noqa: SIM905
    "the sum of all angles in this triangle is known and we take first second number which gives "
    "value equation side because problem says that each must be less than half total then multiply"
).split()


def trace(source: random.Random) -> str:
    """Paragraphs of sentences with numbers, formulas and names never seen before; about 8 kB."""
    sentences = []
    for _ in range(90):
        words = source.choices(WORDS, k=source.randint(5, 18))
        words[-1] = source.choice(
            (f"${source.getrandbits(16)}x + 1$", f"v{source.getrandbits(40)}")
        )
        border = source.choice((" ", " ", " ", "\n\n"))
        sentences.append(f"{source.choice(OPENINGS)}{' '.join(words)}.{border}")
    return "".join(sentences)


def megabytes_per_second(work: Callable[[Sequence[str]], object], texts: Sequence[str]) -> float:
    """UTF-8 megabytes of `texts` for each second of CPU time."""
    begin = time.process_time()
    for first in range(0, len(texts), BATCH):
        work(texts[first : first + BATCH])
    seconds = time.process_time() - begin
    return sum(len(text.encode()) for text in texts) / 1e6 / seconds


def compare(name: str, texts: Sequence[str]) -> None:
    """Print a line for one set of texts."""
    plain = spacy.blank("xx")
    plain.add_pipe("sentencizer")

    def sentences(batch: Sequence[str]) -> None:
        with plain.memory_zone():
            for text in batch:
                plain(text)

    def patterns(batch: Sequence[str]) -> None:
        segment_texts(batch, "pattern")

    ours, theirs = [], []
    for _ in range(ROUNDS):
        ours.append(megabytes_per_second(patterns, texts))
        theirs.append(megabytes_per_second(sentences, texts))
    count = sum(len(segments) for segments in segment_texts(texts, "pattern"))
    speed, reference = statistics.median(ours), statistics.median(theirs)
    print(
        f"{name}: {len(texts)} traces, {count / len(texts):.1f} segments each; {speed:.2f} MB/s, "
        f"sentencizer {reference:.2f} MB/s, ratio {speed / reference:.2f}"
    )


def memory(traces: int) -> None:
    """Print resident memory while many generated traces go through."""
    source, process = random.Random(1), psutil.Process()
    for done in range(0, traces + 1, BATCH):
        if done % max(BATCH, traces // 8 // BATCH * BATCH) == 0:
            print(f"memory after {done:,} traces: {process.memory_info().rss / 2**20:.0f} MiB")
        segment_texts([trace(source) for _ in range(BATCH)], "pattern")


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=int, default=20_000)
    shared = Path(__file__).parents[1] / "../shared/data"
    parser.add_argument(
        "--file", type=Path, nargs="*", default=sorted(shared.glob("traces-*.jsonl"))
    )
    options = parser.parse_args()
    source = random.Random(0)
    compare("generated", [trace(source) for _ in range(200)])
    for path in options.file:
        rows = path.read_text(encoding="utf-8").splitlines()
        compare(path.name, [json.loads(row)["thinking"] for row in rows])
    memory(options.traces)


if __name__ == "__main__":
    main()
