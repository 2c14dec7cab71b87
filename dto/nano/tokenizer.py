"""The embedded model's tokenizer: byte-level BPE in the form of Qwen2.

All 256 bytes are tokens, so any text encodes; digits stand alone; a line break never merges with
the text before it, so a paragraph's end is a token of its own. AutoTokenizer rebuilds a qwen2
tokenizer from vocabulary and merges alone, so nothing here departs from Qwen2's own pipeline.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer

CONTEXT = 2048
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK, END_THINK = "<think>", "</think>"
VOCABULARY = 512

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """Text and line breaks apart, so that no merge spans both."""
    for text in texts:
        yield from re.split(r"(\n+)", text)


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """Learn the merges from texts."""
    untrained = Qwen2Tokenizer(pad_token=PAD, eos_token=END, model_max_length=CONTEXT)
    tokenizer: PreTrainedTokenizerBase = untrained.train_new_from_iterator(  # type: ignore[no-untyped-call]
        _pieces(texts), vocab_size=VOCABULARY, show_progress=False
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [START]})
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in (THINK, END_THINK)])
    tokenizer.padding_side = "left"
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
