"""What a text names: the same for all who ask, whatever else has that name on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto.source import Source
from dto.tasks import TASKS

HERE = ("gsm8k/", "chains/", "user/name/", "folder/", "saved.v2/", "odd.jsonl/", "odd.yaml/",
        "rows.txt", "rows.jsonl", "data/rows.csv")  # fmt: skip

NAMES = (
    # text, kind, exists, is bare, tells a place, last part
    ("chains", "chains", True, False, False, "chains"),
    ("Chains", "hub", False, True, False, "Chains"),
    ("./chains", "folder", True, False, True, "chains"),
    ("gsm8k", "task", True, False, False, "gsm8k"),
    ("./gsm8k", "folder", True, False, True, "gsm8k"),
    ("math500", "task", False, True, False, "math500"),
    ("math501", "hub", False, True, False, "math501"),
    ("math500.jsonl", "file", False, False, False, "math500.jsonl"),
    ("x.jsonl", "file", False, False, False, "x.jsonl"),
    ("./x.jsonl", "file", False, False, True, "x.jsonl"),
    ("data/x.jsonl", "file", False, False, True, "x.jsonl"),
    ("a/b/c/x.parquet", "file", False, False, True, "x.parquet"),
    ("rows.jsonl", "file", True, False, False, "rows.jsonl"),
    ("odd.jsonl", "file", True, False, False, "odd.jsonl"),
    ("x.jsonl.gz", "file", False, False, False, "x.jsonl.gz"),
    ("X.JSONL.ZST", "file", False, False, False, "X.JSONL.ZST"),
    ("x.gz", "hub", False, False, False, "x.gz"),
    ("x.parquet.gz", "hub", False, False, False, "x.parquet.gz"),
    ("x.json", "file", False, False, False, "x.json"),
    ("x.tsv", "file", False, False, False, "x.tsv"),
    ("rows.txt", "file", True, False, False, "rows.txt"),
    ("data/rows.csv", "file", True, False, True, "rows.csv"),
    ("other/rows.csv", "file", False, False, True, "rows.csv"),
    ("recipe.yaml", "file", False, False, False, "recipe.yaml"),
    ("pipelines/recipe.yml", "file", False, False, True, "recipe.yml"),
    ("odd.yaml", "folder", True, False, False, "odd.yaml"),
    ("folder", "folder", True, False, False, "folder"),
    ("folders", "hub", False, True, False, "folders"),
    ("saved.v2", "folder", True, False, False, "saved.v2"),
    ("saved.v3", "hub", False, False, False, "saved.v3"),
    ("openai/gsm8k", "hub", False, False, False, "openai/gsm8k"),
    ("Qwen/Qwen2.5-0.5B", "hub", False, False, False, "Qwen/Qwen2.5-0.5B"),
    ("user/name", "folder", True, False, True, "name"),
    ("user/names", "hub", False, False, False, "user/names"),
    ("a/b/c", "folder", False, False, True, "c"),
    ("runs/a/train/model", "folder", False, False, True, "model"),
    ("./x", "folder", False, False, True, "x"),
    ("../x", "folder", False, False, True, "x"),
    (".", "folder", True, False, True, "."),
    (".x", "folder", False, True, False, ".x"),
    ("~/x", "folder", False, False, True, "x"),
    ("~/x.jsonl", "file", False, False, True, "x.jsonl"),
    ("~", "folder", False, True, True, "~"),
    ("/srv/models/mine/", "folder", False, False, True, "mine"),
    ("/", "folder", True, False, True, "folder"),
    ("C:\\models\\mine", "folder", False, True, True, "mine"),
    ("C:/models/mine", "folder", False, False, True, "mine"),
    ("q:8b", "hub", False, True, False, "q:8b"),
    ("\\\\server\\share", "folder", False, True, True, "share"),
    ("a\\b", "hub", False, True, False, "a\\b"),
    ("file:///srv/x.jsonl", "file", False, False, True, "x.jsonl"),
    ("https://host/v1/a.b", "hub", False, False, False, "https://host/v1/a.b"),
    ("</think>", "hub", False, False, False, "</think>"),
    ("/no_think\nand more", "folder", False, False, False, "no_think\nand more"),
    ("", "hub", False, True, False, ""),
)  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in HERE:
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_text("{}")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("row", NAMES, ids=[row[0] for row in NAMES])
def test_what_a_text_names(row: tuple[str, str, bool, bool, bool, str]) -> None:
    source = Source.parse(row[0], TASKS)
    assert (source.kind, source.exists, source.is_bare) == row[1:4]
    assert (source.tells_place, source.last_part) == row[4:]


@pytest.mark.usefixtures("here")
def test_a_task_is_one_only_for_who_asks_for_tasks() -> None:
    assert Source.parse("gsm8k").kind == "folder"
    assert Source.parse("math500").kind == "hub"
    assert Source.parse("chains").kind == "chains"


@pytest.mark.parametrize(
    ("text", "subset", "dataset"),
    [
        ("user/name", None, ("user/name", None)),
        ("user/name", "main", ("user/name", "main")),
        ("user/name:main", None, ("user/name", "main")),
        ("user/name:", None, ("user/name:", None)),
        ("user/name:a/b", None, ("user/name:a/b", None)),
        ("user/name:a", "main", ("user/name:a", "main")),
        ("https://host/v1", None, ("https://host/v1", None)),
        ("q:8b", None, ("q:8b", None)),
        ("./user/name:a", None, ("./user/name:a", None)),
        ("x:y/rows.jsonl", None, ("x:y/rows.jsonl", None)),
    ],
)
def test_the_config_of_a_dataset(
    text: str, subset: str | None, dataset: tuple[str, str | None]
) -> None:
    source = Source.parse(text, TASKS, subset)
    assert source.dataset == dataset and source.name == text


@pytest.mark.parametrize(
    ("text", "stem"),
    [("data/a.jsonl", "a"), ("a.b.jsonl.gz", "a.b"), ("A.JSON", "A"), ("user/name", "name"),
     ("user/name:main", "name-main"), ("./folder/", "folder"), ("saved.v2", "saved")],
)  # fmt: skip
def test_the_name_of_a_run_of_its_rows(text: str, stem: str) -> None:
    assert Source.parse(text).stem == stem


@given(st.text() | st.text("./~\\:aC", max_size=6) | st.just("x" * 5000))
def test_every_text_names_something(text: str) -> None:
    source = Source.parse(text, TASKS, "main", "v1")
    assert (source.name, source.subset, source.revision) == (text, "main", "v1")
    assert source.is_local == (source.kind in ("file", "folder"))
    assert source.last_part or not text
