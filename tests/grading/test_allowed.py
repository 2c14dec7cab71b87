"""Programs run only where the command line says so; no recipe can."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dto import tables
from dto.cli import app
from dto.errors import RecipeError, RunConflictError
from dto.nano import chain_problems
from dto.records import EvaluationRow

GOLD = json.dumps({"prompt": "def f():\n", "test": "assert f() == 1", "entry_point": "f"})


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [False, True])
def test_the_flag_of_the_command(tmp_path: Path, allowed: bool) -> None:
    source, run = tmp_path / "code.jsonl", tmp_path / "run"
    rows = [{"problem": row.question, "answer": GOLD} for row in chain_problems("test", 3, seed=1)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(
        f"""
        model: {{name: nano, family: nano}}
        problems: {{source: {source}, rule: code, train: 0, dev: 0, test: 3}}
        evaluate: {{samples: 2, models: [base], max_tokens: 400}}
        """
    )
    flag = ["--allow-code-execution"] if allowed else []
    app(
        ["evaluate", str(tmp_path / "recipe.yaml"), "--out", str(run), *flag], standalone_mode=False
    )
    found = list(tables.read(run / "evaluate" / "rows.parquet", EvaluationRow))
    graded = {(row.grade, row.reason) for row in found if row.grade != "truncated"}
    if allowed:  # what nano says is no Python
        assert {(grade, reason[-5:]) for grade, reason in graded} <= {("wrong", "Error")} | {
            ("wrong", "lated")  # unisolated
        }
    else:
        assert graded == {("failed", "no_code_execution")}
        again = ["evaluate", str(run), "--allow-code-execution"]
        with pytest.raises(RunConflictError, match="6 programs were not run: use --recompute"):
            app(again, standalone_mode=False)
        app([*again, "--recompute", "--yes"], standalone_mode=False)
        app(again, standalone_mode=False)  # and now that stands
        found = tables.read(run / "evaluate" / "rows.parquet", EvaluationRow)
        assert {row.grade for row in found} == {"wrong"}


def test_no_recipe_can_allow_it(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("allow_code_execution: true\n")
    with pytest.raises(RecipeError, match="unknown key 'allow_code_execution'"):
        app(["run", "--dry-run", str(tmp_path / "recipe.yaml")], standalone_mode=False)
