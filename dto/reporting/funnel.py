"""What became of the rows on their way: nothing is dropped in silence."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap
from typing import Any

import polars as pl

from dto.pipeline import STAGES
from dto.recipe import EstimateSettings, Recipe
from dto.records import GIVEN_UP, STAYS, VerdictKind
from dto.reporting.page import Section
from dto.reporting.table import Table, counted
from dto.runs.reader import RunReader
from dto.sequential import zone
from dto.statistics import Estimate, cohen_kappa, proportion, shown
from dto.tasks.load import NEAR_DUPLICATE

VERDICTS: tuple[VerdictKind, ...] = ("keep", "redundant", "meaningless", "harmful", "unjudged")
DROPPED = {
    "answer_not_reached": "the chain does not come to its answer",
    "answered_twice": "the answers to the question differ",
    "duplicate": "the question is already there (case and spaces ignored)",
    "empty_response": "one side of the pair holds no tokens",
    "empty_thinking": "the response did not think",
    "empty": "nothing was thought about the question",
    "error": "the row raised an error",
    "extra_number": "more questions are numbered than were asked",
    "failed": "the engine or the grader failed",
    "foreign_tags": "the thinking is marked with another model's tags (model.think)",
    "identical": "optimizing changed nothing, so both sides are the same",
    "interleaved": "the question is taken up more than once",
    "left_over": "the questions are no multiple of k",
    "near_duplicate": "half or more of the question is one of another split",
    "names_a_question": "it names a question by number, as only batch chains have to",
    "no_answer": "no answer has the question's number",
    "no_correct_finalization": "no conclusion at the exit was right",
    "no_exit": "no boundary passed the threshold",
    "no_heading": "the thinking does not turn to the question by name",
    "no_pair": "no two samples make a pair",
    "no_room": "the context leaves no room for a conclusion",
    "not_shorter": "the chosen side is not shorter, and both are right",
    "over_limit": "the problem has enough pairs",
    "over_longer_correct": "the problem has enough pairs of longer correct over shorter wrong",
    "prompt_too_long": "the prompt fills the context",
    "quotes_another": "it names or quotes another question",
    "runs_on": "the thinking does not turn to the next question by name",
    "shared_reasoning": "much of the thinking belongs to no question",
    "surplus": "the classes are balanced",
    "too_long": "longer than the recipe's limit",
    "truncated": "the response ran out of tokens",
    "unnumbered": "the answers cannot be told apart",
    "unreadable_gold": "the gold answer cannot be read",
    "unreadable_row": "the row of the source cannot be read",
}
"""What the reasons mean that stages drop rows for."""

KINDS = {
    "trajectories": "trajectories, by grade",
    "ungraded": "responses without a grade, by reason",
    "given_up": "answers graded wrong because comparing them exceeded a limit",
    "boundaries": "boundaries, by the chance of a right answer against the threshold",
    "verdicts": "thinking patterns, by the judge's verdict",
    "prunes": "prunes, after fresh rollouts",
    "optimized": "optimized trajectories, by what became of them",
    "pairs": "pairs, by what is rejected",
}
"""What the counts of a funnel are."""


def verdicts(run: RunReader) -> dict[str, dict[str, int]]:
    """Patterns by verdict; of those that were to go, how many are gone or had to be restored."""
    if not run.table("prune").is_file():
        return {}
    found = _exploded(run.frame("prune"), "verdicts")
    by_kind = {
        (kind, pruned): n for kind, pruned, n in found.group_by("verdict", "pruned").len()
        .collect().iter_rows()
    }  # fmt: skip
    kinds = {
        kind: by_kind.get((kind, True), 0) + by_kind.get((kind, False), 0) for kind in VERDICTS
    }
    fates = {
        fate: sum(by_kind.get((kind, gone), 0) for kind in VERDICTS if kind not in STAYS)
        for fate, gone in (("verified", True), ("restored", False))
    }
    return {
        "verdicts": {kind: count for kind, count in kinds.items() if count},
        "prunes": {fate: count for fate, count in fates.items() if count},
    }


def agreement(run: RunReader) -> dict[str, Any] | None:
    """How far the llm judge agrees with the counterfactual estimate; None where none was made.

    Over the patterns of which both gave a verdict, whether it may go: the share of equal answers
    and Cohen's kappa, with intervals clustered by problem, since trajectories of a problem are
    alike. `table` counts all their verdicts.
    """
    if not run.table("prune").is_file():
        return None
    rows = run.frame("prune")
    if "counterfactual" not in rows.collect_schema().names():
        return None
    both = (
        _exploded(rows, "verdicts")
        .join(_exploded(rows, "counterfactual"), on=("problem_id", "id", "segment"), suffix="_too")
        .filter(pl.col("verdict") != "unjudged", pl.col("verdict_too") != "unjudged")
        .select("problem_id", "id", "verdict", "verdict_too")
        .sort("id")
        .collect()
    )
    if both.is_empty():
        return None
    first, second, problems = (
        both[name].to_list() for name in ("verdict", "verdict_too", "problem_id")
    )
    goes, goes_too = (["stays" if kind == "keep" else "goes" for kind in kinds]
                      for kinds in (first, second))  # fmt: skip
    pairs = both.group_by("verdict", "verdict_too").len()
    return {
        "patterns": len(both),
        "trajectories": both["id"].n_unique(),
        "rate": proportion([a == b for a, b in zip(goes, goes_too, strict=True)], problems),
        "kappa": cohen_kappa(goes, goes_too, problems),
        "table": {
            kind: {other: n for _, other, n in sorted(pairs.filter(verdict=kind).rows())}
            for kind in VERDICTS
            if kind in first
        },
    }


def _exploded(rows: pl.LazyFrame, column: str) -> pl.LazyFrame:
    """One row for each verdict, without its reason."""
    each = rows.select("problem_id", "id", column).explode(column).drop_nulls(column)
    fields = ("segment", "verdict", "pruned")
    return each.select("problem_id", "id", *(pl.col(column).struct.field(f) for f in fields))


_SLUG = re.compile(r"(?:grader|sandbox|unreadable|no)_\w+(?:: \w+)*")
"""A grader's reason; an engine's is a sentence."""


def funnel(run: RunReader) -> dict[str, Any]:
    """Counts of rows by stage, by grade and outcome, and of dropped rows by reason."""
    rows: dict[str, int] = {}
    dropped: dict[str, dict[str, int]] = {}
    given_up = {name: counts for name in STAGES if (counts := _given_up(run, name))}
    for name, stage in STAGES.items():
        done = run.manifest(name)
        if done is None:
            continue
        # A stage that works as a whole has no table: its manifest counts no reasons.
        reasons = dict(done.get("dropped") or {})
        if stage.whole is None:
            rows[name] = int(done["rows"])
        else:
            reasons = dict(sorted(Counter(row.reason for row in run.dropped(name)).items()))
        if reasons:
            dropped[name] = reasons
    return {
        "rows": rows,
        "trajectories": _counts(run, "sample", "grade"),
        "given_up": dict(sorted(sum(map(Counter, given_up.values()), Counter[str]()).items())),
        "given_up_at": given_up,
        "ungraded": _ungraded(run),
        "boundaries": _counts(run, "estimate", "decision"),
        **verdicts(run),
        "agreement": agreement(run),
        "optimized": _counts(run, "prune", "outcome") or _counts(run, "optimize", "outcome"),
        "pairs": _counts(run, "pair", "rejected_from"),
        "dropped": dropped,
        "near_duplicates": _near_duplicates(run),
    }


def training(run: RunReader) -> dict[str, Any] | None:
    """How training went: dev scores of the base and of what was kept, and why that one."""
    done = run.manifest("train")
    try:
        history = json_lines(run / "train" / "history.jsonl")
    except FileNotFoundError:
        return None
    if done is None or not history:
        return None
    kept_step = int(done.get("kept_step", 0))
    kept = next((score for score in history if score["step"] == kept_step), history[0])
    return {
        "base": history[0],
        "kept": kept,
        "steps": int(done.get("steps", 0)),
        "collapsed": bool(done.get("collapsed", False)),
        "reason": str(done.get("reason", "")),
        "judging": done.get("judging"),
        "groups": done.get("groups"),
    }


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, one a line.

    A line ends at a line feed alone, not at U+2028, U+2029 or U+0085 as for `splitlines`: a text
    may hold these.
    """
    with path.open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def _near_duplicates(run: RunReader) -> dict[str, int]:
    """By split, the problems that are near copies of those of another."""
    frames = [
        run.frame(stage)
        .filter(pl.col("metadata").str.contains(f'"{NEAR_DUPLICATE}":', literal=True))
        .select("split")
        for stage in ("problems", "test")
        if run.table(stage).is_file()
    ]
    if not frames:
        return {}
    return dict(pl.concat(frames).collect()["split"].value_counts().sort("split").iter_rows())


def _given_up(run: RunReader, stage: str) -> dict[str, int]:
    """Answers that are wrong because comparing them exceeded a limit, by its reason.

    A stage counts them in its manifest, those of rollouts and trials too; where an earlier version
    wrote that, the rows with a reason of their own are counted.
    """
    done = run.manifest(stage) or {}
    if "given_up" in done:
        return dict(done["given_up"])
    return _reasons(
        run, stage, pl.col("grade") == "wrong", pl.col("reason").str.starts_with(GIVEN_UP)
    )


def _ungraded(run: RunReader) -> dict[str, int]:
    """Responses graded `failed`, by the grader's reason; `engine` is any of an engine's own."""
    counts: Counter[str] = Counter()
    for stage in ("sample", "evaluate"):
        for reason, count in _reasons(run, stage, pl.col("grade") == "failed").items():
            counts[reason if _SLUG.fullmatch(reason) else "engine"] += count
    return dict(sorted(counts.items()))


def _reasons(run: RunReader, stage: str, *conditions: pl.Expr) -> dict[str, int]:
    table = run.table(stage)
    if not table.is_file() or not {"grade", "reason"} <= set(pl.read_parquet_schema(table)):
        return {}
    groups = run.frame(stage).filter(*conditions).group_by("reason").len().collect()
    return dict(sorted(groups.iter_rows()))


def _counts(run: RunReader, stage: str, column: str) -> dict[str, int]:
    if not run.table(stage).is_file():
        return {}
    groups = run.frame(stage).group_by(column).len().sort(column).collect()
    return dict(groups.iter_rows())


def funnel_lines(funnel: Mapping[str, Any], training: Mapping[str, Any] | None) -> list[str]:
    """For a terminal: how many rows went which way, and how training went."""
    kinds = ("trajectories", "ungraded", "boundaries", "verdicts", "prunes", "optimized", "pairs")
    lines = [
        _line(kind, sum(counts.values()), counted(counts))
        for kind in kinds
        if (counts := funnel.get(kind))
    ]
    for name, by_stage in (("dropped", "dropped"), ("given up", "given_up_at")):
        for stage, counts in (funnel.get(by_stage) or {}).items():
            lines.append(_line(name, sum(counts.values()), f"at {stage}: {counted(counts)}"))
    if copies := funnel.get("near_duplicates"):
        lines += wrap(near_copies(copies), 100)
    if training is not None:
        accuracy, tokens = _on_dev(training)
        how = "; collapsed" if training["collapsed"] else ""
        lines.append(
            _line(
                "training",
                training["steps"],
                f"steps; dev accuracy {' → '.join(accuracy)} %, tokens {' → '.join(tokens)} at "
                f"step {training['kept']['step']}{how}",
            )
        )
        lines += _judging_lines(training)
    if agreed := funnel.get("agreement"):
        lines += ["", *_agreement_table(agreed).text().splitlines()]
    return lines


def _line(name: str, count: int, text: str) -> str:
    return f"{name:<12} {count:>7,}   {text}"


def _on_dev(training: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Accuracy and tokens on the dev problems, of the base and of what was kept."""
    scores = [training[model] for model in ("base", "kept")]
    return (
        [shown(score["accuracy"], "%") for score in scores],
        [shown(score["tokens_mean"], ",.0f") for score in scores],
    )


def near_copies(counts: Mapping[str, int]) -> str:
    """How many problems may have leaked from one split into another."""
    parts = counted({f"of {split}": count for split, count in counts.items()})
    return (
        f"Problems that repeat half or more of a question of another split: {parts}. Their "
        "metadata names it; set problems.near_duplicates to drop to leave them out."
    )


def _judging_lines(training: Mapping[str, Any]) -> list[str]:
    """Groups without advantage, and how held-out chains were judged before and after."""
    lines = []
    judging = training.get("judging")
    if groups := training.get("groups"):
        share = groups["flat"] / groups["groups"] if groups["groups"] else None
        text = f"of responses to train on; {shown(share, '%')} % without advantage"
        if judging:
            text += f", {groups['unreadable']:,} responses without a letter"
        lines.append(_line("groups", groups["groups"], text))
    if judging:
        before, kept = judging["before"], judging["kept"]
        text = (
            f"judgements of held-out chains; right {right(before):%} → {right(kept):%} %, "
            f"{before['unreadable']:,} → {kept['unreadable']:,} without a letter"
        )
        lines.append(_line("judging", kept["responses"], text))
        recall = ", ".join(
            f"{name} {shown(before['recall'].get(name), '%')} → {shown(share, '%')}"
            for name, share in kept["recall"].items()
        )
        lines.append(f"{'':<12} {'':>7}   right by label: {recall} %")
    return lines


def right(score: Mapping[str, Any]) -> Estimate:
    """The share of held-out chains that were judged right, of what training recorded."""
    responses = int(score["responses"])
    return Estimate(score["accuracy"], score["low"], score["high"], responses, responses)


def _agreement_table(agreed: Mapping[str, Any]) -> Table:
    """The llm judge's verdicts by those of the counterfactual judge on the same patterns."""
    counts = agreed["table"]
    columns = sorted({name for row in counts.values() for name in row})
    return Table(
        f"The judges agree on whether {agreed['patterns']:,} patterns of "
        f"{agreed['trajectories']:,} trajectories may go:\n"
        f"rate % {agreed['rate']:%}, Cohen's kappa {agreed['kappa']:.2f…}",
        ("llm \\ counterfactual", *columns),
        tuple((name, *(row.get(other, 0) for other in columns)) for name, row in counts.items()),
    )


def funnel_section(
    funnel: Mapping[str, Any], training: Mapping[str, Any] | None, recipe: Recipe
) -> Section:
    """Rows by stage, and every reason for which one was dropped."""
    kept = Table(
        "",
        ("stage", "rows", "dropped", "why"),
        tuple(
            (
                stage,
                funnel["rows"].get(stage),
                sum(reasons.values()),
                "; ".join(
                    f"{count:,} {reason}" + (f" ({DROPPED[reason]})" if reason in DROPPED else "")
                    for reason, count in reasons.items()
                ),
            )
            for stage in dict.fromkeys((*funnel["rows"], *funnel["dropped"]))
            for reasons in [funnel["dropped"].get(stage, {})]
        ),
        wide=True,
    )
    kinds = tuple(
        (
            KINDS[key],
            sum(counts.values()),
            counted(counts).replace("_", " "),
        )
        for key in KINDS
        if (counts := funnel.get(key))
    )
    tables = [kept]
    if kinds:
        tables.append(Table("", ("rows", "all", "of them"), kinds, wide=True))
    notes = []
    if training is not None:
        accuracy, tokens = _on_dev(training)
        notes.append(
            f"Training took {training['steps']:,} steps. On the dev problems, by which step "
            f"{training['kept']['step']:,} was picked, accuracy went from {accuracy[0]} to "
            f"{accuracy[1]} %, tokens from {tokens[0]} to {tokens[1]}: what is picked is flattered "
            "by it, the test problems above are not." + " It collapsed." * training["collapsed"]
        )
    if given_up := funnel.get("given_up_at"):
        parts = ", ".join(f"{sum(each.values()):,} at {stage}" for stage, each in given_up.items())
        notes.append(f"Answers that the grader gave up to compare count as wrong: {parts}.")
    if copies := funnel.get("near_duplicates"):
        notes.append(near_copies(copies))
    if funnel.get("boundaries"):
        notes.append(_stated_error(recipe.estimate))
    if agreed := funnel.get("agreement"):
        notes.append(
            f"The llm judge and the counterfactual one agree on {agreed['rate']:%} % of "
            f"{agreed['patterns']:,} patterns; Cohen's kappa {agreed['kappa']:.2f…}."
        )
    return Section(
        "funnel",
        "What became of the rows",
        ("Nothing is dropped in silence: each row that ended on its way has a reason, and stands "
         "with it in the stage's dropped.jsonl.",),
        tables=tuple(tables),
        notes=tuple(notes),
    )  # fmt: skip


def _stated_error(settings: EstimateSettings) -> str:
    """What the decisions at boundaries say, and what they do not."""
    if settings.method == "fixed":
        return (
            f"A boundary is above when a share of more than {settings.threshold:g} of "
            f"{settings.rollouts} rollouts is right: no error is stated, and the exit that is "
            "chosen for a high share is flattered by it."
        )
    low, high = zone(settings.threshold, settings.margin, settings.error, settings.cap)
    text = (
        f"A boundary is above or below by a test with error {settings.error:g} at each boundary, "
        f"against {low:g} and {high:g}: a chance of a right answer of at most {low:g} passes with "
        f"no more than that probability, one of at least {high:g} is refused with no more. Of what "
        "lies between it says nothing."
    )
    if settings.error_scan is None:
        return text + (
            " Over a trajectory of many boundaries errors add up; estimate.error_scan bounds them "
            "together. The exit that is chosen for a high share is flattered by it."
        )
    return text + (
        f" A trajectory whose boundaries are all at {low:g} or less passes at any of them with "
        f"probability {settings.error_scan:g} at most. The exit that is chosen for a high share is "
        "flattered by it."
    )
