"""What all groups of settings have in common, and the groups that `dto/recipe.py` puts together.

Of DRQA, pairs, training, exits, evaluation, traces, calibration and comparison; those of problems,
sampling, segments, estimates, optimizing and pruning stand in `dto/recipe.py` itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from dto.extension import ExtensionSettings, Settings, is_import_path, name_of

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Monitor = Literal["cue", "paragraph", "entropy", "tokens"]
Inducer = Literal["inside", "closed"]
Confidence = Literal["answer", "mean", "geometric", "min"]


class SamplingSettings(Settings):
    """How tokens are drawn; `dto.protocols.Sampling` says in which order.

    Off are top_p 1, top_k 0, min_p 0 and presence_penalty 0.
    """

    temperature: Annotated[float, Field(ge=0.0)] = 0.6
    top_p: Probability = 0.95
    top_k: Annotated[int, Field(ge=0)] = 0
    min_p: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] = 0.0

    @property
    def further(self) -> str:
        """What is on beside temperature and top-p, in words to follow those; empty for nothing."""
        named = {
            "top-k": self.top_k,
            "min-p": self.min_p,
            "presence penalty": self.presence_penalty,
        }
        return "".join(f", {name} {value:g}" for name, value in named.items() if value)


class PairSettings(Settings):
    """Which pairs are built: of optimized trajectories, or of samples (`dto/stages/pair.py`).

    `imported`: those that a table of preferences says (`dto import`, `dto pull` set it).
    """

    data: Literal["optimized", "shortest", "token_budget", "imported"] = "optimized"
    margin: Annotated[float, Field(ge=0.0)] = 0.1  # token_budget: least difference of rewards
    rejected: Literal["original", "longest", "longest_wrong"] = "original"  # optimized
    longer_correct: bool = True  # optimized: also pairs "longer correct over shorter wrong"
    max_longer_correct: Count = 1  # of these a problem has at most
    max_length: Count = 8192  # tokens of prompt and response together
    max_per_problem: Count = 4  # of all others


class BatchSettings(Settings):
    """Several numbered questions in one prompt (2508.17803); sampled as `sample` says.

    No `k` is no batch prompt. The paper has 2, 3 and 5.
    """

    k: tuple[Annotated[int, Field(ge=2)], ...] = ()  # questions in a prompt, each in turn
    grouping: Literal["random", "difficulty"] = "random"  # which are asked together
    samples: Count = 1  # of each k: so often every question is asked, in other company each time
    max_tokens: Count | None = None  # for each question; None: sample.max_tokens

    @field_validator("k")
    @classmethod
    def _once(cls, k: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(k)) < len(k):
            raise ValueError("a number stands there twice")
        return k


class LabelSettings(Settings):
    """Which chains are right but could be more concise (A), right and concise (B), wrong (C).

    `source` batch: B are right chains of batch prompts, A the other right ones (2508.17803).
    shortest, a control without batch prompts: B is the shortest right chain of a problem, A the
    longer ones.
    """

    source: Literal["batch", "shortest"] = "batch"
    k: tuple[Annotated[int, Field(ge=2)], ...] = ()  # batch chains of these k alone; none: of all
    margin: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None  # least saving of B; None: any
    balanced: bool = True  # as many of each class
    per_class: Count | None = None  # at most; None: no limit
    max_tokens: Count = 8192  # of a chain
    held_out: Probability = 0.2  # share of the problems whose chains only measure judging
    thinking: bool = True  # the judge thinks first; else its thinking is closed (2504.09858)
    shuffled: bool = True  # options in an order drawn for each chain; else A, B, C as in the paper


class TrainSettings(Settings):
    """The loss and its data (`dto/training/`).

    simpo (2405.14734; anchor as in CPO, 2401.08417) and dpo (2305.18290) train on pairs, sft on
    their chosen sides, o1_pruner (2501.12570) on the samples. grpo (2402.03300) samples during the
    training. drqa (2508.17803; GRPO on judging), cft (2501.17703) and sft_batch train on labelled
    chains. none skips the training.
    """

    method: Literal[
        "simpo", "dpo", "sft", "o1_pruner", "grpo", "drqa", "cft", "sft_batch", "none"
    ] = "simpo"
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-6
    beta: float = 2.0  # simpo; dpo: 0.1 is usual
    gamma: float = 1.0  # simpo: the margin
    nll: float = 1.0  # simpo: weight of the anchor; 0 is pure SimPO, which collapses easily
    accuracy_weight: float = 2.0  # o1_pruner: lambda
    reward: Annotated[str, name_of("accuracy", "length_penalty", "shorter_better")] = (  # grpo
        "length_penalty"
    )
    reward_settings: ExtensionSettings = Field(default_factory=dict)
    penalty: Annotated[float, Field(ge=0.0)] = 0.2  # length_penalty, shorter_better: weight
    group: Annotated[int, Field(ge=2)] = 4  # grpo, drqa: responses to one problem
    kl: Annotated[float, Field(ge=0.0)] | None = None  # of the divergence; None: grpo 0, drqa 0.04
    temperature: Annotated[float, Field(gt=0.0)] | None = None  # grpo, drqa; None: sample's
    response_tokens: Count | None = None  # most tokens; None: sample.max_tokens
    no_letter: Annotated[float, Field(le=0.0)] = 0.0  # drqa: reward of a response without a letter
    judgements: Count = 1  # of each held-out chain, at each dev evaluation
    epochs: float = 1.0
    policy_tokens: Count | None = None  # budget, sampled tokens too; None: `epochs`
    batch_size: Count = 16  # pairs or responses
    gradient_accumulation: Count = 1
    warmup_steps: int = 0
    lora_rank: Annotated[int, Field(ge=0)] = 0  # needs peft; 0: train all weights
    evaluations: Count = 6  # dev evaluations (and checkpoints) over the training
    dev_samples: Count = 4
    keep: Literal["shortest", "last"] = "shortest"  # shortest: as accurate as the base and shorter
    collapse_points: float = 10.0  # stop at a dev accuracy so far below the base's
    collapse_truncated: Probability = 0.20  # or when more than this share is truncated
    bf16: bool = False
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _whole_groups(self) -> TrainSettings:
        if self.method in ("grpo", "drqa") and self.batch_size % self.group:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of group {self.group}: set "
                f"batch_size to {-(-self.batch_size // self.group) * self.group}"
            )
        return self


class ExitSettings(Settings):
    """One early-exit policy = monitor x inducer x confidence x threshold x minimum thinking.

    Each policy reads the keys that its function in `dto/exits/` or `dto/policies/` names.
    """

    name: str
    policy: Literal[
        "none",
        "static",
        "budget",
        "deer",
        "consistency",
        "entropy",
        "no_thinking",
        "nowait",
        "code",
    ] = "none"
    mode: Literal["fixed", "compat", "qwen3", "pro"] = "fixed"  # deer
    monitor: Monitor = "cue"
    every: Count = 64  # monitor tokens: thinking tokens between transitions
    entropy: float = 0.672  # monitor entropy, nats: a step whose first token is above is one
    inducer: Inducer = "inside"
    confidence: Confidence = "answer"
    threshold: Probability = 0.95
    overlap: Literal[False, True, "branches"] = False  # the main path does not wait for trials
    shadow: bool = False  # trials are made and stored, the path is never left
    min_thinking: Annotated[int, Field(ge=0)] = 0  # thinking tokens before the first trial
    cooldown: Annotated[int, Field(ge=0)] = 0  # thinking tokens between two trials
    max_trials: Count = 50
    trial_tokens: Count = 20
    trial_share: Probability = 1.0  # most trial tokens by thinking so far; 1: no limit
    think_ratio: Probability = 0.9  # deer compat, budget: share of max_tokens that may be thinking
    agree: Count = 3  # consistency: equal trial answers in a row
    smoothing: Probability = 0.2  # entropy: weight of the newest value in the moving mean
    variance: float = 1e-3  # entropy: leave when the moving variance falls below, nats squared
    fraction: Probability = 0.5  # static: share of the model's own thinking that is kept
    budget: Count = 1024  # budget: thinking tokens
    grace: Annotated[int, Field(ge=0)] = 64  # budget: further tokens to end the sentence

    def changed(self) -> dict[str, Any]:
        """What was set, as it stands in YAML."""
        return self.model_dump(mode="json", exclude_unset=True)


class EvaluateSettings(SamplingSettings):
    """Avg@n on the test problems, for each model, each exit and each task.

    `tasks` names test sets as `problems.source` does; none: the run's own test problems. In YAML an
    exit may be `{file: policy.yaml}`: what `dto calibrate` wrote, under keys of its own.
    """

    samples: Count = 4
    max_tokens: Count = 8192
    exits: tuple[ExitSettings, ...] = (ExitSettings(name="none"),)
    models: tuple[str, ...] = ("base", "trained")  # or paths of further models
    tasks: tuple[Annotated[str, name_of()], ...] = ()
    limit: Count | None = None  # problems of each of these tasks at most; None: all there are

    @model_validator(mode="after")
    def _names_are_unique(self) -> EvaluateSettings:
        named: dict[str, Sequence[str]] = {
            "exits": [row.name for row in self.exits],
            "models": self.models,
            "tasks": [task if is_import_path(task) else Path(task).stem for task in self.tasks],
        }
        for what, names in named.items():
            twice = [name for name in names if list(names).count(name) > 1]
            if twice:
                raise ValueError(f"{twice[0]!r} stands there twice in {what}: rows go by the name")
        return self


class TraceSettings(Settings):
    """What is recorded with each response; `evaluate` says how many there are and how sampled."""

    monitors: tuple[Monitor, ...] = ("cue", "paragraph")
    every: Count = 64  # monitor tokens
    entropy: float = 0.672  # monitor entropy
    inducers: tuple[Inducer, ...] = ("inside", "closed")
    trial_tokens: Count = 20
    fractions: tuple[Probability, ...] = (0.25, 0.5, 0.75)  # static


class CalibrateSettings(Settings):
    """Which exits are candidates, and what is asked of the one that is picked (2110.01052)."""

    max_loss: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.02  # of expected accuracy
    error: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1  # chance that what is certified loses more
    choose: Probability = 0.25  # share of the problems that puts the candidates in order
    certify: Probability = 0.5  # share that certifies them; the rest is held out
    policies: tuple[Literal["deer", "consistency"], ...] = ("deer", "consistency")
    confidences: tuple[Confidence, ...] = ("answer", "mean", "geometric", "min")  # deer
    thresholds: tuple[Probability, ...] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)  # deer
    agree: tuple[Count, ...] = (2, 3, 4)  # consistency
    min_thinking: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    cooldown: tuple[Annotated[int, Field(ge=0)], ...] = (0,)


class PilotSettings(Settings):
    """Where `dto pilot` cuts the thinking of sampled responses (2504.15895 section 2)."""

    fractions: tuple[Probability, ...] = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class CompareSettings(Settings):
    """Methods beside one another: what a recipe that compares names, and what a method's own says.

    A method is a recipe of `pipelines/baselines/`, or a path. Of it the comparison takes `pair`,
    `train`, `optimize`, `prune`, and its own parameter with two values.
    """

    methods: tuple[str, ...] = ()
    reference: str = "dto"  # the method that the differences are taken from
    # Empty: each method has its own alone.
    learning_rates: tuple[Annotated[float, Field(gt=0.0)], ...] = (3e-7, 1e-6, 3e-6)
    policy_tokens: Count = 240_000  # of each training, with what its data took
    processes: Count = 2  # methods at work at once
    own_values: Count | None = None  # how many values of its own parameter; None: all it names
    own: str = ""  # of a method: the key of its own parameter
    values: tuple[Any, ...] = ()  # and what is tried
