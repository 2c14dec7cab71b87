"""A small byte-level BPE tokenizer in R1's form, trained on a few lines."""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

LINES = [
    "Okay, so 7 times 8 is 56.\n\nWait, let me check that again.\n\nBut wait, is it right?\n\n",
    "Alternatively, it is 5. The answer is \\boxed{5}. 好的，等等，或者是六。让我再检查一下。",
]
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>OPEN{% endif %}"
)


@cache
def byte_level(opens: bool = True, tags_are_tokens: bool = True) -> PreTrainedTokenizerFast:
    """`opens`: the chat template ends in `<think>`."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<eos>"],
        show_progress=False,
    )
    backend.train_from_iterator(LINES * 20, trainer)
    if tags_are_tokens:
        backend.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
    template = TEMPLATE.replace("OPEN", "<think>\n" if opens else "")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", chat_template=template
    )
