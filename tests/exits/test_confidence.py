from __future__ import annotations

from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto.exits.loop import answer_span, confidence
from dto.exits.monitor import entropy
from dto.settings import Confidence

HEAD = "\\boxed"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{7}", "7"),
        ("\\boxed {7} and more", "7"),
        ("\\boxed{\\frac{3}{4}\\sqrt2}", "\\frac{3}{4}\\sqrt2"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{}", ""),
        ("\\boxed{7", None),
        ("\\boxed", None),
        ("\\boxed 7 {8}", None),
    ],
)
def test_answer_span(text: str, answer: str | None) -> None:
    span = answer_span(text)
    assert (None if span is None else text[span.start : span.end]) == answer


def of(kind: Confidence, head: str, tokens: list[tuple[str, float]]) -> float:
    text, ends = head, []
    for piece, _ in tokens:
        text += piece
        ends.append(len(text))
    return confidence(kind, text, ends, [log(p) for _, p in tokens])


@pytest.mark.parametrize(
    ("kind", "head", "tokens", "expected"),
    [
        ("answer", "\\boxed{", [("7", 0.6), ("}", 1.0)], 0.6),
        ("answer", "\\boxed", [("{", 0.1), ("7", 0.6), ("}", 0.2)], 0.6),
        ("answer", "\\boxed", [("{7", 0.6), ("}\n", 0.2)], 0.6),  # merged with a brace
        ("answer", "\\boxed{", [("7}", 0.6)], 0.6),
        ("answer", "\\boxed{", [(" ", 0.1), ("1", 0.9), ("2", 0.8), ("}", 0.1)], 0.72),
        ("mean", "\\boxed", [("{", 0.1), ("7", 0.6), ("}", 0.8)], 0.7),
        ("mean", "\\boxed{", [("7", 0.6), ("}", 0.8)], 0.7),
        ("geometric", "\\boxed{", [("7", 0.4), ("}", 0.9)], 0.6),
        ("min", "\\boxed", [("{", 0.1), ("7", 0.6), ("}", 0.8)], 0.6),
        ("answer", "\\boxed{", [("}", 1.0)], 0.0),
        ("mean", "\\boxed{", [("}", 1.0)], 0.0),
        ("min", "\\boxed{", [("7", 1.0)], 0.0),
    ],
)
def test_confidence(
    kind: Confidence, head: str, tokens: list[tuple[str, float]], expected: float
) -> None:
    assert of(kind, head, tokens) == pytest.approx(expected)


def test_a_character_of_several_tokens_counts_all_of_them() -> None:
    text = "\\boxed{二}"
    logprobs = [log(0.5), log(0.5), log(0.5), log(0.1)]
    assert confidence("answer", text, [-1, -1, 8, 9], logprobs) == pytest.approx(0.125)


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6))
def test_the_kinds_are_ordered(probabilities: list[float]) -> None:
    tokens = [("1", p) for p in probabilities] + [("}", 1.0)]
    answer, least, geometric, mean = (
        of(kind, "\\boxed{", tokens) for kind in ("answer", "min", "geometric", "mean")
    )
    slack = 1e-9
    assert (
        0 <= answer <= least + slack <= geometric + 2 * slack <= mean + 3 * slack <= 1 + 4 * slack
    )


def test_entropy_in_nats() -> None:
    assert entropy({0: 0.0}) == 0.0
    assert entropy({0: log(0.5), 1: log(0.5)}) == pytest.approx(log(2))
    assert entropy({0: log(0.5)}) == pytest.approx(log(2))  # the rest counts as one outcome
