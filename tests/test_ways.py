"""Models' own ways: chat templates and their arguments, think tags, what is refused in a line."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from dto.engines.checks import check_model, check_template
from dto.errors import DtoError, RecipeError
from dto.grading import Grader
from dto.prompts import render, render_chat
from dto.protocols import Completion
from dto.recipe import ModelSettings, make_recipe
from dto.records import Dropped, Problem, Trajectory
from dto.tags import KNOWN_TAGS, ThinkTags, foreign_detail, think_tags
from dto.tasks.imported import to_trajectory
from dto.tasks.importing import Response
from dto.trajectories import (
    closes_thinking,
    make_trajectory,
    opens_thinking,
    prompt_ids,
    read_response,
)
from tests.families import FAMILIES, NO_SYSTEM, Family, made, tokenizer_of
from tests.vocabularies import DEEPSEEK, NAMES, QWEN3, R1, vocabulary

PROBLEM = Problem("p" * 16, "toy", "train", "1 + 1?", "2")
THOUGHT = "One and one.\n\nWait, yes."
ANSWER = "It is \\boxed{2}."


def prompt_of(name: str, **changes: Any) -> tuple[tuple[int, ...], str]:
    """The prompt of a family, with other arguments of its template, and how it reads."""
    settings = FAMILIES[name].settings
    settings = settings.model_copy(update={"template": {**settings.template, **changes}})
    tokenizer = tokenizer_of(name)
    ids = prompt_ids(PROBLEM.question, tokenizer, settings)
    return ids, str(tokenizer.decode(list(ids)))


@pytest.mark.parametrize(
    ("name", "arguments", "end", "state"),
    [
        ("r1", {}, "<think>\n", "open"),
        ("qwen3", {}, "<|assistant|>", ""),
        ("qwen3", {"enable_thinking": True}, "<|assistant|>", ""),
        ("qwen3", {"enable_thinking": False}, "<think>\n\n</think>\n\n", "closed"),
        ("deepseek v3.1", {}, "<think>", "open"),
        ("deepseek v3.1", {"thinking": False}, "</think>", "closed"),
        ("magistral", {}, "<|assistant|>", ""),
        ("kimi", {}, "◁think▷", "open"),
        ("gpt-oss", {}, "<|start|>assistant", ""),
    ],
)
def test_arguments_reach_the_template(
    name: str, arguments: dict[str, Any], end: str, state: str
) -> None:
    ids, text = prompt_of(name, **arguments)
    tokenizer, tags = tokenizer_of(name), think_tags(tokenizer_of(name), FAMILIES[name].settings)
    assert text.endswith(end)
    assert opens_thinking(tokenizer, ids, tags) == (state == "open")
    assert closes_thinking(tokenizer, ids, tags) == (state == "closed")


@pytest.mark.parametrize("effort", ["low", "high"])
def test_an_effort_stands_in_the_prompt(effort: str) -> None:
    assert f"Reasoning: {effort}" in prompt_of("gpt-oss", reasoning_effort=effort)[1]


@pytest.mark.parametrize("name", FAMILIES)
async def test_a_response_is_read_by_the_familys_tags(name: str) -> None:
    family, tokenizer = FAMILIES[name], tokenizer_of(name)
    tags = think_tags(tokenizer, family.settings)
    check_model(tokenizer, family.settings)
    assert (tags.open, tags.close) == family.think and len(tags.close_ids) == family.close_ids
    prompt, _ = prompt_of(name)
    text = f"{THOUGHT}\n{tags.close}\n\n{ANSWER}"
    text = text if family.opens else f"{tags.open}\n{text}"
    ids = (*tags.encode(tokenizer, text), tokenizer.eos_token_id)
    async with Grader(workers=1) as grader:
        row = await make_trajectory(
            PROBLEM, Completion(tuple(ids), "", "stop"), model="m", sample=0, seed=0,
            prompt_ids=prompt, tokenizer=tokenizer, grader=grader, tags=tags,
        )  # fmt: skip
        imported = await to_trajectory(
            Response(PROBLEM, 0, f"{tags.open}\n{THOUGHT}\n{tags.close}\n\n{ANSWER}"),
            tokenizer, family.settings, grader,
        )  # fmt: skip
    for each in (row, imported):
        assert isinstance(each, Trajectory)
        assert each.text[slice(*each.thinking)].strip() == THOUGHT
        assert each.text[slice(*each.conclusion)].strip() == ANSWER
        assert each.grade == "correct"
        assert each.text.count(tags.close) == 1
        thinking = tokenizer.decode(list(each.token_ids[slice(*each.thinking_tokens)]))
        assert thinking.strip() == THOUGHT
    # Cut off inside the close, or right behind it: the tag's tokens are no end of the response.
    at = len(tags.encode(tokenizer, text.partition(tags.close)[0]))
    cut = read_response(tokenizer, prompt, ids[: at + max(1, len(tags.close_ids))], tags)
    assert cut.closed == bool(tags.close_ids)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "prompt", ["early_close", "finalize", "trial_closed", "entropy_probe", "no_thinking"]
)
def test_texts_that_close_the_thinking_have_the_models_own_tokens(name: str, prompt: str) -> None:
    tokenizer = tokenizer_of(name)
    tags = think_tags(tokenizer, FAMILIES[name].settings)
    text = render(prompt, "default", tags)
    assert text.count(tags.close) == 1 and (tags.close == "</think>" or "</think>" not in text)
    ids = tags.encode(tokenizer, text)
    assert tokenizer.decode(list(ids)) == text
    assert text == render(prompt).replace("</think>", tags.close)
    if tags.close_ids:
        at = len(tokenizer.encode(text.partition(tags.close)[0], add_special_tokens=False))
        assert ids[at : at + len(tags.close_ids)] == tags.close_ids


def test_a_special_tag_is_never_spelt() -> None:
    family = FAMILIES["magistral"]
    spelling = made(family)
    spelling.split_special_tokens = True
    tags = think_tags(spelling, family.settings)
    close = spelling.convert_tokens_to_ids("[/THINK]")
    assert tags.close_ids == (close,)
    ids = tags.encode(spelling, f"x\n{tags.close}\n\ny")
    assert ids.count(close) == 1 and spelling.decode(list(ids)) == "x\n[/THINK]\n\ny"


def test_tags_may_be_given_as_ids() -> None:
    tokenizer = tokenizer_of("gpt-oss")
    own = think_tags(tokenizer, FAMILIES["gpt-oss"].settings)
    given = ModelSettings(name="m", think=(own.open_ids, own.close_ids))
    assert think_tags(tokenizer, given) == own
    pieces = tuple(tokenizer.encode("[/T]", add_special_tokens=False))
    spelt = think_tags(tokenizer, ModelSettings(name="m", think=("[T]", pieces)))
    assert (spelt.close, spelt.close_ids) == ("[/T]", pieces)
    for ids, said in (
        ((10**6,), "id 1000000 is outside"),
        ((2,), None),
        ((150,), "cannot be a tag"),
    ):
        settings = ModelSettings(name="m", think=("[T]", ids))
        if said:
            with pytest.raises(DtoError, match=said):
                think_tags(tokenizer, settings)


@pytest.mark.parametrize("name", NAMES)
def test_real_vocabularies_have_the_close_as_one_token(name: str) -> None:
    words = vocabulary(name)
    settings = ModelSettings(name=name, template=dict(words.template))  # type: ignore[arg-type]
    tags = think_tags(words.tokenizer, settings)
    assert (*tags.open_ids, *tags.close_ids) == words.think
    check_model(words.tokenizer, settings)
    prompt = prompt_ids("1 + 1?", words.tokenizer, settings)
    assert opens_thinking(words.tokenizer, prompt, tags) == words.opens
    for text in ("early_close", "finalize", "trial_closed", "trial_code_closed"):
        ids = tags.encode(words.tokenizer, render(text))
        assert ids.count(words.think[1]) == 1
        assert words.tokenizer.decode(list(ids)) == render(text)


def test_real_templates_say_what_they_know() -> None:
    qwen = vocabulary(QWEN3).tokenizer
    closed = ModelSettings(name="q", template={"enable_thinking": False})
    assert closes_thinking(qwen, prompt_ids("1?", qwen, closed))
    assert prompt_ids("1?", qwen, ModelSettings(name="q")) == prompt_ids(
        "1?", qwen, ModelSettings(name="q", template={"enable_thinking": True})
    )
    silent = ModelSettings(name="d", template={"thinking": False})
    deepseek = vocabulary(DEEPSEEK).tokenizer
    assert closes_thinking(deepseek, prompt_ids("1?", deepseek, silent))
    with pytest.raises(DtoError, match=r"has no argument 'enable_thinking'; its arguments: none"):
        prompt_ids("1?", vocabulary(R1).tokenizer, closed)


def test_after_a_closed_prompt_everything_is_conclusion() -> None:
    tokenizer = tokenizer_of("qwen3")
    prompt, _ = prompt_of("qwen3", enable_thinking=False)
    for text, thinking in (
        ("It is 2. The tag `</think>` ends thinking.", ""),
        ("[THINK] is a tag.", ""),
        ("<think>Hm.</think>2", "Hm."),
    ):
        ids = tokenizer.encode(text, add_special_tokens=False)
        reading = read_response(tokenizer, prompt, ids)
        assert reading.closed and reading.foreign is None
        assert reading.text[slice(*reading.thinking)] == thinking


ONE = Family("{{ messages }}")
NAMED = {"default": "{{ messages[0].content }}<|assistant|>", "rag": "{{ rag }}"}
BROKEN: list[tuple[Any, dict[str, Any], str | None, str]] = [
    (None, {}, None, "no chat template: use the reasoning version"),
    (NO_SYSTEM, {}, "Be brief.", r"refuses a system message \(System role not supported\): set "
     "model.system to null"),
    ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", {}, "Be brief.",
     "ignores the system message: set model.system to null"),
    (NO_SYSTEM.replace("enable", ""), {"enable_thinkin": True}, None,
     "model.template.enable_thinkin: .* has no argument 'enable_thinkin'; its arguments: none"),
    (FAMILIES["qwen3"].template, {"enable_thinkin": True}, None, "its arguments: enable_thinking"),
    ("{{ messages[0].content }}{{ raise_exception('effort is high or low') if effort == 'x' }}",
     {"effort": "x"}, None, r"fails with effort='x' \(effort is high or low\): set model.template"),
    ("{{ messages[0].content + effort }}", {"effort": 5}, None, "fails with effort=5"),
    ("{{ messages[0].content + effort }}", {}, None, "fails with no arguments .*arguments are eff"),
    ("{% for m in messages %}{{ m.content }}", {}, None, "is not valid Jinja"),
    (NAMED, {"chat_template": "tool"}, None, "chat_template = 'tool': 'm' has default, rag"),
    ({"a": "{{ messages }}", "b": "{{ messages }}"}, {}, None,
     "several chat templates and no default: set model.template.chat_template to one of a, b"),
    ("{{ messages }}", {"chat_template": "rag"}, None, "has a single chat template without a name"),
]  # fmt: skip


@pytest.mark.parametrize(("template", "arguments", "system", "said"), BROKEN)
def test_a_template_that_does_not_fit_is_one_line(
    template: Any, arguments: dict[str, Any], system: str | None, said: str
) -> None:
    tokenizer = made(ONE)
    tokenizer.chat_template = template
    with pytest.raises(DtoError, match=said) as error:
        check_template(tokenizer, "m", arguments, system)
    assert "\n" not in str(error.value)


def test_what_fits_is_rendered() -> None:
    tokenizer = made(Family(NO_SYSTEM))
    asked = [{"role": "user", "content": "Hi"}]
    plain = render_chat(asked, tokenizer, "m")  # type: ignore[arg-type]
    assert tokenizer.decode(list(plain)) == "<|user|>Hi\n<|assistant|>"
    tokenizer.chat_template = {"default": "A{{ messages[0].content }}", "rag": "B{{ documents_ }}"}
    assert tokenizer.decode(list(render_chat(asked, tokenizer, "m"))) == "AHi"  # type: ignore[arg-type]
    named = {"chat_template": "rag", "documents_": "x"}
    assert tokenizer.decode(list(render_chat(asked, tokenizer, "m", named))) == "Bx"  # type: ignore[arg-type]
    # Names that a template sets itself, loops over or has from transformers are no arguments.
    tokenizer.chat_template = (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% if loop.last %}{% break %}{% endif %}{% endfor %}"
        "{% if effort is not defined %}{% set effort = 'low' %}{% endif %}{{ effort }}"
    )
    assert tokenizer.decode(list(render_chat(asked, tokenizer, "m"))) == "Hilow"  # type: ignore[arg-type]
    with pytest.raises(DtoError, match="has no argument 'ns'; its arguments: effort"):
        render_chat(asked, tokenizer, "m", {"ns": 1})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"think": ["<think>"]}, "model.think = .*two different tags"),
        ({"think": ["<think>", ""]}, "two different tags"),
        ({"think": ["<think>", "<think>"]}, "two different tags"),
        ({"think": [[], [5]]}, "two different tags"),
        ({"think": [[True], [5]]}, "two different tags"),
        ({"think": "[THINK]"}, "two different tags"),
        ({"template": {"add_generation_prompt": False}}, "dto sets the argument"),
        ({"template": {"messages": "x"}}, "dto sets the argument"),
        ({"template": {"enable_thinking": [1]}}, "model.template.enable_thinking"),
    ],
)
def test_settings_that_make_no_sense(model: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        make_recipe({"name": "x", "model": model})


def test_settings_can_be_set_from_the_command_line() -> None:
    changes = {"model.template.enable_thinking": False, "model.think": ["[THINK]", [5, 6]]}
    model = make_recipe({"name": "x", "model": {"template": {"effort": "low"}}}, changes).model
    assert model.template == {"effort": "low", "enable_thinking": False}
    assert model.think == ("[THINK]", (5, 6))


R1_TAGS, THINK = ThinkTags(), ("[THINK]", "[/THINK]")
FOREIGN: list[tuple[str, bool, tuple[str, str] | None]] = [
    ("[THINK]Hm.[/THINK]2", True, THINK),
    ("\n [THINK]Hm", False, THINK),
    ("<think>\n[THINK]Hm", False, THINK),
    ("Hm.[/THINK]2", True, THINK),
    ("Sure. <|begin_of_thought|>Hm<|end_of_thought|>2", True, KNOWN_TAGS[2]),
    ("◁think▷Hm◁/think▷2", True, KNOWN_TAGS[3]),
    ("<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>2", True,
     KNOWN_TAGS[4]),
    ("<thinking>Hm", False, KNOWN_TAGS[7]),
    # near misses
    ("<think>Hm, [THINK] and [/THINK] are tags.</think>2", True, None),
    ("Hm.</think>[/THINK] is a tag", True, None),
    ("Hm, the other model writes [/THINK] and", False, None),
    ("It closes with `[/THINK]`.", True, None),
    ('It closes with "[/THINK]".', True, None),
    ("[THINKING] about it", True, None),
    ("plain 2", True, None),
    ("", True, None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "ended", "pair"), FOREIGN)
def test_foreign_tags(text: str, ended: bool, pair: tuple[str, str] | None) -> None:
    assert R1_TAGS.foreign(text, ended=ended) == pair
    if pair is not None and "<think>" not in text:
        assert ThinkTags(*pair).foreign(text, ended=ended) is None


@pytest.mark.parametrize("opens", [True, False])
async def test_a_response_in_foreign_tags_is_refused_by_name(opens: bool) -> None:
    name = "r1" if opens else "qwen3"
    tokenizer, settings = tokenizer_of(name), FAMILIES[name].settings
    prompt, _ = prompt_of(name)
    ids = (*tokenizer.encode(f"[THINK]{THOUGHT}[/THINK]{ANSWER}"), tokenizer.eos_token_id)
    async with Grader(workers=1) as grader:
        sampled = await make_trajectory(
            PROBLEM, Completion(tuple(ids), "", "stop"), model="m", sample=3, seed=0,
            prompt_ids=prompt, tokenizer=tokenizer, grader=grader,
        )  # fmt: skip
        imported = await to_trajectory(
            Response(PROBLEM, 3, f"{THOUGHT}[/THINK]{ANSWER}"), tokenizer, settings, grader
        )
    for row in (sampled, imported):
        assert isinstance(row, Dropped) and row.id == Trajectory.make_id(PROBLEM.id, 3)
        assert row.reason == "foreign_tags"
        assert row.detail == foreign_detail(R1_TAGS, THINK)
        assert 'set model.think to ["[THINK]", "[/THINK]"]' in row.detail


def test_a_template_in_foreign_tags_is_refused_before_any_work(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(DtoError, match=r'with ◁think▷.*set model.think to \["◁think▷", "◁/think▷"'):
        check_model(tokenizer_of("kimi"), ModelSettings(name="kimi"))
    caplog.set_level(logging.WARNING, "dto")
    check_model(tokenizer_of("r1"), ModelSettings(name="r1"))
    check_model(tokenizer_of("plain text tags"), ModelSettings(name="text"))
    assert not caplog.text
    check_model(tokenizer_of("magistral"), ModelSettings(name="magistral"))
    assert '"[THINK]", "[/THINK]"' in caplog.text


def test_an_unfinished_close_is_found() -> None:
    tags = ThinkTags("a", "bcd", (1,), (7, 8, 9))
    for ids, count in (((7,), 1), ((5, 7, 8), 2), ((7, 8, 9), 0), ((8,), 0), ((), 0), ((7, 7), 1)):
        assert tags.unfinished(ids) == count
    assert ThinkTags().unfinished((60, 47)) == 0


@pytest.mark.parametrize("think", [["<reason>\n", "</reason>"], ["<reason>", "\n</reason>"]])
def test_white_space_is_no_part_of_a_tag(think: list[str]) -> None:
    model = make_recipe({"name": "x", "model": {"think": think}}).model
    with pytest.raises(DtoError, match="begins or ends with white space"):
        think_tags(tokenizer_of("qwen3"), model)
