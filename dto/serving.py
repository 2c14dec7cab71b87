"""What consecutive stages share: one engine, one grader, the tokenizer."""

from __future__ import annotations

import logging
import re
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from dto.context import Context
from dto.errors import DtoError, EngineError
from dto.recipe import ModelSettings, Recipe
from dto.trajectories import check_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dto.grading import Grader
    from dto.protocols import Engine


logger = logging.getLogger("dto")


class Serving:
    """The engine and the grader of consecutive stages, opened when a stage first asks for them.

    At most one engine is open, since two would share the memory; a judge's may be beside it.
    `allow_code_execution`: programs that a model wrote are run (`dto.grading.sandbox`).
    """

    def __init__(self, recipe: Recipe, *, allow_code_execution: bool = False) -> None:
        self._recipe = recipe
        self._allow_code_execution = allow_code_execution
        self._opened = AsyncExitStack()
        self._engine = AsyncExitStack()
        self._label = ""
        self._grader: Grader | None = None
        self._judge: Engine | None = None
        self._context: Context | None = None

    async def __aenter__(self) -> Serving:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._engine.aclose()
        await self._opened.aclose()

    async def context(self, label: str, model: str | None) -> Context:
        """The context with the engine for `model` (None: the recipe's own), known as `label`."""
        if self._context is not None and self._label == label:
            return self._context
        from dto.engines import open_engine

        await self._engine.aclose()
        grader = await self.grader()
        opened = open_engine(self._recipe.model, model)
        if opened.tokenizer is not None:  # before weights are loaded
            check_model(opened.tokenizer, self._recipe.model)
        engine: Engine = await self._engine.enter_async_context(opened)
        if engine.tokenizer is None or engine.capabilities.messages_only:
            raise EngineError(
                f"{engine.model!r} is served as chat, or without a tokenizer: the stages go on "
                "from the model's own tokens, so set model.api to completions and model.tokenizer, "
                "or take another engine"
            )
        check_sampling(self._recipe, engine)
        self._label, self._context = label, Context(self._recipe, engine, grader)
        return self._context

    async def with_judge(self, context: Context) -> Context:
        """The same context, with the engine that `prune` asks for verdicts beside the policy's."""
        if self._recipe.prune.judge != "llm":
            return context
        context = replace(context, judge=await self.judge())
        engine = context.judge or context.engine
        if not engine.capabilities.json_schema:
            logger.warning(
                "judge     %s is not held to a JSON schema: replies that are not what was asked "
                "for leave their patterns unjudged",
                engine.model,
            )
        return context

    async def judge(self) -> Engine | None:
        """The engine of the recipe's `judge`, open until the end; None where there is none.

        Raises EngineError when it cannot be built.
        """
        settings = self._recipe.judge
        if settings is not None and self._judge is None:
            from dto.engines import open_engine

            try:
                opened = open_engine(settings)
                if opened.tokenizer is not None and not opened.capabilities.messages_only:
                    check_model(opened.tokenizer, settings)
                self._judge = await self._opened.enter_async_context(opened)
            except DtoError as error:
                keys = "|".join(ModelSettings.model_fields)
                reason = re.sub(rf"\bmodel\.({keys})\b", r"judge.\1", str(error))
                raise EngineError(f"judge: {reason}") from None
        return self._judge

    async def grader(self) -> Grader:
        """The grader; no engine is opened for it."""
        if self._grader is None:
            from dto.grading import Grader

            grader = Grader(allow_code_execution=self._allow_code_execution)
            self._grader = await self._opened.enter_async_context(grader)
        return self._grader

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The recipe's tokenizer; no engine is opened for it. Raises as `check_model` does."""
        if self._context is not None and self._label == "base":
            return self._context.tokenizer
        tokenizer = load_tokenizer(self._recipe)
        check_model(tokenizer, self._recipe.model)
        return tokenizer


def check_sampling(recipe: Recipe, engine: Engine) -> None:
    """Refuse at the start what an engine cannot sample; say what it samples in another way.

    Raises EngineError.
    """
    can = engine.capabilities
    for stage, settings in (("sample", recipe.sample), ("evaluate", recipe.evaluate)):
        for key, there in (
            ("top_k", can.filters),
            ("min_p", can.filters),
            ("presence_penalty", can.presence is not None),
        ):
            value = getattr(settings, key)
            if value and not there:
                raise EngineError(
                    f"{stage}.{key} = {value:g}: the server of {engine.model!r} does not take it; "
                    "set it to 0, or use a vLLM server"
                )
    penalised = [
        stage
        for stage, settings in (("sample", recipe.sample), ("evaluate", recipe.evaluate))
        if settings.presence_penalty
    ]
    if penalised and can.presence == "request":
        logger.warning(
            "model     %s.presence_penalty counts what one request generates on this engine: "
            "rollouts, finalizations and exits, which go on from a response, begin to count anew",
            penalised[0],
        )


def load_tokenizer(recipe: Recipe, *, local: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a recipe's model; `local`: only when nothing has to be fetched for it.

    Raises DtoError when there is none.
    """
    from dto.engines import models

    model = recipe.model
    revision = model.revision if model.tokenizer is None else None
    return models.load_tokenizer(model.tokenizer or model.name, revision, local=local)
