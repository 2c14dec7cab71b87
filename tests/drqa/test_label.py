from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any, cast

import pytest

from dto.context import Context, without_engine
from dto.drqa.label import WORDINGS, balance, classes, label, rank, split_of
from dto.drqa.records import Chain, LabelledChain, Origin
from dto.errors import DtoError
from dto.prompts import render
from dto.recipe import LabelSettings, Recipe
from dto.records import Dropped, Grade, Problem, Span


def chain(
    problem: str = "p", origin: Origin = "vanilla", k: int = 1, sample: int = 0,
    grade: Grade = "correct", tokens: int = 100,
) -> Chain:  # fmt: skip
    return Chain(
        Chain.make_id(problem, origin, k, sample), problem, origin, k, sample, 1, "source",
        Span(0, tokens), "3 + 4 = 7.", tokens, tokens, "7", grade,
    )  # fmt: skip


def context(tokenizer: Any, recipe: Recipe) -> Context:
    return without_engine(recipe, cast(Any, None), tokenizer)


VANILLA = [chain(sample=0, tokens=100), chain(sample=1, tokens=60)]
BATCH = [chain(origin="batch", k=2, tokens=70), chain(origin="batch", k=3, tokens=90)]
WRONG = [chain(sample=2, grade="wrong"), chain(origin="batch", k=5, grade="wrong")]


def names(found) -> dict[str, str]:
    """Class or reason by the end of the id."""
    return {
        key.removeprefix("p/"): fate if isinstance(fate, str) else fate[0]
        for key, fate in found.items()
    }


def test_classes_go_by_origin_and_grade():
    assert names(classes([*VANILLA, *BATCH, *WRONG], LabelSettings())) == {
        "vanilla/001/000": "verbose", "vanilla/001/001": "verbose", "batch/002/000": "concise",
        "batch/003/000": "concise", "vanilla/001/002": "wrong", "batch/005/000": "wrong",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("margin", "found"),
    [(0.0, ["concise", "not_concise"]), (0.1, ["concise", "not_concise"]),
     (0.2, ["not_concise", "not_concise"]), (None, ["concise", "concise"])],
)  # fmt: skip
def test_a_margin_asks_for_less_than_the_mean_vanilla_chain(margin, found):
    rows = names(classes([*VANILLA, *BATCH], LabelSettings(margin=margin)))
    assert [rows["batch/002/000"], rows["batch/003/000"]] == found


def test_a_margin_needs_a_right_vanilla_chain():
    rows = names(classes([*BATCH, *WRONG], LabelSettings(margin=0.0)))
    assert rows["batch/002/000"] == "no_vanilla" and rows["batch/005/000"] == "wrong"


def test_other_k_and_long_chains_are_dropped():
    rows = names(classes([*VANILLA, *BATCH], LabelSettings(k=(3,), max_tokens=95)))
    assert rows == {
        "vanilla/001/000": "too_long", "vanilla/001/001": "verbose", "batch/002/000": "other_k",
        "batch/003/000": "concise",
    }  # fmt: skip


def test_labels_from_vanilla_chains_alone():
    near = chain(sample=3, tokens=62)
    rows = names(classes([*VANILLA, near, *BATCH], LabelSettings(source="shortest", margin=0.1)))
    assert rows == {
        "vanilla/001/000": "verbose", "vanilla/001/001": "concise", "vanilla/001/003": "not_longer",
        "batch/002/000": "other_source", "batch/003/000": "other_source",
    }  # fmt: skip
    assert names(classes(VANILLA[:1], LabelSettings(source="shortest"))) == {
        "vanilla/001/000": "alone"
    }


def many(problems: int) -> list[Chain]:
    rows = []
    for place in range(problems):
        name = f"{place:016x}"
        rows += [chain(name, sample=sample) for sample in range(3)]
        rows += [chain(name, "batch", 2), chain(name, sample=4, grade="wrong")]
    return rows


def by_problem(chains: Sequence[Chain]) -> list[list[Chain]]:
    return [list(rows) for _, rows in groupby(chains, key=lambda row: row.problem_id)]


def test_classes_are_balanced_within_each_split():
    settings = LabelSettings(held_out=0.3)
    groups = by_problem(many(60))
    kept = balance(groups, settings, 1)
    counts: Counter[tuple[str, str]] = Counter()
    for rows in groups:
        for row_id, verdict in classes(rows, settings).items():
            of = split_of(rows[0].problem_id, 1, 0.3), verdict
            counts[of] += kept.keeps(row_id, of, 1)
    for split in ("train", "dev"):
        assert len({counts[split, verdict] for verdict in WORDINGS}) == 1
        assert counts[split, "verbose"] == kept.found[split, "concise"] > 0
    assert kept == balance(groups[::-1], settings, 1)
    limited = balance(groups, LabelSettings(held_out=0.3, per_class=5), 1)
    trained_on = [rows for rows in groups if split_of(rows[0].problem_id, 1, 0.3) == "train"]
    low = sorted(rank(row.id, 1) for rows in trained_on for row in rows if row.origin == "batch")
    assert limited.limits["train", "concise"] == low[5]


@pytest.mark.parametrize(
    ("chains", "message"),
    [
        ([*VANILLA, *WRONG], "no train chain is concise .right and concise.; chains by class: "
         "2 verbose, 0 concise, 2 wrong, none without a class: set batch.k"),
        ([*BATCH, *WRONG], "no train chain is verbose"),
        ([*VANILLA, *BATCH], "no train chain is wrong"),
        ([], "no train chain is verbose"),
    ],
)  # fmt: skip
def test_an_empty_class_is_an_error(chains, message):
    with pytest.raises(DtoError, match=message):
        balance([chains], LabelSettings(held_out=0.0), 1)


def test_a_margin_that_empties_a_class_is_named():
    with pytest.raises(DtoError, match=r"2 not_concise without a class: lower label\.margin"):
        balance([[*VANILLA, *BATCH, *WRONG]], LabelSettings(held_out=0.0, margin=0.9), 1)


def test_nothing_held_out_is_named():
    with pytest.raises(DtoError, match=r"no dev chain .* raise problems\.train or label\.held_out"):
        balance(by_problem(many(2)), LabelSettings(held_out=0.001), 1)


@pytest.mark.parametrize("family", ["default", "nano"])
async def test_the_letter_is_that_of_the_wording(tokenizer, family):
    recipe = Recipe.model_validate(
        {"name": "toy", "model": {"family": family}, "label": {"held_out": 0.0}}
    )
    groups = by_problem(many(40))
    kept = balance(groups, recipe.label, recipe.seed)
    found: list[LabelledChain] = []
    surplus = 0
    for rows in groups:
        problem = Problem(rows[0].problem_id, "toy", "train", "3 + 4?", "7")
        for row in await label(problem, rows, kept, context(tokenizer, recipe)):
            if isinstance(row, Dropped):
                assert row.reason == "surplus"
                surplus += 1
            else:
                found.append(row)
    assert (len(found), surplus) == (120, 80)
    for row in found:
        assert row.options["ABC".index(row.label)] == WORDINGS[row.verdict]
        assert sorted(row.options) == sorted(WORDINGS.values())
        assert row.prompt == tokenizer.decode(list(row.prompt_ids))
        asked = [f"{letter}. {option}" for letter, option in zip("ABC", row.options, strict=True)]
        assert "\n".join(asked) in row.prompt and "3 + 4 = 7." in row.prompt
    assert {row.options for row in found} == {row.options for row in found if row.label == "B"}
    assert len({row.options for row in found}) == 6
    problem = Problem(groups[0][0].problem_id, "toy", "train", "3 + 4?", "7")
    again = await label(problem, groups[0], kept, context(tokenizer, recipe))
    assert [row for row in again if isinstance(row, LabelledChain)] == [
        row for row in found if row.problem_id == groups[0][0].problem_id
    ]


async def test_letters_can_mean_the_same_in_every_row(tokenizer) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "toy",
            "model": {"family": "nano"},
            "label": {"held_out": 0.0, "shuffled": False},
        }
    )
    groups = by_problem(many(20))
    kept = balance(groups, recipe.label, recipe.seed)
    meant = {
        (row.label, row.verdict, row.options)
        for rows in groups
        for row in await label(
            Problem(rows[0].problem_id, "toy", "train", "3 + 4?", "7"),
            rows,
            kept,
            context(tokenizer, recipe),
        )
        if isinstance(row, LabelledChain)
    }
    wordings = tuple(WORDINGS[each] for each in ("verbose", "concise", "wrong"))
    assert meant == {
        ("A", "verbose", wordings), ("B", "concise", wordings), ("C", "wrong", wordings)
    }  # fmt: skip


async def test_a_judge_need_not_think(tokenizer) -> None:
    made = {}
    for thinking in (True, False):
        recipe = Recipe.model_validate(
            {
                "name": "toy",
                "model": {"family": "nano"},
                "label": {"held_out": 0.0, "thinking": thinking},
            }
        )
        groups = by_problem(many(4))
        kept = balance(groups, recipe.label, recipe.seed)
        problem = Problem(groups[0][0].problem_id, "toy", "train", "3 + 4?", "7")
        rows = await label(problem, groups[0], kept, context(tokenizer, recipe))
        made[thinking] = [row for row in rows if isinstance(row, LabelledChain)]
    assert made[True]
    for row, closed in zip(made[True], made[False], strict=True):
        assert closed.prompt_ids[: len(row.prompt_ids)] == row.prompt_ids
        assert closed.prompt.removeprefix(row.prompt) == render("no_thinking", "nano")
