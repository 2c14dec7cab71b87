"""Stop a run that has no rows left, with the reason and the way out.

Later stages would go through without a row, and training would keep the base. Not every table needs
rows: no trajectory may have a good exit (`optimize`, `prune`), but there are pairs of other
responses; a batch may have too few questions, but there are chains of single ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from shlex import quote

from dto.errors import DtoError
from dto.records import Dropped
from dto.runs.reader import RunReader
from dto.runs.stage import Stage

_WAYS_OUT = {
    "empty_thinking": "set model.think to the tags of the model, if it has others",
    "no_exit": "lower estimate.threshold, or take more problems or samples",
    "no_rejected": "set pair.rejected=original",
    "no_pair": "take more samples of each problem",
    "too_long": "raise pair.max_length",
    "prompt_too_long": "raise model.context",
}
_OF_IMPORTS = {
    "no_gold_answer": "import again with --map answer=FIELD --recompute",
    "missing_field": "import again with --map question=FIELD or --map response=FIELD --recompute",
    "empty_thinking": "import again with --map thinking=FIELD --recompute",
}


def check_rows(run: RunReader, declared: Stage, inputs: Sequence[str]) -> None:
    """Raise DtoError if a finished stage has left no rows; `inputs` are all stages that it needs.

    Stages that are not `essential` may be empty.
    """
    stage = declared.name
    done = run.manifest(stage) or {}
    if not declared.essential or done.get("rows") != 0:
        return
    dropped, example = _reasons(run, stage)
    if sum(dropped.values()) < done.get("groups", 0) or not dropped:
        for before in reversed(inputs):  # its rows ended earlier
            if before not in (stage, "problems"):
                further, _ = _reasons(run, before)
                dropped += Counter({f"{reason} in {before}": n for reason, n in further.items()})
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.most_common(3))
    main = next((reason for reason, _ in dropped.most_common(1)), "").partition(" ")[0]
    is_import = run.recipe.sample.imported is not None
    ways_out = _WAYS_OUT | _OF_IMPORTS if is_import else _WAYS_OUT
    noun = "rows" if is_import and stage == "sample" else declared.essential
    way_out = ways_out.get(main, "")
    if not way_out and example is not None and " set " in example.detail:
        way_out = example.detail
    place = run / stage / "dropped.jsonl"
    also = f"{way_out}; " if way_out else ""
    raise DtoError(
        f"{stage}: none of {done.get('groups', 0):,} {noun} can be used: "
        f"{reasons or 'there are none'}: {also}{quote(str(place))} has the reasons"
    )


def _reasons(run: RunReader, stage: str) -> tuple[Counter[str], Dropped | None]:
    """The reasons for which a stage dropped rows, with those of `failed` rows; its first row."""
    counts: Counter[str] = Counter()
    first = None
    for row in run.dropped(stage):
        first = first or row
        known = row.reason == "failed" and row.detail and len(row.detail) <= 40
        counts[row.detail if known else row.reason] += 1
    return counts, first
