"""Judging: which letter a response picks, what is rewarded, what is said of held-out chains."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from dto.context import Context
from dto.drqa.records import LabelledChain
from dto.errors import DtoError
from dto.grading import Grader
from dto.recipe import Recipe
from dto.records import Trajectory, derive
from dto.reporting.batch import batch_section
from dto.reporting.funnel import training_sentence
from dto.tables import read, write
from dto.training import grpo
from dto.training.dev import Judgement, judge, read_letter, score
from dto.training.fit import fit
from dto.training.grpo import judging
from dto.training.train import train
from tests.stages.script import CUT, FAIL, Scripted
from tests.training.conftest import RunFolder, make_run, tiny_model
from tests.training.test_losses import BASE, logprobs
from tests.training.test_train import scores, training_children, until
from tests.training.test_watch import steps_of


@pytest.mark.parametrize(
    ("conclusion", "letter"),
    [
        ("**Final Answer**\n\\boxed{A}", "A"),
        ("**Final Answer**\n\\boxed{ b }", "B"),
        ("\\boxed{\\text{C}}", "C"),
        ("\\boxed{(B)}", "B"),
        ("\\boxed{C.}", "C"),
        ("\\boxed{B. right and concise}", "B"),
        ("First \\boxed{A}, no: \\boxed{B}", "B"),
        ("The answer is C.", "C"),
        ("C", "C"),
        ("\\boxed{A, B}", ""),
        ("\\boxed{D}", ""),
        ("\\boxed{7}", ""),
        ("\\boxed{}", ""),
        ("\\boxed{A", ""),
        ("\\boxed{right and concise}", ""),
        ("So it is wrong.", ""),
        ("", ""),
    ],
)
def test_the_letter_of_a_conclusion(conclusion: str, letter: str) -> None:
    assert read_letter(conclusion) == letter


def test_rewards_of_judging() -> None:
    picks = ["correct", "wrong", "unreadable"]
    assert judging(picks, 0.0) == [1.0, 0.0, 0.0]
    assert judging(picks, -0.5) == [1.0, 0.0, -0.5]


def chain(number: int, verdict: Any = "wrong", label: Any = "A") -> LabelledChain:
    problem = f"p{number // 2}"
    return LabelledChain(
        id=f"{problem}/vanilla/001/{number:03d}", problem_id=problem, split="dev", question="?",
        chain="7.", answer="7", verdict=verdict, label=label, options=("x", "y", "z"),
        origin="vanilla", k=1, tokens=2, length=2, seed=0, prompt="", prompt_ids=(1, 2, 3),
    )  # fmt: skip


def test_a_score_counts_what_has_no_letter_as_wrong_and_leaves_out_what_failed() -> None:
    rows = [chain(0), chain(1, "concise", "B"), chain(2), chain(3, "concise", "C"), chain(4)]
    found = [
        Judgement(rows[0].id, (1, 2), "A", "correct"),
        Judgement(rows[1].id, (1,), "A", "wrong"),
        Judgement(rows[2].id, (1, 2, 3), "", "unreadable"),
        Judgement(rows[3].id, (1, 2), "C", "correct"),
        Judgement(rows[4].id, (), "", "failed", "no room"),
    ]
    each = score(7, rows, found)
    assert (each.step, each.accuracy, each.responses, each.problems) == (7, 0.5, 4, 2)
    assert (each.unreadable, each.failed, each.tokens_mean) == (1, 1, 2.0)
    assert each.recall == {"concise": 0.5, "wrong": 0.5}
    assert each.letters == {"A": 2, "C": 1, "": 1}
    assert 0 <= each.low < 0.5 < each.high <= 1


def test_nothing_graded_is_no_figure() -> None:
    row = chain(0)
    each = score(0, [row], [Judgement(row.id, (), "", "failed", "down")])
    assert (each.accuracy, each.low, each.high, each.responses) == (0.0, 0.0, 1.0, 0)


def test_judgements_of_an_engine(tokenizer: Any) -> None:
    """Right, wrong, without a letter, cut off, never closed, failed: none of them is lost."""
    replies = [
        "It differs.</think>\\boxed{B}", "</think>\\boxed{A}", "</think>hm",
        f"</think>\\boxed{{B}}{CUT}", "\\boxed{B}", FAIL,
    ]  # fmt: skip
    prompt = tuple(tokenizer.encode("<think>\n", add_special_tokens=False))
    row = replace(chain(0, label="B"), prompt_ids=prompt)
    recipe = Recipe.model_validate({"name": "x", "sample": {"samples": len(replies)}})

    async def judged(context: int) -> list[Judgement]:
        script = Scripted(tokenizer, lambda *at: replies[at[2]], context=context)
        async with script as engine, Grader() as grader:
            found = await judge(row, Context(recipe, engine, grader))
            if engine.requests:
                assert engine.requests[0][1].seed == derive(0, row.id, "judge")
            return found

    found = asyncio.run(judged(1000))
    picks = ["correct", "wrong", "unreadable", "unreadable", "unreadable", "failed"]
    assert [each.pick for each in found] == picks
    assert [each.letter for each in found] == ["B", "A", "", "", "", ""]
    assert found[-1].reason == "engine on fire"
    full = asyncio.run(judged(len(prompt)))
    assert {each.pick for each in full} == {"failed"} and "context is" in full[0].reason


def with_labels(run: RunFolder, tokenizer: PreTrainedTokenizerBase, **training: Any) -> RunFolder:
    """Labelled chains, a third of them held out, of the run's samples."""
    rows = []
    samples = list(read(run.path / "sample" / "rows.parquet", Trajectory))
    for number, sample in enumerate(samples):
        split = "dev" if number % 3 == 0 else "train"
        verdict = ("verbose", "concise", "wrong")[number % 3 - 1]
        letter = "ABC"[number % 3]
        text = f"<|im_start|>user\n{number} plus 5 is 2. A. B. C.<|im_end|>\n<think>\n"
        prompt = tuple(tokenizer.encode(text, add_special_tokens=False))
        rows.append(
            replace(
                chain(number, verdict, letter),
                id=f"{sample.problem_id}/vanilla/001/000", problem_id=sample.problem_id,
                split=split, prompt=text, prompt_ids=prompt,
            )
        )  # fmt: skip
    (run.path / "label").mkdir(exist_ok=True)
    write(run.path / "label" / "rows.parquet", LabelledChain, rows)
    settings: dict[str, Any]
    settings = {"method": "drqa", "group": 2, "batch_size": 4, "evaluations": 2, "epochs": 1}
    settings |= {"dev_samples": 1, "learning_rate": 1e-4}
    return run.with_training(**settings | training)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_judging_is_trained_and_measured(
    run: RunFolder, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups that agree are counted: by hand they are those of one reward."""
    given: list[list[float | None]] = []
    picks = iter(
        ["correct", "correct", "wrong", "correct", "unreadable", "wrong", "failed", "wrong"] * 99
    )

    async def scripted(row: LabelledChain, ctx: Context) -> list[Judgement]:
        return [
            Judgement(row.id, (5, 6), "A", next(picks)) for _ in range(ctx.recipe.sample.samples)
        ]  # type: ignore[arg-type]

    original = grpo.OnlineTrainer._rewards

    def watched(self: Any, *args: Any, **kwargs: Any) -> list[float | None]:
        given.append(original(self, *args, **kwargs))
        return given[-1]

    monkeypatch.setattr(grpo, "judge", scripted)
    monkeypatch.setattr(grpo.OnlineTrainer, "_rewards", watched)
    training = with_labels(run, tokenizer, keep="last")
    result = fit(training.path, training.recipe)
    assert result["rows"] == {"chains": 16, "dropped": 0, "dev_problems": 6, "held_out": 8}
    assert result["steps"] == len(given) == 8  # 16 chains in groups of 2, 4 responses a step
    flat = sum(
        len({each for each in rewards[at : at + 2] if each is not None}) < 2
        for rewards in given
        for at in (0, 2)
    )
    assert result["groups"]["groups"] == 16
    assert result["groups"]["flat"] == flat == 12
    assert result["groups"]["unreadable"] == 4
    assert result["groups"]["rewarded"] == 28
    steps = lines(run.path / "train" / "steps.jsonl")
    assert [row["step"] for row in steps] == [*range(1, 9)]
    assert sum(row["without_advantage"] for row in steps) == flat
    assert all(row["kl"] is not None for row in steps) and steps[0]["kl"] == 0
    assert result["kept_step"] == 8 and "the last" in result["reason"]
    measured = lines(run.path / "train" / "judging.jsonl")
    assert [row["step"] for row in measured] == [0, 4, 8]
    assert all(row["responses"] + row["failed"] == 8 for row in measured)
    assert result["judging"]["after"] == result["judging"]["kept"]
    assert result["judging"]["before"]["step"] == 0


def test_the_divergence_is_from_the_base(
    run: RunFolder, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    training = with_labels(run, tokenizer, kl=0.5)
    rows = list(read(run.path / "label" / "rows.parquet", LabelledChain))
    args = grpo.OnlineTrainer.config(training.recipe, tmp_path)
    assert args.beta == 0.5
    assert grpo.OnlineTrainer.config(training.with_training(kl=None).recipe, tmp_path).beta == 0.04
    assert (
        grpo.OnlineTrainer.config(
            training.with_training(kl=None, method="grpo").recipe, tmp_path
        ).beta
        == 0
    )
    from dto.training.weights import load

    model, _ = load(training.recipe)
    trainer = grpo.OnlineTrainer(training.recipe, model, args, tokenizer, rows, [1, 2])
    base = tiny_model(len(tokenizer))
    side = (rows[0].prompt_ids, (7, 8, 9))
    reference: Any = trainer.ref_model
    assert torch.allclose(logprobs(reference, *side), logprobs(base, *side), atol=1e-6)
    assert not any(each.requires_grad for each in reference.parameters()) or not reference.training


@pytest.mark.slow
@pytest.mark.usefixtures("users_process")
def test_a_killed_training_on_judging_ends_alike(
    run: RunFolder, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, model_folder: Path
) -> None:
    """It goes on from its checkpoint, and what it samples is the same."""
    whole = with_labels(make_run(tmp_path / "whole", tokenizer, model_folder), tokenizer)
    expected = fit(whole.path, whole.recipe)
    killed = with_labels(run, tokenizer)
    ended: list[BaseException] = []

    def first_attempt() -> None:
        try:
            train(killed.path, killed.recipe)
        except DtoError as error:
            ended.append(error)

    thread = threading.Thread(target=first_attempt)
    thread.start()
    until(lambda: scores(killed) >= 2)
    (child,) = training_children(psutil.Process())
    child.send_signal(signal.SIGKILL)
    thread.join()
    assert "SIGKILL" in str(ended[0])
    result = train(killed.path, killed.recipe)
    efforts = lines(killed.path / "train" / "effort.jsonl")
    assert [row["step"] for row in efforts] == [0, 4, 8]  # nothing was done twice
    assert result["groups"] == expected["groups"]
    assert result["judging"] == expected["judging"]
    for name in ("history.jsonl", "judging.jsonl", "model/model.safetensors"):
        one, other = (each.path / "train" / name for each in (killed, whole))
        assert one.read_bytes() == other.read_bytes()
    assert steps_of(killed, timed=False) == steps_of(whole, timed=False)


@pytest.mark.slow
def test_lora_has_the_base_as_its_reference(
    run: RunFolder, tokenizer: PreTrainedTokenizerBase
) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    training = with_labels(run, tokenizer, lora_rank=2, keep="last", learning_rate=1e-2)
    result = fit(training.path, training.recipe)
    assert result["steps"] == result["kept_step"] == 8
    steps = lines(run.path / "train" / "steps.jsonl")
    assert steps[0]["kl"] == 0
    kept = run.path / "train" / "model"
    assert (kept / "model.safetensors").exists() and not (kept / "adapter_config.json").exists()


@pytest.mark.slow
def test_judging_stops_on_collapse(run: RunFolder, tokenizer: PreTrainedTokenizerBase) -> None:
    """It is solving that is watched: a model that cannot solve any more is not kept."""
    training = with_labels(run, tokenizer, keep="last", collapse_points=-200.0)
    result = fit(training.path, training.recipe, base=BASE)
    assert result["collapsed"] and result["steps"] == 4 < 8
    assert result["kept_step"] == 0 and "collapsed" in result["reason"]
    assert [row["step"] for row in lines(run.path / "train" / "judging.jsonl")] == [0, 4]


@pytest.mark.parametrize("method", ["drqa", "cft", "sft_batch"])
def test_without_labelled_chains_the_base_is_kept(run: RunFolder, method: str) -> None:
    for stage in ("label", "chain", "batch"):
        (run.path / stage).mkdir()
    from dto.drqa.records import BatchResponse, Chain

    write(run.path / "label" / "rows.parquet", LabelledChain, [])
    write(run.path / "chain" / "rows.parquet", Chain, [])
    write(run.path / "batch" / "rows.parquet", BatchResponse, [])
    training = run.with_training(method=method, dev_samples=1)
    result = fit(training.path, training.recipe, base=BASE)
    assert result["kept_step"] == 0 and "base is kept" in result["reason"]
    assert result["judging"] is None


def test_the_report_says_how_judging_went() -> None:
    score_of = {
        "accuracy": 0.3, "low": 0.2, "high": 0.4, "responses": 50, "unreadable": 2, "step": 0,
        "tokens_mean": 10.0,
    }  # fmt: skip
    before = score_of | {"recall": {"wrong": 0.25}}
    kept = score_of | {"accuracy": 0.5, "unreadable": 0, "step": 8, "recall": {"wrong": 0.75}}
    dev = {"accuracy": 0.8, "tokens_mean": 200.0, "step": 0}
    training = {
        "base": dev, "kept": dev | {"step": 8}, "steps": 8, "collapsed": False,
        "groups": {"groups": 16, "flat": 4, "unreadable": 3},
        "judging": {"before": before, "kept": kept},
    }  # fmt: skip
    assert "Of 16 groups of responses, 25.0 % gave no signal" in training_sentence(training)
    lines = [line.split() for line in str(batch_section(None, training)).splitlines()]
    assert ["before", "0", "30.0", "(20.0–40.0)", "25.0", "2", "50", "10.0"] in lines
    kept_line = "kept checkpoint 8 50.0 (20.0–40.0) 75.0 0 50 10.0"
    assert kept_line.split() in lines
    assert batch_section(None, training | {"judging": None}) is None
