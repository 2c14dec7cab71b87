"""What a model takes before it is loaded: its shape, and the memory of training and engines.

Shapes come from a config.json on this machine, or else from `takes.toml`. Nothing is fetched.

Peak memory of a training step in one process, in bytes (:func:`step_memory`):

    weights + optimizer + the larger of (activations + head) and (gradients + one layer + table)

- weights: 4 · P; 2 · P under LoRA with bf16, where the base is frozen; once more for each reference
  model (DPO, GRPO and DRQA with a divergence and without LoRA; O1-Pruner). Adapters: 4 · A more.
- optimizer: AdamW's two moments, 8 · T for the T trained parameters (P or A); `adamw_8bit` 2 · T.
- gradients: 4 · T. They are freed after each step, so only a training with gradient accumulation
  has them while activations are at their largest.
- activations: for each token and layer, what the backward pass reads. With hidden size h, query and
  key-value width q and k, and MLP width i, a Llama-like layer keeps

      float32                  4 · (6h + 2q + 2k + 4i)
      float32 under autocast   26h + 4q + 4k + 8i
      bfloat16 weights         16h + 4q + 4k + 8i

  and with norms of queries and keys 8 · (q + k), or 6 · (q + k) under bfloat16. In batches of more
  than one sequence k is q (keys and values are repeated for the masked kernels), and each layer
  keeps a mask of rows · length² numbers. With gradient checkpointing a layer keeps its input only,
  4h or 2h, and one layer at a time is computed again. Both sides of a pair count. Embedding, last
  norm and the head's input add 20h for each token. One layer's gradients add 3i numbers.
- casts: under autocast of float32 weights the 2 bytes of each matrix, for each side with LoRA. With
  checkpointing they are there in the forward pass only, and with LoRA one layer's at a time.
- head: TRL's fused head never holds whole logits, but one tile of them (4,096 × 32,768; on a CPU
  512 × 8,192, six times) and two float32 buffers as large as the head's weights, unless frozen.
- table: one float32 gradient as large as the embeddings, before it is added.

Sharded over n processes (FSDP2, ZeRO-3), weights, gradients and optimizer are divided by n, and two
layers, embeddings and head are whole at a time. Several processes without sharding are like one.

What is left out: the CUDA context (about 0.5 GiB; `RESERVED`), fragmentation, kernels' workspaces.
`benchmarks/memory.py` compares the formula with measured peaks on a CPU (within `TOLERANCE`).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from dto.errors import DtoError
from dto.recipe import ModelSettings, Recipe, resolve
from dto.training.train import has_reference, splits
from dto.usage import ModelShape

TOLERANCE = 0.25
"""How far the formula may be off, relative to the measured peak."""
GIB = 2**30
RESERVED = GIB
"""Bytes of a GPU that are not for tensors: context, kernels."""
PROMPT = 256
"""Tokens that a question is assumed to take with its template."""
LEAST_ROWS, GROWTH = 16, 2.25
"""The transformers engine has room for so many responses even where memory is short, and takes so
many bytes for each byte of their keys and values while its buffer grows (dto/engines/batch.py)."""
_GPU_TILE, _CPU_TILE = 4096 * 32768, 6 * 4 * 512 * 8192
_COLUMNS = (
    "model_type", "parameters", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size", "tie_word_embeddings",
    "max_position_embeddings",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a decoder.

    `parameters` counts all weights, `active` those in the forward pass of a token (N in
    `dto.usage`). For a mixture of experts, `intermediate` is the width of the experts that a token
    uses. `source` says where the sizes are from.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    context: int
    parameters: int
    active: int
    head_norms: bool = False
    source: str = ""

    @property
    def queries(self) -> int:
        """The width of the queries."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """The width of the keys, and of the values."""
        return self.kv_heads * self.head_dim

    @property
    def table(self) -> int:
        """The parameters of the embeddings, and of the head."""
        return self.vocabulary * self.hidden

    @property
    def blocks(self) -> int:
        """The parameters of all layers."""
        return self.parameters - self.table * (1 if self.tied else 2)

    @property
    def flops(self) -> ModelShape:
        """The shape from which FLOPs are computed."""
        return ModelShape(self.layers, self.heads, self.head_dim, self.active)

    def adapters(self, rank: int) -> int:
        """The parameters of LoRA adapters of all linear layers, which leave the head alone."""
        h, i, q, k = self.hidden, self.intermediate, self.queries, self.keys
        return self.layers * rank * (2 * (h + q) + 2 * (h + k) + 3 * (h + i))

    def kv_bytes(self, number: int) -> int:
        """Bytes of the keys and values of one token, `number` bytes each."""
        return 2 * self.layers * self.keys * number


@cache
def table(name: str) -> dict[str, list[Any]]:
    """A table of `takes.toml`: `models` or `gpus`."""
    text = Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
    rows: dict[str, list[Any]] = tomllib.loads(text)[name]
    return rows


def shape_of(model: ModelSettings) -> Shape:
    """The shape of a recipe's model, without network.

    Raises DtoError, with the way to give it, if there is neither a config.json on this machine nor
    an entry in the table.
    """
    own = [model.tokenizer] if model.engine == "openai" and model.tokenizer else []
    for name in (model.name, *own):
        if path := config_file(name, model.revision if name == model.name else None):
            data = json.loads(path.read_text(encoding="utf-8"))
            return shape_of_json(data, str(path.parent), name)
        if row := table("models").get(name):
            data = dict(zip(_COLUMNS, row, strict=True))
            return shape_of_json(data, "", f"published for {name}")
    raise DtoError(
        f"the shape of {model.name} is not known here: `hf download {model.name} config.json` "
        "gives it, or set model.name to a folder with the weights"
    )


def config_file(name: str, revision: str | None = None) -> Path | None:
    """The config.json of a folder, or of a model in the cache of the Hub; None if missing."""
    folder = Path(resolve(name))
    if folder.is_dir():
        return folder / "config.json" if (folder / "config.json").is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:  # a path to nothing
        return None
    return Path(cached) if isinstance(cached, str) else None


_PLAIN = {"llama", "qwen2", "qwen3", "mistral"}
"""Architectures whose parameters are counted by formula; others are built without memory."""


def shape_of_json(data: Mapping[str, Any], folder: str = "", source: str = "") -> Shape:
    """The shape of the data of a config.json. Raises DtoError if its parameters are unknown.

    Models of other architectures than the plain ones are counted from `folder`.
    """
    kind = str(data.get("model_type"))
    text = data.get("text_config") or data
    heads = int(text["num_attention_heads"])
    hidden = int(text["hidden_size"])
    per_token = int(text.get("num_experts_per_tok") or 1)
    wide = text.get("moe_intermediate_size") if per_token > 1 else None
    shape = Shape(
        layers=int(text["num_hidden_layers"]),
        hidden=hidden,
        intermediate=int(wide or text["intermediate_size"]) * per_token,
        heads=heads,
        kv_heads=int(text.get("num_key_value_heads") or heads),
        head_dim=int(text.get("head_dim") or hidden // heads),
        vocabulary=int(text["vocab_size"]),
        tied=bool(data.get("tie_word_embeddings", kind in ("gemma", "gemma2", "gemma3"))),
        context=int(text.get("max_position_embeddings") or 2048),
        parameters=0,
        active=0,
        head_norms=kind.startswith("qwen3"),
        source=source,
    )
    if kind in _PLAIN and per_token == 1:
        counted = _counted(shape, kind, bool(data.get("attention_bias")))
    else:
        counted = _built(folder)
    return replace(shape, parameters=counted[0], active=counted[1])


def _counted(shape: Shape, kind: str, bias: bool) -> tuple[int, int]:
    """All parameters and those in a forward pass, of a plain architecture."""
    h, q, k = shape.hidden, shape.queries, shape.keys
    layer = 2 * h * q + 2 * h * k + 3 * h * shape.intermediate + 2 * h
    if kind == "qwen2" or bias:
        layer += q + 2 * k + (h if bias and kind != "qwen2" else 0)
    if shape.head_norms:
        layer += 2 * shape.head_dim
    active = shape.layers * layer + h + shape.table
    return active + (0 if shape.tied else shape.table), active


def _built(folder: str) -> tuple[int, int]:
    """All parameters and those in a forward pass, counted on a model without memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from dto.engines.models import active_parameters

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except Exception as error:  # an unknown config can make transformers raise anything
        reason = " ".join(str(error).split())[:150]
        raise DtoError(f"the parameters of {folder} cannot be counted ({reason})") from None
    total = sum(part.numel() for part in model.parameters())
    return total, active_parameters(model) or total


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What decides the memory of a training step in one process.

    `passes` has rows and tokens of the forward passes whose activations are kept together: the two
    sides of pairs. `weights`, `compute` and `moments` are bytes of a weight, of an activation, and
    of the optimizer for a parameter. `references` counts further copies of the weights.
    """

    passes: tuple[tuple[int, int], ...]
    weights: int = 4
    compute: int = 4
    moments: int = 8
    lora_rank: int = 0
    checkpointing: bool = False
    accumulates: bool = False
    references: int = 0
    shards: int = 1
    cpu: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    """The parts of a peak, in bytes."""

    weights: float
    optimizer: float
    gradients: float
    activations: float
    head: float

    @property
    def total(self) -> float:
        """The peak."""
        return self.weights + self.optimizer + self.gradients + self.activations + self.head


def layer_bytes(shape: Shape, step: Step, rows: int, length: int) -> float:
    """Bytes that the backward pass of one layer reads, for `rows` sequences of `length` tokens."""
    h, q, i = shape.hidden, shape.queries, shape.intermediate
    k = q if rows > 1 else shape.keys
    norms = q + shape.keys if shape.head_norms else 0
    if step.compute == 4:
        token = 4 * (6 * h + 2 * q + 2 * k + 4 * i) + 8 * norms
    else:
        token = (26 if step.weights == 4 else 16) * h + 4 * q + 4 * k + 8 * i + 6 * norms
    mask = rows * length**2 * step.compute if rows > 1 else 0
    return float(rows * length * token + mask)


def step_memory(shape: Shape, step: Step) -> Memory:
    """The peak of a training step. See the module for the formula."""
    lora = bool(step.lora_rank)
    trained = shape.adapters(step.lora_rank) if lora else shape.parameters
    weights = float(step.weights * shape.parameters * (1 + step.references) + 4 * trained * lora)
    weights, gradients, optimizer = (
        size / step.shards for size in (weights, 4.0 * trained, float(step.moments * trained))
    )
    kept = working = ends = 0.0
    for rows, length in step.passes:
        tokens = rows * length
        layer = layer_bytes(shape, step, rows, length)
        working = max(working, step.compute * 3.0 * shape.intermediate * tokens
                      + layer * step.checkpointing)  # fmt: skip
        ends += 20.0 * shape.hidden * tokens
        kept += shape.layers * (
            step.weights * shape.hidden * tokens if step.checkpointing else layer
        )
    if step.shards > 1:  # gathered for a while
        layer = shape.blocks / shape.layers
        working += step.compute * (2 * layer + (1 if shape.tied else 2) * shape.table)
    casts = forward_casts = 0.0
    if step.compute < step.weights:
        cast = 2.0 * shape.blocks
        one = cast / shape.layers
        casts = one if step.checkpointing else cast * (len(step.passes) if lora else 1)
        forward_casts = one if lora and step.checkpointing else cast
    tile = float(_CPU_TILE if step.cpu else _GPU_TILE * step.compute)
    buffers = 0.0 if lora else 8.0 * shape.table
    table = 0.0 if lora else 4.0 * shape.table
    before = gradients if step.accumulates else 0.0
    forward = Memory(weights, optimizer, before, kept + ends + forward_casts, tile)
    early = Memory(weights, optimizer, before, kept + ends + working + casts, tile + buffers)
    late = Memory(weights, optimizer, gradients, working, table)
    return max(forward, early, late, key=lambda memory: memory.total)


def rows_length(recipe: Recipe, shape: Shape) -> int:
    """The tokens of the longest sequence that the recipe's training may read."""
    train, sample = recipe.train, recipe.sample
    context = min(shape.context, recipe.model.context or shape.context)
    answer = train.response_tokens or sample.max_tokens
    longest = {
        "grpo": PROMPT + answer,
        "drqa": 2 * PROMPT + recipe.label.max_tokens + answer,
        "cft": 2 * PROMPT + recipe.label.max_tokens,
        "sft_batch": PROMPT + recipe.label.max_tokens,
        "o1_pruner": PROMPT + sample.max_tokens,
    }
    return min(context, longest.get(train.method, recipe.pair.max_length))


def step_of(recipe: Recipe, shape: Shape, *, cpu: bool = False) -> Step:
    """The training step of a recipe at its largest: every sequence as long as allowed."""
    train = recipe.train
    length = rows_length(recipe, shape)
    sides = {"simpo": ((train.batch_size, length),) * 2, "dpo": ((2 * train.batch_size, length),)}
    copied = train.method == "o1_pruner" or not train.lora_rank  # else the base without adapters
    processes = train.processes or 1
    return Step(
        passes=sides.get(train.method, ((train.batch_size, length),)),
        weights=2 if train.lora_rank and train.bf16 else 4,
        compute=2 if train.bf16 else 4,
        moments=2 if train.optimizer == "adamw_8bit" else 8,
        lora_rank=train.lora_rank,
        checkpointing=train.gradient_checkpointing,
        accumulates=train.gradient_accumulation // processes > 1,
        references=int(copied and has_reference(train)),
        shards=processes if splits(train.accelerate) else 1,
        cpu=cpu,
    )


def dev_memory(recipe: Recipe, shape: Shape, step: Step) -> float:
    """The least memory of a dev measurement on the GPU of the training, in bytes.

    With the training's weights and optimizer. The transformers engine holds a copy of the weights
    with LoRA (merged) and of sharded ones (gathered), and keys and values of sixteen responses of
    full length in the precision of the weights. vLLM, if it shares the GPU, holds its weights and
    one request. More memory makes both faster. On GPUs of its own vLLM takes none of these.
    """
    train = recipe.train
    held = step_memory(shape, step)
    resting = held.weights + held.optimizer
    if train.engine == "vllm":
        if train.engine_gpus:
            return resting
        alone = recipe.model.model_copy(update={"tensor_parallel": 1})  # it has this GPU only
        return resting + sum(engine_memory(alone, shape))
    number, copy = step.weights, 0
    if step.shards > 1:
        number = copy = 2 if train.bf16 else 4
    elif step.lora_rank:
        copy = number
    rows = GROWTH * min(LEAST_ROWS, recipe.model.slots)
    tokens = rows * (PROMPT + recipe.sample.max_tokens)
    return resting + copy * shape.parameters + tokens * shape.kv_bytes(number)


def engine_memory(model: ModelSettings, shape: Shape) -> tuple[float, float]:
    """Bytes of an engine's weights on each GPU, and of one request that fills the context."""
    number = 4 if model.dtype == "float32" else 2
    context = min(shape.context, model.context or shape.context)
    parts = model.tensor_parallel if model.engine == "vllm" else 1
    return number * shape.parameters / parts, context * shape.kv_bytes(number) / parts


def training_peak(recipe: Recipe, shape: Shape, *, cpu: bool = False) -> float:
    """The larger of a training step's peak and the least memory of a dev measurement."""
    step = step_of(recipe, shape, cpu=cpu)
    return max(step_memory(shape, step).total, dev_memory(recipe, shape, step))


def fits(needed: float, memory: float) -> str:
    """`yes`, `tight` (within the formula's tolerance) or `no`."""
    if needed <= (1 - TOLERANCE) * (memory - RESERVED):
        return "yes"
    return "tight" if needed <= memory * (1 + TOLERANCE) else "no"


def remedies(recipe: Recipe, gpus: int = 1) -> Iterator[dict[str, Any]]:
    """Changes of a recipe that lower the memory of its training.

    Dev responses by vLLM, LoRA, checkpointing, bf16, all GPUs: each alone, then more and more of
    them together, then with shorter rows.
    """
    train = recipe.train
    every: list[tuple[bool, dict[str, Any]]] = [
        (recipe.model.engine == "vllm" and train.engine == "transformers",
         {"train.engine": "vllm"}),
        (not train.lora_rank, {"train.lora_rank": 32}),
        (not train.gradient_checkpointing, {"train.gradient_checkpointing": True}),
        (not train.bf16, {"train.bf16": True}),
        (gpus > 1 and not train.gradient_accumulation % gpus,
         {"train.processes": gpus, "train.accelerate": "fsdp"}),
    ]  # fmt: skip
    single = [change for possible, change in every if possible]
    yield from single
    together: dict[str, Any] = {}
    for change in single:
        together = together | change
        yield together
    paired = train.method in ("simpo", "dpo", "sft")
    if paired and train.batch_size > 1:
        rows = train.gradient_accumulation * train.batch_size
        together = together | {"train.batch_size": 1, "train.gradient_accumulation": rows}
        yield together
    length = recipe.pair.max_length if paired else recipe.sample.max_tokens
    while length >= 2048:
        length //= 2
        yield together | {"pair.max_length" if paired else "sample.max_tokens": length}


def remedy(
    recipe: Recipe, shape: Shape, memory: float, gpus: int = 1, *, cpu: bool = False
) -> dict[str, Any] | None:
    """The first of the remedies with which the training fits into `memory` bytes; None if none."""
    for change in remedies(recipe, gpus):
        changed = recipe
        for key, value in change.items():
            group, name = key.split(".")
            settings = getattr(changed, group).model_copy(update={name: value})
            changed = changed.model_copy(update={group: settings})
        if training_peak(changed, shape, cpu=cpu) <= memory - RESERVED:
            return change
    return None


def refusal(
    recipe: Recipe, shape: Shape, device: str, memory: float, gpus: int = 1, *, cpu: bool = False
) -> str:
    """Why the recipe's training cannot fit on a device, with a way out; empty if it may fit.

    It cannot fit if the estimate exceeds the memory by more than the tolerance.
    """
    needed = training_peak(recipe, shape, cpu=cpu)
    if fits(needed, memory) != "no":
        return ""
    change = remedy(recipe, shape, memory, gpus, cpu=cpu)
    way = f"use a {'machine' if cpu else 'GPU'} of {needed / (1 - TOLERANCE) / GIB:,.0f} GiB"
    if change is not None:
        way = " ".join(f"--set {key}={str(value).lower()}" for key, value in change.items())
    own = step_memory(shape, step_of(recipe, shape, cpu=cpu)).total
    what = f"a step of {recipe.train.method}" if own == needed else "a dev measurement"
    return (
        f"train: {what} with {recipe.model.name} takes about {needed / GIB:,.0f} GiB, {device} has "
        f"{memory / GIB:,.0f}{' free' if cpu else ''}: {way}, or --force to try it anyway (formula "
        f"of dto/takes.py, ± {TOLERANCE:.0%})"
    )
