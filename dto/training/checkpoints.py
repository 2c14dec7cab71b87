"""Dev scores and checkpoints of a training, and the choice of the one to keep.

A checkpoint is complete when `history.jsonl` has the dev score of its step. That file is written
after the checkpoint, and always replaced as a whole. Files in `runs/NAME/train`:

    history.jsonl        one DevScore per line; deterministic
    steps.jsonl          one line per optimizer step (`step_line`); deterministic except the speed
    effort.jsonl         seconds and tokens of each score; not deterministic
    judging.jsonl        one JudgingScore per line, if chains are held out; deterministic
    handed               weights for the engine beside the training, while it runs
    checkpoints/checkpoint-STEP, with progress.json if the method samples its data
    training.json        fingerprint and processes; a different training starts afresh
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dto.errors import DtoError
from dto.recipe import Recipe, TrainSettings
from dto.runs.manifest import write_text
from dto.training.dev import (
    BASE_STEP,
    THINKING,
    DevScore,
    JudgingScore,
    measure,
    measure_judging,
    summarize,
)
from dto.training.pairs import Material
from dto.training.train import json_lines
from dto.usage import Usage

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dto.training.beside import Beside

CHECKPOINTS = "checkpoints"
PROGRESS = "progress.json"
HANDED = "handed"
"""The folder of the weights that the engine beside the training got last."""
STEPS = "steps.jsonl"
TENSORBOARD = "tensorboard"
"""Folder for TensorBoard, unless TENSORBOARD_LOGGING_DIR names another."""
STEP_FIGURES = {
    "loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "reward_accuracy",
    "logps/chosen": "chosen_logp", "logps/rejected": "rejected_logp", "kl": "kl",
    "sampling/importance_sampling_ratio/mean": "importance_ratio",
    "grad_norm": "grad_norm", "learning_rate": "learning_rate", "tokens": "tokens",
    "tokens_per_second": "tokens_per_second",
}  # fmt: skip
"""TRL's names of the figures of a step, and those in `steps.jsonl`."""
LINE_SECONDS = 300
"""A training logs a line about its progress so often, between dev measurements."""


def step_line(
    step: int, logs: Mapping[str, Any], more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A line of `steps.jsonl`, with six significant digits.

    All methods: `loss`, `grad_norm` (before clipping at 1), `learning_rate`, `tokens` (trained on,
    prompts included) and `tokens_per_second`, the only figure that is not deterministic. SimPO and
    DPO: `chosen_logp` and `rejected_logp` (SimPO: per token; DPO: of a whole response), `margin`
    (chosen minus rejected reward, that is beta times the log-probability, for DPO minus the
    reference's) and `reward_accuracy` (share of pairs with a positive margin). GRPO and DRQA:
    `more`, and `importance_ratio` where another engine samples.
    """
    named = {name: logs[key] for key, name in STEP_FIGURES.items() if key in logs}
    figures = {
        name: float(f"{value:.6g}") if isinstance(value, float) else value
        for name, value in named.items()
    }
    return {"step": step, **(more or {}), **figures}


@dataclass(frozen=True, slots=True)
class Choice:
    """The step whose weights are kept (0: the base model), and the reason in one sentence."""

    step: int
    reason: str


def has_collapsed(score: DevScore, base: DevScore, settings: TrainSettings) -> bool:
    """Whether accuracy fell too far below the base's, or too many responses are truncated.

    If the base model is often truncated itself, the limit is its share plus `collapse_points`.
    """
    points = settings.collapse_points / 100
    most_truncated = settings.collapse_truncated
    if base.truncated > 0:
        most_truncated = max(most_truncated, base.truncated + points)
    return score.accuracy < base.accuracy - points or score.truncated > most_truncated


def choose(history: Sequence[DevScore], keep: str = "shortest") -> Choice:
    """Choose the checkpoint with the fewest tokens among those as accurate as the base model.

    As accurate means accuracy ≥ base − 1 standard error of the base's accuracy (clustered by
    problem). The paper (2505.21765) does not say how its checkpoint was chosen. If no such
    checkpoint needs fewer tokens than the base model, the base model is kept. `keep="last"` chooses
    the last checkpoint that has not collapsed, to measure a training rather than to choose a model.
    """
    base = history[0]
    if keep == "last":
        last = [score for score in history if not score.collapsed][-1]
        if last.step == BASE_STEP:
            return Choice(BASE_STEP, "every checkpoint has collapsed: base is kept")
        return Choice(last.step, f"step {last.step} is kept, the last: {_beside(last, base)}")
    floor = base.accuracy - base.standard_error
    fit = [
        score
        for score in history[1:]
        if not score.collapsed and score.accuracy >= floor and score.tokens_mean < base.tokens_mean
    ]
    if not fit:
        tokens = f"fewer than {base.tokens_mean:.0f} tokens"
        reason = f"no checkpoint has accuracy ≥ {floor:.3f} with {tokens}"
        return Choice(BASE_STEP, f"training did not help: base is kept ({reason})")
    best = min(fit, key=lambda score: (score.tokens_mean, -score.accuracy, score.step))
    return Choice(
        best.step,
        f"step {best.step} is kept: {_beside(best, base)[:-1]}, floor {floor:.3f})",
    )


def _beside(score: DevScore, base: DevScore) -> str:
    return (
        f"{score.tokens_mean:.0f} tokens (base {base.tokens_mean:.0f}), "
        f"accuracy {score.accuracy:.3f} (base {base.accuracy:.3f})"
    )


class TrainingState:
    """The files of one training, and its resumption after a kill."""

    def __init__(
        self,
        directory: Path,
        fingerprint: str,
        processes: int = 1,
        sharding: str = "",
        *,
        writer: bool = True,
        keep: str = "shortest",
    ) -> None:
        """Open `directory`, and remove the files of a different training (another fingerprint).

        If several processes train together, one is the writer and must call this first. Raises
        DtoError for checkpoints of another number of processes, or of another `sharding`.
        """
        self.directory = directory
        self.writer = writer
        self.keep = keep
        self.checkpoints = directory / CHECKPOINTS
        self.model = directory / "model"
        self.finished = directory / "result.json"
        marker = directory / "training.json"
        mark: dict[str, Any] = {"fingerprint": fingerprint, "processes": processes}
        mark |= {"sharding": sharding} if sharding else {}
        previous = json.loads(marker.read_text(encoding="utf-8")) if marker.exists() else {}
        same = previous.get("fingerprint") == fingerprint
        if previous != mark and not (same and self.finished.exists()):
            scores = json_lines(directory / "history.jsonl") if same else []
            if len(scores) > 1:
                raise DtoError(
                    f"train: {directory} has checkpoints of {_team(previous)}, up to step "
                    f"{scores[-1]['step']}, and this training has {_team(mark)}: set "
                    "train.processes and train.accelerate back to resume it, or discard it with "
                    f"`dto train {quote(str(directory.parent))} --recompute`"
                )
            if not same:
                self._clear()
            directory.mkdir(parents=True, exist_ok=True)
            write_text(marker, json.dumps(mark) + "\n")
        self.history = [DevScore(**row) for row in json_lines(directory / "history.jsonl")]
        steps = {score.step for score in self.history}
        judged = [JudgingScore(**row) for row in json_lines(directory / "judging.jsonl")]
        self.judging = [score for score in judged if score.step in steps]

    def result(self) -> dict[str, Any] | None:
        """The result of a finished training; None if it is not finished."""
        if not (self.finished.exists() and self.model.is_dir()):
            return None
        result: dict[str, Any] = json.loads(self.finished.read_text(encoding="utf-8"))
        return result

    def _clear(self) -> None:
        for path in (
            self.checkpoints, self.model, self.directory / HANDED, self.directory / TENSORBOARD
        ):  # fmt: skip
            shutil.rmtree(path, ignore_errors=True)
        for name in (
            "history.jsonl", "effort.jsonl", "result.json", "dropped.jsonl", "judging.jsonl", STEPS,
        ):  # fmt: skip
            (self.directory / name).unlink(missing_ok=True)

    def resume(self, needs: str = "") -> Path | None:
        """Remove incomplete checkpoints; return the last complete one, or None to start afresh.

        A checkpoint without the file that it `needs` is not complete. Rows of `steps.jsonl` after
        the checkpoint are removed: their steps are taken again.
        """
        trained = [score.step for score in self.history if score.step > BASE_STEP]
        last = self.checkpoint(trained[-1]) if trained else None
        if last is not None and not (last / needs).exists():
            self.history, last = self.history[:1], None
        self._cut_steps(trained[-1] if last is not None else BASE_STEP)
        steps = {score.step for score in self.history}
        self.judging = [score for score in self.judging if score.step in steps]
        complete = {self.checkpoint(score.step) for score in self.history}
        for path in self.checkpoints.glob("*"):
            if path not in complete:
                shutil.rmtree(path)
        return last

    def _cut_steps(self, last: int) -> None:
        path = self.directory / STEPS
        if self.writer and path.exists():
            rows = [row for row in json_lines(path) if row["step"] <= last]
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows))

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint of a step."""
        return self.checkpoints / f"checkpoint-{step}"

    def record(self, score: DevScore, effort: dict[str, Any]) -> None:
        """Write a dev score, which completes its checkpoint; then delete unneeded checkpoints.

        The last checkpoint is needed to resume, and so is the one that would be kept now.
        """
        self.history.append(score)
        if not self.writer:
            return
        with (self.directory / "effort.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": score.step, **effort}) + "\n")
        self._write("history.jsonl", self.history)
        needed = {
            self.checkpoint(score.step),
            self.checkpoint(choose(self.history, self.keep).step),
        }
        for path in self.checkpoints.glob("*"):
            if path not in needed:
                shutil.rmtree(path)

    def record_step(self, line: Mapping[str, Any]) -> None:
        """Append a line to `steps.jsonl`."""
        if self.writer:
            with (self.directory / STEPS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def record_judging(self, score: JudgingScore) -> None:
        """Write a score on held-out chains, replacing an earlier score of the same step."""
        self.judging = [row for row in self.judging if row.step != score.step] + [score]
        if self.writer:
            self._write("judging.jsonl", self.judging)

    def _write(self, name: str, scores: Sequence[DevScore] | Sequence[JudgingScore]) -> None:
        lines = [json.dumps(asdict(row)) + "\n" for row in scores]
        write_text(self.directory / name, "".join(lines))

    def efforts(self) -> list[dict[str, Any]]:
        """The effort of each score, including those of killed sessions."""
        return json_lines(self.directory / "effort.jsonl")

    def spent(self) -> tuple[Usage, dict[str, float]]:
        """The sum of all efforts: usage of the dev responses and seconds."""
        efforts = self.efforts()
        usage = Usage()
        for effort in efforts:
            usage.add(Usage.read(effort["usage"]))
        keys = ("train_seconds", "dev_seconds")
        seconds = {key: round(sum(effort[key] for effort in efforts), 3) for key in keys}
        return usage, {**seconds, "seconds": round(sum(seconds.values()), 3)}


def _team(mark: dict[str, Any]) -> str:
    """The processes of a training, in words."""
    count = mark["processes"]
    noun = "process" if count == 1 else "processes"
    return f"{count} {noun}" + (f" with {mark['sharding']}" if mark.get("sharding") else "")


logger = logging.getLogger("dto.train")


@dataclass(eq=False)
class DevCallback(TrainerCallback):
    """Saves and measures the model at evenly spaced steps, including the last one.

    `trainer` is created after this callback and set before training; it reports the progress and
    the mean loss. `beside` is the engine of `train.engine`, if that is not transformers. Held-out
    chains, if any, are judged beside the dev problems. The bar shows the loss and the time left,
    dev measurements included.
    """

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    material: Material
    training: TrainingState
    allow_code_execution: bool
    trainer: Any = None
    beside: Beside | None = None
    _passed: int = 0
    _since: float = 0.0
    _share: float = 0.0  # of the training, at the last step
    _begun: tuple[float, float] = (0.0, 0.0)  # share at the start of this process, and its time
    _dev_seconds: float = 0.0  # of the last measurement
    _measuring: float = 0.0  # seconds of the measurements since the start
    _told: float = 0.0  # when the last line was logged
    _bar: tqdm[Any] = field(default_factory=lambda: tqdm(disable=True))

    def on_train_begin(self, args: Any, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Set up the counter of points and the progress bar, also of a resumed training."""
        self._passed = self._points(state) if state.global_step else 0
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc="train",
            disable=None if state.is_world_process_zero else True,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} steps [{elapsed}{postfix}]",
        )
        self._since = self._told = time.monotonic()
        self._begun, self._measuring = (self._share, self._since), 0.0
        efforts = self.training.efforts()
        self._dev_seconds = self._dev_seconds or (efforts[-1]["dev_seconds"] if efforts else 0.0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Request a checkpoint at each point."""
        self._bar.update()
        passed = self._points(state)
        control.should_save = passed > self._passed
        self._passed = passed
        return control

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Record the figures of a step; the summary at the end of the training has no loss."""
        logs = kwargs["logs"]
        state.log_history.clear()  # it would grow in every checkpoint
        if "loss" not in logs:
            return
        line = step_line(state.global_step, logs, self.trainer.take_step())
        self.training.record_step(line)
        progress = f"loss {line['loss']:.4f}, {self._time_left()}"
        self._bar.set_postfix_str(progress, refresh=False)
        if time.monotonic() - self._told >= LINE_SECONDS and state.is_world_process_zero:
            self._told = time.monotonic()
            logger.info("step %d of at most %d: %s", state.global_step, state.max_steps, progress)

    def _time_left(self) -> str:
        """The time to the end, from the steps of this process and the last dev measurement."""
        share, began = self._begun
        if self._share <= share:
            return "time left unknown"
        trained = time.monotonic() - began - self._measuring
        steps = trained * (1 - self._share) / (self._share - share)
        ahead = max(0, self.recipe.train.evaluations - self._passed)
        return f"{duration(steps + ahead * self._dev_seconds)} left"

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Measure the checkpoint just written, which completes it."""
        if (progress := self.trainer.progress()) and state.is_world_process_zero:
            path = self.training.checkpoint(state.global_step) / PROGRESS
            write_text(path, json.dumps(progress) + "\n")
        seconds = time.monotonic() - self._since
        self._bar.set_description(f"dev at step {state.global_step}")
        score = self.score(kwargs["model"], state.global_step, self._share, seconds)
        self._bar.set_description("train")
        ended = score.collapsed or self._passed == self.recipe.train.evaluations
        control.should_training_stop = control.should_training_stop or ended
        self._since = self._told = time.monotonic()
        return control

    def on_train_end(self, args: Any, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self._bar.close()

    def _points(self, state: TrainerState) -> int:
        """The number of points passed."""
        self._share = self.trainer.share(state)
        return math.floor(self.recipe.train.evaluations * self._share + 1e-9)

    def score(self, model: PreTrainedModel, step: int, share: float, seconds: float) -> DevScore:
        """Measure the model, each process on its share of the problems, and record the score.

        `share` is the part of the training done so far, `seconds` the time since the last score.
        """
        start = time.monotonic()
        with self.beside.same_weights() if self.beside is not None else nullcontext():
            responses, usage = measure(
                model,
                self.tokenizer,
                self.material.dev,
                self.recipe,
                allow_code_execution=self.allow_code_execution,
                beside=self.beside,
            )
            usage.add(self.judge(model, step))
        epoch = round(self.material.epochs * share, 4)
        score = summarize(step, epoch, responses, self.trainer.mean_loss())
        if step > BASE_STEP:
            base = self.training.history[0]
            score = replace(score, collapsed=has_collapsed(score, base, self.recipe.train))
        self._dev_seconds = round(time.monotonic() - start, 3)
        effort = {
            "train_seconds": round(seconds, 3),
            "dev_seconds": self._dev_seconds,
            "usage": usage.as_json(),
        }
        self.training.record(score, effort)
        PartialState().wait_for_everyone()
        self._measuring += self._dev_seconds
        ended = score.collapsed or self._passed == self.recipe.train.evaluations
        left = "" if step == BASE_STEP or ended else f"; {self._time_left()}"
        logger.info("%s%s", _line(score), left)
        return score

    def judge(self, model: PreTrainedModel, step: int) -> Usage:
        """Judge the held-out chains, if any, and record the score."""
        held_out = self.material.held_out
        if not held_out:
            return Usage()
        score, usage = measure_judging(
            model, self.tokenizer, held_out, self.recipe, step, self.beside
        )
        self.training.record_judging(score)
        return usage


def duration(seconds: float) -> str:
    """Seconds as people say them: `40 s`, `12 min`, `3 h 05 min`."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _line(score: DevScore) -> str:
    loss = "" if score.loss is None else f", loss {score.loss:.4f}"
    text = (
        f"step {score.step}: dev accuracy {score.accuracy:.3f} ± {score.standard_error:.3f}, "
        f"{score.tokens_mean:.1f} tokens, {score.truncated:.1%} truncated{_thinking(score)}{loss}"
    )
    return f"{text}: collapsed, training stops" if score.collapsed else text


def _thinking(score: DevScore) -> str:
    """The states of the thinking, unless all of it is valid."""
    if score.thinking is None or score.thinking["valid"] == 1.0:
        return ""
    shares = ((state, score.thinking[state] or 0.0) for state in THINKING)
    text = ", ".join(f"{share:.1%} {state}" for state, share in shares if share)
    accuracy, low, high = (score.thinking[name] for name in ("accuracy", "low", "high"))
    if accuracy is None:
        return f", thinking {text}"
    return f", thinking {text} (accuracy given valid {accuracy:.3f}, {low:.3f}–{high:.3f})"
