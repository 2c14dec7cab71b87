"""A recipe: every setting of a run, with its default, in one place.

Defaults are those of the papers (2505.21765, 2504.15895) and of this project's measurements. An
unknown key is an error. Settings are grouped by the stage that reads them: a stage is computed
again exactly when its own settings, or something upstream, changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dto.errors import RecipeError
from dto.records import AnswerKind

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """Frozen, and strict about keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSettings(Settings):
    """Which model, on which engine."""

    name: str = "nano"  # nano, nano-control, a Hub id or a folder
    revision: str | None = None
    engine: Literal["transformers", "vllm", "openai"] = "transformers"
    family: str = "default"  # folder of prompts/ that overrides prompts/default
    context: Count | None = None  # tokens of prompt and completion; None: the model's own limit
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "auto"
    device: str = "auto"
    slots: Count = 128  # requests that decode together (transformers engine)
    cache_bytes: Count = 256 * 2**20  # prefix cache (transformers engine)
    system: str | None = None  # system message


class ProblemSettings(Settings):
    """Where questions come from. `source`: `chains` (generated), a .jsonl/.parquet file, a Hub id.

    `test_source` names a benchmark when the test problems are not to come from `source`.
    """

    source: str = "chains"
    subset: str | None = None  # config of a Hub dataset
    revision: str | None = None
    test_source: str | None = None  # a file or a Hub id with the same fields
    task: str | None = None  # name of the task in the tables; None: that of the source
    answer_kind: AnswerKind = "math"
    question_field: str = "problem"
    answer_field: str = "answer"
    train: Annotated[int, Field(ge=0)] = 300
    dev: Annotated[int, Field(ge=0)] = 300
    test: Annotated[int, Field(ge=0)] = 400


class SampleSettings(Settings):
    """2505.21765 section 4: temperature 0.6, top-p 0.95, 4 samples of at most 8,192 tokens."""

    samples: Count = 4
    temperature: Annotated[float, Field(ge=0.0)] = 0.6
    top_p: Probability = 0.95
    max_tokens: Count = 8192


class SegmentSettings(Settings):
    """Pattern: one segment per thinking pattern. Cue: one at every cue word."""

    granularity: Literal["pattern", "cue"] = "pattern"


class EstimateSettings(Settings):
    """Monte-Carlo rollouts at the boundaries (2505.21765 section 3)."""

    method: Literal["sequential", "fixed"] = "sequential"
    threshold: Probability = 0.75  # T
    rollouts: Count = 16  # M, for `fixed`
    margin: Probability = 0.10  # half of the indifference zone, for `sequential`
    error: Probability = 0.05  # of either kind, outside the zone
    cap: Count = 32  # rollouts after which a boundary is left undecided
    max_tokens: Count = 64  # of one rollout
    first_pass_only: bool = True  # stop a trajectory at its first boundary above the threshold


class OptimizeSettings(Settings):
    """Finalize: K completions, the shortest correct one is kept."""

    finalizations: Count = 4  # K
    max_tokens: Count = 1024


class PruneSettings(Settings):
    """Judge segments; verify every prune on fresh rollouts."""

    judge: Literal["counterfactual", "none"] = "counterfactual"
    rollouts: Count = 8  # for ranking, per segment left out
    harm: float = 0.0  # a segment is a candidate when p without it ≥ p with it − harm
    max_segments: Count = 32  # trajectories with more are judged on their last ones only


class PairSettings(Settings):
    """Which pairs are built."""

    rejected: Literal["original", "longest", "longest_wrong"] = "original"
    longer_correct: bool = True  # also pairs "longer correct over shorter wrong"
    max_length: Count = 8192  # tokens of prompt and response together
    max_per_problem: Count = 4


class TrainSettings(Settings):
    """SimPO with an NLL anchor (2405.14734; anchor as in CPO 2401.08417)."""

    learning_rate: float = 1e-6
    beta: float = 2.0
    gamma: float = 1.0  # SimPO's margin
    nll: float = 1.0  # weight of the anchor; 0 is pure SimPO, which collapses easily
    epochs: float = 1.0
    batch_size: Count = 16
    gradient_accumulation: Count = 1
    warmup_steps: int = 0
    evaluations: Count = 6  # dev evaluations (and checkpoints) over the training
    dev_samples: Count = 4
    collapse_points: float = 10.0  # stop when dev accuracy falls that far below the base's
    collapse_truncated: Probability = 0.20  # or when more than this share is truncated
    bf16: bool = False
    gradient_checkpointing: bool = False


class ExitSettings(Settings):
    """One early-exit policy = monitor x inducer x confidence x threshold x minimum thinking."""

    name: str
    policy: Literal["none", "static", "budget", "deer"] = "none"
    monitor: Literal["cue", "paragraph", "entropy"] = "cue"
    inducer: Literal["inside", "closed"] = "inside"
    confidence: Literal["answer", "mean", "geometric", "min"] = "answer"
    threshold: Probability = 0.95
    entropy: float = 0.672  # nats; a step whose first token is above is a transition
    fraction: Probability = 0.5  # static: share of the model's own thinking that is kept
    budget: Count = 1024  # budget: thinking tokens
    min_thinking: Annotated[int, Field(ge=0)] = 0  # thinking tokens before the first trial
    max_trials: Count = 50
    trial_tokens: Count = 20


class EvaluateSettings(Settings):
    """Avg@n on the test problems, for each model and each exit."""

    samples: Count = 4
    temperature: Annotated[float, Field(ge=0.0)] = 0.6
    top_p: Probability = 0.95
    max_tokens: Count = 8192
    exits: tuple[ExitSettings, ...] = (ExitSettings(name="none"),)
    models: tuple[str, ...] = ("base", "trained")  # or paths of further models


class Recipe(Settings):
    """All of it, in the order of the stages that `dto run` goes through."""

    name: str
    seed: int = 0
    window: Count = 512  # rows under way at once
    model: ModelSettings = ModelSettings()
    problems: ProblemSettings = ProblemSettings()
    sample: SampleSettings = SampleSettings()
    segment: SegmentSettings = SegmentSettings()
    estimate: EstimateSettings = EstimateSettings()
    optimize: OptimizeSettings = OptimizeSettings()
    prune: PruneSettings = PruneSettings()
    pair: PairSettings = PairSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()


def load_recipe(path: Path | str, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Read a YAML recipe; `changes` are dotted keys that replace what stands there.

    Raises RecipeError, in one line, for what is missing, unknown or out of range.
    """
    path = Path(path)
    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"recipe {path} does not exist: see pipelines/ for examples") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"recipe {path} holds {type(data).__name__}, not a mapping of settings")
    data.setdefault("name", path.stem)
    for key, value in (changes or {}).items():
        *parents, last = key.split(".")
        place = data
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise RecipeError(f"recipe {path}: {key!r} cannot be set: {parent!r} is a value")
        place[last] = value
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"recipe {path}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    """The first thing that is wrong, as key, value and way out."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] != "extra_forbidden":
        return f"{key} = {first['input']!r}: {first['msg']}"
    group: Any = Recipe
    for part in first["loc"][:-1]:
        if isinstance(part, str):
            annotation = group.model_fields[part].annotation
            group = annotation if isinstance(annotation, type) else ExitSettings
    return f"unknown key {key!r}; allowed: {', '.join(group.model_fields)}"
