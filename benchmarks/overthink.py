"""Teach a real LLM to overthink: the adapter that stands in `benchmarks/smollm2-adapter`.

    python -m benchmarks.overthink .cache/smollm2 [--examples 1536] [--seed 0]

LoRA (2106.09685) on SmolLM2-135M-Instruct, with the NLL of responses of `benchmarks.word_problems`:
thinking in English that re-checks itself and sometimes talks itself out of a right answer. Nothing
of dto's own is in the training but the message that asks the question (`prompts/default/solve`):
no answer inducer, no closing of the thinking before its time. Matrices are multiplied in bfloat16.
Under an hour on two cores whose instructions know that type; many times as long on others.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.smollm2 import ADAPTER, TEMPLATE
from benchmarks.word_problems import problems, response
from dto.recipe import ModelSettings
from dto.trajectories import prompt_ids

SEED, EXAMPLES = 0, 1536
RANK, ALPHA = 12, 24
BATCH, LEARNING_RATE, WARMUP_STEPS = 16, 8e-4, 10
STOP = 70  # steps of the schedule that are made: the loss was 0.08 from step 50 on
EVERY = 10  # steps between two lines of progress


class Example(NamedTuple):
    """Ids of prompt and response; the first `prompt` of them are only read."""

    ids: tuple[int, ...]
    prompt: int


def examples(tokenizer: Any, count: int, seed: int) -> list[Example]:
    """Questions with overthinking responses, one of each."""
    random = Random(seed + 1)
    settings = ModelSettings(name="smollm2-overthinks", family="default")
    rows = []
    for problem in problems(seed, count):
        prompt = prompt_ids(problem.question, tokenizer, settings)
        text = response(problem, random)
        ids = tokenizer.encode(text, add_special_tokens=False)
        rows.append(Example((*prompt, *ids, tokenizer.eos_token_id), len(prompt)))
    return rows


def loss_of(model: Any, batch: Sequence[Example], pad: int) -> torch.Tensor:
    """Mean NLL of the response tokens of a batch."""
    width = max(len(row.ids) for row in batch)
    ids = torch.tensor([[*row.ids, *[pad] * (width - len(row.ids))] for row in batch])
    labels = torch.full_like(ids, -100)
    for line, row in enumerate(batch):
        labels[line, row.prompt : len(row.ids)] = ids[line, row.prompt : len(row.ids)]
    shifted = labels[:, 1:]
    hidden = model.get_decoder()(ids).last_hidden_state[:, :-1][shifted != -100]
    return cross_entropy(model.lm_head(hidden).float(), shifted[shifted != -100])


def teach(base: Path, adapter: Path, count: int, seed: int) -> None:
    """Train the adapter and save it in bfloat16."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    adapters = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    taught: Any = get_peft_model(model, adapters)
    rows = examples(tokenizer, count, seed)
    weights = [weight for weight in taught.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0)
    steps = count // BATCH
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / WARMUP_STEPS) * max(0.05, 1 - step / steps),
    )
    began, tokens, losses = time.monotonic(), 0, []
    for step in range(min(steps, STOP)):
        batch = rows[step * BATCH : (step + 1) * BATCH]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, batch, tokenizer.pad_token_id)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        tokens += sum(len(row.ids) for row in batch)
        losses.append(float(loss.detach()))
        if (step + 1) % EVERY == 0 or step + 1 == min(steps, STOP):
            speed = tokens / (time.monotonic() - began)
            mean = sum(losses[-EVERY:]) / len(losses[-EVERY:])
            print(f"step {step + 1}/{steps}: loss {mean:.3f}, {speed:.0f} tokens/s", flush=True)
            _save(taught, adapter)


def _save(taught: Any, adapter: Path) -> None:
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    adapter.mkdir(parents=True, exist_ok=True)
    config = taught.peft_config["default"]
    config.base_model_name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    config.save_pretrained(adapter)
    state = {
        name: weight.to(torch.bfloat16).contiguous()
        for name, weight in get_peft_model_state_dict(taught).items()
    }
    save_file(state, adapter / "adapter_model.safetensors")


def main() -> int:
    """Train; prints loss and speed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overthink", description=__doc__)
    parser.add_argument("base", type=Path, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--out", type=Path, default=ADAPTER)
    parser.add_argument("--examples", type=int, default=EXAMPLES)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    teach(options.base, options.out, options.examples, options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
