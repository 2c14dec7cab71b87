"""Decide which engine answers for a model in a stage, and check before any work that it can.

A run asks one engine for everything except DRQA's teacher and, on a server, the evaluation: a
server serves the models that it was started with, never the one that the run trains. Base and
trained model are measured on the same kind of engine, since two engines differ in kernels and
precision, and that difference would be taken for an effect of the training. So with `model.engine:
openai` both are evaluated in process, or each on a server of its own (`evaluate.server`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dto.context import sampling
from dto.engines import usable
from dto.engines.models import origin
from dto.engines.server import WAYS_OUT, server_command
from dto.engines.shared import check
from dto.errors import DtoError, EngineError, RecipeError
from dto.prompts import Arguments, render_chat
from dto.protocols import Engine, Message
from dto.recipe import ModelSettings, Recipe, resolve
from dto.source import Source
from dto.tags import KNOWN_TAGS, as_yaml, own_ids, think_tags
from dto.trajectories import prompt_tail

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("dto")

TRAINED = "RUN/train/model"
"""The trained model's folder, where the run's own path is unknown."""
_WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # fmt: skip


def settled(recipe: Recipe) -> Recipe:
    """The recipe with `evaluate.engine` chosen, if its server cannot serve the trained model.

    vLLM where it is ready, since it is faster; transformers otherwise, and for an exit with
    `overlap: branches`, which only transformers has.
    """
    evaluate = recipe.evaluate
    on_servers = evaluate.server or "trained" not in evaluate.models
    if recipe.model.engine != "openai" or on_servers or evaluate.engine:
        return recipe
    engine = "vllm" if _vllm() == "ready" and not _branches(recipe) else "transformers"
    chosen = evaluate.model_copy(update={"engine": engine})
    return recipe.model_copy(update={"evaluate": chosen})


def _vllm() -> str:
    """`ready`, or why vLLM cannot be used here."""
    state = dict(usable())["vllm"]
    return "ready" if state.startswith("ready") else state


def _branches(recipe: Recipe) -> bool:
    return any(getattr(exit, "overlap", None) == "branches" for exit in recipe.evaluate.exits)


def serving(recipe: Recipe, stage: str, model: str = "base") -> ModelSettings:
    """The settings of the engine that a stage asks for `model` (`base`, `trained`, or a name)."""
    if stage == "batch" and recipe.batch.teacher is not None:
        return recipe.batch.teacher
    if stage != "evaluate":
        return recipe.model
    if recipe.evaluate.engine is not None:
        name, revision = origin(recipe.model)
        changes: dict[str, Any] = {"name": name, "revision": revision, "server": None}
        changes |= {"engine": recipe.evaluate.engine, "engine_settings": {}}
        return recipe.model.model_copy(update=changes)
    if recipe.evaluate.server is not None and model == "trained":
        return recipe.model.model_copy(update={"server": recipe.evaluate.server})
    return recipe.model


def sentences(recipe: Recipe, folder: str = TRAINED) -> Iterator[str]:
    """Say where a run on a server trains and evaluates; nothing for other engines.

    `recipe` is :func:`settled`, `folder` will hold the trained model.
    """
    if recipe.model.engine != "openai" or "trained" not in recipe.evaluate.models:
        return
    weights, engine = origin(recipe.model)[0], recipe.evaluate.engine
    if recipe.train.method != "none":
        yield f"training in process, from the weights of {weights!r}"
    if engine is None:
        yield (
            f"base on {recipe.model.server} (model.server), trained on {recipe.evaluate.server} "
            f"(evaluate.server): start that after the training, with {server_command(folder)}"
        )
        return
    why = "vllm is ready here" if engine == "vllm" else "as evaluate.engine says"
    if engine == "transformers" and (state := _vllm()) != "ready":
        why = f"vllm: {state}"
    yield (
        f"base and trained in process on {engine} ({why}), both on the same engine: the server "
        "does not serve the model that the run trains; evaluate.server names one that does"
    )


def check_start(recipe: Recipe, stages: Collection[str], *, online: bool = True) -> None:
    """Raise, before anything is sampled, if training or evaluation cannot be done on this machine.

    `online`: ask the Hub for weights that are not here; nothing is fetched. Raises RecipeError for
    settings that contradict each other, EngineError if `evaluate.engine` is not ready, or if the
    weights that training or an evaluation in process needs are missing.
    """
    evaluate, model = recipe.evaluate, recipe.model
    if recipe.batch.teacher is not None and not recipe.batch.k:
        raise RecipeError("batch.teacher answers batch prompts, and batch.k is empty: set batch.k, "
                          "for instance to [2, 3, 5], or unset batch.teacher")  # fmt: skip
    if evaluate.server is not None and (model.engine != "openai" or evaluate.engine is not None):
        key = "model.engine" if evaluate.engine is None else "evaluate.engine"
        value = model.engine if evaluate.engine is None else evaluate.engine
        raise RecipeError(
            f"evaluate.server serves the trained model, but {key} is {value}, which measures the "
            "base model in process: set model.engine to openai without evaluate.engine, or unset "
            "evaluate.server, so that both are measured alike"
        )
    if evaluate.engine == "vllm" and _branches(recipe):
        raise RecipeError(
            "evaluate.engine: an exit has overlap: branches, which vllm does not support: set "
            "evaluate.engine to transformers, or overlap to true"
        )
    if evaluate.engine == "vllm" and "evaluate" in stages and (state := _vllm()) != "ready":
        raise EngineError(f"evaluate.engine: vllm: {state}; or set it to transformers")
    training = recipe.train.engine == "vllm" and recipe.train.method != "none"
    if training and "train" in stages and (state := _vllm()) != "ready":
        raise EngineError(f"train.engine: vllm: {state}; or set it to transformers")
    if model.engine != "openai":
        return
    local = [name for name in ("train", "evaluate") if name in stages]
    if evaluate.engine is None and "evaluate" in local:
        local.remove("evaluate")
    if local and (reason := missing_weights(model, "asked" if online else "trusted")):
        name = origin(model)[0]
        raise EngineError(
            f"stage {local[0]} runs in process and needs the weights of {name!r} on this machine: "
            f"{reason}; name their folder or Hub id in model.name, or in model.tokenizer if the "
            "server has another name for the model; or evaluate the base model alone: --set "
            "'evaluate.models=[base]'"
        )


@contextmanager
def untrained_server(recipe: Recipe, model: str, folder: str | None) -> Iterator[None]:
    """Add to the errors of `evaluate.server` how to start it for the trained model in `folder`."""
    server = recipe.evaluate.server if model == "trained" else None
    try:
        yield
    except EngineError as error:
        if server is None or recipe.evaluate.engine is not None:
            raise
        reason = str(error)
        for way in WAYS_OUT:  # that of the recipe's own server
            reason = reason.partition(way)[0]
        raise EngineError(
            f"evaluate.server has to serve the trained model: {reason}; start it with "
            f"{server_command(folder or TRAINED)}, then run the same command again: all earlier "
            "stages and the answers of the base model are kept"
        ) from None


def missing_weights(
    model: ModelSettings, hub: Literal["asked", "trusted", "left"] = "asked"
) -> str:
    """Why there are no weights of a model; empty if there are.

    They may be on this machine, or on the Hub: it is asked, trusted to have them, or left out.
    """
    import huggingface_hub
    from huggingface_hub import try_to_load_from_cache

    name, revision = origin(model)
    place = Source.parse(resolve(name))
    if place.is_local or place.exists:
        folder = Path(place.name)
        if not folder.is_dir():
            return "there is no such folder"
        kept = any(file.suffix in (".safetensors", ".bin") for file in folder.iterdir())
        return "" if kept else f"the folder has no {_WEIGHTS[0]}"
    if "/" not in name:
        return "this is neither a folder nor a Hub id"
    if any(isinstance(try_to_load_from_cache(name, file, revision=revision), str)
           for file in _WEIGHTS):  # fmt: skip
        return ""
    if hub == "left":
        return "they are not in the cache of the Hub"
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return "they are not in the cache of the Hub, and HF_HUB_OFFLINE is set"
    if hub == "trusted":
        return ""
    try:
        url = huggingface_hub.hf_hub_url(name, "config.json", revision=revision)
        huggingface_hub.get_hf_file_metadata(url, timeout=10)
    except Exception as error:  # of the connection, the Hub or the name
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ""


def check_model(tokenizer: PreTrainedTokenizerBase, settings: ModelSettings) -> None:
    """Check, before any work, that prompts can be rendered and thinking can be located.

    Raises DtoError as `render_chat`, `check_template` and `think_tags` do, and if the chat template
    opens the thinking with another tag than `model.think`. Warns if another model's closing tag is
    a token of this tokenizer but that of `model.think` is not.
    """
    ids = check_template(tokenizer, settings.name, settings.template, settings.system)
    tags = think_tags(tokenizer, settings)
    end = prompt_tail(tokenizer, ids, tags)
    others = [pair for pair in KNOWN_TAGS if pair[0] != tags.open]
    for other in others:
        if end.endswith(other) and not end.endswith((tags.open, tags.close)):
            raise DtoError(
                f"the chat template of {settings.name!r} marks the thinking with {other[0]}, but "
                f"model.think is {tags.open}: set model.think to {as_yaml(other)}"
            )
    if tags.close_ids:
        return
    for other in others:
        if own_ids(tokenizer, other[1]):
            logger.warning(
                "model     model.think is %s, but the tokenizer of %r has %s as a token: if the "
                "model uses those tags, set model.think to %s",
                *(as_yaml((tags.open, tags.close)), settings.name, other[1], as_yaml(other)),
            )
            return


def check_sampling(
    recipe: Recipe, engine: Engine, names: Collection[str] = ("sample", "evaluate")
) -> None:
    """Raise EngineError for sampling options that the engine lacks; warn if it differs in one.

    `names`: the groups of settings with which the engine is asked.
    """
    groups = {name: getattr(recipe, name) for name in names}
    for group, settings in groups.items():
        options = sampling(settings, max_tokens=1, seed=0)
        try:
            check(options, engine.capabilities, f"the server of {engine.model!r}")
        except EngineError as error:
            raise EngineError(f"{group}: {error}") from None
    penalised = [group for group, settings in groups.items() if settings.presence_penalty]
    if penalised and engine.capabilities.presence == "request":
        logger.warning(
            "model     %s.presence_penalty counts only the tokens of one request on this engine: "
            "rollouts, finalizations and exits, which continue a response, count from zero",
            penalised[0],
        )


_PROBE = "What is 1 + 1?"


def check_template(
    tokenizer: PreTrainedTokenizerBase,
    model: str,
    arguments: Arguments | None = None,
    system: str | None = None,
) -> tuple[int, ...]:
    """Render a test prompt before any work starts, and return its ids.

    Raises DtoError as `render_chat` does, and if the template ignores the system message.
    """
    question: Message = {"role": "user", "content": _PROBE}
    plain = render_chat([question], tokenizer, model, arguments)
    if system is None:
        return plain
    message: Message = {"role": "system", "content": system}
    ids = render_chat([message, question], tokenizer, model, arguments)
    if ids == plain and system.strip():
        raise DtoError(
            f"the chat template of {model!r} ignores the system message: set model.system to null "
            "and put its text into a prompt (model.prompt)"
        )
    return ids
