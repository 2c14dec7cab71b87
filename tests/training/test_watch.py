"""What one sees of a training: figures of each step, thinking, time left, trackers, the model."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from dto.errors import DtoError, RecipeError
from dto.pipeline import STAGES
from dto.recipe import Recipe, load_recipe, make_recipe
from dto.records import Grade, Span, Trajectory
from dto.runs.run import settings_read
from dto.statistics import mean, proportion
from dto.training import checkpoints
from dto.training.checkpoints import DevCallback, TrainingState, duration, step_line
from dto.training.dev import DevScore, summarize, thinking_state
from dto.training.fit import fingerprint, fit
from dto.training.pairs import Material
from dto.training.train import check_packages, json_lines
from dto.training.weights import load
from dto.trajectories import read_response
from tests.training.conftest import QUESTIONS, RunFolder, make_trajectory
from tests.training.test_simpo import pairs_for, trainer_for

ALL = {"step", "loss", "grad_norm", "learning_rate", "tokens", "tokens_per_second"}
PAIRED = {"chosen_logp", "rejected_logp", "margin", "reward_accuracy"}
SAMPLED = {"reward", "groups", "without_advantage", "unreadable", "tokens_mean", "kl"}


def steps_of(run: RunFolder, *, timed: bool = True) -> list[dict[str, Any]]:
    """The lines of `steps.jsonl`; without the figure that is not deterministic if not `timed`."""
    rows = json_lines(run.path / "train" / "steps.jsonl")
    return rows if timed else [{**row, "tokens_per_second": None} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "more"),
    [("simpo", PAIRED), ("dpo", PAIRED), ("sft", set()), ("o1_pruner", set()), ("grpo", SAMPLED)],
)
def test_each_step_of_each_method_has_a_line(run: RunFolder, method: str, more: set[str]) -> None:
    changes: dict[str, Any] = {"epochs": 0.5} if method == "grpo" else {"epochs": 2}
    training = run.with_training(method=method, evaluations=1, collapse_points=200, **changes)
    training = training.with_training(collapse_truncated=1.0)
    result = fit(training.path, training.recipe)
    rows = steps_of(training)
    assert [row["step"] for row in rows] == [*range(1, result["steps"] + 1)]
    assert all(row.keys() == ALL | more for row in rows)
    assert sum(row["tokens"] for row in rows) == result["tokens_trained"] > 0
    assert all(row["tokens_per_second"] > 0 for row in rows)
    rate = training.recipe.train.learning_rate
    assert rows[0]["learning_rate"] == pytest.approx(rate)
    assert all(a["learning_rate"] > b["learning_rate"] for a, b in pairwise(rows))
    history = json_lines(training.path / "train" / "history.jsonl")
    losses = [row["loss"] for row in rows]
    assert history[-1]["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4, abs=1e-6)
    assert not (training.path / "train" / "tensorboard").exists()


def test_the_figures_of_a_pair_are_those_of_its_loss(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    trainer = trainer_for(tokenizer, tmp_path, [0, 1])
    batch = next(iter(trainer.get_train_dataloader()))
    _, figures = trainer.get_batch_loss_metrics(trainer.model, batch)

    def per_token(prompt: tuple[int, ...], response: tuple[int, ...]) -> float:
        logits = trainer.model(torch.tensor([[*prompt, *response]])).logits[0]
        logps = logits[len(prompt) - 1 : -1].log_softmax(-1)
        return float(logps.gather(1, torch.tensor(response)[:, None]).mean().detach())

    rows = pairs_for(tokenizer)[:2]
    chosen = [per_token(row.prompt_ids, row.chosen_ids) for row in rows]
    rejected = [per_token(row.prompt_ids, row.rejected_ids) for row in rows]
    margins = [1.5 * (a - b) for a, b in zip(chosen, rejected, strict=True)]
    expected = {
        "logps/chosen": sum(chosen) / 2,
        "logps/rejected": sum(rejected) / 2,
        "rewards/margins": sum(margins) / 2,
        "rewards/accuracies": sum(margin > 0 for margin in margins) / 2,
    }
    assert figures == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_line_has_plain_names_and_six_digits() -> None:
    logs = {"loss": 1.23456789, "rewards/margins": -2e-9, "epoch": 1.0, "entropy": 3.0, "tokens": 7}
    more = {"reward": None, "kl": None}
    assert step_line(4, logs, more) == {
        "step": 4, "reward": None, "kl": None, "loss": 1.23457, "margin": -2e-9, "tokens": 7,
    }  # fmt: skip
    assert step_line(1, {"kl": 0.25}, more)["kl"] == 0.25


EFFORT = {"train_seconds": 10.0, "dev_seconds": 5.0, "usage": {}}


def score(step: int) -> DevScore:
    return DevScore(step, 0.0, 0.7, 0.02, 100.0, 0.0, 12, 0, None)


@pytest.mark.parametrize(
    ("measured", "checkpoint", "kept"),
    [([0], False, []), ([0, 2], True, [1, 2]), ([0, 2], False, [])],
    ids=["before the first checkpoint", "after it", "it is lost"],
)
def test_a_resumed_training_has_each_step_once(
    tmp_path: Path, measured: list[int], checkpoint: bool, kept: list[int]
) -> None:
    state = TrainingState(tmp_path, "a")
    for step in range(1, 4):
        state.record_step({"step": step, "loss": 0.1 + 0.2})
    with (tmp_path / "steps.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    for step in measured:
        if step and checkpoint:
            state.checkpoint(step).mkdir(parents=True)
        state.record(score(step), EFFORT)
    again = TrainingState(tmp_path, "a")
    again.resume()
    again.record_step({"step": len(kept) + 1})
    rows = json_lines(tmp_path / "steps.jsonl")
    assert [row["step"] for row in rows] == [*kept, len(kept) + 1]
    assert all(row["loss"] == 0.1 + 0.2 for row in rows[:-1])
    reader = TrainingState(tmp_path, "a", writer=False)
    reader.record_step({"step": 9})
    reader.resume()
    assert json_lines(tmp_path / "steps.jsonl") == rows


def test_scores_of_earlier_versions_are_read(tmp_path: Path) -> None:
    old = {
        "step": 0, "epoch": 0.0, "accuracy": 0.75, "standard_error": 0.02, "tokens_mean": 218.0,
        "truncated": 0.0, "responses": 600, "failed": 0, "loss": None, "collapsed": False,
    }  # fmt: skip
    TrainingState(tmp_path, "a")
    (tmp_path / "history.jsonl").write_text(json.dumps(old) + "\n")
    (row,) = TrainingState(tmp_path, "a").history
    assert {key: value for key, value in asdict(row).items() if key in old} == old
    assert row.thinking is None and row.low is None and row.tokens_high is None
    assert "thinking" not in checkpoints._line(row)


OPEN, CLOSED = "<|im_start|>user\n7?<|im_end|>\n<think>\n", "<|im_start|>user\n7?<|im_end|>\n"
SHUT = CLOSED + "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("prompt", "text", "state"),
    [
        (OPEN, "7 plus 5.\n</think>\n\n2", "valid"),
        (OPEN, "7 plus 5.\n</think>", "valid"),  # the answer is cut off
        (OPEN, "<think>\n7 plus 5.\n</think>\n\n2", "valid"),
        (CLOSED, "<think>7</think>2", "valid"),
        (CLOSED, "7 plus 5.\n</think>\n\n2", "valid"),  # only the closing tag
        (SHUT, "<think>\nI think again.\n</think>\n\n2", "valid"),
        (OPEN, "</think>\n\n2", "empty"),
        (OPEN, "\n \n</think>\n\n2", "empty"),
        (CLOSED, "<think>\n\n</think>\n\n2", "empty"),
        (CLOSED, "The answer is 2.", "missing"),
        (CLOSED, "", "missing"),
        (SHUT, "The answer is 2.", "missing"),
        (OPEN, "7 plus 5 is", "truncated"),
        (OPEN, "", "truncated"),
        (OPEN, "\n ", "truncated"),  # empty so far, but it could have gone on
        (CLOSED, "<think>\n7 plus 5 is", "truncated"),
        (CLOSED, "<think>", "truncated"),
    ],
)
def test_states_of_the_thinking(
    prompt: str, text: str, state: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    ids, response = (tuple(tokenizer.encode(part)) for part in (prompt, text))
    reading = read_response(tokenizer, ids, response)
    grade: Grade = "correct" if reading.closed else "truncated"
    assert thinking_state(trajectory(0, reading, grade)) == state


def trajectory(number: int, reading: Any, grade: Grade) -> Trajectory:
    row = asdict(make_trajectory(f"p{number}/000", (1,), (1,) * (10 + number)))
    read = {
        "text": reading.text, "thinking": Span(*reading.thinking),
        "conclusion": Span(*reading.conclusion), "grade": grade,
    }  # fmt: skip
    return Trajectory(**{**row, "thinking_tokens": Span(0, 0), **read})


def test_a_score_has_intervals_and_thinking() -> None:
    valid = SimpleNamespace(text="a</think>b", thinking=(0, 1), conclusion=(9, 10))
    empty = SimpleNamespace(text="</think>b", thinking=(0, 0), conclusion=(8, 9))
    missing = SimpleNamespace(text="b", thinking=(0, 0), conclusion=(0, 1))
    cut = SimpleNamespace(text="a", thinking=(0, 1), conclusion=(1, 1))
    kinds: list[tuple[Any, Grade]] = [
        (valid, "correct"), (valid, "wrong"), (valid, "correct"), (valid, "truncated"),
        (empty, "correct"), (missing, "correct"), (missing, "wrong"), (cut, "truncated"),
    ]  # fmt: skip
    rows = [trajectory(number, *kind) for number, kind in enumerate(kinds)]
    failed = trajectory(8, valid, "failed")
    found = summarize(5, 1.0, [*rows, failed], 0.5)
    assert (found.accuracy, found.responses, found.failed) == (0.5, 8, 1)
    names = [row.problem_id for row in rows]
    right = proportion([row.grade == "correct" for row in rows], names)
    tokens = mean([len(row.token_ids) for row in rows], names)
    assert (found.low, found.high) == (right.low, right.high)
    assert (found.tokens_low, found.tokens_high) == (tokens.low, tokens.high)
    given = proportion([True, False, True, False], names[:4])
    assert found.thinking == {
        "valid": 0.5, "empty": 0.125, "missing": 0.25, "truncated": 0.125,
        "accuracy": 0.5, "low": given.low, "high": given.high,
    }  # fmt: skip
    line = checkpoints._line(found)
    assert "thinking 50.0% valid, 12.5% empty, 25.0% missing, 12.5% truncated" in line
    assert f"(accuracy given valid 0.500, {given.low:.3f}–{given.high:.3f})" in line
    json.dumps(asdict(found), allow_nan=False)
    none = summarize(0, 0.0, [trajectory(0, missing, "wrong"), trajectory(1, missing, "wrong")])
    assert none.thinking is not None and none.thinking["accuracy"] is None
    assert checkpoints._line(none).endswith("thinking 100.0% missing")
    whole = summarize(0, 0.0, rows[:2])
    assert "thinking" not in checkpoints._line(whole)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (29, "29 s"), (31, "1 min"), (3569, "59 min"), (3571, "1 h 00 min"),
     (11_100, "3 h 05 min")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_time_left_counts_the_measurements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten steps of 60 s, two measurements of 600 s: 5 steps and 1 measurement are ahead."""
    now = 0.0
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now)
    recipe = make_recipe({"name": "x", "train": {"evaluations": 2}}, {}, "x")
    training = TrainingState(tmp_path, "a")
    training.record(score(0), {**EFFORT, "dev_seconds": 600.0})
    callback = DevCallback(recipe, Any, Material([], [], [], [], []), training, False)
    state = SimpleNamespace(
        global_step=0, max_steps=10, is_world_process_zero=True, log_history=[{"loss": 1.0}]
    )
    callback.trainer = SimpleNamespace(
        share=lambda state: state.global_step / state.max_steps, take_step=dict
    )
    callback.on_train_begin(None, state)  # type: ignore[arg-type]
    control: Any = SimpleNamespace()
    told = []
    with caplog.at_level(logging.INFO, "dto.train"):
        for step in range(1, 6):
            now += 60
            state.global_step = step
            callback.on_step_end(Any, state, control)  # type: ignore[arg-type]
            callback.on_log(None, state, control, logs={"loss": 0.5, "learning_rate": 0.1})  # type: ignore[arg-type]
            told.append(callback._time_left())
    assert control.should_save and callback._passed == 1
    assert told == ["29 min left", "28 min left", "27 min left", "26 min left", "15 min left"]
    assert caplog.messages == ["step 5 of at most 10: loss 0.5000, 15 min left"]  # after 300 s
    assert state.log_history == []
    callback.on_log(None, state, control, logs={"train_runtime": 9.0})  # type: ignore[arg-type]
    assert len(json_lines(tmp_path / "steps.jsonl")) == 5


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (["mlflow"], "'tensorboard', 'wandb' or 'trackio'"),
        ("wandb", "write [wandb]"),
    ],
)
def test_other_trackers_are_refused(value: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=r"train\.report_to") as caught:
        make_recipe({"name": "x"}, {"train.report_to": value}, "--set")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_tracker_is_named_before_anything_is_loaded(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = {"wandb", "tensorboard", "tensorboardX"}
    monkeypatch.setattr("dto.training.train.find_spec", lambda name: name not in missing or None)
    training = run.with_training(report_to=["trackio", "wandb"])
    with pytest.raises(DtoError, match=r"wandb is not installed: pip install wandb") as caught:
        fit(training.path, training.recipe)
    assert "\n" not in str(caught.value) and not (run.path / "train").exists()
    check_packages(run.with_training(report_to=["trackio"]).recipe)
    with pytest.raises(DtoError, match="pip install tensorboard"):
        check_packages(run.with_training(report_to=["tensorboard"]).recipe)


def test_trackers_decide_nothing() -> None:
    """A run of before the setting is not computed again, whether trackers are set or not."""
    recipe = load_recipe(Path(__file__).parents[2] / "pipelines" / "quickstart.yaml")
    train = recipe.train.model_copy(update={"report_to": ("wandb",)})
    tracked = recipe.model_copy(update={"train": train})
    material = Material([], [], [], [], [])
    assert fingerprint(recipe, material) == fingerprint(tracked, material)
    for stage in STAGES.values():
        assert settings_read(recipe, stage) == settings_read(tracked, stage)
        assert "train.report_to" not in settings_read(recipe, stage)
    old = recipe.train.model_dump_json(exclude={"report_to"})
    assert "report_to" not in old and fingerprint(recipe, material) == _fingerprint_before(recipe)


def _fingerprint_before(recipe: Recipe) -> str:
    from dto.records import content_id

    later = {"report_to", "engine", "engine_gpus", "processes", "accelerate", "optimizer"}
    train = recipe.train.model_dump_json(exclude=later)
    settings = [train, recipe.sample.model_dump_json(), recipe.model.model_dump_json()]
    return content_id(str(recipe.seed), *settings, content_id(), content_id())


WRITER = """
import json, pathlib
class SummaryWriter:
    def __init__(self, log_dir):
        self.path = pathlib.Path(log_dir) / "scalars.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
    def add_scalar(self, name, value, step):
        with self.path.open("a") as file:
            file.write(json.dumps([name, value, step]) + "\\n")
    def add_text(self, *_): pass
    def flush(self): pass
    def close(self): pass
"""


@pytest.mark.slow
def test_a_tracker_gets_the_figures_of_each_step(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through transformers' own integration, on a package that stands in for tensorboardX."""
    (tmp_path / "packages" / "tensorboardX").mkdir(parents=True)
    (tmp_path / "packages" / "tensorboardX" / "__init__.py").write_text(WRITER)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # were it installed
    monkeypatch.delitem(sys.modules, "tensorboardX", raising=False)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    training = run.with_training(epochs=1, evaluations=1, report_to=["tensorboard"])
    fit(training.path, training.recipe)
    scalars = json_lines(training.path / "train" / "tensorboard" / "scalars.jsonl")
    losses = {step: value for name, value, step in scalars if name == "train/loss"}
    assert [*losses] == [*range(1, 1 + QUESTIONS // 4)]
    assert {name for name, _, step in scalars if step == 1} >= {
        "train/loss", "train/grad_norm", "train/learning_rate", "train/rewards/margins",
        "train/rewards/accuracies", "train/logps/chosen", "train/tokens_per_second",
    }  # fmt: skip
    for row in steps_of(training):
        assert row["loss"] == pytest.approx(losses[row["step"]], rel=1e-5)


def test_a_generation_config_that_cannot_be_saved_is_named_at_the_start(
    run: RunFolder, model_folder: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(model_folder).save_pretrained(base)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(base)
    (base / "generation_config.json").write_text('{"pad_token_id": -1}')
    model = run.recipe.model.model_copy(update={"name": str(base)})
    with pytest.raises(DtoError, match=r"correct its generation_config\.json") as caught:
        load(run.recipe.model_copy(update={"model": model}))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(("kept", "says_do_sample"), [("trained", True), ("base", False)])
def test_what_is_kept_can_be_asked(
    kept: str, says_do_sample: bool, run: RunFolder, model_folder: Path
) -> None:
    """With the base's chat template, sampling settings and end tokens, and with its cache on."""
    own = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "eos_token_id": [1, 2]}
    base = run.path.parent / "base"
    AutoModelForCausalLM.from_pretrained(model_folder).save_pretrained(base)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(base)
    given = own if says_do_sample else {key: own[key] for key in own if key != "do_sample"}
    (base / "generation_config.json").write_text(json.dumps(given))
    changes = {"collapse_points": -200.0} if kept == "base" else {"keep": "last"}
    training = run.with_training(epochs=1, evaluations=1, **changes)
    model = training.recipe.model.model_copy(update={"name": str(base)})
    result = fit(training.path, training.recipe.model_copy(update={"model": model}))
    assert (result["kept_step"] == 0) == (kept == "base")
    folder = training.path / "train" / "model"
    written = json.loads((folder / "generation_config.json").read_text())
    assert {key: written[key] for key in own} == own
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.config.use_cache and loaded.generation_config.temperature == 0.6
    words = AutoTokenizer.from_pretrained(folder)
    prompt = words.apply_chat_template(
        [{"role": "user", "content": "7?"}], add_generation_prompt=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    assert words.decode(prompt["input_ids"][0]).endswith("<think>\n")
    assert loaded.generate(**prompt, max_new_tokens=4).shape[1] > prompt["input_ids"].shape[1]
