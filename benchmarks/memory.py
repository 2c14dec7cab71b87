"""Peak memory of a training step: the formula of `dto.takes` against what is measured.

    python -m benchmarks.memory [--json] [CASE ...]

Each case is a process of its own, a fork of one that has imported torch and TRL. It makes the model
and dto's own trainer, and takes two optimizer steps: a short one, after which the optimizer's state
is there, and the one that counts. `measured` is the process's peak resident memory above that at
its start. Everything is on the CPU, in float32 unless the name says bf16; the models are SmolLM2
(`make real`) and random ones of 100 million parameters and more. Needs Linux (/proc).

glibc is told to give back every freed block of 1 MiB and more (MALLOC_MMAP_THRESHOLD_). By default
it keeps blocks of up to 32 MiB, and the peaks are 5 to 30 % higher.

Exit code 1 if the formula is further off than `dto.takes.TOLERANCE`.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dto.recipe import Recipe, resolve
from dto.takes import TOLERANCE, Step, shape_of, shape_of_json, step_memory, step_of

SMOLLM2 = Path(__file__).parents[1] / ".cache" / "smollm2"
PROMPT, SHORT = 32, 48
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**20), "OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1",
    "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error",
}  # fmt: skip
WIDE = {
    "model_type": "llama", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 8,
    "num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 32_768,
    "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
"""118 million parameters, a small vocabulary, an untied head."""
MANY_IDS = {
    "model_type": "qwen3", "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 151_936,
    "max_position_embeddings": 4096, "tie_word_embeddings": True,
}  # fmt: skip
"""114 million parameters, Qwen's vocabulary, a tied head, norms of queries and keys."""
BIASED = WIDE | {"model_type": "qwen2", "vocab_size": 100_352, "num_hidden_layers": 6}


@dataclass(frozen=True, slots=True)
class Case:
    """A training on a model: SmolLM2 (None) or a random one, rows of `lengths` tokens a side."""

    config: dict[str, Any] | None
    lengths: tuple[tuple[int, ...], ...]
    train: dict[str, Any] = field(default_factory=dict)

    def recipe(self) -> Recipe:
        """The recipe of this training."""
        group = {"method": "simpo", "batch_size": len(self.lengths), "beta": 1.0, **self.train}
        if "gradient_accumulation" in self.train:
            group["batch_size"] = len(self.lengths) // int(self.train["gradient_accumulation"])
        data = {
            "name": "memory",
            "model": {"name": str(SMOLLM2), "device": "cpu"},
            "pair": {"max_length": max(map(max, self.lengths))},
            "train": group,
        }
        return Recipe.model_validate(data)

    def shape(self) -> Any:
        """The shape of the model."""
        if self.config is None:
            return shape_of(self.recipe().model)
        return shape_of_json(self.config)

    def step(self) -> Step:
        """The step in the formula, with the lengths that it really has."""
        recipe = self.recipe()
        rows = recipe.train.batch_size
        tallest = [max(row[side] for row in self.lengths) for side in range(len(self.lengths[0]))]
        passes: tuple[tuple[int, int], ...] = tuple((rows, length) for length in tallest)
        if recipe.train.method == "dpo":
            passes = ((2 * rows, max(tallest)),)
        return replace(step_of(recipe, self.shape(), cpu=True), passes=passes)


CASES = {
    "smollm2": Case(None, ((320, 192),)),
    "smollm2-checkpointing": Case(None, ((640, 384),), {"gradient_checkpointing": True}),
    "smollm2-lora": Case(None, ((320, 256),), {"lora_rank": 32}),
    "smollm2-lora-bf16": Case(None, ((256, 192),), {"lora_rank": 32, "bf16": True}),
    "smollm2-bf16": Case(None, ((192, 128),), {"bf16": True}),
    "wide-sft-batch": Case(WIDE, ((384,), (320,)), {"method": "sft"}),
    "wide-accumulating": Case(WIDE, ((320, 256), (320, 256)), {"gradient_accumulation": 2}),
    "many-ids": Case(MANY_IDS, ((384, 256),)),
    "many-ids-dpo": Case(MANY_IDS, ((256, 192),), {"method": "dpo"}),
    "biased-batch-checkpointing": Case(
        BIASED, ((192, 128), (160, 96)), {"gradient_checkpointing": True}
    ),
    "biased-lora-checkpointing": Case(
        BIASED, ((512, 384),), {"lora_rank": 16, "gradient_checkpointing": True}
    ),
}


def memory(name: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at the most."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def rows_of(case: Case, lengths: Iterable[tuple[int, ...]], vocabulary: int) -> Iterator[Any]:
    """Pairs, or responses, of random ids, with these tokens a side."""
    import torch

    from dto.training.pairs import Demonstration, TokenizedPair

    noise = torch.Generator().manual_seed(1)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocabulary, (count,), generator=noise).tolist())

    for number, sides in enumerate(lengths):
        parts = [ids(PROMPT), *(ids(side - PROMPT) for side in sides)]
        yield (TokenizedPair if len(sides) > 1 else Demonstration)(str(number), *parts)


def trained(recipe: Recipe, made: Callable[[], Any], rows: list[Any]) -> None:
    """Two steps of dto's own trainer on the model that `made` returns."""
    from transformers import AutoTokenizer, TrainerCallback

    from dto.training import fit, trainers
    from dto.training.weights import with_adapters

    tokenizer = AutoTokenizer.from_pretrained(resolve("nano"))
    trainers.load = lambda recipe: (made(), tokenizer)
    with tempfile.TemporaryDirectory() as directory:
        arguments = fit.trainer_class(recipe.train.method).config(recipe, Path(directory))
        trainer = fit.make_trainer(
            recipe, arguments, with_adapters(made(), recipe), tokenizer, rows,
            list(range(len(rows))), TrainerCallback(),
        )  # fmt: skip
        trainer.train()
    assert trainer.state.global_step == 2


def peak(case: Case) -> int:
    """Bytes above the start of this process that the training takes at its peak.

    Before its start it trains the embedded model, so that libraries are loaded.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from dto.training.weights import load

    recipe = case.recipe()

    def made() -> Any:
        if case.config is None:
            return load(recipe)[0]
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**case.config))

    def embedded() -> Any:
        return AutoModelForCausalLM.from_pretrained(resolve("nano"))

    short = [tuple(SHORT for _ in row) for row in case.lengths]
    torch.manual_seed(0)
    trained(recipe, embedded, list(rows_of(case, [*short, *short], 100)))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM begins anew
    before = memory("VmRSS")
    trained(recipe, made, list(rows_of(case, [*short, *case.lengths], case.shape().vocabulary)))
    return memory("VmHWM") - before


def measured(case: Case) -> int:
    """The peak of a case, in a fork of this process."""
    context = multiprocessing.get_context("fork")
    with context.Pool(1, maxtasksperchild=1) as pool:
        return int(pool.apply(peak, (case,)))


def measure(names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The rows of the table, one for each case."""
    import peft  # noqa: F401

    from dto.training import fit  # noqa: F401

    for name in names:
        case = CASES[name]
        found, formula = measured(case), step_memory(case.shape(), case.step())
        yield {
            "case": name,
            "parameters": case.shape().parameters,
            "measured": found,
            "formula": round(formula.total),
            "ratio": formula.total / found,
            "parts": {
                part: round(getattr(formula, part) / 2**20) for part in formula.__dataclass_fields__
            },
        }


def main() -> int:
    """Measure the cases, print a table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--json", action="store_true", help="rows as JSON")
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all by default")
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        command = [sys.executable, "-m", "benchmarks.memory", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | ENVIRONMENT)
    good = True
    if not options.json:
        print(f"{'case':28}  million  measured   formula  ratio")
    for row in measure(options.cases or CASES):
        good &= abs(row["ratio"] - 1) <= TOLERANCE
        if options.json:
            print(json.dumps(row), flush=True)
        else:
            print(
                f"{row['case']:28}  {row['parameters'] / 1e6:7.0f}  "
                f"{row['measured'] / 2**20:4,.0f} MiB  {row['formula'] / 2**20:4,.0f} MiB  "
                f"{row['ratio']:5.2f}",
                flush=True,
            )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
