"""Read one imported row by its shape: question, responses with their tags, gold answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from shlex import quote
from typing import NamedTuple, TypeVar

from dto.grading.compare import numeric
from dto.grading.extract import last_box
from dto.tags import ThinkTags
from dto.tasks.messages import (
    OPEN_THOUGHTS,
    SYSTEM_PROMPT,
    TOOLS,
    Content,
    composed,
    is_cut_off,
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
    first_step,
    shape_of,
    whole_chat,
    with_columns,
)
from dto.tasks.task import FieldError, Row

T = TypeVar("T")

GENERATIONS, REWRITTEN, PROMPT = "generations", "tags", "prompt"
_TEMPLATE = re.compile(
    r"<\|(im_start|start_header_id|start|user|assistant|system)\|>|<｜(User|Assistant)｜>"
    r"|<start_of_turn>|\[INST\]"
)
_TRUE = ("true", "yes", "c", "correct", "right")
_FALSE = ("false", "no", "i", "incorrect", "wrong")
_NUMBER = re.compile(r"-?\d{1,9}(\.\d{1,9})?")
MOST_GOLD = 40
"""Characters of a number that is a gold answer."""
_SYSTEM = (
    "system", "system_prompt", "instructions", "request.system", "request.instructions",
    "body.system", "body.instructions", "params.system",
)  # fmt: skip
_TOOLS = ("tools", "request.tools", "body.tools")


class Undecided(FieldError):
    """Several columns can be a field, and their values differ: the user has to choose one."""

    def __init__(self, field: str, paths: Sequence[str], detail: str) -> None:
        choices = " or ".join(f"--map {quote(f'{field}={path}')}" for path in paths)
        super().__init__("undecided", field, f"{detail}: choose with {choices}")


class ReadRow(NamedTuple):
    """A row of a source. `texts` are its responses with tags, `correct` the source's verdicts.

    A text is empty where a row has other responses, but not this one. `cut` tells which
    responses the limit of tokens cut off. `fields` tells the name of the shape, under `shape`, and
    how each field was read.
    """

    question: str
    texts: tuple[str, ...]
    answer: str
    correct: tuple[bool | None, ...]
    cut: Sequence[bool]
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
        if "thinking" not in columns:
            _check_alone(row, shape, thought_at)
        replies = [Content(None, None)] * len(thoughts)
    if not replies:
        raise _missing(row, shape, "response")
    if thoughts is not None:
        replies = _beside(replies, thoughts, answered, thought_at)
    answer_at, answer = _gold(row, shape)
    correct_at, correct = _correct(row, shape, len(replies))
    finish_at, cut = _cut_off(row, shape, len(replies))
    left_out = [*question.left_out, *_left_out(row, shape)]
    if _sent_another(row, shape, _stripped(question.text)):
        left_out.append(PROMPT)
    texts, how = [], ""
    for reply in replies:
        left_out += reply.left_out
        text, read_as = composed(reply, tags, untagged=shape.untagged)
        texts.append(text)
        how = how or (read_as if text else "")
    if not any(texts):
        raise FieldError("empty_response", "", "the response is empty")
    if how.startswith(OPEN_THOUGHTS[0]):
        left_out.append(REWRITTEN)
    fields = {"shape": shape.name, "question": asked, "response": answered, "thinking": how,
              "answer": answer_at, "correct": correct_at, "finish": finish_at}  # fmt: skip
    return ReadRow(
        _stripped(question.text),
        tuple(texts),
        answer,
        correct,
        [here or reply.cut for here, reply in zip(cut, replies, strict=True)],
        tuple(sorted(set(left_out))),
        fields,
        str(find(row, shape.variant) or "") if shape.variant else "",
    )


def read_sides(row: Row, tags: ThinkTags, columns: Columns) -> ReadRow:
    """Read a row of preferences; `texts` are the chosen and the rejected response.

    A side is text, or messages; messages before the last repeat the question, or replace the
    prompt. Raises FieldError, also if the sides answer different questions, and Undecided.
    """
    shape = with_columns(PREFERENCES, columns, row)
    asked, prompt = _pick(row, shape, "question", _read_question)
    questions = set() if prompt is None else {(prompt.text or "").strip()}
    left_out = [*(() if prompt is None else prompt.left_out), *_left_out(row, shape)]
    texts, cut = [], []
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
            reply = _reply(response)
        left_out += reply.left_out
        text, _ = composed(reply, tags)
        if not text:
            raise FieldError("empty_response", "", f"the {side} response is empty")
        texts.append(text)
        cut.append(reply.cut)
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
        cut,
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
    if path in CHAT or (isinstance(value, list) and not (is_parts(value) and _no_roles(value))):
        turns = read_turns(value)
        chat = path in shape.response and role(turns[-1]) == "assistant"
        question = read_question(turns[:-1] if chat else turns)
    else:
        question = read_content(value, "question", "\n")
    if (token := _TEMPLATE.search(question.text or "")) is not None:
        detail = f"{path} has been through a chat template ({token[0]})"
        raise FieldError("templated_prompt", "", f"{detail}: --map question=FIELD names another")
    return question


def _sent_another(row: Row, shape: Shape, question: str) -> bool:
    """Whether another prompt than the question was sent to the model."""
    for path in shape.sent:
        try:
            sent = _read_question(row, shape, path)
        except FieldError:  # several turns, or a chat template
            return True
        if sent is not None:
            return (sent.text or "").strip() != question
    return False


def _no_roles(parts: list[Mapping[str, object]]) -> bool:
    """Whether no part is a message, as an input item of the Responses API is."""
    return not any("role" in part for part in parts)


def _read_replies(row: Row, shape: Shape, path: str) -> list[Content] | None:
    value = find(row, path)
    if value is None:
        return None
    if whole_chat(value, shape, path):
        turns = read_turns(value)
        before, reply = read_question(turns[:-1]), read_reply(turns[-1])
        return [reply._replace(left_out=(*before.left_out, *reply.left_out))]
    texts = isinstance(value, list) and all(isinstance(each, str | None) for each in value)
    values = value if "[]" in path or texts else [value]
    if all(each is None for each in values):
        return None
    return [Content(None, None) if each is None else _reply(each) for each in values]


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
        reply
        if (reply.thinking or "").strip()
        else reply._replace(thinking=thought, place=thought_at)
        for reply, thought in zip(replies, thoughts, strict=True)
    ]


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
    if "####" in text:
        return _last_line(text)
    box = last_box(text) if text.count(r"\boxed") == 1 else None
    words = "" if box is None else text.replace(box, "").replace(r"\boxed", "").strip("${}. \n")
    return box if words else text


def _last_line(text: str) -> str:
    """The answer behind the last `####` (GSM8K), or the text if it is a number; else empty."""
    _, hashes, answer = text.rpartition("####")
    if hashes:
        return answer.strip().replace(",", "")
    return text if len(text) <= MOST_GOLD and numeric(text, "math") else ""


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


def _cut_off(row: Row, shape: Shape, count: int) -> tuple[str, list[bool]]:
    """Where the source says how responses ended, and which of `count` were cut off."""
    paths, cut = [], [False] * count
    for path in shape.finish:
        value = find(row, path)
        ends = value if isinstance(value, list) else [value]
        here = [_is_cut(path, end) for end in ends]
        if len(ends) not in (1, count):
            if any(here):
                detail = f"{path} tells the end of {len(ends)} responses, there are {count}"
                raise FieldError("unequal_lists", "", detail)
        elif any(end is not None for end in ends):
            paths.append(path)
            here *= count // len(ends)
            cut = [before or now for before, now in zip(cut, here, strict=True)]
    return " and ".join(paths), cut


def _is_cut(path: str, end: object) -> bool:
    if path.startswith("is_"):
        return _verdict(end) is path.startswith("is_truncated")
    return is_cut_off(end)


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
    systems = [find(row, path) for path in _SYSTEM]
    if any(_is_full(system) for system in systems if isinstance(system, str | list)):
        yield SYSTEM_PROMPT
    if any(find(row, path) for path in _TOOLS):
        yield TOOLS
    if any(find(row, path) is not None for path in shape.further):
        yield GENERATIONS


def _check_alone(row: Row, shape: Shape, thought_at: str) -> None:
    """Raise FieldError if a row with thinking alone may have its response in an unknown column.

    An empty column of the response means that the thinking never closed.
    """
    if any(first_step(row, path) in row for path in shape.response):
        return
    known = {*shape.question, *shape.correct, *_SYSTEM, first_step(row, thought_at)}
    golds = {*shape.answer, *shape.solution}
    others = [
        name
        for name, value in row.items()
        if isinstance(value, str) and value.strip() and name not in known
        if name not in golds or len(value) > MOST_GOLD or "\n" in value or r"\boxed" in value
    ]
    if others:
        choices = " or ".join(f"--map response={name}" for name in others[:3])
        detail = f"{thought_at} is thinking, but no known column has a response; {_names(row)}"
        way = f"name its column, such as {choices}; where the thinking never closed"
        raise FieldError("missing_field", "", f"{detail}: {way}, --map thinking={thought_at}")


def _missing(row: Row, shape: Shape, field: str) -> FieldError:
    names = ", ".join(getattr(shape, field))
    looks = "" if shape.name == "columns" else f" of the shape {shape.name}"
    message = f"no {field}{looks} ({names}); {_names(row)}"
    if field == "question" and "custom_id" in row and "response" in row:
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
