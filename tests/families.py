"""Model families in small: how their chat templates and tags behave, on a byte-level tokenizer.

The templates are short ones of ours that follow what is published of each family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dto.recipe import ModelSettings

_TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
_END = "{% if add_generation_prompt %}<|assistant|>HERE{% endif %}"


@dataclass(frozen=True)
class Family:
    """A chat template, the added tokens (`special` ones are left out by careless decoding), tags.

    `opens`: the prompt ends inside the thinking. `close_ids`: how many ids of its own the close is.
    """

    template: str | dict[str, str]
    think: tuple[str, str] = ("<think>", "</think>")
    special: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    opens: bool = False
    close_ids: int = 1
    arguments: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None

    @property
    def settings(self) -> ModelSettings:
        return ModelSettings(
            name="family", family="default", think=self.think, template=dict(self.arguments),
            system=self.system,
        )  # fmt: skip


_CHANNELS = "<|start|> <|end|> <|message|> <|channel|> <|return|>".split()  # noqa: SIM905

FAMILIES = {
    "r1": Family(
        _TURNS + _END.replace("HERE", "<think>\n"), added=("<think>", "</think>"), opens=True
    ),
    "plain text tags": Family(_TURNS + _END.replace("HERE", "<think>\n"), opens=True, close_ids=0),
    "qwen3": Family(
        _TURNS + _END.replace(
            "HERE", "{% if enable_thinking is defined and not enable_thinking %}"
            "<think>\n\n</think>\n\n{% endif %}"
        ),
        added=("<think>", "</think>"),
    ),
    "deepseek v3.1": Family(
        "{% if not thinking is defined %}{% set thinking = false %}{% endif %}" + _TURNS
        + _END.replace("HERE", "{{ '<think>' if thinking else '</think>' }}"),
        special=("<think>", "</think>"), opens=True, arguments={"thinking": True},
    ),
    "magistral": Family(
        _TURNS + _END.replace("HERE", ""), ("[THINK]", "[/THINK]"), special=("[THINK]", "[/THINK]"),
        system="Think between [THINK] and [/THINK] first.",
    ),
    "openthinker": Family(
        _TURNS + _END.replace("HERE", ""), ("<|begin_of_thought|>", "<|end_of_thought|>"),
        close_ids=0,
    ),
    "kimi": Family(
        _TURNS + _END.replace("HERE", "◁think▷"), ("◁think▷", "◁/think▷"),
        added=("◁think▷", "◁/think▷"), opens=True,
    ),
    "gpt-oss": Family(
        "<|start|>system<|message|>Reasoning: {{ reasoning_effort or 'medium' }}<|end|>"
        "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        (
            "<|channel|>analysis<|message|>",
            "<|end|><|start|>assistant<|channel|>final<|message|>",
        ),
        special=tuple(_CHANNELS), close_ids=18, arguments={"reasoning_effort": "high"},
    ),
}  # fmt: skip

NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + _TURNS + _END.replace("HERE", "")
)
"""Gemma's way."""


def made(family: Family) -> PreTrainedTokenizerFast:
    """One token for each byte, and the family's added ones; a new tokenizer each time."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: index for index, piece in enumerate(["<bos>", "<eos>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(text, normalized=False) for text in family.added])
    backend.add_special_tokens([AddedToken(text, special=True) for text in family.special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>",
        chat_template=family.template,
    )  # fmt: skip


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of one of `FAMILIES`; shared, so change nothing of it."""
    return made(FAMILIES[name])
