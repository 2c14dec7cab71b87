"""An evaluation with other exits or models: what need not be computed again is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dto.records import EvaluationRow
from dto.runs import manifest
from dto.runs.run import keep_arms
from dto.runs.stage import Group, Runner, Timed
from dto.usage import Usage, charge

PROBLEMS = ("p0", "p1", "p2")


def exit(name: str, **settings: Any) -> dict[str, Any]:
    return {"name": name, "policy": "none", **settings}


def configured(*exits: dict[str, Any], **changes: Any) -> dict[str, Any]:
    config = {
        "evaluate.samples": 2,
        "evaluate.models": ["base", "trained"],
        "evaluate.exits": list(exits),
        "weights": "w",
        "digest of train": "t",
        "digest of problems": "p",
    }
    return config | changes


def groups(config: dict[str, Any]) -> Iterator[Group]:
    for model in config["evaluate.models"]:
        for each in config["evaluate.exits"]:
            for problem in PROBLEMS:
                key = f"{model}/{each['name']}/{problem}"
                yield Group(key, (model, each["name"], problem))


def row(model: str, name: str, problem: str, sample: int) -> EvaluationRow:
    return EvaluationRow(
        id=EvaluationRow.make_id(model, name, problem, sample),
        model=model,
        exit=name,
        problem_id=problem,
        sample=sample,
        seed=sample,
        grade="correct",
        answer="1",
        reason="",
        exit_reason="closed",
        thinking_tokens=1,
        answer_tokens=1,
        trial_tokens=0,
        tokens=2,
        prompt_tokens=1,
        attention_flops=0.5,
    )


async def evaluated(directory: Path, config: dict[str, Any], until: int = 10**6) -> list[str]:
    """Work through an evaluation, or its first groups; the arms that were asked for."""
    asked: list[str] = []

    async def work(model: str, name: str, problem: str) -> list[Timed]:
        asked.append(f"{model}/{name}")
        charge(Usage(requests=2, generated=4, attention_flops=1.0))
        return [Timed(row(model, name, problem, sample), 1.5, wasted=sample) for sample in (0, 1)]

    with Runner(directory, EvaluationRow, config) as stage:
        first = [group for number, group in enumerate(groups(config)) if number < until]
        await stage.feed(iter(first), work, window=1)
        if until > len(first):
            await stage.finish()
    return sorted(set(asked))


BOTH = configured(exit("deer-x"), exit("deer", threshold=0.9))
CHANGES = [
    (configured(*BOTH["evaluate.exits"], exit("new")), ["base/new", "trained/new"]),
    (configured(exit("deer", threshold=0.9)), []),
    (configured(exit("deer-x"), exit("deer", threshold=0.8)), ["base/deer", "trained/deer"]),
    (BOTH | {"digest of train": "u"}, ["trained/deer", "trained/deer-x"]),
    (BOTH | {"weights": "v"}, ["base/deer", "base/deer-x"]),
    (
        BOTH | {"evaluate.models": ["base", "x"], "weights of x": "x"},
        ["x/deer", "x/deer-x"],
    ),
    (
        BOTH | {"digest of problems": "q"},
        ["base/deer", "base/deer-x", "trained/deer", "trained/deer-x"],
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("config", "computed"), CHANGES)
async def test_only_what_a_change_touches_is_computed_again(
    config: dict[str, Any], computed: list[str], tmp_path: Path
) -> None:
    changed, anew = tmp_path / "a" / "evaluate", tmp_path / "b" / "evaluate"
    await evaluated(changed, BOTH)
    keep_arms(changed.rename(tmp_path / "old"), changed, config)
    assert await evaluated(changed, config) == computed
    await evaluated(anew, config)
    for name in ("rows.parquet", "timings.parquet", "usage.parquet", "dropped.jsonl"):
        assert (changed / name).read_bytes() == (anew / name).read_bytes()
    digests = [(manifest.read(each) or {})["digest"] for each in (changed, anew)]
    assert digests[0] == digests[1]
    assert [path.name for path in changed.parent.iterdir()] == ["evaluate"]


async def test_an_evaluation_under_way_keeps_its_rows_too(tmp_path: Path) -> None:
    directory = tmp_path / "evaluate"
    await evaluated(directory, BOTH, until=4)
    config = configured(exit("deer", threshold=0.9), exit("new"))
    keep_arms(directory.rename(tmp_path / "old"), directory, config)
    with Runner(directory, EvaluationRow, config) as stage:
        owed = [group.key for group in groups(config) if stage.has_pending(iter([group]))]
    assert len(owed) == 11 and "base/deer/p0" not in owed


async def test_a_failed_request_stays_owed(tmp_path: Path) -> None:
    directory, config = tmp_path / "evaluate", configured(exit("none"))

    async def work(model: str, name: str, problem: str) -> list[Timed]:
        charge(Usage(requests=100, failed=int(problem == "p1")))
        return [Timed(row(model, name, problem, 0), 1.0)]

    with Runner(directory, EvaluationRow, config) as stage:
        await stage.feed(groups(config), work, window=1)
        await stage.finish()
    keep_arms(directory.rename(tmp_path / "old"), directory, configured(exit("none"), exit("new")))
    assert await evaluated(directory, configured(exit("none"), exit("new"))) == [
        "base/new",
        "base/none",
        "trained/new",
        "trained/none",
    ]
