"""Attention FLOPs against a count by hand and against loops over every product."""

from math import isnan
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, Qwen2Config, Qwen3Config

from dto.flops import ModelShape, attention_flops


def counted(shape, start, end):
    """One multiply and one add for each product, in the scores and in the sum over the values."""
    flops = 0
    for _layer in range(shape.layers):
        for _head in range(shape.heads):
            for query in range(start, end):
                for _key in range(query + 1):
                    flops += 2 * shape.head_dim  # q · k
                    flops += 2 * shape.head_dim  # weight × value, added up
    return flops


def test_by_hand():
    # One layer, one head of width 1: positions 0, 1, 2 see 1, 2, 3 keys; 4 operations for each.
    assert attention_flops(ModelShape(1, 1, 1), 0, 3) == 4 * (1 + 2 + 3)
    # R1-Distill-Qwen-1.5B: 28 layers, 12 heads of 128. The token at position 999 sees 1,000 keys.
    assert attention_flops(ModelShape(28, 12, 128), 999, 1000) == 4 * 28 * 12 * 128 * 1000


@given(
    st.builds(ModelShape, st.integers(1, 3), st.integers(1, 3), st.integers(1, 8)),
    st.integers(0, 12),
    st.integers(0, 12),
)
def test_against_loops(shape, start, length):
    assert attention_flops(shape, start, start + length) == counted(shape, start, start + length)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_cached_prefix_costs_nothing_again(start, first, second):
    shape = ModelShape(2, 3, 4)
    middle, end = start + first, start + first + second
    whole = attention_flops(shape, start, end)
    assert whole == attention_flops(shape, start, middle) + attention_flops(shape, middle, end)
    assert attention_flops(shape, start, start) == 0


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        # grouped queries: keys are shared, products are not
        (
            Qwen2Config(
                hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2
            ),
            ModelShape(3, 4, 16),
        ),
        # a head width of its own: 4 * 32 is not the hidden size
        (
            Qwen3Config(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, head_dim=32),
            ModelShape(2, 4, 32),
        ),
        (LlamaConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=2), (1, 2, 32)),
        (
            SimpleNamespace(
                hidden_size=96, num_hidden_layers=5, num_attention_heads=3, head_dim=None
            ),
            ModelShape(5, 3, 32),
        ),
    ],
)
def test_shapes_come_from_configs(config, shape):
    found = ModelShape.from_config(config)
    expected = shape if isinstance(shape, ModelShape) else ModelShape(*shape)
    assert found == expected


def test_a_model_without_known_shape_has_no_figure():
    assert isnan(attention_flops(None, 0, 10))
