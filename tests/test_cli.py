"""The command line: plans without weights, errors in one line, exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dto import __version__, tables
from dto.pipeline import open_run, stage_of
from dto.recipe import load_recipe
from dto.records import Problem, Segment, Trajectory
from dto.runs.journal import Entry
from dto.runs.stage import Runner
from tests.commands import dto

ROOT = Path(__file__).parents[1]
NANO = ROOT / "dto/nano/weights/nano"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_has_a_plan_and_is_short(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = dto("run", "--dry-run", str(path), capsys=capsys)
    assert code == 0
    ends = ("compare   ",) if path.stem == "compare" else ("train", "report")
    for word in ("sample", *ends, "\\boxed", "</think>"):
        assert word in out
    estimates = any(line.startswith("estimate ") for line in out.splitlines())
    assert estimates == ("estimate: d_exit" in out)
    assert not (path.parent / "runs").exists() and not Path("runs").exists()
    lines = path.read_text().splitlines()
    assert len(lines) <= 15
    assert lines[0] == f"# dto run pipelines/{path.name}"


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "pipelines/quickstart.yaml"])
def test_packaged_recipes_go_by_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = dto("run", "--dry-run", name, capsys=capsys)
    assert code == 0
    assert "quickstart: nano on transformers" in out


def test_the_plan_shows_the_prompt_as_the_model_reads_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, out, _ = dto("run", "--dry-run", "quickstart", capsys=capsys)
    assert "Start with " in out and "<think>" in out


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        (
            "sampel: {samples: 4}",
            [],
            "recipe r.yaml: unknown key 'sampel' (did you mean 'sample'?); allowed: name, seed",
        ),
        ("sample: {n: 4}", [], "unknown key 'sample.n'; allowed: temperature, top_p, top_k"),
        (
            "evaluate: {exits: [{name: a, treshold: 1}]}",
            [],
            "unknown key 'evaluate.exits.0.treshold'",
        ),
        (
            "evaluate: {exits: [{name: a}, {name: a, policy: budget}]}",
            [],
            "exits has 'a' twice",
        ),
        ("evaluate: {models: [base, base]}", [], "models has 'base' twice"),
        (
            "model: {api_key: sk-proj-SECRET}",
            [],
            "model.api_key: it must name",
        ),
        ("model: {server: 'http://bob:SECRET@h/v1'}", [], "model.server: the URL"),
        ("model: {server: 'localhost:8000'}", [], "model.server: not an http://"),
        ("model: {family: typo}", [], "prompts/ has no folder 'typo': use default, nano"),
        (
            "train: {method: cft}\nlabel: {thinking: false}",
            [],
            "train.method cft imitates a verdict inside the thinking",
        ),
        ("estimate: {cap: 4}", [], "4 successes in 4 trials do not show p > 0.650"),
        ("sample: {samples: 0}", [], "sample.samples = 0: Input should be greater than or equal"),
        ("- a", [], "holds list, not a mapping"),
        ("a: [", [], "cannot be read: "),
        ("seed: 1", ["--set", "seed"], "write it as key=value"),
        ("seed: 1", ["--set", "=1"], "write it as key=value"),
        ("seed: 1", ["--set", "seed.x=1"], "'seed.x' cannot be set: it is inside a value"),
        (
            "evaluate: {exits: [{name: a}]}",
            ["--set", "evaluate.exits.1.threshold=0.5"],
            "'evaluate.exits.1.threshold' cannot be set: '1' is no place in a list of 1",
        ),
        ("seed: 1", ["--set", "sampel.samples=2"], "error: unknown key 'sampel' (did you mean"),
        ("seed: 1", ["--set", "judge.nam=x"], "unknown key 'judge.nam' (did you mean 'name'?)"),
        ("seed: 1", ["--set", "sample.samples=-1"], "sample.samples = -1"),
        ("problems: {source: no.jsonl}", [], "file no.jsonl does not exist: check the path"),
    ],
)
def test_mistakes_in_a_recipe_are_one_line(
    recipe: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("r.yaml").write_text(recipe)
    code, out, err = dto("run", "r.yaml", *arguments, capsys=capsys)
    assert code == 1
    assert err.startswith("dto: error: ") and err.count("\n") == 1
    assert message in err
    assert "SECRET" not in out + err + "".join(p.read_text() for p in Path().rglob("runs/*/*.yaml"))
    assert out == ""


def test_a_missing_recipe_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = dto("estimate", "no.yaml", capsys=capsys)
    assert (code, err.count("\n")) == (1, 1)
    assert "there is no recipe or run no.yaml" in err and "quickstart" in err
    _, _, err = dto("run", "quikstart", capsys=capsys)
    assert "did you mean 'quickstart'?" in err


def test_a_folder_that_is_no_run_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = dto("report", ".", capsys=capsys)
    assert (code, err) == (1, "dto: error: . is not a run directory: it has no recipe.yaml\n")


def test_help_says_whole_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = dto("--help", capsys=capsys)
    assert code == 0 and "..." not in out.replace("[ARGS]...", "")


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = dto("--version", capsys=capsys)
    assert (code, out) == (0, f"dto {__version__}\n")


def test_settings_can_be_given_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--set", "sample.samples=7", "--set", "problems.train=11", "--set", "seed=5")
    _, out, _ = dto("run", "--dry-run", "quickstart", *arguments, capsys=capsys)
    assert "77 responses" in out and "seed 5" in out


@pytest.mark.slow
@pytest.mark.skipif(not NANO.is_dir(), reason="the embedded model's weights are not here")
@pytest.mark.parametrize("granularity", ["pattern", "cue"])
def test_a_cue_loop_costs_few_boundaries_and_is_told(
    granularity: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    thinking = "It is 2.\n\n" + "Wait. " * 3_000 + "But wait, no.\n\n" * 400
    response = f"<think>\n{thinking}</think>\n\n\\boxed{{2}}"
    row = {"question": "1+1?", "response": response, "answer": "2"}
    Path("rows.jsonl").write_text(json.dumps(row) + "\n")
    setting = ("--set", f"segment.granularity={granularity}")
    code, _, err = dto("import", "rows.jsonl", "--model", "nano", *setting, capsys=capsys)
    assert code == 0, err
    code, _, err = dto("segment", "runs/rows", capsys=capsys)
    assert code == 0, err
    assert "repeated sentences cut as one segment: 2 times" in caplog.text
    segments = list(tables.read(Path("runs/rows/segment/rows.parquet"), Segment))
    assert [row.kind for row in segments].count("loop") == 2 and len(segments) <= 6


@pytest.mark.slow
@pytest.mark.skipif(not NANO.is_dir(), reason="the embedded model's weights are not here")
def test_import_enters_at_segment(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    Path("rows.jsonl").write_text(
        '{"question": "1+1?", "response": "<think>\\nIt is 2.\\n\\nWait, let me check. Yes.\\n'
        '</think>\\n\\n\\\\boxed{2}", "answer": "2"}\n'
        '{"question": "1+1?", "response": "<think>\\nHmm", "answer": "2"}\n'
    )
    setting = ("--set", "segment.granularity=cue")
    code, _, err = dto("import", "rows.jsonl", "--model", "nano", *setting, capsys=capsys)
    assert code == 0, err
    assert "granularity: cue" in Path("runs/rows/recipe.yaml").read_text()
    rows = list(tables.read(Path("runs/rows/sample/rows.parquet"), Trajectory))
    assert [(row.sample, row.grade, row.ids_from) for row in rows] == [
        (0, "correct", "encoded"),
        (1, "truncated", "encoded"),
    ]
    assert len(list(tables.read(Path("runs/rows/problems/rows.parquet"), Problem))) == 1
    code, _, err = dto("segment", "runs/rows", capsys=capsys)
    assert code == 0, err
    segments = list(tables.read(Path("runs/rows/segment/rows.parquet"), Segment))
    assert [row.cue for row in segments if row.trajectory_id == rows[0].id] == ["", "Wait"]
    code, _, err = dto("import", "rows.jsonl", "--model", "nano", capsys=capsys)
    assert (code, "granularity" in err) == (1, True)
    code, _, err = dto("import", "rows.jsonl", "--model", "nano", *setting, capsys=capsys)
    assert code == 0, err
    assert rows == list(tables.read(Path("runs/rows/sample/rows.parquet"), Trajectory))
    assert "repeated sentences" not in caplog.text


@pytest.mark.skipif(not NANO.is_dir(), reason="the embedded model's weights are not here")
def test_import_in_another_models_tags_says_what_to_set(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    Path("rows.jsonl").write_text(
        '{"question": "1+1?", "response": "[THINK]It is 2.[/THINK]\\\\boxed{2}", "answer": "2"}\n'
        '{"question": "1+2?", "response": "[THINK]It is 3.[/THINK]\\\\boxed{3}", "answer": "3"}\n'
        '{"question": "1+3?", "response": "<think>It is 4.</think>\\\\boxed{4}", "answer": "4"}\n'
    )
    code, _, err = dto("import", "rows.jsonl", "--model", "nano", capsys=capsys)
    assert code == 0 and "1 rows, 2 dropped: foreign_tags" in caplog.text, err
    assert "most responses use other thinking tags: " in caplog.text
    assert 'set model.think to ["[THINK]", "[/THINK]"]' in caplog.text
    think = ("--set", 'model.think=["[THINK]", "[/THINK]"]', "--recompute")
    code, _, err = dto("import", "rows.jsonl", "--model", "nano", *think, capsys=capsys)
    assert code == 1 and "marks the thinking with <think>, but model.think is [THINK]" in err
    typo = ("--set", "model.template.enable_thinkin=false", "--out", "runs/other")
    code, _, err = dto("import", "rows.jsonl", "--model", "nano", *typo, capsys=capsys)
    assert code == 1 and "has no argument 'enable_thinkin'" in err and "Traceback" not in err


def heed_interrupts() -> None:
    """A process that was started in the background ignores them, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def responses(path: str, *questions: str) -> str:
    rows = (
        {"question": f"{question}?", "response": f"<think>\nHm.\n</think>\n\n\\boxed{{{number}}}",
         "answer": number}
        for number, question in enumerate(questions)
    )  # fmt: skip
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def questions(split: str) -> set[str]:
    rows = tables.read(Path("runs/x/problems/rows.parquet"), Problem)
    return {row.question for row in rows if row.split == split}


IMPORT = ("import", "rows.jsonl", "--model", "nano", "--out", "runs/x")


@pytest.mark.slow
@pytest.mark.parametrize("again", [IMPORT, ("sample", "runs/x")])
@pytest.mark.parametrize("done", [(), ("problems",), ("problems", "two responses")])
def test_a_killed_import_goes_on_with_its_own_rows(
    again: tuple[str, ...], done: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    responses("rows.jsonl", "a", "b", "c")
    assert dto(*IMPORT, capsys=capsys)[0] == 0
    written = [Path(f"runs/x/{stage}/rows.parquet") for stage in ("problems", "sample")]
    before = [path.read_bytes() for path in written]
    rows = list(tables.read(written[1], Trajectory))
    shutil.rmtree("runs/x/sample")
    if not done:
        shutil.rmtree("runs/x/problems")
    if "two responses" in done:
        run = open_run(Path("runs/x"), load_recipe("runs/x/recipe.yaml"))
        with Runner(
            run / "sample", Trajectory, run.config(stage_of(run.recipe, "sample"))
        ) as stage:
            for row in rows[1:]:
                stage._journal.append(Entry(row.id, [row]))
        run.close()
    code, _, err = dto(*again, capsys=capsys)
    assert code == 0, err
    assert [path.read_bytes() for path in written] == before


def test_another_source_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    responses("rows.jsonl", "a", "b")
    assert dto(*IMPORT, capsys=capsys)[0] == 0
    responses("other.jsonl", "c")
    code, _, err = dto("import", "other.jsonl", *IMPORT[2:], capsys=capsys)
    assert (code, err.count("\n")) == (1, 1)
    assert 'sample.imported ("rows.jsonl" → "other.jsonl")' in err
    responses("rows.jsonl", "c", "d")
    for command in (IMPORT, ("sample", "runs/x")):
        code, _, err = dto(*command, capsys=capsys)
        assert (code, err.count("\n")) == (1, 1)
        assert "content of rows.jsonl" in err


def test_a_source_that_has_gone_is_not_missed_when_it_was_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    responses("rows.jsonl", "a", "b")
    assert dto(*IMPORT, capsys=capsys)[0] == 0
    Path("rows.jsonl").unlink()
    code, _, err = dto("sample", "runs/x", capsys=capsys)
    assert code == 0, err


def test_an_import_without_a_row_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    Path("rows.jsonl").write_text('{"question": "a?"}\n')
    code, _, err = dto(*IMPORT, capsys=capsys)
    assert (code, err.count("\n")) == (1, 1)
    assert "rows.jsonl has no row that can be read: the last one is dropped as missing_field" in err


@pytest.mark.slow
def test_an_import_drops_gold_answers_that_cannot_be_read(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    responses("rows.jsonl", "a", "b")
    lines = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    lines[0]["answer"] = r"\neg p"
    Path("rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with caplog.at_level("INFO", "dto"):
        assert dto(*IMPORT, capsys=capsys)[0] == 0
    assert questions("train") == {"b?"}
    told = [line for line in caplog.messages if "1 dropped: unreadable_gold" in line]
    assert [line.split()[0] for line in told] == ["problems", "sample"]
    assert tables.count(Path("runs/x/sample/rows.parquet")) == len(lines) - 1


def test_an_imported_run_has_dev_and_test_problems_of_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    responses("rows.jsonl", *"abcd")
    rows = ({"problem": f"{question}?", "answer": 1} for question in "abcdefghij")
    Path("own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert dto(*IMPORT, capsys=capsys)[0] == 0
    sampled = Path("runs/x/sample/manifest.json").read_text()
    code, _, err = dto("run", "runs/x", capsys=capsys)
    assert (code, err.count("\n")) == (1, 1)
    assert "stage train needs dev problems" in err
    assert "--set problems.source=FILE|HUB --set problems.dev=300 --set problems.test=400`" in err
    own = ("problems.source=own.jsonl", "problems.dev=2", "problems.test=4")
    changes = [part for change in own for part in ("--set", change)]
    code, _, err = dto("sample", "runs/x", *changes, capsys=capsys)
    assert code == 0, err
    assert Path("runs/x/sample/manifest.json").read_text() == sampled
    assert questions("train") == {"a?", "b?", "c?", "d?"}
    assert questions("dev") | questions("test") == {f"{question}?" for question in "efghij"}
    assert (len(questions("dev")), len(questions("test"))) == (2, 4)
    code, _, err = dto(
        *IMPORT, *changes, "--set", "problems.dev=3", "--set", "problems.test=3", capsys=capsys
    )
    assert code == 0 and len(questions("dev")) == 3, err  # questions cost nothing
    assert Path("runs/x/sample/manifest.json").read_text() == sampled
    code, out, _ = dto("run", "--dry-run", "runs/x", capsys=capsys)
    assert "problems  imported train, 3 dev, 3 test from own.jsonl" in out and "a?" in out


def test_one_stage_again(capsys: pytest.CaptureFixture[str]) -> None:
    responses("rows.jsonl", "a", "b")
    assert dto(*IMPORT, capsys=capsys)[0] == 0
    places = [Path(f"runs/x/{stage}/manifest.json") for stage in ("problems", "sample")]
    before = [place.stat().st_mtime_ns for place in places]
    digest = json.loads(places[1].read_text())["digest"]
    code, _, err = dto("sample", "runs/x", "--recompute", capsys=capsys)
    assert code == 0, err
    after = [place.stat().st_mtime_ns for place in places]
    assert after[0] == before[0] and after[1] > before[1]
    assert json.loads(places[1].read_text())["digest"] == digest


@pytest.mark.slow
def test_ctrl_c_while_processes_start_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    responses("rows.jsonl", "a", "b")
    assert dto(*IMPORT, capsys=capsys)[0] == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "dto.cli", "segment", "runs/x"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )

    def starting() -> int:
        family = psutil.Process(process.pid).children()
        return sum("spawn_main" in " ".join(each.cmdline()) for each in family)

    while process.poll() is None and starting() < min(8, os.cpu_count() or 1):
        time.sleep(0.01)
    time.sleep(0.2)  # they import spaCy now
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    lines = [line for line in err.splitlines() if line]
    way_on = "dto segment runs/x"
    assert lines[1:] == [f"dto: interrupted; finished rows are kept; continue with: {way_on}"]


@pytest.mark.slow
@pytest.mark.skipif(not NANO.is_dir(), reason="the embedded model's weights are not here")
def test_ctrl_c_keeps_what_was_computed_and_says_how_to_go_on() -> None:
    Path("r.yaml").write_text(
        "model: {name: nano, family: nano, context: 1024, slots: 4}\nwindow: 4\n"
        "sample: {samples: 1, temperature: 1.0, top_p: 1.0, max_tokens: 400}\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "dto.cli", "sample", "r.yaml"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    journal = Path("runs/r/sample/journal")
    while process.poll() is None and not (journal.exists() and b'\n{"key"' in journal.read_bytes()):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == (
        "dto: interrupted; finished rows are kept; continue with: dto sample runs/r"
    )
    assert "Traceback" not in err
    assert b'\n{"key"' in journal.read_bytes()
    assert not Path("runs/r/sample/rows.parquet").exists()


def test_the_report_of_a_comparison_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe(ROOT / "pipelines" / "compare.yaml", {"compare.methods": ["sft"]})
    open_run(Path("run"), recipe).close()
    code, _, err = dto("report", "run", capsys=capsys)
    assert code == 1 and "method base is not finished in run: run `dto run run`" in err
    assert not Path("run/compare").exists()
