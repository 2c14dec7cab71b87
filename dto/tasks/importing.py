"""Import rows of prompt and response as trajectories, for the stages from `segment` on.

Rows of chosen and rejected are two responses to one prompt each, for the stages from `pair` on.

Imported responses are text, so their ids are encoded once and marked (`ids_from` is `encoded`): a
model may have written the same text with other tokens.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from dto.baselines import by_problem
from dto.context import Context
from dto.errors import DtoError
from dto.grading.compare import numeric
from dto.grading.grader import unreadable_golds
from dto.grading.pool import row_rule
from dto.protocols import Completion
from dto.records import Dropped, PreferencePair, Problem, Trajectory
from dto.runs.reader import RunReader
from dto.runs.stage import RENDERING, Group, always
from dto.source import Source
from dto.stages.pair import STAGE as PAIR
from dto.stages.pair import Side, limited, make_pair
from dto.stages.sample import STAGE as SAMPLE
from dto.tags import DEFAULT_TAGS, FOREIGN, KNOWN_TAGS, ThinkTags, foreign_detail, think_tags
from dto.tasks.load import NOT_NUMERIC, Rows, check_rule, load_problems, read_source
from dto.tasks.task import FieldError, Row
from dto.text import split_thinking
from dto.trajectories import make_trajectory, opens_thinking, prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dto.protocols import Grader
    from dto.recipe import ModelSettings, PairSettings, ProblemSettings

logger = logging.getLogger("dto")

TASK = "imported"
BLOCK = 1024  # gold answers that are checked together
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


class Response(NamedTuple):
    """A row as one response; `text` has the tags of the row, or tags derived from its fields."""

    problem: Problem
    sample: int
    text: str
    whole: bool = False  # one side of a preference: without tags it has no thinking


def holds_pairs(source: str) -> bool:
    """Whether the first row of a source has a chosen and a rejected response (TRL's columns)."""
    rows = _rows(source)
    first = next((row for row in rows if not isinstance(row, Dropped)), None)
    return first is not None and all(first.get(side) is not None for side in SIDES)


def _rows(source: str, *, verbose: bool = False) -> Rows:
    """The rows to train on: of a dataset the splits that begin with `train`, if it has any.

    With `verbose`, log the names of the other splits.
    """
    splits = read_source(Source.parse(source))
    train = {name: rows for name, rows in splits.items() if (name or "").startswith("train")}
    others = sorted(str(name) for name in splits.keys() - train.keys()) if train else []
    if others and verbose:
        logger.info("%s: split %s is not imported", source, ", ".join(others))
    return chain.from_iterable((train or splits).values())


def read_responses(
    source: str, *, tags: ThinkTags = DEFAULT_TAGS, rule: str = "math", verbose: bool = False
) -> Iterator[Response | Dropped]:
    """Read the rows of a .jsonl or .parquet file, a folder or a Hub dataset, in order.

    If a dataset has a split to train on, the others are not read, because they are test sets; with
    `verbose` the log names them. Thinking in a separate field is put between `tags`. Rows with the
    same question and gold answer are samples of one problem, whose answers `rule` compares. A row
    without a field, or with an empty one or the wrong type, is dropped with the reason
    `missing_field`, `wrong_type`, `empty_question`, `empty_response`, `several_turns` or, if its
    two sides answer different questions, `two_questions`; a line that is not a JSON object as
    `unreadable_row`. If the source `holds_pairs`, each row gives two responses, chosen and
    rejected, or none.

    Raises:
        DtoError: the source does not exist or cannot be read.
    """
    samples: Counter[str] = Counter()
    pairs = holds_pairs(source)
    rows = _rows(source, verbose=verbose)
    for number, row in enumerate(rows, start=1):
        if isinstance(row, Dropped):
            yield row
            continue
        try:
            question, texts, answer = (_read_sides if pairs else _read)(row, tags)
        except FieldError as error:
            where = f"{source}, row {number}: {error}"
            yield Dropped(f"row/{number:08d}", error.reason, where)
            continue
        problem_id = Problem.make_id(TASK, question, answer)
        problem = Problem(problem_id, TASK, "train", question, answer, rule)
        for text in texts:
            yield Response(problem, samples[problem_id], text, whole=pairs)
            samples[problem_id] += 1


def imported_problems(
    source: str, settings: ProblemSettings, seed: int
) -> Iterator[Problem | Dropped]:
    """The questions of a source to train on, and the dev and test problems of the settings.

    No dev or test problem is among the questions; near duplicates are logged or dropped, as
    `load_problems` does. A question whose gold answer cannot be read is dropped
    (`unreadable_gold`), except in preferences, whose answers are not graded, and one that the
    settings' `filter` leaves out (`not_numeric`). `read_responses` names
    the reasons for which rows are dropped. Raises DtoError if no row can be read, and as
    `load_problems` does.
    """
    imported: dict[str, Problem] = {}
    waiting: list[Problem] = []
    reason = "it is empty"
    rule = _rule(settings)
    check_rule(rule)
    for row in read_responses(source, rule=rule, verbose=True):
        if isinstance(row, Dropped):
            reason = f"the last one is dropped as {row.reason}: {row.detail}"
        elif row.problem.id not in imported:
            imported[row.problem.id] = row.problem
            if settings.filter and not numeric(row.problem.answer, rule):
                yield Dropped(row.problem.id, NOT_NUMERIC, f"{row.problem.answer[:80]!r}")
                continue
            if row.whole or not row.problem.answer:
                yield row.problem
                continue
            waiting.append(row.problem)
            if len(waiting) == BLOCK:
                yield from _readable(waiting)
                waiting = []
    yield from _readable(waiting)
    if not imported:
        raise DtoError(f"{source} has no row that can be read: {reason}")
    others = settings.model_copy(update={"train": 0})
    yield from load_problems(others, seed, imported.values())


def _rule(settings: ProblemSettings) -> str:
    return row_rule(settings.rule or "math", settings.rule_settings)


def _readable(problems: Sequence[Problem]) -> Iterator[Problem | Dropped]:
    faults = unreadable_golds(problems)
    return (faults.get(row.id, row) for row in problems)


async def to_trajectory(
    response: Response, tokenizer: PreTrainedTokenizerBase, settings: ModelSettings, grader: Grader
) -> Trajectory | Dropped:
    """The trajectory of a response, with the ids that the model would have in its context.

    The chat template decides whether the prompt or the response opens the thinking. A response that
    closes its thinking ends with EOS; one that does not is graded `truncated`, and one without a
    gold answer `failed` (`no_gold_answer`). A response with other tags than `model.think` is
    dropped as `foreign_tags`. Raises DtoError if the chat template cannot render the question.
    """
    tags = think_tags(tokenizer, settings)
    foreign = tags.foreign(response.text, ended=True)
    if foreign is not None:
        row_id = Trajectory.make_id(response.problem.id, response.sample)
        return Dropped(row_id, FOREIGN, foreign_detail(tags, foreign))
    prompt, ids, closed = await asyncio.to_thread(_encode, response, tokenizer, settings, tags)
    completion = Completion(tuple(ids), "", "stop" if closed else "length", ids_from="encoded")
    return await make_trajectory(
        response.problem,
        completion,
        model=settings.name,
        sample=response.sample,
        seed=0,
        prompt_ids=prompt,
        tokenizer=tokenizer,
        grader=grader,
        tags=tags,
    )


def _encode(
    response: Response,
    tokenizer: PreTrainedTokenizerBase,
    settings: ModelSettings,
    tags: ThinkTags,
) -> tuple[tuple[int, ...], list[int], bool]:
    prompt = prompt_ids(response.problem.question, tokenizer, settings)
    text = response.text.lstrip()
    opened = opens_thinking(tokenizer, prompt, tags)
    if opened:
        text = text.removeprefix(tags.open).lstrip("\n")
    if opened and response.whole and tags.close not in text and tags.open not in response.text:
        text = f"{tags.close}\n\n{text}"
    elif not opened and tags.close in text and tags.open not in text.partition(tags.close)[0]:
        text = f"{tags.open}\n{text}"
    ids = list(tags.encode(tokenizer, text))
    closed = split_thinking(text, opened, tags).closed
    if closed and tokenizer.eos_token_id is not None:
        ids.append(int(tokenizer.eos_token_id))
    return prompt, ids, closed


def _read(row: Row, tags: ThinkTags) -> tuple[str, tuple[str, ...], str]:
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


def _read_sides(row: Row, tags: ThinkTags) -> tuple[str, tuple[str, ...], str]:
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


async def imported(
    response: Response, problem_ids: Collection[str], ctx: Context
) -> Trajectory | Dropped:
    """The trajectory of an imported response; dropped if its problem was dropped."""
    problem = response.problem
    if problem.id not in problem_ids:
        detail = f"gold answer {problem.answer[:100]!r} of problem {problem.id}"
        row_id = Trajectory.make_id(problem.id, response.sample)
        filtered = ctx.recipe.problems.filter and not numeric(problem.answer, problem.rule)
        return Dropped(row_id, NOT_NUMERIC if filtered else "unreadable_gold", detail)
    return await to_trajectory(response, ctx.tokenizer, ctx.recipe.model, ctx.grader)


def _groups(run: RunReader, ctx: Context) -> Iterator[Group]:
    problem_ids = {row.id for row in run.problems("train")}
    tags, rule = think_tags(ctx.tokenizer, ctx.recipe.model), _rule(ctx.recipe.problems)
    for row in read_responses(str(ctx.recipe.sample.imported), tags=tags, rule=rule):
        if isinstance(row, Dropped):
            yield Group(row.id, (row,))
        else:
            yield Group(Trajectory.make_id(row.problem.id, row.sample), (row, problem_ids))


STAGE = replace(
    SAMPLE,
    reads=always(),
    settings=always(
        "sample.imported",
        "problems.rule",
        "problems.rule_settings",
        "problems.filter",
        "model.prompt",
        *RENDERING,
    ),
    groups=_groups,
    work=imported,
    total=lambda run: None,
    needs="tokenizer",
    renders=True,
    files=lambda recipe: (str(recipe.sample.imported),),
)
"""The stage `sample` of a run with imported responses."""


def imported_pairs(
    problem: Problem,
    trajectories: Sequence[Trajectory],
    tokenizer: PreTrainedTokenizerBase,
    settings: PairSettings,
) -> list[PreferencePair | Dropped]:
    """The pairs of a table of preferences: samples 2k and 2k + 1 are chosen and rejected.

    Lengths and grades do not matter. At most `max_per_problem`; the rest are dropped as
    `over_limit`, and a pair with a dropped side as `no_pair`.
    """
    sides = {row.sample: row for row in trajectories}
    rows: list[PreferencePair | Dropped] = []
    for first in sorted({sample - sample % 2 for sample in sides}):
        chosen, rejected = sides.get(first), sides.get(first + 1)
        if chosen is None or rejected is None:
            row_id = Trajectory.make_id(problem.id, first)
            rows.append(Dropped(row_id, "no_pair", "one of its sides is dropped"))
            continue
        side = Side(chosen.id, chosen.token_ids, chosen.text, "imported")
        rows.append(make_pair(chosen, side, rejected, "imported", tokenizer, settings))
    return limited(rows, settings.max_per_problem)


async def _pair(
    problem: Problem, trajectories: Sequence[Trajectory], ctx: Context
) -> list[PreferencePair | Dropped]:
    return await asyncio.to_thread(
        imported_pairs, problem, trajectories, ctx.tokenizer, ctx.recipe.pair
    )


PAIRS = replace(PAIR, reads=always("sample"), groups=by_problem, work=_pair)
"""The stage `pair` of a run with imported preferences."""
