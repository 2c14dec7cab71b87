"""Train in a process of its own (2505.21765 section 3, last step; or a baseline's loss)."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import yaml

from dto.errors import DtoError
from dto.processes import run_child
from dto.prompts import resource
from dto.recipe import Recipe, TrainSettings, load_recipe
from dto.runs.reader import RunReader
from dto.runs.stage import SAMPLING, Stage, always
from dto.training.devices import check_devices

logger = logging.getLogger("dto.train")

ERROR, LOST = "error: ", "lost: "
"""Beginnings of what a training process says before it ends: its error, or that others ended."""


def train(
    run_directory: Path | str, recipe: Recipe, allow_code_execution: bool = False
) -> dict[str, Any]:
    """Train on a run's tables and return the results. This process does not import torch.

    The method decides which tables are read: problems, sample, prune, pair or labelled chains.
    `recipe` must be the run's own. The sampling engine must be closed, since training needs its
    memory. :mod:`dto.training.process` does the work, in `train.processes` processes; killed at any
    time and called again, it resumes from its last complete checkpoint. It writes to `RUN/train`:
    `model/` (weights, tokenizer, chat template), `history.jsonl` (deterministic), `steps.jsonl` (a
    line for each step; deterministic except `tokens_per_second`), `effort.jsonl` (not
    deterministic), `dropped.jsonl` and `result.json`; training on labelled chains also
    `judging.jsonl`. `allow_code_execution`: run programs that answer dev problems
    (`dto.grading.sandbox`).

    Returns:
        rows (counts: pairs, responses or problems, dropped, dev_problems), usage (of dev responses
        and of responses sampled for training, as in `dto.usage.Usage`), kept_step (0: the base
        model), reason (for keeping it), steps, collapsed, tokens_trained, attention_flops_trained
        and model_flops_trained (forward and backward passes), policy_tokens (including responses
        sampled for training), epochs (passes), groups (GRPO: groups, groups without advantage,
        responses without a letter; else None), judging (of held-out chains: before, after, of the
        kept model; None without any), train_seconds, dev_seconds, seconds (both, including work
        before a kill), peak_memory (bytes).

    Raises:
        DtoError: the first error of the training processes, in one line.
    """
    run = Path(run_directory)
    command = [sys.executable, "-m", "dto.training.process", str(run), "--parent", str(os.getpid())]
    command += launching(recipe)
    own = run / "recipe.yaml"
    if load_recipe(own) != recipe:
        raise DtoError(f"train: the recipe differs from {own}, which the training process reads")
    if allow_code_execution:
        command.append("--allow-code-execution")
    environment = os.environ | {"TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONUTF8": "1"}
    said: dict[str, str] = {}  # first lines: of several processes, the others fail because of one

    def log(line: str) -> None:
        kind = next((kind for kind in (ERROR, LOST) if line.startswith(kind)), "")
        if kind:
            said.setdefault(kind, line.strip().removeprefix(kind))
        else:
            logger.info("%s", line.rstrip())

    code = run_child(command, log, environment)
    if code == 130 or code == -signal.SIGINT:
        raise KeyboardInterrupt
    if code < 0:
        name = signal.Signals(-code).name
        raise DtoError(
            f"train: the training process was killed ({name}): run the same command to resume"
        )
    if code:
        if reason := said.get(ERROR) or said.get(LOST):
            raise DtoError(reason)
        raise DtoError(
            f"train: the training process ended with exit code {code}; its traceback is above"
        )
    result: dict[str, Any] = json.loads((run / "train" / "result.json").read_text(encoding="utf-8"))
    return result


_KL = {"grpo": 0.0, "drqa": 0.04}
"""The weight of the divergence where the recipe has none; TRL's default, and GRPO's own."""


def divergence(settings: TrainSettings) -> float:
    """The weight of the divergence from the base; 0 for methods without one."""
    return _KL.get(settings.method, 0.0) if settings.kl is None else settings.kl


def has_reference(settings: TrainSettings) -> bool:
    """Whether each step computes the logprobs of the base, too."""
    online = settings.method in _KL and divergence(settings) != 0.0
    return online or settings.method in ("dpo", "o1_pruner")


DISTRIBUTED = ("MULTI_GPU", "FSDP", "DEEPSPEED")
"""The values of `distributed_type` in a file for accelerate that a training can use."""


class AccelerateFile(NamedTuple):
    """A file for accelerate, and its `distributed_type`."""

    path: Path
    kind: str


def launching(recipe: Recipe) -> list[str]:
    """The options for :mod:`dto.training.process` to start several processes; empty for one.

    Raises DtoError for a file for accelerate that does not exist or that a training cannot use.
    """
    settings = recipe.train
    if (settings.processes or 1) == 1 or settings.method == "none":
        return []
    options = ["--processes", str(settings.processes)]
    if settings.accelerate:
        options += ["--accelerate", str(accelerate_file(settings.accelerate).path)]
    return options


def accelerate_file(name: str) -> AccelerateFile:
    """The file for accelerate of `train.accelerate`: a packaged one, or the user's own."""
    where = f"train.accelerate = {name!r}"
    packaged = Path(str(resource("pipelines") / "accelerate" / f"{name}.yaml"))
    path = packaged if packaged.is_file() else Path(name)
    if not path.is_file():
        raise DtoError(
            f"{where}: there is no such file: use fsdp, deepspeed, or a file that `accelerate "
            "config --config_file FILE` has written"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DtoError(f"{where} cannot be read: {' '.join(str(error).split())}") from None
    kind = content.get("distributed_type") if isinstance(content, dict) else None
    if kind not in DISTRIBUTED:
        raise DtoError(
            f"{where}: its distributed_type is {kind}: set it to {', '.join(DISTRIBUTED)}"
        )
    own = content.get("fsdp_config") or {}
    if own.get("fsdp_cpu_ram_efficient_loading"):  # the others would answer with weights of zero
        raise DtoError(
            f"{where}: set its fsdp_config.fsdp_cpu_ram_efficient_loading to false: the base is "
            "measured in all processes before its weights are shared"
        )
    version = own.get("fsdp_version", 1)
    if kind == "FSDP" and int(version) != 2:
        raise DtoError(f"{where}: its fsdp_config.fsdp_version is {version}: set it to 2")
    return AccelerateFile(path.resolve(), kind)


def splits(accelerate: str | None) -> bool:
    """Whether `train.accelerate` splits the model over processes: all but a file for copies."""
    return accelerate is not None and _kind(accelerate) != "MULTI_GPU"


def _kind(accelerate: str | None) -> str:
    """The `distributed_type` of `train.accelerate`; empty without a file that can be used."""
    try:
        return accelerate_file(accelerate).kind if accelerate else ""
    except DtoError:  # a run refuses it
        return ""


def missing_packages(recipe: Recipe) -> Iterator[str]:
    """What the training needs beside dto's own packages and is not installed: a line for each.

    It names the setting that asks for the package, and the ways out.
    """
    train = recipe.train
    if train.method == "none":
        return
    if train.lora_rank and not find_spec("peft"):
        yield (
            f"train.lora_rank = {train.lora_rank} needs peft: pip install 'dto[peft]', or set it "
            "to 0"
        )
    if train.optimizer == "adamw_8bit" and not find_spec("bitsandbytes"):
        yield (
            "train.optimizer = 'adamw_8bit' needs bitsandbytes and a GPU: pip install "
            "bitsandbytes, or set it to adamw"
        )
    zero = (train.processes or 1) > 1 and _kind(train.accelerate) == "DEEPSPEED"
    if zero and not find_spec("deepspeed"):
        yield (
            f"train.accelerate = {train.accelerate!r} needs deepspeed: pip install deepspeed, or "
            "set it to fsdp"
        )
    for name in train.report_to:
        packages = ("tensorboard", "tensorboardX") if name == "tensorboard" else (name,)
        if not any(map(find_spec, packages)):
            yield (
                f"train.report_to: {name} is not installed: pip install {name}, or take it out of "
                "the list"
            )


def check_packages(recipe: Recipe) -> None:
    """Raise DtoError for the first package that the training needs and is not installed."""
    for line in missing_packages(recipe):
        raise DtoError(line)


def check_training(recipe: Recipe) -> None:
    """Raise DtoError, before anything is sampled, for a training that cannot start on this machine.

    A package, a GPU that the recipe names, or its file for accelerate may be missing.
    """
    train = recipe.train
    launching(recipe)
    check_packages(recipe)
    apart = train.engine == "vllm" and train.engine_gpus
    if train.method != "none" and (apart or (train.processes or 1) > 1):
        check_devices(recipe, train.processes or 1)


def trained_model(run: RunReader) -> Path:
    """The folder of the trained model: weights, tokenizer and chat template.

    Raises DtoError if it is missing.
    """
    folder = run / "train" / "model"
    if folder.is_dir():
        return folder
    place = quote(str(run.path))
    if run.manifest("train") is None:
        raise DtoError(f"{run.path} has no trained model yet: train it with `dto train {place}`")
    raise DtoError(
        f"{run.path} has no trained model: download it with `dto pull USER/NAME --out {place} "
        f"--weights`, or train it with `dto train {place} --recompute`"
    )


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Read the objects of a small JSON Lines file; an empty list if the file is missing.

    Only a line feed ends a line, since text may contain U+2028. An incomplete last line is skipped.
    """
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


_OF_CHAINS = {
    "drqa": ("label",), "cft": ("label",), "sft_batch": ("batch", "chain", "label"),
}  # fmt: skip


def _reads(recipe: Recipe) -> tuple[str, ...]:
    method = recipe.train.method
    if method in ("grpo", "none"):
        return ("problems",)
    if method == "o1_pruner":
        return ("problems", "sample")
    return ("problems", *_OF_CHAINS.get(method, ("pair",)))


def _asks_model(recipe: Recipe) -> bool:
    """Whether no stage that it reads depends on the model, so that its own digest must."""
    method = recipe.train.method
    if method in ("grpo", "none"):
        return True
    if method in _OF_CHAINS and recipe.batch.k and recipe.batch.teacher is None:
        return False
    paired = method not in ("o1_pruner", *_OF_CHAINS)
    if paired and recipe.pair.data == "optimized":
        return False
    return recipe.sample.imported is not None


def _amount(recipe: Recipe) -> str:
    settings = recipe.train
    if settings.method == "none":
        return "nothing: the base model is kept"
    return (
        f"{recipe.problems.dev:,} dev problems × {settings.dev_samples} samples, "
        f"{settings.evaluations + 1} times, first the base"
    )


STAGE = Stage(
    name="train",
    about="Train; keep the best checkpoint on dev problems.",
    amount=_amount,
    reads=_reads,
    settings=always("train.", *SAMPLING, "sample.max_tokens"),
    whole=train,
    asks_model=_asks_model,
    of_method=True,
)
