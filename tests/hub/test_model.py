"""A trained model goes up with its card and its evaluation, as the Hub reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from dto.errors import DtoError
from dto.hub.publish import publish
from dto.runs import manifest
from dto.runs.run import OpenRun
from tests.hub.conftest import sent
from tests.hub.server import Hub
from tests.hub.test_publish import NAME

KEY = ("model", NAME)


def test_weights_card_and_results_are_one_commit(run: OpenRun, hub: Hub, tmp_path: Path) -> None:
    done = publish(run, NAME, model=True, private=True)
    repo = hub.repos[KEY]
    assert repo.private and repo.messages[1:] == ["Publish the model of run small"]
    own = {path.name for path in (run / "train/model").iterdir()}
    assert set(repo.files) == {*own, "README.md", "run.json", ".gitattributes"}
    again = sent(run, NAME, model=True, private=True)
    assert not again.changed and len(repo.commits) == 2
    for path, data in repo.files.items():
        (tmp_path / path).write_bytes(data)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.num_parameters() > 1000 and AutoTokenizer.from_pretrained(tmp_path).chat_template
    results = ModelCard(done.card).data.eval_results
    report = json.loads((run / "report/report.json").read_text())
    rows = [row for row in report["rows"] if row["model"] == "trained"]
    assert results is not None and len(results) == 2 * len(rows)
    for row in rows:
        found = {
            each.metric_type: each.metric_value
            for each in results
            if f"exit {row['exit']}," in each.metric_name
        }
        expected = {
            "accuracy": round(100 * row["accuracy"]["value"], 2),
            "tokens": round(row["tokens"]["value"], 1),
        }
        assert found == expected
        asked = f"{row['problems']} × {row['more']['samples']}"
        figures = f"| {asked} | {100 * row['accuracy']['value']:.1f} ("
        assert f"| chains | trained | {row['exit']} {figures}" in done.card
    data = ModelCard(done.card).data.to_dict()
    assert data["datasets"] == [NAME] and data["library_name"] == "transformers"
    assert "base_model" not in data  # the embedded model is not on the Hub


def test_without_evaluation(run: OpenRun, hub: Hub) -> None:
    run.set_aside("evaluate")
    card = publish(run, NAME, model=True, license="apache-2.0").card
    assert "Not evaluated" in card and ModelCard(card).data.eval_results is None
    assert ModelCard(card).data.license == "apache-2.0"


def test_runs_without_a_model(run: OpenRun, hub: Hub) -> None:
    said = manifest.read(run / "train") or {}
    manifest.write(run / "train", said | {"kept_step": 0, "reason": "training did not help"})
    with pytest.raises(DtoError, match="no trained model: training did not help"):
        publish(run, NAME, model=True)
    manifest.write(run / "train", said)
    (run / "train/model/pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(DtoError, match=r"pytorch_model.bin: only safetensors are published"):
        publish(run, NAME, model=True)
    (run / "train/model/pytorch_model.bin").unlink()
    manifest.write(run / "train", said | {"digest": "0" * 16})
    with pytest.raises(DtoError, match=r"evaluate in .* computed from another state of train"):
        publish(run, NAME, model=True)
    run.set_aside("train")
    with pytest.raises(DtoError, match=r"stage train is not finished .* `dto train"):
        publish(run, NAME, model=True)
    assert not hub.repos


def test_local_paths_in_a_config_are_cut(
    run: OpenRun, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    path = run / "train/model/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"_name_or_path": "/home/alice"}))
    publish(run, NAME, model=True)
    assert json.loads(hub.repos[KEY].files["config.json"])["_name_or_path"] == "~"
    path.write_text(json.dumps(config | {"_name_or_path": "hf_" + "A1" * 17}))
    with pytest.raises(DtoError, match=r"config.json.* holds a key"):
        publish(run, NAME, model=True)
