"""Whether this machine has the devices that a training asks for."""

from __future__ import annotations

import os
from collections.abc import Sequence

from dto.errors import DtoError
from dto.recipe import Recipe


def check_devices(recipe: Recipe, processes: int) -> None:
    """Raise DtoError for GPUs that do not exist, and for a model split over CPUs.

    On a CPU any number of processes can train together, each with the whole model (gloo):
    accelerate 1.15 ignores FSDP without an accelerator.
    """
    import torch

    from dto.training.weights import on_cpu

    train = recipe.train
    if on_cpu(recipe):
        if train.accelerate:
            raise DtoError(
                f"train.accelerate = {train.accelerate!r} splits a model over GPUs, but "
                "this training runs on CPUs: remove it"
            )
    elif processes > (count := torch.accelerator.device_count()):
        raise DtoError(
            f"train.processes = {processes}, but this machine shows {count} GPU(s): set it to "
            f"{count}, or show more with CUDA_VISIBLE_DEVICES"
        )
    if train.engine == "vllm" and train.engine_gpus:
        visible_devices(train.engine_gpus, processes, visible())


def visible_devices(gpus: Sequence[int], processes: int, visible: Sequence[str]) -> str:
    """The core's CUDA_VISIBLE_DEVICES for `train.engine_gpus`.

    `visible` names the GPUs of this machine that may be used; the first `processes` of them train.
    Raises DtoError for a GPU that does not exist, that trains, or that is named twice.
    """
    for gpu in gpus:
        reason = ""
        if not 0 <= gpu < len(visible):
            reason = f"this machine shows {len(visible)}, counted from 0"
        elif gpu < processes:
            reason = f"GPUs 0 to {processes - 1} train" if processes > 1 else "GPU 0 trains"
        elif list(gpus).count(gpu) > 1:
            reason = "that twice"
        if reason:
            raise DtoError(
                f"train.engine_gpus names GPU {gpu}, and {reason}: name others once each, or leave "
                "it empty to share the GPU of the training"
            )
    return ",".join(visible[gpu] for gpu in gpus)


def visible() -> list[str]:
    """The names of the GPUs that may be used, as CUDA_VISIBLE_DEVICES gives them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(number) for number in range(count)]
