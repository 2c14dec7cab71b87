"""What a card says of a run, and that its tables are what it says they are."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import polars as pl
import pytest
import yaml
from huggingface_hub import DatasetCard
from matplotlib.axes import Axes

from dto import tables
from dto.drqa.records import BatchResponse, Chain, LabelledChain
from dto.hub.card import _length_table, draw_lengths
from dto.hub.publish import publish
from dto.hub.pull import pull
from dto.recipe import PairSettings, resolve
from dto.records import PreferencePair, Problem, Span, Trajectory
from dto.runs import manifest
from dto.runs.run import OpenRun
from dto.tasks.imported import imported_pairs
from tests.byte_level import byte_level
from tests.hub.server import Hub
from tests.hub.test_publish import NAME, published


def test_the_card_says_where_it_comes_from(run: OpenRun, hub: Hub) -> None:
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


@pytest.mark.parametrize(
    ("counts", "median"),
    [([100, 200], "150"), ([1, 2, 9_001, 9_003], "4,502"), ([100, 200, 900], "200"), ([7], "7")],
)
def test_the_table_and_the_picture_have_one_median(
    counts: list[int], median: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []
    monkeypatch.setattr(Axes, "set_title", lambda axes, title, **how: titles.append(title))
    lengths = {"sampled": pl.Series(counts)}
    draw_lengths(lengths, tmp_path / "lengths.png")
    assert titles == [f"sampled: {len(counts)} rows, median {median}"]
    head, _, line = (row.split(" | ") for row in _length_table(lengths).splitlines())
    assert line[head.index("median")] == median


def test_what_models_were_told_cannot_end_its_block(run: OpenRun, hub: Hub) -> None:
    system = run.recipe.model.model_copy(update={"system": "Answer in\n```\n# Not a heading"})
    other = run.following(run.recipe.model_copy(update={"model": system}))
    text = publish(other, NAME, dry_run=True).card
    fences = [line for line in text.splitlines() if line.strip().startswith("```")]
    assert fences == ["```python", "```", "```yaml", "```", *["```text", "```"] * 6]


def test_what_cannot_be_seen_is_written_out(run: OpenRun, hub: Hub) -> None:
    """Text that turns the direction of what follows, escapes of a terminal, HTML, half a table."""
    hostile = "\u202eeltit\u202c \x1b[31m <script>alert(1)</script> | `x` \u2028 שלום 👩‍🔬"
    system = run.recipe.model.model_copy(update={"system": hostile})
    (run / "pair/dropped.jsonl").write_text(
        json.dumps({"id": "a", "reason": f"{hostile}\n| b |", "detail": ""}) + "\n", "utf-8"
    )
    recipe = run.recipe.model_copy(update={"model": system, "name": f"<b>{hostile}"})
    text = publish(run.following(recipe), NAME, dry_run=True).card
    metadata, body = text.split("---\n")[1], text.split("---\n", 2)[2]
    assert yaml.safe_load(metadata)["pretty_name"].startswith("<b>‹U+202E›eltit")
    for unseen in "\u202e\u202c\u2028\x1b":
        assert unseen not in text
    outside = "".join(body.split("```")[::2])
    assert "<script>" not in outside and "<b>" not in outside
    line = next(line for line in body.splitlines() if line.startswith("| pair |"))
    assert line.replace("\\|", "").count("|") == 5
    assert "שלום" in body and "👩‍🔬" in body


def test_a_card_speaks_of_what_is_there(run: OpenRun, hub: Hub) -> None:
    text = publish(run, NAME, only=("problems", "evaluation"), dry_run=True).card
    assert 'evaluation = load_dataset("somebody/small")  # or' in text
    assert '"problems")' in text and "lengths.png" not in text and "## Lengths" not in text
    assert "preference pairs" not in text and "I suddenly got" not in text
    assert "evaluate: The trial answer inducer of 2504.15895, inside the open thinking" in text
    text = publish(run, NAME, only=("exits",), dry_run=True).card
    assert 'exits = load_dataset("somebody/small")\n' in text and "I suddenly got" in text


@pytest.mark.parametrize("git", [None, {}, {"commit": "0a1b2c", "dirty": True}])
def test_a_run_computed_without_a_checkout(git: object, run: OpenRun, hub: Hub) -> None:
    said = manifest.read(run / "pair") or {}
    manifest.write(run / "pair", said | {"git": git})
    text = publish(run, NAME, dry_run=True).card
    assert ("Computed by dto at commit `0a1b2c` (with uncommitted changes) with" in text) == bool(
        git
    )
    assert ("Computed by dto with" in text) == (not git)


def drqa(run: OpenRun) -> None:
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
        dropped = f'{{"id": "b/batch/002/000", "reason": "of_{stage}", "detail": ""}}\n'
        (run / stage / "dropped.jsonl").write_text(dropped)
        done = manifest.finished(stage, {}, manifest.of_path(run.table(stage)), rows=1)
        manifest.write(run / stage, done | {"usage": {}, "seconds": 1.0})


def test_batches_chains_and_labels_go_up_and_come_back(run: OpenRun, hub: Hub) -> None:
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
    run: OpenRun, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    (run / "compare").mkdir()
    publish(run, NAME, dry_run=True)
    assert f"dto publish {run.path}/compare/METHOD" in caplog.text


@pytest.mark.parametrize("method", ["dpo", "cpo"])
def test_trl_trains_on_the_pairs_as_they_are(
    method: str, run: OpenRun, hub: Hub, tmp_path: Path
) -> None:
    """Text gives the very token ids that the run itself trains on, with no option set."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    publish(run, NAME)
    path = tmp_path / "pairs.parquet"
    path.write_bytes(published(hub)["pair/rows.parquet"])
    trainer, config = (DPOTrainer, DPOConfig) if method == "dpo" else (CPOTrainer, CPOConfig)
    trained = trainer(
        AutoModelForCausalLM.from_pretrained(resolve("nano")),
        args=config(str(tmp_path / method), max_steps=1, report_to=[], use_cpu=True, bf16=False),
        train_dataset=Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache")),
        processing_class=AutoTokenizer.from_pretrained(resolve("nano")),
    )
    sampled = {row["id"]: row for row in pl.read_parquet(run.table("sample")).to_dicts()}
    versions = {row["id"]: row for row in pl.read_parquet(run.table("prune")).to_dicts()}
    assert len(trained.train_dataset) == tables.count(run.table("pair"))
    for row in trained.train_dataset:
        rejected = sampled[row["rejected_id"]]
        chosen = (versions if row["chosen_from"] == "optimized" else sampled)[row["chosen_id"]]
        prompt, better, worse = list(rejected["prompt_ids"]), [], []
        if method == "dpo":
            assert list(row["prompt_ids"]) == prompt
            better, worse = list(row["chosen_ids"]), list(row["rejected_ids"])
        else:  # prompt and response are one sequence there
            assert list(row["prompt_input_ids"]) == prompt
            better = list(row["chosen_input_ids"])[len(prompt) :]
            worse = list(row["rejected_input_ids"])[len(prompt) :]
        assert (better, worse) == (chosen["token_ids"], rejected["token_ids"])
    trained.train()
    assert trained.state.global_step == 1


def test_a_prompt_begins_once() -> None:
    """TRL puts the token that a text begins with before a prompt; the column must not bring it."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(byte_level())
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    first = tokenizer.convert_tokens_to_ids("<bos>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", first)]
    )
    assert tokenizer.encode("")[:1] == [first]
    asked = (first, *tokenizer.encode("1 + 1?", add_special_tokens=False))
    none, whole = Span(0, 0), Span(0, 1)
    sides = [
        Trajectory(
            f"p/{sample:03d}", "p", "m", sample, 0, asked, ids, "encoded", "x", none, whole, none,
            "stop", "correct",
        )
        for sample, ids in enumerate([(5, 6), (7,)])
    ]  # fmt: skip
    problem = Problem("p", "imported", "train", "1 + 1?", "")
    (row,) = imported_pairs(problem, sides, tokenizer, PairSettings())
    assert isinstance(row, PreferencePair)
    assert tokenizer(row.prompt)["input_ids"] == list(asked)
    assert row.prompt_tokens == len(asked)
