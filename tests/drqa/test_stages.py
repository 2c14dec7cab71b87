"""Batch, chain and label on scripted responses, and on the embedded model."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pytest
from transformers import AutoTokenizer

import dto
from dto import tables
from dto.context import without_engine
from dto.drqa.batch import batch, pass_rates
from dto.drqa.chain import batch_chains, vanilla_chain
from dto.drqa.probe import format_probe
from dto.drqa.records import BatchResponse, Chain, LabelledChain
from dto.errors import DtoError
from dto.hub.publish import publish
from dto.pipeline import open_run, run_stages, stage_of
from dto.recipe import Recipe, resolve
from dto.records import Dropped, Problem, Trajectory, derive
from dto.reporting.write import report
from dto.runs.reader import RunReader
from dto.runs.run import agree
from dto.stages.sample import sample
from dto.viewer.data import RunTables
from dto.viewer.page import view, without_error_texts
from tests.drqa.responses import HEADED, THREE
from tests.stages.script import CUT, FAIL

PROBLEMS = [
    Problem(f"{place:016x}", "toy", "train", question, answer)
    for place, (question, answer) in enumerate(zip(THREE, ("72", "10", "625"), strict=True))
]
LIST = "</think>\n\n1. \\boxed{72}\n2. \\boxed{10}\n3. \\boxed{624}"


async def asked(context, reply: str, **settings) -> BatchResponse:
    ctx = context(lambda *_: reply, batch={"k": [3]}, **settings)
    async with ctx.grader:
        row = await batch(PROBLEMS, 0, ctx)
    assert isinstance(row, BatchResponse)
    return row


async def test_one_response_to_numbered_questions(context, tokenizer):
    ctx = context(lambda *_: HEADED + LIST, sample={"max_tokens": 1000})
    async with ctx.grader:
        row = await batch(PROBLEMS, 2, ctx)
    assert isinstance(row, BatchResponse)
    ((prompt, sampling, n),) = ctx.engine.calls
    for number, question in enumerate(THREE, start=1):
        assert f"\n{number}. {question}\n" in prompt
    assert (sampling.max_tokens, n) == (3000, 1)
    assert sampling.seed == row.seed == derive(7, row.id, "batch")
    assert row.id == BatchResponse.make_id(2, row.problem_ids)
    assert row.problem_ids == tuple(problem.id for problem in PROBLEMS)
    assert row.grades == ("correct", "correct", "wrong")
    assert row.answers == ("72", "10", "624") and row.faults == ("", "", "")
    assert tokenizer.decode(row.token_ids[slice(*row.thinking_tokens)]) == HEADED


@pytest.mark.parametrize(
    ("reply", "grade"),
    [(HEADED + CUT, "truncated"), (HEADED + LIST + CUT, "truncated"), ("no end", "truncated"),
     (FAIL, "failed")],
)  # fmt: skip
async def test_no_answers_no_chains(context, tokenizer, reply, grade):
    row = await asked(context, reply)
    assert row.grades == (grade,) * 3
    found = list(batch_chains(PROBLEMS, row, tokenizer))
    assert [each.reason for each in found] == [grade] * 3
    assert row.reason == ("engine on fire" if reply == FAIL else "")


async def test_a_prompt_without_room(context):
    ctx = context(lambda *_: "", engine={"context": 50})
    row = await batch(PROBLEMS, 0, ctx)
    assert isinstance(row, Dropped) and row.reason == "prompt_too_long" and not ctx.engine.calls


async def test_chains_hold_the_tokens_of_their_reasoning(context, tokenizer):
    row = await asked(context, HEADED + LIST)
    chains = list(batch_chains(PROBLEMS, row, tokenizer))
    assert all(isinstance(chain, Chain) for chain in chains)
    for number, (problem, chain) in enumerate(zip(PROBLEMS, chains, strict=True), start=1):
        raw = tokenizer.decode(row.token_ids[slice(*chain.span)])
        assert raw.startswith(f"**Question {number}:**")
        assert chain.id == f"{problem.id}/batch/003/000" and chain.number == number
        assert (chain.tokens, chain.source_id) == (chain.span.length, row.id)
        assert chain.length == len(tokenizer.encode(chain.text))
    assert chains[1].text.startswith("50 minutes are 50/60 of an hour. Wait,")
    assert [chain.grade for chain in chains] == list(row.grades)


async def test_a_question_that_cannot_be_graded_costs_no_other_one(context, tokenizer):
    row = replace(await asked(context, HEADED + LIST), grades=("failed", "correct", "wrong"))
    first, *rest = batch_chains(PROBLEMS, row, tokenizer)
    assert isinstance(first, Dropped) and first.reason == "failed"
    assert [(chain.number, chain.grade) for chain in rest] == [(2, "correct"), (3, "wrong")]


@pytest.mark.parametrize(
    ("reply", "reasons"),
    [
        (HEADED + "</think>1. \\boxed{72}\n3. \\boxed{624}", ["", "no_answer", ""]),
        (HEADED + LIST + "\n1. \\boxed{5}", ["answered_twice", "", ""]),
        (HEADED + LIST + "\n4. \\boxed{5}", ["extra_number"] * 3),
        (HEADED.replace("Wait,", "As in question 1,") + LIST, ["", "quotes_another", ""]),
        (HEADED.replace("Wait,", THREE[2][:80]) + LIST, ["", "quotes_another", ""]),
        (HEADED + "Let me check all of it again: 72, 10, 624." + LIST, ["", "", "quotes_another"]),
        ("Question 1:\n\nQuestion 2: 10.\n\nQuestion 3: 624." + LIST, ["empty", "", ""]),
        ("72, 10 and 624." + LIST, ["no_heading"] * 3),
        (HEADED + LIST.replace("10", "11"), ["", "answer_not_reached", ""]),
    ],
)  # fmt: skip
async def test_what_is_no_chain_has_its_reason(context, tokenizer, reply, reasons):
    found = batch_chains(PROBLEMS, await asked(context, reply), tokenizer)
    assert [getattr(row, "reason", "") for row in found] == reasons


async def test_vanilla_chains(context, tokenizer):
    replies = [
        "Okay, let me see.\n\n48 + 24 = 72.\n</think>\\boxed{72}",
        "Question 2 of my test was like it: 72.</think>\\boxed{72}",
        "still" + CUT,
        "</think>\\boxed{72}",
    ]
    ctx = context(lambda text, number, j: replies[j], sample={"samples": len(replies)})
    async with ctx.grader:
        rows = await sample(PROBLEMS[0], ctx)
    found = []
    for row in rows:
        assert isinstance(row, Trajectory)
        found.append(vanilla_chain(PROBLEMS[0], row, tokenizer))
    first, *rest = found
    assert isinstance(first, Chain) and first.text == "48 + 24 = 72."
    assert (first.k, first.origin, first.span) == (1, "vanilla", rows[0].thinking_tokens)
    assert [row.reason for row in rest] == ["names_a_question", "truncated", "empty"]


RECIPE = {
    "name": "tiny",
    "model": {"name": "nano", "context": 1024, "slots": 64},
    "problems": {"train": 24, "dev": 2, "test": 2},
    "sample": {"samples": 2, "temperature": 1.0, "top_p": 1.0, "max_tokens": 320},
    "batch": {"k": [2, 5]},
    "label": {"held_out": 0.4},
    "train": {"method": "none"},
    "evaluate": {"samples": 1, "temperature": 1.0, "top_p": 1.0, "models": ["base"]},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("run") / "tiny"
    held = open_run(path, Recipe.model_validate(RECIPE))
    run_stages(held, ("problems", "sample", "batch", "chain", "label", "evaluate"))
    held.close()
    report(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sample", "batch", "chain", "label"])
async def test_groups_can_be_processed_in_another_process(run, name):
    reader = RunReader(run)
    tokenizer = AutoTokenizer.from_pretrained(resolve("nano"))
    ctx = without_engine(reader.recipe, None, tokenizer)
    stage = stage_of(reader.recipe, name)
    for group in islice(stage.groups(reader, ctx), 60):
        copy = pickle.loads(pickle.dumps(group))
        assert copy.key == group.key
        if name == "chain":
            assert await stage.work(*copy.rows, ctx) == await stage.work(*group.rows, ctx)
        else:
            assert copy == group


@pytest.mark.slow
def test_every_question_is_accounted_for(run):
    responses = list(tables.read(run / "batch" / "rows.parquet", BatchResponse))
    assert [row.k for row in responses] == [2] * 12 + [5] * 4
    chains = list(tables.read(run / "chain" / "rows.parquet", Chain))
    lines = (run / "chain" / "dropped.jsonl").read_text("utf-8").splitlines()
    dropped = [json.loads(line) for line in lines]
    assert len(chains) + len(dropped) == 24 * 2 + 12 * 2 + 4 * 5
    sources = {row.id: row for row in responses}
    samples = tables.read(run / "sample" / "rows.parquet", Trajectory)
    everything = sources | {row.id: row for row in samples}
    for chain in chains:
        source = everything[chain.source_id]
        within = source.thinking_tokens
        assert within.start <= chain.span.start < chain.span.end <= within.end
    counts = {row.id: 0 for row in responses}
    for chain in chains:
        if chain.origin == "batch":
            counts[chain.source_id] += chain.tokens
    assert all(counts[row.id] <= row.thinking_tokens.length for row in responses)
    assert not [chain for chain in chains if "uestion" in chain.text]


@pytest.mark.slow
def test_pass_rates_are_those_of_the_samples(run):
    rates = pass_rates(RunReader(run))
    grades: dict[str, list[bool]] = {}
    for row in tables.read(run / "sample" / "rows.parquet", Trajectory):
        grades.setdefault(row.problem_id, []).append(row.grade == "correct")
    assert rates == {problem: sum(each) / len(each) for problem, each in grades.items()}
    assert len(set(rates.values())) > 1


@pytest.mark.slow
def test_labels_are_rows_for_people_too(run):
    frame = pl.read_parquet(run / "label" / "rows.parquet")
    found = list(tables.read(run / "label" / "rows.parquet", LabelledChain))
    assert len(set(frame["verdict"].value_counts()["count"].to_list())) == 1
    assert all(row.prompt.endswith("<think>\n") for row in found)
    assert {"question", "chain", "options", "label", "origin", "k", "seed"} <= set(frame.columns)


@pytest.mark.slow
def test_the_report_has_the_figure(run):
    found = json.loads((run / "report" / "report.json").read_text("utf-8"))["batch"]
    assert [row["k"] for row in found["rows"]] == [1, 2, 5]
    alone, two, five = found["rows"]
    samples = pl.read_parquet(run / "sample" / "rows.parquet")
    assert alone["tokens"]["value"] == pytest.approx(samples["token_ids"].list.len().mean())
    together = pl.read_parquet(run / "batch" / "rows.parquet").filter(k=2)
    assert two["tokens"]["value"] == pytest.approx(together["token_ids"].list.len().mean() / 2)
    right = [grade == "correct" for grades in together["grades"] for grade in grades]
    assert two["accuracy"]["value"] == pytest.approx(sum(right) / len(right))
    assert five["ratio"]["value"] < 1 and alone["ratio"] is None
    assert (five["responses"], five["more"]["requests"]) == (20, 4)
    assert found["labels"]["counts"]["train"]["concise"] > 0


@pytest.mark.slow
def test_what_the_model_writes_tells_the_origin_and_what_the_judge_reads_does_not(run):
    nano = AutoTokenizer.from_pretrained(resolve("nano"))
    sources: dict[str, Any] = {}
    for stage, record in (("sample", Trajectory), ("batch", BatchResponse)):
        rows = tables.read(run / stage / "rows.parquet", record)
        sources |= {row.id: row.token_ids for row in rows}
    chains = list(tables.read(run / "chain" / "rows.parquet", Chain))
    written = [nano.decode(sources[row.source_id][slice(*row.span)]) for row in chains]
    together = [row.origin == "batch" for row in chains]
    problems = [row.problem_id for row in chains]
    assert format_probe(written, together, problems).low > 0.95
    read = format_probe([row.text for row in chains], together, problems)
    assert read.low <= 0.5 and read.auc < 0.7  # few chains: a wide interval


@pytest.mark.slow
def test_the_page_has_figure_labels_and_probe(run):
    html = (run / "report" / "report.html").read_text("utf-8")
    section = html[html.index('id="batch"') :].partition("</section>")[0]
    assert "<svg" in section and 'id="batch-' in section
    found = json.loads((run / "report" / "report.json").read_text("utf-8"))["batch"]
    for row in found["rows"]:
        assert f"<td>{row['responses']}</td>" in section
    concise = found["labels"]["counts"]["train"]["concise"]
    assert f"<td>{concise}</td>" in section
    assert "only the format (not the length)" in section and "only the length" in section
    assert f"{found['labels']['format']['auc']:.3f}" in section
    assert "surplus (removed to balance the classes)" in html


@pytest.mark.slow
def test_the_labels_are_a_dataset(run, tmp_path):
    """The Hub's own reader finds them, their held-out chains as its validation split."""
    place = tmp_path / "run"
    shutil.copytree(run, place)
    held = open_run(place, Recipe.model_validate(RECIPE))
    done = publish(held, "user/tiny", dry_run=True)
    held.close()
    labels = datasets.load_dataset(str(done.folder), cache_dir=str(tmp_path / "cache"))
    table = pl.read_parquet(run / "label" / "rows.parquet")
    for split, name in (("train", "train"), ("dev", "validation")):
        own = table.filter(split=split)
        assert own.height and labels[name]["id"] == own["id"].to_list()
        assert labels[name]["prompt"] == own["prompt"].to_list()
        assert labels[name]["options"] == own["options"].to_list()
    for config, stage in (("batch_responses", "batch"), ("chains", "chain")):
        rows = datasets.load_dataset(str(done.folder), config, cache_dir=str(tmp_path / "cache"))
        assert rows["train"].num_rows == pl.read_parquet(run / stage / "rows.parquet").height
    assert "2508.17803" in done.card and "| chain | `no_answer` |" in done.card
    assert "Answer each question." in done.card and "Which holds for the reasoning?" in done.card


@pytest.mark.slow
def test_the_viewer_shows_the_run(run, tmp_path):
    html = tmp_path / "view.html"
    view(run, html)
    assert html.stat().st_size > 1000
    found = RunTables(run)
    shown = {each.id: each for each in found.chains()}
    rows = list(tables.read(run / "chain" / "rows.parquet", Chain))
    labels = {row.id: row for row in tables.read(run / "label" / "rows.parquet", LabelledChain)}
    assert [each.chain for each in shown.values()] == rows and labels
    for own, each in shown.items():
        assert each.problem is not None and each.problem.id == each.chain.problem_id
        assert (each.labelled.verdict if each.labelled else None) == (
            labels[own].verdict if own in labels else None
        )
    together = list(found.batches())
    assert {each.id for each in together} == set(
        pl.read_parquet(run / "batch" / "rows.parquet")["id"].to_list()
    )
    for each in together:
        for place, ended in enumerate(each.dropped):
            row = each.response
            own = Chain.make_id(row.problem_ids[place], "batch", row.k, row.sample)
            assert (own in shown) == (ended is None) == each.cut[place]
    for one in (next(iter(shown.values())), together[0]):
        again = dto.show(run, one.id)
        assert again.row.id == one.id and one.id in str(again) and one.id in again._repr_html_()


@pytest.mark.slow
def test_chains_not_extracted_yet_are_pending(run, tmp_path):
    for name in ("problems", "sample", "batch", "recipe.yaml"):
        (tmp_path / name).symlink_to(run / name)
    for each in RunTables(tmp_path).batches():
        assert each.outcome == "pending" and "  pending" in str(dto.show(each))


@pytest.mark.slow
def test_no_local_path_is_passed_on_with_why_chains_were_not_cut(run):
    ended = Dropped("id", "failed", "OSError: /home/jane/grader.py failed")
    together, alone = next(RunTables(run).batches()), next(RunTables(run).chains())
    for view_of_it in (
        replace(together, dropped=(ended, *together.dropped[1:])),
        replace(alone, dropped=(ended,)),
    ):
        shown = dto.show(without_error_texts(view_of_it))._repr_html_()
        assert "OSError" in shown and "grader.py" not in shown and "jane" not in shown


def test_more_questions_than_there_are(tmp_path):
    recipe = Recipe.model_validate(RECIPE | {"batch": {"k": [25]}})
    held = open_run(tmp_path / "run", recipe)
    with pytest.raises(DtoError, match=r"batch\.k 25 is larger than the 24 questions"):
        run_stages(held, ("problems", "batch"))
    held.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "stages", "message"),
    [
        ({"batch": {}}, ("problems", "batch"), r"batch\.k is empty"),
        ({"label": {"k": [3]}}, ("label",), r"label\.k 3 is not in batch\.k"),
    ],
)
def test_settings_that_ask_for_nothing(tmp_path, run, settings, stages, message):
    place = tmp_path / "run"
    if stages == ("label",):
        place.mkdir()
        for name in ("problems", "sample", "batch", "chain"):
            (place / name).symlink_to(run / name)
        (place / "recipe.yaml").write_text((run / "recipe.yaml").read_text("utf-8"), "utf-8")
    held = open_run(place, Recipe.model_validate(RECIPE | settings), recompute=agree)
    with pytest.raises(DtoError, match=message):
        run_stages(held, stages)
    held.close()
