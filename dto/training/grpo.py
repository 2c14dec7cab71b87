"""GRPO (2402.03300) on problems, by TRL's GRPOTrainer with our own engine for the responses.

The responses are those of the sample stage, from the model as it is now, in exact ids; `reward`
says what is rewarded (`dto.training.rewards`). No reference model is kept near (TRL's default).
The tokens of a step are known only after it, so the training ends where the next step might exceed
the budget, and the learning rate falls linearly with the share of the budget that is spent.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from dto.ledger import Usage
from dto.recipe import Recipe
from dto.records import Dropped, Problem, Trajectory
from dto.seeds import derive
from dto.training.dev import respond
from dto.training.rewards import REWARDS, Rewards
from dto.training.trainer import Mannered, arguments, table
from dto.trajectories import prompt_ids


class OnlineTrainer(Mannered, GRPOTrainer):
    """GRPOTrainer on exact ids; `order` holds indices into `problems`, for the whole training.

    `spent` counts the policy tokens so far: what was generated, and what was trained on, prompts
    included. `usage` is that of the engine.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: GRPOConfig,
        tokenizer: PreTrainedTokenizerBase,
        problems: Sequence[Problem],
        order: Sequence[int],
        recipe: Recipe,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.problems = {problem.id: problem for problem in problems}
        self.recipe = recipe
        self.words = tokenizer
        self.usage = Usage()
        self.spent = self.generated = 0
        self._largest_step = 0
        self._spent_before = 0
        super().__init__(
            model,
            _reward(recipe),
            args,
            train_dataset=table([{"prompt": problems[index].id} for index in order]),
            processing_class=tokenizer,
            callbacks=[*callbacks, Decay(self)],
            rollout_func=self._responses,
        )
        self.remove_callback(PrinterCallback)
        self.losses = []
        self.allow_code_execution = False

    def share(self, state: TrainerState) -> float:
        """How much of the training is done; 1 where the next step might exceed the budget."""
        budget = self.recipe.train.policy_tokens
        if budget is None:
            return state.global_step / state.max_steps
        self._largest_step = max(self._largest_step, self.spent - self._spent_before)
        self._spent_before = self.spent
        left = budget - self.spent
        ended = left < self._largest_step or state.global_step >= state.max_steps
        return 1.0 if ended else self.spent / budget

    def _responses(self, asked: list[str], trainer: Any) -> dict[str, list[Any]]:
        """The responses to problems, which are given by id, each as often as it is to be asked."""
        group = self.recipe.train.group
        names = asked[::group]
        seed = derive(self.recipe.seed, "grpo", "step", self.state.global_step)
        sampling = self.recipe.sample.model_copy(update={"samples": group})
        recipe = self.recipe.model_copy(update={"seed": seed, "sample": sampling})
        model = self.accelerator.unwrap_model(self.model)
        unique = list(dict.fromkeys(names))  # an epoch may end with what the next begins with
        found, usage = respond(
            model,
            self.words,
            [self.problems[name] for name in unique],
            recipe,
            allow_code_execution=self.allow_code_execution,
        )
        made = dict(zip(unique, found, strict=True))
        # A prompt without room for a response stands for its whole group.
        answers = [row for name in names for row in (made[name] * group)[:group]]
        end = int(self.words.eos_token_id)
        prompts, completions, grades = [], [], []
        for name, row in zip(asked, answers, strict=True):
            prompt, ids, grade = _parts(row)
            if prompt is None:
                own = self.problems[name]
                prompt = list(prompt_ids(own.question, self.words, self.recipe.model, own.prompt))
            prompts.append(prompt)
            completions.append(ids or [end])
            grades.append(grade)
        generated = sum(len(row.token_ids) for row in answers if isinstance(row, Trajectory))
        trained = sum(map(len, prompts)) + sum(map(len, completions))
        self._count(generated, trained, usage)
        return {
            "prompt_ids": prompts,
            "completion_ids": completions,
            "logprobs": None,  # type: ignore[dict-item]
            "grade": grades,
        }

    def _count(self, generated: int, trained: int, usage: Usage) -> None:
        """Add what all processes spent on a step: they have to end at the same one."""
        for own, added, each in gather_object([(generated, trained, usage)]):
            self.generated += own
            self.spent += own + added
            self.usage.add(each)


def _parts(row: Trajectory | Dropped) -> tuple[list[int] | None, list[int], str]:
    if isinstance(row, Dropped):
        return None, [], "failed"
    return list(row.prompt_ids), list(row.token_ids), row.grade


def _reward(recipe: Recipe) -> Any:
    """TRL's reward function: the rewards of groups that follow one another."""
    settings = recipe.train
    function = REWARDS[settings.reward]

    def reward(completion_ids: list[list[int]], grade: list[str], **_: Any) -> Rewards:
        rewards: Rewards = []
        for at in range(0, len(grade), settings.group):
            grades = grade[at : at + settings.group]
            correct = [None if each == "failed" else each == "correct" for each in grades]
            lengths = [len(ids) for ids in completion_ids[at : at + settings.group]]
            rewards += function(correct, lengths, settings.penalty)
        return rewards

    return reward


class Decay(TrainerCallback):
    """The learning rate falls linearly with what is spent, as it does with steps elsewhere."""

    def __init__(self, trainer: OnlineTrainer) -> None:
        self.trainer = trainer

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Set the rate of the step."""
        budget = self.trainer.recipe.train.policy_tokens
        done = self.trainer.spent / budget if budget else state.global_step / state.max_steps
        for group in kwargs["optimizer"].param_groups:
            group["lr"] = args.learning_rate * (1 - done)


def longest(recipe: Recipe, problems: int, shortest_prompt: int) -> int:
    """Problems in the order of a training: an upper bound where the tokens decide when it ends."""
    settings = recipe.train
    budget = settings.policy_tokens
    if budget is None:
        return round(settings.epochs * problems)
    return budget // (settings.group * (shortest_prompt + 2)) + settings.batch_size


def config(recipe: Recipe, directory: Path) -> GRPOConfig:
    """TRL's settings of this loss."""
    return GRPOConfig(
        **arguments(recipe, directory),
        lr_scheduler_type="constant",  # Decay sets it
        num_generations=recipe.train.group,
        max_completion_length=recipe.sample.max_tokens,
        temperature=recipe.sample.temperature or 1.0,
        beta=0.0,
        shuffle_dataset=False,
    )
