"""Groups of settings: DRQA, pairs, training, exits, evaluation, traces, calibration, comparison.

`dto/recipe.py` has the groups of the stages up to pruning, and the whole recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from dto import extension
from dto.errors import EngineError, RecipeError
from dto.extension import ExtensionSettings, Settings, is_import_path, name_of

if TYPE_CHECKING:
    from dto.context import Context
    from dto.exits.path import ExitedResponse, ResponsePath
    from dto.protocols import Engine
    from dto.recipe import JudgeSettings
    from dto.records import Problem

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]


def added(default: Any) -> Any:
    """A later field: with its default, digests and recipes are as before there was such a key."""
    return Field(default=default, exclude_if=lambda value: value == default)


UNSET = added(None)
Column = Literal["question", "response", "thinking", "answer", "correct"]
Monitor = Literal["cue", "paragraph", "entropy", "tokens"]
Inducer = Literal["inside", "closed"]
Confidence = Literal["answer", "mean", "geometric", "min"]


def _server(server: Any) -> str:
    parts = urlsplit(str(server))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not an http:// or https:// URL, such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query:
        raise ValueError("the URL holds a user or key: put that into the variable of model.api_key")
    return str(server)


def _servers(given: Any) -> Any:
    several = isinstance(given, list | tuple) and given
    return tuple(map(_server, given)) if several else None if given is None else _server(given)


Server = Annotated[str, BeforeValidator(_server)]
Servers = Annotated[str | tuple[str, ...] | None, BeforeValidator(_servers)]


class SamplingSettings(Settings):
    """Sampling options, applied in the order of `dto.protocols.Sampling`.

    top_p 1, top_k 0, min_p 0 and presence_penalty 0 switch the options off.
    """

    temperature: Annotated[float, Field(ge=0.0)] = 0.6
    top_p: Probability = 0.95
    top_k: Annotated[int, Field(ge=0)] = 0
    min_p: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] = 0.0


class PairSettings(Settings):
    """Pairs of optimized trajectories (`dto/stages/pair.py`) or of samples (`dto/baselines.py`).

    `imported`: the pairs of an imported table; `dto import` and `dto pull` set this.
    """

    data: Literal["optimized", "shortest", "token_budget", "imported"] = "optimized"
    margin: Annotated[float, Field(ge=0.0)] = 0.1  # token_budget: smallest difference of rewards
    rejected: Literal["original", "longest", "longest_wrong"] = "original"  # optimized
    longer_correct: bool = True  # optimized: add pairs "longer correct over shorter wrong"
    max_longer_correct: Count = 1  # of these pairs, per problem
    max_length: Count = 8192  # tokens of prompt and response together
    max_per_problem: Count = 4  # of all other pairs


class BatchSettings(Settings):
    """Batch prompts: several numbered questions in one prompt, with the options of `sample`.

    Without `k` there are none. The paper (2508.17803) uses 2, 3 and 5.
    """

    k: tuple[Annotated[int, Field(ge=2)], ...] = ()  # numbers of questions in a prompt
    grouping: Literal["random", "difficulty"] = "random"  # how questions are grouped
    samples: Count = 1  # for each k, how often a question is asked, each time in another group
    max_tokens: Count | None = None  # per question; None: sample.max_tokens
    teacher: JudgeSettings | None = UNSET  # writes all chains; None: the model to be trained

    @field_validator("k")
    @classmethod
    def _once(cls, k: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(k)) < len(k):
            raise ValueError("a number is given twice: remove one")
        return k


class LabelSettings(Settings):
    """Label chains as right but verbose (A), right and concise (B), or wrong (C).

    `source: batch`: B are right chains of batch prompts, A other right chains (2508.17803).
    `shortest`, a control: B is the shortest right chain of a problem, A the longer right ones.
    """

    source: Literal["batch", "shortest"] = "batch"
    k: tuple[Annotated[int, Field(ge=2)], ...] = ()  # batch chains of these k only; empty: all
    margin: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None  # smallest saving of B; None: any
    balanced: bool = True  # equally many of each class
    per_class: Count | None = None  # maximum; None: no limit
    max_tokens: Count = 8192  # of a chain
    held_out: Probability = 0.2  # share of problems whose chains only measure judging
    thinking: bool = True  # the judge thinks first; false: its thinking is closed (2504.09858)
    shuffled: bool = True  # random order of options per chain; false: A, B, C as in the paper


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
    engine: Literal["transformers", "vllm"] = added("transformers")  # of dev and sampled responses
    engine_gpus: tuple[int, ...] = added(())  # numbers of GPUs for vllm alone; empty: it shares one
    keep: Literal["shortest", "last"] = "shortest"  # shortest: as accurate as the base and shorter
    collapse_points: float = 10.0  # stop at a dev accuracy so far below the base's
    collapse_truncated: Probability = 0.20  # or when more than this share is truncated
    bf16: bool = False
    gradient_checkpointing: bool = False
    processes: Count | None = UNSET  # of accelerate, a GPU each; they share a step
    accelerate: str | None = UNSET  # fsdp, deepspeed, a file; None: whole copies
    # adamw_8bit needs bitsandbytes; no GPU has tried it or deepspeed
    optimizer: Literal["adamw", "adamw_8bit"] = added("adamw")
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = added(())  # of each step

    @model_validator(mode="after")
    def _whole_steps(self) -> TrainSettings:
        count = self.processes or 1
        if self.accelerate and count == 1:
            raise ValueError("accelerate splits a model over processes: set processes to 2 or more")
        if self.gradient_accumulation % count:
            raise ValueError(
                f"gradient_accumulation {self.gradient_accumulation} cannot be split over "
                f"{count} processes: set it to {count}, and batch_size to "
                f"{-(-self.batch_size * self.gradient_accumulation // count)}"
            )
        return self

    @model_validator(mode="after")
    def _whole_groups(self) -> TrainSettings:
        if self.method in ("grpo", "drqa") and self.batch_size % self.group:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of group {self.group}: set "
                f"batch_size to {-(-self.batch_size // self.group) * self.group}"
            )
        return self


class MonitorSettings(Settings):
    """Where the thinking has transitions (`dto/exits/monitor.py`)."""

    monitor: Monitor = "cue"
    every: Count = 64  # monitor tokens: tokens between transitions
    entropy: float = 0.672  # monitor entropy, nats: lower limit at a step's first token


class ExitPolicy(Settings):
    """Decide when a response leaves its thinking; this class, policy `none`, never leaves.

    A policy is a subclass whose fields are its settings. `evaluate.exits` names a built-in policy
    by its short name and any other as `my_package.module:Class`.
    """

    name: str  # of its rows in the tables
    policy: str = ""  # short name or import path of the class

    @model_validator(mode="before")
    @classmethod
    def _add_policy(cls, data: Any) -> Any:
        path = f"{cls.__module__}:{cls.__qualname__}"
        names = {path: name for name, path in POLICIES.items()}
        return {"policy": names.get(path, path), **data} if isinstance(data, dict) else data

    @classmethod
    def class_of(cls, data: Mapping[str, Any]) -> type[ExitPolicy]:
        """Import the class that an exit of a recipe names. Raises ValueError if there is none."""
        name = str(data.get("policy", "none"))
        path = POLICIES.get(f"{name} {data.get('mode')}", POLICIES.get(name, name))
        if not extension.is_import_path(path):
            names = [key for key in POLICIES if " " not in key]
            raise ValueError(f"policy {name!r} is {extension.unknown_name(name, names)}")
        try:
            policy = extension.imported(path)
        except ValueError as error:
            raise ValueError(f"policy {name!r}: {error}") from error
        if not (isinstance(policy, type) and issubclass(policy, ExitPolicy)):
            raise ValueError(f"policy {name!r} is not a subclass of dto.ExitPolicy: derive it from "
                             "that")  # fmt: skip
        return policy

    async def leave(self, path: ResponsePath, problem: Problem, ctx: Context) -> ExitedResponse:
        """Continue a response whose thinking is open, leave the thinking or not, and finish it.

        The problem is only for grading trial answers: no decision may depend on the gold answer.
        """
        return await path.finished()

    def check(self, engine: Engine) -> None:
        """Raise EngineError, before any work, if a serving engine lacks a needed feature."""
        if self.policy != "none":
            need = f"policy {self.policy} continues the model's tokens and needs token prompts"
            self.require(need, engine.capabilities.token_prompts, engine)

    def require(self, need: str, met: bool, engine: Engine) -> None:
        """Raise EngineError with the way out, unless the engine meets the need."""
        if not met:
            raise EngineError(
                f"exit {self.name!r}: {need}, which the engine of {engine.model!r} lacks: use "
                "transformers, vllm, or openai with a server that has it"
            )

    def changed(self) -> dict[str, Any]:
        """The settings that were given, as in YAML."""
        return self.model_dump(mode="json", exclude_unset=True)


class OpaquePolicy(ExitPolicy, extra="allow"):
    """A policy whose package is not imported: its settings can be read, but it cannot be run."""

    async def leave(self, path: ResponsePath, problem: Problem, ctx: Context) -> ExitedResponse:
        """Raises RecipeError."""
        raise RecipeError(f"exit {self.name!r}: policy {self.policy} was not imported: load the "
                          "recipe with dto.load_recipe to run it")  # fmt: skip


POLICIES = {
    "none": "dto.settings:ExitPolicy",
    "static": "dto.policies.without_trials:Static",
    "budget": "dto.policies.without_trials:Budget",
    "deer": "dto.exits.deer:Deer",
    "deer compat": "dto.policies.compat:Compat",
    "deer qwen3": "dto.policies.variants:Qwen3",
    "deer pro": "dto.policies.variants:Pro",
    "consistency": "dto.policies.settling:Consistency",
    "entropy": "dto.policies.settling:Entropy",
    "no_thinking": "dto.policies.without_trials:NoThinking",
    "nowait": "dto.policies.without_trials:NoWait",
    "code": "dto.policies.code:Code",
}
"""Import paths of the built-in policies by `policy`, or `policy mode`."""


def open_policy(exit: Any, context: Mapping[str, Any] | None = None) -> ExitPolicy:
    """The policy of an exit in a recipe, with its settings; a policy is returned as it is.

    Raises ValueError for a policy that cannot be imported, and for settings that its class does not
    allow. Under `NO_IMPORTS` as context, a policy named by import path is opaque.
    """
    if isinstance(exit, ExitPolicy):
        return exit
    if not isinstance(exit, dict):
        raise ValueError("an exit is a mapping, such as {name: early, policy: deer}")
    path = extension.is_import_path(str(exit.get("policy")))
    opaque = path and context == extension.NO_IMPORTS
    policy = OpaquePolicy if opaque else ExitPolicy.class_of(exit)
    return policy.model_validate(exit, context=context)


Exit = Annotated[
    SerializeAsAny[ExitPolicy], BeforeValidator(lambda exit, info: open_policy(exit, info.context))
]


class EvaluateSettings(SamplingSettings):
    """Avg@n on the test problems, for each model, each exit and each task.

    `tasks` names test sets like `problems.source`; empty: the run's own test problems. In YAML an
    exit can be `{file: policy.yaml}`, a file of `dto calibrate`, with keys that override it.
    """

    samples: Count = 4
    max_tokens: Count = 8192
    exits: tuple[Exit, ...] = (ExitPolicy(name="none"),)
    models: tuple[str, ...] = ("base", "trained")  # or names of other models
    tasks: tuple[Annotated[str, name_of()], ...] = ()
    limit: Count | None = None  # maximum problems per task; None: all
    engine: Literal["transformers", "vllm"] | None = UNSET  # of all models; None: model.engine
    server: Server | None = UNSET  # of the trained model, if model.engine is openai
    keep_answers: bool = added(True)  # keep ids and texts of responses and trials in the table

    @model_validator(mode="after")
    def _names_are_unique(self) -> EvaluateSettings:
        named: dict[str, Sequence[str]] = {
            "exits": [row.name for row in self.exits],
            "models": self.models,
            "tasks": [task if is_import_path(task) else Path(task).stem for task in self.tasks],
        }
        for key, names in named.items():
            twice = [name for name in names if list(names).count(name) > 1]
            if twice:
                raise ValueError(f"{key} has {twice[0]!r} twice: give each its own name")
        return self


class TraceSettings(Settings):
    """What to record with each response; `evaluate` sets their number and sampling."""

    monitors: tuple[Monitor, ...] = ("cue", "paragraph")
    every: Count = 64  # monitor tokens
    entropy: float = 0.672  # monitor entropy
    inducers: tuple[Inducer, ...] = ("inside", "closed")
    trial_tokens: Count = 20
    fractions: tuple[Probability, ...] = (0.25, 0.5, 0.75)  # static


class CalibrateSettings(Settings):
    """The candidate exits, and the guarantee for the chosen one (2110.01052)."""

    max_loss: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.02  # of expected accuracy
    error: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1  # probability of a larger loss
    choose: Probability = 0.25  # share of the problems that ranks the candidates
    certify: Probability = 0.5  # share that certifies them; the rest is held out
    policies: tuple[Literal["deer", "consistency"], ...] = ("deer", "consistency")
    confidences: tuple[Confidence, ...] = ("answer", "mean", "geometric", "min")  # deer
    thresholds: tuple[Probability, ...] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)  # deer
    agree: tuple[Count, ...] = (2, 3, 4)  # consistency
    min_thinking: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    cooldown: tuple[Annotated[int, Field(ge=0)], ...] = (0,)


class PilotSettings(Settings):
    """The shares of thinking at which `dto pilot` cuts responses (2504.15895 section 2)."""

    fractions: tuple[Probability, ...] = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class CompareSettings(Settings):
    """A comparison of methods; `own` and `values` are set in the recipe of a method.

    A method is a recipe of `pipelines/baselines/` or a path. The comparison uses its `pair`,
    `train`, `optimize` and `prune` groups, and its own parameter with the values to try.
    """

    methods: tuple[str, ...] = ()
    reference: str = "dto"  # differences are taken from this method
    learning_rates: tuple[Annotated[float, Field(gt=0.0)], ...] = (3e-7, 1e-6, 3e-6)  # or empty
    policy_tokens: Count = 240_000  # budget of each training, including its data
    processes: Count = 2  # methods running at once
    own_values: Count | None = None  # how many values of `own` to try; None: all
    own: str = ""  # in a method's recipe: the key of its own parameter
    values: tuple[Any, ...] = ()  # in a method's recipe: the values to try
