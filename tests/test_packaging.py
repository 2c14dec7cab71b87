"""What a wheel carries, and that importing the package is light."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml

from dto import __version__

ROOT = Path(__file__).parents[1]
CARRIED = (".toml", ".safetensors", ".json", ".jinja", ".py", ".html", ".css", ".js", ".typed")


@pytest.mark.slow
def test_import_is_light() -> None:
    heavy = "torch,transformers,spacy,datasets,trl,openai,polars,pyarrow,matplotlib,tqdm"
    code = f"import sys, dto, dto.cli; print([m for m in '{heavy}'.split(',') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_spacy_component_is_registered() -> None:
    (found,) = entry_points(group="spacy_factories", name="dto_patterns")
    assert found.value.startswith("dto.segmentation.component:")


def test_the_citation_names_this_version() -> None:
    data = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert data["version"] == __version__ and data["license"] == "MIT"
    urls = [paper["url"].rpartition("/")[2] for paper in data["references"]]
    assert urls == re.findall(r"\d{4}\.\d{5}", data["abstract"])


@pytest.mark.slow
def test_a_wheel_carries_prompts_recipes_lexicons_and_weights(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        capture_output=True,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, pattern in (("prompts", "*/*.jinja"), ("pipelines", "**/*.yaml")):
        for path in (ROOT / folder).glob(pattern):
            assert f"dto/_resources/{path.relative_to(ROOT)}" in names
    for path in (ROOT / "dto").rglob("*"):
        if path.is_file() and path.suffix in CARRIED:
            assert str(path.relative_to(ROOT)) in names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "notebooks"))]
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "import dto; print(dto.__file__); print(dto.load_recipe('quickstart').problems.source)"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == [str(tmp_path / "site" / "dto" / "__init__.py"), "chains"]
