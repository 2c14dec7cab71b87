"""Records survive the way to Parquet and back, and sorted tables join in one pass."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dto import tables
from dto.errors import DtoError
from dto.records import (
    Dropped,
    EvaluationRow,
    ExitEstimate,
    OptimizedTrajectory,
    PreferencePair,
    Problem,
    Segment,
    Span,
    Trajectory,
)
from dto.runs.journal import Timing

RECORDS = [
    Problem,
    Trajectory,
    Segment,
    ExitEstimate,
    OptimizedTrajectory,
    PreferencePair,
    EvaluationRow,
]

small = st.integers(0, 2**31 - 1)
st.register_type_strategy(Span, st.builds(Span, small, small))
st.register_type_strategy(str, st.text(st.characters(codec="utf-8"), max_size=12))
st.register_type_strategy(float, st.floats(width=64))
st.register_type_strategy(int, small)


def same(left: Any, right: Any) -> bool:
    """Equality where nan equals nan."""
    return repr(left) == repr(right)


@given(st.lists(st.builds(Dropped)), st.integers(1, 5))
def test_a_sorter_gives_records_in_the_order_of_their_fields(rows: list[Dropped], kib: int) -> None:
    """As Python sorts them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "SORTED_KIB", kib)
        sorter = tables.Sorter(Dropped)
        for row in rows:
            sorter.add(row.id, row.reason, row.detail)
        assert list(sorter) == sorted(rows, key=lambda row: (row.id, row.reason, row.detail))


def test_a_sorter_keeps_numbers_as_they_are() -> None:
    sorter = tables.Sorter(Timing)
    sorter.add("b", 2.0, 2**40)
    sorter.add("a", math.nan, 0)
    assert same(list(sorter), [Timing("a", math.nan, 0), Timing("b", 2.0, 2**40)])


def test_a_sorter_holds_some_megabytes_and_the_rest_in_a_file() -> None:
    """Of 20 MB. A limit on file size stands in for a full disk."""
    script = textwrap.dedent("""
        import resource
        from dto import tables
        from dto.errors import DtoError
        from dto.runs.journal import Timing
        from dto.runs.manifest import peak_memory, reset_peak_memory
        tables.SORTED_KIB = 1_024
        def filled():
            sorter = tables.Sorter(Timing)
            for number in reversed(range(20_000)):
                sorter.add(f"{number:05}{'x' * 1_000}", 0.5, number)
            return sorter
        reset_peak_memory()
        before = peak_memory()
        print(all(row.wasted == number for number, row in enumerate(filled())))
        print(peak_memory() - before < 10 * 2**20)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))
        try:
            filled()
        except DtoError as error:
            print(error)
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == ""
    right, bounded, full = done.stdout.splitlines()
    assert (right, bounded) == ("True", "True")
    assert full.startswith("rows cannot be sorted in the folder for temporary files: ")
    assert "set TMPDIR" in full


@pytest.mark.slow
@pytest.mark.parametrize("record", RECORDS)
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_round_trip(record: type[Any], data: st.DataObject, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("table") / "rows.parquet"
    rows = data.draw(
        st.lists(st.builds(record), max_size=4, unique_by=lambda row: row.id).map(
            lambda found: sorted(found, key=lambda row: str(row.id))
        )
    )
    assert tables.write(path, record, rows) == len(rows) == tables.count(path)
    back = list(tables.read(path, record))
    assert same(back, rows)
    assert all(type(a) is type(b) for a, b in zip(back, rows, strict=True))


def optimized(**changes: Any) -> OptimizedTrajectory:
    values: dict[str, Any] = {
        "id": "p/000",
        "trajectory_id": "p/000",
        "problem_id": "p",
        "exit": 1,
        "kept": (0, 1),
        "token_ids": (1, 2, 3),
        "text": "思考 🙂",
        "thinking": Span(0, 2),
        "thinking_tokens": Span(0, 2),
        "answer": "6",
        "pass_rate": 0.5,
        "tokens_before": 9,
        "tokens_after": 3,
        "attention_flops_before": float("nan"),
        "attention_flops_after": 1.0,
        "outcome": "shortened",
    }
    return OptimizedTrajectory(**(values | changes))


def test_opens_in_polars_and_datasets(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    tables.write(path, OptimizedTrajectory, [optimized()])
    frame = pl.read_parquet(path)
    assert frame.schema["token_ids"] == pl.List(pl.Int32)
    assert frame["thinking"].struct.field("end").to_list() == [2]
    assert frame["verdicts"].to_list() == [[]]
    assert math.isnan(frame["verified_p"][0])
    table = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert table[0]["token_ids"] == [1, 2, 3]
    assert table[0]["thinking"] == {"start": 0, "end": 2}


def test_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    rows = [optimized(id=f"p/{index:03d}") for index in range(600)]
    for name in ("a", "b"):
        tables.write(tmp_path / name, OptimizedTrajectory, iter(rows))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_unsorted_rows_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    with pytest.raises(DtoError, match="'p/000' after 'p/001'"):
        tables.write(path, OptimizedTrajectory, [optimized(id="p/001"), optimized(id="p/000")])
    assert list(tmp_path.iterdir()) == []


def test_foreign_and_missing_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(DtoError, match="does not exist"):
        next(tables.read(tmp_path / "none.parquet", Problem))
    path = tmp_path / "rows.parquet"
    pl.DataFrame({"id": ["a"]}).write_parquet(path)
    with pytest.raises(DtoError, match="lacks the columns task, split"):
        next(tables.read(path, Problem))
    tables.write(path, Problem, [Problem("a", "t", "train", "q", "1")])
    pl.read_parquet(path).with_columns(split=pl.lit("holiday")).write_parquet(path)
    with pytest.raises(DtoError, match="a row of Problem cannot be read: split = 'holiday': Input"):
        next(tables.read(path, Problem))


@given(
    st.sets(st.sampled_from("abcdefg")),
    st.lists(st.sampled_from("abcdefg")),
    st.lists(st.sampled_from("abcdefg")),
)
def test_merge_is_a_join(parents: set[str], first: list[str], second: list[str]) -> None:
    left = [(key, index) for index, key in enumerate(sorted(first))]
    right = [(key, -index) for index, key in enumerate(sorted(second))]
    merged = tables.merge(
        sorted(parents),
        (iter(left), lambda row: row[0]),
        (iter(right), lambda row: row[0]),
        key=str,
    )
    assert list(merged) == [
        (key, [row for row in left if row[0] == key], [row for row in right if row[0] == key])
        for key in sorted(parents)
    ]


def test_the_former_name_of_a_column_is_one_clear_error(tmp_path: Path) -> None:
    """Else every problem of a table of an earlier version would have the default rule."""
    path = tmp_path / "rows.parquet"
    tables.write(path, Problem, [Problem("a", "t", "test", "?", "B", "choice")])
    assert [row.rule for row in tables.read(path, Problem)] == ["choice"]
    frame = pl.read_parquet(path).rename({"rule": "answer_kind"})
    frame.write_parquet(path)
    with pytest.raises(DtoError, match="lacks the columns rule of a Problem") as error:
        list(tables.read(path, Problem))
    assert "\n" not in str(error.value)
