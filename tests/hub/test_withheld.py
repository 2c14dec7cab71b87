"""Questions and gold answers of others' test sets: named, not published again, and read anew."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import yaml
from huggingface_hub import DatasetCard

from dto.errors import DtoError
from dto.hub.publish import publish
from dto.hub.pull import pending_stages, pull
from dto.pipeline import open_run, run_stages
from dto.recipe import load_recipe, make_recipe
from dto.records import NOWHERE, EvaluationRow, Problem
from dto.redact import withheld_stages
from dto.reporting.write import report
from dto.runs import manifest
from dto.runs.run import OpenRun, agree
from dto.viewer.data import RunTables
from dto.viewer.page import answers_line
from dto.viewer.render import show
from tests.commands import told
from tests.conftest import ROOT
from tests.hub.server import Hub
from tests.hub.test_preferences import datasets_there, put
from tests.hub.test_publish import NAME, published

__all__ = ["datasets_there"]
OUT = Path("runs/back")


@pytest.mark.parametrize(
    ("problems", "tasks", "stages"),
    [
        ({"source": "chains"}, [], ()),
        ({"source": "chains"}, ["chains", "sets/mine.jsonl", "./folder"], ()),
        ({"source": "chains"}, ["chains", "gsm8k"], ("test",)),
        ({"source": "gsm8k", "test": 0}, ["user/bench"], ("test",)),
        ({"source": "gsm8k"}, [], ("problems",)),
        ({"source": "mine.jsonl", "test_source": "math500"}, [], ("problems",)),
        ({"source": "math", "test_source": "mine.jsonl"}, [], ()),
        ({"source": "chains"}, ["squad"], ("test",)),  # the Hub has names without a user too
    ],
)  # fmt: skip
def test_whose_test_sets(
    problems: dict[str, object], tasks: list[str], stages: tuple[str, ...]
) -> None:
    settings = {"name": "r", "problems": {"test": 5} | problems, "evaluate": {"tasks": tasks}}
    assert withheld_stages(make_recipe(settings)) == stages


@pytest.fixture
def on_a_benchmark(datasets_there: Hub, tmp_path: Path) -> OpenRun:
    """A run that is as far as its samples, with questions of a dataset of the Hub."""
    rows = [
        {"problem": f"Start with {n}. Add 1. What is the last digit?", "answer": str((n + 1) % 10)}
        for n in range(10)
    ]
    name = put(datasets_there, "bench", rows, tmp_path)
    changes = {
        "name": "small", "problems.source": name, "problems.train": 3, "problems.dev": 2,
        "problems.test": 4, "sample.samples": 1,
    }  # fmt: skip
    run = open_run(
        tmp_path / "runs/small", load_recipe(ROOT / "pipelines/quickstart.yaml", changes)
    )
    run_stages(run, ("problems", "sample"))
    return run


@pytest.mark.slow
def test_its_questions_are_read_from_their_source_again(
    on_a_benchmark: OpenRun, datasets_there: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    run = on_a_benchmark
    card = publish(run, NAME).card
    before = pl.read_parquet(run.table("problems"))
    (run.path / "shown.parquet").write_bytes(published(datasets_there)["problems/rows.parquet"])
    after = pl.read_parquet(run.path / "shown.parquet")
    assert after.filter(split="test")["question"].to_list() == [""] * 4
    assert after.filter(split="test")["answer"].to_list() == [""] * 4
    assert after.filter(pl.col("split") != "test").equals(before.filter(pl.col("split") != "test"))
    assert after.select("id", "task", "split").equals(before.select("id", "task", "split"))
    configs = {each["config_name"]: each for each in DatasetCard(card).data.to_dict()["configs"]}
    splits = [each["split"] for each in configs["problems"]["data_files"]]
    assert splits == ["train", "validation"]
    assert "gold answers of `problems` are not included" in card
    files = published(datasets_there)
    assert not [
        path for path in files if path in ("problems/manifest.json", "problems/test.parquet")
    ]
    texts = b"".join(data for path, data in files.items() if not path.endswith(".parquet"))
    asked = before.filter(split="test")["question"].to_list()
    assert not [question for question in asked if question.encode() in texts]

    code, said = told("pull", NAME, "--out", str(OUT), capsys=capsys)
    assert code == 0 and "problems: test questions were not published" in said
    assert pending_stages(OUT) == ("problems",)
    back = open_run(OUT, load_recipe(OUT / "recipe.yaml"))
    (OUT / "problems/journal").write_text('{"head": {"config": {}}}\n')  # and without connection
    again = publish(back, NAME).uploaded
    assert again is not None and not again.changed  # also before they are there again
    (OUT / "problems/journal").unlink()
    with pytest.raises(DtoError, match="without the test questions of problems: run `dto run"):
        publish(back, NAME, test_sets=True)
    assert "problems/rows.parquet" in published(datasets_there)


@pytest.mark.slow
def test_a_run_goes_on_where_they_are_there_again(
    on_a_benchmark: OpenRun, datasets_there: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    run = on_a_benchmark
    publish(run, NAME)
    pull(NAME, OUT)
    caplog.set_level("INFO", "dto")
    back = open_run(OUT, load_recipe(OUT / "recipe.yaml"))
    run_stages(back, ("problems", "sample"))
    done = [line.split()[0] for line in caplog.messages if "already finished" in line]
    assert done == ["sample"]
    assert back.table("problems").read_bytes() == run.table("problems").read_bytes()
    again = publish(back, NAME).uploaded
    assert again is not None and not again.changed


def with_tasks(run: OpenRun) -> OpenRun:
    """The run as if its test problems were two test sets of others, in a table of their own."""
    from dto import tables

    settings = yaml.safe_load((run / "recipe.yaml").read_text("utf-8"))
    settings["evaluate"]["tasks"] = ["gsm8k", "math500"]
    (run / "recipe.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    rows = [row for row in tables.read(run.table("problems"), Problem) if row.split == "test"]
    task = iter(["gsm8k", "math500"] * len(rows))
    values = [{name: getattr(row, name) for name in Problem.__slots__} for row in rows]
    (run / "test").mkdir()
    tested = [Problem(**each | {"task": next(task)}) for each in values]  # type: ignore[arg-type]
    tables.write(run.table("test"), Problem, tested)
    manifest.write(run / "test", manifest.finished("test", {}, None, rows=len(tested)))
    return run.following(load_recipe(run / "recipe.yaml"))


def test_test_sets_stay_where_they_are(run: OpenRun, hub: Hub) -> None:
    other = with_tasks(run)
    card = publish(other, NAME).card
    configs = {each["config_name"] for each in DatasetCard(card).data.to_dict()["configs"]}
    assert "test_sets" not in configs and {"evaluation", "problems"} <= configs
    assert "- Test questions: `openai/gsm8k` at `" in card
    assert DatasetCard(card).data.license == "mit"  # of what is in it
    assert "| gsm8k | trained | none | 3 × 2 |" in card and "| mean | trained | none |" in card
    assert json.loads(published(hub)["run.json"])["withheld"] == ["test"]
    pull(NAME, OUT)
    reports = [report(each).as_json() for each in (OUT, run.path)]
    for part in ("rows", "averages"):
        assert reports[0][part] == reports[1][part]
    shown = list(map(answers_line, RunTables(OUT).answers()))
    assert [each.title for each in shown] == [each.id.rpartition("/")[0] for each in shown]
    with pytest.raises(DtoError, match=r"public test sets; if their licence .* --test-sets"):
        publish(other, NAME, only=("test_sets",))
    card = publish(other, NAME, test_sets=True).card
    assert DatasetCard(card).data.license is None  # of some of the rows none is known
    assert "test/manifest.json" in published(hub)
    assert published(hub)["test/rows.parquet"] == run.table("test").read_bytes()


def test_responses_to_questions_that_are_withheld_are_withheld_too(
    run: OpenRun, hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They restate the question, in text and in ids; a run with questions of its own has them."""
    from dto import tables

    path = run.table("evaluate")
    own = publish(run, NAME, dry_run=True)
    assert (own.folder / "evaluate/rows.parquet").read_bytes() == path.read_bytes()
    assert "are not included" not in own.card and "restate" not in caplog.text
    rows = list(tables.read(path, EvaluationRow))
    assert any(row.text and row.token_ids for row in rows)
    assert any(trial.token_ids for row in rows for trial in row.trials)

    other = with_tasks(run)
    dry = publish(other, NAME, dry_run=True)
    assert "responses of `evaluate` to questions of public test sets are not" in dry.card
    assert "evaluate is published without the texts and token ids of responses" in caplog.text
    assert "replaced" not in dry.card  # nothing private was in them
    publish(other, NAME)
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(published(hub)["evaluate/rows.parquet"])
    nowhere = dict.fromkeys(("inserted_tokens", "thinking", "inserted", "conclusion"), NOWHERE)
    bare = [
        replace(
            row,
            token_ids=(),
            text="",
            trials=tuple(replace(trial, token_ids=(), text="", char=0) for trial in row.trials),
            **nowhere,
        )
        for row in rows
    ]
    assert list(tables.read(copy, EvaluationRow)) == bare
    texts = [row.text for row in rows if row.text]
    for data in published(hub).values():
        assert not [text for text in texts if text.encode() in data]
    before, after = manifest.read(run / "evaluate"), json.loads(
        published(hub)["evaluate/manifest.json"]
    )  # fmt: skip
    assert before is not None and after["digest"] == before["digest"]
    pull(NAME, OUT)
    [view, *_] = RunTables(OUT).answers()
    assert "published without the test questions" in str(show(view))
    back = open_run(OUT, load_recipe(OUT / "recipe.yaml"), recompute=agree)
    again = publish(back, NAME).uploaded
    back.close()
    assert again is not None and not again.changed
    publish(other, NAME, test_sets=True)
    assert published(hub)["evaluate/rows.parquet"] == path.read_bytes()


@pytest.mark.slow
def test_a_file_of_ones_own_beside_others_test_questions(
    datasets_there: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are one table: who pulls the run needs the file, which is told to who publishes it."""

    def asked(more: int) -> list[dict[str, str]]:
        text = f"Start with {{}}. Add {more}. What is the last digit?"
        return [{"problem": text.format(n), "answer": str((n + more) % 10)} for n in range(8)]

    name = put(datasets_there, "bench", asked(1), tmp_path)
    mine = Path("mine.jsonl")
    mine.write_text("".join(json.dumps(row) + "\n" for row in asked(2)), encoding="utf-8")
    changes = {
        "name": "small", "problems.source": "mine.jsonl", "problems.test_source": name,
        "problems.train": 3, "problems.dev": 2, "problems.test": 4, "sample.samples": 1,
    }  # fmt: skip
    run = open_run(
        tmp_path / "runs/small", load_recipe(ROOT / "pipelines/quickstart.yaml", changes)
    )
    run_stages(run, ("problems", "sample"))
    publish(run, NAME)
    assert "can be continued only with your file mine.jsonl" in caplog.text
    pull(NAME, OUT)
    mine.rename("elsewhere.jsonl")
    for held in (None, mine):  # without the file, then with it: nothing has to be resumed
        back = open_run(OUT, load_recipe(OUT / "recipe.yaml"))
        if held is None:
            with pytest.raises(DtoError, match=r"mine\.jsonl does not exist"):
                run_stages(back, ("problems",))
            Path("elsewhere.jsonl").rename(mine)
        else:
            run_stages(back, ("problems", "sample"))
            assert back.table("problems").read_bytes() == run.table("problems").read_bytes()
        back.close()


def test_a_report_and_a_view_need_no_test_questions(
    run: OpenRun, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(run, NAME)
    pull(NAME, OUT)
    settings = yaml.safe_load((OUT / "recipe.yaml").read_text("utf-8"))
    settings["problems"]["source"] = "gone.jsonl"  # or a gated dataset, or no connection
    (OUT / "recipe.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (OUT / "problems/manifest.json").unlink()
    code, said = told("report", str(OUT), capsys=capsys)
    assert code == 0 and "gone.jsonl" not in said
    assert told("view", str(OUT), "--no-open", capsys=capsys)[0] == 0
    assert pending_stages(OUT) == ("problems",)
    code, said = told("segment", str(OUT), capsys=capsys)
    assert code == 1 and "gone.jsonl does not exist" in said
