"""Chains that another model writes: its ids where they are the student's, else its text again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dto import tables
from dto.compare.compare import charged_tokens
from dto.context import Context
from dto.drqa.chain import batch_chains, vanilla_chain
from dto.drqa.records import BatchResponse, Chain, LabelledChain
from dto.drqa.teacher import as_trajectory, taught
from dto.errors import DtoError, EngineError
from dto.hub.card import models
from dto.pipeline import needed, open_run, run_stages, stage_of
from dto.protocols import Capabilities, Completion
from dto.recipe import Recipe, make_recipe, resolve
from dto.records import Dropped
from dto.reporting.write import report
from dto.runs.reader import RunReader
from dto.viewer.data import RunTables
from tests.drqa.responses import HEADED, THREE
from tests.drqa.test_stages import LIST, PROBLEMS
from tests.engines.model_server import serving
from tests.stages.script import CUT, FAIL

ALONE = "\n48 + 24 is 72.\n</think>\n\nSo \\boxed{72}."
TEACHER = {"batch": {"k": [3], "teacher": {"name": "nano"}}}


@pytest.fixture(scope="session")
def nano() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(resolve("nano"))


class Chat:
    """A chat server without a tokenizer, which takes messages."""

    def __init__(self, reply: str) -> None:
        self.reply, self.model, self.tokenizer = reply, "hosted", None
        self.context, self.shape = 2**31 - 1, None
        self.capabilities = Capabilities(token_prompts=False, messages_only=True, logprobs=None)
        self.asked: list[Any] = []

    async def complete(self, prompt: Any, sampling: Any, n: int = 1) -> list[Completion]:
        self.asked.append((prompt, sampling))
        if self.reply == FAIL:
            return [Completion((), "", "failed", 0, error="engine on fire")]
        cut = self.reply.endswith(CUT)
        text = self.reply.removesuffix(CUT)
        return [Completion((), text, "length" if cut else "stop", 9, ids_from="encoded")]


def chat(context: Callable[..., Context], reply: str, **teacher: Any) -> tuple[Context, Chat]:
    settings = {"batch": {"k": [3], "teacher": {"name": "hosted", **teacher}}}
    ctx, engine = context(lambda *_: "", **settings), Chat(reply)
    return Context(ctx.recipe, engine, ctx.grader), engine  # type: ignore[arg-type]


async def test_ids_stay_where_both_models_have_one_tokenizer(context, tokenizer) -> None:
    ctx = context(lambda *_: HEADED + LIST, **TEACHER, sample={"max_tokens": 700})
    async with ctx.grader:
        row = await taught(PROBLEMS, 0, tokenizer, ctx)
    assert isinstance(row, BatchResponse)
    ((_, sampling, _),) = ctx.engine.calls
    assert row.ids_from == "sampled" and row.model == "scripted"
    assert tokenizer.decode(row.token_ids) == HEADED + LIST + "<eos>"
    assert (sampling.max_tokens, row.grades) == (2100, ("correct", "correct", "wrong"))
    assert row.prompt_ids == ctx.engine.requests[0][0]


async def test_text_is_encoded_again_for_another_tokenizer(context, tokenizer, nano) -> None:
    ctx = context(lambda *_: HEADED + LIST, **TEACHER)
    async with ctx.grader:
        row = await taught(PROBLEMS, 0, nano, ctx)
    assert isinstance(row, BatchResponse)
    assert row.ids_from == "encoded" and row.grades == ("correct", "correct", "wrong")
    assert nano.decode(row.token_ids) == HEADED + LIST + nano.eos_token
    assert nano.decode(row.prompt_ids).endswith("assistant\n<think>\n")
    thinking = row.text[slice(*row.thinking)]
    assert nano.decode(row.token_ids[slice(*row.thinking_tokens)]) == thinking == HEADED
    chains = list(batch_chains(PROBLEMS, row, nano))
    assert [type(chain) for chain in chains] == [Chain] * 3
    assert nano.decode(row.token_ids[slice(*chains[1].span)]).startswith("**Question 2:**")


@pytest.mark.parametrize(
    ("tags", "reply"),
    [
        (("<think>", "</think>"), f"<think>{ALONE}"),
        (("<think>", "</think>"), f"<think>\n{ALONE}"),
        (("<think>", "</think>"), ALONE),  # the template opened the thinking
        (("[THINK]", "[/THINK]"), "[THINK]" + ALONE.replace("</think>", "[/THINK]")),
    ],
)
async def test_a_chat_server_without_a_tokenizer_teaches_too(context, nano, tags, reply) -> None:
    ctx, engine = chat(context, reply, think=list(tags), system="Be kind.")
    async with ctx.grader:
        row = await taught(PROBLEMS[:1], 1, nano, ctx)
    assert isinstance(row, BatchResponse)
    ((messages, _),) = engine.asked
    assert [each["role"] for each in messages] == ["system", "user"]
    assert THREE[0] in messages[1]["content"] and "1." not in messages[1]["content"]
    assert (row.k, row.sample, row.grades, row.faults) == (1, 1, ("correct",), ("",))
    assert nano.decode(row.token_ids) == ALONE.lstrip("\n") + nano.eos_token
    chain = vanilla_chain(PROBLEMS[0], as_trajectory(row), nano)
    assert isinstance(chain, Chain) and chain.text == "48 + 24 is 72."
    assert (chain.origin, chain.k, chain.source_id) == ("vanilla", 1, row.id)


@pytest.mark.parametrize(
    ("reply", "grade", "reason"),
    [
        (FAIL, "failed", "engine on fire"),
        ("<think>\nOn and on" + CUT, "truncated", ""),
        ("<think>\nOn and on", "truncated", ""),
        ("So \\boxed{72}.", "correct", ""),  # no thinking: a row, and later no chain
    ],
)
async def test_what_a_chat_teacher_does_not_end(context, nano, reply, grade, reason) -> None:
    ctx, _ = chat(context, reply)
    async with ctx.grader:
        row = await taught(PROBLEMS[:1], 0, nano, ctx)
    assert isinstance(row, BatchResponse) and (row.grades, row.reason) == ((grade,), reason)
    dropped = vanilla_chain(PROBLEMS[0], as_trajectory(row), nano)
    assert isinstance(dropped, Dropped)
    assert dropped.reason == ("empty" if grade == "correct" else grade)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("<think>\nIn `</think>` style: [T] 72.\n</think>\n\n\\boxed{72}", "quotes_a_tag"),
        ("[THINK]\n72\n[/THINK]\n\n\\boxed{72}", "foreign_tags"),
        ("<think>\n72\n</think>\n\nAfter [T] \\boxed{72}", ""),
    ],
)
async def test_tags_in_the_wrong_place(context, nano, reply, reason) -> None:
    ctx, _ = chat(context, reply)
    async with ctx.grader:
        row = await taught(PROBLEMS[:1], 0, nano, ctx)
    assert getattr(row, "reason", "") == reason


async def test_a_tag_of_the_student_in_the_teachers_words_is_dropped(context, nano) -> None:
    reply = "[T]\nIs it </think> or not? 72.\n[/T]\n\n\\boxed{72}"
    ctx, _ = chat(context, reply, think=["[T]", "[/T]"])
    async with ctx.grader:
        row = await taught(PROBLEMS[:1], 0, nano, ctx)
    assert isinstance(row, Dropped) and row.reason == "quotes_a_tag"


RECIPE: dict[str, Any] = {
    "name": "tiny",
    "model": {"name": "nano", "context": 1024, "slots": 64},
    "problems": {"train": 24, "dev": 2, "test": 2},
    "sample": {"samples": 2, "temperature": 1.0, "top_p": 1.0, "max_tokens": 320},
    "batch": {"k": [2], "teacher": {"name": "taught", "engine": "openai", "api": "completions",
                                    "tokenizer": "nano", "generated_price": 3}},
    "label": {"held_out": 0.4},
    "train": {"method": "drqa"},
    "evaluate": {"samples": 1, "models": ["base"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose chains are written by a server; the model itself is never asked."""
    path = tmp_path_factory.mktemp("run") / "tiny"
    with serving("nano", "taught") as server, pytest.MonkeyPatch.context() as patch:
        recipe = make_recipe(json.loads(json.dumps(RECIPE)),
                             {"batch.teacher.server": server.url})  # fmt: skip
        patch.setattr("dto.engines.transformers.TransformersEngine.__aenter__", _refuse)
        held = open_run(path, recipe)
        run_stages(held, ("problems", "batch", "chain", "label"))
    run_stages(held, ("evaluate",))
    held.close()
    report(path)
    return path


async def _refuse(engine: Any) -> Any:
    raise AssertionError("the model was asked")


@pytest.mark.slow(seconds=8)
def test_a_teacher_on_a_server_writes_both_kinds_of_chains(run: Path) -> None:
    rows = list(tables.read(run / "batch" / "rows.parquet", BatchResponse))
    assert Counter(row.k for row in rows) == {1: 48, 2: 12}
    assert {(row.model, row.ids_from) for row in rows} == {("taught", "sampled")}
    chains = list(tables.read(run / "chain" / "rows.parquet", Chain))
    assert {chain.origin for chain in chains} == {"vanilla", "batch"}
    assert {chain.source_id for chain in chains} <= {row.id for row in rows}
    labels = list(tables.read(run / "label" / "rows.parquet", LabelledChain))
    assert {row.verdict for row in labels} == {"concise", "verbose", "wrong"}
    assert not (run / "sample").exists()
    found = RunTables(run)
    alone = next(view for view in found.batches() if view.response.k == 1)
    assert alone.cut[0] or alone.dropped[0] is not None


@pytest.mark.slow
def test_the_report_says_who_wrote_the_chains_and_what_they_cost(run: Path) -> None:
    data = json.loads((run / "report" / "report.json").read_text("utf-8"))
    assert "written by a teacher, taught on openai" in data["batch"]["teacher"]
    assert [row["k"] for row in data["batch"]["rows"]] == [1, 2]
    html = (run / "report" / "report.html").read_text("utf-8")
    assert "written by a teacher, taught on openai" in html
    costs = data["cost"]["stages"]
    generated = sum(
        len(row.token_ids) for row in tables.read(run / "batch" / "rows.parquet", BatchResponse)
    )
    assert "batch" not in costs and costs["teacher"]["tokens"] == generated
    assert costs["teacher"]["money"] == pytest.approx(3 * generated / 1e6)
    assert "The tokens of the teacher cost" in html
    reader = RunReader(run)
    assert charged_tokens(reader, reader.recipe) == 0  # none of them is the policy's
    assert ("wrote the chains", "taught") in [(role, each.name) for role, each in
                                              models(reader.recipe)]  # fmt: skip


def plain_evaluation(recipe: Recipe) -> Any:
    return recipe.evaluate.model_copy(update={"models": ("base", "trained")})


def test_the_stages_and_digests_of_a_taught_run() -> None:
    recipe = make_recipe(json.loads(json.dumps(RECIPE)))
    drqa = recipe.model_copy(update={"evaluate": plain_evaluation(recipe)})
    assert needed(drqa) == ("problems", "batch", "chain", "label", "train", "evaluate")
    plain = Recipe.model_validate({**RECIPE, "batch": {"k": [2]}})
    assert "sample" in needed(plain)
    assert stage_of(plain, "batch").work is not stage_of(recipe, "batch").work
    by_difficulty = make_recipe(json.loads(json.dumps(RECIPE)), {"batch.grouping": "difficulty"})
    assert "sample" in needed(by_difficulty)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"batch.teacher.server": "http://127.0.0.1:9/v1"}, "connection to http://127.0.0.1:9/v1"),
        ({"batch.k": []}, "batch.k is empty"),
        ({"batch.teacher.server": "SERVER", "batch.teacher.name": "other"}, "it serves taught"),
    ],
)
def test_a_teacher_that_cannot_be_asked_is_refused_in_one_line(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with serving("nano", "taught") as server:
        given = {key: server.url if value == "SERVER" else value for key, value in changes.items()}
        held = open_run(tmp_path / "run", make_recipe(json.loads(json.dumps(RECIPE)), given))
        try:
            with pytest.raises((DtoError, EngineError), match=reason) as error:
                run_stages(held, ("problems", "batch"))
        finally:
            held.close()
    assert "\n" not in str(error.value)
