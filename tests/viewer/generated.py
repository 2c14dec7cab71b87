"""Runs of any size that no model wrote, and the texts that displays have to survive."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from dto import tables
from dto.records import (
    EvaluationRow,
    ExitEstimate,
    OptimizedTrajectory,
    PreferencePair,
    Problem,
    Segment,
    Span,
    Trajectory,
    Trial,
    Verdict,
)

WORDS = re.findall(
    r"\w+",
    "the number so we have that then sum of root square angle triangle modulo prime factor equals "
    "hence divide both sides by two and three which gives value check again case where integer "
    "possible solution equation substitute let us compute term sequence first last digit circle",
)
CUES = {"verification": "Wait", "alternative": "Alternatively", "hypothesis": "Suppose",
        "summary": "To sum up"}  # fmt: skip
HOSTILE = {
    "script": "</script><script>alert(1)</script><img src=x onerror=alert(2)>",
    "comment": "<!--<script>--><!-- ]]> &lt;b&gt; &amp; &#60; <svg onload=alert(3)>",
    "attribute": '" onmouseover="alert(4)" x=\'',
    "template": "{{7*7}} ${7*7} <%= 7 %> {% raw %} $title $$ $ {",
    "link": "[x](javascript:alert(5)) <a href=javascript:alert(6)>click</a>",
    "right-to-left": "לחשב את הסכום 12 + 7 = 19. ثم نتحقق من الجواب (19).",
    "override": "abc\u202egnp.exe\u202c end \u2066isolate\u2069",
    "control": "bell\x07 escape\x1b[31m red\x1b[0m null\x00 delete\x7f next\x85 return\r\n end",
    "emoji": "👩‍👩‍👧‍👦 🇺🇳 👍🏽 e\u0301 한국어 中文 \U0001f9ee",
    "space": "zero\u200bwidth \ufeff bom \u2028 line \u2029 paragraph \xad hyphen",
}


def write(
    run: Path, problems: int, samples: int = 4, segments: int = 10, sentences: int = 8,
    texts: dict[str, str] | None = None, evaluated: bool = True,
) -> list[str]:  # fmt: skip
    """A run's tables, and the ids of its trajectories; `texts` stand in the first rows."""
    rng = random.Random(0)
    given = list((texts or {}).values())
    asked = sorted(
        (_problem(number, given, "train") for number in range(problems)), key=lambda row: row.id
    )
    place = {text: number for number, text in enumerate(given)}
    rows: dict[str, list] = {stage: [] for stage in STAGES}
    rows["problems"] = asked
    for problem in asked:
        for sample in range(samples):
            text = given[place[problem.question]] if problem.question in place else ""
            _trajectory(rows, problem, sample, segments, sentences, text, rng)
    if evaluated:
        rows["evaluate"] = sorted(_answers(asked, samples, given, rng), key=lambda row: row.id)
    for stage, record in STAGES.items():
        if rows[stage]:
            (run / stage).mkdir(parents=True, exist_ok=True)
            tables.write(run / stage / "rows.parquet", record, rows[stage])
    (run / "recipe.yaml").write_text("name: generated\n")
    return [row.id for row in rows["sample"]]


STAGES = {
    "problems": Problem, "sample": Trajectory, "segment": Segment, "estimate": ExitEstimate,
    "prune": OptimizedTrajectory, "pair": PreferencePair, "evaluate": EvaluationRow,
}  # fmt: skip


def _problem(number: int, given: list[str], split: str) -> Problem:
    question = given[number] if number < len(given) else f"Question {number}: how many are there?"
    answer = given[number] if number < len(given) else str(number % 100)
    return Problem(Problem.make_id("sums", question, answer), "sums", split, question, answer)


@lru_cache(4_096)  # rows of a large run share them
def _ids(count: int) -> tuple[int, ...]:
    return tuple(range(count))


def _trajectory(
    rows: dict[str, list], problem: Problem, sample: int, segments: int, sentences: int,
    text: str, rng: random.Random,
) -> None:  # fmt: skip
    own = Trajectory.make_id(problem.id, sample)
    kinds = ["opening", *rng.choices(list(CUES), k=segments - 1)]
    pieces = [
        (f"{CUES.get(kind, 'Okay')}, {text} " if text else f"{CUES.get(kind, 'Okay')}, ")
        + " ".join(" ".join(rng.choices(WORDS, k=12)) + "." for _ in range(sentences)) + "\n\n"
        for kind in kinds
    ]  # fmt: skip
    thinking = "".join(pieces)
    conclusion = f"\n\nIt is \\boxed{{{problem.answer}}}. {text}"
    correct = sample % 3 != 2
    whole = f"{thinking}</think>{conclusion}"
    rows["sample"].append(
        Trajectory(
            own, problem.id, "generated", sample, 0, (1, 2), _ids(len(whole) // 4),
            "sampled", whole, Span(0, len(thinking)), Span(len(thinking) + 8, len(whole)),
            Span(0, len(thinking) // 4), "stop", "correct" if correct else "wrong",
            problem.answer if correct else f"not {text or 'it'}",
        )
    )  # fmt: skip
    start, leave = 0, 2 + sample % max(1, segments - 2)
    for index, (kind, piece) in enumerate(zip(kinds, pieces, strict=True)):
        chars = Span(start, start + len(piece))
        tokens = Span(chars.start // 4, chars.end // 4)
        start = chars.end
        row_id = Segment.make_id(own, index)
        rows["segment"].append(
            Segment(row_id, own, index, tokens, chars, tokens.end, CUES.get(kind, ""), kind)
        )
        if index <= leave:
            p = 0.9 if index == leave else 0.2
            rows["estimate"].append(
                ExitEstimate(row_id, own, index, 16, round(16 * p), 0, 0, p, p - 0.15,
                             min(1, p + 0.15),
                              "above" if p > 0.5 else "below", 96)
            )  # fmt: skip
    if sample == 1:
        return  # no exit was found
    kept = tuple(index for index in range(leave + 1) if index != 1)
    shorter = "".join(pieces[index] for index in kept).rstrip()
    version = f"{shorter}\n\nDone.\n</think>{conclusion}"
    before, after = len(whole) // 4, len(version) // 4
    verdict = Verdict(1, "redundant", 0.0, True, f"p 0.90 with it, 0.90 without {text}")
    rows["prune"].append(
        OptimizedTrajectory(
            own, own, problem.id, leave, kept, _ids(after), version,
            Span(0, len(shorter) + 8), Span(0, len(shorter) // 4), problem.answer, 1.0, before,
            after, 4e6 * before**2, 4e6 * after**2, "shortened" if correct else "repaired",
            (verdict,), 0.95, 1.4, verified_rollouts=20,
        )
    )  # fmt: skip
    rows["pair"].append(
        PreferencePair(
            f"{own}/original/{sample:03d}", problem.id, own, problem.question, version, whole, own,
            own, "optimized", "original", 20, after, before,
        )
    )  # fmt: skip


def _answers(
    asked: list[Problem], samples: int, given: list[str], rng: random.Random
) -> Iterator[EvaluationRow]:
    for number, problem in enumerate(asked):
        for sample in range(samples):
            for name in ("none", "deer"):
                row_id = EvaluationRow.make_id("base", name, problem.id, sample)
                early = name == "deer"
                long = 400 + rng.randrange(400)
                answer = given[number] if number < len(given) else problem.answer
                own = random.Random(1000 * number + sample)  # every exit follows the same thinking
                steps = (" ".join(own.choices(WORDS, k=11)) for _ in range(12))
                thinking = f"{answer[:5_000]} " + "\n\n".join(steps)
                places = [thinking.index("\n\n", 60 * step) for step in range(1, 4)]
                trials = tuple(
                    Trial(60 * step, 0.3 * step, answer, "wrong" if step < 3 else "correct", 5,
                          (1, 2, 3, 4, 5), f"\\boxed{{{answer}}}", place)
                    for step, place in enumerate(places, 1)
                )  # fmt: skip
                end = trials[-1].char if early else len(thinking)
                kept, closed = thinking[:end], len("\n</think>\n\n") if early else 0
                said = f"It is \\boxed{{{answer}}}."
                text = f"{kept}\n</think>\n\n{said}"
                yield EvaluationRow(
                    row_id, "base", name, problem.id, sample, 0,
                    "correct" if early or sample % 2 else "wrong", answer, "",
                    "policy" if early else "closed", 180 if early else long, 12,
                    15 if early else 0, 207 if early else long + 12, 40, 1e9,
                    trials if early else (), 2 if early else -1, 2e9,
                    tuple(range(len(text) // 4)), Span(end // 4, (end + closed) // 4), text,
                    Span(0, end), Span(end, end + closed), Span(len(text) - len(said), len(text)),
                )  # fmt: skip
