"""A rule of another package decides every grade of a run, and nothing else does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import polars as pl
import pytest

from tests.commands import told

RULES = """
import json

def any_answer(answer: str, gold: str) -> bool:
    return True

def fails(answer: str, gold: str) -> bool:
    raise ValueError("no opinion")

def recorded(responses):
    with open("rewarded.jsonl", "a") as file:
        for row in responses:
            data = {"text": row.text, "correct": row.correct, "gold": row.problem.answer}
            file.write(json.dumps(data) + "\\n")
    return [float(row.correct) for row in responses]
"""
RECIPE = """
model: {name: nano, context: 1024, slots: 16}
problems: {train: 3, dev: 2, test: 4, rule: "outside_rules:any_answer"}
sample: {samples: 2, temperature: 1.0, top_p: 1.0, max_tokens: 320}
estimate: {method: fixed, rollouts: 4, max_tokens: 16, first_pass_only: false}
optimize: {max_tokens: 48}
prune: {rollouts: 2, confirmations: 2}
train: {method: simpo, batch_size: 2, evaluations: 1, dev_samples: 1}
evaluate:
  samples: 2
  max_tokens: 320
  models: [base, trained]
  exits: [{name: none}, {name: early, policy: deer, shadow: true, threshold: 0.5}]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a package and a recipe."""
    (tmp_path / "outside_rules.py").write_text(RULES, encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # and restored
    return tmp_path


def frame(run: str, stage: str) -> pl.DataFrame:
    return pl.read_parquet(Path(run) / stage / "rows.parquet")


def lines(name: str) -> list[str]:
    return (Path("run") / "train" / name).read_text(encoding="utf-8").splitlines()


def grades(rows: pl.DataFrame) -> set[str]:
    return set(rows["grade"].to_list())


def wrong_under_math(rows: pl.DataFrame, problems: pl.DataFrame) -> int:
    """Digits are the answers of chains: another string is wrong under `math`."""
    golds = dict(zip(problems["id"], problems["answer"], strict=True))
    pairs = zip(rows["problem_id"], rows["answer"], strict=True)
    return sum(answer.strip() != golds[problem] for problem, answer in pairs if answer)


@pytest.mark.slow(seconds=40)
def test_every_grade_of_a_run_is_the_rules(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = told("run", "recipe.yaml", "--out", "run", capsys=capsys)
    assert code == 0, text
    problems = frame("run", "problems")
    assert set(problems["rule"]) == {"outside_rules:any_answer"}
    sampled = frame("run", "sample")
    assert grades(sampled) <= {"correct", "truncated"} and wrong_under_math(sampled, problems)
    # rollouts: all but the truncated ones succeed
    estimates = frame("run", "estimate")
    assert estimates["failed"].sum() == 0 and estimates["rollouts"].sum() > 0
    rows = estimates.select("rollouts", "successes", "truncated").iter_rows()
    assert all(successes + truncated == rollouts for rollouts, successes, truncated in rows)
    # pairs: a side that math would refuse is chosen
    answers = {row["id"]: row for row in sampled.iter_rows(named=True)}
    golds = dict(zip(problems["id"], problems["answer"], strict=True))
    pairs = frame("run", "pair")
    assert len(pairs)
    refused = [row for row in answers.values() if row["answer"] != golds[row["problem_id"]]]
    assert any(pair["problem_id"] in {row["problem_id"] for row in refused}
               for pair in pairs.iter_rows(named=True))  # fmt: skip
    # dev evaluation
    history = [json.loads(line) for line in lines("history.jsonl")]
    assert all(score["accuracy"] + score["truncated"] == 1 for score in history)
    assert any(score["accuracy"] > 0 for score in history)
    # evaluation and its trials
    evaluated = frame("run", "evaluate")
    assert grades(evaluated) <= {"correct", "truncated"}
    assert wrong_under_math(evaluated, problems)
    trials = [trial for row in evaluated["trials"].to_list() for trial in row]
    assert trials and {trial["grade"] for trial in trials} <= {"correct", "truncated"}
    assert any(trial["grade"] == "correct" for trial in trials)

    # answers to several questions in one prompt
    code, text = told("batch", "run", "--set", "batch.k=[2]", capsys=capsys)
    assert code == 0, text
    given = {
        (bool(answer), grade)
        for row in frame("run", "batch").iter_rows(named=True)
        for answer, grade in zip(row["answers"], row["grades"], strict=True)
    }
    assert given <= {(True, "correct"), (False, "wrong"), (False, "truncated")}

    # rewards of GRPO
    changes = {
        "train.method": "grpo", "train.reward": "outside_rules:recorded", "train.group": 2,
        "train.batch_size": 4, "train.epochs": 2,
    }  # fmt: skip
    words = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    code, text = told(
        "train", "recipe.yaml", "--out", "run", *words, "--recompute", "--yes", capsys=capsys
    )
    assert code == 0, text
    rewarded = [json.loads(line) for line in Path("rewarded.jsonl").read_text().splitlines()]
    boxes = [(row, re.findall(r"\\boxed{(.*?)}", row["text"])) for row in rewarded]
    assert all(answers for row, answers in boxes if row["correct"])
    assert any(answers[-1] != row["gold"] for row, answers in boxes if row["correct"])
    for command in ("report", "view"):
        arguments = ("--out", "page.html") if command == "view" else ()
        code, text = told(command, "run", *arguments, capsys=capsys)
        assert code == 0, text


@pytest.mark.slow
def test_a_rule_that_fails_is_counted_in_the_last_lines(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rule = "problems.rule=outside_rules:fails"
    code, text = told("sample", "recipe.yaml", "--out", "failed", "--set", rule, capsys=capsys)
    assert code == 0, text
    rows = frame("failed", "sample")
    assert grades(rows) <= {"failed", "truncated"}
    reasons = set(rows.filter(grade="failed")["reason"])
    assert reasons == {"rule_error: ValueError: no opinion"}
    assert "6 answers without a grade: rule_error: ValueError" in caplog.text
