"""What vLLM is started with: its environment, and its arguments on a GPU and on a CPU."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dto.engines.vllm_children import SWITCH
from dto.errors import EngineError

if TYPE_CHECKING:
    from dto.recipe import ModelSettings

INSTALL = "make setup-gpu with CUDA, make setup-vllm without"
LOGPROBS = 20  # vLLM's own limit, and that of servers
PREFILL_TOKENS = 4096  # CPU: of all prompts that are read in one step
BLOCK = 32  # CPU: tokens; by default 128, and shorter prefixes are never found again

_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    SWITCH: "1",
}
# AsyncLLM's core is a child all the same; without the first, the model is in a child of that child,
# and three processes spin. A second thread makes small models slower, many times over.
_CPU_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}


def model_arguments(settings: ModelSettings, path: str, cpu: bool) -> dict[str, Any]:
    """Which model, in which precision, with how long a context; a CPU computes in float32."""
    return {
        "model": path,
        "revision": settings.revision,
        "max_model_len": settings.context,
        "dtype": "float32" if cpu and settings.dtype == "auto" else settings.dtype,
    }


def serving_arguments(settings: ModelSettings, cpu: bool, context: int) -> dict[str, Any]:
    """How it is served."""
    common: dict[str, Any] = {
        "enable_prefix_caching": True,
        "max_logprobs": LOGPROBS,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "tensor_parallel_size": settings.tensor_parallel,
    }
    if not cpu:
        return common | {"gpu_memory_utilization": settings.gpu_memory}
    # A seed of its own together with a prompt that is read in parts kills the core on a CPU.
    return common | {
        "enforce_eager": True,
        "kv_cache_memory_bytes": settings.cache_bytes,
        "block_size": BLOCK,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(context, PREFILL_TOKENS),
        "max_num_seqs": settings.slots,
    }


@contextmanager
def environment(cpu: bool = False) -> Iterator[None]:
    """Variables that vLLM and its children read, unless the user has set them; taken back after."""
    wanted = _ENVIRONMENT | (_CPU_ENVIRONMENT if cpu else {})
    added = [key for key in wanted if key not in os.environ]
    os.environ.update({key: wanted[key] for key in added})
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Quiet, and one line where something goes wrong."""
    logger = logging.getLogger("vllm")
    if logger.level == logging.NOTSET:  # vLLM gives it a level only once an engine starts
        logger.setLevel(logging.ERROR)
    try:
        yield
    except EngineError:
        raise
    except Exception as error:  # vLLM raises of every kind
        reason = " ".join(str(error).split())[:400]
        raise EngineError(f"model {name!r} cannot be served by vllm: {reason}") from None
