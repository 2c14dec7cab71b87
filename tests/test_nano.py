"""The embedded model: its corpus, its tokenizer, its weights and its training."""

from __future__ import annotations

import hashlib
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.nano.examples import INDUCERS, ExampleWriter, sample_answer
from benchmarks.nano.measure import Measurement
from benchmarks.nano.thinking import CONTROL, OVERTHINKING, PARAGRAPH, Mark, think
from benchmarks.nano.train import build_tokenizer, train_nano
from dto.nano import Chain, Step, chain_problems, chains
from dto.prompts import render
from dto.recipe import resolve
from dto.records import Split

SPLITS: tuple[Split, ...] = ("train", "dev", "test")
FROZEN = {
    "nano": "ba446a8d282cd52d92f802374a56edf64185f2cefce2772f1d0a6391184fc4e8",
    "nano-control": "4faca52235783d54fc9283289677bcca8993badd7c2ed6251e8796ca24fba439",
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(resolve("nano"))


@pytest.fixture(scope="module")
def overthinker() -> Measurement:
    return Measurement(resolve("nano"))


@pytest.fixture(scope="module")
def control() -> Measurement:
    return Measurement(resolve("nano-control"))


@pytest.mark.parametrize("name", FROZEN)
def test_weights_are_frozen(name: str) -> None:
    """No rate is tuned after a look at a result of DTO or DEER: the weights do not change."""
    weights = Path(resolve(name)) / "model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == FROZEN[name]
    assert weights.stat().st_size <= 3 * 2**20


def test_other_names_resolve_to_themselves() -> None:
    assert resolve("org/model") == "org/model"


def test_chain_values_by_hand() -> None:
    steps = (Step("multiply", 8), Step("add", 5), Step("subtract", 9))
    chain = Chain(7, steps)
    assert chain.values == (7, 6, 1, 2)
    assert chain.question == (
        "Start with 7. Multiply by 8. Add 5. Subtract 9. What is the last digit?"
    )


@pytest.mark.slow
def test_splits_are_disjoint() -> None:
    questions = {s: {p.question for p in chain_problems(s, 1500, seed=1)} for s in SPLITS}
    again = {s: {p.question for p in chain_problems(s, 1500, seed=2)} for s in SPLITS}
    for split in SPLITS:
        assert len(questions[split]) == 1500
        for other in SPLITS:
            if other != split:
                assert not questions[split] & (questions[other] | again[other])


def test_problems_are_a_prefix_of_longer_lists_and_carry_their_answer() -> None:
    problems = chain_problems("test", 50, seed=3)
    assert chain_problems("test", 20, seed=3) == problems[:20]
    assert problems != chain_problems("test", 50, seed=4)
    assert len({p.id for p in problems}) == 50
    assert all(p.split == "test" and p.answer in set("0123456789") for p in problems)


@pytest.mark.slow
def test_training_corpus_holds_train_questions_only(tokenizer: PreTrainedTokenizerBase) -> None:
    writer = ExampleWriter(tokenizer, Random(0), "train")
    held_out = {p.question for s in ("dev", "test") for p in chain_problems(s, 3000, seed=0)}
    text = "".join(tokenizer.decode(e.ids) for e, _ in zip(
        writer.examples(overthinks=True), range(300), strict=False))  # fmt: skip
    assert not [question for question in held_out if question in text]


def test_overthinker_states_conclusions_in_paragraphs_of_their_own() -> None:
    random = Random(0)
    source = chains("train", random)
    rechecked = 0
    for _ in range(200):
        chain = next(source)
        thinking = think(chain, OVERTHINKING, random)
        stated = [p for p in thinking.text.split(PARAGRAPH) if "last digit is" in p]
        assert [p[-len("is 0.") :] for p in stated] == [f"is {c}." for c in thinking.conclusions]
        assert [m.end for m in thinking.marks] == sorted(m.end for m in thinking.marks)
        assert thinking.marks[-1].end == len(thinking.text)
        rechecked += len(stated) > 1
    assert rechecked > 180


def test_corpus_is_worse_at_its_end_than_after_its_first_pass() -> None:
    random = Random(1)
    source = chains("train", random)
    first = final = 0
    for _ in range(4000):
        chain = next(source)
        conclusions = think(chain, OVERTHINKING, random).conclusions
        first += conclusions[0] == chain.answer
        final += conclusions[-1] == chain.answer
    assert 0.7 < first / 4000 < 0.9
    assert (first - final) / 4000 > 0.04


def test_control_concludes_once() -> None:
    random = Random(2)
    for chain, _ in zip(chains("train", random), range(50), strict=False):
        assert len(think(chain, CONTROL, random).conclusions) == 1


def test_answer_after_a_cut() -> None:
    random = Random(0)
    add = Step("add", 3)
    assert {sample_answer(Mark(9, 1, (add,), stated=6), random) for _ in range(50)} == {6}
    counts = [0] * 10
    for _ in range(2000):
        counts[sample_answer(Mark(9, 1, (add, add), stated=None), random)] += 1
    assert max(counts) / 2000 < 0.6  # unsure while the chain is not done
    assert min(counts) > 0


def test_cuts_are_built_from_ids(tokenizer: PreTrainedTokenizerBase) -> None:
    """The ids of an inducer stand whole in a cut example, and are not learned."""
    writer = ExampleWriter(tokenizer, Random(0), "train")
    inducers = [tokenizer.encode(render(*key), add_special_tokens=False) for key in INDUCERS]
    for _ in range(200):
        example = writer.cut(OVERTHINKING)
        weights, ids = example.learn, example.ids
        assert len(weights) == len(ids)
        assert ids[-1] == tokenizer.eos_token_id and weights[-1] > 0
        answer = max(i for i, weight in enumerate(weights) if weight == 0) + 1
        assert any(ids[answer - len(ids_) : answer] == ids_ for ids_ in inducers)


def test_numbered_questions_share_a_thinking_block(tokenizer: PreTrainedTokenizerBase) -> None:
    writer = ExampleWriter(tokenizer, Random(0), "train")
    for _ in range(20):
        text = tokenizer.decode(writer.together().ids)
        count = text.split("<think>")[0].count("What is the last digit?")
        thinking, conclusion = text.split("<think>")[1].split("</think>")
        assert 2 <= count <= 5
        assert conclusion.count("\\boxed{") == count
        assert all(f"Question {i}." in thinking for i in range(1, count + 1))


@given(st.text())
@settings(max_examples=200)
def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    normal = tokenizer.backend_tokenizer.normalizer.normalize_str(text)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=False) == normal


@pytest.mark.slow
def test_tokenizer_is_rebuilt_with_the_same_ids(tmp_path: Path) -> None:
    built = build_tokenizer(seed=0)
    built.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == built.get_vocab()
    texts = ["Start with 7.\n\nWait, \\boxed{6}\n</think>\n\n", "等等 😀 naïve", "<think>\n10 % 3"]
    assert loaded(texts).input_ids == built(texts).input_ids


def test_tokens_that_exits_rely_on(tokenizer: PreTrainedTokenizerBase) -> None:
    def pieces(text: str) -> list[str]:
        return [tokenizer.decode([i]) for i in tokenizer.encode(text, add_special_tokens=False)]

    assert pieces(" is 10.\n\nWait")[-5:] == ["1", "0", ".", "\n\n", "Wait"]
    assert pieces("\\boxed{6}\n")[-4:] == ["{", "6", "}", "\n"]
    assert tokenizer.decode(tokenizer.encode("</think>"), skip_special_tokens=True) == "</think>"
    shown = tokenizer.apply_chat_template(
        [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert shown.endswith("<|im_start|>assistant\n<think>\n")


@pytest.mark.slow
def test_overthinker_answers_and_overthinks(overthinker: Measurement) -> None:
    responses = overthinker.sample(chain_problems("dev", 64, seed=11))
    right = [r.answer == r.problem.answer for r in responses]
    assert sum(right) >= 32
    assert sum(r.closed for r in responses) >= 62
    assert sum(len(r.conclusions) for r in responses) / 64 > 2


@pytest.mark.slow
def test_control_answers_and_stops(control: Measurement) -> None:
    responses = control.sample(chain_problems("dev", 64, seed=12))
    assert sum(r.answer == r.problem.answer for r in responses) >= 38
    assert sum(len(r.conclusions) for r in responses) / 64 < 1.1


@pytest.mark.slow
@pytest.mark.parametrize("inducer", ["exit", "trial_inside", "trial_closed"])
def test_sure_after_the_first_pass_and_not_before(overthinker: Measurement, inducer: str) -> None:
    """Asked right after a stated conclusion it repeats it; asked at the start it is unsure."""
    asked = overthinker.sample(chain_problems("dev", 24, seed=13), seed=1)
    read = [r for r in asked if r.conclusions]
    done = []
    for r in read:
        end = r.text.index("last digit is") + len("last digit is 0.")
        done.append(r.prompt + overthinker.tokenizer.encode(r.text[:end]))
    late = overthinker.confidences(done, inducer)
    early = overthinker.confidences([r.prompt for r in read], inducer)
    repeated = [digit == r.conclusions[0] for (digit, _), r in zip(late, read, strict=True)]
    assert sum(repeated) >= 0.9 * len(read)
    assert sum(p for _, p in late) / len(late) > 0.8
    assert sum(p for _, p in early) / len(early) < 0.6


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_training_is_deterministic(tmp_path: Path) -> None:
    losses = [train_nano(tmp_path / str(i), overthinks=True, seed=5, steps=3) for i in range(2)]
    assert losses[0] == losses[1]
    weights = [(tmp_path / str(i) / "model.safetensors").read_bytes() for i in range(2)]
    assert weights[0] == weights[1]
    reloaded = Measurement(tmp_path / "0")
    assert sum(p.numel() for p in reloaded.model.parameters()) < 1_000_000
