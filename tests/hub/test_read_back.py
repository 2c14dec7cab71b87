"""What went up is read by `datasets` and polars as it was, strange text and large rows too."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dto import tables
from dto.hub.folder import SPLITS, _by_split
from dto.hub.publish import publish
from dto.records import PreferencePair, Problem
from dto.runs import manifest
from dto.runs.run import OpenRun
from tests.hub.server import Hub
from tests.hub.test_publish import NAME, published

HOSTILE = {
    "megabyte": "x" * 2**20,
    "right to left": "\u202eמימין לשמאל\u202c עברית",
    "control": "".join(map(chr, range(1, 32))) + "\x7f\u2028\u2029\ufeff",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈",
    "html": "</script><script>alert('x')</script>&lt;",
    "markdown": "---\nlicense: other\n---\n```\n{{ 7 * 7 }} {% raw %}",
}


def hostile(run: OpenRun) -> None:
    """Put strange text into the tables of sample and pair, more rows than a row group holds."""
    rows = list(tables.read(run.table("pair"), PreferencePair))
    made = []
    for place, (name, text) in enumerate(HOSTILE.items()):
        row = {each: getattr(rows[0], each) for each in PreferencePair.__slots__}
        row |= {"id": f"{place:03d}-{name}", "prompt": text, "chosen": text, "rejected": text * 2}
        made.append(PreferencePair(**row))
    tables.write(run.table("pair"), PreferencePair, made)
    said = manifest.read(run / "pair") or {}
    manifest.write(run / "pair", said | {"content": manifest.of_path(run.table("pair"))})


READ = """
import json, sys
from datasets import load_dataset
name = sys.argv[1]
pairs = load_dataset(name)
assert list(pairs) == ["train"], pairs
others = {each: load_dataset(name, each) for each in ("trajectories", "problems", "evaluation")}
print(json.dumps({
    "columns": pairs["train"].column_names,
    "pairs": [row["chosen"] for row in pairs["train"]],
    "splits": {each: {split: len(rows) for split, rows in found.items()}
               for each, found in others.items()},
    "thinking": others["trajectories"]["train"][0]["thinking"],
}))
"""


def test_datasets_and_polars_read_it_back(run: OpenRun, hub: Hub, tmp_path: Path) -> None:
    hostile(run)
    publish(run, NAME, private=True)
    environment = os.environ | {
        "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", READ, NAME],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    read = json.loads(done.stdout)
    assert read["pairs"] == list(HOSTILE.values())
    assert {"prompt", "chosen", "rejected"} <= set(read["columns"])
    assert read["splits"]["problems"] == {"train": 8, "validation": 8, "test": 6}
    assert (
        read["splits"]["trajectories"] == {"train": 16} and "test" in read["splits"]["evaluation"]
    )
    assert set(read["thinking"]) == {"start", "end"}
    path = tmp_path / "rows.parquet"
    path.write_bytes(published(hub)["pair/rows.parquet"])
    assert pl.read_parquet(path)["rejected"].to_list() == [text * 2 for text in HOSTILE.values()]


@pytest.mark.slow
@pytest.mark.parametrize("hidden", ["", "test"])
def test_splits_are_written_from_one_row_group_at_a_time(tmp_path: Path, hidden: str) -> None:
    """A split has as many row groups as the whole has rows of it in, and is nowhere whole."""
    groups, splits = 24, ("train", "train", "dev", "test")
    rng = random.Random(0)
    rows = (
        Problem(f"{n:06d}", "sums", splits[n // 256 % 3 + n % 2], rng.randbytes(2_000).hex(), "1")
        for n in range(groups * tables.ROW_GROUP)
    )
    path = tmp_path / "rows.parquet"
    tables.write(path, Problem, rows)
    whole = pl.read_parquet(path)
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        _by_split(tmp_path, hidden)
    finally:
        pa.set_memory_pool(before)
    assert pool.max_memory() < 8 * tables.ROW_GROUP * 4_000  # a row group, decoded and encoded
    for split, name in SPLITS.items():
        own = tmp_path / f"{name}.parquet"
        assert own.is_file() == (split != hidden)
        if split != hidden:
            assert pl.read_parquet(own).equals(whole.filter(split=split))
            with pq.ParquetFile(own) as file:
                sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
            counts = (whole["split"].to_numpy() == split).reshape(groups, -1).sum(axis=1)
            assert sizes == [count for count in counts if count]


def test_a_split_without_rows_has_no_file(tmp_path: Path) -> None:
    tables.write(tmp_path / "rows.parquet", Problem, [Problem("a", "sums", "dev", "1?", "1")])
    _by_split(tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "rows.parquet", "validation.parquet",
    ]  # fmt: skip


@pytest.mark.slow
def test_large_rows_make_small_row_groups(tmp_path: Path) -> None:
    text = "x" * 2**20
    columns = {name: "" for name in PreferencePair.__slots__} | {
        "prompt_tokens": 1, "chosen_tokens": 1, "rejected_tokens": 1,
    }  # fmt: skip
    rows = (
        PreferencePair(**columns | {"id": f"{n:04d}", "chosen": text})  # type: ignore[arg-type]
        for n in range(150)
    )
    tables.write(tmp_path / "rows.parquet", PreferencePair, rows)
    with pq.ParquetFile(tmp_path / "rows.parquet") as file:
        sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert sum(sizes) == 150 and max(sizes) <= 64
    assert sum(1 for _ in tables.read(tmp_path / "rows.parquet", PreferencePair)) == 150
