"""The request behind a response: its prompt as it was sent, and its sampling settings.

A tokenizer is read from this machine only: a folder, or the cache of the Hub. Nothing is downloaded
and no model library is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dto.recipe import Recipe, SampleSettings, resolve
from dto.records import Trajectory
from dto.settings import EvaluateSettings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE = "tokenizer.json"
KEPT = 8
"""Prompts kept; samples of one problem, which follow each other, have the same."""


class Request(NamedTuple):
    """A prompt as (text, is a special token) pieces, with names and values of settings.

    `missing` says why the text is unknown; then there are no pieces. `tokens` counts the prompt.
    """

    pieces: tuple[tuple[str, bool], ...]
    tokens: int
    missing: str
    settings: tuple[tuple[str, str], ...]


class RequestReader:
    """Decode the prompts of a run's trajectories."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._pieces = lru_cache(KEPT)(self._decode)

    def __call__(self, row: Trajectory) -> Request | None:
        """Return the request of a trajectory; None if the row has no prompt."""
        if not row.prompt_ids:
            return None
        pieces, missing = self._pieces(row.prompt_ids)
        return Request(pieces, len(row.prompt_ids), missing, tuple(self._settings(row)))

    def _decode(self, ids: tuple[int, ...]) -> tuple[tuple[tuple[str, bool], ...], str]:
        model = self._recipe.model
        name = model.tokenizer or model.name
        tokenizer = _tokenizer(resolve(name), None if model.tokenizer else model.revision)
        if tokenizer is None:
            return (), f"the tokenizer of {name} is not on this machine, so the text is unknown"
        return tuple(_pieces(tokenizer, ids)), ""

    def _settings(self, row: Trajectory) -> Iterator[tuple[str, str]]:
        sample = self._recipe.sample
        yield "model", row.model
        if sample.imported is not None:
            yield "response", "imported: how it was sampled is unknown"
            return
        yield "engine", self._recipe.model.engine
        yield from sampling(sample, row.seed)


def sampling(
    settings: SampleSettings | EvaluateSettings, seed: int | None
) -> Iterator[tuple[str, str]]:
    """Yield names and values of the settings that responses are sampled with."""
    yield "temperature", f"{settings.temperature:g}"
    yield "top_p", f"{settings.top_p:g}"
    for name, value, unused in (
        ("top_k", settings.top_k, 0),
        ("min_p", settings.min_p, 0.0),
        ("presence_penalty", settings.presence_penalty, 0.0),
    ):
        if value != unused:
            yield name, f"{value:g}"
    yield "max_tokens", f"{settings.max_tokens:,}"
    if seed is not None:
        yield "seed", str(seed)


@cache
def _tokenizer(name: str, revision: str | None) -> Tokenizer | None:
    from tokenizers import Tokenizer

    file = Path(name) / FILE
    if not file.is_file():
        if name.count("/") != 1 or Path(name).is_dir():
            return None
        from huggingface_hub import try_to_load_from_cache

        try:
            cached = try_to_load_from_cache(name, FILE, revision=revision)
        except ValueError:  # the name of a folder that is not here, not of a repository
            return None
        if not isinstance(cached, str):
            return None
        file = Path(cached)
    try:
        return Tokenizer.from_file(str(file))
    except Exception:  # the class of its errors is the base class itself
        return None


def _pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> Iterator[tuple[str, bool]]:
    added = tokenizer.get_added_tokens_decoder()
    special = {number for number, token in added.items() if token.special}
    for is_special, group in groupby(ids, key=special.__contains__):
        run = list(group)
        for part in ([number] for number in run) if is_special else (run,):
            yield tokenizer.decode(list(part), skip_special_tokens=False), is_special
