"""GRPO (2402.03300) by TRL's GRPOTrainer with our own engine for the responses.

What is asked are problems (`train.method: grpo`; the responses are those of the sample stage, and
`reward` says what is rewarded) or labelled chains (`drqa`, 2508.17803: the model judges them, and
is rewarded for the right letter). Responses come from the model as it is now, in exact ids. They
come from its whole distribution at the temperature, without top-p and the like: that is the
distribution whose logprobs are trained on. `kl` weighs the divergence from the
base (a second model; under LoRA the base without its adapters). A group whose rewards are all equal
teaches nothing: these are counted. TRL's defaults stand: the loss is the mean over all tokens of a
step (dapo), and the divergence is weighted by the ratio of the probabilities (2512.02556).

The tokens of a step are known only after it, so the training ends where the next step might exceed
the budget, and the learning rate falls linearly with the share of the budget that is spent.

O1-Pruner (2501.12570) is here as well: the clipped objective of PPO on samples of the base model,
which TRL's GRPOTrainer computes too (:class:`PrunerTrainer`).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from math import exp
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from torch.utils.data import Sampler, SequentialSampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerState,
)
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import pad

from dto.recipe import Recipe
from dto.records import Dropped, LabelledChain, Problem, derive
from dto.stages.sample import sample
from dto.training.dev import Judgement, judge, respond, sampled
from dto.training.pairs import Demonstration, Ids, asked
from dto.training.trainers import QuietTrainer, arguments
from dto.usage import Usage


def accuracy(correct: Sequence[bool], lengths: Sequence[int], penalty: float) -> list[float]:
    """1 for a right response, 0 for a wrong one (2402.03300); length is not looked at."""
    return [float(right) for right in correct]


def length_penalty(correct: Sequence[bool], lengths: Sequence[int], penalty: float) -> list[float]:
    """Right: 1 - penalty · sigmoid((length - mean) / deviation), wrong: 0 (2502.04463).

    Mean and standard deviation are those of the right responses to the problem. Where they are all
    equally long, the sigmoid is one half.
    """
    right = [length for length, good in zip(lengths, correct, strict=True) if good]
    mean, deviation = (fmean(right), pstdev(right)) if right else (0.0, 0.0)

    def reward(length: int) -> float:
        score = (length - mean) / deviation if deviation else 0.0
        return 1 - penalty / (1 + exp(-score))

    return [reward(length) if good else 0.0 for good, length in zip(correct, lengths, strict=True)]


def shorter_better(correct: Sequence[bool], lengths: Sequence[int], penalty: float) -> list[float]:
    """2 · right - penalty · |length - optimal length| (2504.21370; 2 is the paper's alpha).

    The sample-optimal length is that of the shortest right response; without a right one, the mean.
    """
    right = [length for length, good in zip(lengths, correct, strict=True) if good]
    optimal = min(right) if right else fmean(lengths) if lengths else 0.0
    return [
        2.0 * good - penalty * abs(length - optimal)
        for good, length in zip(correct, lengths, strict=True)
    ]


REWARDS = {
    "accuracy": accuracy,
    "length_penalty": length_penalty,
    "shorter_better": shorter_better,
}


def judging(picks: Sequence[str], no_letter: float) -> list[float]:
    """1 for picking the label, 0 for another letter, `no_letter` for none (2508.17803).

    The paper has 1 and 0 alone.
    """
    worth = {"correct": 1.0, "wrong": 0.0, "unreadable": no_letter}
    return [worth[pick] for pick in picks]


KL = {"grpo": 0.0, "drqa": 0.04}
"""The weight of the divergence where the recipe has none; TRL's default, and GRPO's own."""
STEPS = "steps.jsonl"
_Answers = tuple[Ids, list[tuple[Ids, str]]]


class Groups(NamedTuple):
    """What the rewards of some responses were; `flat` groups had no advantage."""

    groups: int = 0
    flat: int = 0
    rewarded: int = 0
    reward: float = 0.0
    unreadable: int = 0
    tokens: int = 0

    def plus(self, other: Groups) -> Groups:
        """Both together."""
        return Groups._make(own + more for own, more in zip(self, other, strict=True))


class OnlineTrainer(QuietTrainer, GRPOTrainer):
    """GRPOTrainer on exact ids that it samples; the rows are problems or labelled chains.

    `spent` counts the policy tokens so far: what was generated, and what was trained on, prompts
    included; `lengths` has the tokens of each sequence that was trained on. `usage` is that of the
    engine, `groups` sums up the rewards. What a step was like stands in `steps.jsonl` beside the
    checkpoints' folder: mean reward, groups, those without advantage, responses without a letter,
    mean length, divergence from the base.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: PreTrainedModel,
        args: GRPOConfig,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Problem | LabelledChain],
        order: Sequence[int],
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.rows = {row.id: row for row in rows}
        self.recipe = recipe
        self.words = tokenizer
        self.usage = Usage()
        self.spent = 0
        self.lengths: list[int] = []
        self.groups = self._rewarded = Groups()
        self.allow_code_execution = False
        self._largest_step = 0
        self._spent_before = 0
        super().__init__(
            recipe,
            model,
            args,
            tokenizer,
            rows,
            order,
            [*callbacks, StepCallback(self)],
            reward_funcs=self._rewards,
            rollout_func=self._responses,
        )

    @staticmethod
    def config(recipe: Recipe, directory: Path) -> GRPOConfig:
        """TRL's settings of GRPO."""
        settings = recipe.train
        sampling = sampled(recipe, settings.group).sample
        revision = recipe.model.revision
        return GRPOConfig(
            **arguments(recipe, directory),
            lr_scheduler_type="constant",  # StepCallback sets it
            num_generations=settings.group,
            max_completion_length=sampling.max_tokens,
            temperature=sampling.temperature or 1.0,
            beta=KL[settings.method] if settings.kl is None else settings.kl,
            model_init_kwargs={"revision": revision} if revision else None,
            shuffle_dataset=False,
        )

    @staticmethod
    def columns(row: Problem | LabelledChain) -> dict[str, str]:
        """A row is asked for by its id."""
        return {"prompt": row.id}

    def share(self, state: TrainerState) -> float:
        """How much of the training is done; 1 where the next step might exceed the budget."""
        budget = self.recipe.train.policy_tokens
        if budget is None:
            return super().share(state)
        self._largest_step = max(self._largest_step, self.spent - self._spent_before)
        self._spent_before = self.spent
        left = budget - self.spent
        ended = left < self._largest_step or state.global_step >= state.max_steps
        return 1.0 if ended else self.spent / budget

    def take_step(self) -> dict[str, Any]:
        """What the step that has ended was like."""
        step, self._rewarded = self._rewarded, Groups()
        self.groups = self.groups.plus(step)
        responses = step.groups * self.recipe.train.group
        divergence = self._metrics["train"].pop("kl", [])  # of each batch of the step
        return {
            "reward": round(step.reward / step.rewarded, 6) if step.rewarded else None,
            "groups": step.groups,
            "without_advantage": step.flat,
            "unreadable": step.unreadable,
            "tokens_mean": round(step.tokens / responses, 2) if responses else None,
            "kl": round(fmean(divergence), 6) if divergence else None,
        }

    def _responses(self, names: list[str], trainer: Any) -> dict[str, list[Any]]:
        """The responses to what is given by id, each as often as it is to be asked."""
        group = self.recipe.train.group
        firsts = names[::group]
        seed = derive(self.recipe.seed, "grpo", "step", self.state.global_step)
        recipe = sampled(self.recipe.model_copy(update={"seed": seed}), group, untruncated=True)
        unique = list(dict.fromkeys(firsts))  # an epoch may end with what the next begins with
        found, usage = self._sampled([self.rows[name] for name in unique], recipe)
        made = dict(zip(unique, found, strict=True))
        end = int(self.words.eos_token_id)
        prompts, completions, grades = [], [], []
        for prompt, answers in (made[name] for name in firsts):
            for ids, grade in answers:
                prompts.append(list(prompt))
                completions.append(list(ids))
                grades.append(grade)
        generated = sum(map(len, completions))
        completions = [ids or [end] for ids in completions]
        lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
        self._count(generated, lengths, usage)
        return {
            "prompt_ids": prompts,
            "completion_ids": completions,
            "logprobs": None,  # type: ignore[dict-item]
            "grade": grades,
        }

    def _sampled(self, rows: Sequence[Any], recipe: Recipe) -> tuple[list[_Answers], Usage]:
        """The prompt of each row, and `group` answers to it: their ids, and what is rewarded.

        An answer that was dropped (no room, or in another model's tags) is empty and `failed`.
        """
        model = self.accelerator.unwrap_model(self.model)
        found, usage = respond(
            model,
            self.words,
            rows,
            recipe,
            work=judge if self.recipe.train.method == "drqa" else sample,
            allow_code_execution=self.allow_code_execution,
        )
        made: list[_Answers] = []
        for row, responses in zip(rows, found, strict=True):
            answers: list[tuple[Ids, str]] = [
                (each.token_ids, each.pick if isinstance(each, Judgement) else each.grade)
                for each in responses
                if not isinstance(each, Dropped)
            ]
            answers += [((), "failed")] * (self.recipe.train.group - len(answers))
            made.append((asked(row, self.words, recipe.model), answers))
        return made, usage

    def _rewards(
        self, completion_ids: list[list[int]], grade: list[str], **_: Any
    ) -> list[float | None]:
        """TRL's reward function: the rewards of groups that follow one another."""
        settings = self.recipe.train
        rewards: list[float | None] = []
        counted = Groups()
        for at in range(0, len(grade), settings.group):
            grades = grade[at : at + settings.group]
            lengths = [len(ids) for ids in completion_ids[at : at + settings.group]]
            # What failed has no reward, and no part in those of the others.
            places = [place for place, each in enumerate(grades) if each != "failed"]
            graded = [grades[place] for place in places]
            if settings.method == "drqa":
                given = judging(graded, settings.no_letter)
            else:
                correct, own = [each == "correct" for each in graded], [lengths[p] for p in places]
                given = REWARDS[settings.reward](correct, own, settings.penalty)
            counted = counted.plus(
                Groups(
                    1, len(set(given)) < 2, len(given), sum(given),
                    grades.count("unreadable"), sum(lengths),
                )
            )  # fmt: skip
            reward = dict(zip(places, given, strict=True))
            rewards += [reward.get(place) for place in range(len(grades))]
        for each in gather_object([tuple(counted)]):
            self._rewarded = self._rewarded.plus(Groups(*each))
        return rewards

    def _count(self, generated: int, lengths: list[int], usage: Usage) -> None:
        """Add what all processes spent on a step: they have to end at the same one."""
        for own, trained, each in gather_object([(generated, lengths, usage)]):
            self.spent += own + sum(trained)
            self.lengths += trained
            self.usage.add(each)


class StepCallback(TrainerCallback):
    """Sets the learning rate of each step, and writes a line about it.

    The rate falls linearly with what is spent, as it does with steps elsewhere; it rises first over
    `train.warmup_steps`. The file begins anew with the training.
    """

    def __init__(self, trainer: OnlineTrainer) -> None:
        self.trainer = trainer

    def on_step_begin(self, args: Any, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Set the rate of the step."""
        budget = self.trainer.recipe.train.policy_tokens
        done = self.trainer.spent / budget if budget else state.global_step / state.max_steps
        rising = min(1.0, (state.global_step + 1) / max(1, self.trainer.recipe.train.warmup_steps))
        for group in kwargs["optimizer"].param_groups:
            group["lr"] = args.learning_rate * (1 - done) * rising

    def on_step_end(self, args: Any, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Write what the step was like."""
        line = json.dumps({"step": state.global_step, **self.trainer.take_step()})
        if state.is_world_process_zero:
            path = Path(str(args.output_dir)).parent / STEPS
            with path.open("w" if state.global_step == 1 else "a", encoding="utf-8") as file:
                file.write(line + "\n")


class PrunerTrainer(QuietTrainer, GRPOTrainer):
    """O1-Pruner's loss, by a GRPOTrainer that is given responses and advantages.

    Each stored response counts with its length-harmonizing reward as the advantage, and with the
    ratio of its probability under the model to that under the base; TRL computes the clipped loss.
    Departure from the paper, whose ratio is that of whole responses: ratios are those of tokens, as
    in PPO, and the loss is the mean over the tokens of a batch (TRL's default). Both probabilities
    are of the whole distribution at `sample.temperature`: with `sample.top_p` below 1 the samples
    are from a narrower one.
    """

    def __init__(self, recipe: Recipe, *args: Any) -> None:
        super().__init__(recipe, *args, reward_funcs=_no_reward)
        self.base = copy.deepcopy(self.accelerator.unwrap_model(self.model)).eval()
        self.base.requires_grad_(False)

    @staticmethod
    def config(recipe: Recipe, directory: Path) -> GRPOConfig:
        """TRL's settings of this loss."""
        return GRPOConfig(
            **arguments(recipe, directory),
            num_generations=recipe.train.batch_size,  # TRL wants a divisor of the batch
            temperature=recipe.sample.temperature or 1.0,
            beta=0.0,
            shuffle_dataset=False,
        )

    @staticmethod
    def columns(row: Demonstration) -> dict[str, Any]:
        """Ids and advantage; TRL asks for a prompt."""
        return {
            "prompt": row.id,
            "prompt_ids": list(row.prompt_ids),
            "response_ids": list(row.response_ids),
            "weight": row.weight,
        }

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        """The rows in their order: there are no groups to repeat a prompt for."""
        rows: Any = self.train_dataset if dataset is None else dataset
        return SequentialSampler(rows)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch as TRL would have made it: padded ids, advantages, logprobs of the base."""
        device = self.accelerator.device
        tokenizer: Any = self.processing_class
        filler = int(tokenizer.pad_token_id)

        def padded(column: str, side: str) -> tuple[torch.Tensor, torch.Tensor]:
            ids = [torch.tensor(row[column]) for row in inputs]
            mask = [torch.ones_like(each) for each in ids]
            return (
                pad(ids, padding_value=filler, padding_side=side).to(device),
                pad(mask, padding_value=0, padding_side=side).to(device),
            )

        prompts, prompt_mask = padded("prompt_ids", "left")
        responses, response_mask = padded("response_ids", "right")
        with torch.no_grad():
            logprobs, _, _ = self._get_per_token_logps_and_entropies(
                self.base,
                torch.cat([prompts, responses], dim=1),
                torch.cat([prompt_mask, response_mask], dim=1),
                responses.size(1),
            )
        advantages = torch.tensor([row["weight"] for row in inputs], device=device)
        return {
            "prompt_ids": prompts,
            "prompt_mask": prompt_mask,
            "completion_ids": responses,
            "completion_mask": response_mask,
            "advantages": advantages,
            "old_per_token_logps": logprobs,
            "num_items_in_batch": self.accelerator.gather(response_mask.sum()).sum(),
        }


def _no_reward(completions: list[str], **_: Any) -> list[float | None]:
    raise NotImplementedError("stored responses carry their advantages")
