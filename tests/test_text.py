"""From ids to text and back."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

from dto.errors import DtoError
from dto.recipe import resolve
from dto.tags import encode
from dto.text import char_ends, decode, decode_response, split_thinking, tokens_within
from tests.byte_level import byte_level
from tests.vocabularies import NAMES
from tests.vocabularies import tokenizer as real

SPLITS = [
    # text, opened, thinking, conclusion, closed
    ("a</think>\n\nb", True, "a", "\n\nb", True),
    ("a</think>b", False, "a", "b", True),
    ("<think>\na</think>b", True, "\na", "b", True),
    ("<think>\na</think>b", False, "\na", "b", True),
    (" \n<think>a</think>b", False, "a", "b", True),
    ("Sure. <think>a</think>b", False, "a", "b", True),
    ("a", True, "a", "", False),
    ("<think>a", False, "a", "", False),
    ("a", False, "", "a", True),
    ("", True, "", "", False),
    ("", False, "", "", True),
    ("</think>b", True, "", "b", True),
    ("a</think>b</think>c", True, "a", "b</think>c", True),
    ("a</think>b <think>c", False, "a", "b <think>c", True),
    ("<think>a<think>b</think>c</think>d", False, "a<think>b</think>c", "d", True),
    ("a<think>b</think>c</think>d</think>e", True, "a<think>b</think>c", "d</think>e", True),
    ("a<think>b</think>c", True, "a<think>b", "c", True),
    ("</think> \n</think>a", True, "", "a", True),
]


@pytest.mark.parametrize(("text", "opened", "thinking", "conclusion", "closed"), SPLITS)
def test_split_thinking(
    text: str, opened: bool, thinking: str, conclusion: str, closed: bool
) -> None:
    split = split_thinking(text, opened)
    assert text[slice(*split.thinking)] == thinking
    assert text[slice(*split.conclusion)] == conclusion
    assert split.closed is closed


texts = st.text(
    st.sampled_from("Wait, 7.\n 等或🙂👩‍👩é\u0301\ufffd<>/think"), max_size=60
) | st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=150)
@given(texts)
def test_a_token_border_is_a_prefix_of_the_text(text: str) -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode(text, add_special_tokens=False)
    ends = char_ends(tokenizer, ids)
    assert len(ends) == len(ids)
    for count, end in enumerate(ends, start=1):
        if end >= 0:
            assert tokenizer.decode(ids[:count]) == tokenizer.decode(ids)[:end]
    borders = [end for end in ends if end >= 0]
    assert borders == sorted(borders)
    assert not ids or ends[-1] == len(text)


@settings(max_examples=100)
@given(st.lists(st.integers(0, 367), max_size=40))
def test_ends_of_ids_that_are_no_text(ids: list[int]) -> None:
    tokenizer = byte_level()
    ends = char_ends(tokenizer, ids)
    text = tokenizer.decode(ids)
    for count, end in enumerate(ends, start=1):
        if end >= 0:
            assert tokenizer.decode(ids[:count]) == text[:end]


def by_the_stream(tokenizer: Any, ids: list[int]) -> list[int]:
    """Where tokens end, as the stream of the library `tokenizers` says, one token at a time."""
    stream, ends, offset = DecodeStream(skip_special_tokens=False), [], 0
    text = decode(tokenizer, ids)
    for token in ids:
        piece = stream.step(tokenizer.backend_tokenizer, token)
        if piece is not None and not text.startswith(piece, offset):
            break
        offset += len(piece or "")
        ends.append(-1 if piece is None else offset)
    ends += [-1] * (len(ids) - len(ends))
    return [*ends[:-1], len(text)] if ends else []


def metaspace() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens have other texts by themselves than in a sentence."""
    words = {"<unk>": 0, **{f"▁{word}": 1 + i for i, word in enumerate(["so", "it", "is", "five"])}}
    words |= {letter: len(words) + i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz▁.")}
    model = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    model.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>")


TOKENIZERS = [byte_level, metaspace, *(partial(real, name) for name in NAMES)]


@pytest.mark.slow
@pytest.mark.parametrize("make", TOKENIZERS, ids=["bytes", "metaspace", *NAMES])
@settings(max_examples=60)
@given(text=texts, noise=st.lists(st.integers(0, 30), max_size=20))
def test_short_cuts_give_what_the_libraries_give(make: Any, text: str, noise: list[int]) -> None:
    tokenizer = make()
    long = text * 30  # beyond the length at which another function encodes
    for each in (text, long):
        assert encode(tokenizer, each) == tokenizer.encode(each, add_special_tokens=False)
    for ids in (encode(tokenizer, text), noise, [*noise, *encode(tokenizer, text)]):
        said = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert decode(tokenizer, ids) == said
        assert char_ends(tokenizer, ids) == by_the_stream(tokenizer, ids)


def test_a_tokenizer_that_cuts_encodes_as_before() -> None:
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.enable_truncation(3)  # as training left it
    assert encode(tokenizer, "abcdef") == tokenizer.encode("abcdef", add_special_tokens=False)


def test_bytes_of_a_character_are_no_border() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("a🙂b", add_special_tokens=False)
    assert char_ends(tokenizer, ids) == [1, -1, -1, -1, 2, 3]


def test_only_a_final_end_of_sequence_is_left_out() -> None:
    tokenizer = byte_level()
    eos = tokenizer.eos_token_id
    ids = tokenizer.encode("a</think>b", add_special_tokens=False)
    assert decode_response(tokenizer, [*ids, eos]) == "a</think>b"
    assert decode_response(tokenizer, [eos, *ids]) == "<eos>a</think>b"
    assert decode_response(tokenizer, []) == ""
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    (turn,) = tokenizer.encode("<turn>", add_special_tokens=False)
    assert decode_response(tokenizer, [*ids, turn]) == "a</think>b"  # another end than its EOS
    assert decode_response(tokenizer, [*ids, turn, *ids]) == "a</think>b<turn>a</think>b"


@pytest.mark.parametrize("tail", ["", "<eos>"])
def test_thinking_tokens_cover_the_thinking(tail: str) -> None:
    tokenizer = byte_level()
    text = "<think>\nIt is 🙂. 等等</think>\n\nfive"
    ids = tokenizer.encode(text + tail, add_special_tokens=False)
    split = split_thinking(decode_response(tokenizer, ids))
    span = tokens_within(char_ends(tokenizer, ids), split.thinking)
    assert tokenizer.decode(ids[slice(*span)]) == text[slice(*split.thinking)]
    conclusion = tokens_within(char_ends(tokenizer, ids), split.conclusion)
    assert tokenizer.decode(ids[slice(*conclusion)]) == "\n\nfive"


def test_unclosed_thinking_ends_before_the_end_of_sequence() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("It is 5<eos>", add_special_tokens=False)
    split = split_thinking(decode_response(tokenizer, ids))
    assert tokens_within(char_ends(tokenizer, ids), split.thinking) == (0, len(ids) - 1)
    assert tokens_within(char_ends(tokenizer, ids), split.conclusion).length == 0


def test_tokens_that_straddle_a_tag_are_left_out() -> None:
    tokenizer = byte_level(tags_are_tokens=False)
    ids = tokenizer.encode("It is 5.</think>five", add_special_tokens=False)
    text = decode_response(tokenizer, ids)
    span = tokens_within(char_ends(tokenizer, ids), split_thinking(text).thinking)
    assert "It is 5.".startswith(tokenizer.decode(ids[slice(*span)]))
    assert span.length > 0


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        name_or_path = "slow"

    slow: Any = Slow()
    with pytest.raises(DtoError, match="slow"):
        char_ends(slow, [1])


def test_the_embedded_tokenizer() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve("nano"))
    text = "Okay. 7 times 8 ends in 6.\n\nWait, 🙂 等等.\n</think>\n\n**Final Answer**\n\\boxed{6}"
    ids = tokenizer.encode(text, add_special_tokens=False)
    span = tokens_within(char_ends(tokenizer, ids), split_thinking(text).thinking)
    assert tokenizer.decode(ids[slice(*span)]) == text.partition("</think>")[0]
