"""A language is one file: a third one serves segmentation, the monitor of exits and DRQA."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import spacy

from dto.drqa.answers import numbered_answers
from dto.drqa.split import alike, others, quoted, split
from dto.drqa.wording import wording
from dto.errors import DtoError, RecipeError
from dto.exits.monitor import Monitor, cue_at_end
from dto.languages import DEFAULT, Languages, load_language
from dto.pipeline import STAGES
from dto.recipe import make_recipe
from dto.runs.run import settings_read
from dto.segmentation.worker import segment_text
from dto.segmenter import Segmenter
from dto.settings import MonitorSettings
from tests.vocabularies import QWEN3, tokenizer

DOCUMENT = Path(__file__).parents[1] / "docs" / "extending.md"
(GERMAN,) = re.findall(
    r"^```toml\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)
QUESTIONS = (
    "Natalia verkauft 48 Klammern im April und halb so viele im Mai. Wie viele sind es?",
    "Weng verdient 12 Dollar in der Stunde. Wie viel verdient er in 50 Minuten?",
    "James schreibt 624 Seiten im Jahr. Wie viele sind das in der Woche?",
)
THINKING = """Gut, es sind drei.

Zuerst die erste Aufgabe: im Mai sind es 24. 48 + 24 = 72.

Nun zu Aufgabe zwei. 50 Minuten sind 10 Dollar.

3. Aufgabe: 624 / 52 = 12. Bei der dritten Aufgabe ist das alles.
"""
PARAGRAPHS = (
    "Im April sind es 48 Klammern und im Mai sind es halb so viele, also 24 Klammern. Zusammen "
    "sind das 48 und 24, daher 72 Klammern in beiden Monaten.",
    "Warte, das war zu schnell. Ich prüfe noch einmal, wie viele es im Mai waren. Halb so viele "
    "wie 48 sind 24, das stimmt.",
    "Alternativ rechne ich mit drei Hälften von 48. Drei mal 24 sind 72, und das ist dieselbe "
    "Zahl.",
)


@pytest.fixture
def languages(tmp_path: Path) -> Languages:
    path = tmp_path / "german.toml"
    path.write_text(GERMAN, encoding="utf-8")
    return (*DEFAULT, str(path))


@pytest.mark.parametrize(
    ("text", "cue", "kind"),
    [
        ("Es ist 5. Warte, nein.", "Warte", "verification"),
        ("Es ist 5. Aber warte, nein.", "warte", "verification"),
        ("Es ist 5. Ich überprüfe das.", "Ich überprüfe", "verification"),
        ("Es ist 5. Möglicherweise 6.", "Möglicherweise", "alternative"),
        ("Es ist 5. Die Antwort ist 5.", "Die Antwort ist", "conclusion"),
        ("Es ist 5. Wait, no.", "Wait", "verification"),
        ("是五。等等，不是。", "等等", "verification"),
    ],
)
def test_the_segmenter_finds_its_cues(text: str, cue: str, kind: str, languages: Languages) -> None:
    _opening, segment = segment_text(text, "cue", languages)
    assert (segment.cue, segment.kind) == (cue, kind)


@pytest.mark.parametrize(
    "text",
    ["Es sind ca. 5 bzw. warte auf 6.", "Es ist 5. Wartend steht er da.", "Wir warten hier."],
)
def test_other_words_are_no_cues(text: str, languages: Languages) -> None:
    assert [each.cue for each in segment_text(text, "cue", languages)] == [""]


def test_without_its_file_a_language_has_no_cues() -> None:
    assert len(segment_text("Es ist 5. Warte, nein.", "cue")) == 1


def test_its_patterns_open_at_its_cues(languages: Languages) -> None:
    """The model, which has learned from English, reads the roles and topics of the file."""
    segments = segment_text("\n\n".join(PARAGRAPHS), "pattern", languages)
    assert [each.cue for each in segments] == ["", "Warte", "Alternativ"]
    assert [each.kind for each in segments[1:]] == ["verification", "alternative"]


@pytest.mark.slow
async def test_processes_of_the_segmenter_read_it(languages: Languages) -> None:
    segmenter = Segmenter()
    try:
        cuts = await segmenter.cut("Es ist 5. Warte, nein.", "cue", languages)
    finally:
        segmenter.close()
    assert [each.cue for each in cuts] == ["", "Warte"]


def test_the_spacy_component_reads_it(languages: Languages) -> None:
    nlp = spacy.blank("xx")
    nlp.add_pipe("dto_patterns", config={"granularity": "cue", "languages": list(languages)})
    doc = nlp("Es ist 5. Warte, nein.")
    assert [span.label_ for span in doc.spans["patterns"]] == ["opening", "verification"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Es ist 5. Warte, nein, es ist 6.", "Es ist 5."),
        ("Es ist 5. Aber möglicherweise ist es 6.", "Es ist 5."),
        ("Es ist 5. Wait, no.", "Es ist 5."),
        ("是五。等等，不是。", "是五。"),
        ("Es ist 5. Wartend steht er da.", None),
        ("Wer nicht warte, geht.", None),
    ],
)
def test_the_monitor_sees_its_transitions(
    text: str, kept: str | None, languages: Languages
) -> None:
    spelling = tokenizer(QWEN3)
    ids = spelling.encode(text, add_special_tokens=False)
    settings = MonitorSettings(monitor="cue")
    found = list(Monitor(spelling, settings, languages=languages).scan(ids, ended=False))
    assert [spelling.decode(ids[: each.cut]) for each in found] == ([kept] if kept else [])


def test_the_monitor_waits_for_the_end_of_a_word_in_any_letters(languages: Languages) -> None:
    """A language without spaces has no such end."""
    assert cue_at_end("Es ist 5. Möglicherweise", languages) == len("Es ist 5. ")
    assert cue_at_end("Es ist 5. Möglicherweise") is None
    assert cue_at_end("是五。等等", languages[2:]) is None


def test_a_batch_response_is_split_by_question(languages: Languages) -> None:
    pieces = split(THINKING, QUESTIONS, languages)
    assert [piece.reason for piece in pieces] == ["", "", ""]
    texts = [THINKING[piece.heading.end : piece.span.end] for piece in pieces]
    chains = [alike(text, number, languages) for number, text in enumerate(texts, start=1)]
    assert chains == [
        "Im Mai sind es 24. 48 + 24 = 72.",
        "50 Minuten sind 10 Dollar.",
        "624 / 52 = 12.",
    ]
    assert [piece.reason for piece in split(THINKING, QUESTIONS)] == ["no_heading"] * 3


def test_chains_that_name_other_questions_are_found(languages: Languages) -> None:
    text = "Wie bei der ersten Frage. Beide Aufgaben sind gleich."
    assert others(text, 2, QUESTIONS[1], languages) == ["ersten frage", "beide aufgaben"]
    assert others(text, 1, QUESTIONS[0], languages) == ["beide aufgaben"]
    assert not others(text, 2, QUESTIONS[1])


def test_numbered_answers_are_read(languages: Languages) -> None:
    text = "Erste Aufgabe: \\boxed{72}\nZweite Aufgabe: \\boxed{10}\nAufgabe drei: \\boxed{12}"
    assert [each.answer for each in numbered_answers(text, 3, languages)] == ["72", "10", "12"]
    inline = "Also ist 1. \\boxed{72} und 2. \\boxed{10} und 3. \\boxed{12}"
    assert [each.answer for each in numbered_answers(inline, 3, languages)] == ["72", "10", "12"]


@pytest.mark.parametrize(
    "sentence",
    [
        "Wie viele große Äpfel können fünf müde Gärtner täglich pflücken?",
        "Сколько яблок могут собрать пять усталых садовников за один день?",
    ],
)
def test_a_quotation_is_found_in_any_letters(sentence: str) -> None:
    assert quoted(f"Also: {sentence}", "Was ist 2 + 2?", [sentence])
    assert not quoted(f"Also: {sentence}", sentence, [sentence])
    half = " ".join(sentence.split()[:6])
    assert not quoted(half, "Was ist 2 + 2?", [sentence])


@pytest.mark.parametrize(
    ("name", "number"),
    [("question 25", 25), ("the 25th problem", 25), ("the 1st problem", 1), ("problem ten", 10),
     ("第十题", 10), ("the next problem", -1), ("最后一题", -2), ("21st problem", 21)],
)  # fmt: skip
def test_any_number_is_read(name: str, number: int) -> None:
    assert [each.number for each in wording(DEFAULT).mentions(name)] == [number]


def test_a_recipe_names_a_file(languages: Languages) -> None:
    recipe = make_recipe({"name": "x", "languages": list(languages)})
    assert recipe.languages == languages and recipe.language_files == languages[2:]
    assert make_recipe({"name": "x"}).languages == DEFAULT


REFUSED = {
    "spaces = true\ntransition = ['x']": "unknown key 'transition' (did you mean 'transitions'?)",
    "openers = ['x']": "spaces: Field required",
    "spaces = true\n[roles]\nwiat = ['x']": "wiat",
    "spaces = true\n[cues.doubt]\nstrong = ['x']": "doubt",
    "spaces = true\n[questions]\nnamed = ['frage (']": "questions.named 'frage (': missing )",
    "spaces = true\n[questions]\nnamed = ['frage']": "it has 0 groups",
    "spaces = true\n[questions]\nclosings = ['(x)']": "it has 1 groups",
    "spaces = maybe": "Invalid value (at line 1",
}


@pytest.mark.parametrize(("text", "message"), REFUSED.items(), ids=REFUSED)
def test_a_wrong_file_is_refused_with_the_recipe(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as refusal:
        make_recipe({"name": "x", "languages": ["en", str(path)]})
    assert message in str(refusal.value) and str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_missing_file_is_refused_with_the_recipe_but_not_for_a_finished_run() -> None:
    data = {"name": "x", "languages": ["en", "klingon.toml"]}
    with pytest.raises(RecipeError, match=r"'klingon\.toml' cannot be read"):
        make_recipe(dict(data))
    assert make_recipe(dict(data), imports=False).language_files == ("klingon.toml",)


@pytest.mark.slow
async def test_a_file_that_is_gone_is_named_when_a_run_goes_on() -> None:
    segmenter = Segmenter()
    try:
        with pytest.raises(DtoError, match=r"'klingon\.toml' cannot be read"):
            await segmenter.cut("Es ist 5. Warte, nein.", "cue", ("en", "klingon.toml"))
    finally:
        segmenter.close()


def test_a_number_in_no_list_is_named(tmp_path: Path) -> None:
    path = tmp_path / "odd.toml"
    path.write_text("spaces = true\n[questions]\nnamed = ['frage (\\w+)']", encoding="utf-8")
    with pytest.raises(DtoError, match="'vier', which is in none of numbers"):
        list(wording((str(path),)).mentions("frage vier"))


@pytest.mark.parametrize("name", DEFAULT)
def test_built_in_languages_have_all_parts(name: str) -> None:
    language = load_language(name)
    assert language.transitions and language.openers and language.questions["named"]


def test_stages_that_read_a_language_depend_on_its_file(languages: Languages) -> None:
    """Runs from before the key depend on nothing new: the default is left out."""
    default, recipe = make_recipe({"name": "x"}), make_recipe({"name": "x", "languages": languages})
    readers = {
        stage.name
        for stage in STAGES.values()
        if "languages" in settings_read(recipe, stage) and stage.files(recipe)[-1:] == languages[2:]
    }
    assert readers == {"segment", "batch", "chain", "trace", "evaluate"}
    assert not any("languages" in settings_read(default, stage) for stage in STAGES.values())
