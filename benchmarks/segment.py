"""Segmentation: how near it comes to readers, MB/s of one process, and memory over many traces.

    python -m benchmarks.segment [--traces 20000] [--file traces.jsonl …]

Boundaries are compared with those of two readers on 26 real traces (../shared/data), one to one
within 12 or 120 characters, all traces taken together. The weights, and the threshold, were learned
without the question whose trace is cut (14 questions; `benchmarks/patterns/learn.py`); which
features there are was chosen on these figures. `rules` are those that decide where there is no
model.

What it does to a search for exits: how many characters lie between the end of the sentence in which
the right answer first stands and the first boundary after it, and how many boundaries come before
that one (each costs rollouts). On real traces that sentence was marked by a language model
(`benchmarks/patterns/answers.jsonl`: 13 of the 26, which are graded right); on chains that
`dto.nano` writes it is the first right conclusion, and the weights are those that are shipped.

Files are .jsonl with a `thinking` field. Throughput is CPU time; the two pipelines take turns, and
the ratio is of the medians.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import spacy

from benchmarks.nano.thinking import OVERTHINKING, think
from benchmarks.patterns import learn
from dto.nano import chains as random_chains
from dto.segmentation.features import Masks
from dto.segmentation.patterns import Granularity, by_rules, openings
from dto.segmentation.worker import pipeline, segment_text, segment_texts

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


def ruled(text: str) -> list[int]:
    """Where patterns open by the rules alone."""
    nlp = pipeline("pattern")
    candidates = nlp.get_pipe("dto_patterns").candidates(nlp(text), text, Masks(text))
    return [cut.start for cut in by_rules(text, list(candidates))]


def cut(text: str, granularity: Granularity) -> list[int]:
    """Where segments begin, the first aside."""
    return [segment.start for segment in segment_text(text, granularity)[1:]]


def readers() -> None:
    """Print how near boundaries and kinds come to two readers, and what exits they offer."""
    validated = learn.cross_validated()
    scored = [one for _, one in validated.values()]
    opened = [openings(one.sentences, weights) for weights, one in validated.values()]
    found = {
        "pattern": [
            [one.sentences[each.sentence].start for each in own]
            for own, one in zip(opened, scored, strict=True)
        ],
        "rules": [ruled(one.text) for one in scored],
        "cue": [cut(one.text, "cue") for one in scored],
        "reader a": [learn.offsets(one, "a") for one in scored],
    }
    for within in (12, 120):
        for name, starts in found.items():
            parts = []
            for reader in "b" if name == "reader a" else "ab":
                read = [learn.offsets(one, reader) for one in scored]
                result = learn.score(list(zip(starts, read, strict=True)), within)
                parts.append(
                    f"{reader}: F1 {result.f1:.3f}, precision {result.precision:.3f}, "
                    f"recall {result.recall:.3f}"
                )
            print(f"{name} within {within}: {'; '.join(parts)}")
    print("thresholds", sorted({weights.threshold for weights, _ in validated.values()}))
    kinds = [{each.sentence: each.kind for each in own} for own in opened]
    for name, reader in (("pattern", "a"), ("pattern", "b"), ("reader a", "b")):
        same = [
            kind == one.readers[reader][sentence]
            for own, one in zip(kinds, scored, strict=True)
            for sentence, kind in (one.readers["a"] if name == "reader a" else own).items()
            if sentence in one.readers[reader]
        ]
        print(f"kinds, {name} and {reader}: the same at {sum(same)} of {len(same)}, "
              f"{sum(same) / len(same):.3f}")  # fmt: skip
    answers = Path(learn.LABELS).with_name("answers.jsonl").read_text(encoding="utf-8")
    at = {row["row"]: row["at"] for row in map(json.loads, answers.splitlines())}
    for name, starts in found.items():
        cases = [(own, at[one.row]) for own, one in zip(starts, scored, strict=True)
                 if one.row in at]  # fmt: skip
        exits(f"{name}, real traces", cases)


def exits(name: str, cases: Sequence[tuple[Sequence[int], int]]) -> None:
    """Print what lies before the first boundary at or after a place; nothing after it: the end."""
    before = [bisect_left(starts, place) for starts, place in cases]
    late = [
        starts[number] - place
        for number, (starts, place) in zip(before, cases, strict=True)
        if number < len(starts)
    ]
    print(
        f"{name}: first boundary after the answer {statistics.median(late):.0f} characters "
        f"behind it (mean {statistics.mean(late):.0f}), {statistics.mean(before):.1f} boundaries "
        f"before; "
        f"none behind it in {len(cases) - len(late)} of {len(cases)}"
    )


def chains(count: int = 300) -> None:
    """Print the same for thinking that dto.nano writes."""
    source = random.Random(0)
    cases: dict[str, list[tuple[list[int], int]]] = {"pattern": [], "rules": [], "cue": []}
    written = random_chains("test", source)
    while len(cases["cue"]) < count:
        chain = next(written)
        text = think(chain, OVERTHINKING, source).text
        right = f"So the last digit is {chain.answer}."
        if right in text:
            place = text.index(right) + len(right)
            cases["pattern"].append((cut(text, "pattern"), place))
            cases["rules"].append((ruled(text), place))
            cases["cue"].append((cut(text, "cue"), place))
    for name, each in cases.items():
        exits(f"{name}, nano's chains", each)


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
    chains()
    if learn.SHARED.is_dir():
        readers()


if __name__ == "__main__":
    main()
