"""`RUN=runs/mine`: the notebooks look at a run of one's own, whatever its exits are called."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.notebooks import NAMES, executed


@pytest.mark.parametrize("name", NAMES[:3])
def test_a_notebook_looks_at_another_run(
    name: str, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "mine"
    shutil.copytree(small_run, run)
    monkeypatch.setenv("RUN", str(run))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    notebook = executed(name, tmp_path)
    said = " ".join(
        str(each.get("text", "")) + str(each.get("data", {}).get("text/html", ""))
        for cell in notebook.cells
        for each in cell.get("outputs", ())
    )
    assert {"01": "tokens_before", "02": "no pilot study", "03": "deer-paragraph-closed"}[
        name[:2]
    ] in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]  # nothing is run again
