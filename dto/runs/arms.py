"""An evaluation whose settings changed: the arms that the change does not touch are kept.

An arm is a model under an exit; it depends on what all arms share, on its exit and on its weights.
Of test sets that are named (`evaluate.tasks`) those rows are kept whose problem is still asked: a
problem's id tells its task and its content.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from dto import tables
from dto.errors import disk_errors
from dto.records import GIVEN_UP, EvaluationRow
from dto.runs import manifest
from dto.runs.journal import Entry, GroupUsage, Journal, Timing, read_entries, read_head
from dto.usage import Usage


def keep_arms(
    old: Path, new: Path, config: Mapping[str, Any], problems: Collection[str] | None = None
) -> None:
    """Begin an evaluation with `config` in `new`, with those rows of `old` that still hold.

    `problems` are the ids of those that it asks; None: the same as before. The seconds that were
    spent are carried over whole. Killed at any time, it leaves what was there in `old`.
    """
    done = manifest.read(old)
    before = (done or read_head(old / "journal") or {})["config"]
    now, then = _arms(config), _arms(before)
    kept = {arm for arm in now if now[arm] == then.get(arm)}
    if not kept:
        return
    with disk_errors(new):
        journal = Journal(new / "journal", EvaluationRow, {"config": dict(config)})
        journal.elapsed = float(done["seconds"]) if done else 0.0
        entries = _entries(old) if done else read_entries(old / "journal", EvaluationRow)
        for entry in entries:
            arm, _, problem = entry.key.rpartition("/")
            asked = problems is None or problem in problems
            journal.elapsed = max(journal.elapsed, entry.elapsed)
            if entry.rows and arm in kept and asked:
                journal.append(entry)
        journal.close()


def lost_arms(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The arms of an evaluation that another configuration does not keep."""
    arms = _arms(now)
    return [arm for arm, settings in _arms(before).items() if arms.get(arm) != settings]


def _arms(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    apart = (
        "evaluate.exits", "evaluate.models", "evaluate.tasks", "evaluate.limit", "digest of test",
        "digest of train",
    )  # fmt: skip
    shared = {
        key: value
        for key, value in config.items()
        if key not in apart and not key.startswith("weights") and value is not None
    }
    weights = {"base": config["weights"], "trained": config.get("digest of train")}
    return {
        f"{model}/{exit['name']}": shared
        | {"exit": exit, "weights": weights.get(model, config.get(f"weights of {model}"))}
        for model in config["evaluate.models"]
        for exit in config["evaluate.exits"]
    }


def _entries(directory: Path) -> Iterator[Entry]:
    """The groups of a finished evaluation, as they stood in its journal."""
    merged = tables.merge(
        tables.read(directory / "usage.parquet", GroupUsage),
        (tables.read(directory / "rows.parquet", EvaluationRow), lambda row: _parent(row.id)),
        (tables.read(directory / "timings.parquet", Timing), lambda row: _parent(row.id)),
        key=lambda group: group.key,
    )
    for group, rows, timings in merged:
        yield Entry(
            key=group.key,
            rows=rows,
            usage=Usage(**{name: getattr(group, name) for name in Usage.__slots__}),
            seconds={each.id: each.seconds for each in timings},
            wasted={each.id: each.wasted for each in timings if each.wasted},
            given_up=Counter(
                each.reason
                for each in rows
                if each.grade == "wrong" and each.reason.startswith(GIVEN_UP)
            ),
        )


def _parent(row_id: str) -> str:
    return row_id.rpartition("/")[0]
