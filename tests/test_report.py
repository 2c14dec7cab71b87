from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dto import tables
from dto.errors import DtoError
from dto.exits.deer import Deer
from dto.recipe import EvaluateSettings, Recipe
from dto.records import EvaluationRow, Problem
from dto.reporting.cost import StageCost, break_even, break_even_sentences
from dto.reporting.evaluation import Figures
from dto.reporting.page import Section
from dto.reporting.pictures import front, save
from dto.reporting.write import report
from dto.settings import ExitPolicy
from dto.statistics import NOTHING, Estimate

PROBLEMS, SAMPLES = 40, 2
FIELDS = {
    "model", "exit", "problems", "accuracy", "tokens", "gain", "ratio", "truncated", "failed",
}  # fmt: skip
MORE = {
    "samples", "thinking_tokens", "trial_tokens", "efficiency", "attention_flops", "seconds_p50",
    "seconds_p95",
}  # fmt: skip

Change = Callable[[EvaluationRow], EvaluationRow]


def row(model: str, exit: str, problem: int, sample: int) -> EvaluationRow:
    """The base is right on 3 of 4 problems in 200 tokens; trained on 9 of 10 in 100; deer saves."""
    right = problem % 4 != 0 if model == "base" else problem % 10 != 0
    thinking, trial = (180, 0) if model == "base" else (80, 0)
    if exit == "deer":
        thinking, trial = 60, 10
    return EvaluationRow(
        id=EvaluationRow.make_id(model, exit, f"{problem:03d}", sample),
        model=model,
        exit=exit,
        problem_id=f"{problem:03d}",
        sample=sample,
        seed=sample,
        grade="correct" if right else "wrong",
        answer="2",
        reason="",
        exit_reason="policy" if exit == "deer" else "closed",
        thinking_tokens=thinking,
        answer_tokens=20,
        trial_tokens=trial,
        tokens=thinking + 20 + trial,
        prompt_tokens=10,
        attention_flops=1000.0 * thinking,
    )


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """A run directory as the runner leaves it, with rows changed or (None) left out."""

    def make(
        change: Callable[[EvaluationRow], EvaluationRow | None] = lambda row: row,
        tasks: tuple[str, ...] = (),
    ) -> Path:
        recipe = Recipe(
            name="toy",
            evaluate=EvaluateSettings(
                samples=SAMPLES,
                exits=(ExitPolicy(name="none"), Deer(name="deer")),
                tasks=tasks,
            ),
        )
        (tmp_path / "recipe.yaml").write_text(json.dumps(recipe.model_dump(mode="json")))
        rows = [
            changed
            for model in ("base", "trained")
            for exit in ("deer", "none")
            for problem in range(PROBLEMS)
            for sample in range(SAMPLES)
            if (changed := change(row(model, exit, problem, sample))) is not None
        ]
        for stage, tokens in (("sample", 4000), ("estimate", 2000), ("evaluate", 9000)):
            manifest(tmp_path / stage, tokens)
        manifest(tmp_path / "train", 1000, tokens_trained=1050, steps=12, kept_step=12)
        history = [
            {"step": step, "accuracy": accuracy, "tokens_mean": tokens}
            for step, accuracy, tokens in ((0, 0.7, 200.0), (12, 0.8, 100.0))
        ]
        lines = [f"{json.dumps(score)}\n" for score in history]
        (tmp_path / "train" / "history.jsonl").write_text("".join(lines))
        tables.write(
            tmp_path / "evaluate" / "rows.parquet",
            EvaluationRow,
            sorted(rows, key=lambda row: row.id),
        )
        pl.DataFrame(
            {"id": [row.id for row in rows], "seconds": [1.0 + row.sample for row in rows]}
        ).write_parquet(tmp_path / "evaluate" / "timings.parquet")
        names = [Path(task).stem for task in tasks] or ["toy"]
        asked = tmp_path / ("test" if tasks else "problems")
        asked.mkdir()
        tables.write(
            asked / "rows.parquet",
            Problem,
            [
                Problem(f"{n:03d}", names[n % len(names)], "test", f"{n}?", "2")
                for n in range(PROBLEMS)
            ],
        )
        return tmp_path

    return make


def manifest(stage: Path, tokens: int, **counts: Any) -> None:
    stage.mkdir(exist_ok=True)
    usage = {
        "requests": 1, "prompt": 10, "cached": 5, "generated": tokens, "wasted": 0,
        "attention_flops": 1e6,
    }  # fmt: skip
    done = {"rows": 3, "dropped": {"no_exit": 2}, "usage": usage, "seconds": 1.5}
    (stage / "manifest.json").write_text(json.dumps(done | {"peak_memory": 2**20} | counts))


def rows_by_name(run: Path) -> dict[tuple[str, str], dict[str, Any]]:
    data = json.loads((run / "report" / "report.json").read_text())
    return {(each["model"], each["exit"]): each for each in data["rows"]}


@pytest.mark.slow
def test_the_figures(make_run: Callable[..., Path]) -> None:
    run = make_run()
    report(run)
    rows = rows_by_name(run)
    assert list(rows) == [
        ("base", "none"), ("base", "deer"), ("trained", "none"), ("trained", "deer"),
    ]  # fmt: skip
    assert all(each.keys() >= FIELDS for each in rows.values())
    assert all(each["more"].keys() >= MORE for each in rows.values())
    base, deer = rows["base", "none"], rows["base", "deer"]
    trained = rows["trained", "none"]
    assert (base["problems"], base["more"]["samples"], base["responses"]) == (40, 2, 80)
    assert base["accuracy"]["value"] == 0.75
    assert base["accuracy"]["low"] < 0.75 < base["accuracy"]["high"]
    assert base["more"]["pass_at_samples"] == base["more"]["pass_at_1"] == 0.75
    assert (base["tokens"]["value"], base["more"]["efficiency"]["value"]) == (200, 1.0)
    assert (deer["tokens"]["value"], deer["more"]["trial_tokens"]) == (90, 10)
    assert deer["more"]["efficiency"]["value"] == pytest.approx(200 / 90)
    assert trained["more"]["efficiency"]["value"] == pytest.approx((0.9 / 0.75) / (100 / 200))
    assert trained["more"]["attention_flops"] == 80_000
    assert (base["more"]["seconds_p50"], base["more"]["seconds_p95"]) == (1.5, 2.0)
    assert deer["more"]["exit_reasons"] == {"policy": 80}


@pytest.mark.slow
def test_the_comparison_is_paired_with_the_base(make_run: Callable[..., Path]) -> None:
    result = report(make_run())
    by_name = {row.arm: row for row in result.rows}
    base = by_name["base", "none"]
    assert (base.gain, base.ratio, base.verdict) == (None, None, "base")
    deer, trained = by_name["base", "deer"], by_name["trained", "none"]
    assert deer.gain is not None and deer.ratio is not None and trained.gain is not None
    assert (deer.gain.value, deer.gain.low, deer.gain.high) == (0, 0, 0)
    assert deer.verdict == "no difference shown"
    assert deer.ratio.value == deer.ratio.low == pytest.approx(0.45)
    assert trained.gain.value == pytest.approx(0.15)
    # problems gained 0.25 - 0.05, lost 0.05: by hand, mean ± t(39) · s / sqrt(40)
    assert trained.gain.low == pytest.approx(0.15 - 2.0227 * 0.48305 / 40**0.5, abs=2e-3)
    assert trained.verdict == ("gain" if trained.gain.low > 0 else "no difference shown")


@pytest.mark.slow
def test_truncated_counts_as_not_correct_and_failed_leaves(make_run: Callable[..., Path]) -> None:
    def change(row: EvaluationRow) -> EvaluationRow:
        if (row.model, row.exit, row.sample) != ("base", "none", 0):
            return row
        if row.problem_id == "001":
            return replace(row, grade="truncated")
        return replace(row, grade="failed", tokens=0) if row.problem_id == "002" else row

    run = make_run(change)
    result = report(run)
    base = rows_by_name(run)["base", "none"]
    assert (base["truncated"], base["failed"], base["responses"]) == (1, 1, 79)
    assert base["accuracy"]["value"] == pytest.approx(58 / 79)
    assert base["tokens"]["value"] == 200
    # 1 of 80 is more than 1 %
    assert {row.verdict for row in result.rows} == {"base", "too many failed"}
    assert "more than 1% failed responses is not compared" in str(result)


@pytest.mark.slow
def test_rows_that_an_error_kept_out_count_as_failed(make_run: Callable[..., Path]) -> None:
    run = make_run(lambda row: None if (row.model, row.problem_id) == ("trained", "003") else row)
    result = report(run)
    assert rows_by_name(run)["trained", "none"]["failed"] == 2
    verdicts = {row.arm: row.verdict for row in result.rows}
    assert verdicts["trained", "none"] == "too many failed"
    assert result.break_even is None
    assert verdicts["base", "deer"] == "no difference shown"


@pytest.mark.slow
def test_truncated_leave_the_accuracy_over_completed(make_run: Callable[..., Path]) -> None:
    run = make_run(lambda row: replace(row, grade="truncated") if row.problem_id < "008" else row)
    report(run)
    base = rows_by_name(run)["base", "none"]
    completed = base["more"]["completed"]
    assert (base["responses"], completed["samples"], base["truncated"]) == (80, 64, 16)
    assert base["accuracy"]["value"] == pytest.approx(48 / 80)
    assert completed["value"] == pytest.approx(48 / 64)
    assert completed["low"] < 0.75 < completed["high"]


@pytest.mark.slow
def test_several_tasks_and_their_mean(make_run: Callable[..., Path]) -> None:
    """Even problems are of one task, odd ones of the other: the base is right on half, and all."""
    result = report(make_run(tasks=("hard.jsonl", "hub/easy")))
    assert result.tasks == ["hard", "easy"]
    rows = {(row.task, row.model, row.exit): row for row in result.rows}
    assert len(rows) == 8
    assert [rows[task, "base", "none"].accuracy.value for task in result.tasks] == [0.5, 1.0]
    assert {row.failed for row in result.rows} == {0}
    gains = {name: row.gain.value for name, row in rows.items() if row.gain is not None}
    assert gains["hard", "trained", "none"] == pytest.approx(0.3)
    assert gains["easy", "trained", "none"] == pytest.approx(0.0)
    means = {(row.model, row.exit): row for row in result.averages}
    base, trained = means["base", "none"], means["trained", "none"]
    assert (base.accuracy.value, base.gain, base.ratio) == (0.75, None, None)
    assert trained.gain is not None and trained.ratio is not None
    assert (trained.more["tasks"], trained.tokens.value, trained.ratio.value) == (2, 100, 0.5)
    assert trained.gain.value == pytest.approx(0.15)
    assert trained.gain.low < 0.15 < trained.gain.high
    assert result.break_even is not None and result.break_even.tokens.questions == 81
    text = str(result)
    assert max(map(len, text.splitlines())) <= 100
    for part in ("40 test problems of 2 tasks × 2", "task hard", "task easy", "mean over 2 tasks"):
        assert part in text


@pytest.mark.slow
def test_the_tables_are_laid_out_as_in_the_papers(make_run: Callable[..., Path]) -> None:
    run = make_run(tasks=("hard.jsonl", "hub/easy"))
    report(run)
    lines = (run / "report" / "tables.md").read_text().splitlines()
    head = [
        f"{task} {name}"
        for task in ("hard", "easy", "average")
        for name in ("accuracy", "tokens", "tokens_ratio")
    ]
    place = lines.index(f"| model | exit | {' | '.join(head)} |")
    cells = [[cell.split(" ")[0] for cell in line.split(" | ")] for line in lines[place + 2 :]]
    assert cells[0][1:] == ["none", "50.0", "200", "100.0", "100.0", "200", "100.0", "75.0", "200",
                            "100.0"]  # fmt: skip
    assert cells[2][1:] == ["none", "80.0", "100", "50.0", "100.0", "100", "50.0", "90.0", "100",
                            "50.0"]  # fmt: skip
    table = pl.read_csv(run / "report" / "tables.csv")
    assert table.columns[:4] == ["model", "exit", "hard accuracy", "hard accuracy_low"]
    assert table["average tokens_ratio"].to_list() == pytest.approx([1.0, 0.45, 0.5, 0.45])


@pytest.mark.slow
def test_one_task_has_no_mean(make_run: Callable[..., Path]) -> None:
    run = make_run()
    assert report(run).averages == ()
    text = (run / "report" / "tables.md").read_text()
    assert "| model | exit | toy accuracy | toy tokens |" in text and "average" not in text


@pytest.mark.slow
def test_an_arm_that_lacks_a_task_has_no_mean(make_run: Callable[..., Path]) -> None:
    def change(row: EvaluationRow) -> EvaluationRow | None:
        lacking = row.model == "trained" and int(row.problem_id) % 2 == 0
        return None if lacking else row

    result = report(make_run(change, tasks=("hard.jsonl", "hub/easy")))
    assert {row.model for row in result.averages} == {"base"}


@pytest.mark.slow
def test_cost_and_break_even(make_run: Callable[..., Path]) -> None:
    run = make_run()
    report(run)
    cost = json.loads((run / "report" / "report.json").read_text())["cost"]
    assert cost["stages"]["sample"]["tokens"] == 4000
    assert cost["stages"]["train"]["trained_tokens"] == 1050
    assert cost["stages"]["evaluate"]["peak_memory"] == 2**20
    even = cost["break_even"]["tokens"]
    assert even["spent"] == 4000 + 2000 + 1000 + 1050  # evaluation is not optimization
    assert even["questions"] == 81
    # Every question saves as much, so that the interval is a point.
    assert [even["saved"][name] for name in ("value", "low", "high")] == [100, 100, 100]
    assert (even["questions_low"], even["questions_high"]) == (81, 81)
    assert cost["break_even"]["flops"] is None  # no stage has counted them


def in_model_flops(row: EvaluationRow) -> EvaluationRow:
    """A hundred a token, and of the base a tenth more for every other problem."""
    more = 1.1 if row.model == "base" and int(row.problem_id) % 2 else 1.0
    return replace(row, model_flops=100 * row.tokens * more)


def counted(run: Path) -> None:
    for stage in ("sample", "estimate", "evaluate"):
        recount(run / stage, model_flops=5e6)
    recount(run / "train", model_flops=5e6)
    recount(run / "train", within=None, model_flops_trained=6e6, attention_flops_trained=2e6)


def recount(stage: Path, within: str | None = "usage", **counts: Any) -> None:
    path = stage / "manifest.json"
    done = json.loads(path.read_text())
    (done if within is None else done[within]).update(counts)
    path.write_text(json.dumps(done))


@pytest.mark.slow
def test_break_even_in_model_flops_has_what_was_read(make_run: Callable[..., Path]) -> None:
    run = make_run(in_model_flops)
    counted(run)
    result = report(run)
    costs, even = {each.stage: each for each in result.costs}, result.break_even
    assert even is not None
    assert (costs["sample"].model_flops, costs["train"].model_flops) == (5e6, 11e6)
    assert costs["train"].attention_flops == 1e6 + 2e6
    assert even.tokens_read == 3 * (10 - 5)  # prompts less the cache; evaluating is measurement
    flops = even.flops
    assert flops is not None and flops.spent == 5e6 + 5e6 + 11e6
    # base: 100 · 200 · 1.05 in the mean, trained: 100 · 100
    assert flops.saved.value == pytest.approx(11_000)
    assert flops.saved.low < 11_000 < flops.saved.high
    assert flops.questions == 1910  # 21e6 / 11,000
    assert flops.questions_low is not None and flops.questions_high is not None
    assert flops.questions_low < 1910 < flops.questions_high
    assert not even.without_judge
    assert even.tokens.questions == 81  # in tokens as before
    said = " ".join(break_even_sentences(even))
    assert "including 15 prompt tokens that were read: 2.1e+07. The trained model saves" in said
    assert "1.1e+04 (1.1e+04…1.1e+04) FLOPs per question: it breaks even after 1,910" in said
    text = str(result)
    assert max(map(len, text.splitlines())) <= 100
    assert " ".join(said.split()) in " ".join(text.split())
    page = (run / "report" / "report.html").read_text()
    assert "model FLOPs" in page and "breaks even after 1,910" in page


@pytest.mark.slow
def test_what_pays_in_tokens_may_not_pay_in_flops(make_run: Callable[..., Path]) -> None:
    dearer = 10.0
    run = make_run(
        lambda row: replace(row, model_flops=row.tokens * (dearer if row.model == "trained" else 1))
    )
    counted(run)
    even = report(run).break_even
    assert even is not None and even.tokens.questions == 81
    assert even.flops is not None
    assert (even.flops.questions, even.flops.questions_low) == (None, None)
    assert break_even_sentences(even)[-1].endswith("more FLOPs per question: it never breaks even.")


@pytest.mark.slow
def test_runs_that_did_not_count_model_flops_still_report(make_run: Callable[..., Path]) -> None:
    run = make_run()  # its manifests are those of an earlier version, and so is its table:
    table = run / "evaluate" / "rows.parquet"
    pl.read_parquet(table).drop("model_flops").write_parquet(table)
    even = report(run).break_even
    assert even is not None and even.tokens.questions == 81
    assert even.flops is None and break_even_sentences(even)[1].endswith("unknown for some stages.")
    assert len(list(tables.read(table, EvaluationRow))) == 4 * PROBLEMS * SAMPLES


@pytest.mark.slow
def test_a_model_of_unknown_size_has_no_break_even_in_flops(make_run: Callable[..., Path]) -> None:
    run = make_run(in_model_flops)
    counted(run)
    recount(run / "estimate", model_flops=None)
    even = report(run).break_even
    assert even is not None and even.flops is None
    recount(run / "estimate", model_flops=0.0, requests=0)  # one that asks no model
    even = report(run).break_even
    assert even is not None and even.flops is not None and even.flops.spent == 16e6


@pytest.mark.slow
def test_a_judge_of_unknown_size_is_left_out_and_said(make_run: Callable[..., Path]) -> None:
    run = make_run(in_model_flops)
    counted(run)
    manifest(run / "prune", 100)
    recount(run / "prune", model_flops=1e6)
    usage = {"requests": 2, "prompt": 50, "cached": 10, "generated": 7, "wasted": 0}
    for flops, spent in ((None, 22e6), (3e6, 25e6)):
        own = {**usage, "attention_flops": flops, "model_flops": flops}
        recount(run / "prune", within=None, judge_usage=own)
        even = report(run).break_even
        assert even is not None and even.flops is not None
        assert (even.flops.spent, even.without_judge) == (spent, flops is None)
        assert ("without the judge," in " ".join(break_even_sentences(even))) == (flops is None)
        assert even.tokens_read == 4 * 5 + 40


SAMPLED = StageCost("sample", 10, 0, 0, 0, 0, 1.0, 1.0, 1.0, 1)


@pytest.mark.parametrize(
    ("saved", "questions", "said"),
    [
        ((0.0, -2.0, 4.0), (None, 3, None),
         "saves 0.0 (-2.0…4.0) tokens per question: it never breaks even; at the better end of the "
         "interval, after 3."),
        ((0.0, 0.0, 0.0), (None, None, None), "per question: it never breaks even."),
        ((-6.0, -9.0, -2.0), (None, None, None),
         "The trained model takes 6.0 (2.0…9.0) more tokens per question: it never breaks even."),
        ((1.0, -1.0, 2.0), (10, 5, None), "it breaks even after 10 (5…never) questions."),
    ],
)  # fmt: skip
def test_what_may_not_pay_says_so(
    saved: tuple[float, float, float], questions: tuple[int | None, ...], said: str
) -> None:
    even = break_even([SAMPLED], Estimate(*saved, 10, 10), NOTHING)
    found = even.tokens
    assert (found.questions, found.questions_low, found.questions_high) == questions
    assert break_even_sentences(even)[0].endswith(said)


@pytest.mark.slow
def test_the_table_fits_a_terminal(make_run: Callable[..., Path]) -> None:
    text = str(report(make_run()))
    assert max(map(len, text.splitlines())) <= 100
    for part in (
        "40 test problems × 2 samples",
        "no_exit",
        "accuracy went from 70.0 to 80.0 %",
        "81 (81…81) questions",
    ):
        assert part in " ".join(text.split())


@pytest.mark.slow
def test_only_the_files_of_earlier_versions_go(make_run: Callable[..., Path]) -> None:
    run = make_run()
    stale, own = ("difficulty.csv", "batch.png", "batch.svg"), ("mine.csv", "batch.pdf")
    (run / "report").mkdir()
    for name in (*stale, *own):
        (run / "report" / name).write_text("old")
    report(run)
    found = {path.name for path in (run / "report").iterdir()}
    assert not found & {*stale} and found >= {*own, "report.html", "tables.csv"}


@pytest.mark.slow
def test_trial_tokens_are_shown_on_demand(make_run: Callable[..., Path]) -> None:
    """The first table is as wide as a page of 1,000 pixels without them."""
    front = report(make_run()).sections()[0]
    assert isinstance(front, Section)
    first, *_, folded = front.tables
    assert "trial tokens" not in first.head and len(first.head) == 8
    assert folded.folded and "trial tokens" in folded.head


@pytest.mark.slow
def test_the_picture_is_a_function_of_the_rows(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = make_run()
    rows: tuple[Figures, ...] = report(run).rows
    first = (run / "report" / "report.png").read_bytes()
    svg = (run / "report" / "report.svg").read_bytes()
    assert first.startswith(b"\x89PNG")
    again = tmp_path / "again.png", tmp_path / "again.svg"
    save(lambda: front(rows, "toy: 40 test problems × 2 samples"), *again)
    assert [path.read_bytes() for path in again] == [first, svg]


def test_a_run_that_was_not_evaluated(make_run: Callable[..., Path]) -> None:
    run = make_run()
    (run / "evaluate" / "rows.parquet").unlink()
    with pytest.raises(DtoError, match="dto evaluate"):
        report(run)


def test_nothing_graded_is_null_in_json(make_run: Callable[..., Path]) -> None:
    run = make_run(lambda row: replace(row, grade="failed"))
    report(run)
    base = rows_by_name(run)["base", "none"]
    assert base["accuracy"]["value"] is None
    assert base["failed"] == 80
