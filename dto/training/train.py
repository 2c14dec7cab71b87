"""Training (2505.21765 section 3, last step; or a baseline's loss) in a process of its own."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from dto.concurrency import run_child
from dto.errors import DtoError
from dto.recipe import Recipe, load_recipe
from dto.runs.stage import SAMPLING, Stage, always

logger = logging.getLogger("dto.train")

ERROR = "error: "


def train(
    run_directory: Path | str, recipe: Recipe, allow_code_execution: bool = False
) -> dict[str, Any]:
    """Train on a run's tables as its recipe says; what came of it. Nothing of torch is imported.

    Reads the tables of problems, sample, prune and pair, as far as the method asks for
    them; `recipe` is the run's own. The engine that sampled must be closed by now, as training
    wants its memory. The work is done by :mod:`dto.training.process`; killed at any time and called
    again, it goes on from its last complete checkpoint. It writes below `RUN/train`: `model/`
    (weights, tokenizer, chat template), `history.jsonl` (deterministic), `effort.jsonl` (not),
    `dropped.jsonl`, `result.json`. GRPO also writes `steps.jsonl`, and what is trained on labelled
    chains `judging.jsonl`.
    `allow_code_execution`: programs that answer dev problems are run (`dto.grading.sandbox`).

    Returns:
        `rows` (counts: pairs, responses or problems, dropped, dev_problems), `usage` (of the dev
        responses, and of those that were sampled to train on, the fields of `dto.usage.Usage`),
        kept_step (0: the base model), reason (why that one), steps, collapsed, tokens_trained,
        attention_flops_trained and model_flops_trained (forward and backward passes),
        policy_tokens (with what was sampled to train on), epochs (passes), groups (of GRPO: how
        many, how many without advantage, responses without a letter; else None), judging (of the
        held-out chains: before, after, of what is kept; None without any), train_seconds,
        dev_seconds, seconds (both, with what ran before a kill), peak_memory (bytes).

    Raises:
        DtoError: in one line, what the training process ended with.
    """
    run = Path(run_directory)
    own = run / "recipe.yaml"
    if load_recipe(own) != recipe:
        raise DtoError(f"train: {own} differs from the recipe asked for: train goes by that file")
    command = [sys.executable, "-m", "dto.training.process", str(run), "--parent", str(os.getpid())]
    if allow_code_execution:
        command.append("--allow-code-execution")
    environment = os.environ | {"TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONUTF8": "1"}
    last = ""

    def told(line: str) -> None:
        nonlocal last
        last = line.strip() or last
        if not last.startswith(ERROR):
            logger.info("%s", line.rstrip())

    code = run_child(command, told, environment)
    if code == 130 or code == -signal.SIGINT:
        raise KeyboardInterrupt
    if code < 0:
        name = signal.Signals(-code).name
        raise DtoError(f"train: the training process was killed ({name}): run again, it resumes")
    if code:
        known = last.startswith(ERROR)
        raise DtoError(
            last.removeprefix(ERROR)
            if known
            else f"train: the training process ended with exit code {code}, its traceback is above"
        )
    result: dict[str, Any] = json.loads((run / "train" / "result.json").read_text(encoding="utf-8"))
    return result


_OF_CHAINS = {
    "drqa": ("label",), "cft": ("label",), "sft_batch": ("batch", "chain", "label"),
}  # fmt: skip


def _reads(recipe: Recipe) -> tuple[str, ...]:
    method = recipe.train.method
    if method in ("grpo", "none"):
        return ("problems",)
    if method == "o1_pruner":
        return ("problems", "sample")
    return ("problems", *_OF_CHAINS.get(method, ("pair",)))


def _asks_model(recipe: Recipe) -> bool:
    """Whether nothing that it reads says which model it has: then its own manifest does."""
    method = recipe.train.method
    if method in ("grpo", "none"):
        return True
    if method in _OF_CHAINS and recipe.batch.k:
        return False
    paired = method not in ("o1_pruner", *_OF_CHAINS)
    if paired and recipe.pair.data == "optimized":
        return False
    return recipe.sample.imported is not None


STAGE = Stage(
    name="train",
    about="Train; keep the best checkpoint on dev problems.",
    amount=lambda recipe: (
        f"{recipe.problems.dev:,} dev problems × {recipe.train.dev_samples} samples, "
        f"{recipe.train.evaluations} times"
    ),
    reads=_reads,
    settings=always("train.", *SAMPLING, "sample.max_tokens"),
    whole=train,
    asks_model=_asks_model,
    of_method=True,
)
