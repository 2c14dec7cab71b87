"""A tokenizer with one token per byte, so that ids can be counted by eye; contexts and segments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dto.context import Context
from dto.grading import Grader
from dto.protocols import Completion
from dto.recipe import ModelSettings, Recipe
from dto.records import Problem, Segment, Span, Trajectory
from dto.trajectories import make_trajectory, prompt_ids
from tests.stages.script import Script, Scripted

EOS = "<eos>"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: index for index, piece in enumerate(["<bos>", EOS, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token=EOS)
    made.chat_template = TEMPLATE
    return made


@pytest.fixture
def context(tokenizer: PreTrainedTokenizerFast) -> Callable[..., Context]:
    """A context on a script, with settings of the stages as keywords."""

    def make(
        script: Script, engine: dict[str, object] | None = None, **settings: object
    ) -> Context:
        recipe = Recipe.model_validate(
            {"name": "test", "seed": 7, "model": {"family": "default"}, **settings}
        )
        return Context(recipe, Scripted(tokenizer, script, **(engine or {})), Grader(workers=1))

    return make


@pytest.fixture
def problem() -> Problem:
    return Problem("p" * 16, "toy", "train", "1 + 1?", "2")


Build = Callable[..., "tuple[Trajectory, list[Segment]]"]


@pytest.fixture
def build(tokenizer: PreTrainedTokenizerFast, problem: Problem) -> Build:
    """A trajectory whose thinking consists of the given patterns, and its segments."""

    async def make(
        patterns: Sequence[str],
        conclusion: str = "\n\n\\boxed{2}",
        sample: int = 0,
        **changes: object,
    ) -> tuple[Trajectory, list[Segment]]:
        text = "".join(patterns) + "</think>" + conclusion
        ids = (*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id)
        async with Grader(workers=1) as grader:
            trajectory = await make_trajectory(
                problem,
                Completion(tuple(ids), "", "stop"),
                model="scripted",
                sample=sample,
                seed=1,
                prompt_ids=prompt_ids(problem.question, tokenizer, ModelSettings(name="x")),
                tokenizer=tokenizer,
                grader=grader,
            )
        trajectory = replace(trajectory, **changes)
        segments, start = [], 0
        for index, pattern in enumerate(patterns):
            span = Span(start, start + len(pattern))
            segments.append(
                Segment(
                    id=Segment.make_id(trajectory.id, index),
                    trajectory_id=trajectory.id,
                    index=index,
                    tokens=span,
                    chars=span,
                    exit=start + len(pattern.rstrip()),
                    cue="",
                    kind="opening",
                )
            )
            start = span.end
        return trajectory, segments

    return make
