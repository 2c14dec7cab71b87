"""GRPO (2402.03300) by TRL's GRPOTrainer with our own engine for the responses.

`train.method: grpo` asks problems as the sample stage does, and `train.reward` rewards the
responses (`dto/training/rewards.py`). `drqa` (2508.17803) asks about labelled chains and rewards
the right letter. The model that is being trained responds, in exact ids, and from its whole
distribution at the temperature, without top-p and the like: the loss is on the logprobs of that
distribution. `kl` weighs the divergence from the base (a second model; under LoRA the base without
its adapters). A group with equal rewards teaches nothing; the result counts these groups. As by
default in TRL, the loss is the mean over all tokens of a step (dapo), and the ratio of the
probabilities weighs the divergence (2512.02556).

vLLM's probabilities differ from the trainer's, by its kernels and its precision. With
`train.engine: vllm` the loss of a response is therefore weighed by the ratio of the two, as by
default in TRL 1.16: the product over its tokens of trainer over engine, without gradient, and 0
where that is above 3 (`vllm_importance_sampling_mode: sequence_mask`, clip_max 3.0 in
`trl/trainer/grpo_config.py`). The mean ratio of a step is in `steps.jsonl`. With `transformers`
there are no weights: the model itself responds.

The tokens of a step are known only after it. The training therefore ends when the next step might
exceed the budget, and the learning rate falls linearly with the share of the budget that is spent.

O1-Pruner (2501.12570) is here too: it is the clipped objective of PPO on samples of the base model,
which TRL's GRPOTrainer also computes (:class:`PrunerTrainer`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import nan
from pathlib import Path
from types import SimpleNamespace
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
from trl.models.utils import prepare_fsdp
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import pad

from dto.context import Context
from dto.drqa.records import LabelledChain
from dto.recipe import Recipe
from dto.records import Dropped, Problem, Trajectory, derive
from dto.stages.sample import sample
from dto.training.beside import Beside, Recorded
from dto.training.dev import Judgement, judge, respond, sampled
from dto.training.pairs import Demonstration, Ids, row_prompt
from dto.training.rewards import Rewarded, reward_of
from dto.training.train import divergence
from dto.training.trainers import QuietTrainer, arguments
from dto.usage import Usage


def judging(picks: Sequence[str], no_letter: float) -> list[float]:
    """Reward the letter of the label with 1, another letter with 0, none with `no_letter`.

    Departure from 2508.17803, which has only 1 and 0.
    """
    worth = {"correct": 1.0, "wrong": 0.0, "unreadable": no_letter}
    return [worth[pick] for pick in picks]


class Answer(NamedTuple):
    """One response to a row. `grade` is the pick where the row is a labelled chain.

    `logprobs` are those of the engine beside the training, at the temperature; else empty.
    """

    ids: Ids
    grade: str
    text: str = ""
    logprobs: tuple[float, ...] = ()


class Groups(NamedTuple):
    """Sums over the groups of some responses; `flat` groups had no advantage."""

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
    engine, `groups` sums up the rewards. The lines of `steps.jsonl` have, besides the figures of
    all methods: mean reward, groups, those without advantage, responses without a letter, mean
    length, divergence from the base.
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
        self.reward = reward_of(recipe.train)
        self.words = tokenizer
        self.usage = Usage()
        self.spent = 0
        self.lengths: list[int] = []
        self.groups = self._rewarded = Groups()
        self.allow_code_execution = False
        self._largest_step = 0
        self._spent_before = 0
        self.trained_before = 0  # sequences before this step
        self.rate = 0.0  # the learning rate of this step
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
        self.beside = None

    @property
    def beside(self) -> Beside | None:
        """The engine beside the training, which `fit` sets; None: the model itself responds."""
        return self._beside

    @beside.setter
    def beside(self, engine: Beside | None) -> None:
        self._beside = engine
        # Switches TRL's importance weights on. Its hand-over does nothing: ours is in `respond`.
        self.use_vllm = engine is not None
        self.vllm_generation: Any = SimpleNamespace(sync_weights=lambda: None)
        self._last_loaded_step = -1

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
            beta=divergence(settings),
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

    def progress(self) -> dict[str, Any]:
        """What was spent and counted so far; responses are seeded by step and row, not by state."""
        return {
            "spent": self.spent,
            "largest_step": self._largest_step,
            "lengths": self.lengths,
            "usage": self.usage.as_json(),
            "groups": self.groups._asdict(),
            "ended": self.share(self.state) >= 1.0,
        }

    def restore(self, progress: dict[str, Any]) -> bool:
        """Continue from the progress of a checkpoint; return whether the training had ended."""
        self.spent = self._spent_before = progress["spent"]
        self._largest_step = progress["largest_step"]
        self.lengths = progress["lengths"]
        self.usage = Usage.read(progress["usage"])
        self.groups = Groups(**progress["groups"])
        self.trained_before = len(self.lengths)
        return bool(progress["ended"])

    def tokens_of_step(self) -> int:
        """The tokens of the step that has ended, over all processes."""
        return sum(self.lengths[self.trained_before :])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a step with the learning rate that StepCallback has set."""
        if "learning_rate" in logs:
            logs["learning_rate"] = self.rate
        super().log(logs, start_time)

    def take_step(self) -> dict[str, Any]:
        """What the step that has ended was like."""
        step, self._rewarded = self._rewarded, Groups()
        self.groups = self.groups.plus(step)
        responses = step.groups * self.recipe.train.group
        return {
            "reward": round(step.reward / step.rewarded, 6) if step.rewarded else None,
            "groups": step.groups,
            "without_advantage": step.flat,
            "unreadable": step.unreadable,
            "tokens_mean": round(step.tokens / responses, 2) if responses else None,
            "kl": None,  # logged by TRL where it has a weight
        }

    def _responses(self, names: list[str], trainer: Any) -> dict[str, list[Any]]:
        """The responses to what is given by id, each as often as it is to be asked."""
        group = self.recipe.train.group
        firsts = names[::group]
        seed = derive(self.recipe.seed, "grpo", "step", self.state.global_step)
        recipe = sampled(self.recipe.model_copy(update={"seed": seed}), group, untruncated=True)
        unique = list(dict.fromkeys(firsts))  # an epoch may end with what the next begins with
        groups, usage = self._sampled([self.rows[name] for name in unique], recipe)
        group_of = dict(zip(unique, groups, strict=True))
        end = int(self.words.eos_token_id)
        prompts, completions, grades, texts = [], [], [], []
        logprobs = []
        for prompt, answers in (group_of[name] for name in firsts):
            for answer in answers:
                prompts.append(list(prompt))
                completions.append(list(answer.ids))
                grades.append(answer.grade)
                texts.append(answer.text)
                logprobs.append(list(answer.logprobs) or [nan])  # TRL: nan has weight 1
        generated = sum(map(len, completions))
        completions = [ids or [end] for ids in completions]
        lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
        self._count(generated, lengths, usage)
        return {
            "prompt_ids": prompts,
            "completion_ids": completions,
            "logprobs": logprobs if self.beside else None,  # type: ignore[dict-item]
            "grade": grades,
            "text": texts,
        }

    def _sampled(
        self, rows: Sequence[Any], recipe: Recipe
    ) -> tuple[list[tuple[Ids, list[Answer]]], Usage]:
        """Sample `group` answers to each row: the ids of its prompt, with the answers.

        An answer that was dropped (no room, or in another model's tags) is empty and `failed`.
        """
        model = self.accelerator.unwrap_model(self.model)
        work: Any = judge if self.recipe.train.method == "drqa" else sample
        records = self.beside is not None

        async def ask(row: Any, ctx: Context) -> list[Answer]:
            engine: Any = Recorded(ctx.engine)
            results = await work(row, replace(ctx, engine=engine) if records else ctx)
            kept = [result for result in results if not isinstance(result, Dropped)]
            return [_answer(result, engine.logprobs if records else None) for result in kept]

        responses, usage = respond(
            model,
            self.words,
            rows,
            recipe,
            work=ask,
            allow_code_execution=self.allow_code_execution,
            beside=self.beside,
        )
        groups = []
        for row, answers in zip(rows, responses, strict=True):
            answers += [Answer((), "failed")] * (self.recipe.train.group - len(answers))
            groups.append((row_prompt(row, self.words, recipe.model), answers))
        return groups, usage

    def _rewards(
        self,
        prompts: list[str],
        completion_ids: list[list[int]],
        grade: list[str],
        text: list[str],
        **_: Any,
    ) -> list[float | None]:
        """TRL's reward function: the rewards of consecutive groups; `prompts` are ids of rows."""
        settings = self.recipe.train
        rewards: list[float | None] = []
        counted = Groups()
        for start in range(0, len(grade), settings.group):
            places = range(start, start + settings.group)
            # A response that failed has no reward, and no part in those of the others.
            graded = [place for place in places if grade[place] != "failed"]
            if settings.method == "drqa":
                values = judging([grade[place] for place in graded], settings.no_letter)
            else:
                row: Any = self.rows[prompts[start]]
                values = self.reward(
                    [
                        Rewarded(text[at], len(completion_ids[at]), grade[at] == "correct", row)
                        for at in graded
                    ]
                )
            counted = counted.plus(
                Groups(
                    1, len(set(values)) < 2, len(values), sum(values),
                    sum(grade[place] == "unreadable" for place in places),
                    sum(len(completion_ids[place]) for place in places),
                )
            )  # fmt: skip
            reward = dict(zip(graded, values, strict=True))
            rewards += [reward.get(place) for place in places]
        for each in gather_object([tuple(counted)]):
            self._rewarded = self._rewarded.plus(Groups(*each))
        return rewards

    def _count(self, generated: int, lengths: list[int], usage: Usage) -> None:
        """Add what all processes spent on a step: they have to end at the same one."""
        for own, trained, each in gather_object([(generated, lengths, usage)]):
            self.spent += own + sum(trained)
            self.lengths += trained
            self.usage.add(each)


def _answer(record: Trajectory | Judgement, logprobs: Mapping[Ids, Any] | None) -> Answer:
    ids = record.token_ids
    own = logprobs[ids] if logprobs is not None and ids else ()
    if isinstance(record, Judgement):
        return Answer(ids, record.pick, logprobs=own)
    return Answer(ids, record.grade, record.text, own)


class StepCallback(TrainerCallback):
    """Sets the learning rate of each step, and marks where its sequences begin.

    The rate falls linearly with what is spent, as it does with steps elsewhere; it rises first over
    `train.warmup_steps`.
    """

    def __init__(self, trainer: OnlineTrainer) -> None:
        self.trainer = trainer

    def on_step_begin(self, args: Any, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Set the rate of the step."""
        budget = self.trainer.recipe.train.policy_tokens
        done = self.trainer.spent / budget if budget else state.global_step / state.max_steps
        rising = min(1.0, (state.global_step + 1) / max(1, self.trainer.recipe.train.warmup_steps))
        self.trainer.trained_before = len(self.trainer.lengths)
        self.trainer.rate = args.learning_rate * (1 - done) * rising
        for group in kwargs["optimizer"].param_groups:
            group["lr"] = self.trainer.rate


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
        base = copy.deepcopy(self.accelerator.unwrap_model(self.model)).requires_grad_(False)
        self.base = prepare_fsdp(base, self.accelerator) if self.is_fsdp_enabled else base.eval()

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
