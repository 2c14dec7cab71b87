"""How many tokens, FLOPs and bytes each stage of a run takes, before it runs.

Tokens are counted from the recipe. Where that gives only a bound, `tokens` rests on the constants
below, which are assumptions, and `most` is the bound. Of a run that has begun, measured figures
take their place. `dto.forecast` measures a pilot instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import Any

from dto.commands.doctor import Gpu
from dto.compare.compare import grid
from dto.errors import DtoError
from dto.recipe import ModelSettings, Recipe
from dto.runs.reader import RunReader
from dto.takes import PROMPT, Shape, shape_of
from dto.training.flops import training_flops
from dto.training.train import has_reference
from dto.usage import forward_flops

RESPONSE, SHORT = 0.5, 0.25
"""Assumed share of `max_tokens` that a response takes, and a rollout or a conclusion."""
BOUNDARY, ROLLOUTS, GOOD = 200, 8, 0.75
"""Assumed tokens between boundaries, rollouts at each boundary that is tried under method
sequential, and share of responses with a good exit."""
TASK = 500
"""Assumed problems of a test set in `evaluate.tasks`."""
TOKEN_BYTES = 12
"""Disk for each sampled token: its id and text in table and journal."""
UTILISATION = (0.2, 0.5)
"""Assumed share of a GPU's peak that is used, from and to."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage takes: tokens as assumed and at most, tokens trained on, FLOPs, bytes on disk.

    `half`: computed in bfloat16. `gpus` share the work. `measured` by a finished stage.
    """

    stage: str
    tokens: float = 0.0
    most: float = 0.0
    trained: float = 0.0
    flops: float = 0.0
    disk: float = 0.0
    half: bool = True
    gpus: int = 1
    measured: bool = False

    def hours(self, gpu: Gpu) -> tuple[float, float]:
        """Hours on these GPUs, from and to; nan if the peak or the FLOPs are not known."""
        peak = (gpu.bf16 if self.half else gpu.fp32) * self.gpus
        low, high = UTILISATION
        if not peak:
            return nan, nan
        return self.flops / peak / high / 3600, self.flops / peak / low / 3600


@dataclass(frozen=True, slots=True)
class Means:
    """Responses in all, their mean and largest length, and boundaries of each, mean and most."""

    responses: float
    length: float
    longest: float
    boundaries: float
    most_boundaries: float
    measured: tuple[str, ...] = ()


def means(recipe: Recipe, run: RunReader | None) -> Means:
    """The figures that the amounts follow from: measured by a run, or assumed."""
    longest = float(recipe.sample.max_tokens)
    result = Means(
        recipe.problems.train * recipe.sample.samples,
        RESPONSE * longest,
        longest,
        RESPONSE * longest / BOUNDARY,
        longest / BOUNDARY,
    )
    if recipe.sample.imported:
        result = replace(result, responses=_imported_rows(recipe.sample.imported))
    if run is None or run.state("sample") != "finished" or not run.table("sample").is_file():
        return result
    import polars as pl

    lengths = pl.col("token_ids").list.len()
    row = run.frame("sample").select(pl.len(), lengths.mean().alias("mean")).collect().row(0)
    responses, length = float(row[0]), float(row[1] or 0.0)
    result = replace(
        result,
        responses=responses,
        length=length,
        boundaries=length / BOUNDARY,
        measured=("the length of a response",),
    )
    if responses and run.table("segment").is_file():
        each = run.count("segment") / responses
        result = replace(
            result, boundaries=each, measured=(*result.measured, "boundaries of a response")
        )
    return result


def _imported_rows(source: str) -> float:
    path = Path(source)
    if path.suffix == ".jsonl" and path.is_file():
        with path.open("rb") as lines:
            return float(sum(1 for line in lines if line.strip()))
    if path.suffix == ".parquet" and path.is_file():
        import pyarrow.parquet as pq

        return float(pq.read_metadata(path).num_rows)
    return nan


class Counter:
    """Counts the work of a recipe's stages. Without a shape, FLOPs and bytes of weights are nan."""

    def __init__(self, recipe: Recipe, shape: Shape | None, run: RunReader | None = None) -> None:
        self.recipe, self.shape, self.run = recipe, shape, run
        self.means = means(recipe, run)
        self._half = recipe.model.dtype != "float32"

    def works(self, stages: Sequence[str]) -> list[Work]:
        """The work of each of the stages that takes any."""
        rows = []
        for stage in stages:
            done = self._measured(stage)
            for row in [done] if done else self._of(stage):
                if row.tokens or row.trained or row.disk:
                    rows.append(row)
        return rows

    def _measured(self, stage: str) -> Work | None:
        run = self.run
        if run is None or not (found := run.manifest(stage)):
            return None
        usage = found.get("usage") or {}
        tokens, flops = usage.get("generated", 0), usage.get("model_flops")
        trained = found.get("tokens_trained", 0)
        files = [file for file in (run / stage).rglob("*") if file.is_file()]
        size = float(sum(file.stat().st_size for file in files))
        flops = (nan if flops is None else flops) + (found.get("model_flops_trained") or 0.0)
        return Work(stage, tokens, tokens, trained, flops, size, measured=True)

    def _forward(self, start: float, end: float) -> float:
        shape = None if self.shape is None else self.shape.flops
        return forward_flops(shape, round(start), round(end))

    def _sampled(self, stage: str, count: float, mean: float, most: float, **more: Any) -> Work:
        """`count` responses of `mean` tokens to a question, at most `most` tokens in all."""
        tokens = count * mean
        values: dict[str, Any] = {
            "flops": count * self._forward(0, PROMPT + mean),
            "disk": tokens * TOKEN_BYTES,
            "half": self._half,
            "gpus": self.recipe.model.tensor_parallel,
        }
        return Work(stage, tokens, most, **values | more)

    def _continued(self, stage: str, count: float, limit: float, most: float) -> Work:
        """`count` short continuations in the middle of responses, of at most `limit` tokens."""
        middle, each = PROMPT + self.means.length / 2, SHORT * limit
        flops = count * self._forward(middle, middle + each)
        flops += self.means.responses * self._forward(0, PROMPT + self.means.length)  # once read
        return self._sampled(stage, count, each, most, flops=flops)

    def _of(self, stage: str) -> list[Work]:
        recipe, mean = self.recipe, self.means
        if stage == "sample":
            if recipe.sample.imported:
                return []
            return [self._sampled(stage, mean.responses, mean.length,
                                  mean.responses * mean.longest)]  # fmt: skip
        if stage == "batch":
            limit = recipe.batch.max_tokens or recipe.sample.max_tokens
            asked = sum(recipe.problems.train // k * k for k in recipe.batch.k)
            count = float(recipe.batch.samples * asked)
            asks = self if recipe.batch.teacher is None else self._teacher(recipe.batch.teacher)
            result = [asks._sampled(stage, count, RESPONSE * limit, count * limit)]
            if asks is not self:
                count = float(recipe.problems.train * recipe.sample.samples)
                limit = recipe.sample.max_tokens
                result.append(asks._sampled("  alone", count, RESPONSE * limit, count * limit))
            return result
        if stage == "estimate":
            own = recipe.estimate
            each = float(own.rollouts if own.method == "fixed" else min(ROLLOUTS, own.cap))
            most = own.rollouts if own.method == "fixed" else own.cap
            tried = mean.boundaries / (2 if own.first_pass_only else 1)
            return [self._continued(
                stage, mean.responses * tried * each, own.max_tokens,
                mean.responses * mean.most_boundaries * most * own.max_tokens,
            )]  # fmt: skip
        if stage == "optimize":
            k, limit = recipe.optimize.finalizations, recipe.optimize.max_tokens
            bound = mean.responses * k * limit
            return [self._continued(stage, GOOD * mean.responses * k, limit, bound)]
        if stage == "prune":
            return self._prune(stage)
        if stage == "train":
            return self._train(stage)
        if stage == "evaluate":
            return self._evaluate(stage)
        return []

    def _teacher(self, teacher: ModelSettings) -> Counter:
        """Counts what a teacher samples; FLOPs of an unknown shape are 0 on a server, else nan."""
        recipe = self.recipe.model_copy(update={"model": teacher})
        try:
            return Counter(recipe, shape_of(teacher))
        except DtoError:
            return _Served(recipe, None) if teacher.engine == "openai" else Counter(recipe, None)

    def _prune(self, stage: str) -> list[Work]:
        recipe, mean, own = self.recipe, self.means, self.recipe.prune
        if own.judge == "none":
            return []
        judging = own.rollouts if own.judge == "counterfactual" else 0
        kept = max(0.0, mean.boundaries / 2 - 2)
        each = judging * (min(own.max_segments, kept) + 1) + ROLLOUTS + own.confirmations
        most = judging * (own.max_segments + 1) + 4 * recipe.estimate.cap + own.confirmations
        limit, k = recipe.estimate.max_tokens, recipe.optimize.finalizations
        bound = mean.responses * (most * limit + k * recipe.optimize.max_tokens)
        rows = [self._continued(stage, GOOD * mean.responses * each, limit, bound)]
        if own.judge == "llm":
            count = GOOD * mean.responses
            reply = self._sampled("  judge", count, SHORT * own.max_tokens,
                                  mean.responses * own.max_tokens)  # fmt: skip
            rows.append(replace(reply, flops=0.0 if recipe.judge else reply.flops, disk=0.0))
        return rows

    def _train(self, stage: str) -> list[Work]:
        recipe, train = self.recipe, self.recipe.train
        if train.method == "none":
            return []
        rows, each = self._rows()
        trained = rows * each * train.epochs
        flops = disk = nan
        if self.shape is not None:
            sides = 2 if train.method in ("simpo", "dpo") else 1
            flops = (
                rows
                * train.epochs
                * sides
                * training_flops(
                    self.shape.flops,
                    [round(each / sides)],
                    adapters=bool(train.lora_rank),
                    checkpointing=train.gradient_checkpointing,
                    reference=has_reference(train),
                )[1]
            )
            own = self.shape.adapters(train.lora_rank) if train.lora_rank else self.shape.parameters
            disk = 3 * 12.0 * own + (2 if train.bf16 else 4) * self.shape.parameters
            if train.engine == "vllm":  # RUN/train/handed, and the one that takes its place
                disk += 2.0 * own * (2 if self._half and not train.lora_rank else 4)
        gpus = train.processes or 1
        result = [Work(stage, 0.0, 0.0, trained, flops, disk, train.bf16, gpus)]
        if train.method in ("grpo", "drqa"):
            answer = train.response_tokens or recipe.sample.max_tokens
            count, prompt = rows * train.epochs, each - RESPONSE * answer
            read = count / train.group * self._forward(0, prompt)
            sampled = self._sampled(
                "  sampling", count, RESPONSE * answer, count * answer,
                flops=read + count * self._forward(prompt, each),
            )  # fmt: skip
            result.append(replace(sampled, half=self._dev_half(), gpus=gpus, disk=0.0))
        points = train.evaluations + 1
        count = float(points * recipe.problems.dev * train.dev_samples)
        dev = self._sampled("  dev", count, self.means.length, count * self.means.longest)
        result.append(replace(dev, half=self._dev_half(), gpus=gpus, disk=0.0))
        if train.method in ("drqa", "cft", "sft_batch"):
            answer = train.response_tokens or recipe.sample.max_tokens
            held = self._labelled() * recipe.label.held_out * train.judgements * points
            judged = self._sampled("  judging", held, RESPONSE * answer, held * answer)
            result.append(replace(judged, half=self._dev_half(), gpus=gpus, disk=0.0))
        return result

    def _labelled(self) -> float:
        """Labelled chains, held-out ones included."""
        recipe = self.recipe
        chains = float(recipe.problems.train * len(recipe.batch.k) * recipe.batch.samples)
        chains += self.means.responses
        return min(chains, 3.0 * recipe.label.per_class) if recipe.label.per_class else chains

    def _dev_half(self) -> bool:
        """Whether responses in training are computed in bfloat16."""
        train = self.recipe.train
        own = train.bf16 and (bool(train.lora_rank) or bool(train.accelerate))
        return own or (train.engine == "vllm" and self._half)

    def _rows(self) -> tuple[float, float]:
        """Rows of an epoch, and tokens of each that a pass reads."""
        recipe, mean, method = self.recipe, self.means, self.recipe.train.method
        pairs = GOOD * mean.responses
        if recipe.pair.data != "optimized" and not recipe.sample.imported:
            pairs = min(pairs, recipe.problems.train * recipe.pair.max_per_problem)
        labelled = self._labelled() * (1 - recipe.label.held_out)
        answer = RESPONSE * (recipe.train.response_tokens or recipe.sample.max_tokens)
        chain = 2 * PROMPT + mean.length / 2
        match method:
            case "grpo":
                return recipe.problems.train * recipe.train.group, PROMPT + answer
            case "drqa":
                return labelled * recipe.train.group, chain + answer
            case "cft" | "sft_batch":
                return labelled, chain
            case "o1_pruner":
                return mean.responses, PROMPT + mean.length
            case "sft":
                return pairs, PROMPT + mean.length / 2
        return pairs, 2 * PROMPT + 1.5 * mean.length

    def _evaluate(self, stage: str) -> list[Work]:
        own = self.recipe.evaluate
        questions = float(self.recipe.problems.test)
        if own.tasks:
            questions = float(len(own.tasks) * (own.limit or TASK))
        count = len(own.models) * len(own.exits) * questions * own.samples
        mean = RESPONSE * own.max_tokens
        if "the length of a response" in self.means.measured:
            mean = min(self.means.length, own.max_tokens)
        return [self._sampled(stage, count, mean, count * own.max_tokens)]


class _Served(Counter):
    """Counts the work of a model whose FLOPs are another machine's."""

    def _forward(self, start: float, end: float) -> float:
        return 0.0


def compared(name: str, method: Recipe, shape: Shape | None, run: RunReader | None) -> list[Work]:
    """The work of a method of a comparison: its trainings at all points, and its evaluation."""
    points, budget = len(grid(method)) or 1, float(method.compare.policy_tokens)
    rows = Counter(method, shape).works(["train", "evaluate"])
    result = []
    for row in rows:
        if row.stage == "train":
            share = budget / row.trained if row.trained else 0.0
            row = replace(row, trained=points * budget, flops=points * share * row.flops)
        elif row.stage != "evaluate":
            row = replace(row, tokens=points * row.tokens, most=points * row.most,
                          flops=points * row.flops)  # fmt: skip
        else:
            row = replace(row, tokens=row.tokens / 2, most=row.most / 2, flops=row.flops / 2)
        result.append(replace(row, stage=f"{name} {row.stage.strip()}"))
    return result
