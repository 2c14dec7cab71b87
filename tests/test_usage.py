"""Attention FLOPs by hand and against loops over every product, model FLOPs against torch."""

from math import isnan
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from dto.engines.models import active_parameters, parameters_of, shape_of_config, shape_of_model
from dto.training.flops import training_flops
from dto.usage import ModelShape, attention_flops, forward_flops

SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 500}  # fmt: skip


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
    found = shape_of_config(config)
    expected = shape if isinstance(shape, ModelShape) else ModelShape(*shape)
    assert found == expected


def test_a_model_without_known_shape_has_no_figure():
    assert isnan(attention_flops(None, 0, 10))


QWEN2 = 2 * (64 * 64 + 64 + 2 * (64 * 32 + 32) + 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64
EXPERTS = 8 * 3 * 64 * 96


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        # the table of embeddings is looked up in; the head is multiplied with, tied or not
        (Qwen2Config(**SMALL, tie_word_embeddings=False), QWEN2 + 500 * 64),
        (Qwen2Config(**SMALL, tie_word_embeddings=True), QWEN2 + 500 * 64),
        # positions are looked up as well: 12 n² a layer, biases, two norms a layer and one more
        (
            GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=100, n_positions=64),
            12 * 32 * 32 + (3 + 1 + 4 + 1) * 32 + 5 * 2 * 32 - 2 * 2 * 32 + 100 * 32,
        ),
        # 2 of 8 experts
        (
            Qwen3MoeConfig(
                **SMALL, head_dim=16, num_experts=8, num_experts_per_tok=2,
                moe_intermediate_size=96, tie_word_embeddings=False,
            ),
            2 * (2 * 64 * 64 + 2 * 64 * 32 + 2 * 16 + 64 * 8 + EXPERTS // 4 + 2 * 64) + 64 + 32_000,
        ),
        (SimpleNamespace(model_type="nobody's", num_attention_heads=2), None),
    ],
)  # fmt: skip
def test_parameters_that_take_part(config, parameters):
    assert parameters_of(config) == parameters
    if parameters is not None:
        model = AutoModelForCausalLM.from_config(config)
        assert active_parameters(model) == parameters
        assert shape_of_model(model).parameters == parameters


def test_experts_of_unknown_number_have_no_figure():
    model = AutoModelForCausalLM.from_config(Qwen3MoeConfig(**SMALL, num_experts=4))
    model.config = SimpleNamespace(num_experts=4)  # as one that calls it by another name
    assert active_parameters(model) is None


def test_published_sizes():
    """R1-Distill-Qwen-1.5B: 1.78 B parameters, 233 M of them in its table of embeddings."""
    config = Qwen2Config(
        hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
        num_key_value_heads=2, vocab_size=151_936, tie_word_embeddings=False,
    )  # fmt: skip
    assert parameters_of(config) == 1_777_088_000 - 151_936 * 1536
    quantized = Qwen2Config(**SMALL, quantization_config={"quant_method": "awq", "bits": 4})
    assert parameters_of(quantized) == parameters_of(Qwen2Config(**SMALL))


def test_forward_and_training_against_torch():
    """Torch counts the products of matrices alone, and all keys, not those before a token alone."""
    config = Qwen2Config(**SMALL, tie_word_embeddings=False, attn_implementation="eager")
    model = AutoModelForCausalLM.from_config(config)
    shape, length = shape_of_model(model), 32
    ids = torch.arange(length)[None]
    vectors = sum(p.numel() for p in model.parameters() if p.ndim == 1)  # norms, biases
    linear = 2.0 * (shape.parameters - vectors) * length
    keys = 4 * 2 * 4 * 16 * length * length
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(ids)
    # the rotation of positions is a product of vectors, a thousandth of all
    assert forward.get_total_flops() == pytest.approx(linear + keys, rel=1e-3)
    own = forward_flops(shape, 0, length)
    assert own == 2.0 * shape.parameters * length + attention_flops(shape, 0, length)
    with FlopCounterMode(display=False) as both:
        model(ids, labels=ids).loss.backward()
    # nothing before the embeddings has a gradient; all else is twice the forward pass
    assert both.get_total_flops() == pytest.approx(3 * (linear + keys), rel=1e-3)
    attention, whole = training_flops(shape, [length])
    assert (attention, whole) == (3 * attention_flops(shape, 0, length), 3 * own)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "model.embed_tokens.weight")
    with FlopCounterMode(display=False) as through:
        model(ids, labels=ids).loss.backward()
    assert through.get_total_flops() == pytest.approx(2 * linear + 3 * keys, rel=1e-3)


def test_training_by_hand():
    shape = ModelShape(1, 1, 1, 1000)
    lengths = [3, 4]
    keys = 4 * (6 + 10)
    assert training_flops(shape, lengths) == (3 * keys, 6 * 1000 * 7 + 3 * keys)
    assert training_flops(shape, lengths, adapters=True) == (3 * keys, 4 * 1000 * 7 + 3 * keys)
    again = training_flops(shape, lengths, checkpointing=True)
    assert again == (4 * keys, 8 * 1000 * 7 + 4 * keys)
    both = training_flops(shape, lengths, adapters=True, checkpointing=True, reference=True)
    assert both == (5 * keys, 8 * 1000 * 7 + 5 * keys)
    assert training_flops(shape, []) == (0, 0)
    attention, whole = training_flops(ModelShape(1, 1, 1), lengths)
    assert attention == 3 * keys and isnan(whole)


def test_a_model_without_known_parameters_has_no_figure():
    assert isnan(forward_flops(None, 0, 10))
    assert isnan(forward_flops(ModelShape(1, 1, 1), 0, 10))
    assert forward_flops(ModelShape(1, 1, 1, 5), 3, 3) == 0
