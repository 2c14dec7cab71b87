"""What a card says of a run, and that its tables are what it says they are."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from huggingface_hub import DatasetCard

from dto import tables
from dto.drqa.records import BatchResponse, Chain, LabelledChain
from dto.hub.publish import publish
from dto.hub.pull import pull
from dto.nano import resolve
from dto.records import Span
from dto.runs import content, manifest
from dto.runs.run import Run
from tests.hub.server import Hub
from tests.hub.test_publish import NAME, published


def test_the_card_says_where_it_comes_from(run: Run, hub: Hub) -> None:
    text = publish(run, NAME).card
    card = DatasetCard(text)
    configs = {each["config_name"]: each for each in card.data.to_dict()["configs"]}
    assert next(iter(configs)) == "pairs" and configs["pairs"]["default"]
    assert [each["split"] for each in configs["problems"]["data_files"]] == [
        "train", "validation", "test",
    ]  # fmt: skip
    assert card.data.license == "mit"
    assert (
        "`nano (embedded in dto)`" in text
        and "Seed 0" in text
        and "arxiv.org/abs/2505.21765" in text
    )
    assert "learning_rate: 0.0002" in text and "I suddenly got" in text.replace("\n", " ")
    for stage in ("sample", "optimize", "pair"):
        for reason, count in (manifest.read(run / stage) or {})["dropped"].items():
            assert f"| {stage} | `{reason}` | {count:,} |" in text
    generated = (manifest.read(run / "sample") or {})["usage"]["generated"]
    assert f"| sample | {generated:,} |" in text
    lengths = pl.read_parquet(run.table("pair"))["chosen_tokens"]
    assert f"| chosen | {len(lengths)} | {lengths.mean():,.1f} |" in text
    for picture in ("images/lengths.png", "images/report.png"):
        assert picture in text and published(hub)[picture].startswith(b"\x89PNG")


def test_what_models_were_told_cannot_end_its_block(run: Run, hub: Hub) -> None:
    system = run.recipe.model.model_copy(update={"system": "Answer in\n```\n# Not a heading"})
    other = Run(run.path, run.recipe.model_copy(update={"model": system}), False, run.lock)
    text = publish(other, NAME, dry_run=True).card
    fences = [line for line in text.splitlines() if line.strip().startswith("```")]
    assert fences == ["```python", "```", "```yaml", "```", *["```text", "```"] * 6]


def test_a_card_speaks_of_what_is_there(run: Run, hub: Hub) -> None:
    text = publish(run, NAME, only=("problems", "evaluation"), dry_run=True).card
    assert 'evaluation = load_dataset("somebody/small")  # or' in text
    assert '"problems")' in text and "lengths.png" not in text and "## Lengths" not in text
    assert "preference pairs" not in text and "I suddenly got" not in text
    assert "trial answer inside" in text
    text = publish(run, NAME, only=("exits",), dry_run=True).card
    assert 'exits = load_dataset("somebody/small")\n' in text and "I suddenly got" in text


def drqa(run: Run) -> None:
    """Give a run the three stages of DRQA, a row each."""
    whole = Span(0, 2)
    rows = {
        "batch": BatchResponse(
            "002/000/a", ("a", "b"), 2, "nano", 0, 0, (1,), (2, 3), "sampled", "12", whole, whole,
            whole, "stop", ("correct", "wrong"), ("1", "2"), ("", ""),
        ),
        "chain": Chain(
            "a/batch/002/000", "a", "batch", 2, 0, 1, "002/000/a", whole, "12", 2, 2, "1", "correct"
        ),
        "label": LabelledChain(
            "a/batch/002/000", "a", "train", "1?", "12", "1", "concise", "B", ("x", "y", "z"),
            "batch", 2, 2, 2, 0, "p", (1,),
        ),
    }  # fmt: skip
    for stage, row in rows.items():
        (run / stage).mkdir()
        tables.write(run.table(stage), type(row), [row])
        dropped = f'{{"id": "b", "reason": "of_{stage}", "detail": ""}}\n'
        (run / stage / "dropped.jsonl").write_text(dropped)
        done = manifest.finished(stage, {}, content.of_path(run.table(stage)), rows=1)
        manifest.write(run / stage, done | {"usage": {}, "seconds": 1.0})


def test_batches_chains_and_labels_go_up_and_come_back(run: Run, hub: Hub) -> None:
    drqa(run)
    text = publish(run, NAME).card
    back = Path("runs/back")
    assert {"batch", "chain", "label"} <= set(pull(NAME, back))
    configs = {each["config_name"] for each in DatasetCard(text).data.to_dict()["configs"]}
    assert {"batch_responses", "chains", "labels"} <= configs
    for stage in ("batch", "chain", "label"):
        assert run.table(stage).read_bytes() == (back / stage / "rows.parquet").read_bytes()
        assert f"| {stage} | `of_{stage}` | 1 |" in text
    assert "Answer each question" in text and "arxiv.org/abs/2508.17803" in text


def test_a_comparison_says_where_its_methods_are(
    run: Run, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    (run / "compare").mkdir()
    publish(run, NAME, dry_run=True)
    assert f"dto publish {run.path}/compare/METHOD" in caplog.text


def test_trl_trains_on_the_pairs_as_they_are(run: Run, hub: Hub, tmp_path: Path) -> None:
    """Text gives the very token ids that the run itself trains on, with no option set."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    publish(run, NAME)
    path = tmp_path / "pairs.parquet"
    path.write_bytes(published(hub)["pair/rows.parquet"])
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(resolve("nano")),
        args=DPOConfig(str(tmp_path / "dpo"), max_steps=1, report_to=[], use_cpu=True),
        train_dataset=Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache")),
        processing_class=AutoTokenizer.from_pretrained(resolve("nano")),
    )
    sampled = {row["id"]: row for row in pl.read_parquet(run.table("sample")).to_dicts()}
    versions = {row["id"]: row for row in pl.read_parquet(run.table("prune")).to_dicts()}
    for row in trainer.train_dataset:
        rejected = sampled[row["rejected_id"]]
        chosen = (versions if row["chosen_from"] == "optimized" else sampled)[row["chosen_id"]]
        assert list(row["prompt_ids"]) == rejected["prompt_ids"]
        assert list(row["rejected_ids"]) == rejected["token_ids"]
        assert list(row["chosen_ids"]) == chosen["token_ids"]
    trainer.train()
    assert trainer.state.global_step == 1
