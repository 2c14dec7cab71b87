"""`dto run` with a judge on a server: its tokens apart, its agreement with the rollouts."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import polars as pl
import pytest

from dto import tables
from dto.errors import DtoError
from dto.pipeline import open_run, run_stages
from dto.recipe import load_recipe
from dto.records import OptimizedTrajectory
from dto.runs import manifest
from dto.runs.stage import Group, Runner
from dto.usage import Usage, charge, charged_to
from tests.commands import dto
from tests.judges.server import judging, verdicts

RECIPE = """
model: {name: nano, engine: transformers, context: 2048, slots: 32}
problems: {train: 30, dev: 2, test: 2}
sample: {samples: 2, temperature: 1.0, top_p: 1.0, max_tokens: 320}
segment: {granularity: cue}
estimate: {threshold: 0.3, margin: 0.2, cap: 8, max_tokens: 16}
optimize: {max_tokens: 48}
prune: {judge: llm, rollouts: 2, agreement: true}
judge: {name: judge, engine: openai, api: chat, retries: 0, prompt_price: 2, generated_price: 10}
pair: {max_length: 1024}
train: {epochs: 1, batch_size: 32, evaluations: 1, dev_samples: 1, collapse_points: 100,
        collapse_truncated: 1.0}
evaluate: {samples: 1, temperature: 1.0, top_p: 1.0, max_tokens: 320}
"""


@pytest.fixture(scope="module")
def optimized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is finished up to optimize."""
    place = tmp_path_factory.mktemp("run")
    (place / "tiny.yaml").write_text(RECIPE)
    run = open_run(place / "run", load_recipe(place / "tiny.yaml"))
    try:
        run_stages(run, ("problems", "sample", "segment", "estimate", "optimize"))
    finally:
        run.close()
    return run.path


@pytest.fixture
def run(optimized: Path) -> Path:
    return shutil.copytree(optimized, Path("run"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(RECIPE)


def uneven(question: str, numbers: list[int]) -> str | int:
    """Keeps the even patterns, prunes the odd ones, fails once and forgets the tenth."""
    uneven.asked += 1  # type: ignore[attr-defined]
    if uneven.asked == 3:  # type: ignore[attr-defined]
        return 500
    entries = [
        verdicts([number], "redundant" if number % 2 else "keep")[1:-1]
        for number in numbers
        if number != 10
    ]
    return "{" + ", ".join(entries) + "}"


@pytest.mark.slow
def test_a_run_counts_the_judge_apart_and_reports_its_agreement(
    run: Path,
    tokenizer: object,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "dto")
    uneven.asked = 0  # type: ignore[attr-defined]
    with judging(tokenizer, uneven) as server:
        judge = f"judge.server={server.url}"
        code, out, err = dto("run", "tiny.yaml", "--out", str(run), "--set", judge, capsys=capsys)
    assert code == 0, err
    rows = list(tables.read(run / "prune" / "rows.parquet", OptimizedTrajectory))
    between = [row for row in rows if row.verdicts]
    assert len(between) == len(server.asked) >= 5

    done = manifest.read(run / "prune") or {}
    judge = done["judge_usage"]
    assert judge["requests"] == len(server.asked) and judge["failed"] == 1
    assert judge["prompt"] == 1000 * (len(server.asked) - 1)
    assert judge["generated"] == server.generated
    spent = pl.read_parquet(run / "prune" / "usage.parquet")
    assert done["usage"]["generated"] == spent["generated"].sum()
    assert done["config"]["judge.name"] == "judge" and "judge.server" not in done["config"]
    whole = manifest.read(run) or {}
    assert whole["stages"]["prune"]["judge_usage"] == judge
    (line,) = [line for line in caplog.messages if line.startswith("prune ")]
    assert "1 requests to the judge failed" in line
    assert f"judge {judge['prompt']:,} tokens read, {judge['generated']:,} generated" in line

    for row in between:
        gone = {verdict.segment for verdict in row.verdicts if verdict.pruned}
        assert gone <= {each.segment for each in row.verdicts if each.verdict == "redundant"}
        assert (row.verified_p > 0.3) == bool(gone)
        judged = [each for each in row.verdicts if each.verdict != "unjudged"]
        assert bool(row.counterfactual) == bool(judged)
    assert any(verdict.pruned for row in between for verdict in row.verdicts)

    data = json.loads((run / "report" / "report.json").read_text())
    costs = data["cost"]["stages"]
    assert costs["judge"]["tokens"] == judge["generated"]
    assert costs["judge"]["money"] == pytest.approx(
        (2 * judge["prompt"] + 10 * judge["generated"]) / 1e6
    )
    assert costs["prune"]["tokens"] == done["usage"]["generated"]
    found = data["funnel"]["agreement"]
    both = [
        (llm.verdict == "redundant", rollouts.verdict != "keep")
        for row in between
        for llm in row.verdicts
        for rollouts in row.counterfactual
        if llm.segment == rollouts.segment and llm.verdict != "unjudged"
    ]
    assert found["patterns"] == len(both)
    assert found["rate"]["value"] == pytest.approx(sum(a == b for a, b in both) / len(both))
    assert {row: sum(counts.values()) for row, counts in found["table"].items()} == {
        "keep": sum(not a for a, _ in both),
        "redundant": sum(a for a, _ in both),
    }
    assert "unjudged" in data["funnel"]["verdicts"]
    for part in ("\njudge ", "The tokens of the judge cost", "Cohen's kappa", " verified"):
        assert part in out, out
    assert max(map(len, out.splitlines())) <= 100

    # Whose price it is changes no row; another judge does.
    assert dto("prune", str(run), "--set", "judge.prompt_price=3", capsys=capsys)[0] == 0
    code, _, err = dto("prune", str(run), "--set", "prune.gold=true", capsys=capsys)
    assert code == 1 and "prune.gold (false → true)" in err
    code, _, err = dto("prune", str(run), "--set", "judge.name=other", capsys=capsys)
    assert code == 1 and "judge.name" in err


@pytest.mark.slow
def test_a_judge_that_is_down_ends_the_stage_and_is_tried_again(
    run: Path, tokenizer: object, capsys: pytest.CaptureFixture[str]
) -> None:
    ill = True
    with judging(tokenizer, lambda q, numbers: 500 if ill else verdicts(numbers)) as server:
        judge = ("--set", f"judge.server={server.url}")
        code, out, err = dto("prune", str(run), *judge, capsys=capsys)
        assert code == 1 and out == ""
        assert "the judge" in err.splitlines()[-1] and "answered 500" in err.splitlines()[-1]
        assert manifest.read(run / "prune") is None
        ill = False
        code, _, err = dto("prune", str(run), *judge, capsys=capsys)
        assert code == 0, err
    done = manifest.read(run / "prune") or {}
    assert done["judge_usage"]["failed"] == 0
    rows = tables.read(run / "prune" / "rows.parquet", OptimizedTrajectory)
    assert "unjudged" not in {each.verdict for row in rows for each in row.verdicts}


@pytest.mark.slow
def test_a_judge_that_is_not_there_is_said_before_any_work(
    tokenizer: object, capsys: pytest.CaptureFixture[str]
) -> None:
    with judging(tokenizer, lambda question, numbers: 500) as server:
        gone = f"judge.server={server.url}"
    code, _, err = dto("run", "tiny.yaml", "--set", gone, capsys=capsys)
    assert code == 1 and err.startswith("dto: error: judge: ") and err.count("\n") == 1
    assert "correct judge.server" in err
    assert not Path("runs/tiny/problems").exists()


@pytest.mark.slow
async def test_a_judge_that_fails_twenty_times_in_a_row_ends_the_stage(tmp_path: Path) -> None:
    """Also where the policy does well, and where some groups have nothing to be judged."""
    done = 0

    async def work(row: int) -> list[object]:
        nonlocal done
        done += 1
        charge(Usage(requests=3))
        if row % 2:
            with charged_to("judge"):
                charge(Usage(requests=1, failed=1))
        return []

    groups = (Group(f"{row:03d}", (row,)) for row in range(200))
    with (
        Runner(tmp_path / "prune", OptimizedTrajectory, {}) as stage,
        pytest.raises(DtoError, match="the judge's requests for 20 groups in a row failed"),
    ):
        await stage.feed(groups, work, window=4)
    assert 40 <= done < 60


@pytest.mark.slow
def test_a_judge_that_writes_garbage_leaves_everything_as_it_was(
    run: Path, tokenizer: object, capsys: pytest.CaptureFixture[str]
) -> None:
    with judging(tokenizer, lambda q, numbers: '{"2": {"reason": "\\ud800') as server:
        judge = ("--set", f"judge.server={server.url}")
        code, _, err = dto("prune", str(run), *judge, capsys=capsys)
    assert code == 0, err
    before = tables.read(run / "optimize" / "rows.parquet", OptimizedTrajectory)
    after = tables.read(run / "prune" / "rows.parquet", OptimizedTrajectory)
    for old, new in zip(before, after, strict=True):
        assert new.token_ids == old.token_ids and not new.counterfactual
        assert {each.verdict for each in new.verdicts} <= {"unjudged"}


@pytest.mark.slow
@pytest.mark.parametrize("judge", ["null", "{name: nano-control}"])
def test_the_policy_itself_or_another_local_model_can_be_asked(
    judge: str, run: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The embedded models write no JSON and are held to none: all stays, and is flagged."""
    changes = ("--set", f"judge={judge}", "--set", "prune.max_tokens=64", "--recompute", "--yes")
    code, _, err = dto("prune", str(run), *changes, capsys=capsys)
    assert code == 0, err
    name = "nano" if judge == "null" else "nano-control"
    assert f"{name} does not support JSON schemas" in caplog.text
    done = manifest.read(run / "prune") or {}
    assert done["judge_usage"]["requests"] and not done["judge_usage"]["failed"]
    assert done["judge_usage"]["generated"] and not done["usage"]["generated"]
    rows = list(tables.read(run / "prune" / "rows.parquet", OptimizedTrajectory))
    said = [each for row in rows for each in row.verdicts]
    assert {each.verdict for each in said} == {"unjudged"}
    assert any("not a JSON object" in each.reason or "does not end" in each.reason for each in said)


def test_the_plan_says_who_judges_and_what_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = dto("run", "--dry-run", "tiny.yaml", capsys=capsys)
    assert code == 0
    assert "judge llm: judge on openai" in out and "Judge patterns 2 to" in out
    _, out, _ = dto("run", "--dry-run", "quickstart", "--set", "prune.judge=llm", capsys=capsys)
    assert "judge llm: the policy's own model" in out
    _, out, _ = dto("run", "--dry-run", "quickstart", capsys=capsys)
    assert "Judge patterns" not in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("judge={engine: openai, server: 'http://h:1/SECRET'}", "judge.name: Field required"),
        ("judge.nmae=x", "unknown key 'judge.nmae' (did you mean 'name'?); allowed: name"),
        ("judge.server=http://bob:SECRET@h/v1", "judge.server: the URL holds a user"),
        ("judge.api_key=sk-SECRET", "judge.api_key: it must name"),
        ("prune.judge=counterfactual", "agreement compares another judge with the counterfactual"),
        ("prune.agreement=1.5", "prune.agreement = 1.5: Input should be less than or equal to 1"),
        ("model.family=judge", "prompts/ has no folder 'judge'"),
    ],
)
def test_mistakes_are_one_line(
    change: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = dto("run", "tiny.yaml", "--set", change, capsys=capsys)
    assert code == 1 and err.count("\n") == 1
    assert message in err and "SECRET" not in err


def test_a_run_directory_without_a_judge_can_be_given_one() -> None:
    Path("plain.yaml").write_text("judge: null\nprune: {judge: llm}")
    recipe = load_recipe("plain.yaml", {"judge.name": "j", "judge.engine": "vllm"})
    assert recipe.judge is not None and recipe.judge.engine == "vllm"
