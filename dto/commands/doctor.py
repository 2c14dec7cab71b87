"""`dto doctor`, the GPUs in the plan, and what this machine lacks for a recipe.

Nothing is fetched, no key is shown, and no server is asked.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from math import inf, isinf, isnan
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from dto.commands import indented
from dto.engines import usable
from dto.engines.checks import missing_weights, settled
from dto.engines.server import server_flags
from dto.errors import DtoError
from dto.extension import is_import_path
from dto.pipeline import STAGES, needed, stage_of
from dto.recipe import Recipe
from dto.reporting.table import Table
from dto.runs.reader import RunReader
from dto.runs.run import OpenRun, refuse
from dto.source import Source
from dto.takes import (
    GIB,
    RESERVED,
    TOLERANCE,
    Shape,
    dev_memory,
    engine_memory,
    fits,
    refusal,
    shape_of,
    step_memory,
    step_of,
    table,
    training_peak,
)
from dto.tasks import TASKS
from dto.training.devices import visible_devices
from dto.training.train import missing_packages

LARGE = 300_000_000
"""Parameters from which a model is too large for a CPU in practice."""
SMALL = 50_000_000
"""Parameters below which a training fits anywhere: no estimate refuses it."""


class Gpu(NamedTuple):
    """A GPU: bytes of memory, and peak FLOPs per second in bfloat16 and float32 (0: unknown)."""

    name: str
    memory: float
    bf16: float = 0.0
    fp32: float = 0.0


@cache
def known_gpus() -> dict[str, Gpu]:
    """The GPUs that `--gpu` knows."""
    rows = table("gpus").items()
    return {
        key: Gpu(name, mib * 2**20, bf16 * 1e12, fp32 * 1e12)
        for key, (name, mib, bf16, fp32) in rows
    }


def gpu_named(name: str) -> Gpu:
    """The GPU of this name. Raises DtoError for an unknown name."""
    gpus = known_gpus()
    if name.lower() not in gpus:
        raise DtoError(f"--gpu {name} is not known: choose from {', '.join(gpus)}")
    return gpus[name.lower()]


def gpu_called(name: str, memory: float) -> Gpu:
    """A GPU as its driver calls it; its peaks are 0 if the table does not have its model."""
    words = name.upper().replace("-", " ").split()
    for gpu in known_gpus().values():
        if all(part in words for part in gpu.name.split() if not part.endswith("GB")):
            return Gpu(name, memory, gpu.bf16, gpu.fp32)
    return Gpu(name, memory)


@dataclass(frozen=True, slots=True)
class Machine:
    """The GPUs of this machine, and bytes of memory: all of it, and what is free now."""

    gpus: tuple[Gpu, ...]
    memory: float
    free: float


def this_machine() -> Machine:
    """Look at this machine. Memory is limited by the container, if there is one."""
    import torch

    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found = torch.cuda.get_device_properties(index)
        gpus.append(gpu_called(found.name, float(found.total_memory)))
    total = free = inf  # on Windows it stays unknown
    try:
        total = free = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024.0 for line in lines if "MemAvailable" in line)
        limit = float(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = float(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        total, free = min(total, limit), min(free, limit - used)
    except (AttributeError, OSError, ValueError, StopIteration):
        pass  # no limit, or not Linux
    return Machine(tuple(gpus), total, free)


def free_disk(place: Path) -> float:
    """Free bytes of the disk that has, or would have, this folder."""
    while not place.exists() and place != place.parent:
        place = place.parent
    return float(shutil.disk_usage(place).free)


def hub_cache() -> Path:
    """The folder of files that were fetched from the Hub."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def hub_token() -> bool:
    """Whether there is a token for the Hub: `HF_TOKEN`, or that of `hf auth login`."""
    from huggingface_hub import get_token

    return get_token() is not None


def fetched(recipe: Recipe) -> Iterator[str]:
    """What the run downloads at its start, because it is not on this machine."""
    if recipe.model.engine != "openai" and missing_weights(recipe.model, "left"):
        yield f"model {recipe.model.name}"
    stages = needed(recipe)
    sources = [recipe.problems.source, recipe.problems.test_source, recipe.sample.imported]
    for name in dict.fromkeys([*filter(None, sources), *recipe.evaluate.tasks]):
        hub = _hub_id(name)
        if hub and "problems" in stages and not _dataset_here(hub):
            yield f"dataset {hub}" + (f" (task {name})" if name != hub else "")


def _hub_id(name: str) -> str:
    """The Hub dataset that a source reads; empty for anything else."""
    if name == "chains" or is_import_path(name):
        return ""
    task = TASKS.get(name)
    if task is not None:
        return task.hub
    source = Source.parse(name)
    return source.dataset[0] if source.kind == "hub" else ""


def _dataset_here(hub: str) -> bool:
    """Whether `datasets` has prepared a dataset of the Hub before, in any version."""
    from datasets import config

    name = hub.replace("/", "___")
    names = {path.name.lower() for path in Path(config.HF_DATASETS_CACHE).glob("*")}
    return name.lower() in names


def lacks(recipe: Recipe, shape: Shape | None, machine: Machine) -> Iterator[str]:
    """What a run of this recipe needs and this machine has not, each with the way out.

    `shape` None: the memory cannot be checked.
    """
    yield from _engines_missing(recipe)
    downloads = list(fetched(recipe))
    if downloads and os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        yield f"{', '.join(downloads)}: not here, and HF_HUB_OFFLINE is set: unset it"
    gated = [name for name in downloads if "gpqa" in name.lower()]
    if gated and not hub_token():
        yield f"a token of the Hub for {gated[0]}, which is gated: hf auth login, or set HF_TOKEN"
    train = recipe.train
    trains = "train" in needed(recipe) and train.method != "none"
    if trains:
        yield from missing_packages(recipe)
    if shape is None:
        return
    yield from _memory_missing(recipe, shape, machine, trains)


def _engines_missing(recipe: Recipe) -> Iterator[str]:
    states = dict(usable())
    asked = [("model", recipe.model)]
    evaluates = recipe.evaluate.engine or recipe.model.engine
    for group, engine in (("train", recipe.train.engine), ("evaluate", evaluates)):
        if engine != recipe.model.engine and not states.get(engine, "ready").startswith("ready"):
            yield f"engine {engine} of {group}: {states[engine]}"
    judged = recipe.prune.judge == "llm" or is_import_path(recipe.prune.judge)
    if recipe.judge is not None and judged and "prune" in needed(recipe):
        asked.append(("judge", recipe.judge))
    if recipe.batch.teacher is not None and "batch" in needed(recipe):
        asked.append(("batch.teacher", recipe.batch.teacher))
    for group, settings in asked:
        state = states.get(settings.engine, "ready")
        if not state.startswith("ready"):
            yield f"engine {settings.engine} of {group}: {state}"
        own = settings.engine == "openai" and settings.server is None
        if own and not os.environ.get(settings.api_key):
            yield f"a key in {settings.api_key}, for OpenAI's own server ({group}): export it"


def _memory_missing(recipe: Recipe, shape: Shape, machine: Machine, trains: bool) -> Iterator[str]:
    model, gpus = recipe.model, machine.gpus
    served = model.engine != "openai"
    if not gpus:
        if served and shape.parameters > LARGE and model.device != "cpu":
            size = shape.parameters / 1e9
            yield f"a GPU: {size:.2g} billion parameters are too slow on a CPU"
            return
        peak = training_peak(recipe, shape, cpu=True) if trains else 0.0
        if peak > machine.free:
            refused = fits(peak, machine.free) == "no"
            yield (
                f"memory to train on the CPU: about {peak / GIB:,.1f} GiB, "
                f"{machine.free / GIB:,.1f} are free"
                + ("; `dto run` refuses to start without --force" if refused else "")
            )
        return
    if served and model.engine == "vllm" and model.tensor_parallel > len(gpus):
        yield f"{model.tensor_parallel} GPUs for model.tensor_parallel: there are {len(gpus)}"
    processes = recipe.train.processes or 1
    if trains and processes > len(gpus):
        yield f"{processes} GPUs for train.processes: there are {len(gpus)}"
    apart = recipe.train.engine_gpus if trains and recipe.train.engine == "vllm" else ()
    try:
        visible_devices(apart, processes, [gpu.name for gpu in gpus])
    except DtoError as error:
        yield str(error)
    smallest = min(gpus, key=lambda gpu: gpu.memory)
    weights, request = engine_memory(model, shape)
    if served and weights + request > model.gpu_memory * smallest.memory - RESERVED:
        yield (
            f"memory to serve the model: {(weights + request) / GIB:,.1f} GiB, {smallest.name} has "
            f"{smallest.memory / GIB:,.0f}: lower model.context or raise model.tensor_parallel"
        )
    if trains and fits(training_peak(recipe, shape), smallest.memory) == "no":
        yield "memory to train: see the table above; `dto run` refuses to start without --force"


def check_training(
    recipe: Recipe, place: Path, stages: Collection[str] | None = None, *, anew: bool = False
) -> None:
    """Raise DtoError, before anything is sampled, for a training that this machine cannot do.

    Its GPU or, without one, its free memory is too small. Not checked: comparisons, small
    models, models of unknown shape, and a training of the run in `place` that is finished
    and matches the recipe, unless it is done `anew`. `stages` are those to be run; None: all.
    """
    trains = recipe.train.method != "none" and "train" in (stages or needed(recipe))
    if recipe.compare.methods or not trains or (not anew and _is_trained(recipe, place)):
        return
    try:
        shape = shape_of(recipe.model)
    except DtoError:
        return
    if shape.parameters < SMALL:
        return
    machine = this_machine()
    if not machine.gpus or recipe.model.device == "cpu":
        reason = refusal(recipe, shape, "this machine", machine.free, cpu=True)
    else:
        smallest = min(machine.gpus, key=lambda gpu: gpu.memory)
        reason = refusal(recipe, shape, smallest.name, smallest.memory, len(machine.gpus))
    if reason:
        raise DtoError(reason)


def _is_trained(recipe: Recipe, place: Path) -> bool:
    """Whether the run in `place` has a finished training that this recipe would keep."""
    if RunReader(place).manifest("train") is None:
        return False
    recipe = settled(recipe)
    run = OpenRun(place, recipe, FileLock(place / ".lock"), recompute=refuse)  # reads only
    stale = run.stale([stage_of(recipe, name) for name in STAGES])
    return not any(each.stage == "train" for each in stale)


def disk_missing(needs: float, downloads: float, place: Path) -> Iterator[str]:
    """Room on the disks of the run and of the Hub's cache, in bytes, that is not there."""
    cache_ = hub_cache()
    for what, bytes_, folder in (("the run", needs, place), ("the download", downloads, cache_)):
        free = free_disk(folder)
        if bytes_ > free:
            yield (
                f"disk for {what}: about {bytes_ / GIB:,.0f} GiB, {free / GIB:,.0f} are free at "
                f"{folder}"
            )


def memory_lines(recipe: Recipe, shape: Shape, trains: bool, *, cpu: bool = False) -> Iterator[str]:
    """The peak memory of sampling, training and dev measurements, with its parts."""
    model = recipe.model
    yield "Memory at the peak, beside Python and its libraries" if cpu else "Memory at the peak"
    weights, request = engine_memory(model, shape)
    context = min(shape.context, model.context or shape.context)
    if model.engine == "openai":
        yield "sampling  on the server"
    else:
        more = ""
        if model.engine == "vllm":
            more = f"; vLLM takes {model.gpu_memory:.0%} of the GPU for as many as fit"
        yield from indented(
            f"weights {_gib(weights)}, and {_gib(request)} for each request of {context:,} "
            f"tokens{more}",
            "sampling  ",
        )
    if not trains:
        return
    step = step_of(recipe, shape, cpu=cpu)
    peak = step_memory(shape, step)
    longest = " + ".join(f"{rows} × {length:,}" for rows, length in step.passes)
    parts = ("weights", "optimizer", "gradients", "activations", "head")
    named = ", ".join(f"{part} {_gib(getattr(peak, part))}" for part in parts)
    yield from indented(f"{_gib(peak.total)}: {named}; for {longest} tokens", "training  ")
    where = "in the training's process"
    if recipe.train.engine == "vllm":
        where = "beside vLLM, which " + (
            "has GPUs of its own" if recipe.train.engine_gpus else "shares the GPU"
        )
    least = _gib(dev_memory(recipe, shape, step))
    yield from indented(f"at least {least} for dev responses {where}", "dev       ")


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f} GiB" if size >= 0.05 * GIB else f"{size / 2**20:,.1f} MiB"


def fit_table(
    recipe: Recipe, shape: Shape, trains: bool, hours: Mapping[Gpu, tuple[float, float]]
) -> Table:
    """On which GPUs a recipe fits; `hours` has the hours of the whole run, from and to."""
    weights, request = engine_memory(recipe.model, shape)
    served = recipe.model.engine != "openai"
    step = step_of(recipe, shape)
    rows = []
    for gpu, (low, high) in hours.items():
        room = recipe.model.gpu_memory * gpu.memory - RESERVED - weights
        sampling = "server" if not served else "no"
        if served and room >= request:
            sampling = f"yes, {room / request:,.0f} at once"
        cells = ["–", "–"]
        if trains:
            cells = [
                fits(step_memory(shape, step).total, gpu.memory),
                fits(dev_memory(recipe, shape, step), gpu.memory),
            ]
        time = "unknown" if isnan(low) else f"{low:,.0f}–{high:,.0f}"
        rows.append((gpu.name, f"{gpu.memory / GIB:,.0f}", sampling, *cells, time))
    head = ("GPU", "GiB", "sampling", "training step", "dev", "hours in all")
    note = f"tight: within the formula's {TOLERANCE:.0%}, which was checked on CPUs only."
    return Table("Where it fits", head, tuple(rows), notes=(note,))


def diagnose(place: Path = Path("runs")) -> Iterator[tuple[bool, str, str]]:
    """Each thing that dto uses: whether dto can run without it or has it, its name and state."""
    for name in sorted(_required()):
        if _version(name) is None:
            yield False, name, "missing: dto cannot run without it; pip install dto"
    from dto.runs.manifest import provenance

    versions: dict[str, Any] = provenance()["versions"]
    yield True, "versions", ", ".join(f"{name} {number}" for name, number in versions.items())
    machine = this_machine()
    if not machine.gpus:
        yield True, "GPU", "missing: needed for models above a few hundred million parameters"
    for gpu in machine.gpus:
        yield True, "GPU", f"ok: {gpu.name}, {gpu.memory / GIB:,.0f} GiB"
    ram = f"{machine.memory / GIB:,.0f} GiB, {machine.free / GIB:,.0f} free"
    if isinf(machine.free):
        ram = "unknown on this system"
    yield True, "memory", f"ok: {ram}; {os.cpu_count()} cores"
    yield True, "disk, runs", f"ok: {free_disk(place) / GIB:,.0f} GiB free at {place.resolve()}"
    yield True, "disk, Hub", f"ok: {free_disk(hub_cache()) / GIB:,.0f} GiB free at {hub_cache()}"
    for engine, state in usable():
        yield True, engine, f"ok: {state}" if state.startswith("ready") else f"missing: {state}"
    for flag, reason in server_flags():
        yield True, "vLLM server", f"{flag}: {reason}"
    peft = (
        "ok"
        if find_spec("peft")
        else "missing: needed for train.lora_rank; pip install 'dto[peft]'"
    )
    yield True, "LoRA", peft
    yield True, "sandbox", _sandbox()
    token = (
        "ok" if hub_token() else "missing: only gated models and datasets and `dto publish` need it"
    )
    yield True, "HF_TOKEN", token if token == "ok" else f"{token}; hf auth login"
    key = os.environ.get("OPENAI_API_KEY")
    yield True, "OPENAI_API_KEY", "ok" if key else "missing: only OpenAI's own server needs it"


def _sandbox() -> str:
    """The isolation in which programs that answer problems can run here."""
    from dto.grading.sandbox import Sandbox, SandboxError

    try:
        mode = asyncio.run(Sandbox(1).mode())
    except SandboxError as error:
        return f"missing: code answers cannot run here ({error})"
    if mode == "guards":
        return "missing: code answers run without isolation; install bubblewrap"
    return f"ok: code answers run in {mode}, with --allow-code-execution"


def _required() -> set[str]:
    """The distributions that dto cannot run without."""
    names = set()
    for line in requires("dto") or []:
        if "extra ==" not in line:
            names.add(line.split(";")[0].split("[")[0].split(">")[0].split("<")[0].strip())
    return names


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
