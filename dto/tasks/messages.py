"""Read chat messages and their content, as servers, providers and datasets write them.

Content is text, or a list of parts: `{"type": "text", "text": …}`, thinking of Anthropic
(`thinking`) or Mistral (a list in `thinking`), reasoning of inspect (`reasoning`), and the items of
OpenAI's Responses API (`reasoning`, `message`). Messages of vLLM, DeepSeek and OpenRouter have
their thinking beside the content, in `reasoning_content` or `reasoning`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dto.tags import KNOWN_TAGS, ThinkTags, has_unquoted
from dto.tasks.task import FieldError

THINKING = ("thinking", "reasoning_content", "reasoning")
SYSTEM_PROMPT, IMAGE, FILE, TOOLS = "system_prompt", "image", "file", "tools"
REDACTED, SUMMARY = "redacted_thinking", "summary"
OPEN_THOUGHTS = ("<|begin_of_thought|>", "<|end_of_thought|>")
_SOLUTION = ("<|begin_of_solution|>", "<|end_of_solution|>")

_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "developer": "system"}
_CONTENT = ("content", "value")
_FINISH = ("finish_reason", "stop_reason")
_LIMITS = (
    "length", "max_tokens", "max_output_tokens", "max_new_tokens", "max_length", "model_length",
    "model_context_window_exceeded",
)  # fmt: skip
_TEXT_PARTS = ("text", "input_text", "output_text")
_THINKING_PARTS = ("thinking", "reasoning")
_FILE_PARTS = ("audio", "video", "file", "document")


class Content(NamedTuple):
    """The thinking and the text of a message, and what was left out of it; None: it has none.

    `place` tells where in the message the thinking is, for people. `cut`: the message says that the
    limit of tokens cut it off.
    """

    thinking: str | None
    text: str | None
    left_out: tuple[str, ...] = ()
    place: str = ""
    cut: bool = False


def role(turn: Mapping[str, Any]) -> str:
    """The role of a message: `user`, `assistant`, `system` or another one."""
    name = str(first(turn, ("role", "from")))
    return _ROLES.get(name, name)


def read_turns(chat: object) -> Sequence[Mapping[str, Any]]:
    """The messages of a chat: a list of mappings, JSON of one, or a mapping of lists.

    Raises FieldError for anything else.
    """
    if isinstance(chat, str) and chat.lstrip().startswith("["):
        try:
            chat = json.loads(chat)
        except ValueError:
            raise FieldError("wrong_type", "", "the messages are text, not JSON") from None
    if isinstance(chat, Mapping) and chat and all(isinstance(row, list) for row in chat.values()):
        chat = [dict(zip(chat, turn, strict=True)) for turn in _columns(chat)]
    if not isinstance(chat, list) or not all(isinstance(turn, Mapping) for turn in chat):
        detail = f"messages are {type(chat).__name__}, not a list of messages"
        raise FieldError("wrong_type", "", detail)
    if not chat:
        raise FieldError("missing_field", "", "the list of messages is empty")
    return chat


def _columns(chat: Mapping[str, list[Any]]) -> list[tuple[Any, ...]]:
    """The messages of a mapping of lists, as `datasets` returns a sequence of mappings."""
    try:
        return list(zip(*chat.values(), strict=True))
    except ValueError:
        raise FieldError("unequal_lists", "", "the messages' lists differ in length") from None


def read_question(turns: Sequence[Mapping[str, Any]]) -> Content:
    """The one question that these messages ask. Raises FieldError for more or fewer."""
    others = [turn for turn in turns if role(turn) != "system"]
    if len(others) != 1 or role(others[0]) != "user":
        detail = "there is not exactly one question before the response"
        raise FieldError("several_turns", "", detail)
    content = read_content(first(others[0], _CONTENT), "question", "\n")
    left_out = (SYSTEM_PROMPT,) * (len(others) < len(turns))
    return Content(None, content.text or "", (*left_out, *content.left_out))


def read_reply(message: Mapping[str, Any]) -> Content:
    """The response that a message of the assistant, or a choice of a completion, holds."""
    content = read_content(first(message, _CONTENT), "response")
    content = content._replace(cut=any(is_cut_off(message.get(name)) for name in _FINISH))
    called = message.get("tool_calls") or message.get("function_call")
    left_out = (*content.left_out, TOOLS) if called else content.left_out
    for name in THINKING:
        beside = read_content(message.get(name), "thinking")
        thinking = beside.thinking if beside.text is None else beside.text
        full = bool((thinking or "").strip())
        if full or (thinking is not None and content.thinking is None):
            content = content._replace(thinking=thinking, place=f"{name} of the message")
        if full:
            break
    return content._replace(left_out=left_out)


def is_cut_off(reason: object) -> bool:
    """Whether a server's reason for the end of a response is the limit of tokens."""
    return isinstance(reason, str) and reason.lower() in _LIMITS


def is_parts(value: object) -> bool:
    """Whether a value is a list of content parts or output items, not of messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(part, Mapping) and "type" in part for part in value)
        and not all("role" in part and part["type"] != "message" for part in value)
    )


def read_content(value: object, field: str, between: str = "") -> Content:
    """Text, or a list of parts whose texts are joined by `between`. Raises FieldError."""
    if value is None:
        return Content(None, None)
    if not (isinstance(value, list) and value):
        return Content(None, text_of(value, field))
    thoughts: list[str] = []
    texts: list[str] = []
    left_out: list[str] = []
    for part in value:
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, Mapping):
            raise FieldError("wrong_type", "", f"the {field} has a part of {type(part).__name__}")
        kind = str(part.get("type"))
        if kind in _TEXT_PARTS:
            texts.append(text_of(part.get("text"), field))
        elif kind == "message":
            inner = read_content(part.get("content"), field, between)
            texts += [inner.text] if inner.text else []
            left_out += inner.left_out
        elif kind in _THINKING_PARTS:
            thought, summarized = _thought(part)
            thoughts += [thought] if thought else []
            left_out += [SUMMARY] if summarized else [] if thought else [REDACTED]
        elif kind == REDACTED:
            left_out.append(REDACTED)
        elif "image" in kind:
            left_out.append(IMAGE)
        elif any(name in kind for name in _FILE_PARTS):
            left_out.append(FILE)
        elif "tool" in kind or kind.endswith(("_call", "_call_output")):
            left_out.append(TOOLS)
        else:
            raise FieldError("wrong_type", "", f"the {field} has a part of unknown type {kind!r}")
    return Content(
        "\n\n".join(thoughts) if thoughts else None,
        between.join(texts) if texts else None,
        tuple(left_out),
        "parts of the message" if thoughts else "",
    )


def _thought(part: Mapping[str, Any]) -> tuple[str, bool]:
    """The thinking of a part, empty if it is encrypted; and whether it is only a summary."""
    if part.get("redacted"):
        return "", False
    for key in ("thinking", "reasoning", "content", "text", "summary"):
        value = part.get(key)
        if isinstance(value, list):
            pieces = [piece.get("text") for piece in value if isinstance(piece, Mapping)]
            value = "\n\n".join(piece for piece in pieces if isinstance(piece, str))
        if value:
            return text_of(value, "thinking"), key == "summary"
    return "", False


def composed(reply: Content, tags: ThinkTags, *, untagged: bool = False) -> tuple[str, str]:
    """A response as one text with its tags, and where its thinking was; empty if it has no text.

    An `untagged` one is thinking that ends in its final answer.
    """
    text, thinking, how = reply.text or "", reply.thinking, "tags in the response"
    if text.lstrip().startswith(OPEN_THOUGHTS[0]) and tags.open != OPEN_THOUGHTS[0]:
        text, how = _rewritten(text, tags), f"{OPEN_THOUGHTS[0]} … rewritten to {tags.open}"
    elif untagged and tags.close not in text and thinking is None:
        thinking, text = _parted(text)
        how = "the response before its final answer"
    elif thinking is not None:
        how = reply.place
    elif not any(tag in text for pair in ((tags.open, tags.close), *KNOWN_TAGS) for tag in pair):
        how = "none"
    has_own = text.lstrip().startswith(tags.open) or has_unquoted(text, tags.close)
    if thinking is not None and has_own:
        how = "tags in the response" if how == reply.place else how
    elif thinking is not None:
        thought = thinking.lstrip().removeprefix(tags.open).lstrip("\n")
        if text.strip() and thought.rstrip().endswith(tags.close):
            thought = f"{thought.rstrip()}\n\n"
        elif text.strip():
            thought += f"\n{tags.close}\n\n"
        text = f"{tags.open}\n{thought}{text}"
    return "" if _is_empty(text, tags) else text, how


def _rewritten(text: str, tags: ThinkTags) -> str:
    opening, closing = OPEN_THOUGHTS
    text = f"{tags.open}\n".join(part.lstrip() for part in text.split(opening))
    text = f"\n{tags.close}".join(part.rstrip() for part in text.split(closing))
    for tag in _SOLUTION:
        text = "\n\n".join(part.strip() for part in text.split(tag))
    return text.strip()


def _parted(text: str) -> tuple[str, str]:
    r"""Cut thinking without tags before `**Final Answer**`, or the paragraph of the last box."""
    cut = text.rfind("**Final Answer**")
    if cut < 0 and (box := text.rfind(r"\boxed")) >= 0:
        cut = max(text.rfind("\n\n", 0, box), 0)
    return (text, "") if cut < 0 else (text[:cut].rstrip(), text[cut:].lstrip("\n"))


def _is_empty(text: str, tags: ThinkTags) -> bool:
    """Whether a response is empty but for tags, of its model or another."""
    for pair in ((tags.open, tags.close), *KNOWN_TAGS):
        if not text.replace(pair[1], "").replace(pair[0], "").strip():
            return True
    return False


def text_of(value: object, field: str) -> str:
    """Text, or a number as text. Raises FieldError for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise FieldError("wrong_type", "", f"the {field} is {type(value).__name__}, not text")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The value of the first of these names that has one; None if none has."""
    return next((row[name] for name in names if row.get(name) is not None), None)
