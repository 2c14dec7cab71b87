"""The context of a stage function: recipe, engine and grader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from dto.errors import EngineError
from dto.prompts import render
from dto.protocols import Engine, Sampling
from dto.recipe import Recipe
from dto.records import derive
from dto.settings import SamplingSettings
from dto.tags import ThinkTags, think_tags
from dto.text import Joined, join

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from transformers import PreTrainedTokenizerBase

    from dto.languages import Languages
    from dto.protocols import Grader
    from dto.segmentation.patterns import Granularity, TextSegment


@dataclass(frozen=True, slots=True)
class Context:
    """The recipe, engine and grader that a stage function uses.

    A stage reads its settings from `ctx.recipe.<stage>`, and prompts of `ctx.recipe.model.family`.
    `judge` is the engine for `prune.judge: llm`; None: the policy judges. `model` is the policy's
    name in the rows of an evaluation (`base`, `trained`, a path). `cut` segments thinking texts in
    other processes; None: in this process.
    """

    recipe: Recipe
    engine: Engine
    grader: Grader
    judge: Engine | None = None
    model: str = "base"
    cut: Callable[[str, Granularity, Languages], Awaitable[list[TextSegment]]] | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The policy's tokenizer. Raises EngineError if the engine takes text only."""
        if self.engine.tokenizer is None:
            raise EngineError(
                f"the engine of {self.engine.model!r} takes text only, and the stages need token "
                "ids: serve the model with an engine that accepts them"
            )
        return self.engine.tokenizer

    @property
    def tags(self) -> ThinkTags:
        """The policy's tags around its thinking."""
        return think_tags(self.tokenizer, self.recipe.model)

    def text(self, name: str) -> str:
        """The prompt `name` (`exit`, `finalize`, …) with the policy's own tags."""
        return render(name, self.recipe.model.family, self.tags)

    def encode(self, text: str) -> tuple[int, ...]:
        """Encode a text by itself, with tags as the policy's own tokens and nothing added."""
        return self.tags.encode(self.tokenizer, text)

    def join(self, ids: Sequence[int], text: str, fixed: int = 0) -> Joined:
        """Append a text to ids; the first `fixed` ids stay unchanged (:func:`dto.text.join`)."""
        return join(self.tokenizer, ids, text, self.encode, fixed)

    def put_after(self, ids: Sequence[int], text: str, fixed: int = 0) -> tuple[int, ...]:
        """The ids of both together."""
        joined = self.join(ids, text, fixed)
        return (*ids[: joined.kept], *joined.inserted)

    def seed(self, row_id: str, purpose: str, *counters: int) -> int:
        """The seed of one request, from the run's seed (:func:`dto.records.derive`)."""
        return derive(self.recipe.seed, row_id, purpose, *counters)

    def sampling(self, max_tokens: int, seed: int, written: int = 0) -> Sampling:
        """The sampling options of the recipe's `sample` group.

        `written`: the number of the prompt's last tokens that belong to the response.
        """
        return sampling(self.recipe.sample, max_tokens, seed, written)


def sampling(settings: SamplingSettings, max_tokens: int, seed: int, written: int = 0) -> Sampling:
    """The sampling options of one request, from the `sample` or `evaluate` settings."""
    options: dict[str, Any] = {key: getattr(settings, key) for key in SamplingSettings.model_fields}
    return Sampling(max_tokens, written=written, seed=seed, **options)


def without_engine(
    recipe: Recipe,
    grader: Grader,
    tokenizer: PreTrainedTokenizerBase | None = None,
    model: str = "base",
) -> Context:
    """The context of a stage without a model: its engine has only a tokenizer, if any."""
    engine = SimpleNamespace(model=recipe.model.name, tokenizer=tokenizer)
    return Context(recipe, cast(Engine, engine), grader, model=model)
