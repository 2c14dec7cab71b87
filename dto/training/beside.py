"""vLLM beside a training: dev responses, judgements and GRPO's responses (`train.engine: vllm`).

One engine serves the whole training. vLLM's core, which holds the weights, is a child process that
ends with this one (dto/engines/vllm.py). Only token ids and logprobs pass between them: prompts,
seeds and grading stay here. Before each use the trainer's weights are handed over. They are written
to `RUN/train/handed` in the engine's dtype, completely or not at all, and the core reads them in
place (vLLM's `reload_weights`). The prefix cache is then emptied. With LoRA only the adapters are
handed over if vLLM serves adapters of this architecture, else merged weights.

With `train.engine_gpus` the core has GPUs of its own. Otherwise it shares the GPU of the training:
it sleeps during the training steps, and its memory is free (vLLM's sleep mode).

If several processes train, the first one owns the engine and samples for all of them.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import save_file

from dto.engines.models import origin
from dto.engines.vllm import VLLMEngine
from dto.errors import EngineError
from dto.protocols import Completion, Engine, Prompt, Sampling
from dto.recipe import Recipe
from dto.runs.manifest import peak_memory
from dto.training.checkpoints import HANDED
from dto.training.devices import visible, visible_devices
from dto.training.weights import CHECKPOINTED, answering, sharding, whole
from dto.usage import Usage

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OPTIMIZER_BYTES = 8
"""Bytes per trained parameter that AdamW takes at its first step (two moments in float32)."""
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values of vLLM's `max_lora_rank`."""
_LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")
"""Variables of `accelerate launch`, by their beginnings; the core would join its process group."""

Answers = Callable[[Engine, Sequence[Any]], Awaitable[tuple[list[list[Any]], Usage]]]


@contextmanager
def _variables(changes: Mapping[str, str]) -> Iterator[None]:
    """Start processes with these variables, and without those of `accelerate launch`."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(_LAUNCH):
            del os.environ[name]
    os.environ.update(changes)
    try:
        yield
    finally:
        for name in changes:
            os.environ.pop(name, None)
        os.environ.update(before)


class HandedEngine(VLLMEngine):
    """vLLM whose weights are replaced between uses.

    Departs from the protocol: logprobs are those of the distribution that is sampled from, after
    the temperature, since GRPO compares them with the trainer's.
    """

    def __init__(self, recipe: Recipe, trained: int) -> None:
        """`trained` is the number of parameters whose optimizer state this process holds.

        Raises EngineError if vLLM cannot serve the model, and DtoError for unusable GPUs.
        """
        name, revision = origin(recipe.model)
        model = recipe.model.model_copy(update={"name": name, "revision": revision})
        super().__init__(model, name)
        gpus, rank = recipe.train.engine_gpus, recipe.train.lora_rank
        if gpus and self._cpu:
            raise EngineError(
                f"train.engine_gpus is {list(gpus)}, and vLLM finds no GPU: leave it empty"
            )
        self._gpus = len(gpus)
        self._variables: dict[str, str] = {}
        if gpus:
            devices = visible_devices(gpus, PartialState().num_processes, visible())
            self._variables = {"CUDA_VISIBLE_DEVICES": devices}
        self._sleeps = not gpus and not self._cpu
        self._trained = trained
        self._rank = next((most for most in _RANKS if most >= rank), 0) if rank else 0
        self.adapters = bool(self._rank) and self.takes_adapters
        self._handed = 0

    def serving(self) -> dict[str, Any]:
        """The recipe's arguments, and those for logprobs, adapters, GPUs and sleep."""
        more: dict[str, Any] = {
            "logprobs_mode": "processed_logprobs",
            "tensor_parallel_size": self._gpus or 1,
        }
        if self.adapters:
            more |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": self._rank}
        if self._sleeps:
            more |= {"enable_sleep_mode": True, "gpu_memory_utilization": self._share()}
        return super().serving() | more

    def _share(self) -> float:
        """The share of the GPU's memory beside a training whose optimizer has yet to start."""
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        share = self._settings.gpu_memory * (free - OPTIMIZER_BYTES * self._trained) / total
        if share <= 0:
            raise EngineError(
                f"train.engine vllm: the training leaves no memory on its GPU ({free / 2**30:.1f} "
                "of it free before the optimizer): set train.engine_gpus or train.lora_rank"
            )
        return round(share, 3)

    async def __aenter__(self) -> HandedEngine:
        """Start the core, on its GPUs; on a shared GPU it sleeps at once."""
        with _variables(self._variables):
            await super().__aenter__()
        await self.sleep()
        return self

    async def sleep(self) -> None:
        """Free the memory of a shared GPU; needs no running requests."""
        if self._sleeps and self._llm is not None:
            # The base weights under adapters are kept on the CPU; other weights are handed over.
            await self._llm.sleep(level=1 if self.adapters else 2)

    async def take(self, folder: Path) -> None:
        """Wake up and serve the weights, or adapters, in a folder.

        Raises EngineError if the core has died or cannot take them.
        """
        llm = self._llm
        self._handed += 1
        try:
            if self._sleeps:
                torch.cuda.empty_cache()
                await llm.wake_up(["weights"])
            if self.adapters:
                from vllm.lora.request import LoRARequest

                if self.lora is not None:
                    await llm.remove_lora(self.lora.lora_int_id)
                self.lora = LoRARequest(f"handed-{self._handed}", self._handed, str(folder))
                await llm.add_lora(self.lora)
            else:
                await llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
            if self._sleeps:
                await llm.wake_up(["kv_cache"])
            if not await llm.reset_prefix_cache(reset_running_requests=True):
                raise RuntimeError("its prefix cache cannot be emptied")
        except Exception as error:  # vLLM raises many kinds of errors
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            what = f"did not take the weights ({reason})"
            if type(error).__name__ == "EngineDeadError":
                what = "has died, perhaps for lack of memory"
            raise EngineError(
                f"train.engine vllm: vLLM's core for {self.model!r} {what}; checkpoints are kept: "
                "run the same command to resume"
            ) from error


class Beside:
    """The engine of a training, while it is entered. All processes of the training hold one.

    `directory` is RUN/train; `model` is the model to be trained, on its device.
    """

    def __init__(self, recipe: Recipe, model: PreTrainedModel, directory: Path) -> None:
        if not hasattr(model, "peft_config"):  # a comparison measures the base without adapters
            train = recipe.train.model_copy(update={"lora_rank": 0})
            recipe = recipe.model_copy(update={"train": train})
        self._recipe = recipe
        self._folder = directory / HANDED
        self._world = PartialState()
        trained = sum(part.numel() for part in model.parameters() if part.requires_grad)
        self._trained = trained // (self._world.num_processes if sharding() else 1)
        self._loop: asyncio.Runner | None = None  # one loop for all uses: vLLM is bound to it
        self._engine: HandedEngine | None = None
        self._adapters = False
        self._kept = False  # the weights stay the same for a while
        self._has_weights = False  # the engine has them, and is awake

    def __enter__(self) -> Beside:
        """Start the engine, in the first process. Raises EngineError if it cannot start."""
        if self._world.is_main_process:
            self._engine = HandedEngine(self._recipe, self._trained)
            self._loop = asyncio.Runner()
            try:
                self._loop.run(self._engine.__aenter__())
            except BaseException:
                self.__exit__()
                raise
        adapters = [self._engine is not None and self._engine.adapters]
        broadcast_object_list(adapters)
        self._adapters = adapters[0]
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop the engine and delete the weights that were handed over."""
        if self._engine is None or self._loop is None:
            return
        try:
            self._loop.run(self._engine.__aexit__(*exc))
        finally:
            self._loop.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def answer(
        self, model: PreTrainedModel, rows: Sequence[Any], answers: Answers
    ) -> tuple[list[list[Any]], Usage]:
        """The results of `answers(engine, rows)` under the model's weights, for these rows.

        All processes call this, each with rows of its own, which may be none. The usage is in the
        first process. Raises EngineError if the engine has died.
        """
        if not self._has_weights:
            self._hand_over(model)
        shares = gather_object([list(rows)])
        together: list[Any] = [None]
        if self._engine is not None and self._loop is not None:
            engine = self._engine

            async def work() -> tuple[list[list[Any]], Usage]:
                if not self._has_weights:
                    await engine.take(self._folder)
                results = await answers(engine, [row for share in shares for row in share])
                if not self._kept:
                    await engine.sleep()
                return results

            together = [self._loop.run(work())]
        self._has_weights = self._kept
        broadcast_object_list(together)
        groups, usage = together[0]
        start = sum(map(len, shares[: self._world.process_index]))
        return groups[start : start + len(rows)], usage if self._engine else Usage()

    @contextmanager
    def same_weights(self) -> Iterator[None]:
        """Hand the weights over once for all uses in this context, which must not change them."""
        self._kept = True
        try:
            yield
            if self._has_weights and self._engine is not None and self._loop is not None:
                self._loop.run(self._engine.sleep())
        finally:
            self._kept = self._has_weights = False

    def peak_memory(self) -> int:
        """Peak resident memory of vLLM's core in bytes, in the first process; unknown: 0."""
        cores = [
            child.pid
            for child in multiprocessing.active_children()
            if child.name.startswith("EngineCore")
        ]
        return sum(peak_memory(core) for core in cores if core is not None)

    def _hand_over(self, model: PreTrainedModel) -> None:
        """Write the weights; all processes take part, since each may hold a shard."""
        unfinished = self._folder.with_name(f".{HANDED}.part")
        writes = self._engine is not None
        dtype = self._engine.dtype if self._engine is not None else torch.float32
        if writes:
            shutil.rmtree(unfinished, ignore_errors=True)
        if self._adapters:
            write_adapters(model, unfinished, writes)
        else:
            merges = self._recipe.train.lora_rank > 0
            with answering(model, self._recipe) if merges else nullcontext(model) as plain:
                write_weights(plain, unfinished, dtype, writes)
        if writes:
            shutil.rmtree(self._folder, ignore_errors=True)
            unfinished.rename(self._folder)


def open_beside(
    recipe: Recipe, model: PreTrainedModel, directory: Path
) -> AbstractContextManager[Beside | None]:
    """The engine that `train.engine` asks for beside a training; None for `transformers`."""
    if recipe.train.engine == "transformers":
        return nullcontext(None)
    return Beside(recipe, model, directory)


def write_weights(
    model: PreTrainedModel, folder: Path, dtype: torch.dtype, writes: bool = True
) -> None:
    """Write all weights, gathered from all processes, in `dtype`; only one process `writes`.

    A tied head is written too, in a file of its own: vLLM's CPU build keeps a packed copy of it,
    which `reload_weights` replaces only if the head is among the weights.
    """
    state = _gathered(model.state_dict(keep_vars=True), dtype, writes)
    if not writes:
        return
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    name = next((f"{name}.weight" for name, part in model.named_modules() if part is head), "")
    tied = {name: state[name].clone()} if name in state else {}
    model.save_pretrained(folder, state_dict=state, max_shard_size="100TB")
    if tied and model.config.get_text_config().tie_word_embeddings:
        save_file(tied, folder / "tied.safetensors", {"format": "pt"})


def write_adapters(model: Any, folder: Path, writes: bool = True) -> None:
    """Write the LoRA adapters, gathered from all processes; only one process `writes`."""
    from peft import get_peft_model_state_dict

    own = get_peft_model_state_dict(
        model, dict(model.state_dict(keep_vars=True)), save_embedding_layers=False
    )
    state = _gathered(own, None, writes)
    if not writes:
        return
    adapters = model.peft_config["default"]
    save_file(state, _made(folder) / "adapter_model.safetensors", {"format": "pt"})
    adapters.save_pretrained(folder)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _gathered(
    state: Mapping[str, torch.Tensor], dtype: torch.dtype | None, keeps: bool
) -> dict[str, torch.Tensor]:
    """Tensors on the CPU, whole where they are sharded; one tensor for those that are tied."""
    gathered: dict[str, torch.Tensor] = {}
    seen: dict[int, torch.Tensor] = {}
    for name, tensor in state.items():
        if id(tensor) not in seen:
            each = whole(tensor)
            target = dtype if each.is_floating_point() else None
            seen[id(tensor)] = each.to("cpu", target).contiguous() if keeps else tensor
        gathered[name.replace(CHECKPOINTED, "")] = seen[id(tensor)]
    return gathered


class Recorded:
    """An engine that asks for logprobs with each completion and keeps them by token ids."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.logprobs: dict[tuple[int, ...], tuple[float, ...]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def complete(self, prompt: Prompt, sampling: Sampling, n: int = 1) -> list[Completion]:
        """Sample as the engine does."""
        asked = replace(sampling, logprobs=sampling.logprobs or 0)
        completions = await self._engine.complete(prompt, asked, n)
        for completion in completions:
            if completion.logprobs is not None:
                self.logprobs[completion.token_ids] = completion.logprobs
        return completions
