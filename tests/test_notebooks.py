"""The notebooks run from the first cell to the last, and show what is committed with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.notebooks import FOLDER, NAMES, executed, read

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Notebooks that look at the same run find what others have computed."""
    return tmp_path_factory.mktemp("notebooks")


def shape(notebook: Any) -> list[list[tuple[str, ...]]]:
    """What kinds of output each cell has."""
    return [
        [
            (each.output_type, str(each.get("name", "")), *sorted(each.get("data", ())))
            for each in cell.get("outputs", ())
        ]
        for cell in notebook.cells
    ]


def displays(notebook: Any) -> list[str]:
    return [
        each.data["text/html"]
        for cell in notebook.cells
        for each in cell.get("outputs", ())
        if "text/html" in each.get("data", ())
    ]


def test_there_are_no_others() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.slow(seconds=20)
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_gives_what_it_shows(
    name: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for own in ("RUN", "COMPARE", "MODEL"):
        monkeypatch.delenv(own, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    found, committed = executed(name, directory), read(name)
    assert shape(found) == shape(committed)
    # On a CPU the embedded model gives the same tables everywhere.
    articles = [
        sum('class="dto"' in html for html in displays(each)) for each in (found, committed)
    ]
    assert articles[0] == articles[1]
    if name.startswith(("01", "04")):
        assert articles[0] >= 2
    numbers = [cell.get("execution_count") for cell in committed.cells if cell.cell_type == "code"]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_committed_is_small_and_names_no_machine(name: str) -> None:
    text = (FOLDER / f"{name}.ipynb").read_text("utf-8")
    assert len(text) < 120_000 and "token_ids=(" not in text
    for place in (str(ROOT), str(Path.home()) + "/", "site-packages", "/tmp/", "/home/", "/Users/"):
        assert place not in text
