"""Read one imported row by its shape: question, responses with their tags, gold answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from shlex import quote
from typing import NamedTuple, TypeVar

from dto.grading.compare import numeric
from dto.grading.extract import last_box
from dto.tags import KNOWN_TAGS, ThinkTags
from dto.tasks.messages import (
    SYSTEM_PROMPT,
    TOOLS,
    Content,
    is_parts,
    read_content,
    read_question,
    read_reply,
    read_turns,
    role,
    text_of,
)
from dto.tasks.shapes import (
    CHAT,
    PREFERENCES,
    SIDES,
    Columns,
    Shape,
    find,
    shape_of,
    whole_chat,
    with_columns,
)
from dto.tasks.task import FieldError, Row

T = TypeVar("T")

GENERATIONS, REWRITTEN = "generations", "tags"
OPEN_THOUGHTS = ("<|begin_of_thought|>", "<|end_of_thought|>")
_SOLUTION = ("<|begin_of_solution|>", "<|end_of_solution|>")
_TRUE = ("true", "yes", "c", "correct", "right")
_FALSE = ("false", "no", "i", "incorrect", "wrong")
_NUMBER = re.compile(r"-?\d{1,9}(\.\d{1,9})?")
_SYSTEM = ("system", "system_prompt")
_TOOLS = ("tools", "request.tools", "body.tools")


class Undecided(FieldError):
    """Several columns can be a field, and their values differ: the user has to choose one."""

    def __init__(self, field: str, paths: Sequence[str], detail: str) -> None:
        choices = " or ".join(f"--map {quote(f'{field}={path}')}" for path in paths)
        super().__init__("undecided", field, f"{detail}: choose with {choices}")


class ReadRow(NamedTuple):
    """A row of a source. `texts` are its responses with tags, `correct` the source's verdicts.

    `fields` tells the name of the shape, under `shape`, and how each field was read.
    """

    question: str
    texts: tuple[str, ...]
    answer: str
    correct: tuple[bool | None, ...]
    left_out: tuple[str, ...]
    fields: Mapping[str, str]
    variant: str = ""


def read_row(row: Row, tags: ThinkTags, columns: Columns) -> ReadRow:
    """Read a row of responses; the paths in `columns` (`sample.map`) replace those of its shape.

    Raises FieldError for a row without question or response, and Undecided.
    """
    shape = shape_of(row, columns)
    asked, question = _pick(row, shape, "question", _read_question)
    if question is None:
        raise _missing(row, shape, "question")
    answered, replies = _pick(row, shape, "response", _read_replies)
    thought_at, thoughts = _pick(row, shape, "thinking", _texts)
    if replies is None and thoughts is not None:
        replies = [Content(None, None)] * len(thoughts)
    if not replies:
        raise _missing(row, shape, "response")
    if thoughts is not None:
        replies = _beside(replies, thoughts, answered, thought_at)
    answer_at, answer = _gold(row, shape)
    correct_at, correct = _correct(row, shape, len(replies))
    left_out = [*question.left_out, *_left_out(row, shape)]
    texts, how = [], thought_at
    for reply in replies:
        left_out += reply.left_out
        text, read_as = _composed(reply, tags, shape)
        texts.append(text)
        how = how or read_as
    if how.startswith(OPEN_THOUGHTS[0]):
        left_out.append(REWRITTEN)
    fields = {"shape": shape.name, "question": asked, "response": answered, "thinking": how,
              "answer": answer_at, "correct": correct_at}  # fmt: skip
    return ReadRow(
        _stripped(question.text),
        tuple(texts),
        answer,
        correct,
        tuple(sorted(set(left_out))),
        fields,
        str(find(row, shape.variant) or "") if shape.variant else "",
    )


def read_sides(row: Row, tags: ThinkTags, columns: Columns) -> ReadRow:
    """Read a row of preferences; `texts` are the chosen and the rejected response.

    A side is text, or messages; messages before the last repeat the question, or replace the
    prompt. Raises FieldError, also if the sides answer different questions, and Undecided.
    """
    shape = with_columns(PREFERENCES, columns)
    asked, prompt = _pick(row, shape, "question", _read_question)
    questions = set() if prompt is None else {(prompt.text or "").strip()}
    left_out = [*(() if prompt is None else prompt.left_out), *_left_out(row, shape)]
    texts = []
    for side in SIDES:
        response = find(row, side)
        if response is None:
            raise FieldError("missing_field", "", f"no {side} response; {_names(row)}")
        if isinstance(response, list) and not is_parts(response):
            turns = read_turns(response)
            if role(turns[-1]) != "assistant":
                raise FieldError("missing_field", "", f"{side}: the last message is not an answer")
            if len(turns) > 1:
                before = read_question(turns[:-1])
                questions.add((before.text or "").strip())
                left_out += before.left_out
            reply = read_reply(turns[-1])
        else:
            reply = read_content(response, "response")
        left_out += reply.left_out
        texts.append(_composed(reply, tags, shape)[0])
    if not questions:
        raise _missing(row, shape, "question")
    if len(questions) > 1:
        raise FieldError("two_questions", "", "prompt, chosen and rejected do not ask the same")
    answer_at, answer = _gold(row, shape)
    fields = {"shape": shape.name, "question": asked or "messages of both sides",
              "response": " and ".join(SIDES), "answer": answer_at}  # fmt: skip
    return ReadRow(
        _stripped(questions.pop()),
        tuple(texts),
        answer,
        (None, None),
        tuple(sorted(set(left_out))),
        fields,
    )


def _pick(
    row: Row, shape: Shape, field: str, read: Callable[[Row, Shape, str], T | None]
) -> tuple[str, T | None]:
    """The first path of a field with a value, and what is read there.

    Raises the error of the only path that has a value, and Undecided.
    """
    found: dict[str, T] = {}
    error: FieldError | None = None
    for path in getattr(shape, field):
        try:
            value = read(row, shape, path)
        except FieldError as raised:
            error = error or raised
            continue
        if value is not None:
            found[path] = value
            if field not in shape.asks and _is_full(value):
                return path, value
    full = {path: value for path, value in found.items() if _is_full(value)} or found
    if not full:
        if error is not None:
            raise error
        return "", None
    first = next(iter(full))
    others = [path for path in full if _plain(full[path]) != _plain(full[first])]
    if others and field in shape.asks:
        detail = f"{first} and {', '.join(others)} can be the {field}, and they differ"
        raise Undecided(field, [first, *others], detail)
    return first, full[first]


def _plain(value: object) -> object:
    """A value without what makes no difference: white space around it, what was left out."""
    if isinstance(value, Content):
        return (value.thinking or "").strip(), (value.text or "").strip()
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value.strip("$ \n") if isinstance(value, str) else value


def _is_full(value: object) -> bool:
    """Whether a value holds more than white space."""
    if isinstance(value, Content):
        return bool((value.text or "").strip() or (value.thinking or "").strip())
    if isinstance(value, list):
        return any(map(_is_full, value))
    return not isinstance(value, str) or bool(value.strip())


def _read_question(row: Row, shape: Shape, path: str) -> Content | None:
    value = find(row, path)
    if value is None:
        return None
    if path in CHAT or (isinstance(value, list) and not is_parts(value)):
        turns = read_turns(value)
        chat = path in shape.response and role(turns[-1]) == "assistant"
        return read_question(turns[:-1] if chat else turns)
    return read_content(value, "question", "\n")


def _read_replies(row: Row, shape: Shape, path: str) -> list[Content] | None:
    value = find(row, path)
    if value is None:
        return None
    if whole_chat(value, shape, path):
        turns = read_turns(value)
        before, reply = read_question(turns[:-1]), read_reply(turns[-1])
        return [reply._replace(left_out=(*before.left_out, *reply.left_out))]
    if "[]" in path:
        return [_reply(each) for each in value if each is not None]
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return [_reply(each) for each in value]
    return [_reply(value)]


def _reply(value: object) -> Content:
    """The response that a text, a message, a list of one message or a list of parts holds."""
    if isinstance(value, Mapping) and {"role", "from", "content"} & value.keys():
        return read_reply(value)
    if isinstance(value, list) and not is_parts(value):
        turns = read_turns(value)
        if len(turns) != 1:
            raise FieldError("several_turns", "", f"the response has {len(turns)} messages")
        return read_reply(turns[0])
    return read_content(value, "response")


def _texts(row: Row, shape: Shape, path: str) -> list[str] | None:
    value = find(row, path)
    if value is None:
        return None
    values = value if isinstance(value, list) and not is_parts(value) else [value]
    read = [read_content(each, "thinking", "\n\n") for each in values]
    return [each.thinking or each.text or "" for each in read]


def _beside(
    replies: Sequence[Content], thoughts: Sequence[str], answered: str, thought_at: str
) -> list[Content]:
    """The responses with the thinking that stands in another column."""
    if len(thoughts) != len(replies):
        detail = f"{answered} holds {len(replies)} responses, {thought_at} {len(thoughts)}"
        raise FieldError("unequal_lists", "", detail)
    return [
        reply if reply.thinking is not None else reply._replace(thinking=thought)
        for reply, thought in zip(replies, thoughts, strict=True)
    ]


def _composed(reply: Content, tags: ThinkTags, shape: Shape) -> tuple[str, str]:
    """A response as one text with its tags, and where its thinking was. Raises FieldError."""
    text, thinking, how = reply.text or "", reply.thinking, "tags in the response"
    if text.lstrip().startswith(OPEN_THOUGHTS[0]) and tags.open != OPEN_THOUGHTS[0]:
        text, how = _rewritten(text, tags), f"{OPEN_THOUGHTS[0]} … rewritten to {tags.open}"
    elif shape.untagged and tags.close not in text and thinking is None:
        thinking, text = _parted(text)
        how = "the response before its final answer"
    elif thinking is not None:
        how = reply.place
    elif not any(tag in text for pair in ((tags.open, tags.close), *KNOWN_TAGS) for tag in pair):
        how = "none"
    if thinking is not None and tags.close not in text:
        thought = thinking.lstrip().removeprefix(tags.open).lstrip("\n")
        if text.strip() and thought.rstrip().endswith(tags.close):
            thought = f"{thought.rstrip()}\n\n"
        elif text.strip():
            thought += f"\n{tags.close}\n\n"
        text = f"{tags.open}\n{thought}{text}"
    if _is_empty(text, tags):
        raise FieldError("empty_response", "", "the response is empty")
    return text, how


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


def _stripped(question: str | None) -> str:
    if not (question or "").strip():
        raise FieldError("empty_question", "", "the question is empty")
    return str(question).strip()


def _gold(row: Row, shape: Shape) -> tuple[str, str]:
    """Where the gold answer of a row is, and the answer; both empty if it has none."""
    path, gold = _pick(row, shape, "answer", _read_gold)
    if gold:
        return path, gold
    for path in shape.solution:
        solution = find(row, path)
        if isinstance(solution, str | int | float) and not isinstance(solution, bool):
            text = text_of(solution, "solution").strip()
            if answer := last_box(text) or _last_line(text):
                return f"{path} (its boxed answer, or a number)", answer
    return "", ""


def _read_gold(row: Row, shape: Shape, path: str) -> str | None:
    value = find(row, path)
    if isinstance(value, list) and path.endswith("[]"):
        golds = list(dict.fromkeys(text_of(each, "answer").strip() for each in value))
        if len(golds) > 1:
            raise FieldError("several_golds", "", f"{path} holds {len(golds)} gold answers")
        value = golds[0]
    if value is None:
        return None
    text = text_of(value, "answer").strip()
    return _last_line(text) if "\n" in text and "####" in text else text


def _last_line(text: str) -> str:
    """The answer behind the last `####` (GSM8K), or the text if it is a number; else empty."""
    _, hashes, answer = text.rpartition("####")
    if hashes:
        return answer.strip().replace(",", "")
    return text if len(text) <= 40 and numeric(text, "math") else ""


def _correct(row: Row, shape: Shape, count: int) -> tuple[str, tuple[bool | None, ...]]:
    """Where the source's verdicts are, and one for each of `count` responses."""
    for path in shape.correct:
        value = find(row, path)
        if value is None:
            continue
        if "*" in path:
            verdicts = {_verdict(each) for each in value} - {None}
            value = verdicts.pop() if len(verdicts) == 1 else None
        if not isinstance(value, list):
            value = [value] if count == 1 else [None] * count
        if len(value) != count:
            detail = f"{path} holds {len(value)} verdicts on {count} responses"
            raise FieldError("unequal_lists", "", detail)
        if (read := tuple(map(_verdict, value))) != (None,) * count:
            return path, read
    return "", (None,) * count


def _verdict(value: object) -> bool | None:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        return None if value != value else value >= 1
    word = str(value).strip().lower()
    if _NUMBER.fullmatch(word):  # a cell of a table
        return float(word) >= 1
    return True if word in _TRUE else False if word in _FALSE else None


def _left_out(row: Row, shape: Shape) -> Iterator[str]:
    if any(isinstance(row.get(name), str) and row[name].strip() for name in _SYSTEM):
        yield SYSTEM_PROMPT
    if any(find(row, path) for path in _TOOLS):
        yield TOOLS
    if any(find(row, path) is not None for path in shape.further):
        yield GENERATIONS


def _missing(row: Row, shape: Shape, field: str) -> FieldError:
    names = ", ".join(getattr(shape, field))
    looks = "" if shape.name == "columns" else f" of the shape {shape.name}"
    message = f"no {field}{looks} ({names}); {_names(row)}"
    if field == "question" and "custom_id" in row:
        message += "; the questions of an OpenAI batch are in its input file: --input FILE"
    else:
        known = {*shape.question, *shape.answer, *shape.correct, *_SYSTEM}
        unread = [name for name, value in row.items() if value and name not in known]
        texts = [name for name in unread if isinstance(row[name], str | list | dict)]
        paths = [f"{field}={name}" for name in texts[:3] or ["COLUMN"]]
        choices = " or ".join(f"--map {quote(path)}" for path in paths)
        message += f": name its column, such as {choices}"
    return FieldError("missing_field", "", message)


def _names(row: Row) -> str:
    return f"its fields are {', '.join(map(str, row))}"
