"""How records show in notebooks and terminals."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import replace
from html import escape
from math import nan
from pathlib import Path

import pytest
from IPython.lib.pretty import pretty
from rich.console import Console

import dto
from dto import tables
from dto.errors import DtoError
from dto.records import EvaluationRow, OptimizedTrajectory, PreferencePair, Span, Trajectory
from dto.viewer.data import AnswersView, RunTables, TrajectoryView
from dto.viewer.render import node, show
from dto.viewer.tree import to_html
from tests.viewer.generated import HOSTILE, write


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    write(path, 2, segments=5, sentences=1)
    return path


@pytest.fixture
def view(run: Path) -> TrajectoryView:
    found = dto.show(run).row
    assert isinstance(found, TrajectoryView)
    return found


def test_a_terminal_shows_all_there_is(view: TrajectoryView) -> None:
    shown = str(show(view))
    row, version = view.trajectory, view.optimized
    assert version is not None
    for text in (
        row.id, "gold answer", "✓ correct", "▌ 1  ", "  pruned  ", "▌ 3  ", "  cut  ",
        "══ p 0.90 (0.75–1.00)  14 of 16 rollouts right · above  exit",
        "   redundant p 0.90 with it", "\n▌ after thinking\n",
        "p after pruning  0.95 (0.75–1.00), 20 fresh rollouts", "Optimized  chosen in the pair",
    ):  # fmt: skip
        assert text in shown
    for segment in view.segments:
        piece = row.text[slice(*segment.chars)].strip()
        mark = "  " if segment.index in version.kept else "┆ "
        assert f"\n{mark}{piece}\n" in shown


def test_a_notebook_shows_all_there_is(view: TrajectoryView) -> None:
    html = show(view)._repr_html_()
    assert html.count('class="segment ') >= len(view.segments)
    assert html.count('<s class="text"') == 3  # one pruned, two cut
    for text in ("pruned", ">cut<", "redundant", "p 0.90 (0.75–1.00)", "Optimized",
                 "chosen in the pair", "rejected in the pair", "attention FLOPs"):  # fmt: skip
        assert text in html
    assert "<script" not in html


def test_a_notebook_renders_formulas_and_a_terminal_shows_their_source(
    view: TrajectoryView,
) -> None:
    text = "So \\(x = \\frac{1}{2}\\), **hence**\n\n\\[ \\sqrt{2} \\]\n\nit costs $5."
    row = replace(view.trajectory, text=text, thinking=Span(0, len(text)), conclusion=Span(0, 0))
    display = show(replace(view, trajectory=row, segments=(), optimized=None, pairs=()))
    html = display._repr_html_().partition("</style>")[2]
    assert html.count("<math") == 2 and "<mfrac>" in html and "<b>" in html
    assert "".join(f"  {line}\n" for line in text.split("\n")) in str(display)


def test_every_record_with_a_display_has_both(run: Path, view: TrajectoryView) -> None:
    answers = next(RunTables(run).answers())
    records = (view.trajectory, view.optimized, view.pairs[0], answers, view)
    kinds = (Trajectory, OptimizedTrajectory, PreferencePair, AnswersView, TrajectoryView)
    for record, kind in zip(records, kinds, strict=True):
        assert isinstance(record, kind)
        display = dto.show(record)
        assert record.id in str(display)
        html = display._repr_html_()
        assert html.startswith("<style>") and html.endswith("</article>")
        assert pretty(display) == str(display)  # what IPython shows where there is no HTML
        text = io.StringIO()
        Console(file=text, width=10_000).print(display)
        assert text.getvalue().rstrip("\n") == str(display)


def test_what_has_no_display_is_an_error(view: TrajectoryView) -> None:
    with pytest.raises(DtoError, match="a Segment has no display: give a run, a Trajectory"):
        dto.show(view.segments[0])


def test_rows_are_plain(view: TrajectoryView) -> None:
    for row in (view, view.trajectory, view.optimized, view.pairs[0]):
        assert not hasattr(row, "_repr_html_") and str(row) == repr(row)


def test_colours_in_a_terminal_say_nothing_that_words_do_not(view: TrajectoryView) -> None:
    text = io.StringIO()
    Console(file=text, force_terminal=True, width=10_000).print(show(view))
    assert "\x1b[" in text.getvalue()
    plain = "".join(part.partition("m")[2] for part in f"m{text.getvalue()}".split("\x1b["))
    assert plain.strip() == str(show(view)).strip()


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_no_control_character_reaches_a_terminal(
    run: Path, view: TrajectoryView, name: str
) -> None:
    text = HOSTILE[name]
    row = replace(view.trajectory, text=text, answer=text, reason=text)
    problem = replace(view.problem, question=text, answer=text) if view.problem else None
    whole = replace(view, trajectory=row, problem=problem, segments=())
    pair = replace(view.pairs[0], chosen=text, rejected=text, prompt=text)
    named = replace(row, id=f"p/{text}", model=text, text="")
    answers = next(RunTables(run).answers())
    asked = replace(
        answers,
        rows=tuple(
            replace(each, model=model, exit=exit, text=f"{text}{each.text}")
            for each in answers.rows
            for model, exit in ((text, text), (text, answers.plain), ("base", answers.plain))
        ),
    )
    for record in (row, whole, pair, named, asked):
        shown = str(show(record))
        assert not [c for c in shown if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160)]
        assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def test_pairs_of_other_sides_stand_on_their_own(view: TrajectoryView) -> None:
    other = replace(view.pairs[0], rejected_id="p/009", rejected_from="longest", rejected="Other.")
    html = show(replace(view, pairs=(other,)))._repr_html_()
    assert "Other." in html and "over longest" in html and "in the pair" not in html


def test_answers_show_trials_and_where_they_leave(run: Path) -> None:
    view = next(RunTables(run).answers())
    shown = str(show(view))
    assert "base · none" in shown and "base · deer" in shown
    assert "\n══ 180   0.90  ✓ " in shown and shown.count("  exit\n") == 1
    assert show(view)._repr_html_().count('"fate">exit<') == 1
    shadow = tuple(replace(row, exit_reason="closed") for row in view.rows)
    assert "would exit" in show(replace(view, rows=shadow))._repr_html_()


def test_responses_are_side_by_side(run: Path) -> None:
    """The plain response is whole and marked; an exit has what differs; a trained model the change.

    In a terminal and in HTML.
    """
    view = next(RunTables(run).answers())
    plain, early = (next(row for row in view.rows if row.exit == exit) for exit in ("none", "deer"))
    trained = replace(plain, model="trained", text=plain.text.replace("e", "E"), tokens=100,
                      grade="wrong" if plain.grade == "correct" else "correct")  # fmt: skip
    whole = replace(view, rows=(*view.rows, trained))
    shown, html = str(show(whole)), show(whole)._repr_html_()
    for row in plain, trained:
        for line in filter(None, row.text[slice(*row.thinking)].split("\n\n")):
            assert f"\n  {line}\n" in shown and escape(line) in html
    marked = shown.partition("\ntrained\n")[0]
    places = [marked.rindex(f"\n── confidence 0.{digit}0  ") for digit in (3, 6, 9)]
    leaves = marked.index("\n══ deer leaves here\n")
    assert places == sorted(places) and places[-1] < leaves < marked.index("▌ conclusion")
    kept = plain.text[: early.inserted.start].rstrip().rpartition("\n")[2]
    assert marked[places[-1] :].partition("\n══")[0].count("\n") <= 2  # nothing is in between
    assert kept in marked[:leaves] and html.count(escape(kept)) == 1
    share = f"{early.thinking_tokens:,} of {plain.thinking_tokens:,} thinking tokens"
    assert f"leaves the plain response after {share}" in shown
    assert "\n▌ inserted by the exit\n  </think>\n" in shown
    gained = "lost" if plain.grade == "correct" else "gained"
    assert re.search(rf"change  trained against base  ?.* → .*{gained}\n", shown)
    assert f"{plain.tokens:,} → 100" in shown and "no texts of responses" not in shown


def test_a_response_that_takes_another_way_is_shown_from_there(run: Path) -> None:
    view = next(RunTables(run).answers())
    plain, early = (next(row for row in view.rows if row.exit == exit) for exit in ("none", "deer"))
    word = early.text.index(" ", 30) + 1
    other = replace(early, text=f"{early.text[:word]}XYZ{early.text[word + 3 :]}")
    shown = str(show(replace(view, rows=(plain, other))))
    assert f"is the plain response for {word:,} characters, then another sample" in shown
    ending = shown.rpartition("then another sample")[2]
    assert ending.count("XYZ") == 1 and early.text[:word].strip() not in ending
    same = replace(plain, exit="never")
    assert "the response is the plain one" in str(show(replace(view, rows=(plain, same))))
    alone = str(show(replace(view, rows=(early,))))  # a recipe without the plain exit
    assert early.text[:30] in alone and "══ deer leaves here" in alone


def test_long_thinking_is_collapsed(run: Path) -> None:
    view = next(RunTables(run).answers())
    plain = next(row for row in view.rows if row.exit == "none")
    text = "word " * 3_000
    long = replace(plain, text=text, thinking=Span(0, len(text)), conclusion=Span(0, 0))
    assert '<details class="segment">' in show(replace(view, rows=(long,)))._repr_html_()
    assert '<details class="segment" open="">' in show(replace(view, rows=(plain,)))._repr_html_()


def test_a_table_without_texts_says_why(run: Path) -> None:
    view = next(RunTables(run).answers())
    bare = tuple(
        replace(row, text="", thinking=Span(0, 0), inserted=Span(0, 0), conclusion=Span(0, 0))
        for row in view.rows
    )
    for said in (str(show(replace(view, rows=bare))), show(replace(view, rows=bare))._repr_html_()):
        assert "evaluate.keep_answers was off" in said and "leaves here" not in said


def test_outcomes_of_answers(run: Path) -> None:
    view = next(RunTables(run).answers())
    row: EvaluationRow = view.rows[0]

    def outcome(*grades: str) -> str:
        return replace(view, rows=tuple(replace(row, grade=grade) for grade in grades)).outcome

    assert outcome("correct", "correct", "failed") == "all correct"
    assert outcome("wrong", "truncated") == "none correct"
    assert outcome("wrong", "correct") == "mixed"
    assert outcome("failed") == "failed"


@pytest.mark.parametrize(
    ("flops", "said"),
    [
        ((nan, nan), ["– attention FLOPs", "– attention FLOPs"]),
        ((1e9, nan), ["1.0e+09 attention FLOPs", "– attention FLOPs"]),
        ((1e9, 5e8), ["1.0e+09 attention FLOPs", "5.0e+08 attention FLOPs (−50 %)"]),
    ],
)
def test_the_attention_of_a_model_of_unknown_size_is_a_dash(
    run: Path, flops: tuple[float, float], said: list[str]
) -> None:
    view = next(RunTables(run).answers())
    plain, early = (next(row for row in view.rows if row.exit == exit) for exit in ("none", "deer"))
    rows = (
        replace(plain, attention_flops=flops[0]),
        replace(early, attention_flops=flops[1], sample=plain.sample),
    )
    display = show(replace(view, rows=rows))
    assert re.findall(r"[\w.+–]+ attention FLOPs(?: \(.*?\))?", str(display)) == said
    assert "nan" not in display._repr_html_().partition("</style>")[2]


@pytest.mark.parametrize(
    ("estimated", "exit", "shown"),
    [
        (True, True, "══ p "),
        (False, True, "══ exit"),  # optimize.exit: first_solution, second_solution
        (False, False, ""),
        (True, False, ""),
    ],
)
def test_where_a_trajectory_leaves(
    view: TrajectoryView, estimated: bool, exit: bool, shown: str
) -> None:
    estimates = view.estimates if estimated else ()
    optimized = view.optimized if exit else None
    display = show(replace(view, estimates=estimates, optimized=optimized, pairs=()))
    marks = [line for line in str(display).splitlines() if line.startswith("══")]
    assert len(marks) == exit and all(line.startswith(shown) for line in marks)
    assert display._repr_html_().count('<span class="taken">exit</span>') == exit


@pytest.mark.slow
def test_a_row_at_hand_is_shown_without_polars() -> None:
    code = "import sys, dto; dto.show; sys.exit('polars' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_trajectory_fresh_from_sampling_shows_itself(run: Path) -> None:
    row = next(tables.read(run / "sample/rows.parquet", Trajectory))
    failed = replace(row, grade="failed", reason="connection refused", answer="", text="")
    assert "connection refused" in str(show(failed))
    assert "connection refused" in show(failed)._repr_html_()
    assert f"tokens  {len(row.token_ids):,}, thinking" in str(show(row))


@pytest.mark.parametrize("close", ["</think>", "[/THINK]", "<!DONE!>"])
def test_the_closing_tag_is_no_part_of_the_conclusion(view: TrajectoryView, close: str) -> None:
    """Whichever it is: what the response has between thinking and conclusion."""
    row, version = view.trajectory, view.optimized
    assert version is not None
    row = replace(row, text=row.text.replace("</think>", close))
    version = replace(version, text=version.text.replace("</think>", close))
    shown = replace(view, trajectory=row, optimized=version, pairs=())
    assert escape(close) not in show(shown)._repr_html_()
    assert (escape(close) in show(version)._repr_html_()) == (
        close == "<!DONE!>"
    )  # unknown by itself


def test_answers_have_their_sampling_settings_collapsed(tmp_path: Path) -> None:
    write(tmp_path / "run", 2)
    view = next(RunTables(tmp_path / "run").answers())
    named = dict(view.settings)
    assert named["temperature"] == "0.6" and {"top_p", "max_tokens"} <= named.keys()
    shown = to_html(node(view))
    assert '<details class="request"><summary><b>Sampling settings</b></summary>' in shown
    assert "Sampling settings" not in to_html(node(replace(view, settings=())))
