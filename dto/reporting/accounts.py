"""The page's accounts of a run: what it cost, what became of its rows, how to do it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dto.recipe import EstimateSettings, ExitSettings, Recipe
from dto.reporting import figures
from dto.reporting.comparison import ReportRow
from dto.reporting.cost import OPTIMIZATION, StageCost
from dto.reporting.macro import AverageRow
from dto.reporting.page import LeftOut, Section, drawn
from dto.reporting.reproduce import content_of_sources, public_names, reproduction
from dto.reporting.table import (
    Table,
    interval,
    near_copies,
    number,
    paid_for,
    paid_in_flops,
    percent,
)
from dto.sequential import zone

if TYPE_CHECKING:
    from dto.reporting.report import Report

MEBIBYTE = 2**20
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


DECIDING = {
    "static": ("fraction",),
    "budget": ("budget",),
    "deer": ("monitor", "inducer", "threshold"),
    "consistency": ("monitor", "inducer", "agree"),
    "entropy": ("variance",),
}
"""By policy the settings that are told of an exit though they be the defaults."""


def names_table(recipe: Recipe) -> Table:
    """What stands behind the names of models and exits."""
    names = public_names(list(recipe.evaluate.models))
    base = public_names([recipe.model.name])[recipe.model.name]
    models = {"base": f"{base}, as it is", "trained": f"{base} after {_training(recipe)}"}
    rows = [("model", names[name], models.get(name, "a model of its own"))
            for name in recipe.evaluate.models]  # fmt: skip
    rows += [("exit", exit.name, _exit(exit)) for exit in recipe.evaluate.exits]
    return Table("What the names of models and exits stand for",
        ("what", "name", "stands for"), tuple(rows), left=2, wide=True, folded=True)  # fmt: skip


def _training(recipe: Recipe) -> str:
    train = recipe.train
    return f"training: {train.method}, learning rate {train.learning_rate:g}, seed {recipe.seed}"


def _exit(exit: ExitSettings) -> str:
    if exit.policy == "none":
        return "the model ends its thinking itself"
    main = {key: getattr(exit, key) for key in DECIDING.get(exit.policy, ())}
    own = main | exit.model_dump(mode="json", exclude_defaults=True)
    settings = [f"{key} {value}" for key, value in own.items() if key not in ("name", "policy")]
    return ", ".join([f"policy {exit.policy}", *settings])


def cost_section(report: Report) -> Section | LeftOut:
    """The ledger of the stages, and after how many questions it has paid."""
    title = "What it cost"
    if not report.costs:
        return LeftOut(title, "no stage of the run has a manifest.")
    head = ["stage", "generated", "read", "from cache", "thrown away", "trained on",
            "attention FLOPs", "model FLOPs", "seconds", "MiB"]  # fmt: skip
    rows = [
        [
            each.stage, f"{each.tokens:,}", f"{each.prompt_tokens:,}", f"{each.cached_tokens:,}",
            f"{each.wasted_tokens:,}", f"{each.trained_tokens:,}", _power(each.attention_flops),
            _power(each.model_flops), number(each.seconds, 1),
            "–" if each.peak_memory is None else f"{each.peak_memory / MEBIBYTE:,.0f}",
        ]
        for each in report.costs
    ]  # fmt: skip
    if any(each.money is not None for each in report.costs):
        head.append("money")
        for row, each in zip(rows, report.costs, strict=True):
            row.append("–" if each.money is None else f"{each.money:,.4g}")
    spent = [each for each in report.costs if each.stage in OPTIMIZATION]
    text = ["Every generated token counts, those of rollouts, of trials and of requests that were "
            "thrown away too."]  # fmt: skip
    if report.break_even is not None:
        text.append(" ".join(paid_for(report.break_even)))
        text.append(" ".join(paid_in_flops(report.break_even)))
    elif spent:
        text.append("After how many questions that is paid for is not known: the base and the "
                    "trained model have to be evaluated, both without an exit and with few "
                    "failures.")  # fmt: skip
    if len(spent) > 1:
        rows.append(_sum(spent, len(head)))
    means: Mapping[tuple[str, str], ReportRow | AverageRow]
    means = {(row.model, row.exit): row for row in report.averages or report.rows}
    base = means.get(("base", report.plain))
    tokens = base.tokens_mean if base is not None else float("nan")
    drawable = sum(each.tokens + each.trained_tokens > 0 for each in report.costs) > 1
    return Section(
        "cost",
        title,
        tuple(text),
        drawn("cost", "Tokens of each stage, and tokens spent in all against questions answered; "
              "the table below has the figures.", figures.cost, report.costs, report.break_even,
              tokens) if drawable else None,
        (Table("Tokens and time of each stage", tuple(head), tuple(map(tuple, rows))),),
        notes=("Generated and trained on are what has to be paid for, from sampling to training; "
               "evaluating is measurement, and no part of it. Read are the tokens of prompts, "
               "from cache those of them that were not computed again; thrown away are generated "
               "tokens that nothing came of. Attention FLOPs are those of scores and sums over "
               "values, forward and, in training, backward. Model FLOPs hold them, and two for "
               "each parameter that takes part (embeddings apart, the LM head with them) and each "
               "token that was read, not from the cache, or generated; six where it was trained "
               "on, four where adapters alone were, two more each for gradient checkpointing and "
               "for a reference model. Seconds and MiB, of the largest "
               "process, are those of the machine that it ran on.",),
    )  # fmt: skip


def _sum(spent: Sequence[StageCost], width: int) -> list[str]:
    """The ledger's last line: all stages that have to be paid for."""
    tokens = [
        f"{sum(getattr(each, name) for each in spent):,}"
        for name in ("tokens", "prompt_tokens", "cached_tokens", "wasted_tokens", "trained_tokens")
    ]
    flops = [
        None if None in known else sum(each or 0.0 for each in known)
        for known in ([e.attention_flops for e in spent], [e.model_flops for e in spent])
    ]
    seconds = [each.seconds for each in spent if each.seconds is not None]
    cells = ["without evaluating", *tokens, *map(_power, flops), number(sum(seconds), 1), "–"]
    return cells + ["–"] * (width - len(cells))


def funnel_section(report: Report, recipe: Recipe) -> Section:
    """Rows by stage, and every reason for which one was dropped."""
    funnel, training = report.funnel, report.training
    kept = Table(
        "",
        ("stage", "rows", "dropped", "why"),
        tuple(
            (
                stage,
                f"{funnel['rows'][stage]:,}" if stage in funnel["rows"] else "–",
                f"{sum(reasons.values()):,}" if reasons else "0",
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
            f"{sum(counts.values()):,}",
            ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in counts.items()),
        )
        for key in KINDS
        if (counts := funnel.get(key))
    )
    tables = [kept]
    if kinds:
        tables.append(Table("", ("rows", "all", "of them"), kinds, wide=True))
    notes = []
    if training is not None:
        base, best = training["base"], training["kept"]
        notes.append(
            f"Training took {training['steps']:,} steps. On the dev problems, by which step "
            f"{best['step']:,} was picked, accuracy went from {percent(base['accuracy'])} to "
            f"{percent(best['accuracy'])} %, tokens from {number(base['tokens_mean'], 0)} to "
            f"{number(best['tokens_mean'], 0)}: what is picked is flattered by it, the test "
            "problems above are not." + " It collapsed." * bool(training["collapsed"])
        )
    if given_up := funnel.get("given_up_at"):
        parts = ", ".join(f"{sum(each.values()):,} at {stage}" for stage, each in given_up.items())
        notes.append(f"Answers that the grader gave up to compare count as wrong: {parts}.")
    if copies := funnel.get("near_duplicates"):
        notes.append(near_copies(copies))
    if funnel.get("boundaries"):
        notes.append(_stated_error(recipe.estimate))
    if found := funnel.get("agreement"):
        notes.append(
            f"The llm judge and the counterfactual one agree on "
            f"{interval(found['rate'], found['rate_low'], found['rate_high'])} % of "
            f"{found['patterns']:,} patterns; Cohen's kappa {number(found['kappa'], 2)} "
            f"({number(found['kappa_low'], 2)}…{number(found['kappa_high'], 2)})."
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


def _power(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}" if value else "0"


def reproduce_section(run: Path, recipe: Recipe) -> Section:
    """The command, versions, commit, seeds, and hashes of what went in and came out."""
    found = reproduction(run, recipe)
    text, commands = [], []
    if found.git:
        commands.append(f"git checkout {shlex.quote(str(found.git['commit']))}")
        if found.git.get("dirty"):
            text.append("The checkout held changes beside the commit below.")
    if found.packaged:
        changed = "; --set has what was changed" if "--set" in found.command else ""
        text.append(f"The recipe comes with the package{changed}.")
    else:
        text.append("Save the recipe at the end under the name that the command has.")
    if found.hidden:
        text.append(
            f"{', '.join(found.hidden)}: shown by the last part of the name, put your own place "
            "there."
        )
    commands.append(found.command)
    text.append(
        f"Run seed {found.seed}: the seed of every request is derived from it and from the row's "
        "id, never from the order."
    )
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    hashes = (
        *((f"{name}, as it went in", value) for name, value in content_of_sources(run).items()),
        *((f"{stage}: its table" if stage != "train" else "train: the weights", value)
          for stage, value in found.stages.items()),
    )  # fmt: skip
    notes = [f"Versions: {versions or 'not recorded'}."]
    if "train" in found.stages:
        notes.append("With other versions, another device or another number of threads, weights "
                     "may differ in their last digits, and what they answer with them; the hashes "
                     "tell what is the same.")  # fmt: skip
    if found.others:
        notes.append(f"Of another version or commit: {', '.join(found.others)}.")
    return Section(
        "reproduce",
        "Do it again",
        tuple(text),
        tables=(
            Table("Hashes of what went in and what came out",
                ("what", "hash"), hashes, left=2, folded=True),
        ),
        code="\n".join(commands),
        notes=tuple(notes),
        folded=("The recipe: what it sets other than the defaults", found.recipe),
    )  # fmt: skip
