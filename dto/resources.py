"""What the work of a run's stages needs: engine, grader, judge and segmentation processes."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from dto.context import Context, without_engine
from dto.engines import open_engine
from dto.engines.checks import check_model, check_sampling, serving, untrained_server
from dto.engines.models import load_tokenizer
from dto.errors import DtoError, EngineError
from dto.grading import Grader
from dto.protocols import Engine
from dto.recipe import ModelSettings
from dto.runs.reader import RunReader
from dto.runs.stage import Stage
from dto.segmenter import Segmenter
from dto.training import train

logger = logging.getLogger("dto")


class Resources:
    """The engine, grader, judge and segmentation processes that consecutive stages share.

    Each is opened when a stage first needs it. At most one engine for the policy is open, since two
    would share the memory; the judge may have another. An engine is checked for all `planned`
    stages that will ask it.
    """

    def __init__(
        self, run: RunReader, allow_code_execution: bool = False, planned: Sequence[Stage] = ()
    ) -> None:
        self._run, self._recipe, self._planned = run, run.recipe, planned
        self._served = run.recipe.model
        self._opened, self._engine = AsyncExitStack(), AsyncExitStack()
        self._segmenter = Segmenter()
        self._judge: Engine | None = None
        self._context: Context | None = None
        self._shares: list[dict[str, Any]] = []
        self.grader = Grader(allow_code_execution=allow_code_execution)

    async def __aenter__(self) -> Resources:
        await self._opened.enter_async_context(self.grader)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._segmenter.close()
        await self._engine.aclose()
        await self._opened.aclose()

    def shared(self) -> list[dict[str, Any]]:
        """What each of several servers did since the last call; empty with another engine."""
        self._collect_shares()
        shares, self._shares = self._shares, []
        return shares

    def _collect_shares(self) -> None:
        engine = None if self._context is None else self._context.engine
        self._shares += getattr(engine, "shared", list)()

    async def context(self, stage: Stage, model: str) -> Context:
        """The context for a stage's work, with the engine of `model` if the stage needs one."""
        if stage.needs == "nothing":
            return without_engine(self._recipe, self.grader)
        if stage.needs == "tokenizer":
            if self._context is not None and self._context.model == "base":
                tokenizer = self._context.tokenizer
            else:
                tokenizer = load_tokenizer(self._recipe.model)
                check_model(tokenizer, self._recipe.model)
            plain = without_engine(self._recipe, self.grader, tokenizer)
            return replace(plain, cut=self._segmenter.cut)
        ctx = await self._with_engine(stage, model)
        if stage.check is not None:
            stage.check(ctx)
        return await self._with_judge(ctx) if stage.asks_judge(self._recipe) else ctx

    async def _with_engine(self, stage: Stage, model: str) -> Context:
        recipe, settings = self._recipe, serving(self._recipe, stage.name, model)
        taught = settings is recipe.batch.teacher
        model = "teacher" if taught else model
        if self._context is not None and (self._context.model, self._served) == (model, settings):
            return self._context
        path = None if model in ("base", "teacher") else model  # None: where the recipe says
        if model == "trained":
            path = str(train.trained_model(self._run))
        self._collect_shares()
        self._context = None
        await self._engine.aclose()
        with untrained_server(recipe, model, path):
            opened = open_engine(settings, path)
            if opened.tokenizer is not None:  # before weights are loaded
                check_model(opened.tokenizer, settings)
            engine: Engine = await self._engine.enter_async_context(opened)
        if not taught and (engine.tokenizer is None or engine.capabilities.messages_only):
            raise EngineError(
                f"{engine.model!r} is served as chat or without a tokenizer, but the stages "
                "continue the model's own tokens: set model.api to completions and "
                "model.tokenizer, or use another engine"
            )
        check_sampling(recipe, engine, ("sample",) if taught else ("sample", "evaluate"))
        ctx = Context(recipe, engine, self.grader, model=model)
        for later in self._planned if model == "base" else ():  # now, not after hours of work
            asked = serving(recipe, later.name) == settings and "base" in later.models(recipe)
            if asked and later.check is not None and self._run.manifest(later.name) is None:
                later.check(ctx)
        self._context, self._served = ctx, settings
        return ctx

    async def _with_judge(self, ctx: Context) -> Context:
        """The same context with the judge's engine."""
        ctx = replace(ctx, judge=await self.judge())
        engine = ctx.judge or ctx.engine
        if not engine.capabilities.json_schema:
            logger.warning(
                "judge     %s does not support JSON schemas: patterns stay unjudged if its reply "
                "cannot be read",
                engine.model,
            )
        return ctx

    async def judge(self) -> Engine | None:
        """The engine of the recipe's `judge`, open until the end; None without a `judge`.

        Raises EngineError if it cannot be built.
        """
        settings = self._recipe.judge
        if settings is not None and self._judge is None:
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
