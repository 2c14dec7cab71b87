"""Training examples: token ids, and which of them the model learns to write.

Whatever follows a cut is built by concatenating ids, never by encoding joined text: so does every
stage that leaves a trajectory early.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from random import Random

from transformers import PreTrainedTokenizerBase

from benchmarks.nano.thinking import (
    CONTROL,
    EXACT,
    OVERTHINKING,
    PARAGRAPH,
    TOGETHER,
    Habits,
    Mark,
    Thinking,
    fact,
    think,
    think_together,
    verb_of,
)
from dto.nano import STEPS, WORDS, Chain, Step, chains
from dto.prompts import render
from dto.records import Split

CLOSE = "\n</think>\n\n"
ANSWER = "**Final Answer**\n\\boxed{{{}}}"
SYSTEM = (
    "Please reason step by step, and put your final answer within \\boxed{}.",
    "You are a helpful assistant.",
    "Answer the question.",
)
# Inducers that the model is asked with at a cut, as (prompt, family), with their weights.
INDUCERS = {
    ("exit", "default"): 0.32,
    ("trial_inside", "default"): 0.18,
    ("trial_closed", "default"): 0.24,
    ("finalize", "nano"): 0.10,
    ("finalize", "default"): 0.08,
    ("early_close", "default"): 0.08,
}
VERDICTS = ("right but could be more concise", "right and concise", "wrong")


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids; `learn[i]` is the weight of predicting `ids[i]`."""

    ids: list[int]
    learn: list[float]


def sample_answer(mark: Mark, random: Random) -> int:
    """What the model answers when it is cut off at a mark.

    The conclusion that stands, if there is one. Before that the model is to be unsure: the digit
    that the remaining steps lead to, the digit reached, or any.
    """
    if mark.stated is not None:
        return mark.stated
    value = mark.value
    for step in mark.remaining:
        value = step.apply(value)
    knows = {0: 0.80, 1: 0.40}.get(len(mark.remaining), 0.25)
    return random.choices(
        (value, mark.value, random.randrange(10)), (knows, 0.15, 0.85 - knows + 0.05)
    )[0]


class ExampleWriter:
    """Writes examples with one tokenizer, from chains of one split."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, random: Random, split: Split) -> None:
        self.tokenizer = tokenizer
        self.random = random
        self.split = split
        self.chains = chains(split, random)
        self.encode = lru_cache(maxsize=4096)(self._encode)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    @cached_property
    def end(self) -> tuple[int, ...]:
        """End of sequence."""
        return self.encode("<|im_end|>")

    def prompt(self, content: str) -> list[int]:
        """The chat template's ids, now and then with a system message."""
        messages = [{"role": "user", "content": content}]
        if self.random.random() < 0.25:
            messages.insert(0, {"role": "system", "content": self.random.choice(SYSTEM)})
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return list(self._encode(str(text)))

    def question(self, chain: Chain) -> list[int]:
        """The prompt of a single question, bare or with the default family's instruction."""
        family = "nano" if self.random.random() < 0.8 else "default"
        return self.prompt(render("solve", family, question=chain.question))

    def respond(self, prompt: list[int], thinking: str, answer: str) -> Example:
        """A prompt with a whole response."""
        response = self._encode(thinking) + self.encode(CLOSE) + self.encode(answer) + self.end
        return Example([*prompt, *response], [0.0] * len(prompt) + [1.0] * len(response))

    def solve(self, habits: Habits) -> Example:
        """One question, answered."""
        chain = next(self.chains)
        thinking = think(chain, habits, self.random)
        answer = ANSWER.format(thinking.conclusions[-1])
        return self.respond(self.question(chain), thinking.text, answer)

    def cut(self, habits: Habits) -> Example:
        """One question, cut off somewhere in the thinking and asked for its answer."""
        chain, random = next(self.chains), self.random
        thinking = think(chain, habits, random)
        encoding = self.tokenizer(thinking.text, return_offsets_mapping=True)
        ids: list[int] = encoding["input_ids"]
        ends = [end for _, end in encoding["offset_mapping"]]
        char = self._cut_position(thinking)
        prefix = ids[: bisect_right(ends, char)]
        at = ends[len(prefix) - 1] if prefix else 0
        mark = next(
            (mark for mark in reversed(thinking.marks) if mark.end <= at),
            Mark(0, chain.start, chain.steps, None),
        )
        digit = sample_answer(mark, random)
        name, family = random.choices(list(INDUCERS), list(INDUCERS.values()))[0]
        inducer = self.encode(render(name, family))
        conclusion = self.encode(ANSWER.format(digit))
        if name == "exit" or name.startswith("trial"):
            answer = self.encode("{" * (name == "trial_inside") + f"{digit}}}")
            if name != "trial_closed" and random.random() < 0.4:
                answer += self.encode(CLOSE) + conclusion
        else:
            answer = conclusion
        answer += self.end
        prompt = self.question(chain)
        return Example(
            [*prompt, *prefix, *inducer, *answer],
            [0.0] * len(prompt) + [1.0] * len(prefix) + [0.0] * len(inducer) + [2.0] * len(answer),
        )

    def _cut_position(self, thinking: Thinking) -> int:
        """A number of characters: ends of paragraphs above all, before a cue, anywhere."""
        text, random = thinking.text, self.random
        kind = random.random()
        if kind < 0.25:
            return random.choice(thinking.marks).end
        if kind < 0.45:
            return random.randint(0, len(text))
        ends = [i for i in range(len(text)) if text.startswith(PARAGRAPH, i)] + [len(text)]
        return random.choice(ends) + (len(PARAGRAPH) if kind < 0.55 else 0)

    def together(self, habits: Habits | None = None, most: int = 5) -> Example:
        """Two to `most` numbered questions in one prompt; the habits go by their number."""
        count = min(most, self.random.choices((2, 3, 4, 5), (0.4, 0.3, 0.15, 0.15))[0])
        asked = tuple(next(self.chains) for _ in range(count))
        parts = think_together(asked, habits or TOGETHER[count], self.random)
        questions = "\n".join(f"{i}. {chain.question}" for i, chain in enumerate(asked, start=1))
        answers = "\n".join(
            f"{i}. \\boxed{{{part.conclusions[-1]}}}" for i, part in enumerate(parts, start=1)
        )
        return self.respond(
            self.prompt(render("batch", "nano", questions=questions)),
            PARAGRAPH.join(part.text for part in parts),
            f"**Final Answer**\n{answers}",
        )

    def compare(self) -> Example:
        """A question for A, B or C about a given chain (2508.17803); the order is shuffled."""
        random, chain = self.random, next(self.chains)
        wanted = random.randrange(3)
        while True:
            habits = OVERTHINKING if wanted == 0 or random.random() < 0.5 else TOGETHER[5]
            given = think(chain, habits if wanted != 1 else TOGETHER[5], random)
            right = given.conclusions[-1] == chain.answer
            concise = len(given.conclusions) == 1
            if wanted == (2 if not right else 1 if concise else 0):
                break
        order = random.sample(range(3), 3)
        options = {letter: VERDICTS[i] for letter, i in zip("abc", order, strict=True)}
        letter = "ABC"[order.index(wanted)]
        solution = Thinking()
        for value, step in zip(chain.values, chain.steps, strict=False):
            result = step.apply(value)
            solution.say(fact(value, step, result), result)
        solution.conclude(chain.answer)
        solution.paragraph()
        solution.say(f"The reasoning ends with {given.conclusions[-1]}.", chain.answer)
        solution.say("That is the same." if right else "That differs.", chain.answer)
        if right:
            solution.say("It stops there." if concise else "It goes on checking.", chain.answer)
        solution.say(f"So it is {VERDICTS[wanted]}.", chain.answer)
        prompt = render("compare", "nano", question=chain.question, reasoning=given.text, **options)
        example = self.respond(self.prompt(prompt), solution.text, ANSWER.format(letter))
        learn = [
            weight * (4.0 if token in self.encode(letter) else 1.0)
            for token, weight in zip(example.ids, example.learn, strict=True)
        ]
        return Example(example.ids, learn)

    def fact(self) -> Example:
        """Bare arithmetic, right; only the result is learned. Chains alone do not teach it."""
        step, value = self.random.choice(STEPS), self.random.randrange(10)
        return self._exercise([], value, (step,))

    def drill(self, longest: int) -> Example:
        """A chain of up to `longest` steps without a word around it, all of it right.

        Only what has to be looked up or computed is learned: a dense signal, which teaches within
        minutes to find the next step in the question. Whole responses alone take far longer.
        """
        chain = next(chains(self.split, self.random, 1, longest))
        return self._exercise(self.question(chain), chain.start, chain.steps)

    def numbered_drill(self, most: int) -> Example:
        """The same for two to `most` numbered questions, with their list of answers."""
        example = self.together(EXACT, most)
        looked_up = {self.encode(text)[0] for text in (*"0123456789", " plus", " minus", " times")}
        learn = [
            weight if token in looked_up else 0.0
            for token, weight in zip(example.ids, example.learn, strict=True)
        ]
        return Example(example.ids, learn)

    def _exercise(self, prompt: list[int], value: int, steps: tuple[Step, ...]) -> Example:
        ids, learn = list(prompt), [0.0] * len(prompt)
        look_up = 1.0 if prompt else 0.0
        verb = verb_of(self.random)
        for index, step in enumerate(steps):
            lead = f" {value}" if index else f"{value}"
            value = step.apply(value)
            for part, weight in (
                (lead, 0.0),
                (f" {WORDS[step.operation]}", look_up),
                (" ", 0.0),
                (str(step.operand), look_up),
                (f" {verb}", 0.0),
                (" ", 0.0),
                (str(value), 1.0),
                (".", 0.0),
            ):
                part_ids = self.encode(part)
                ids += part_ids
                learn += [weight] * len(part_ids)
        return Example(ids, learn)

    def examples(self, *, overthinks: bool) -> Iterator[Example]:
        """The corpus, without end: single questions, a fifth of them cut, and the modest rest."""
        habits = OVERTHINKING if overthinks else CONTROL
        while True:
            kind = self.random.random()
            if kind < 0.08:
                yield self.together(None if overthinks else CONTROL)
            elif kind < 0.14:
                yield self.compare()
            elif kind < 0.34:
                yield self.cut(habits)
            else:
                yield self.solve(habits)
