"""Memory and time of a training step: labels' log-probabilities against whole logits.

    python -m benchmarks.training [--json] [--methods simpo dpo sft] [--tokens 2048 4096 8192]

One layer, 256 wide, 151,936 ids, float32, on the CPU; a micro-batch is pairs whose sides have 1,024
tokens each, both sides together `tokens` (sft: as many responses). `stock` is what TRL does by
itself: CPOTrainer's whole logits for simpo, the fused head with TRL's own tiles for dpo and sft.
Each path is a fresh process that takes one step, forward and backward; its peak is the resident
memory above that with weights, gradients and optimizer. `share` is ours over stock. Paths take
turns; seconds are CPU seconds. Loss and gradients are those of the two paths on the same weights:
`apart` is the largest difference of a gradient by the largest entry of its tensor.

Exit code 1 when a share is above 0.3 (simpo), or losses or gradients differ by more than 1e-4. What
does not fit into free memory is left out, with a line that says so. Needs Linux (/proc).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dto.recipe import Recipe, resolve

VOCABULARY, WIDTH, SIDE, PROMPT = 151_936, 256, 1024, 64
PATHS = ("stock", "ours")
LARGEST_SHARE, TOLERANCE = 0.3, 1e-4
STOCK_LOGITS = 3.7
"""What the stock path of simpo takes at most, in float32 logits of the micro-batch: measured."""


def rows(method: str, tokens: int) -> list[Any]:
    """Pairs, or responses, of random ids."""
    import torch

    from dto.training.pairs import Demonstration, TokenizedPair

    noise = torch.Generator().manual_seed(1)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(VOCABULARY, (count,), generator=noise).tolist())

    response = SIDE - PROMPT
    if method == "sft":
        return [Demonstration(str(i), ids(PROMPT), ids(response)) for i in range(tokens // SIDE)]
    count = tokens // (2 * SIDE)
    return [TokenizedPair(str(i), ids(PROMPT), ids(response), ids(response)) for i in range(count)]


def memory(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at the most."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    line = next(line for line in lines if line.startswith(field))
    return int(line.split()[1]) * 1024


def step(method: str, path: str, tokens: int, gradients: str) -> dict[str, float]:
    """One step in this process; the gradients go to a file."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, TrainerCallback
    from trl.experimental.cpo import CPOTrainer

    from dto.training import fit, trainers

    if path == "stock":
        fit.small_tiles = lambda: None
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2 * SIDE,
        tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM(config)
    asked = rows(method, tokens)
    settings = {"method": method, "batch_size": len(asked), "beta": 1.0, "gamma": 0.3, "nll": 1.0}
    recipe = Recipe.model_validate(
        {"name": "benchmark", "model": {"device": "cpu"}, "train": settings}
    )
    tokenizer = AutoTokenizer.from_pretrained(resolve("nano"))
    with tempfile.TemporaryDirectory() as directory:
        arguments = fit.trainer_class(method).config(recipe, Path(directory))
        reference = trainers.load
        trainers.load = lambda recipe: (Qwen2ForCausalLM(config), tokenizer)
        order = list(range(len(asked)))
        trainer = fit.make_trainer(
            recipe, arguments, model, tokenizer, asked, order, TrainerCallback()
        )
        trainers.load = reference
        if path == "stock" and method == "simpo":
            trainer.get_batch_loss_metrics = lambda *args, **kwargs: (
                CPOTrainer.get_batch_loss_metrics(trainer, *args, **kwargs)
            )
        batch = next(iter(trainer.get_train_dataloader()))
    short = {key: value[:, : PROMPT + 8] for key, value in batch.items()}
    trainer.compute_loss(model, short).backward()  # what is loaded and allocated but once
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    optimizer.step()
    for each in model.parameters():
        each.grad.zero_()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM begins anew
    before, began = memory("VmRSS"), time.process_time()
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    seconds = time.process_time() - began
    peak = memory("VmHWM") - before
    torch.save({name: each.grad for name, each in model.named_parameters()}, gradients)
    return {"loss": float(loss.detach()), "peak": peak, "seconds": seconds}


def apart(one: str, other: str) -> float:
    """The largest difference of two gradients, relative to the largest entry of its tensor."""
    import torch

    first, second = torch.load(one, mmap=True), torch.load(other, mmap=True)
    return max(
        float((first[name] - second[name]).abs().max() / first[name].abs().max()) for name in first
    )


def available() -> int:
    """Free memory in bytes."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def measure(method: str, tokens: int) -> dict[str, Any] | None:
    """Both paths, each in a process of its own; None where the stock one would not fit."""
    logits = tokens * VOCABULARY * 4
    if available() < STOCK_LOGITS * logits + 2 * 2**30:
        return None
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        files = {path: f"{directory}/{path}.pt" for path in PATHS}
        for path in PATHS:
            command = [sys.executable, "-m", "benchmarks.training", "--step", method, path]
            run = subprocess.run(
                [*command, str(tokens), files[path]],
                capture_output=True,
                text=True,
                check=False,
                env=os.environ | {"TRL_EXPERIMENTAL_SILENCE": "1"},
            )
            if run.returncode:
                raise SystemExit(f"{method}, {path}, {tokens:,} tokens: {run.stderr[-2000:]}")
            found[path] = json.loads(run.stdout.splitlines()[-1])
        gradients = apart(files["stock"], files["ours"])
    stock, ours = found["stock"], found["ours"]
    return {
        "method": method,
        "tokens": tokens,
        "logits": logits,
        "stock": stock["peak"],
        "ours": ours["peak"],
        "share": ours["peak"] / stock["peak"],
        "time": ours["seconds"] / stock["seconds"],
        "loss_apart": abs(ours["loss"] / stock["loss"] - 1),
        "gradients_apart": gradients,
    }


def main() -> int:
    """Measure, print a table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--json", action="store_true", help="rows as JSON")
    parser.add_argument("--methods", nargs="+", default=["simpo", "dpo", "sft"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[2048, 4096, 8192])
    parser.add_argument("--step", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        method, path, tokens, gradients = options.step
        print(json.dumps(step(method, path, int(tokens), gradients)))
        return 0
    good = True
    if not options.json:
        print("method  tokens    logits     stock      ours  share   time  loss apart  grads apart")
    for method in options.methods:
        for tokens in options.tokens:
            row = measure(method, tokens)
            if row is None:
                print(f"{method:6} {tokens:7,}: left out, not enough free memory", flush=True)
                continue
            if options.json:
                print(json.dumps(row), flush=True)
            else:
                sizes = "  ".join(f"{row[key] / 2**20:4,.0f} MiB" for key in ("logits", *PATHS))
                print(
                    f"{method:6} {tokens:7,}  {sizes}  {row['share']:5.2f}  {row['time']:5.2f}  "
                    f"{row['loss_apart']:10.1e}  {row['gradients_apart']:11.1e}",
                    flush=True,
                )
            good &= method != "simpo" or row["share"] <= LARGEST_SHARE
            good &= max(row["loss_apart"], row["gradients_apart"]) <= TOLERANCE
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
