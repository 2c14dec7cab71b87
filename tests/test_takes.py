"""What a run takes before it starts: shapes, memory, GPUs, what is missing, the refusal."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto.commands import WIDTH, doctor
from dto.commands.amounts import Counter
from dto.commands.doctor import Gpu, Machine, gpu_called, gpu_named, known_gpus, lacks
from dto.commands.plan import read_settings
from dto.errors import DtoError
from dto.recipe import Recipe, load_recipe
from dto.takes import (
    GIB,
    Shape,
    Step,
    dev_memory,
    fits,
    refusal,
    remedy,
    shape_of,
    shape_of_json,
    step_memory,
    step_of,
    table,
    training_peak,
)
from dto.training.train import splits
from tests.commands import dto

plan_module = importlib.import_module("dto.commands.plan")

ROOT = Path(__file__).parents[1]
PIPELINES = ROOT / "pipelines"
LARGE_RECIPES = (
    "dto-r1-distill-1.5b", "dto-r1-distill-7b", "dto-qwen3-4b", "dto-deepscaler-1.5b",
    "drqa-r1-distill-1.5b",
)  # fmt: skip
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512, "max_position_embeddings": 128,
}  # fmt: skip
SPREAD = {"train.batch_size": 2, "train.gradient_accumulation": 8}
BARE = Machine((), 64 * GIB, 32 * GIB)


def recipe_of(
    changes: Mapping[str, Any] | None = None, name: str = "dto-r1-distill-1.5b"
) -> Recipe:
    return load_recipe(PIPELINES / f"{name}.yaml", changes)


def machine_of(gibibytes: float, count: int = 1) -> Machine:
    gpu = gpu_called("NVIDIA H100 80GB HBM3", gibibytes * GIB)
    return Machine((gpu,) * count, 256 * GIB, 256 * GIB)


@pytest.fixture
def uncached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without models, data sets, keys or a token."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("dto.takes.config_file", lambda name, revision=None: None)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(doctor, "hub_token", lambda: False)
    for name in ("HF_HUB_OFFLINE", "OPENAI_API_KEY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", table("models"))
def test_published_shapes_have_the_published_parameters(name: str, uncached: None) -> None:
    recipe = recipe_of({"model.name": name})
    shape = shape_of(recipe.model)
    assert shape.parameters == table("models")[name][1]
    assert name in shape.source


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("qwen2", {}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"tie_word_embeddings": True}),
        ("qwen3", {"head_dim": 32}),
        ("llama", {}),
        ("llama", {"attention_bias": True}),
        ("mistral", {}),
        ("gemma2", {"tie_word_embeddings": True}),
        ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                       "decoder_sparse_step": 1, "mlp_only_layers": []}),
    ],
)  # fmt: skip
def test_parameters_are_those_of_the_model(kind: str, more: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from dto.engines.models import shape_of_model

    config = AutoConfig.for_model(kind, **{"tie_word_embeddings": False, **SMALL, **more})
    config.save_pretrained(tmp_path)
    model: Any = AutoModelForCausalLM.from_config(config)
    shape = shape_of(recipe_of({"model.name": str(tmp_path)}).model)
    assert shape.parameters == sum(part.numel() for part in model.parameters())
    expected = shape_of_model(model)
    assert shape.flops == expected


def test_adapters_are_those_of_peft() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from dto.training.weights import with_adapters

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **SMALL))
    wrapped: Any = with_adapters(model, recipe_of({"train.lora_rank": 4}))
    trained = sum(part.numel() for part in wrapped.parameters() if part.requires_grad)
    assert shape_of_json(SMALL | {"model_type": "qwen3"}).adapters(4) == trained


def test_an_unknown_model_says_how_to_give_its_shape(uncached: None) -> None:
    with pytest.raises(DtoError, match=r"some/model is not known here: `hf download some/model"):
        shape_of(recipe_of({"model.name": "some/model"}).model)


def test_a_served_model_has_the_shape_of_its_tokenizer(uncached: None) -> None:
    served = {"model.name": "mine", "model.engine": "openai", "model.tokenizer": "Qwen/Qwen3-4B"}
    assert shape_of(recipe_of(served).model).parameters == 4_022_468_096
    with pytest.raises(DtoError, match="the shape of mine is not known here"):
        shape_of(recipe_of(served | {"model.engine": "vllm"}).model)


SHAPE = shape_of_json(
    {**SMALL, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
     "vocab_size": 100_000, "model_type": "llama", "tie_word_embeddings": False}
)  # fmt: skip
steps = st.builds(
    Step,
    passes=st.lists(
        st.tuples(st.integers(1, 8), st.integers(64, 8192)), min_size=1, max_size=2
    ).map(tuple),
    weights=st.just(4),
    compute=st.sampled_from([2, 4]),
    lora_rank=st.sampled_from([0, 16]),
    checkpointing=st.booleans(),
    accumulates=st.booleans(),
    references=st.integers(0, 1),
)


@given(steps)
def test_what_lowers_memory_lowers_it(step: Step) -> None:
    total = step_memory(SHAPE, step).total
    longer = replace(step, passes=tuple((rows, 2 * length) for rows, length in step.passes))
    more = replace(step, passes=tuple((rows + 1, length) for rows, length in step.passes))
    assert step_memory(SHAPE, longer).total >= total
    assert step_memory(SHAPE, more).total >= total
    assert step_memory(SHAPE, replace(step, references=2)).total > total
    assert step_memory(SHAPE, replace(step, accumulates=True)).total >= total
    assert step_memory(SHAPE, replace(step, lora_rank=16)).total <= total
    assert (
        step_memory(SHAPE, replace(step, shards=4)).optimizer < step_memory(SHAPE, step).optimizer
    )
    checkpointed = replace(step, checkpointing=True)
    assert step_memory(SHAPE, checkpointed).total <= total * 1.05


@given(st.lists(st.integers(2, 4000), min_size=1, max_size=5), st.booleans())
def test_flops_of_a_training_are_those_that_it_reports(lengths: list[int], again: bool) -> None:
    from dto.training.flops import training_flops
    from dto.usage import forward_flops

    total = training_flops(SHAPE.flops, lengths, checkpointing=again)[1]
    ours = (3 + again) * sum(forward_flops(SHAPE.flops, 0, length) for length in lengths)
    assert ours == pytest.approx(total)


@pytest.mark.parametrize(
    ("needed", "memory", "answer"),
    [(10, 40, "yes"), (29, 40, "yes"), (30, 40, "tight"), (49, 40, "tight"), (51, 40, "no")],
)
def test_fits_within_the_tolerance(needed: float, memory: float, answer: str) -> None:
    assert fits(needed * GIB, memory * GIB) == answer


@pytest.mark.parametrize(
    ("name", "changes", "least", "most"),
    [
        # 16 bytes a parameter are 26.5 GiB for 1.78 billion, and 113 GiB for 7.6 billion
        ("dto-r1-distill-1.5b", {}, 30, 60),
        ("dto-r1-distill-1.5b", {"train.gradient_checkpointing": False}, 100, 400),
        ("dto-r1-distill-7b", {}, 16, 40),
        ("dto-r1-distill-7b", {"train.bf16": False}, 32, 80),
        ("dto-r1-distill-7b", {"train.lora_rank": 0}, 115, 160),
        ("dto-qwen3-4b", {}, 9, 40),
        ("dto-qwen3-4b", {"train.lora_rank": 0}, 62, 100),
        ("drqa-r1-distill-1.5b", {}, 36, 110),
    ],
)
def test_steps_take_what_their_parameters_say(
    name: str, changes: dict[str, Any], least: float, most: float, uncached: None
) -> None:
    recipe = recipe_of(changes, name)
    shape = shape_of(recipe.model)
    total = step_memory(shape, step_of(recipe, shape)).total
    assert least * GIB <= total <= most * GIB


def test_dev_responses_take_keys_and_values_of_sixteen(uncached: None) -> None:
    """Qwen3-4B has 288 KiB of float32 keys and values a token: 72 GiB for 16 × 16,384 tokens."""
    recipe = recipe_of({"train.bf16": False}, "dto-qwen3-4b")
    shape = shape_of(recipe.model)
    assert shape.kv_bytes(4) == 288 * 1024
    long = dev_memory(recipe, shape, step_of(recipe, shape))
    assert long > 72 * GIB + 2 * 4 * shape.parameters
    short = recipe_of({"train.bf16": False, "sample.max_tokens": 1024}, "dto-qwen3-4b")
    assert dev_memory(short, shape, step_of(short, shape)) < 45 * GIB


@pytest.mark.parametrize(
    ("changes", "memory", "expected"),
    [
        ({"train.gradient_checkpointing": False, "train.bf16": False}, 80,
         "gradient_checkpointing"),
        ({"train.lora_rank": 0}, 24, "lora_rank"),
        ({"train.lora_rank": 32, "train.gradient_checkpointing": False}, 60,
         "gradient_checkpointing"),
        ({}, 4, None),
    ],
)  # fmt: skip
def test_the_first_remedy_that_fits_is_named(
    changes: dict[str, Any], memory: float, expected: str | None, uncached: None
) -> None:
    recipe = recipe_of(changes)
    shape = shape_of(recipe.model)
    change = remedy(recipe, shape, memory * GIB)
    assert (change is None) == (expected is None)
    if change is not None and expected is not None:
        assert f"train.{expected}" in change
        changed = recipe_of(changes | change)
        assert training_peak(changed, shape) < memory * GIB


def test_a_training_that_cannot_fit_is_refused_in_one_line(uncached: None) -> None:
    recipe = recipe_of({"train.lora_rank": 0}, "dto-r1-distill-7b")
    shape = shape_of(recipe.model)
    reason = refusal(recipe, shape, "NVIDIA A100 80GB", 80 * GIB)
    assert "a step of simpo with deepseek-ai/DeepSeek-R1-Distill-Qwen-7B takes about" in reason
    assert "--set train.lora_rank=32" in reason and "--force" in reason and "\n" not in reason
    assert refusal(recipe, shape, "NVIDIA H200", 1.3 * training_peak(recipe, shape)) == ""


@pytest.mark.parametrize("command", ["run", "train"])
@pytest.mark.parametrize(
    ("arguments", "gpus", "refused"),
    [
        ((), machine_of(24), True),
        ((), machine_of(140), False),
        ((), BARE, False),  # tight
        ((), Machine((), 64 * GIB, 16 * GIB), True),
        ((), Machine((), 256 * GIB, 128 * GIB), False),
        (("--set", "model.device=cpu"), Machine((), 256 * GIB, 16 * GIB), True),
        (("--set", "model.device=cpu"), replace(machine_of(140), free=16 * GIB), True),
        (("--force",), Machine((), 64 * GIB, 16 * GIB), False),
        (("--force",), machine_of(24), False),
        (("--set", "train.method=none"), machine_of(24), False),
        (("--set", "model.device=cpu"), machine_of(24), False),
        (("--set", "model.name=some/unknown"), machine_of(24), False),
    ],
)
def test_a_run_is_refused_before_anything_is_read(
    arguments: tuple[str, ...],
    gpus: Machine,
    refused: bool,
    command: str,
    uncached: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(doctor, "this_machine", lambda: gpus)
    opened: list[Path] = []

    def open_run(path: Path, *_: Any, **__: Any) -> None:
        opened.append(path)
        raise DtoError("the run has begun")

    monkeypatch.setattr("dto.commands.run.open_run", open_run)
    code, _, err = dto(command, "dto-r1-distill-1.5b", *arguments, capsys=capsys)
    assert code == 1 and err.count("\n") == 1
    assert ("train: a step of simpo with" in err) == refused and bool(opened) != refused
    assert refused or "the run has begun" in err


def test_a_machine_without_a_gpu_is_told_its_memory(uncached: None) -> None:
    recipe = recipe_of({"model.device": "cpu"})
    shape = shape_of(recipe.model)
    reason = refusal(recipe, shape, "this machine", 16 * GIB, cpu=True)
    assert "this machine has 16 free: " in reason and "--force" in reason
    assert "train.processes" not in reason
    assert "use a machine of" in refusal(recipe, shape, "this machine", GIB, cpu=True)
    peak = training_peak(recipe, shape, cpu=True)
    assert refusal(recipe, shape, "this machine", peak, cpu=True) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "anew", "looked"),
    [
        ({}, False, False),
        ({"evaluate.samples": 3}, False, False),  # of a later stage
        ({"train.processes": 2, "train.batch_size": 4, "train.gradient_accumulation": 2}, False,
         True),
        ({"train.learning_rate": 1e-6}, False, True),
        ({"sample.temperature": 0.9}, False, True),  # of a stage before it
        ({"train.method": "none"}, False, False),
        ({}, True, True),
    ],
)  # fmt: skip
def test_a_finished_training_is_checked_if_it_is_done_again(
    changes: dict[str, Any],
    anew: bool,
    looked: bool,
    small_run: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "this_machine", lambda: Machine((), GIB, GIB))
    monkeypatch.setattr(doctor, "SMALL", 0)
    monkeypatch.setattr(doctor, "refusal", lambda *_, **__: "too large")
    recipe = load_recipe(small_run / "recipe.yaml", changes)
    files = sorted(small_run.rglob("*"))
    if looked:
        with pytest.raises(DtoError, match="too large"):
            doctor.check_training(recipe, small_run, anew=anew)
    else:
        doctor.check_training(recipe, small_run, anew=anew)
    assert sorted(small_run.rglob("*")) == files


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train.optimizer": "adamw_8bit"}, "needs bitsandbytes and a GPU"),
        ({"train.report_to": ["wandb"]}, ""),  # decides nothing: the finished training is kept
    ],
)
def test_a_training_that_is_done_again_needs_its_packages(
    changes: dict[str, Any],
    said: str,
    small_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("dto.training.train.find_spec", lambda name: None)
    run = shutil.copytree(small_run, tmp_path / "run")
    settings = [f"--set={key}={json.dumps(value)}" for key, value in changes.items()]
    code, _, err = dto("run", str(run), *settings, "--recompute", "--yes", capsys=capsys)
    assert (code == 1) == bool(said) and said in err
    assert (run / "train" / "manifest.json").is_file()


def test_a_small_model_is_not_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def looked() -> Machine:
        raise AssertionError("no need to look at the GPU")

    monkeypatch.setattr(doctor, "this_machine", looked)
    doctor.check_training(recipe_of(name="quickstart"), tmp_path)


@pytest.mark.parametrize("name", LARGE_RECIPES)
def test_the_plan_of_a_large_recipe_tells_what_it_takes(
    name: str,
    uncached: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(plan_module, "this_machine", lambda: BARE)
    monkeypatch.setattr(doctor, "usable", lambda: [("vllm", "not installed: make setup-gpu")])
    code, out, _ = dto("run", name, "--dry-run", capsys=capsys)
    assert code == 0
    taken = out[: out.index("── ")]
    for word in (
        "What it takes", "Assumed: ", "Memory at the peak", "Where it fits", "H100 80GB",
        "This machine lacks", "- a GPU", "engine vllm of model: not installed: make setup-gpu",
        "Fetched at the start: model ", "hours, H100 80GB", "published for",
    ):  # fmt: skip
        assert word in taken, word
    assert [line for line in taken.splitlines() if len(line) > WIDTH] == []
    rows = {line.split("  ")[0]: line for line in taken.splitlines() if line}
    assert " no" in rows["RTX 4090"] and "yes" in rows["B200"]


def test_a_gpu_can_be_named(
    uncached: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan_module, "this_machine", lambda: machine_of(80))
    _, out, _ = dto("run", "dto-qwen3-4b", "--dry-run", "--gpu", "4090", capsys=capsys)
    assert "hours, RTX 4090" in out and "H100" not in out.split("Where it fits")[1].split("──")[0]
    _, out, _ = dto("run", "dto-qwen3-4b", "--dry-run", capsys=capsys)
    assert "hours, NVIDIA H100 80GB HBM3" in out
    code, _, err = dto("run", "dto-qwen3-4b", "--dry-run", "--gpu", "9090", capsys=capsys)
    assert code == 1 and "--gpu 9090 is not known: choose from b200, h200, h100" in err


@pytest.mark.parametrize(
    ("called", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100-80"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("NVIDIA L40", None),
        ("Tesla T4", None),
    ],
)
def test_a_driver_s_name_finds_the_peak(called: str, key: str | None) -> None:
    gpu = gpu_called(called, 24.0 * GIB)
    assert (gpu.name, gpu.memory) == (called, 24.0 * GIB)
    expected = known_gpus()[key].bf16 if key else 0.0
    assert gpu.bf16 == expected


def test_hours_of_an_unknown_gpu_are_unknown() -> None:
    from dto.commands.amounts import Work

    low, high = Work("sample", flops=1e18).hours(Gpu("Tesla T4", 15 * GIB))
    assert low != low and high != high
    low, high = Work("sample", flops=3600 * 989e12).hours(gpu_named("h100"))
    assert (low, high) == pytest.approx((2.0, 5.0))
    slow = Work("sample", flops=3600 * 989e12, half=False).hours(gpu_named("h100"))
    assert slow[0] > 10 * low


@pytest.mark.parametrize(
    ("name", "changes", "stage", "read", "unread"),
    [
        ("quickstart", {}, "train", ("beta", "gamma", "nll", "epochs"),
         ("accuracy_weight", "reward", "penalty", "group", "no_letter", "judgements", "kl",
          "policy_tokens")),
        ("quickstart", {"train.method": "none"}, "train", ("method",), ("beta", "epochs", "keep")),
        ("quickstart", {"train.method": "dpo"}, "train", ("beta",), ("gamma", "nll")),
        ("baselines/grpo-length", {}, "train", ("reward", "penalty", "group"), ("beta", "nll")),
        ("baselines/grpo-accuracy", {}, "train", ("reward", "group"), ("penalty", "beta")),
        ("drqa", {}, "train", ("group", "kl", "no_letter", "judgements"), ("reward", "penalty")),
        ("baselines/o1-pruner", {}, "train", ("accuracy_weight",), ("beta", "reward")),
        ("quickstart", {}, "estimate", ("margin", "cap"), ("rollouts", "error_scan")),
        ("quickstart", {"estimate.method": "fixed"}, "estimate", ("rollouts",), ("cap",)),
        ("quickstart", {}, "prune", ("rollouts", "harm"), ("gold", "temperature", "agreement")),
        ("quickstart", {"prune.judge": "llm"}, "prune", ("gold", "temperature"), ("harm",)),
        ("quickstart", {"prune.judge": "none"}, "prune", ("judge",),
         ("rollouts", "harm", "confirmations", "max_segments")),
        ("quickstart", {}, "pair", ("rejected", "longer_correct"), ("margin",)),
        ("baselines/simpo", {}, "pair", ("max_length",), ("rejected", "margin")),
        ("baselines/dast", {}, "pair", ("margin",), ("rejected",)),
        ("quickstart", {}, "evaluate", ("samples",), ("limit", "tasks", "exits")),
    ],
)  # fmt: skip
def test_only_settings_that_are_read_are_shown(
    name: str,
    changes: dict[str, Any],
    stage: str,
    read: tuple[str, ...],
    unread: tuple[str, ...],
) -> None:
    shown = {line.partition("=")[0] for line in read_settings(recipe_of(changes, name), stage)}
    assert set(read) <= shown
    assert not shown & set(unread)


def test_a_run_without_training_plans_none(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = dto(
        "run", "quickstart", "--dry-run", "--set", "train.method=none", capsys=capsys
    )
    assert code == 0
    assert "train     nothing: the base model is kept" in out and "dev problems" not in out
    assert "── evaluate: how a question is asked" in out and "d_exit" not in out
    assert not any(line.startswith(("  dev", "training  ")) for line in out.splitlines())


@pytest.mark.parametrize(
    ("changes", "machine", "expected"),
    [
        ({}, BARE, "a GPU: 1.8 billion parameters"),
        ({}, machine_of(2), "memory to serve the model"),
        ({"train.gradient_checkpointing": False}, machine_of(80), "memory to train"),
        ({"model.tensor_parallel": 4}, machine_of(80, 2), "4 GPUs for model.tensor_parallel"),
        ({"model.device": "cpu"}, Machine((), 32 * GIB, 8 * GIB), "memory to train on the CPU"),
        ({"train.lora_rank": 8}, machine_of(80), "train.lora_rank = 8 needs peft: pip install"),
        ({"train.optimizer": "adamw_8bit"}, machine_of(80), "needs bitsandbytes and a GPU"),
        ({"train.processes": 4, "train.accelerate": "deepspeed", **SPREAD}, machine_of(80, 4),
         "train.accelerate = 'deepspeed' needs deepspeed: pip install"),
        ({"train.report_to": ["tensorboard"]}, machine_of(80), "pip install tensorboard"),
        ({"train.processes": 4, "train.accelerate": "fsdp", **SPREAD}, machine_of(80, 2),
         "4 GPUs for train.processes: there are 2"),
        ({"train.engine": "vllm", "train.engine_gpus": [2]}, machine_of(80, 2),
         "train.engine_gpus names GPU 2, and this machine shows 2"),
        ({"train.engine": "vllm", "train.engine_gpus": [0]}, machine_of(80, 2), "and GPU 0 trains"),
        ({"model.engine": "openai"}, machine_of(80), "a key in OPENAI_API_KEY"),
        ({"prune.judge": "llm", "judge": {"name": "big", "engine": "openai", "api_key": "KEY_2"}},
         machine_of(80), "a key in KEY_2, for OpenAI's own server (judge)"),
        ({"evaluate.tasks": ["gpqa"], "problems.test_source": None}, machine_of(80),
         "a token of the Hub for dataset Idavidrein/gpqa"),
        ({}, machine_of(80), "engine vllm of model: not installed: make"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(
    changes: dict[str, Any],
    machine: Machine,
    expected: str,
    uncached: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "usable", lambda: [("vllm", "not installed: make")])
    monkeypatch.setattr("dto.training.train.find_spec", lambda name: None)
    recipe = recipe_of(changes)
    lines = list(lacks(recipe, shape_of(recipe.model), machine))
    assert any(expected in line for line in lines), lines


def test_near_misses_lack_nothing(uncached: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "usable", lambda: [("vllm", "ready, vllm 1 on the GPU")])
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    recipe = recipe_of()
    shape = shape_of(recipe.model)
    machine = machine_of(140)
    assert list(lacks(recipe, shape, machine)) == []
    for changes in (
        {"model.engine": "openai"},
        {"model.engine": "openai", "model.server": "http://localhost:8000/v1"},
        {"judge": {"name": "x", "engine": "openai", "api_key": "NOT_SET"}},  # nobody asks it
        {"train.engine_gpus": [7]},  # of an engine that is not there
        {"train.method": "none", "train.optimizer": "adamw_8bit", "train.report_to": ["wandb"]},
    ):
        assert list(lacks(recipe_of(changes), shape, machine)) == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (line,) = lacks(recipe, shape, machine)
    assert "HF_HUB_OFFLINE is set" in line and "dataset HuggingFaceH4/MATH-500" in line


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "free_disk", lambda place: 3.0 * GIB)
    lines = list(doctor.disk_missing(2 * GIB, 4 * GIB, tmp_path))
    assert len(lines) == 1 and "disk for the download: about 4 GiB, 3 are free" in lines[0]


def test_tokens_follow_from_the_recipe(uncached: None) -> None:
    recipe = recipe_of()
    shape = shape_of(recipe.model)
    works = {work.stage: work for work in Counter(recipe, shape).works(["sample", "train"])}
    assert works["sample"].most == 3000 * 4 * 8192
    assert works["sample"].tokens == works["sample"].most / 2
    assert works["  dev"].most == 7 * 300 * 4 * 8192
    assert works["train"].disk > 3 * 12 * shape.parameters
    adapters = recipe_of({"train.lora_rank": 32})
    lora = {work.stage: work for work in Counter(adapters, shape).works(["train"])}
    assert lora["train"].disk < 2 * works["train"].disk / 3
    assert lora["train"].flops < works["train"].flops


def test_a_teacher_asks_each_question_alone_too_in_its_own_shape(uncached: None) -> None:
    taught = {"batch.k": [2], "batch.samples": 1, "sample.samples": 3, "problems.train": 100}

    def works(teacher: dict[str, Any] | None) -> dict[str, Any]:
        recipe = recipe_of(taught | {"batch.teacher": teacher}, "drqa-r1-distill-1.5b")
        rows = Counter(recipe, shape_of(recipe.model)).works(["batch"])
        return {row.stage: row for row in rows}

    own = works(None)
    assert list(own) == ["batch"]
    large = works({"name": "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "engine": "vllm",
                   "tensor_parallel": 4})  # fmt: skip
    assert large["batch"].tokens == own["batch"].tokens
    most = recipe_of(name="drqa-r1-distill-1.5b").sample.max_tokens
    assert large["  alone"].most == 300 * most == 2 * large["  alone"].tokens
    assert large["  alone"].disk > 0 and {row.gpus for row in large.values()} == {4}
    assert 3.5 < large["batch"].flops / own["batch"].flops < 5.5
    served = works({"name": "deepseek-r1", "engine": "openai", "server": "http://a:1/v1"})
    assert [row.flops for row in served.values()] == [0.0, 0.0]
    assert served["  alone"].tokens == large["  alone"].tokens
    unknown = works({"name": "some/model", "engine": "vllm"})
    assert all(row.flops != row.flops for row in unknown.values())


def test_weights_that_are_handed_over_take_disk(uncached: None) -> None:
    def disk(**train: Any) -> float:
        recipe = recipe_of({f"train.{key}": value for key, value in train.items()})
        works = Counter(recipe, shape_of(recipe.model)).works(["train"])
        return next(work.disk for work in works if work.stage == "train")

    shape = shape_of(recipe_of().model)
    assert disk(engine="vllm") - disk() == pytest.approx(2 * 2 * shape.parameters)
    more = disk(engine="vllm", lora_rank=32) - disk(lora_rank=32)
    assert more == pytest.approx(2 * 4 * shape.adapters(32))


def test_without_a_shape_tokens_are_counted_all_the_same(
    uncached: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--dry-run", "--set", "model.name=some/model")
    code, out, _ = dto("run", "dto-r1-distill-1.5b", *arguments, capsys=capsys)
    assert code == 0
    assert "the shape of some/model is not known here: `hf download some/model config.json`" in out
    assert "98.3 M" in out and "unknown" in out and "Where it fits" not in out


@pytest.mark.slow
def test_a_run_that_has_begun_is_measured(
    small_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = dto("run", str(small_run), "--dry-run", capsys=capsys)
    assert code == 0
    usage = json.loads((small_run / "sample" / "manifest.json").read_text())["usage"]
    assert f"{usage['generated']:,}" in out and "sample (measured)" in out
    assert "Measured in the run's tables: the length of a response" in out
    changed = ("--set", "sample.max_tokens=300")
    _, out, _ = dto("run", str(small_run), "--dry-run", *changed, capsys=capsys)
    assert "(measured)" not in out and "A response takes half of its max_tokens (150)" in out


def test_the_doctor_names_everything_and_shows_no_secret(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-SECRET")
    monkeypatch.setenv("HF_TOKEN", "hf_SECRET")
    monkeypatch.setattr(doctor, "this_machine", lambda: machine_of(80, 2))
    code, out, _ = dto("doctor", capsys=capsys)
    assert code == 0
    for word in (
        "torch", "GPU", "80 GiB", "memory", "disk, runs", "disk, Hub", "sandbox", "transformers",
        "vllm", "openai", "HF_TOKEN        ok", "OPENAI_API_KEY  ok",
    ):  # fmt: skip
        assert word in out, word
    assert "SECRET" not in out
    assert [line for line in out.splitlines() if len(line) > WIDTH] == []


def test_the_doctor_tells_the_way_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(doctor, "hub_token", lambda: False)
    monkeypatch.setattr(doctor, "this_machine", lambda: BARE)
    monkeypatch.setattr(doctor, "usable", lambda: [("vllm", "not installed: make setup-gpu")])
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    code, out, _ = dto("doctor", capsys=capsys)
    assert code == 0
    for word in ("hf auth login", "pip install 'dto[peft]'", "make setup-gpu", "missing: only"):
        assert word in " ".join(out.split()), word
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "trl" else "1")
    code, out, _ = dto("doctor", capsys=capsys)
    assert code == 1 and "missing: dto cannot run without it" in out


def test_a_step_has_the_sides_of_its_method(uncached: None) -> None:
    def passes(**changes: Any) -> tuple[Step, Shape]:
        recipe = recipe_of({key.replace("__", "."): value for key, value in changes.items()})
        shape = shape_of(recipe.model)
        return step_of(recipe, shape), shape

    assert passes()[0].passes == ((2, 9216), (2, 9216))
    dpo = passes(train__method="dpo")[0]
    assert (dpo.passes, dpo.references) == (((4, 9216),), 1)
    assert passes(train__method="dpo", train__lora_rank=8)[0].references == 0
    grpo = passes(train__method="grpo", train__batch_size=8)[0]
    assert (grpo.passes[0][1], grpo.references) == (256 + 8192, 0)
    assert passes(train__method="grpo", train__batch_size=8, train__kl=0.1)[0].references == 1
    assert passes(train__method="sft")[0].passes == ((2, 9216),)
    assert passes(model__context=4096)[0].passes == ((2, 4096),) * 2


def test_a_file_for_copies_splits_nothing(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    for content, split in (("FSDP\nfsdp_config: {fsdp_version: 2}", True), ("MULTI_GPU", False)):
        path.write_text(f"distributed_type: {content}\n", encoding="utf-8")
        assert splits(str(path)) == split
    assert splits("fsdp") and splits("missing.yaml") and not splits(None)
