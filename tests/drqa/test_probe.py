from __future__ import annotations

from random import Random

import pytest

from dto.drqa.probe import BOUND, format_probe, length_accuracy, length_probe


def chains(count: int, mark: str = "", seed: int = 0) -> tuple[list[str], list[bool], list[str]]:
    """Sums of any length; `mark` is put before each chain of a batch prompt."""
    random = Random(seed)
    texts, batch, problems = [], [], []
    for place in range(count):
        for is_batch in (False, True):
            steps = random.randint(1, 4 if is_batch else 12)
            digits = [[random.randint(0, 9) for _ in range(3)] for _ in range(steps)]
            body = " ".join(f"{a} plus {b} is {c}." for a, b, c in digits)
            texts.append((mark if is_batch else "") + body)
            batch.append(is_batch)
            problems.append(f"{place:04d}")
    return texts, batch, problems


def test_chains_that_differ_in_length_alone_do_not_differ_in_format():
    texts, batch, problems = chains(300)
    found = format_probe(texts, batch, problems)
    assert found.low <= 0.5 <= found.high <= BOUND
    assert not found.predicts
    by_length = length_probe([len(text) for text in texts], batch, problems)
    assert by_length.low > 0.7


@pytest.mark.parametrize("mark", ["Question 2. ", "\n", "**", "So ", "1. ", "第二题 "])
def test_any_mark_is_found(mark):
    found = format_probe(*chains(100, mark))
    assert found.low > 0.95 and found.predicts


def test_a_mark_on_some_chains_is_found():
    texts, batch, problems = chains(300, "Well, ")
    random = Random(1)
    plain = [text.removeprefix("Well, ") if random.random() < 0.5 else text for text in texts]
    found = format_probe(plain, batch, problems)
    assert 0.7 < found.low < found.auc < found.high < 0.85


def test_one_class_has_no_figure():
    found = format_probe(["a", "b"], [True, True], ["1", "2"])
    assert found.auc != found.auc and (found.positive, found.negative) == (2, 0)


def test_length_says_which_of_three():
    lengths = [10, 100, 1000] * 40
    problems = [f"{place // 3}" for place in range(120)]
    found = length_accuracy(lengths, ["concise", "verbose", "wrong"] * 40, problems)
    assert found.value == 1.0
