"""The trainer's stops: at evenly spaced steps the model is saved, measured and judged."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dto.recipe import Recipe
from dto.records import Problem
from dto.training.checkpoints import BASE_STEP, DevScore, TrainingState, has_collapsed
from dto.training.dev import measure, spread, summarize
from dto.training.judging import Judging

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("dto.train")


class DevCallback(TrainerCallback):
    """Saves and measures the model at evenly spaced steps, the last one included.

    `mean_loss` is the trainer's mean loss since it was last asked for; `share` says how much of the
    training is done, by steps unless the trainer counts otherwise. It ends at 1. `judging`, if
    there is any, is measured beside the dev problems.
    """

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: PreTrainedTokenizerBase,
        problems: Sequence[Problem],
        training: TrainingState,
        allow_code_execution: bool = False,
    ) -> None:
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.problems = problems
        self.training = training
        self.allow_code_execution = allow_code_execution
        self.epochs = recipe.train.epochs
        self.mean_loss: Callable[[], float | None] = lambda: None
        self.share: Callable[[TrainerState], float] = _by_steps
        self.judging: Judging | None = None
        self._passed = 0
        self._since = time.monotonic()
        self._bar: tqdm[Any] = tqdm(disable=True)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Go on behind the point that a resumed training has come to."""
        self._passed = self._points(state) if state.global_step else 0
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc="train",
            unit="step",
            disable=None if state.is_world_process_zero else True,
        )
        self._since = time.monotonic()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> TrainerControl:
        """Ask for a checkpoint at the points."""
        self._bar.update()
        passed = self._points(state)
        control.should_save = passed > self._passed
        self._passed = passed
        return control

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> TrainerControl:
        """The checkpoint is written: measure it, by which it becomes complete."""
        seconds = time.monotonic() - self._since
        share = self.share(state)
        score = self.score(kwargs["model"], state.global_step, share, seconds)
        ended = score.collapsed or self._passed == self.recipe.train.evaluations
        control.should_training_stop = control.should_training_stop or ended
        self._since = time.monotonic()
        return control

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Close the bar."""
        self._bar.close()

    def _points(self, state: TrainerState) -> int:
        """How many of the points are passed."""
        return math.floor(self.recipe.train.evaluations * self.share(state) + 1e-9)

    def score(self, model: PreTrainedModel, step: int, share: float, seconds: float) -> DevScore:
        """Measure the model, each process on its share of the problems, and write it down.

        `share` of the training is done; `seconds` went into it since the score before.
        """
        began = time.monotonic()
        responses, usage = spread(
            self.problems,
            lambda own: measure(
                model,
                self.tokenizer,
                own,
                self.recipe,
                allow_code_execution=self.allow_code_execution,
            ),
        )
        if self.judging is not None:
            usage.add(self.judging.measure(model, step))
        score = DevScore(
            step,
            round(self.epochs * share, 4),
            *summarize(responses),
            loss=self.mean_loss(),
        )
        if step > BASE_STEP:
            base = self.training.history[0]
            score = replace(score, collapsed=has_collapsed(score, base, self.recipe.train))
        effort = {
            "train_seconds": round(seconds, 3),
            "dev_seconds": round(time.monotonic() - began, 3),
            "usage": usage.as_json(),
        }
        self.training.record(score, effort)
        PartialState().wait_for_everyone()
        logger.info("%s", _line(score))
        return score


def _by_steps(state: TrainerState) -> float:
    return state.global_step / state.max_steps


def _line(score: DevScore) -> str:
    loss = "" if score.loss is None else f", loss {score.loss:.4f}"
    text = (
        f"step {score.step}: dev accuracy {score.accuracy:.3f} ± {score.standard_error:.3f}, "
        f"{score.tokens_mean:.1f} tokens, {score.truncated:.1%} truncated{loss}"
    )
    return f"{text}: collapsed, training stops" if score.collapsed else text
