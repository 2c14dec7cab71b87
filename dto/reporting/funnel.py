"""Rows kept and dropped by each stage, with a reason for every dropped row."""

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
from dto.reporting.table import Table, join_counts
from dto.runs.reader import RunReader
from dto.sequential import zone
from dto.statistics import Estimate, cohen_kappa, proportion, shown
from dto.tasks import summary
from dto.tasks.load import NEAR_DUPLICATE
from dto.training.train import json_lines

VERDICTS: tuple[VerdictKind, ...] = ("keep", "redundant", "meaningless", "harmful", "unjudged")
DROPPED = {
    "answer_not_reached": "the chain does not reach its answer",
    "answered_twice": "the answers to the question differ",
    "duplicate": "the question occurs twice (case and spaces ignored)",
    "empty_response": "one side of the pair has no tokens",
    "empty_thinking": "the response has no thinking",
    "empty": "no thinking belongs to the question",
    "error": "the row raised an error",
    "extra_number": "the answer numbers more questions than were asked",
    "failed": "the engine or the grader failed",
    "foreign_tags": "the thinking is marked with another model's tags (model.think)",
    "identical": "optimizing changed nothing, so both sides are the same",
    "interleaved": "the thinking returns to the question after another one",
    "left_over": "the number of questions is not a multiple of k",
    "near_duplicate": "at least half of the question repeats one of another split",
    "names_a_question": "the chain names a question by number, which only batch prompts need",
    "no_answer": "no answer has the number of the question",
    "no_correct_finalization": "no conclusion at the exit was right",
    "no_exit": "no boundary passed the threshold",
    "no_heading": "no heading in the thinking starts the question",
    "no_pair": "no two samples make a pair",
    "no_room": "the context leaves no room for a conclusion",
    "not_shorter": "both sides are right and the chosen one is not shorter",
    "over_limit": "the problem has enough pairs",
    "over_longer_correct": "the problem has enough pairs of longer correct over shorter wrong",
    "prompt_too_long": "the prompt fills the context",
    "quotes_another": "the chain names or quotes another question",
    "runs_on": "no heading in the thinking starts the next question",
    "shared_reasoning": "much of the thinking belongs to no question",
    "surplus": "removed to balance the classes",
    "too_long": "longer than the recipe's limit",
    "truncated": "the response ran out of tokens",
    "unnumbered": "the answers cannot be separated",
    "unreadable_gold": "the gold answer cannot be read",
    "unreadable_row": "the row of the source cannot be read",
}
"""Explanation of each reason for which stages drop rows."""

KINDS = {
    "trajectories": "trajectories",
    "ungraded": "responses without a grade",
    "boundaries": "boundaries by decision",
    "verdicts": "thinking patterns by verdict",
    "prunes": "prunes checked with fresh rollouts",
    "optimized": "optimized trajectories",
    "pairs": "pairs by origin of the rejected side",
}
"""Label of each count in the table."""


def verdict_counts(run: RunReader) -> dict[str, dict[str, int]]:
    """Count patterns by verdict, and prunes by whether fresh rollouts verified or restored them."""
    if not run.table("prune").is_file():
        return {}
    counts = _exploded(run.frame("prune"), "verdicts").group_by("verdict", "pruned").len().collect()
    kinds: Counter[str] = Counter()
    prunes: Counter[str] = Counter()
    for kind, pruned, count in counts.iter_rows():
        kinds[kind] += count
        if kind not in STAYS:
            prunes["verified" if pruned else "restored"] += count
    return {
        "verdicts": {kind: kinds[kind] for kind in VERDICTS if kinds[kind]},
        "prunes": dict(sorted(prunes.items(), reverse=True)),
    }


def agreement(run: RunReader) -> dict[str, Any] | None:
    """Compare the recipe's judge with the counterfactual judge; None unless both gave verdicts.

    Over the patterns judged by both, `rate` is the share on which they agree whether the pattern
    may be removed, `kappa` is Cohen's kappa of the same. Intervals are clustered by problem, since
    trajectories of one problem are similar. `table` counts the pairs of verdicts.
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
    ours, theirs = (["stays" if kind == "keep" else "goes" for kind in kinds]
                    for kinds in (first, second))  # fmt: skip
    pairs = both.group_by("verdict", "verdict_too").len()
    return {
        "patterns": len(both),
        "trajectories": both["id"].n_unique(),
        "rate": proportion([a == b for a, b in zip(ours, theirs, strict=True)], problems),
        "kappa": cohen_kappa(ours, theirs, problems),
        "table": {
            kind: {other: n for _, other, n in sorted(pairs.filter(verdict=kind).rows())}
            for kind in VERDICTS
            if kind in first
        },
    }


def _exploded(rows: pl.LazyFrame, column: str) -> pl.LazyFrame:
    """Return one row per verdict, without its reason."""
    verdicts = rows.select("problem_id", "id", column).explode(column).drop_nulls(column)
    fields = ("segment", "verdict", "pruned")
    return verdicts.select("problem_id", "id", *(pl.col(column).struct.field(f) for f in fields))


def funnel(run: RunReader) -> dict[str, Any]:
    """Count rows by stage, grade and outcome, and dropped rows by reason.

    `given_up` counts, by stage and reason, answers graded wrong because comparing them exceeded a
    limit, including the answers of rollouts and trials.
    """
    rows: dict[str, int] = {}
    dropped: dict[str, dict[str, int]] = {}
    given_up: dict[str, dict[str, int]] = {}
    for name, stage in STAGES.items():
        manifest = run.manifest(name)
        if manifest is None:
            continue
        if manifest.get("given_up"):
            given_up[name] = dict(manifest["given_up"])
        # A stage without row groups has no table: its manifest counts the dropped rows.
        reasons = dict(manifest.get("dropped") or {})
        if stage.whole is None:
            rows[name] = int(manifest["rows"])
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
        **_imported(run),
    }


def _imported(run: RunReader) -> dict[str, list[str]]:
    """What an import got, without the examples of dropped rows, which name places."""
    got = summary.read(run)
    lines = () if got is None else got.lines()
    kept = [" ".join(line.split()) for line in lines if not line.startswith("dropped")]
    return {"imported": kept} if kept else {}


def training(run: RunReader) -> dict[str, Any] | None:
    """Summarize training: dev scores of base and kept checkpoint, and why it was kept."""
    manifest, history = run.manifest("train"), json_lines(run / "train" / "history.jsonl")
    if manifest is None or not history:
        return None
    kept_step = int(manifest.get("kept_step", 0))
    kept = next((score for score in history if score["step"] == kept_step), history[0])
    return {
        "base": history[0],
        "kept": kept,
        "steps": int(manifest.get("steps", 0)),
        "collapsed": bool(manifest.get("collapsed", False)),
        "reason": str(manifest.get("reason", "")),
        "judging": manifest.get("judging"),
        "groups": manifest.get("groups"),
    }


def _near_duplicates(run: RunReader) -> dict[str, int]:
    """Count by split the problems that nearly repeat a problem of another split."""
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
    """Count responses graded `failed` by kind of failure (`dto.redact.failure_kind`)."""
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


def judging_accuracy(score: Mapping[str, Any]) -> Estimate:
    """Return the share of held-out chains judged right, from the scores that training recorded."""
    responses = int(score["responses"])
    return Estimate(score["accuracy"], score["low"], score["high"], responses, responses)


def funnel_section(funnel: Mapping[str, Any], recipe: Recipe) -> Section:
    """Build the section with rows by stage and the reasons for dropped rows."""
    stages = [
        (stage, funnel["rows"].get(stage), sum(reasons.values()), _explained(reasons))
        for stage in dict.fromkeys((*funnel["rows"], *funnel["dropped"]))
        for reasons in [funnel["dropped"].get(stage, {})]
    ]
    counts = {name: funnel[key] for key, name in KINDS.items() if funnel.get(key)}
    counts |= {f"comparisons given up in {stage}": row for stage, row in funnel["given_up"].items()}
    kinds = [
        (name, sum(row.values()), join_counts(row).replace("_", " "))
        for name, row in counts.items()
    ]
    tables = [Table("", ("stage", "rows", "dropped", "reasons"), tuple(stages), wide=True)]
    if kinds:
        tables.append(Table("", ("rows", "total", "by kind"), tuple(kinds), wide=True))
    facts = []
    if imported := funnel.get("imported"):
        facts.append(f"Imported from {'; '.join(imported)}.")
    if copies := funnel["near_duplicates"]:
        facts.append(near_copies_sentence(copies))
    if agreement := funnel["agreement"]:
        facts.append(
            f"Both judges saw {agreement['patterns']:,} patterns of {agreement['trajectories']:,} "
            f"trajectories. On {agreement['rate']:%} % of these they agree whether to remove the "
            f"pattern; Cohen's kappa is {agreement['kappa']:.2f…}."
        )
        tables.append(_agreement_table(agreement["table"]))
    notes = [_stated_error(recipe.estimate)] if funnel["boundaries"] else []
    if funnel["given_up"]:
        notes.append("A comparison that exceeds a limit of the grader is given up, and the answer "
                     "counts as wrong. If the answer rule itself fails (rule …), the answer has "
                     "no grade.")  # fmt: skip
    return Section(
        "funnel",
        "Rows kept and dropped",
        ("Every dropped row has a reason. The file dropped.jsonl of each stage lists them.",),
        tables=tuple(tables),
        facts=tuple(facts),
        notes=tuple(notes),
    )  # fmt: skip


def _explained(reasons: Mapping[str, int]) -> str:
    return "; ".join(
        f"{count:,} {reason}" + (f" ({DROPPED[reason]})" if reason in DROPPED else "")
        for reason, count in reasons.items()
    )


def training_sentence(training: Mapping[str, Any]) -> str:
    """Describe steps, dev accuracy and dev tokens of a training."""
    base, kept = training["base"], training["kept"]
    accuracy, tokens = (
        f"{shown(base[name], spec)} to {shown(kept[name], spec)}"
        for name, spec in (("accuracy", "%"), ("tokens_mean", ",.0f"))
    )
    text: str = (
        f"Training took {training['steps']:,} steps. On the dev problems, which chose step "
        f"{kept['step']:,}, accuracy went from {accuracy} % and tokens from {tokens}. The choice "
        "makes these dev figures optimistic; the test figures are not affected."
    )
    if training["collapsed"]:
        text += " Training collapsed."
    if groups := training["groups"]:
        share = groups["flat"] / groups["groups"] if groups["groups"] else None
        text += (
            f" Of {groups['groups']:,} groups of responses, {shown(share, '%')} % gave no signal: "
            "all rewards in the group were equal."
        )
    return text


def near_copies_sentence(counts: Mapping[str, int]) -> str:
    """Say how many problems may have leaked from one split into another."""
    parts = join_counts({f"in {split}": count for split, count in counts.items()})
    return (
        f"Problems that repeat at least half of a question of another split: {parts}. Their "
        "metadata names that question; --set problems.near_duplicates=drop removes them."
    )


def _agreement_table(counts: Mapping[str, Mapping[str, int]]) -> Table:
    """Count verdicts of the recipe's judge (rows) against those of the counterfactual judge."""
    columns = sorted({name for row in counts.values() for name in row})
    return Table(
        "",
        ("judge \\ counterfactual", *columns),
        tuple((name, *(row.get(other, 0) for other in columns)) for name, row in counts.items()),
    )


def _stated_error(settings: EstimateSettings) -> str:
    """Say which error the decisions at boundaries have."""
    biased = "the share at the chosen exit is biased upwards, since the exit was chosen by it."
    if settings.method == "fixed":
        return (
            f"A boundary is above when more than {settings.threshold:g} of its {settings.rollouts} "
            f"rollouts are right. This decision has no stated error, and {biased}"
        )
    low, high = zone(settings.threshold, settings.margin, settings.error, settings.cap)
    scan = "Errors add up over boundaries; estimate.error_scan bounds them jointly"
    if settings.error_scan is not None:
        scan = (
            f"A trajectory whose boundaries are all at {low:g} or less passes at any of them with "
            f"probability at most {settings.error_scan:g}"
        )
    return (
        f"A test with error {settings.error:g} decides at each boundary whether the share is at "
        f"most {low:g} (below) or at least {high:g} (above). Between the two it guarantees "
        f"nothing. {scan}. Also, {biased}"
    )
