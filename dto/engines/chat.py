"""Prompts given as messages become ids, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dto.errors import DtoError, EngineError
from dto.protocols import Message, Prompt
from dto.templates import Arguments, render_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompt_ids(
    prompt: Prompt,
    tokenizer: PreTrainedTokenizerBase,
    model: str,
    template: Arguments | None = None,
) -> tuple[int, ...]:
    """Ids of a prompt; messages go through the chat template, which brings the only BOS.

    `template` are the arguments of that. Raises EngineError for messages to a `model` whose
    tokenizer has no chat template, or one that cannot render them.
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
    try:
        return render_chat(messages, tokenizer, model, template)
    except DtoError as error:
        raise EngineError(str(error)) from None
