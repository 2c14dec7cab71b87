"""The shapes of imported rows: which field holds the question, the response and the gold answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dto.tags import KNOWN_TAGS, ThinkTags
from dto.tasks.task import FieldError, Row

SIDES = ("chosen", "rejected")
"""The two responses of a row of preferences: samples 2k and 2k + 1 of their problem."""

# Names of fields: the first that a row has is read. The first three may hold a list of chat
# messages. A response without tags, beside a field of thinking, is the conclusion.
CONVERSATION = ("messages", "conversations")
QUESTION = ("prompt", "question", "problem", "instruction")
RESPONSE = ("response", "completion", "output", "generation")
THINKING = ("thinking", "reasoning_content", "reasoning")
CONCLUSION = ("conclusion", "content")
ANSWER = ("answer", "gold", "gold_answer", "ground_truth")


def read_row(row: Row, tags: ThinkTags) -> tuple[str, tuple[str, ...], str]:
    """(question, response with its tags, gold answer) of a row."""
    chat = _first(row, CONVERSATION)
    if chat is not None:
        turns = _turns(chat)
        reply = turns[-1]
        if _role(reply) != "assistant":
            raise FieldError("missing_field", "", "the last message is not the assistant's")
        question = _question(turns[:-1])
    else:
        question_text = _prompt(row)
        if question_text is None:
            raise _missing("question", QUESTION, row)
        question, reply = question_text, row
    return _stripped(question), (_response(reply, tags),), _gold(row)


def read_sides(row: Row, tags: ThinkTags) -> tuple[str, tuple[str, ...], str]:
    """(question, chosen and rejected response, gold answer) of a row of preferences.

    A side is text, or messages; messages before the last repeat the question, or replace the
    prompt.
    """
    prompt_text = _prompt(row)
    questions = set() if prompt_text is None else {prompt_text.strip()}
    replies = []
    for side in SIDES:
        response = row.get(side)
        if response is None:
            raise _missing(f"{side} response", (side,), row)
        if isinstance(response, list):
            turns = _turns(response)
            if _role(turns[-1]) != "assistant":
                raise FieldError("missing_field", "", f"{side}: the last message is not an answer")
            if len(turns) > 1:
                questions.add(_question(turns[:-1]).strip())
            replies.append(_response(turns[-1], tags))
        else:
            replies.append(_response({RESPONSE[0]: response}, tags))
    if not questions:
        raise _missing("question", QUESTION, row)
    if len(questions) > 1:
        raise FieldError("two_questions", "", "prompt, chosen and rejected do not ask the same")
    return _stripped(questions.pop()), tuple(replies), _gold(row)


def _prompt(row: Row) -> str | None:
    prompt = _first(row, QUESTION)
    if prompt is None:
        return None
    return _question(_turns(prompt)) if isinstance(prompt, list) else _text(prompt, "question")


def _stripped(question: str) -> str:
    if not question.strip():
        raise FieldError("empty_question", "", "the question is empty")
    return question.strip()


def _gold(row: Row) -> str:
    gold = _first(row, ANSWER)
    return "" if gold is None else _text(gold, "answer").strip()


def _response(reply: Mapping[str, Any], tags: ThinkTags) -> str:
    content = _first(reply, (*RESPONSE, *CONCLUSION, "value"))
    if isinstance(content, list):
        turns = _turns(content)
        if len(turns) != 1:
            raise FieldError("several_turns", "", f"the response has {len(turns)} messages")
        return _response(turns[0], tags)
    thinking = _first(reply, THINKING)
    if content is None and thinking is None:
        raise _missing("response", (*RESPONSE, *THINKING), reply)
    text = "" if content is None else _text(content, "response")
    if thinking is not None and tags.close not in text:
        thought = _text(thinking, "thinking")
        thought = thought.lstrip().removeprefix(tags.open).lstrip("\n")
        if text.strip() and tags.close not in thought:
            thought += f"\n{tags.close}\n\n"
        text = f"{tags.open}\n{thought}{text}"
    if _is_empty(text, tags):
        raise FieldError("empty_response", "", "the response is empty")
    return text


def _is_empty(text: str, tags: ThinkTags) -> bool:
    """Whether a response is empty but for tags, of its model or another."""
    for pair in ((tags.open, tags.close), *KNOWN_TAGS):
        if not text.replace(pair[1], "").replace(pair[0], "").strip():
            return True
    return False


def _turns(chat: object) -> Sequence[Mapping[str, Any]]:
    if not isinstance(chat, list) or not all(isinstance(turn, Mapping) for turn in chat):
        detail = f"messages are {type(chat).__name__}, not a list of messages"
        raise FieldError("wrong_type", "", detail)
    if not chat:
        raise FieldError("missing_field", "", "the list of messages is empty")
    return chat


def _question(turns: Sequence[Mapping[str, Any]]) -> str:
    others = [turn for turn in turns if _role(turn) != "system"]
    if len(others) != 1 or _role(others[0]) != "user":
        detail = "there is not exactly one question before the response"
        raise FieldError("several_turns", "", detail)
    content = _first(others[0], ("content", "value"))
    return _text("" if content is None else content, "question")


def _role(turn: Mapping[str, Any]) -> str:
    role = str(_first(turn, ("role", "from")))
    return {"human": "user", "gpt": "assistant"}.get(role, role)


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _text(value: object, field: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise FieldError("wrong_type", "", f"the {field} is {type(value).__name__}, not text")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def _missing(field: str, names: Sequence[str], row: Mapping[str, Any]) -> FieldError:
    fields = ", ".join(map(str, row))
    message = f"no {field} ({', '.join(names)}); its fields are {fields}"
    return FieldError("missing_field", "", message)
