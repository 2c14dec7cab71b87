"""Memory and time of a training step: labels' log-probabilities against whole logits.

    python -m benchmarks.training [--json] [--methods simpo dpo sft] [--tokens 2048 4096 8192]
    python -m benchmarks.training --sampling [--json] [--engines transformers vllm] [--model nano]

One layer, 256 wide, 151,936 ids, float32, on the CPU; a micro-batch is pairs whose sides have 1,024
tokens each, both sides together `tokens` (sft: as many responses). `stock` is what TRL does by
itself: CPOTrainer's whole logits for simpo, the fused head with TRL's own tiles for dpo and sft.
Each path is a fresh process that takes one step, forward and backward; its peak is the resident
memory above that with weights, gradients and optimizer. `share` is ours over stock. Paths take
turns; seconds are CPU seconds. Loss and gradients are those of the two paths on the same weights:
`apart` is the largest difference of a gradient by the largest entry of its tensor.

Exit code 1 when a share is above 0.3 (simpo), or losses or gradients differ by more than 1e-4. What
does not fit into free memory is left out, with a line that says so. Needs Linux (/proc).

`--sampling` measures the responses that a training samples, in float32, each engine in a process of
its own. `dev` over `sample` is the tokens per second of a dev measurement over those of the sample
stage on the same problems and the same engine: its start is left out, the hand-over of the weights
is included. They take turns, after one turn of each that is not counted; the medians are compared.
`sampling` is the share of a GRPO step that is sampling, over its seconds without the first step.
Exit code 1 when `dev` over `sample` is below 0.8 on vLLM.
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

from dto.nano import chain_problems
from dto.recipe import Recipe, resolve

VOCABULARY, WIDTH, SIDE, PROMPT = 151_936, 256, 1024, 64
PATHS = ("stock", "ours")
LARGEST_SHARE, TOLERANCE = 0.3, 1e-4
STOCK_LOGITS = 3.7
"""What the stock path of simpo takes at most, in float32 logits of the micro-batch: measured."""

LEAST_DEV = 0.8
TURNS, STEPS, TRAINED = 3, 6, 100


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


def sampling(engine: str, model: str, problems: int) -> dict[str, float]:
    """One engine, in this process: dev measurement against sample stage, and GRPO's sampling."""
    import torch

    from dto.training.beside import open_beside
    from dto.training.dev import measure as measure_dev
    from dto.training.weights import load

    torch.set_num_threads(1)
    recipe = Recipe.model_validate(
        {
            "name": "benchmark",
            "model": {"name": model, "device": "cpu", "dtype": "float32", "context": 1024},
            "sample": {"samples": 2, "temperature": 1.0, "top_p": 1.0, "max_tokens": 320},
            "train": {
                "method": "grpo", "engine": engine, "dev_samples": 2, "group": 4, "batch_size": 32,
                "learning_rate": 1e-6, "keep": "last", "evaluations": 1,
                "epochs": STEPS * 8 / TRAINED, "collapse_points": 100, "collapse_truncated": 1.0,
            },
        }
    )  # fmt: skip
    asked = chain_problems("dev", problems, seed=0)
    own, tokenizer = load(recipe)
    rates: dict[str, list[float]] = {"dev": [], "sample": []}
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        with open_beside(recipe, own, place) as beside:
            for turn in range(TURNS + 1):
                began = time.perf_counter()
                _, usage = measure_dev(own, tokenizer, asked, recipe, beside=beside)
                rates["dev"].append(usage.generated / (time.perf_counter() - began))
                rates["sample"].append(
                    sample_stage(place / str(turn), recipe, asked, beside, (own, tokenizer))
                )
        seconds = grpo_steps(place / "run", recipe)
    dev, stage = (sorted(rate[1:])[TURNS // 2] for rate in rates.values())
    return {"dev": dev, "sample": stage, "ratio": dev / stage, **seconds}


def sample_stage(
    place: Path, recipe: Recipe, problems: list[Any], beside: Any, loaded: tuple[Any, Any]
) -> float:
    """Tokens per second of the sample stage, on an engine that has started."""
    import asyncio
    from functools import partial

    from dto.context import Context
    from dto.engines.transformers import TransformersEngine
    from dto.grading import Grader
    from dto.records import Trajectory
    from dto.runs.stage import Group, Runner
    from dto.stages.sample import sample

    async def feed(engine: Any) -> float:
        async with Grader() as grader:
            work = partial(sample, ctx=Context(recipe, engine, grader))
            groups = (Group(row.id, (row,)) for row in problems)
            place.mkdir(parents=True)
            began = time.perf_counter()
            with Runner(place, Trajectory, {}) as runner:
                await runner.feed(groups, work, window=recipe.window)
                content = await runner.finish()
            return float(content["usage"]["generated"] / (time.perf_counter() - began))

    async def in_process() -> float:
        async with TransformersEngine(recipe.model, loaded=loaded) as engine:
            return await feed(engine)

    if beside is None:
        return asyncio.run(in_process())
    return float(beside._loop.run(feed(beside._engine)))


def grpo_steps(run: Path, recipe: Recipe) -> dict[str, float]:
    """Seconds of a step of GRPO, and the share of them that is sampling."""
    import yaml

    from dto import tables
    from dto.records import Problem
    from dto.training import grpo
    from dto.training.dev import DevScore
    from dto.training.fit import fit

    problems = chain_problems("train", TRAINED, seed=0) + chain_problems("dev", 2, seed=0)
    (run / "problems").mkdir(parents=True)
    table = run / "problems" / "rows.parquet"
    tables.write(table, Problem, sorted(problems, key=lambda row: row.id))
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")), "utf-8")
    spent: list[float] = []
    ends: list[float] = []
    original, ended = grpo.respond, grpo.StepCallback.on_step_end

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            spent.append(time.perf_counter() - began)

    def at_end(self: Any, *args: Any, **kwargs: Any) -> None:
        ended(self, *args, **kwargs)
        ends.append(time.perf_counter())

    grpo.respond = timed
    grpo.StepCallback.on_step_end = at_end  # type: ignore[method-assign]
    fit(run, recipe, base=DevScore(0, 0.0, 0.0, 0.0, 1.0, 0.0, 2, 0, None))
    steps, whole = len(ends) - 1, ends[-1] - ends[0]
    return {"step": whole / steps, "sampling": sum(spent[1:]) / whole}


def measure_sampling(engine: str, model: str, problems: int) -> dict[str, Any]:
    """An engine in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.training", "--sampled", engine, model]
    quiet = {"TRL_EXPERIMENTAL_SILENCE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(
        [*command, str(problems)], capture_output=True, text=True, check=False,
        env=os.environ | quiet,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{engine}: {done.stderr[-2000:]}")
    return {"engine": engine, "model": model, **json.loads(done.stdout.splitlines()[-1])}


def report_sampling(options: argparse.Namespace) -> int:
    """Measure the engines, print a table or JSON."""
    good = True
    if not options.json:
        print("engine        dev tok/s  sample tok/s  dev/sample  GRPO step  sampling")
    for engine in options.engines:
        row = measure_sampling(engine, options.model, options.problems)
        good &= engine != "vllm" or row["ratio"] >= LEAST_DEV
        if options.json:
            print(json.dumps(row), flush=True)
            continue
        print(
            f"{engine:12} {row['dev']:10,.0f} {row['sample']:13,.0f} {row['ratio']:11.2f} "
            f"{row['step']:8.2f} s {row['sampling']:9.2f}",
            flush=True,
        )
    return 0 if good else 1


def main() -> int:
    """Measure, print a table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--json", action="store_true", help="rows as JSON")
    parser.add_argument("--methods", nargs="+", default=["simpo", "dpo", "sft"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[2048, 4096, 8192])
    parser.add_argument("--sampling", action="store_true", help="measure sampling in training")
    parser.add_argument("--engines", nargs="+", default=["transformers", "vllm"])
    parser.add_argument("--model", default="nano", help="with --sampling: a name or folder")
    parser.add_argument("--problems", type=int, default=100, help="with --sampling: dev problems")
    parser.add_argument("--step", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--sampled", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sampled:
        engine, model, problems = options.sampled
        print(json.dumps(sampling(engine, model, int(problems))))
        return 0
    if options.sampling:
        return report_sampling(options)
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
