"""What a stage function needs beside its rows."""

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
    """The settings, the policy and the grader of a run.

    A stage reads its own settings as `ctx.recipe.<stage>`; the prompts are those of
    `ctx.recipe.model.family`. `judge` is asked by `prune.judge: llm`; None: the policy judges.
    `model` is what the rows of an evaluation call the policy (`base`, `trained`, a path).
    `cut` cuts thinking texts in other processes; None: in this one.
    """

    recipe: Recipe
    engine: Engine
    grader: Grader
    judge: Engine | None = None
    model: str = "base"
    cut: Callable[[str, Granularity, Languages], Awaitable[list[TextSegment]]] | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The policy's tokenizer. Raises EngineError when the engine takes text only."""
        if self.engine.tokenizer is None:
            raise EngineError(
                f"engine for {self.engine.model!r} has no tokenizer, and the stages work on token "
                "ids: serve the model with an engine that accepts them"
            )
        return self.engine.tokenizer

    @property
    def tags(self) -> ThinkTags:
        """How the policy marks its thinking."""
        return think_tags(self.tokenizer, self.recipe.model)

    def text(self, name: str) -> str:
        """The prompt `name` (`exit`, `finalize`, …) with the policy's own tags."""
        return render(name, self.recipe.model.family, self.tags)

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a text by itself, tags as the policy's own tokens; nothing is added."""
        return self.tags.encode(self.tokenizer, text)

    def join(self, ids: Sequence[int], text: str, fixed: int = 0) -> Joined:
        """A text put after ids, of which the first `fixed` stay (:func:`dto.text.join`)."""
        return join(self.tokenizer, ids, text, self.encode, fixed)

    def put_after(self, ids: Sequence[int], text: str, fixed: int = 0) -> tuple[int, ...]:
        """The ids of both, joined."""
        joined = self.join(ids, text, fixed)
        return (*ids[: joined.kept], *joined.inserted)

    def seed(self, row_id: str, purpose: str, *counters: int) -> int:
        """The seed of one request, from the run's seed (:func:`dto.records.derive`)."""
        return derive(self.recipe.seed, row_id, purpose, *counters)

    def sampling(self, max_tokens: int, seed: int, written: int = 0) -> Sampling:
        """As the sampling stage samples, for everything that imitates the policy.

        `written`: so many of the prompt's last tokens are of the response.
        """
        return sampling(self.recipe.sample, max_tokens, seed, written)


def sampling(settings: SamplingSettings, max_tokens: int, seed: int, written: int = 0) -> Sampling:
    """One request as `sample` or `evaluate` says."""
    drawn: dict[str, Any] = {key: getattr(settings, key) for key in SamplingSettings.model_fields}
    return Sampling(max_tokens, written=written, seed=seed, **drawn)


def without_engine(
    recipe: Recipe,
    grader: Grader,
    tokenizer: PreTrainedTokenizerBase | None = None,
    model: str = "base",
) -> Context:
    """The context of a stage that asks no model: its engine has a tokenizer at most."""
    engine = SimpleNamespace(model=recipe.model.name, tokenizer=tokenizer)
    return Context(recipe, cast(Engine, engine), grader, model=model)
