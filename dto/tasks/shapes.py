"""The shapes of imported rows: which fields hold question, response, thinking and gold answer.

A field is named by a path: `response.body.choices[].message.content`. `[0]` is one element of a
list, `[]` all of them, `*` all values of a mapping, and `a + b` the texts of both. A column whose
name is the whole path comes first. Paths of `sample.map` have the same form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import Any

from dto.settings import Column
from dto.tasks.messages import THINKING, read_turns, role
from dto.tasks.task import FieldError, Row

Columns = Mapping[Column, str]
"""The path of each field that a user names (`sample.map`)."""
NO_COLUMNS: Columns = {}
SIDES = ("chosen", "rejected")
"""The two responses of a row of preferences: samples 2k and 2k + 1 of their problem."""

CHAT = ("messages", "conversations")
QUESTION = ("prompt", "question", "problem", "instruction", "query")
RESPONSE = (
    "response", "completion", "output", "generation", "model_output", "generated_text",
    "conclusion", "content", "responses", "completions", "outputs", "generations",
)  # fmt: skip
ANSWER = (
    "answer", "gold", "gold_answer", "ground_truth", "reference_answer", "expected_answer",
    "correct_answer", "target", "reward_model.ground_truth[]",
)  # fmt: skip
SOLUTION = ("solution", "ground_truth_solution")
CORRECT = ("correct", "is_correct", "correctness")
FINISH = (
    "finish_reason[]", "finish_reasons[]", "stop_reason[]", "is_truncated[]",
    "is_reasoning_complete[]",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Where the fields of a published form of rows are: paths, the first with a value is read.

    A row has this shape if each path of `needs` has a value, and a response is there. Of the fields
    in `asks`, several paths with different values are an error. A path that is both question and
    response is a chat.
    """

    name: str
    needs: tuple[str, ...] = ()
    question: tuple[str, ...] = QUESTION
    response: tuple[str, ...] = RESPONSE
    thinking: tuple[str, ...] = ()
    answer: tuple[str, ...] = ANSWER
    solution: tuple[str, ...] = SOLUTION
    """Texts whose boxed answer, or number, is the gold answer where `answer` has none."""
    correct: tuple[str, ...] = CORRECT
    """Verdicts of the source: for each response, or for the only one."""
    finish: tuple[str, ...] = FINISH
    """Why each response, or all, ended; any of these tells that it was cut off."""
    asks: tuple[str, ...] = ("answer",)
    sent: tuple[str, ...] = ()
    """The prompt that was sent to the model, which may hold more than the question."""
    further: tuple[str, ...] = ()
    """Responses of other models, which are not imported."""
    variant: str = ""
    """A row that differs from an earlier one in the value of this path alone repeats it."""
    untagged: bool = False
    """The response is thinking without tags that ends in its final answer."""
    exact: bool = False
    """The row has no columns but those of `needs`."""


_ASKED = ("messages", "input", "prompt")
_ANSWERED = ("choices[].message", "choices[].text", "output", "content")
_ENDED = ("choices[].finish_reason", "incomplete_details.reason[]", "stop_reason[]")

SHAPES: tuple[Shape, ...] = (
    Shape(
        name="OpenAI batch",
        needs=("custom_id", "body.*", "response.body.*"),
        question=tuple(f"body.{path}" for path in _ASKED),
        response=tuple(f"response.body.{path}" for path in _ANSWERED),
        answer=(*ANSWER, "body.metadata.answer"),
        finish=tuple(f"response.body.{path}" for path in _ENDED),
    ),
    Shape(
        name="Anthropic batch",
        needs=("custom_id", "result.message.content"),
        question=("params.messages", *QUESTION, "messages"),
        response=("result.message",),
    ),
    Shape(
        name="request log",
        needs=("request.*", "response.*"),
        question=tuple(f"request.{path}" for path in _ASKED),
        response=tuple(f"response.{at}{path}" for at in ("", "body.") for path in _ANSWERED),
        answer=(*ANSWER, "request.metadata.answer"),
        finish=tuple(f"response.{at}{path}" for at in ("", "body.") for path in _ENDED),
    ),
    Shape(
        name="chat completion",
        needs=("choices[].message",),
        question=(*QUESTION, "messages"),
        response=_ANSWERED[:1],
        finish=_ENDED[:1],
    ),
    Shape(
        name="text completion",
        needs=("choices[].text", "choices[].finish_reason"),
        question=QUESTION,
        response=_ANSWERED[1:2],
        finish=_ENDED[:1],
    ),
    Shape(
        name="OpenR1-Math",
        needs=("generations",),
        response=("generations[]",),
        asks=("question", "answer"),
        correct=("correctness_math_verify[]", "correctness_llama[]", *CORRECT),
    ),
    Shape(
        name="s1K-1.1",
        needs=("deepseek_thinking_trajectory", "deepseek_attempt"),
        response=("deepseek_attempt[]",),
        thinking=("deepseek_thinking_trajectory[]",),
        correct=("deepseek_grade",),
        further=("gemini_attempt",),
    ),
    Shape(
        name="s1K-1.1 of Gemini",
        needs=("gemini_thinking_trajectory", "gemini_attempt"),
        response=("gemini_attempt[]",),
        thinking=("gemini_thinking_trajectory[]",),
        correct=("gemini_grade",),
    ),
    Shape(
        name="s1K",
        needs=("thinking_trajectories", "attempt"),
        response=("attempt[]",),
        thinking=("thinking_trajectories[]",),
    ),
    Shape(
        name="OpenThoughts metadata",
        needs=("deepseek_reasoning", "deepseek_solution"),
        response=("deepseek_solution",),
        thinking=("deepseek_reasoning",),
    ),
    Shape(
        name="inspect",
        needs=("messages[0]", "output.choices"),
        question=("input", "messages"),
        response=("messages",),
        answer=("target[]", *ANSWER),
        correct=("scores.*.value",),
        finish=("output.choices[0].stop_reason",),
        sent=("messages",),
        asks=(),
    ),
    Shape(
        name="inspect",
        needs=("input", "output.choices"),
        question=("input",),
        response=("output.choices[].message",),
        answer=("target[]", *ANSWER),
        correct=("scores.*.value",),
        finish=("output.choices[].stop_reason",),
        asks=(),
    ),
    Shape(
        name="lm-eval",
        needs=("doc", "resps"),
        question=(*(f"doc.{name}" for name in QUESTION), "arguments.gen_args_0.arg_0",
                  "arguments[0][0]"),
        response=("resps[0][]",),
        answer=("target", *(f"doc.{name}" for name in ANSWER)),
        solution=("doc.solution",),
        correct=("exact_match", "acc", *CORRECT),
        sent=("arguments.gen_args_0.arg_0", "arguments[0][0]"),
        asks=(),
        variant="filter",
    ),
    Shape(
        name="instruction and input",
        needs=("instruction", "input", "output"),
        question=("instruction + input",),
        response=("output", *RESPONSE),
        asks=("response", "answer"),
    ),
    Shape(
        name="input and output",
        needs=("input", "output"),
        question=("input", *QUESTION),
        response=("output", *RESPONSE),
        finish=(*FINISH, "incomplete_details.reason[]"),
        asks=("question", "response", "answer"),
    ),
    Shape(
        name="verifiers",
        needs=("prompt", "completion", "reward"),
        question=("prompt",),
        response=("completion",),
        correct=("reward",),
    ),
    Shape(
        name="OpenThoughts",
        needs=("system", "conversations"),
        question=("conversations",),
        response=("conversations",),
    ),
    Shape(
        name="chat",
        needs=("messages",),
        question=CHAT,
        response=(*CHAT, *RESPONSE),
        asks=("response", "answer"),
    ),
    Shape(
        name="ShareGPT",
        needs=("conversations",),
        question=CHAT,
        response=(*CHAT, *RESPONSE),
        asks=("response", "answer"),
    ),
    Shape(
        name="LIMO",
        needs=("question", "solution", "answer"),
        question=("question",),
        response=("solution",),
        solution=(),
        untagged=True,
        exact=True,
    ),
)  # fmt: skip
"""The known shapes, most specific first."""
COLUMNS = Shape(
    name="columns",
    question=(*QUESTION, *CHAT),
    thinking=THINKING,
    asks=("question", "response", "thinking", "answer"),
)
"""Rows of no known shape: the names of their columns tell what they hold."""
PREFERENCES = Shape(name="preferences", needs=SIDES, response=SIDES, asks=COLUMNS.asks)


def shape_of(row: Row, columns: Columns) -> Shape:
    """The shape of a row; the paths in `columns` (`sample.map`) replace those of its fields."""
    shapes = (shape for shape in SHAPES if _has(row, shape))
    first = next(shapes, COLUMNS)
    shape = next((each for each in chain([first], shapes) if _answers(row, each)), None)
    if shape is None:
        shape = COLUMNS if _answers(row, COLUMNS) else first
    return with_columns(shape, columns, row)


def with_columns(shape: Shape, columns: Columns, row: Row) -> Shape:
    """Replace the paths of a shape's fields.

    A column has one use. If the row has a response of the shape, but another one is named, thinking
    and verdicts are no longer those of the shape.
    """
    if not columns:
        return shape
    if shape.exact and "response" in columns:
        shape = COLUMNS
    fields = ("question", "response", "thinking", "answer", "solution", "correct")
    own: dict[str, Any] = {
        field: tuple(path for path in getattr(shape, field) if path not in columns.values())
        for field in fields
    }
    if "response" in columns and any(_some(find(row, path)) for path in own["response"]):
        own |= {"thinking": (), "correct": (), "finish": (), "further": ()}
    if "answer" in columns:
        own["solution"] = ()
    own |= {str(field): (path,) for field, path in columns.items()}
    return replace(shape, **own)


def _answers(row: Row, shape: Shape) -> bool:
    """Whether a row has a response, or thinking, of a shape."""
    return any(_some(find(row, path)) for path in (*shape.response, *shape.thinking))


def _some(value: Any) -> bool:
    """Whether a value is there, and no empty text, list of nulls, or mapping but a message."""
    if isinstance(value, Mapping):
        return bool({"role", "from", "content"} & value.keys())
    if isinstance(value, list):
        return any(each is not None and each != "" for each in value)
    return value is not None and value != ""


def _has(row: Row, shape: Shape) -> bool:
    found = [find(row, path) for path in shape.needs]
    if any(
        value is None or (isinstance(value, list) and value and not _some(value)) for value in found
    ):
        return False
    if shape.exact and not {name for name in row if row[name] is not None} <= {*shape.needs}:
        return False
    chat = find(row, shape.needs[0]) if shape.needs[0] in shape.response else None
    last = chat[-1] if isinstance(chat, list) and chat else None
    asks_only = isinstance(last, Mapping) and role(last) == "user"
    return not asks_only  # then the response is in another column


_STEP = re.compile(r"\[(\d*)\]|([^.\[\]]+)")


def find(row: Row, path: str) -> Any:
    """The value at a path; None where there is none, and for NaN. `[]` and `*` make it a list."""
    if " + " in path and path not in row:
        parts = [find(row, part) for part in path.split(" + ")]
        texts = [part.strip() for part in parts if isinstance(part, str) and part.strip()]
        return "\n\n".join(texts) or None
    if path in row:
        return _value(row[path])
    return _follow(row, _steps(path))


def first_step(row: Row, path: str) -> str:
    """The column that a path begins with."""
    return path if path in row else re.split(r"[.\[]", path, maxsplit=1)[0]


@lru_cache(maxsize=1024)
def _steps(path: str) -> tuple[tuple[str | None, str | None], ...]:
    """Index and name of each step of a path; one of them is None or, for `[]`, empty."""
    return tuple((match[1], match[2]) for match in _STEP.finditer(path))


def _follow(value: Any, steps: Sequence[tuple[str | None, str | None]]) -> Any:
    for place, (index, name) in enumerate(steps):
        if value is None:
            return None
        rest = steps[place + 1 :]
        if name == "*" or (name is None and not index):
            if name and not isinstance(value, Mapping):
                return None
            many = value.values() if name else value
            if isinstance(many, str | Mapping) or not hasattr(many, "__iter__"):
                many = [many]
            found = [_follow(each, rest) for each in many]
            return found or None
        if name is not None:
            value = value.get(name) if isinstance(value, Mapping) else None
        else:
            at = int(index or 0)
            value = value[at] if isinstance(value, list) and at < len(value) else None
    return _value(value)


def _value(value: Any) -> Any:
    return None if isinstance(value, float) and value != value else value


def is_path(path: str) -> bool:
    """Whether a text has the form of a path."""
    return all(re.fullmatch(r"[^.\[\]]+(\[\d*\])*(\.[^.\[\]]+(\[\d*\])*)*", part.strip())
               for part in path.split(" + "))  # fmt: skip


def whole_chat(value: object, shape: Shape, path: str) -> bool:
    """Whether the messages at a path of the response are a chat that begins with the question."""
    if path not in shape.question or not (isinstance(value, list) or path in CHAT):
        return False
    if role(read_turns(value)[-1]) != "assistant":
        raise FieldError("missing_field", "", "the last message is not the assistant's")
    return True
