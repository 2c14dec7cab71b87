"""The engine's hot paths on a GPU, which the device `meta` stands for: nothing is computed there.

Torch's own checks let some mixtures of devices pass on `meta`, so that a mode looks at each
operation as CUDA would. What is read back is ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from dto.engines import kv as kv_module
from dto.engines.batch import Batch
from dto.engines.kv import ATTENTION, KEY_BLOCK, KVShape, Prefill, PrefixCache, rows_attention
from dto.engines.linearised import Linearised
from dto.engines.sampling import Request, Sample
from dto.protocols import Sampling

GPU = torch.device("meta")
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default}


class OneDevice(TorchDispatchMode):
    """Fails where CUDA would for tensors of two devices; counts operations and reads."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # in inference mode, an operation that is made of others arrives whole
            if (made := func.decompose(*args, **kwargs)) is not NotImplemented:
                return made
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        on_gpu = any(each.device == GPU for each in tensors)
        self.calls[func.overloadpacket.__name__] += on_gpu
        if on_gpu and func is aten._local_scalar_dense.default:
            self.reads += 1
            return 1
        if on_gpu and func is aten._to_copy.default and kwargs.get("device") == torch.device("cpu"):
            self.reads += 1
            return torch.ones(tensors[0].shape, dtype=kwargs.get("dtype") or tensors[0].dtype)
        if func in INDEXED:  # indices may be on the CPU, values may not
            others = (args[0], *args[2:3])
            tensors = [each for each in others if isinstance(each, torch.Tensor)]
        if func not in COPIES:
            devices = {each.device for each in tensors if each.dim() or each.device == GPU}
            assert len(devices) < 2, f"{func} mixes {devices}"
        return func(*args, **kwargs)


def on_gpu() -> tuple[PreTrainedModel, KVShape]:
    config = Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
    )  # fmt: skip
    with GPU:
        model = Qwen2ForCausalLM(config).to(torch.bfloat16).eval()
    model.set_attn_implementation(ATTENTION)
    return model, KVShape(2, 2, 8, torch.bfloat16, GPU)


@contextmanager
def watched() -> Iterator[OneDevice]:
    with torch.inference_mode(), OneDevice() as mode:
        yield mode


def samples(count: int, **options: Any) -> list[Sample]:
    made = []
    for index in range(count):
        prompt = tuple(range(2, 40 + 3 * index))
        request = Request(prompt, Sampling(max_tokens=4, seed=index, **options), 4)
        request.samples.append(Sample(request, index))
        made += request.samples
    return made


OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.6, "top_p": 0.95},
    {"temperature": 1.0, "top_k": 20, "min_p": 0.1, "logprobs": 3},
    {"temperature": 1.0, "banned": frozenset({5}), "presence_penalty": 0.5, "written": 3},
]


def test_the_mode_sees_what_cuda_would_refuse() -> None:
    with watched():
        here, there = torch.zeros(4, 4), torch.zeros(4, 4, device=GPU)
        there.copy_(here)
        there[[0, 1]] = there[torch.tensor([2, 3])]
        assert (there * torch.tensor(2.0)).tolist() == [[1.0] * 4] * 4
        for wrong in (
            lambda: there @ here,
            lambda: there.gather(-1, torch.zeros(4, 1, dtype=torch.long)),
            lambda: there.masked_fill(here > 0, 1.0),
            lambda: there.index_put_((torch.tensor([0]),), here[:1]),
        ):
            with pytest.raises((AssertionError, RuntimeError), match=r"mixes|device"):
                wrong()


@pytest.mark.parametrize("options", OPTIONS)
def test_a_batch_stays_on_its_device(options: dict[str, Any]) -> None:
    """Prompts are read, with a cache of their beginnings; rows decode, move, grow and leave."""
    model, shape = on_gpu()
    with watched() as mode:
        batch = Batch(model, shape, PrefixCache(shape, 2**20), 64, 2**24, frozenset())
        ended = batch.admit(samples(3, **options))
        ended += batch.admit(samples(20, **options))
        while batch.live:
            ended += batch.step()
    assert len(ended) == 23 and not any(sample.error for sample in ended)
    assert mode.calls["bmm"] > 0 and mode.reads > 0


def test_scores_and_branches_stay_on_their_device() -> None:
    model, shape = on_gpu()
    with watched():
        (scored,) = samples(1)
        scored.request.continuation = tuple(range(2, 60))
        Prefill(model, shape, PrefixCache(shape, 2**20)).score(scored)
        main, *branches = samples(3, temperature=1.0)
        sequence = Linearised(model, shape, frozenset())
        sequence.admit([main])
        ended = sequence.step()
        sequence.admit(branches)
        while sequence.live:
            ended += sequence.step()
    assert len(scored.logprobs) == 58
    assert len(ended) == 3 and not any(sample.error for sample in ended)


@pytest.mark.parametrize("keys", [KEY_BLOCK, 20 * KEY_BLOCK])
def test_attention_on_a_gpu_takes_two_products_however_many_keys(keys: int) -> None:
    """On a CPU the values are summed in blocks, for the same last bits whatever the padding."""
    with watched() as mode:
        query = torch.zeros(3, 4, 1, 8, device=GPU, dtype=torch.bfloat16)
        key = torch.zeros(3, 2, keys, 8, device=GPU, dtype=torch.bfloat16)
        mask = torch.zeros(3, 1, 1, keys, device=GPU, dtype=torch.bfloat16)
        found, _ = rows_attention(torch.nn.Identity(), query, key, key, mask)
    assert found.shape == (3, 1, 4, 8) and mode.calls["bmm"] == 2


def test_one_product_is_the_sum_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(3, heads, count, 8, generator=noise)
        for heads, count in ((4, 2), (2, 300), (2, 300))
    )
    mask = torch.zeros(3, 1, 2, 300)
    blocks, _ = rows_attention(torch.nn.Identity(), query, key, value, mask)
    monkeypatch.setattr(kv_module, "KEY_BLOCK", 300)
    whole, _ = rows_attention(torch.nn.Identity(), query, key, value, mask)
    torch.testing.assert_close(blocks, whole)


def test_a_pass_over_a_prompt_waits_for_nothing() -> None:
    """The lengths are known here: reading them from the device would wait for each pass."""
    model, shape = on_gpu()
    with watched() as mode:
        reader = Prefill(model, shape, PrefixCache(shape, 2**20))
        (read,) = reader.read([tuple(range(2, 60)) * 40])
    assert read.logits.shape == (1, 64) and mode.reads == 0
