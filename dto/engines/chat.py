"""Prompts given as messages become ids, once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from dto.engines.base import Message, Prompt
from dto.errors import EngineError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompt_ids(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, model: str) -> tuple[int, ...]:
    """Ids of a prompt; messages go through the chat template, which brings the only BOS.

    Raises EngineError for messages to a `model` whose tokenizer has no chat template.
    """
    ids: list[int] = []
    messages: list[Message] = []
    for part in prompt:
        if isinstance(part, int):
            ids.append(part)
        else:
            messages.append(part)
    if not messages:
        return tuple(ids)
    if not tokenizer.chat_template:
        raise EngineError(
            f"tokenizer of {model!r} has no chat template: send token ids, or give the model's "
            "folder a chat_template.jinja"
        )
    text = tokenizer.apply_chat_template(
        cast("Any", messages), tokenize=False, add_generation_prompt=True
    )
    return tuple(tokenizer.encode(cast("str", text), add_special_tokens=False))
