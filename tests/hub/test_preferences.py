"""Preferences and responses of others: read in all their forms, encoded once, trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from dto import tables
from dto.pipeline import open_run, run_stages
from dto.recipe import PairSettings, ProblemSettings, load_recipe
from dto.records import Dropped, PreferencePair, Problem, Trajectory
from dto.runs import manifest
from dto.runs.reader import RunReader
from dto.tasks.imported import imported_pairs
from dto.tasks.importing import Response, holds_pairs, imported_problems, read_responses
from dto.training.pairs import TokenizedPair, load_pairs
from tests.byte_level import byte_level
from tests.commands import told
from tests.hub.server import OWNER, Fault, Hub, Repo

ASKED = {"role": "user", "content": "2 + 3?"}
GOOD, BAD = "<think>\nIt is 5.\n</think>\n\n\\boxed{5}", "<think>\nWait.\n\nHmm.\n</think>\n\n5"


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


FORMS: list[tuple[str, Mapping[str, Any]]] = [
    ("standard", {"prompt": "2 + 3?", "chosen": GOOD, "rejected": BAD}),
    ("conversational", {"prompt": [ASKED], "chosen": [says(GOOD)], "rejected": [says(BAD)]}),
    ("implicit prompt", {"chosen": [ASKED, says(GOOD)], "rejected": [ASKED, says(BAD)]}),
    ("prompt twice", {"prompt": "2 + 3?", "chosen": [ASKED, says(GOOD)],
                      "rejected": [ASKED, says(BAD)]}),
    ("system message", {"prompt": [{"role": "system", "content": "x"}, ASKED],
                        "chosen": [says(GOOD)], "rejected": [says(BAD)]}),
    ("from and value", {"question": "2 + 3?", "chosen": [{"from": "gpt", "value": GOOD}],
                        "rejected": [{"from": "gpt", "value": BAD}]}),
    ("reasoning beside", {"prompt": "2 + 3?",
                          "chosen": [{"role": "assistant", "reasoning_content": "It is 5.",
                                      "content": "\\boxed{5}"}], "rejected": BAD}),
]  # fmt: skip


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("row", [row for _, row in FORMS], ids=[name for name, _ in FORMS])
def test_forms_of_a_preference(row: Mapping[str, Any], tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [row, row])
    assert holds_pairs(source)
    found = list(read_responses(source))
    assert all(isinstance(each, Response) and each.whole for each in found)
    texts = [(each.sample, each.text) for each in found if isinstance(each, Response)]
    assert texts == [(0, GOOD), (1, BAD), (2, GOOD), (3, BAD)]
    assert {each.problem.question for each in found if isinstance(each, Response)} == {"2 + 3?"}


BROKEN = [
    ({"prompt": "2 + 3?", "chosen": GOOD}, "missing_field"),
    ({"chosen": GOOD, "rejected": BAD}, "missing_field"),
    ({"prompt": "2 + 3?", "chosen": GOOD, "rejected": ""}, "empty_response"),
    ({"prompt": "2 + 3?", "chosen": GOOD, "rejected": 7.5}, None),
    ({"prompt": "2 + 3?", "chosen": GOOD, "rejected": {"text": BAD}}, "wrong_type"),
    ({"prompt": "1?", "chosen": [ASKED, says(GOOD)], "rejected": BAD}, "two_questions"),
    ({"prompt": "2 + 3?", "chosen": [ASKED], "rejected": BAD}, "missing_field"),
    ({"prompt": "2 + 3?", "chosen": [ASKED, says("5"), ASKED, says(GOOD)], "rejected": BAD},
     "several_turns"),
    ({"prompt": " ", "chosen": GOOD, "rejected": BAD}, "empty_question"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), BROKEN)
def test_a_row_gives_both_sides_or_none(
    row: Mapping[str, Any], reason: str | None, tmp_path: Path
) -> None:
    first = {"prompt": "1 + 1?", "chosen": GOOD, "rejected": BAD}
    _, _, *found = read_responses(write(tmp_path / "rows.jsonl", [first, row]))
    assert [getattr(each, "reason", None) for each in found] == (
        [reason] if reason else [None, None]
    )


def test_responses_are_no_pairs(tmp_path: Path) -> None:
    assert not holds_pairs(write(tmp_path / "a.jsonl", [{"prompt": "1?", "response": GOOD}]))
    assert not holds_pairs(write(tmp_path / "b.jsonl", []))


def test_pairs_of_sides_that_are_left() -> None:
    problem = Problem("p", "imported", "train", "2 + 3?", "")
    tokenizer = byte_level()

    def side(sample: int, length: int) -> Trajectory:
        ids = tuple(range(10, 10 + length))
        return Trajectory(
            f"p/{sample:03d}", "p", "m", sample, 0, (1, 2), ids, "encoded", "x" * length,
            (0, 0), (0, length), (0, 0), "stop", "correct",
        )  # type: ignore[arg-type]  # fmt: skip

    sides = [side(0, 5), side(1, 3), side(2, 4), side(5, 4), side(6, 4), side(7, 4), side(8, 40),
             side(9, 4)]  # fmt: skip
    rows = imported_pairs(problem, sides, tokenizer, PairSettings(max_length=20))
    pairs = [row for row in rows if isinstance(row, PreferencePair)]
    assert [(row.chosen_id, row.rejected_id) for row in pairs] == [("p/000", "p/001")]  # longer too
    reasons = [row.reason for row in rows if isinstance(row, Dropped)]
    assert reasons == ["no_pair", "no_pair", "identical", "too_long"]


@pytest.fixture
def datasets_there(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """`datasets` of this process goes to the stand-in too."""
    import datasets

    for name, value in (
        ("HF_ENDPOINT", hub.url), ("HF_HUB_OFFLINE", False),
        ("HF_DATASETS_CACHE", tmp_path / "datasets"), ("HF_MODULES_CACHE", tmp_path / "modules"),
    ):  # fmt: skip
        monkeypatch.setattr(datasets.config, name, value)
    monkeypatch.chdir(tmp_path)
    return hub


def put(hub: Hub, name: str, rows: list[dict[str, Any]], tmp_path: Path) -> str:
    path = tmp_path / "put.parquet"
    pl.DataFrame(rows).write_parquet(path)
    repo = Repo(private=False)
    repo.commits.append({"data/train-00000-of-00001.parquet": path.read_bytes()})
    hub.repos["dataset", f"{OWNER}/{name}"] = repo
    return f"{OWNER}/{name}"


@pytest.mark.slow
def test_preferences_of_others_are_trained_on(
    datasets_there: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": f"Start with {n}. Add 1. What is the last digit?",
         "chosen": f"{n} plus 1 is {n + 1}.\n</think>\n\n\\boxed{{{n + 1}}}",
         "rejected": "It is hard to say."}
        for n in range(6)
    ]  # fmt: skip
    rows.append({"prompt": "1?", "chosen": "", "rejected": "no"})
    name = put(datasets_there, "preferences", rows, tmp_path)
    code, said = told("pull", name, capsys=capsys)
    assert code == 1 and "is not a run of dto" in said and "--model MODEL" in said
    settings = [
        "problems.source=chains", "problems.dev=2", "train.evaluations=1", "train.dev_samples=1",
        "train.learning_rate=1e-4", "sample.max_tokens=64", "model.context=1024",
    ]  # fmt: skip
    changes = [part for each in settings for part in ("--set", each)]
    code, said = told("pull", name, "--model", "nano", *changes, capsys=capsys)
    assert code == 0 and "continue with: dto run runs/preferences" in said, said
    run = Path("runs/preferences")
    assert (manifest.read(run / "sample") or {})["dropped"] == {"empty_response": 1}
    pairs = [row for row in load_pairs(RunReader(run), 1024) if isinstance(row, TokenizedPair)]
    written = list(tables.read(run / "pair/rows.parquet", PreferencePair))
    assert len(pairs) == len(written) == 6
    assert {row.chosen_from for row in written} == {"imported"}
    plain = {row.rejected for row in written}
    assert all(text.endswith("</think>\n\nIt is hard to say.") for text in plain)
    assert len({ids.chosen_ids[-1] for ids in pairs} | {ids.rejected_ids[-1] for ids in pairs}) == 1
    opened = open_run(run, load_recipe(run / "recipe.yaml"))
    try:
        run_stages(opened, ["problems", "train"])
    finally:
        opened.close()
    assert (manifest.read(run / "train") or {})["rows"]["pairs"] == 6


def test_only_what_is_there_to_train_on_is_imported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "preferences"
    for split, side in (("train", GOOD), ("test", "5")):
        (folder / "data").mkdir(parents=True, exist_ok=True)
        rows = [{"prompt": f"{split}?", "chosen": side, "rejected": BAD}]
        pl.DataFrame(rows).write_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    found = [row for row in read_responses(str(folder)) if isinstance(row, Response)]
    assert [row.problem.question for row in found] == ["train?", "train?"]
    caplog.set_level("INFO", "dto")
    own = ProblemSettings(train=0, dev=0, test=0)
    assert len(list(imported_problems(str(folder), own, 0))) == 1
    assert caplog.text.count("split test is not imported") == 1


NOT_READ = [
    (
        {"a/x.parquet": True, "b/x.parquet": True, "README.md": False},
        "several configs: one, two",
    ),
    ({"notes.txt": False}, "cannot be loaded"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("files", "said"), NOT_READ)
def test_what_cannot_be_imported_is_one_line(
    files: dict[str, bool],
    said: str,
    datasets_there: Hub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = put(datasets_there, "odd", [{"a": 1}], tmp_path)
    repo = datasets_there.repos["dataset", name]
    table = repo.files["data/train-00000-of-00001.parquet"]
    configs = [
        {"config_name": "one", "data_files": "a/*"},
        {"config_name": "two", "data_files": "b/*"},
    ]
    card = f"---\n{yaml.safe_dump({'configs': configs})}---\n".encode()
    other = {path: table if is_table else b"" for path, is_table in files.items()}
    repo.commits[-1] = other | ({"README.md": card} if "README.md" in files else {})
    code, out = told("pull", name, "--model", "nano", capsys=capsys)
    assert code == 1 and re.search(said, out), out
    assert len(out.strip().splitlines()[-1:]) == 1 and "Traceback" not in out


@pytest.mark.slow
def test_gated_missing_and_wrong_columns(
    datasets_there: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = told("pull", f"{OWNER}/nothing", "--model", "nano", capsys=capsys)
    assert code == 1 and "is not on the Hub, or it is private" in out and "Traceback" not in out
    name = put(datasets_there, "numbers", [{"a": 1, "b": 2}], tmp_path)
    code, out = told("pull", name, "--model", "nano", capsys=capsys)
    assert code == 1 and "has no row that can be read" in out and "its fields are a, b" in out
    name = put(datasets_there, "gated", [{"prompt": "1?", "response": GOOD}], tmp_path)
    datasets_there.faults.append(Fault("GET", "/resolve/", times=99, status=403, code="GatedRepo"))
    datasets_there.faults.append(Fault("HEAD", "/resolve/", times=99, status=403, code="GatedRepo"))
    code, out = told("pull", name, "--model", "nano", capsys=capsys)
    assert code == 1 and "gated" in out and "Traceback" not in out, out


@pytest.mark.slow
def test_responses_of_others_become_trajectories(
    datasets_there: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"problem": "Start with 1. Add 2.", "generation": GOOD, "answer": "5"}]
    name = put(datasets_there, "responses", rows, tmp_path)
    code, said = told("pull", name, "--model", "nano", "--out", "here", capsys=capsys)
    assert code == 0 and "continue with: dto run here" in said, said
    (row,) = tables.read(Path("here/sample/rows.parquet"), Trajectory)
    assert (row.ids_from, row.grade, row.answer) == ("encoded", "correct", "5")
