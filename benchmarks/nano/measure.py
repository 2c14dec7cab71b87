"""What the embedded weights are accepted on: accuracy, overthinking, and how sure they are early.

Nothing is accepted by what an exit or a training makes of it.

python -m benchmarks.nano.measure [nano|nano-control|FOLDER] [problems]
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2ForCausalLM

from dto.nano import chain_problems
from dto.prompts import render
from dto.recipe import resolve
from dto.records import Problem

CONCLUSION = re.compile(r"last digit is (\d)")
FACT = re.compile(r"(?:plus|minus|times) \d (?:ends in|gives) \d")
BOXED = re.compile(r"\\boxed\{(\d)\}")
TRIALS = ("trial_closed", "trial_inside", "exit")
BATCH = 100


@dataclass(frozen=True, slots=True)
class Response:
    """A sampled response, read back."""

    problem: Problem
    prompt: list[int]
    thinking: list[int]  # ids, without the closing tag
    text: str
    conclusions: list[str]
    answer: str  # empty: none given
    tokens: int
    closed: bool


def _left_padded(rows: Sequence[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


class Measurement:
    """A model with its tokenizer, sampled from and asked."""

    def __init__(self, folder: Path | str, temperature: float = 1.0, max_tokens: int = 640) -> None:
        """Load the folder in float32. `max_tokens` bounds a response."""
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        self.model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.temperature = temperature
        self.max_tokens = max_tokens

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    @torch.inference_mode()
    def sample(self, problems: Sequence[Problem], seed: int = 0) -> list[Response]:
        """One response a problem."""
        torch.manual_seed(seed)
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        close = self._encode("</think>")[0]
        responses = []
        for start in range(0, len(problems), BATCH):
            batch = problems[start : start + BATCH]
            prompts = []
            for problem in batch:
                question = render("solve", "nano", question=problem.question)
                text = self.tokenizer.apply_chat_template(
                    [{"role": "user", "content": question}],
                    tokenize=False,
                    add_generation_prompt=True,
                )
                prompts.append(self._encode(str(text)))
            ids, mask = _left_padded(prompts, pad)
            sampled = self.model.generate(  # type: ignore[misc]
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=self.max_tokens,
                do_sample=True,
                temperature=self.temperature,
                top_k=0,
                top_p=1.0,
            )
            rows = sampled[:, ids.shape[1] :].tolist()
            for problem, prompt, row in zip(batch, prompts, rows, strict=True):
                row = row[: row.index(end)] if end in row else row
                closed = close in row
                thinking = row[: row.index(close)] if closed else row
                text = str(self.tokenizer.decode(thinking))
                boxed = BOXED.findall(str(self.tokenizer.decode(row[len(thinking) :])))
                conclusions = CONCLUSION.findall(text)
                responses.append(
                    Response(
                        problem, prompt, thinking, text, conclusions,
                        boxed[-1] if boxed else "", len(row), closed,
                    )
                )  # fmt: skip
        return responses

    @torch.inference_mode()
    def confidences(self, prefixes: Sequence[list[int]], inducer: str) -> list[tuple[str, float]]:
        """The likeliest digit after each prefix and an inducer, and its probability."""
        inducer_ids = self._encode(render(inducer))
        brace = self._encode("{") if inducer == "trial_inside" else []
        digits = torch.tensor([self._encode(str(digit))[0] for digit in range(10)])
        found = []
        for start in range(0, len(prefixes), BATCH):
            rows = [prefix + inducer_ids + brace for prefix in prefixes[start : start + BATCH]]
            ids, mask = _left_padded(rows, self.tokenizer.pad_token_id)
            logits = self.model(input_ids=ids, attention_mask=mask, logits_to_keep=1).logits[:, -1]
            best, index = logits.float().softmax(-1)[:, digits].max(-1)
            found += [(str(int(i)), float(p)) for i, p in zip(index, best, strict=True)]
        return found


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits) if hits else float("nan")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def properties(measurement: Measurement, responses: Sequence[Response]) -> dict[str, float]:
    """The figures that the weights are accepted on. Shares and probabilities are in [0, 1]."""
    read = [r for r in responses if r.conclusions]
    gold = [r.problem.answer for r in read]
    first = [r.conclusions[0] == a for r, a in zip(read, gold, strict=True)]
    final = [r.answer == r.problem.answer for r in responses]
    after = []
    for r in read:
        if r.problem.answer in r.conclusions:
            index = r.conclusions.index(r.problem.answer)
            end = list(CONCLUSION.finditer(r.text))[index].end()
            rest = len(measurement._encode(r.text[end:]))
            after.append(rest / len(r.thinking))
    wrong = [r for r in read if r.answer != r.problem.answer]
    result = {
        "accuracy": _share(final),
        "accuracy_first_pass": _share(first),
        "first_right_final_wrong": _share(
            [r.conclusions[0] == r.problem.answer != r.answer for r in read]
        ),
        "first_wrong_final_right": _share(
            [r.conclusions[0] != r.problem.answer == r.answer for r in read]
        ),
        "wrong_with_right_exit": _share([r.problem.answer in r.conclusions for r in wrong]),
        "answer_is_last_conclusion": _share([r.answer == r.conclusions[-1] for r in read]),
        "after_first_right_conclusion": _mean(after),
        "conclusions": _mean([float(len(r.conclusions)) for r in read]),
        "thinking_tokens": _mean([float(len(r.thinking)) for r in responses]),
        "tokens": _mean([float(r.tokens) for r in responses]),
        "truncated": _share([not r.closed or not r.answer for r in responses]),
    }
    return result | _trials(measurement, read)


def _trials(measurement: Measurement, responses: Sequence[Response]) -> dict[str, float]:
    """How sure trial answers are at each progress through the chain, and after the first pass."""
    places: dict[str, list[tuple[list[int], str]]] = {}
    for r in responses:
        stated = next(CONCLUSION.finditer(r.text))
        steps = [m.end() + 1 for m in FACT.finditer(r.text, 0, stated.start())]
        if not steps:
            continue
        ends = {"start": 0, "half": steps[(len(steps) - 1) // 2], "first_pass": stated.end() + 1}
        if len(steps) > 1:
            ends["one_left"] = steps[-2]
        for place, end in ends.items():
            prefix = r.prompt + measurement._encode(r.text[:end])
            places.setdefault(place, []).append((prefix, r.conclusions[0]))
    result = {}
    for inducer in TRIALS:
        for place, rows in places.items():
            found = measurement.confidences([prefix for prefix, _ in rows], inducer)
            result[f"{inducer}.{place}.confidence"] = _mean([p for _, p in found])
            result[f"{inducer}.{place}.over_0.9"] = _share([p > 0.9 for _, p in found])
            if place == "first_pass":
                result[f"{inducer}.{place}.answers_stated"] = _share(
                    [d == stated for (d, _), (_, stated) in zip(found, rows, strict=True)]
                )
    return result


def measure(folder: Path | str, count: int = 400, seed: int = 0) -> dict[str, float]:
    """Sample `count` dev problems at T = 1.0 and measure."""
    measurement = Measurement(folder)
    return properties(measurement, measurement.sample(chain_problems("dev", count, seed), seed))


def main() -> None:
    """Measure fresh dev problems at T = 1.0 and print one figure a line."""
    name = sys.argv[1] if len(sys.argv) > 1 else "nano"
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    torch.set_num_threads(1)
    for figure, value in measure(resolve(name), count, seed=7).items():
        print(f"{figure:40s} {value:8.3f}")


if __name__ == "__main__":
    main()
