"""The command line, and the licence of what a run was made from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard, ModelCard

from dto.hub.publish import publish
from dto.runs.run import OpenRun
from tests.commands import told
from tests.hub.server import OWNER, Hub, Repo
from tests.hub.test_publish import KEY, NAME


def test_publish_by_the_environment_alone(run_path: Path, hub: Hub, tmp_path: Path) -> None:
    environment = os.environ | {
        "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "dto.cli", "publish", str(run_path), NAME, "--private"],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    commit = hub.repos[KEY].sha()
    assert done.stdout == f"{hub.url}/datasets/{NAME} (private): commit {commit}\n"


def test_what_it_says(run_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = told("publish", "runs/small", NAME, "--dry-run", capsys=capsys)
    assert code == 0 and said.startswith("---\nlicense: mit") and "nothing was uploaded" in said
    assert Path("runs/small/publish/dataset/README.md").read_text() in said
    code, said = told("publish", "runs/small", NAME, "--only", "pairs, exits", capsys=capsys)
    assert code == 0 and "(public): commit " in said
    assert not Path("runs/small/publish").exists()
    code, said = told("publish", "runs/small", NAME, "--only", "pairs,exits", capsys=capsys)
    assert code == 0 and "(public): unchanged" in said
    code, said = told("pull", NAME, "--out", "back", capsys=capsys)
    assert code == 0 and "back: estimate, pair; continue with: dto run back\n" in said
    code, said = told("publish", "runs", NAME, capsys=capsys)
    assert code == 1 and "runs is not a run directory" in said
    code, said = told("pull", NAME, "--set", "seed=2", "--out", "x", capsys=capsys)
    assert code == 1 and "a run with its own recipe" in said


def stated(license: object) -> Repo:
    repo = Repo(private=False)
    repo.commits.append({"README.md": f"---\nlicense: {license}\n---\n".encode()})
    return repo


@pytest.mark.parametrize(
    ("license", "metadata", "shown"),
    [("cc-by-4.0", "cc-by-4.0", "cc-by-4.0"), ("[mit, gpl]", None, "mit, gpl"),
     (None, None, "unknown")],
)  # fmt: skip
def test_the_licence_of_the_source(
    license: str | None, metadata: str | None, shown: str, run: OpenRun, hub: Hub
) -> None:
    if license:
        hub.repos["dataset", f"{OWNER}/questions"] = stated(license)
        hub.repos["model", f"{OWNER}/base"] = stated(license)
    changes = {
        "problems": run.recipe.problems.model_copy(update={"source": f"{OWNER}/questions"}),
        "model": run.recipe.model.model_copy(update={"name": f"{OWNER}/base", "revision": None}),
    }
    other = run.following(run.recipe.model_copy(update=changes))
    card = publish(other, NAME).card
    assert f"- Questions: `{OWNER}/questions`, licence: {shown}" in card
    assert DatasetCard(card).data.license == metadata
    assert DatasetCard(publish(other, NAME, license="odc-by").card).data.license == "odc-by"
    model = ModelCard(publish(other, NAME, model=True).card).data
    assert (model.base_model, model.license) == (f"{OWNER}/base", metadata)
