r"""What exits keep and what they put behind it, on the vocabularies that people use.

Real vocabularies have tokens such as `).\n\n` and `{\`, which the embedded model's has not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache, partial
from itertools import islice, product
from pathlib import Path as FilePath
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks.nano.thinking import OVERTHINKING, think
from dto.exits.monitor import Monitor, cue_at_end
from dto.exits.path import ResponsePath
from dto.nano import chains
from dto.prompts import render
from dto.protocols import Sampling
from dto.rollouts import answer_inducer, merges_brace
from dto.settings import MonitorSettings
from dto.text import join
from tests.exits.conftest import Writer
from tests.exits.speaking import ALL, NANO, context, decode, encode, tokenizer
from tests.vocabularies import NAMES, R1, vocabulary

ROOT = FilePath(__file__).parents[2]
TRACES = ROOT.parent / "shared" / "data"
TAIL = 16
# How paragraphs end, and what is behind them.
ENDS = (
    *(".", "!", "?", ":", ").", "\\).", "\\)", "\\]", "]", "}", "}.", "}}", "$", "$$", "$.", '."'),
    *('?"', ".”", "。", "！”", "」", "）。", "…", "...", "**", "`", "```", "|", "8", "word", "😀"),
    *("好", "é", "\\", " \\", "{", "-", "—", "±", "x_1^2", "\\frac{1}{2}"),
)
BORDERS = ("\n\n", "\n", "\n\n\n", " ", "", " \n\n", "\n \n", "\r\n\r\n")
TEXTS = (
    "So we need \\( x \\) with 3x + 1 = 25, and that is \\( x = 8 \\).\n\nWait, let me check: "
    "\\[ x = 5 + 3 = 8 \\]\n\nAlternatively, \\boxed{\\frac{16}{2}}\n\nHmm, is $x$ = $8$?\n\n",
    'He says "is it 12?"\n\nWait, 12 — or 13? (I think 12.)\n\nBut wait, f({-1}) = {\\pi}.\n\n',
    "好的，首先，求 $x$ 的值。\n\n等等，“这对吗？”\n\n或者，x = \\boxed{8}。\n\n另外，😀！\n\n",
    "```python\nx = {'a': [1]}\n```\n\nWait. That is **wrong**:\n\n- one\n- two\n\nHmm. `x`.\n\n",
)
INSERTED = (
    "early_close", "finalize", "exit", "trial_inside", "trial_closed", "trial_choice",
    "trial_pro_1", "trial_pro_2", "trial_pro_3", "trial_pro_4", "trial_code_inside",
    "trial_code_closed", "entropy_probe",
)  # fmt: skip


def joined(name: str, kept: Sequence[int], text: str) -> tuple[list[int], list[int]]:
    """The kept ids that stay, and what comes after them."""
    result = join(tokenizer(name), kept, text, partial(encode, name))
    return list(kept[: result.kept]), list(result.inserted)


def check_join(name: str, kept: Sequence[int], text: str) -> None:
    """The join reads as one text, loses nothing and is what the tokenizer makes of that text."""
    stay, inserted = joined(name, kept, text)
    before, whole = decode(name, kept), decode(name, [*stay, *inserted])
    assert whole.startswith(before)
    assert whole.removeprefix(before).lstrip("\n.") == text.lstrip("\n.")
    start = max(0, len(stay) - TAIL)
    while decode(name, stay[start:]).startswith("\ufffd"):
        start -= 1
    tail = [*stay[start:], *inserted]
    canonical = encode(name, decode(name, tail))
    assert tail == canonical, [decode(name, [token]) for token in tail]
    changed = decode(name, kept[len(stay) :])
    assert not any(char.isalnum() for char in changed), changed


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("prompt", INSERTED)
def test_joins_after_every_kind_of_end(name: str, prompt: str) -> None:
    for end in ENDS:
        for border in BORDERS:
            check_join(name, encode(name, f"Then it is so{end}{border}"), render(prompt))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
@given(
    text=st.text(
        alphabet=st.one_of(
            st.sampled_from(" \n.,:;!?()[]{}$\\\"'`*-_=|^&%#@~“”。，！？；：（）「」…—"),
            st.sampled_from("abcXYZ0123456789好的等答数学éñßжλ😀👍🏽"),
        ),
        min_size=1,
        max_size=40,
    ),
    prompt=st.sampled_from(INSERTED),
)
@settings(max_examples=60)
def test_any_text_joins(name: str, text: str, prompt: str) -> None:
    kept = encode(name, text)
    assume(decode(name, kept) == text and encode(name, decode(name, kept[-TAIL:])) == kept[-TAIL:])
    check_join(name, kept, render(prompt))


@pytest.mark.slow
@given(st.data())
@settings(max_examples=60)
@pytest.mark.parametrize("name", NAMES)
def test_ids_that_no_tokenizer_writes_stay(name: str, data: st.DataObject) -> None:
    """A model samples what it likes: at the border alone are its ids another's."""
    pieces = data.draw(
        st.lists(st.sampled_from(("w", "or", "d", " is", " 8", ".", ")", "好")), min_size=4)
    )
    kept = [token for piece in (*pieces, " eight", ".") for token in encode(name, piece)]
    stay, inserted = joined(name, kept, "\n</think>\n\n")
    assert stay == kept[: len(stay)] and len(stay) >= len(kept) - 1
    assert decode(name, [*stay, *inserted]) == decode(name, kept) + "\n</think>\n\n"


def test_borders_by_hand() -> None:
    def shown(name: str, kept: str, text: str) -> list[str]:
        ids = encode(name, kept)
        stay, inserted = joined(name, ids, text)
        return [decode(name, [token]) for token in [*stay, *inserted][len(ids) - 1 :]]

    finalize = "\n\nMy"
    assert shown(R1, "is 8.\n\n", finalize) == [".\n\n", "My"]
    assert shown(R1, "is 8.\n", finalize) == [".\n\n", "My"]
    assert shown(R1, "is 8.", finalize) == [".\n\n", "My"]
    assert shown(R1, "\\( 8 \\).\n\n", "\n**Final") == [").\n\n", "**", "Final"]
    assert shown(R1, "is 8.", "\n</think>\n\n") == [".\n", "</think>", "\n\n"]
    assert shown(R1, "is 8", "\n</think>\n\n") == ["8", "\n", "</think>", "\n\n"]
    assert shown(NANO, "is 8.", "\n</think>\n\n") == [".", "\n", "</think>", "\n\n"]


def test_a_prompt_is_left_alone() -> None:
    prompt = encode(R1, "<｜Assistant｜><think>\n")
    result = join(tokenizer(R1), prompt, "\n\nMy", partial(encode, R1), fixed=len(prompt))
    assert result.kept == len(prompt)
    assert list(result.inserted) == encode(R1, "\n\nMy")


@pytest.mark.parametrize("name", NAMES)
def test_the_close_is_the_models_own_token(name: str) -> None:
    for prompt in ("early_close", "finalize", "trial_closed", "entropy_probe"):
        _, inserted = joined(name, encode(name, "It is 8."), render(prompt))
        assert inserted.count(vocabulary(name).think[1]) == 1


# The cut.


def transitions(name: str, text: str, kind: str) -> list[tuple[str, str]]:
    """For each transition the text that is kept, and the text that was read when it was seen."""
    ids = encode(name, text)
    monitor = Monitor(tokenizer(name), MonitorSettings.model_validate({"monitor": kind}))
    return [
        (decode(name, ids[: cut.cut]), decode(name, ids[: cut.seen]))
        for cut in monitor.scan(ids, ended=False)
    ]


def check_cuts(name: str, text: str) -> int:
    found = 0
    for kept, seen in transitions(name, text, "cue"):
        # The token after the cue may have been read to tell it from a longer word.
        ids = encode(name, seen)
        starts = [cue_at_end(decode(name, ids[:end])) for end in (len(ids), len(ids) - 1)]
        before = [seen[:start].rstrip() for start in starts if start is not None]
        assert kept.rstrip() in before, (kept[-20:], seen[-20:])
        found += 1
    for kept, seen in transitions(name, text, "paragraph"):
        assert kept.rstrip() == seen.rstrip()
        found += 1
    return found


@pytest.mark.parametrize("name", ALL)
def test_a_cut_keeps_exactly_the_text_before_the_cue(name: str) -> None:
    for text in TEXTS:
        assert check_cuts(name, text)


@pytest.mark.parametrize("name", NAMES)
@given(
    ends=st.lists(st.sampled_from(ENDS), min_size=2, max_size=5),
    cue=st.sampled_from(("Wait", "But wait", "Hmm", "Alternatively", "等等", "或者")),
)
@settings(max_examples=50)
def test_any_end_of_a_paragraph_is_kept(name: str, ends: list[str], cue: str) -> None:
    text = "".join(f"So it is {end}\n\n{cue}, " for end in ends)
    kept = [kept.rstrip() for kept, _ in transitions(name, text, "cue")]
    places = [at for at in range(len(text)) if text.startswith(f"\n\n{cue}", at)]
    assert kept == [text[:at].rstrip() for at in places]


@pytest.mark.parametrize("name", NAMES)
def test_a_token_that_holds_the_cue_is_left_out(name: str) -> None:
    [(kept, _)] = transitions(name, "It is 8.wait, no", "cue")
    # `.wait` is one token: the full stop goes with it, so that ids stay the model's own.
    assert kept == "It is 8"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("end", "kept"),
    [
        ("\\).\n\n", "\\).\n\n"), ("]\n\n", "]\n\n"), ('?"\n\n', '?"\n\n'), ("。\n\n", "。\n\n"),
        ("8\n\n", "8"), ("8. ", "8."), ("8", "8"),
    ],
)  # fmt: skip
def test_a_path_is_cut_as_a_monitor_cuts(name: str, end: str, kept: str) -> None:
    path = ResponsePath((1,), context(name, Writer(tokenizer(name), "")), Sampling(100))
    path.ids = encode(name, f"So it is {end}")
    cut = path.border()
    assert decode(name, path.ids[:cut]) == f"So it is {kept}"


@pytest.mark.parametrize("name", NAMES)
def test_no_cut_falls_inside_a_character(name: str) -> None:
    ids = encode(name, "It is 😀🙃, 好.")
    path = ResponsePath((1,), context(name, Writer(tokenizer(name), "")), Sampling(100))
    for end in range(1, len(ids) + 1):
        path.ids = ids[:end]
        for cut in (path.whole(end), path.border()):
            assert "\ufffd" not in decode(name, ids[:cut])
            assert cut >= end - 4


# Braces.


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_an_inducer_ends_where_the_vocabulary_opens_the_brace(name: str) -> None:
    merges = [token for token in tokenizer(name).get_vocab() if token[:2] in ("{\\", "{-")]
    assert merges_brace(tokenizer(name)) == bool(merges) == (name != NANO)
    ctx = context(name, Writer(tokenizer(name), ""))
    end = "\\boxed" if merges else "\\boxed{"
    assert answer_inducer("exit", ctx).endswith(end)
    assert answer_inducer("trial_closed", ctx).endswith(end)
    for prompt in ("trial_inside", "trial_choice", "trial_pro_2"):
        assert answer_inducer(prompt, ctx).endswith("\\boxed")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("said", ["{\\frac{1}{2}}", "{-3}", "{5}", "{\\{1\\}}", "{\\text{a}}"])
def test_an_answer_goes_on_as_the_whole_would_be_written(name: str, said: str) -> None:
    inducer = answer_inducer("exit", context(name, Writer(tokenizer(name), "")))
    kept = encode(name, "So it is eight.")
    stay, inserted = joined(name, kept, inducer)
    assert [*stay, *inserted, *encode(name, said)] == encode(
        name, decode(name, [*stay, *inserted]) + said
    )


def test_the_embedded_model_reads_what_it_was_taught() -> None:
    """Its vocabulary joins nothing to a line end: texts behind its thinking are cut as by itself.

    All but the ellipsis of `exit` behind a full stop, which is left out everywhere.
    """
    random = Random(0)
    for chain in islice(chains("train", random), 20):
        ids = encode(NANO, think(chain, OVERTHINKING, random).text)
        settings = MonitorSettings(monitor="paragraph")
        cuts = [each.cut for each in Monitor(tokenizer(NANO), settings).scan(ids, ended=False)]
        for cut, prompt in product((*cuts, len(ids)), INSERTED):
            text = render(prompt, NANO)
            stay, inserted = joined(NANO, ids[:cut], text)
            assert stay == ids[:cut]
            assert decode(NANO, stay).endswith((".", "?"))
            if prompt == "exit" and decode(NANO, stay).endswith("."):
                text = text.removeprefix("...")
            assert inserted == encode(NANO, text)


# Real traces, where they are.


@cache
def thoughts(language: str) -> list[str]:
    path = TRACES / f"traces-{language}.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    rows = [json.loads(line)["thinking"] for line in path.read_text("utf-8").split("\n") if line]
    return [row.replace("<think>", "").replace("</think>", "")[:6_000] for row in rows[:12]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_cuts_and_joins_on_real_traces(name: str, language: str) -> None:
    cuts = 0
    for text in thoughts(language):
        cuts += check_cuts(name, text)
        ids = encode(name, text)
        for monitor in ("cue", "paragraph"):
            settings = MonitorSettings.model_validate({"monitor": monitor})
            found = Monitor(tokenizer(name), settings).scan(ids, ended=False)
            for index, transition in enumerate(found):
                kept = ids[: transition.cut]
                check_join(name, kept, render(INSERTED[index % len(INSERTED)]))
    assert cuts
