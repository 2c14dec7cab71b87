"""A run of which no rows are left stops with the reason; tables that may be empty stop nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dto.empty import check_rows
from dto.errors import DtoError
from dto.pipeline import STAGES, needed, stage_of
from dto.recipe import Recipe, make_recipe
from dto.records import Dropped
from dto.runs import manifest
from dto.runs.reader import RunReader

TAGS = "the response marks its thinking with [THINK], but model.think is <think>: set model.think"


def recipe(**changes: Any) -> Recipe:
    return make_recipe({"name": "r", "model": {"name": "nano"}}, changes, "test")


def check(
    path: Path, stage: str, groups: int, rows: int, dropped: dict[str, list[Dropped]],
    **settings: Any,
) -> None:  # fmt: skip
    for name in {stage, *dropped}:
        (path / name).mkdir()
        lines = [json.dumps({"id": "x", "reason": row.reason, "detail": row.detail}) + "\n"
                 for row in dropped.get(name, [])]  # fmt: skip
        (path / name / "dropped.jsonl").write_text("".join(lines))
        (path / name / "rows.parquet").write_bytes(b"")
    manifest.write(path / stage, {"rows": rows, "groups": groups})
    run = RunReader(path, recipe(**settings))
    check_rows(run, stage_of(run.recipe, stage), needed(run.recipe, stage))


def rows(count: int, reason: str, detail: str = "") -> list[Dropped]:
    return [Dropped("x", reason, detail)] * count


STOPS: list[tuple[str, int, dict[str, list[Dropped]], str]] = [
    ("sample", 3, {"sample": rows(3, "foreign_tags", TAGS)},
     f"sample: none of 3 rows can be used: 3 foreign_tags: {TAGS}; "),
    ("sample", 3, {"sample": [*rows(1, "empty_response"), *rows(2, "missing_field")]},
     "2 missing_field, 1 empty_response: import again with --map question=FIELD"),
    ("segment", 2, {"segment": rows(2, "empty_thinking")},
     "segment: none of 2 trajectories can be used: 2 empty_thinking: import again"),
    ("segment", 2, {"segment": rows(2, "failed", "HTTP 500 " + "x" * 100)}, "used: 2 failed: "),
    ("estimate", 8, {"estimate": rows(8, "failed", "no_gold_answer")},
     "estimate: none of 8 trajectories can be used: 8 no_gold_answer: import again with --map ans"),
    ("pair", 5, {"optimize": rows(5, "no_exit"), "estimate": rows(1, "failed", "HTTP 500")},
     "pair: none of 5 problems can be used: 5 no_exit in optimize, 1 HTTP 500 in estimate: lower"),
    ("pair", 5, {"pair": rows(7, "too_long"), "optimize": rows(9, "no_exit")},
     "pair: none of 5 problems can be used: 7 too_long: raise pair.max_length; "),
    ("label", 0, {"chain": rows(4, "runs_on")}, "none of 0 problems can be used: 4 runs_on in"),
    ("label", 0, {}, "label: none of 0 problems can be used: there are none: "),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "groups", "dropped", "message"), STOPS)
def test_a_stage_that_leaves_nothing(
    stage: str, groups: int, dropped: dict[str, list[Dropped]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DtoError) as error:
        check(tmp_path, stage, groups, 0, dropped, **{"sample.imported": "rows.jsonl"})
    assert message in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).endswith(f"{tmp_path / stage}/dropped.jsonl has the reasons")


@pytest.mark.parametrize(
    ("stage", "reason", "message"),
    [
        ("sample", rows(3, "foreign_tags", TAGS), "none of 3 problems can be used: 3 foreign"),
        ("segment", rows(3, "empty_thinking"), "3 empty_thinking: set model.think"),
        ("estimate", rows(3, "failed", "no_gold_answer"), "3 no_gold_answer: /"),
    ],
)  # fmt: skip
def test_a_run_that_sampled_itself_is_not_told_to_import_again(
    stage: str, reason: list[Dropped], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DtoError) as error:
        check(tmp_path, stage, 3, 0, {stage: reason})
    assert message in str(error.value) and "import" not in str(error.value)


GOES_ON = [
    ("estimate", 8, 1, {"estimate": rows(7, "failed", "no_gold_answer")}),
    ("optimize", 8, 0, {"optimize": rows(8, "no_exit")}),  # pairs of other responses
    ("prune", 0, 0, {}),
    ("batch", 4, 0, {"batch": rows(4, "left_over")}),  # chains of single questions
    ("chain", 4, 0, {"chain": rows(4, "failed")}),  # `label` stops
    ("trace", 4, 0, {"trace": rows(4, "failed")}),  # `dto calibrate` says what is missing
    ("pilot", 4, 0, {"pilot": rows(4, "empty_thinking")}),
    ("problems", 0, 0, {}),  # a run that only evaluates test sets
]


@pytest.mark.parametrize(("stage", "groups", "count", "dropped"), GOES_ON)
def test_a_stage_after_which_others_go_on(
    stage: str, groups: int, count: int, dropped: dict[str, list[Dropped]], tmp_path: Path
) -> None:
    check(tmp_path, stage, groups, count, dropped)


def test_each_stage_that_works_by_rows_is_decided_on() -> None:
    stops, goes_on = {row[0] for row in STOPS}, {row[0] for row in GOES_ON}
    by_rows = {name for name, stage in STAGES.items() if stage.whole is None}
    assert by_rows - stops - goes_on == {"test", "evaluate"}  # which end in an error or in rows
    assert stops & goes_on == {"estimate"}
