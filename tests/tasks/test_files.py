"""The rows of files in all formats: values, what is no row, and memory."""

from __future__ import annotations

import gzip
import json
import logging
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dto.errors import DtoError
from dto.records import Dropped
from dto.source import Source
from dto.tasks import files
from dto.tasks.files import read_source

ROWS = [
    {"problem": "a\u2028b\u0085c\fd?", "answer": "007", "note": None},
    {"problem": "1e-6?", "answer": "1e-6", "note": 'a, "b"\nand\ttabs'},
]
CHAT = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "\\boxed{1}"}]


def rows_of(path: Path | str, split: str | None = None) -> list[Any]:
    parts = read_source(Source.parse(str(path)))
    assert list(parts) == [split]
    return list(parts[split])


def lines(rows: list[Any], **options: Any) -> bytes:
    return "".join(json.dumps(row, **options) + "\n" for row in rows).encode()


def table(rows: list[Any], separator: str = ",") -> str:
    return pl.DataFrame(rows).write_csv(separator=separator)


def zst(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


def zst_stream(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue().to_pybytes())


SAME: dict[str, Callable[[], bytes]] = {
    "a.jsonl": lambda: lines(ROWS),
    "raw.jsonl": lambda: lines(ROWS, ensure_ascii=False),
    "bom.jsonl": lambda: b"\xef\xbb\xbf" + lines(ROWS),
    "crlf.jsonl": lambda: lines(ROWS).replace(b"\n", b"\r\n") + b"\r\n",
    "a.JSONL": lambda: lines(ROWS),
    "a.jsonl.gz": lambda: gzip.compress(lines(ROWS[:1])) + gzip.compress(lines(ROWS[1:])),
    "a.jsonl.zst": lambda: zst_stream(lines(ROWS)),
    "array.json": lambda: json.dumps(ROWS).encode(),
    "pretty.json": lambda: b"\xef\xbb\xbf" + json.dumps(ROWS, indent=4).encode() + b"\n",
    "lines.json": lambda: lines(ROWS),
    "object.json": lambda: json.dumps(
        {"version": 2, "tags": ["x", 1], "eval": {"n": [{"a": 1}]}, "samples": ROWS, "end": None}
    ).encode(),
    "chat beside.json": lambda: json.dumps({"prompt": CHAT, "data": ROWS}).encode(),
    "a.json.gz": lambda: gzip.compress(json.dumps(ROWS).encode()),
    "a.csv": lambda: table(ROWS).encode(),
    "bom.csv": lambda: b"\xef\xbb\xbf" + table(ROWS).encode(),
    "wide.csv": lambda: table(ROWS).encode("utf-16"),
    "a.tsv": lambda: table(ROWS, "\t").encode(),
    "a.csv.zst": lambda: zst_stream(table(ROWS).encode()),
}


@pytest.mark.parametrize("name", SAME)
def test_every_format_has_the_same_rows(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(SAME[name]())
    assert rows_of(tmp_path / name) == ROWS


def test_parquet_has_the_same_rows(tmp_path: Path) -> None:
    pl.DataFrame(ROWS).write_parquet(tmp_path / "a.parquet")
    assert rows_of(tmp_path / "a.parquet") == ROWS


EMPTY = {"a.jsonl": b"", "b.jsonl": b"\n \n", "a.json": b"", "b.json": b" [ ] ", "a.csv": b"",
         "b.csv": b"problem,answer\n\n"}  # fmt: skip


@pytest.mark.parametrize("name", EMPTY)
def test_files_without_a_row(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(EMPTY[name])
    assert rows_of(tmp_path / name) == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"messages": CHAT, "answer": 1}, [{"messages": CHAT, "answer": 1}]),
        ({"question": "a?", "steps": ["x"]}, [{"question": "a?", "steps": ["x"]}]),
        ({"data": []}, [{"data": []}]),
    ],
    ids=["a chat", "no list of objects", "an empty list"],
)
def test_an_object_that_is_a_row_itself(content: Any, expected: Any, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert rows_of(tmp_path / "a.json") == expected


BROKEN = {
    "several lists of objects: train, test": json.dumps({"train": ROWS, "test": ROWS}),
    "is not JSON: expected `,` or `]`, found `{`": '[{"a": 1} {"a": 2}]',
    "is not JSON: expected `,` or `]`, found its end": '[{"a": 1}',
    "is not JSON: Expecting": '[{"a": 1}, {"a": }]' + " " * 100,
    "is not JSON: Unterminated string": '[{"a": "b}]',
    "is not JSON: it is nested too deep": "[" * 100_000,
    "is not JSON: expected `{`": "7",
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_json_file_that_is_broken(message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(BROKEN[message])
    with pytest.raises(DtoError, match=r"a\.json") as error:
        rows_of(path)
    assert message in str(error.value) and "\n" not in str(error.value)


NO_ROWS: dict[str, tuple[bytes, str]] = {
    "a.json": (b'[["a?"], {"a": "\\ud83d"}, {"a": "\xff"}, {"a": NaN, "b": "\\ud83d\\ude00"}]',
               "element 1 holds list, not an object"),
    "a.csv": (b'a,b\n1,2,3\n1\n"\xff",2\n4,\n', "row 1 has 3 cells, its header 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_ROWS)
def test_what_is_no_row_is_dropped_and_the_next_is_read(name: str, tmp_path: Path) -> None:
    content, detail = NO_ROWS[name]
    (tmp_path / name).write_bytes(content)
    *dropped, row = rows_of(tmp_path / name)
    assert [each.reason for each in dropped] == ["unreadable_row"] * 3
    assert len({each.id for each in dropped}) == 3 and detail in dropped[0].detail
    assert row == {"a": "4", "b": None} or row["b"] == "\U0001f600"


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (json.dumps(CHAT), CHAT),
        (json.dumps([{"from": "gpt", "value": "x"}]), [{"from": "gpt", "value": "x"}]),
        ('{"answer": 5}', '{"answer": 5}'),
        ("[1, 2]", "[1, 2]"),
        ('[{"a": 1}]', '[{"a": 1}]'),
        ("[{x}, y]", "[{x}, y]"),
        ("[{" * 100_000, "[{" * 100_000),
        (" 5 ", " 5 "),
    ],
)
def test_only_a_chat_in_a_cell_for_a_text_is_read_as_json(
    cell: str, expected: Any, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text(table([{"response": cell, "answer": "1"}]))
    assert rows_of(tmp_path / "a.csv") == [{"response": expected, "answer": "1"}]


@pytest.mark.parametrize(
    ("name", "cell", "expected"),
    [
        ("generations", json.dumps(["<think>a, \n", 'b"']), ["<think>a, \n", 'b"']),
        ("generations", "[]", []),
        ("correctness_math_verify", "[true, false, null]", [True, False, None]),
        ("choices", '[{"label": "A"}]', [{"label": "A"}]),
        ("generations", "[THINK]a[/THINK]b", "[THINK]a[/THINK]b"),
        ("generations", "one text", "one text"),
        ("flags", "[True, False]", "[True, False]"),
        ("interval", "[1, 2]", "[1, 2]"),
        ("matrix", "[[1, 2], [3, 4]]", "[[1, 2], [3, 4]]"),
        ("answer", '["a"]', '["a"]'),
        ("response", '["a", "b"]', '["a", "b"]'),
        ("note", "['a', 'b']", "['a', 'b']"),
    ],
)
@pytest.mark.parametrize("file", ["a.csv", "a.tsv"])
def test_lists_in_a_cell(name: str, cell: str, expected: Any, file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(table([{"q": "1?", name: cell}], "\t" if "tsv" in file else ","))
    assert rows_of(tmp_path / file) == [{"q": "1?", name: expected}]


@pytest.mark.parametrize("cell", ["['a', 'b']", "['a' 'b']", '["a", "b', "[ 'a']"])
@pytest.mark.parametrize("name", ["generations", "responses"])
def test_a_list_of_responses_that_is_not_json_is_dropped(
    name: str, cell: str, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text(table([{name: cell}, {name: '["a"]'}]))
    dropped, row = rows_of(tmp_path / "a.csv")
    assert dropped.reason == "wrong_type" and "json.dumps" in dropped.detail
    assert f"row 1: {name} is a list" in dropped.detail and row == {name: ["a"]}


def test_two_columns_with_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("answer,q,answer\n1,2,3\n")
    with pytest.raises(DtoError, match="several columns 'answer': rename"):
        rows_of(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("answer,Answer,,\n1,2,,\n")
    assert rows_of(tmp_path / "a.csv") == [{"answer": "1", "Answer": "2", "": None}]


LOG = {"version": 2, "eval": {"task": "t"}, "samples": ROWS, "reductions": [{"scorer": "s"}]}


def test_of_a_log_of_inspect_the_samples_are_read(tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text(json.dumps(LOG))
    assert rows_of(tmp_path / "log.json") == ROWS
    (tmp_path / "log.json").write_text(json.dumps({**LOG, "eval": 1, "samples": ["x"]}))
    assert rows_of(tmp_path / "log.json") == [{"scorer": "s"}]
    other = {key: value for key, value in LOG.items() if key != "eval"}
    (tmp_path / "log.json").write_text(json.dumps(other))
    with pytest.raises(DtoError, match="several lists of objects: samples, reductions"):
        rows_of(tmp_path / "log.json")


@pytest.mark.parametrize("inside", [False, True], ids=["file", "folder"])
def test_a_packed_log_of_inspect_is_told_how_to_unpack(inside: bool, tmp_path: Path) -> None:
    (tmp_path / "my log.eval").write_bytes(b"PK")
    with pytest.raises(DtoError, match=r"inspect log dump '.*my log\.eval' > 'my log'\.json"):
        rows_of(tmp_path if inside else tmp_path / "my log.eval")
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS))  # a folder of both
    assert rows_of(tmp_path, "train") == ROWS


@pytest.mark.parametrize("form", ["a.jsonl", "a.json", "a.parquet"])
@pytest.mark.parametrize("inside", [False, True], ids=["file", "folder"])
def test_a_column_that_is_null_at_first(form: str, inside: bool, tmp_path: Path) -> None:
    rows = [{"problem": f"{i}?", "answer": None if i < 3_000 else "x"} for i in range(3_002)]
    path = tmp_path / form
    if form == "a.parquet":
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(path, row_group_size=500)
    else:
        path.write_bytes(lines(rows) if form == "a.jsonl" else json.dumps(rows).encode())
    assert rows_of(tmp_path, "train") == rows if inside else rows_of(path) == rows


@pytest.mark.parametrize("form", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_rows_of_10_mb(form: str, tmp_path: Path) -> None:
    rows = [{"problem": f"{i}?", "response": f"{i} é" * 2_500_000} for i in range(3)]
    path = tmp_path / form
    if form == "a.parquet":
        pl.DataFrame(rows).write_parquet(path)
    elif form == "a.csv":
        path.write_text(table(rows))
    else:
        path.write_bytes(lines(rows) if form == "a.jsonl" else json.dumps(rows).encode())
    assert rows_of(path) == rows


def test_a_large_array_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("w") as file:
        file.write('{"samples": [')
        for number in range(4_000):
            file.write(", " * (number > 0) + json.dumps({"text": "x" * 10_000}))
        file.write("]}")
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_source(Source.parse(str(path)))[None]) == 4_000
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20 < path.stat().st_size / 3
    finally:
        tracemalloc.stop()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.lists(st.dictionaries(st.text(), JSON), max_size=4), data=st.data())
def test_a_json_array_is_read_wherever_its_blocks_end(
    rows: list[Any], data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_CHUNK", data.draw(st.integers(1, 12)))
    indent, ascii_only = data.draw(st.sampled_from([None, 1])), data.draw(st.booleans())
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    (tmp_path / "a.json").write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
    read = [row for row in rows_of(tmp_path / "a.json") if not isinstance(row, Dropped)]
    assert read == rows


def test_a_folder_of_several_formats(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_bytes(lines(ROWS[:1]))
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "a.csv").write_text(table(ROWS[1:]))
    (tmp_path / "c.json.gz").write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    (tmp_path / "LICENSE").write_text("MIT")
    (tmp_path / ".hidden.jsonl").write_text("{}\n")
    assert rows_of(tmp_path, "train") == [*ROWS[:1], *ROWS, *ROWS[1:]]


def test_a_folder_whose_files_name_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train-0.jsonl", "train-1.jsonl", "test.csv"):
        content = table(ROWS[1:]).encode() if name.endswith("csv") else lines(ROWS[:1])
        (tmp_path / name).write_bytes(content)
    splits = {name: list(rows) for name, rows in read_source(Source.parse(str(tmp_path))).items()}
    assert splits == {"train": ROWS[:1] * 2, "test": ROWS[1:]}
    assert not caplog.text
    (tmp_path / "more.json").write_text(json.dumps(ROWS))
    with caplog.at_level(logging.WARNING, "dto"):
        assert set(read_source(Source.parse(str(tmp_path)))) == {"train", "test"}
    assert "not read, since other files are named after a split: more.json" in caplog.text


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_compressed_file_that_is_broken(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(SAME[name]()[:-9] if name.endswith("gz") else b"no")
    with pytest.raises(DtoError, match=f"{name} cannot be read"):
        rows_of(tmp_path / name)


def test_configs_are_named_with_the_way_to_choose_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "user" / "name"
    configs = []
    for subset in ("all", "default-2"):
        (folder / subset).mkdir(parents=True)
        (folder / subset / "a.jsonl").write_bytes(lines([{"problem": subset, "answer": "1"}]))
        configs.append({"config_name": subset, "data_files": f"{subset}/a.jsonl"})
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    with pytest.raises(DtoError, match="has several configs: all, default-2: add the one") as error:
        read_source(Source.parse(str(folder)))
    assert str(error.value).endswith(f"such as {folder}:all")
    monkeypatch.chdir(tmp_path)
    for source in (
        Source.parse(str(folder), subset="default-2"),
        Source.parse("user/name:default-2"),
        Source.parse(f"{folder}:default-2"),
    ):
        rows = read_source(source)["train"]
        assert [row["problem"] for row in rows if isinstance(row, dict)] == ["default-2"]
