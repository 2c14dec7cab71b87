"""A model of 40,000 parameters with a run's tables: 24 pairs, long against short responses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from benchmarks.nano.train import train_tokenizer
from dto.processes import run_child
from dto.recipe import Recipe, load_recipe
from dto.records import (
    OptimizedTrajectory,
    PreferencePair,
    Problem,
    Span,
    Trajectory,
)
from dto.tables import write

QUESTIONS = 24
DEV = 6
SHORT = "7 plus 5 is 2.\n\n</think>\n\n**Final Answer**\n\\boxed{2}"
LONG = "7 plus 5 is 2.\n\nWait, let me check.\n\n7 plus 5 is 2.\n\n</think>\n\n\\boxed{2}"


@pytest.fixture
def users_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training is the process that users have, not a fork (tests/warm.py)."""
    monkeypatch.setattr("dto.training.train.run_child", run_child)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer([SHORT, LONG, "Start with 7. Add 5. What is the last digit?"])


@pytest.fixture(scope="session")
def model_folder(
    tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_model(vocabulary: int) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config)


@dataclass(frozen=True)
class RunFolder:
    """A run directory that holds what training reads."""

    path: Path
    recipe: Recipe

    def with_training(self, **changes: object) -> RunFolder:
        data = self.recipe.model_dump(mode="json")
        data["train"] |= changes
        (self.path / "recipe.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
        return RunFolder(self.path, load_recipe(self.path / "recipe.yaml"))


@pytest.fixture
def run(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, model_folder: Path) -> RunFolder:
    return make_run(tmp_path / "run", tokenizer, model_folder)


def make_run(path: Path, tokenizer: PreTrainedTokenizerBase, model_folder: Path) -> RunFolder:
    eos = int(tokenizer.eos_token_id)
    problems, trajectories, optimized, pairs = [], [], [], []
    for number in range(QUESTIONS + DEV):
        question = f"Start with 7. Add {number}."
        split = "train" if number < QUESTIONS else "dev"
        problem = Problem(f"p{number:03d}", "chains", split, question, "2")
        problems.append(problem)
        if split == "dev":
            continue
        prompt = _ids(tokenizer, f"<|im_start|>user\n{question}<|im_end|>\n<think>\n")
        rejected = (*_ids(tokenizer, LONG * (1 + number % 3)), eos)
        if number % 4 == 0:
            rejected = rejected[:-1]  # ran out of tokens: no EOS
        chosen = (*_ids(tokenizer, SHORT), eos)
        trajectory = make_trajectory(f"{problem.id}/000", prompt, rejected)
        trajectories.append(trajectory)
        optimized.append(make_optimized(trajectory, chosen))
        pairs.append(make_pair(trajectory, optimized[-1]))
    tables = {
        "problems": (Problem, problems),
        "sample": (Trajectory, trajectories),
        "prune": (OptimizedTrajectory, optimized),
        "pair": (PreferencePair, pairs),
    }
    for stage, (record, rows) in tables.items():
        (path / stage).mkdir(parents=True)
        write(path / stage / "rows.parquet", record, rows)
    settings = {
        "name": "tiny",
        "model": {"name": str(model_folder), "slots": 16},
        "sample": {"max_tokens": 48, "temperature": 1.0},
        "train": {
            "learning_rate": 5e-3,
            "beta": 1.0,
            "gamma": 0.3,
            "nll": 5.0,
            "epochs": 6,
            "batch_size": 4,
            "evaluations": 4,
            "dev_samples": 2,
        },
    }
    (path / "recipe.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return RunFolder(path, load_recipe(path / "recipe.yaml"))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def make_trajectory(row_id: str, prompt: tuple[int, ...], ids: tuple[int, ...]) -> Trajectory:
    none = Span(0, 0)
    return Trajectory(
        id=row_id,
        problem_id=row_id.split("/")[0],
        model="tiny",
        sample=0,
        seed=0,
        prompt_ids=prompt,
        token_ids=ids,
        ids_from="sampled",
        text="",
        thinking=none,
        conclusion=none,
        thinking_tokens=none,
        finish_reason="stop",
        grade="correct",
    )


def make_optimized(trajectory: Trajectory, ids: tuple[int, ...]) -> OptimizedTrajectory:
    none = Span(0, 0)
    return OptimizedTrajectory(
        id=trajectory.id,
        trajectory_id=trajectory.id,
        problem_id=trajectory.problem_id,
        exit=0,
        kept=(0,),
        token_ids=ids,
        text="",
        thinking=none,
        thinking_tokens=none,
        answer="2",
        pass_rate=1.0,
        tokens_before=len(trajectory.token_ids),
        tokens_after=len(ids),
        attention_flops_before=0.0,
        attention_flops_after=0.0,
        outcome="shortened",
    )


def make_pair(trajectory: Trajectory, optimized: OptimizedTrajectory) -> PreferencePair:
    return PreferencePair(
        id=f"{trajectory.id}/original/000",
        problem_id=trajectory.problem_id,
        trajectory_id=trajectory.id,
        prompt="",
        chosen="",
        rejected="",
        chosen_id=optimized.id,
        rejected_id=trajectory.id,
        chosen_from="optimized",
        rejected_from="original",
        prompt_tokens=len(trajectory.prompt_ids),
        chosen_tokens=len(optimized.token_ids),
        rejected_tokens=len(trajectory.token_ids),
    )
