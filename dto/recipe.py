"""A recipe: every setting of a run, with its default, in one place.

Defaults are those of the papers (2505.21765, 2504.15895) and of this project's measurements. An
unknown key is an error. Settings are grouped by the stage that reads them: a stage is computed
again exactly when its own settings, or something upstream, changed. `dto/settings.py` has the
groups of DRQA, pairs, training, exits, evaluation, traces, calibration and comparison.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from math import ceil, log
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from dto.errors import DtoError, RecipeError
from dto.extension import NO_IMPORTS, ExtensionSettings, Settings, explain, name_of
from dto.languages import DEFAULT, Languages, load_language
from dto.prompts import RESERVED, Argument, families
from dto.records import RULES
from dto.sequential import MOST_BOUNDARIES, share, zone
from dto.settings import UNSET, Column, Count, Probability, SamplingSettings, Servers, added
from dto.settings import BatchSettings as BatchSettings
from dto.settings import CalibrateSettings as CalibrateSettings
from dto.settings import CompareSettings as CompareSettings
from dto.settings import EvaluateSettings as EvaluateSettings
from dto.settings import LabelSettings as LabelSettings
from dto.settings import PairSettings as PairSettings
from dto.settings import PilotSettings as PilotSettings
from dto.settings import TraceSettings as TraceSettings
from dto.settings import TrainSettings as TrainSettings
from dto.tags import Tag


def read_policies(data: dict[str, Any], origin: str) -> None:
    """Replace `file` keys of exits by the policy files' content, in the data of a recipe.

    Raises RecipeError, starting with `origin`, for a file that cannot be read.
    """
    evaluate = data.get("evaluate")
    exits = evaluate.get("exits") if isinstance(evaluate, dict) else None
    if not isinstance(exits, list):
        return
    for place, exit in enumerate(exits):
        if isinstance(exit, dict) and "file" in exit:
            own = {key: value for key, value in exit.items() if key != "file"}
            exits[place] = _read_yaml(Path(str(exit["file"])), f"{origin}: policy") | own


class ModelSettings(Settings):
    """The model and its engine. A key whose comment names engines is read by these only."""

    name: str = "nano"  # nano, nano-control, a Hub id or a folder
    revision: str | None = None
    engine: Annotated[str, name_of("transformers", "vllm", "openai")] = "transformers"
    engine_settings: ExtensionSettings = Field(default_factory=dict)
    family: str = ""  # folder of prompts/ that overrides prompts/default; nano has its own
    context: Count | None = None  # tokens of prompt and completion; None: the model's own limit
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "auto"
    device: str = "auto"
    system: str | None = None  # system message
    template: dict[str, Argument] = Field(default_factory=dict)  # of the chat template
    think: tuple[Tag, Tag] = ("<think>", "</think>")  # around the thinking: text, or lists of ids
    prompt: str | None = None  # file of prompts/ for the questions of all tasks
    slots: Count = 128  # transformers, vllm on a CPU: requests in a batch
    cache_bytes: Count = 256 * 2**20  # transformers, vllm on a CPU: prefix cache, all KV of vllm
    kv_bytes: Count | None = None  # transformers: batch; None: half of a GPU, or 4 GiB
    gpu_memory: Probability = 0.9  # vllm: share of the GPU's memory
    tensor_parallel: Count = 1  # vllm: GPUs for one copy of the model
    server: Servers = None  # openai: base URLs; None: OpenAI's own
    api: Literal["auto", "completions", "chat"] = "auto"  # openai
    api_key: str = "OPENAI_API_KEY"  # openai: name of an environment variable
    tokenizer: str | None = None  # openai: Hub id or folder, where `name` is neither
    concurrency: Count = 256  # openai: concurrent requests
    retries: Annotated[int, Field(ge=0)] = 5  # openai: after 429, 5xx and timeouts
    timeout: Annotated[float, Field(gt=0)] = 600.0  # openai: seconds for one request

    @field_validator("template")
    @classmethod
    def _template_is_not_ours(cls, template: dict[str, Argument]) -> dict[str, Argument]:
        if own := sorted(RESERVED & template.keys()):
            raise ValueError(f"dto sets the argument {own[0]!r} itself: drop it")
        return template

    @field_validator("think", mode="before")
    @classmethod
    def _think_is_a_pair(cls, think: Any) -> Any:
        tags = list(think) if isinstance(think, list | tuple) else []
        if len(tags) != 2 or not all(map(_is_tag, tags)) or tags[0] == tags[1]:
            raise ValueError(
                "two different tags, each a text or a list of token ids, such as "
                '["[THINK]", "[/THINK]"]'
            )
        return tags

    @field_validator("api_key")
    @classmethod
    def _key_is_a_name(cls, api_key: str) -> str:
        if not api_key.isidentifier():
            raise ValueError("it must name an environment variable, not be the key itself")
        return api_key

    @model_validator(mode="before")
    @classmethod
    def _own_family(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("family"):
            own = data.get("name", "nano") in ("nano", "nano-control")
            return {**data, "family": "nano" if own else "default"}
        return data

    @field_validator("family")
    @classmethod
    def _family_has_prompts(cls, family: str) -> str:
        if family not in (names := families()):
            raise ValueError(f"prompts/ has no folder {family!r}: use {', '.join(names)}")
        return family


def _is_tag(tag: Any) -> bool:
    if isinstance(tag, str):
        return bool(tag.strip())
    ids = list(tag) if isinstance(tag, list | tuple) else []
    return bool(ids) and all(type(token) is int for token in ids)


class JudgeSettings(ModelSettings):
    """The model of the judge, or DRQA's teacher, on its own engine. It has no `family`."""

    name: str
    prompt_price: Annotated[float, Field(ge=0)] | None = None  # per million tokens, any currency
    generated_price: Annotated[float, Field(ge=0)] | None = None


BatchSettings.model_rebuild(_types_namespace={"JudgeSettings": JudgeSettings})


class ProblemSettings(Settings):
    """Where questions come from, and how answers are compared.

    `source`: `chains` (generated), a task, a data file, a folder or a Hub id.
    `test_source` overrides it for test problems. None: the task's value, or that of the comment.
    """

    source: Annotated[str, name_of()] = "chains"
    source_settings: ExtensionSettings = Field(default_factory=dict)
    subset: str | None = None  # config of a Hub dataset
    revision: str | None = None
    test_source: Annotated[str, name_of()] | None = None
    task: str | None = None  # its name in the tables; one of dto.tasks: rows are read as its rows
    rule: Annotated[str, name_of(*RULES)] | None = None  # or math
    rule_settings: ExtensionSettings = Field(default_factory=dict)
    question_field: str | None = None  # or problem
    answer_field: str | None = None  # or answer
    prompt: str | None = None  # file of prompts/; or that of the rule
    near_duplicates: Literal["drop"] | None = None  # copies in half or more; None: warned of
    filter: Literal["numeric"] | None = UNSET  # rows of `source` whose gold answer is a number
    train: Annotated[int, Field(ge=0)] = 300
    dev: Annotated[int, Field(ge=0)] = 300
    test: Annotated[int, Field(ge=0)] = 400


class SampleSettings(SamplingSettings):
    """Sampling; defaults of 2505.21765, section 4 (temperature 0.6, top-p 0.95, 4 samples)."""

    samples: Count = 4
    max_tokens: Count = 8192
    imported: str | None = None  # a file, folder or Hub id of existing responses
    map: dict[Column, str] = added({})  # paths of columns, such as response: attempt
    batch_input: str | None = UNSET  # the requests of an OpenAI batch; `imported` is its output


class SegmentSettings(Settings):
    """`pattern`: one segment per thinking pattern. `cue`: one segment per cue word."""

    granularity: Literal["pattern", "cue"] = "pattern"


class EstimateSettings(Settings):
    """Monte-Carlo rollouts at the boundaries (2505.21765 section 3).

    `error` bounds, at one boundary, the probability that p <= threshold - margin passes and that
    p >= threshold + margin is refused. It says nothing of p in between. A trajectory has many
    boundaries: with the defaults, 24 boundaries with p = 0.65 pass somewhere with probability 0.70.
    `error_scan` bounds that for the whole trajectory. It costs 15 to 55 % more rollouts where there
    is a good exit, and fewer good exits pass within the cap unless that is raised (48, 64): see
    benchmarks/rollouts_scan.py.
    """

    method: Literal["sequential", "fixed"] = "sequential"
    threshold: Probability = 0.75  # T
    rollouts: Count = 16  # M, for `fixed`
    margin: Probability = 0.10  # half of the indifference zone, for `sequential`
    error: Probability = 0.05  # of either kind, at one boundary
    error_scan: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None  # of any wrong pass in a scan
    cap: Count = 32  # rollouts after which a boundary is left undecided
    max_tokens: Count = 64  # of one rollout
    first_pass_only: bool = True  # stop a trajectory at its first boundary above the threshold

    @model_validator(mode="after")
    def _test_exists(self) -> EstimateSettings:
        try:  # prune verifies by it, whatever the method is
            low, _ = zone(self.threshold, self.margin, self.error, self.cap)
        except DtoError as error:
            raise ValueError(str(error)) from None
        if self.error_scan is not None:
            if self.method == "fixed":
                raise ValueError("error_scan is of method sequential: a fixed number of rollouts "
                                 "states no error")  # fmt: skip
            least = ceil(log(share(self.error_scan, MOST_BOUNDARIES)) / log(low))
            if self.cap < least:
                raise ValueError(
                    f"error_scan {self.error_scan} over up to {MOST_BOUNDARIES} boundaries takes "
                    f"{least} successes in a row to show p > {low:.3f}, and cap is {self.cap}: "
                    "raise cap or error_scan"
                )
        return self


class OptimizeSettings(Settings):
    """Finalize: sample K completions after the exit, and keep the shortest correct one.

    The exit is the first boundary above the threshold of `estimate`. For the baselines of
    2412.21187, it is the end of the first or second right solution, without rollouts.
    """

    exit: Literal["estimate", "first_solution", "second_solution"] = "estimate"
    finalizations: Count = 4  # K
    max_tokens: Count = 1024


class PruneSettings(Settings):
    """Judge segments, and verify the removal of segments on new rollouts."""

    judge: Annotated[str, name_of("counterfactual", "llm", "none")] = "counterfactual"
    judge_settings: ExtensionSettings = Field(default_factory=dict)
    rollouts: Count = 8  # counterfactual: rollouts for each segment that is left out
    harm: float = 0.0  # counterfactual: propose removal when p without it ≥ p with it − harm
    max_segments: Count = 32  # counterfactual, llm: judge at most this many segments, the last ones
    max_tokens: Count = 4096  # llm: tokens of a reply, at most half of the judge's context
    temperature: Annotated[float, Field(ge=0.0)] = 0.0  # llm
    gold: bool = False  # llm: show the judge the gold answer
    confirmations: Annotated[int, Field(ge=0)] = 16  # rollouts for verified_p; 0: leave it unknown
    agreement: Probability = 0.0  # share of trajectories that the counterfactual judge judges too

    @model_validator(mode="after")
    def _two_judges_to_compare(self) -> PruneSettings:
        if self.agreement and self.judge in ("counterfactual", "none"):
            raise ValueError("agreement compares another judge with the counterfactual one: set "
                             "prune.judge to llm or your own, or prune.agreement to 0")  # fmt: skip
        return self


class Recipe(Settings):
    """All settings of a run, in the order of the stages of `dto run`."""

    name: str
    seed: int = 0
    window: Count = 512  # rows in progress at once
    languages: Annotated[Languages, Field(min_length=1)] = DEFAULT  # or paths of files
    model: ModelSettings = ModelSettings()
    judge: JudgeSettings | None = None  # of prune.judge llm or an import path; None: the policy
    problems: ProblemSettings = ProblemSettings()
    sample: SampleSettings = SampleSettings()
    batch: BatchSettings = BatchSettings()
    segment: SegmentSettings = SegmentSettings()
    estimate: EstimateSettings = EstimateSettings()
    optimize: OptimizeSettings = OptimizeSettings()
    prune: PruneSettings = PruneSettings()
    pair: PairSettings = PairSettings()
    label: LabelSettings = LabelSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    trace: TraceSettings = TraceSettings()
    calibrate: CalibrateSettings = CalibrateSettings()
    pilot: PilotSettings = PilotSettings()
    compare: CompareSettings = CompareSettings()

    @field_validator("languages")
    @classmethod
    def _languages_can_be_read(cls, languages: Languages, info: ValidationInfo) -> Languages:
        if info.context != NO_IMPORTS:
            for name in languages:
                load_language(name)
        return languages

    @property
    def language_files(self) -> tuple[str, ...]:
        """The paths among the languages."""
        return tuple(name for name in self.languages if name not in DEFAULT)

    @model_validator(mode="after")
    def _verdicts_are_written(self) -> Recipe:
        if self.train.method == "cft" and not self.label.thinking:
            raise ValueError("train.method cft imitates a verdict inside the thinking: set "
                             "label.thinking to true")  # fmt: skip
        return self


def load_recipe(path: Path | str, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Read a YAML recipe; `changes` maps dotted keys to values that replace those in the file.

    Raises RecipeError, in one line, for a missing or unknown key and a value out of range.
    """
    path = Path(path)
    return make_recipe({"name": path.stem, **_read_yaml(path)}, changes, f"recipe {path}")


def read_recipe(path: Path) -> tuple[Recipe, tuple[str, ...]]:
    """Read the recipe of a run without its unknown keys, and return those keys.

    Packages that it names are not imported. Raises RecipeError as `load_recipe` does otherwise.
    """
    return known_recipe({"name": path.stem, **_read_yaml(path)}, f"recipe {path}")


def known_recipe(data: dict[str, Any], origin: str) -> tuple[Recipe, tuple[str, ...]]:
    """Make a recipe without the unknown keys of `data`; also return these keys."""
    unknown = []
    try:
        Recipe.model_validate(data, context=NO_IMPORTS)
    except ValidationError as error:
        unknown = [row["loc"] for row in error.errors() if row["type"] == "extra_forbidden"]
    for *parents, last in unknown:
        place: Any = data
        for parent in parents:
            place = place[parent]
        del place[last]
    names = tuple(".".join(map(str, key)) for key in unknown)
    return make_recipe(data, origin=origin, imports=False), names


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Loads YAML, in C where PyYAML has it; `None` is null, and a key may not be given twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Make a mapping. Raises a YAMLError for a key that it has twice."""
        keys = [key.value for key, _ in node.value]
        if twice := [key for place, (key, _) in enumerate(node.value) if key.value in keys[:place]]:
            what = f"key {twice[0].value!r} is given twice: remove one"
            raise yaml.constructor.ConstructorError(problem=what, problem_mark=twice[0].start_mark)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("None$"), ["N"])


def _read_yaml(path: Path, what: str = "recipe") -> dict[str, Any]:
    examples = "see pipelines/ for examples" if what == "recipe" else "dto calibrate writes one"
    try:
        data: Any = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except FileNotFoundError:
        raise RecipeError(f"{what} {path} does not exist: {examples}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        raise RecipeError(f"{what} {path} cannot be read: {why}") from None
    if not isinstance(data, dict):
        holds = "is empty" if data is None else f"holds {type(data).__name__}"
        raise RecipeError(f"{what} {path} {holds}, not a mapping of settings: {examples}")
    return data


def make_recipe(
    data: dict[str, Any],
    changes: Mapping[str, Any] | None = None,
    origin: str = "recipe",
    imports: bool = True,
) -> Recipe:
    """Build a recipe from `data`, with `changes` (by dotted key) applied, as `load_recipe` does.

    With `imports=False`, packages that the recipe names are neither imported nor checked.
    """
    changes = changes or {}
    for key, value in changes.items():
        *parents, last = key.split(".")
        place: Any = data
        for parent in parents:
            if isinstance(place, dict) and place.get(parent) is None:
                place[parent] = {}
            place = place[_index(place, parent, f"{origin}: {key!r}")]
        place[_index(place, last, f"{origin}: {key!r}")] = value
    read_policies(data, origin)
    try:
        return Recipe.model_validate(data, context=None if imports else NO_IMPORTS)
    except ValidationError as error:
        where, what = explain(error, Recipe, data)
        given = any(
            f"{where}.".startswith(f"{key}.") or key.startswith(f"{where}.") for key in changes
        )
        raise RecipeError(what if given and where else f"{origin}: {what}") from None


def _index(place: Any, part: str, key: str) -> str | int:
    """The part of a key as an index of a mapping or list. Raises RecipeError, starting with it."""
    if isinstance(place, dict):
        return part
    if not isinstance(place, list):
        raise RecipeError(f"{key} cannot be set: it is inside a value, which is no group")
    if part.isdecimal() and int(part) < len(place):
        return int(part)
    what = f"{part!r} is no place in a list of {len(place)}, counted from 0"
    raise RecipeError(f"{key} cannot be set: {what}")


NAMES = ("nano", "nano-control")


def resolve(name: str) -> str:
    """The folder of an embedded model's weights; any other name comes back unchanged."""
    return str(files("dto.nano") / "weights" / name) if name in NAMES else name
