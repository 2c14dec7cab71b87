"""Parts of `benchmarks.gpu` that train: all methods on nano, full-size shapes, configurations.

A training in full size is of SimPO, on pairs whose two sides have 9,216 tokens each, one pair a
step. It is the whole of `trainer.train()`: mixed precision, clipping, AdamW. The first step, which
allocates the optimizer's state, is not measured.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu import ERROR, GIB, Part, Row, Scale, free, read, reason

METHODS = ("simpo", "dpo", "sft", "o1_pruner", "grpo", "drqa", "cft", "sft_batch")
STEPS = 2
TOKENS, STEP_COUNT = 9216, 4


# Part `methods`.


def methods(case: str, scale: Scale) -> Iterator[Row]:
    """The engine against the CPU, or a training of two steps: whole, and stopped and resumed."""
    if case == "engine":
        yield from asyncio.run(conformance(scale))
        return
    with tempfile.TemporaryDirectory() as folder:
        yield trained(case, scale, Path(folder))


async def conformance(scale: Scale) -> list[Row]:
    """Greedy responses of nano on the device against those of the CPU in float32.

    `same tokens` are those before the first difference, as a share of the CPU's. The logprobs are
    of the CPU's tokens, scored on the device.
    """
    from benchmarks.engine import unequal_prompts
    from dto.engines.transformers import TransformersEngine
    from dto.protocols import Completion, Sampling
    from dto.recipe import ModelSettings

    count, limit = (4, 24) if scale.tiny else (64, 256)
    sampling = Sampling(limit, temperature=0.0, logprobs=0)

    def opened(device: str, dtype: str) -> TransformersEngine:
        settings = {"name": "nano", "device": device, "dtype": dtype}
        return TransformersEngine(ModelSettings.model_validate(settings))

    async def completions(engine: Any) -> list[Completion]:
        found = await asyncio.gather(*(engine.complete(p, sampling) for p in prompts))
        return [completion for (completion,) in found]

    reference = opened("cpu", "float32")
    prompts = unequal_prompts(reference, count)
    async with reference:
        expected = await completions(reference)
    rows: list[Row] = []
    for dtype in ("float32", "bfloat16"):
        engine = opened(scale.device, dtype)
        async with engine:
            await completions(engine)  # kernels are loaded
            with read(scale.device) as reading:
                found = await completions(engine)
            scores = await asyncio.gather(
                *(engine.score(p, e.token_ids) for p, e in zip(prompts, expected, strict=True))
            )
            async with engine.branched() as branch:
                (branched,) = await branch.complete(prompts[0], sampling)
        apart = [
            abs(one - other)
            for own, each in zip(scores, expected, strict=True)
            for one, other in zip(own, each.logprobs or (), strict=True)
        ]
        tokens = sum(len(each.token_ids) for each in found)
        rows.append(
            {
                "dtype": dtype,
                "responses": len(found),
                "same tokens, %": 100 * same_tokens(expected, found),
                "branched, %": 100 * same_tokens(expected[:1], [branched]),
                "largest difference of logprobs": max(apart),
                "tokens/s": tokens / reading.seconds,
            }
        )
    return rows


def same_tokens(expected: Any, found: Any) -> float:
    """The share of the expected tokens that come before the first difference."""
    same = 0
    for one, other in zip(expected, found, strict=True):
        pairs = zip(one.token_ids, other.token_ids, strict=False)
        shorter = min(len(one.token_ids), len(other.token_ids))
        same += next((at for at, (a, b) in enumerate(pairs) if a != b), shorter)
    return same / sum(len(each.token_ids) for each in expected)


def prepared(
    folder: Path, scale: Scale, model: dict[str, Any], tokens: int = 64, **training: Any
) -> Any:
    """A run of small tables for a training of two steps, which measures after each.

    `tokens` limits a response; a tiny one has 16.
    """
    import yaml

    from dto.engines.models import load_tokenizer
    from dto.recipe import ModelSettings, load_recipe, resolve
    from tests.training.conftest import RunFolder, make_run
    from tests.training.test_judging import with_labels

    name = resolve(model["name"])
    tokenizer = load_tokenizer(ModelSettings(name=name))
    run = make_run(folder, tokenizer, Path(name))
    data = run.recipe.model_dump(mode="json")
    data["model"] |= {"device": scale.device, **model, "name": name}
    data["sample"] |= {"max_tokens": 16 if scale.tiny else tokens}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    run = RunFolder(folder, load_recipe(folder / "recipe.yaml"))
    settings: dict[str, Any] = {
        "method": "simpo", "bf16": True, "learning_rate": 1e-4, "batch_size": 4, "group": 2,
        "evaluations": STEPS, "dev_samples": 1, "keep": "last", "collapse_points": 1000.0,
        "collapse_truncated": 1.0, **training,
    }  # fmt: skip
    method = settings["method"]
    rows = 16 if method in ("drqa", "cft") else 24
    per_step = settings["batch_size"] * settings.get("gradient_accumulation", 1)
    per_step //= settings["group"] if method in ("grpo", "drqa") else 1
    settings["epochs"] = STEPS * per_step / rows
    if method in ("drqa", "cft", "sft_batch"):
        return with_labels(run, tokenizer, **settings)
    return run.with_training(**settings)


def trained(method: str, scale: Scale, folder: Path) -> Row:
    """Two steps of a method, and two more that are stopped after the first and resumed."""
    from safetensors.torch import load_file

    from dto.recipe import resolve
    from dto.training import fit as fitting
    from dto.training import grpo
    from dto.training.pairs import chosen_sides, load_pairs
    from dto.training.train import json_lines

    if method == "sft_batch":  # its rows are those of sft here: the chain tables are left out
        fitting.batch_answers = lambda run, *_: chosen_sides(load_pairs(run, 10**6))
    more = {"reward": f"{distinct.__module__}:distinct"} if method == "grpo" else {}
    if method == "drqa":
        grpo.judging = lambda picks, _: distinct(picks)
    names = ("whole", "stopped")
    runs = [
        prepared(folder / name, scale, {"name": "nano"}, method=method, **more) for name in names
    ]
    with read(scale.device) as reading:
        result = fitting.fit(runs[0].path, runs[0].recipe)
    with watched() as watch:
        watch.stops = True
        with suppress(_Stopped):
            fitting.fit(runs[1].path, runs[1].recipe)
        watch.stops = False
        fitting.fit(runs[1].path, runs[1].recipe)
    history = json_lines(folder / "whole" / "train" / "history.jsonl")
    paths = [folder / name / "train" / "model" for name in names]
    base, whole, resumed = (
        load_file(path / "model.safetensors") for path in (Path(resolve("nano")), *paths)
    )
    return {
        "steps": result["steps"],
        "losses": ", ".join(f"{row['loss']:.4f}" for row in history[1:]),
        "largest change": furthest(base, whole),
        "resumed from": watch.resumed[-1],
        "difference after resuming": furthest(whole, resumed),
        "seconds": reading.seconds,
        "peak, GiB": reading.peak / GIB,
    }


def furthest(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of two models' weights."""
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


def distinct(responses: Sequence[Any]) -> list[float]:
    """Rewards that differ in every group, so that there is a gradient."""
    return [float(index) for index in range(len(responses))]


class _Stopped(BaseException):
    pass


@dataclass(slots=True)
class Watch:
    """Whether a training stops after its next checkpoint, and where each one began."""

    stops: bool = False
    resumed: list[str] = field(default_factory=list)


@contextmanager
def watched() -> Iterator[Watch]:
    """Watch the trainings of this process, and stop them if asked to."""
    from dto.training.checkpoints import DevCallback, TrainingState

    watch = Watch()
    save, resume = DevCallback.on_save, TrainingState.resume

    def saved(self: Any, *args: Any, **kwargs: Any) -> Any:
        control = save(self, *args, **kwargs)
        if watch.stops:
            raise _Stopped
        return control

    def noted(self: Any, *args: Any) -> Path | None:
        path = resume(self, *args)
        watch.resumed.append("the start" if path is None else path.name)
        return path

    DevCallback.on_save, TrainingState.resume = saved, noted  # type: ignore[method-assign]
    try:
        yield watch
    finally:
        DevCallback.on_save, TrainingState.resume = save, resume  # type: ignore[method-assign]


# Part `shapes`.

SHAPES: dict[str, dict[str, Any]] = {
    "R1-Distill-Qwen-1.5B": {
        "kind": "qwen2", "vocab_size": 151_936, "hidden_size": 1536, "intermediate_size": 8960,
        "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
        "max_position_embeddings": 131_072, "tie_word_embeddings": False,
    },
    "Qwen3-4B": {
        "kind": "qwen3", "vocab_size": 151_936, "hidden_size": 2560, "intermediate_size": 9728,
        "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "max_position_embeddings": 40_960, "tie_word_embeddings": True,
    },
}  # fmt: skip
"""The published shapes, from each model's config.json."""
SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
}  # fmt: skip
CHECKPOINTED = {"gradient_checkpointing": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "fused head": CHECKPOINTED,
    "plain head": CHECKPOINTED,
    "fused head, LoRA 32": {**CHECKPOINTED, "lora_rank": 32},
    "fused head, no checkpointing": {"gradient_checkpointing": False},
}


def config_of(case: str, scale: Scale) -> Any:
    """The configuration of a shape; a tiny one has its kind, and nano's vocabulary."""
    from transformers import AutoConfig

    sizes = SHAPES[case] | (SMALL | {"vocab_size": 515} if scale.tiny else {})
    return AutoConfig.for_model(sizes["kind"], **{k: v for k, v in sizes.items() if k != "kind"})


def shapes(case: str, scale: Scale) -> Iterator[Row]:
    """Each variant of a SimPO step, one after the other in this process."""
    first: float | None = None
    for variant, training in VARIANTS.items():
        failed = ""
        try:
            row = step_of(case, scale, plain=variant == "plain head", **training)
        except Exception as error:
            failed = "out of memory" if "out of memory" in str(error) else reason(error)
        if failed:  # after the error, whose frames hold the model
            row = {"peak, GiB": failed} if failed == "out of memory" else {ERROR: failed}
        free(scale.device)
        if "tokens/s" in row:
            first = first or row["tokens/s"]
            row["tokens/s ÷ first row"] = row["tokens/s"] / first
        yield {"variant": variant, **row}


def step_of(case: str, scale: Scale, *, plain: bool, **training: Any) -> Row:
    """Train for some steps on random pairs; `plain`: with TRL's own loss, on whole logits.

    The weights have the precision that `dto.training.weights.load` gives them.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl.experimental.cpo import CPOTrainer

    from dto.recipe import Recipe, resolve
    from dto.training import fit
    from dto.training.pairs import TokenizedPair
    from dto.training.weights import with_adapters

    length = 64 if scale.tiny else TOKENS
    config = config_of(case, scale)
    torch.manual_seed(0)
    with torch.device(scale.device):
        dtype = torch.bfloat16 if training.get("lora_rank") else torch.float32
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(config.vocab_size, (count,)).tolist())

    prompt = length // 36
    rows = [
        TokenizedPair(str(n), ids(prompt), ids(length - prompt), ids(length - prompt))
        for n in range(STEP_COUNT)
    ]

    ends: list[float] = []
    held: list[int] = []

    class Steps(TrainerCallback):
        """Notes when each step ends, and what is allocated then: weights and optimizer."""

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if scale.device != "cpu":
                torch.cuda.synchronize()
                held.append(torch.cuda.memory_allocated())
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        recipe = Recipe.model_validate(
            {
                "name": "shapes",
                "model": {"name": folder, "device": scale.device, "context": length},
                "pair": {"max_length": length},
                "train": {"method": "simpo", "batch_size": 1, "bf16": True, **training},
            }
        )
        formula = None if plain else predicted(recipe, scale)
        arguments = fit.trainer_class("simpo").config(recipe, Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(resolve("nano"))
        order = list(range(STEP_COUNT))
        with read(scale.device) as reading:
            model = with_adapters(model, recipe)
            trainer = fit.make_trainer(recipe, arguments, model, tokenizer, rows, order, Steps())
            if plain:
                trainer.get_batch_loss_metrics = lambda *args, **kwargs: (
                    CPOTrainer.get_batch_loss_metrics(trainer, *args, **kwargs)
                )
            trainer.train()
    row: Row = {
        "parameters": sum(each.numel() for each in model.parameters()),
        "tokens a step": 2 * length,
        "tokens/s": 2 * length * (STEP_COUNT - 1) / (ends[-1] - ends[0]),
        "weights and optimizer, GiB": held[-1] / GIB if held else None,
        "peak, GiB": reading.peak / GIB,
    }
    if formula is not None:
        row |= {"formula, GiB": formula / GIB, "peak ÷ formula": reading.peak / formula}
    return row


def predicted(recipe: Any, scale: Scale) -> float | None:
    """Bytes that `dto.takes` predicts for a step; None where it is not installed."""
    try:
        from dto.takes import shape_of, step_memory
        from dto.takes import step_of as planned
    except ImportError:
        return None
    shape = shape_of(recipe.model)
    return float(step_memory(shape, planned(recipe, shape, cpu=scale.device == "cpu")).total)


# Part `configurations`.

CONFIGURATIONS = ("8-bit optimizer", "Liger kernels", "FSDP2", "ZeRO-3")


def configurations(case: str, scale: Scale) -> Iterator[Row]:
    """A training of nano as it is, and with the configuration: `ok`, or the error in one line.

    FSDP2 and ZeRO-3 train in as many processes as there are GPUs (two on a CPU); a batch is split
    over them, so that the losses are comparable. With one GPU there is nothing to split: the
    configuration's file is launched with one process, to see that it runs.
    """
    from dto.training.fit import fit

    with tempfile.TemporaryDirectory() as folder:
        try:
            changed = _configured(case, scale, Path(folder, "changed"))
        except Exception as error:
            yield {ERROR: reason(error)}
            return
        plain = prepared(Path(folder, "plain"), scale, {"name": "nano"}, **_batch(scale))
        fit(plain.path, plain.recipe)
        yield {
            "result": "ok",
            "loss": _loss(plain),
            "loss with it": _loss(changed),
            "difference": _loss(changed) - _loss(plain),
        }


def _processes(scale: Scale) -> int:
    import torch

    return 2 if scale.device == "cpu" else torch.cuda.device_count()


def _batch(scale: Scale) -> dict[str, int]:
    return {"batch_size": 2, "gradient_accumulation": _processes(scale)}


def _configured(case: str, scale: Scale, folder: Path) -> Any:
    """The run of a training with a configuration."""
    from dto.training import trainers
    from dto.training.fit import fit
    from dto.training.train import train

    settings: dict[str, Any] = dict(_batch(scale))
    count, sharding = _processes(scale), {"FSDP2": "fsdp", "ZeRO-3": "deepspeed"}.get(case)
    if case == "8-bit optimizer":
        settings["optimizer"] = "adamw_8bit"
    elif sharding and count > 1:
        settings |= {"processes": count, "accelerate": sharding}
    run = prepared(folder, scale, {"name": "nano"}, **settings)
    if sharding and count > 1:
        train(run.path, run.recipe)
        return run
    if sharding:
        _launch(Path("pipelines", "accelerate", f"{sharding}.yaml"), run.path)
        return run
    arguments = trainers.arguments
    if case == "Liger kernels":  # not a setting of a recipe; its loss would replace the fused head
        liger: dict[str, Any] = {"use_liger_kernel": True}
        liger["liger_kernel_config"] = {"cross_entropy": False, "fused_linear_cross_entropy": False}
        trainers.arguments = lambda *args: arguments(*args) | liger
    try:
        fit(run.path, run.recipe)
    finally:
        trainers.arguments = arguments
    return run


def _launch(file: Path, run: Path) -> None:
    """Train in one process with a configuration of accelerate."""
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file)]
    command += ["--num_processes", "1", "-m", "dto.training.process", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).split("\n") if line.strip()]
        raise RuntimeError(next((line for line in lines if line.startswith("error: ")), lines[-1]))


def _loss(run: Any) -> float:
    from dto.training.train import json_lines

    return float(json_lines(run.path / "train" / "history.jsonl")[-1]["loss"])


PARTS = {
    "methods": Part(("engine", *METHODS), methods),
    "shapes": Part(tuple(SHAPES), shapes),
    "configurations": Part(CONFIGURATIONS, configurations),
}
