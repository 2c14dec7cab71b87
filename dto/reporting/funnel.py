"""What became of the rows on their way: nothing is dropped in silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import polars as pl

from dto.pipeline import STAGES
from dto.recipe import EstimateSettings, Recipe
from dto.records import STAYS, VerdictKind
from dto.redact import failure_kind
from dto.reporting.page import Section
from dto.reporting.table import Table, counted
from dto.runs.reader import RunReader
from dto.sequential import zone
from dto.statistics import Estimate, cohen_kappa, proportion, shown
from dto.tables import json_lines
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
    "trajectories": "trajectories",
    "ungraded": "responses without a grade",
    "boundaries": "boundaries against the threshold",
    "verdicts": "thinking patterns by verdict",
    "prunes": "prunes after fresh rollouts",
    "optimized": "optimized trajectories",
    "pairs": "pairs by what is rejected",
}
"""What the counts of a funnel are."""


def verdict_counts(run: RunReader) -> dict[str, dict[str, int]]:
    """Patterns by verdict; of those that were to go, how many are gone or had to be restored."""
    if not run.table("prune").is_file():
        return {}
    found = _exploded(run.frame("prune"), "verdicts").group_by("verdict", "pruned").len().collect()
    kinds: Counter[str] = Counter()
    fates: Counter[str] = Counter()
    for kind, pruned, count in found.iter_rows():
        kinds[kind] += count
        if kind not in STAYS:
            fates["verified" if pruned else "restored"] += count
    return {
        "verdicts": {kind: kinds[kind] for kind in VERDICTS if kinds[kind]},
        "prunes": dict(sorted(fates.items(), reverse=True)),
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


def funnel(run: RunReader) -> dict[str, Any]:
    """Counts of rows by stage, by grade and outcome, and of dropped rows by reason.

    `given_up` has by stage and reason the answers that are wrong because comparing them exceeded a
    limit, those of rollouts and trials too.
    """
    rows: dict[str, int] = {}
    dropped: dict[str, dict[str, int]] = {}
    given_up: dict[str, dict[str, int]] = {}
    for name, stage in STAGES.items():
        done = run.manifest(name)
        if done is None:
            continue
        if done.get("given_up"):
            given_up[name] = dict(done["given_up"])
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
        "given_up": given_up,
        "ungraded": _ungraded(run),
        "boundaries": _counts(run, "estimate", "decision"),
        **verdict_counts(run),
        "agreement": agreement(run),
        "optimized": _counts(run, "prune", "outcome") or _counts(run, "optimize", "outcome"),
        "pairs": _counts(run, "pair", "rejected_from"),
        "dropped": dropped,
        "near_duplicates": _near_duplicates(run),
    }


def training(run: RunReader) -> dict[str, Any] | None:
    """How training went: dev scores of the base and of what was kept, and why that one."""
    done, history = run.manifest("train"), json_lines(run / "train" / "history.jsonl")
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


def _ungraded(run: RunReader) -> dict[str, int]:
    """Responses graded `failed`, by what may be told of why."""
    counts: Counter[str] = Counter()
    for stage in ("sample", "evaluate"):
        if run.table(stage).is_file():
            failed = run.frame(stage, "grade", "reason").filter(grade="failed").collect()
            counts.update(map(failure_kind, failed["reason"]))
    return dict(sorted(counts.items()))


def _counts(run: RunReader, stage: str, column: str) -> dict[str, int]:
    if not run.table(stage).is_file():
        return {}
    groups = run.frame(stage).group_by(column).len().sort(column).collect()
    return dict(groups.iter_rows())


def right(score: Mapping[str, Any]) -> Estimate:
    """The share of held-out chains that were judged right, of what training recorded."""
    responses = int(score["responses"])
    return Estimate(score["accuracy"], score["low"], score["high"], responses, responses)


def funnel_section(
    funnel: Mapping[str, Any], training: Mapping[str, Any] | None, recipe: Recipe
) -> Section:
    """Rows by stage, and every reason for which one was dropped."""
    stages = [
        (stage, funnel["rows"].get(stage), sum(reasons.values()), _why(reasons))
        for stage in dict.fromkeys((*funnel["rows"], *funnel["dropped"]))
        for reasons in [funnel["dropped"].get(stage, {})]
    ]
    counts = {name: funnel[key] for key, name in KINDS.items() if funnel.get(key)}
    counts |= {f"answers given up at {stage}": row for stage, row in funnel["given_up"].items()}
    kinds = [
        (name, sum(row.values()), counted(row).replace("_", " ")) for name, row in counts.items()
    ]
    tables = [Table("", ("stage", "rows", "dropped", "why"), tuple(stages), wide=True)]
    if kinds:
        tables.append(Table("", ("rows", "all", "of them"), tuple(kinds), wide=True))
    facts = []
    if training is not None:
        facts.append(trained(training))
    if copies := funnel["near_duplicates"]:
        facts.append(near_copies(copies))
    if agreed := funnel["agreement"]:
        facts.append(
            f"The judges agree on whether {agreed['patterns']:,} patterns of "
            f"{agreed['trajectories']:,} trajectories may go: on {agreed['rate']:%} % of them, "
            f"Cohen's kappa {agreed['kappa']:.2f…}."
        )
        tables.append(_agreement_table(agreed["table"]))
    notes = [_stated_error(recipe.estimate)] if funnel["boundaries"] else []
    if funnel["given_up"]:
        notes.append("Answers are given up if comparing them exceeds a limit: they count as wrong. "
                     "If their own answer rule fails (rule …), they have no grade.")  # fmt: skip
    return Section(
        "funnel",
        "What became of the rows",
        ("Nothing is dropped in silence: each row that ended on its way has a reason, and stands "
         "with it in the stage's dropped.jsonl.",),
        tables=tuple(tables),
        facts=tuple(facts),
        notes=tuple(notes),
    )  # fmt: skip


def _why(reasons: Mapping[str, int]) -> str:
    return "; ".join(
        f"{count:,} {reason}" + (f" ({DROPPED[reason]})" if reason in DROPPED else "")
        for reason, count in reasons.items()
    )


def trained(training: Mapping[str, Any]) -> str:
    """How training went, on the dev problems."""
    base, kept = training["base"], training["kept"]
    accuracy, tokens = (
        f"{shown(base[name], spec)} to {shown(kept[name], spec)}"
        for name, spec in (("accuracy", "%"), ("tokens_mean", ",.0f"))
    )
    text: str = (
        f"Training took {training['steps']:,} steps. On the dev problems, by which step "
        f"{kept['step']:,} was picked, accuracy went from {accuracy} %, tokens from {tokens}: what "
        "is picked is flattered by it, the test problems are not."
    )
    if training["collapsed"]:
        text += " It collapsed."
    if groups := training["groups"]:
        share = groups["flat"] / groups["groups"] if groups["groups"] else None
        text += (
            f" Of {groups['groups']:,} groups of responses {shown(share, '%')} % had no advantage: "
            "all of their rewards were equal."
        )
    return text


def near_copies(counts: Mapping[str, int]) -> str:
    """How many problems may have leaked from one split into another."""
    parts = counted({f"of {split}": count for split, count in counts.items()})
    return (
        f"Problems that repeat half or more of a question of another split: {parts}. Their "
        "metadata names it; set problems.near_duplicates to drop to leave them out."
    )


def _agreement_table(counts: Mapping[str, Mapping[str, int]]) -> Table:
    """The llm judge's verdicts by those of the counterfactual judge on the same patterns."""
    columns = sorted({name for row in counts.values() for name in row})
    return Table(
        "",
        ("llm \\ counterfactual", *columns),
        tuple((name, *(row.get(other, 0) for other in columns)) for name, row in counts.items()),
    )


def _stated_error(settings: EstimateSettings) -> str:
    """What the decisions at boundaries say, and what they do not."""
    flattered = "the exit that is chosen for a high share is flattered by it."
    if settings.method == "fixed":
        return (
            f"A boundary is above when a share of more than {settings.threshold:g} of "
            f"{settings.rollouts} rollouts is right: no error is stated, and {flattered}"
        )
    low, high = zone(settings.threshold, settings.margin, settings.error, settings.cap)
    scan = "over many boundaries errors add up; estimate.error_scan bounds them together"
    if settings.error_scan is not None:
        scan = (
            f"a trajectory whose boundaries are all at {low:g} or less passes at any of them with "
            f"probability {settings.error_scan:g} at most"
        )
    return (
        f"A boundary is above or below by a test with error {settings.error:g} at each boundary, "
        f"against {low:g} and {high:g}, and of what lies between it says nothing; {scan}; and "
        f"{flattered}"
    )
