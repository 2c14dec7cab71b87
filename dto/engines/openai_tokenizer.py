"""What is known here of a model that a server holds: tokenizer, shape and context."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dto.errors import EngineError
from dto.recipe import resolve
from dto.usage import ModelShape, parameters_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dto.recipe import ModelSettings


def load_tokenizer(
    settings: ModelSettings, name: str
) -> tuple[PreTrainedTokenizerBase | None, ModelShape | None, int | None]:
    """Tokenizer, shape and context of the model that a server serves, as far as they can be known.

    Raises EngineError when `model.tokenizer` is set and cannot be loaded.
    """
    from transformers import AutoConfig, AutoTokenizer

    source = resolve(settings.tokenizer or name)
    if settings.tokenizer is None and (settings.server is None or not _loadable(source)):
        return None, None, None
    revision = settings.revision if settings.tokenizer is None else None
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise ValueError("it has no fast version")
    except (OSError, ValueError, KeyError) as error:
        if settings.tokenizer is None:
            return None, None, None
        reason = " ".join(str(error).split())[:200]
        raise EngineError(
            f"model.tokenizer {settings.tokenizer!r} cannot be loaded: {reason}"
        ) from None
    try:
        config = AutoConfig.from_pretrained(source, revision=revision)
        limit = getattr(config, "max_position_embeddings", None)
        return tokenizer, ModelShape.from_config(config, parameters_of(config)), limit
    except (OSError, ValueError, KeyError, AttributeError):
        return tokenizer, None, None


def _loadable(source: str) -> bool:
    """A folder, or what looks like a Hub id; a server's own word for a model is neither."""
    return Path(source).is_dir() or source.count("/") == 1
