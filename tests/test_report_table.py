"""One table, four renderers; estimates that format themselves."""

from __future__ import annotations

import csv
import io
from html.parser import HTMLParser
from math import nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto.reporting.table import Table
from dto.statistics import NOTHING, Estimate, shown

ACCURACY = Estimate(0.7381, 0.7041, 0.7689, 800, 200)


@pytest.mark.parametrize(
    ("estimate", "spec", "text"),
    [
        (ACCURACY, "%", "73.8 (70.4–76.9)"),
        (ACCURACY, ".0%", "74 (70–77)"),
        (Estimate(0.018, -0.025, 0.06, 0, 0), "+%", "+1.8 (-2.5…+6.0)"),
        (Estimate(-0.0001, -0.025, 0.06, 0, 0), "+%", "-0.0 (-2.5…+6.0)"),
        (Estimate(-0.0001, -0.025, 0.06, 0, 0), "+z%", "+0.0 (-2.5…+6.0)"),
        (Estimate(1204.52, 1100.0, 1308.8, 0, 0), "", "1,204.5 (1,100.0–1,308.8)"),
        (Estimate(1204.52, 1100.0, 1308.8, 0, 0), ",.0f", "1,205 (1,100–1,309)"),
        (Estimate(0.4, -0.1, 0.6, 0, 0), ".2f…", "0.40 (-0.10…0.60)"),
        (Estimate(2e9, 1e9, 3e9, 0, 0), ".1e", "2.0e+09 (1.0e+09–3.0e+09)"),
        # The interval of a single problem is not known: none is shown.
        (Estimate(0.5, nan, nan, 2, 1), "%", "50.0"),
        (Estimate(0.5, nan, nan, 2, 1), "+%", "+50.0"),
        (NOTHING, "%", "–"),
        (NOTHING, "+%", "–"),
        (NOTHING, "", "–"),
    ],
)
def test_an_estimate_formats_itself(estimate: Estimate, spec: str, text: str) -> None:
    assert format(estimate, spec) == text


@pytest.mark.parametrize(
    ("value", "spec", "text"),
    [(0.5, "%", "50.0"), (1234.56, "", "1,234.6"), (0.0, ".1e", "0.0e+00"), (None, "%", "–"),
     (nan, ",.2f", "–")],
)  # fmt: skip
def test_a_number_is_shown(value: float | None, spec: str, text: str) -> None:
    assert shown(value, spec) == text


TABLE = Table(
    "Arms",
    ("model", "n", "accuracy", "gain", "tokens"),
    (
        ("base", 1200, ACCURACY, None, 204.06),
        ("a|<b>", 7, NOTHING, Estimate(0.02, -0.01, 0.05, 4, 2), nan),
    ),
    notes=("A <note>.",),
    formats=("", "", "%", "+%", ",.1f"),
)


def test_the_same_cells_in_text() -> None:
    assert TABLE.text().splitlines() == [
        "Arms",
        "model      n          accuracy              gain  tokens",
        "────────────────────────────────────────────────────────",
        "base   1,200  73.8 (70.4–76.9)                     204.1",
        "a|<b>      7                 –  +2.0 (-1.0…+5.0)       –",
        "A <note>.",
    ]


def test_the_same_cells_in_markdown() -> None:
    assert TABLE.markdown().splitlines() == [
        "## Arms",
        "",
        "| model | n | accuracy | gain | tokens |",
        "| --- | --- | --- | --- | --- |",
        "| base | 1,200 | 73.8 (70.4–76.9) |  | 204.1 |",
        "| a∣<b> | 7 | – | +2.0 (-1.0…+5.0) | – |",
        "",
        "A <note>.",
    ]


def test_the_values_in_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(TABLE.csv())))
    assert list(rows[0]) == [
        "model", "n", "accuracy", "accuracy_low", "accuracy_high",
        "gain", "gain_low", "gain_high", "tokens",
    ]  # fmt: skip
    assert [rows[0][name] for name in ("n", "accuracy_low", "gain", "tokens")] == [
        "1200", "0.7041", "", "204.06",
    ]  # fmt: skip
    assert (rows[1]["model"], rows[1]["accuracy"], rows[1]["gain_low"], rows[1]["tokens"]) == (
        "a|<b>", "", "-0.01", "",
    )  # fmt: skip


class Cells(HTMLParser):
    """The text of each cell."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag in ("th", "td"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells and data.strip():
            self.cells[-1] += data


def test_the_same_cells_on_a_page() -> None:
    html = TABLE.html()
    assert '<div class="scroll" tabindex="0" role="region" aria-label="Arms">' in html
    assert "<caption>Arms</caption>" in html and "A &lt;note&gt;." in html
    assert '<th scope="row" class="left">a|&lt;b&gt;</th><td>7</td><td>–</td>' in html
    assert "<td>73.8 (70.4–76.9)</td><td>–</td><td>204.1</td>" in html
    untitled = Table("", ("a", "b"), (("x", "y"),), left=2, wide=True).html()
    assert 'aria-label="a, b"' in untitled and "<caption>" not in untitled
    assert '<td class="left">y</td>' in untitled and '<table class="wide">' in untitled
    folded = Table("Arms", ("a",), (("x",),), folded=True).html()
    assert folded.startswith("<details>\n<summary>Arms</summary>") and "<caption>" not in folded


# Python's csv leaves a lone carriage return without quotes; no name holds one.
TEXT = st.text(st.characters(exclude_characters="\r"))


@given(st.lists(st.lists(TEXT, min_size=3, max_size=3), max_size=4), st.integers(0, 3))
def test_a_cell_is_never_markup(rows: list[list[str]], left: int) -> None:
    table = Table("", ("a", "b", "c"), tuple(map(tuple, rows)), left=left)
    page = Cells()
    page.feed(table.html())
    assert set(page.tags) <= {"div", "table", "thead", "tbody", "tr", "th", "td"}
    assert len(page.cells) == 3 * (len(rows) + 1)
    assert len(list(csv.reader(io.StringIO(table.csv(), newline="")))) == len(rows) + 1


def test_what_does_not_fit_follows_in_blocks_and_a_last_column_is_wrapped() -> None:
    head = ("model", "exit", "a", "b", "c")
    rows = (("base", "a-name-that-is-far-too-long", "x" * 8, "y" * 8, "z" * 8),)
    lines = Table("Arms", head, rows, left=2).text(width=50).splitlines()
    assert [line.split() for line in lines if "─" not in line] == [
        ["Arms"], ["model", "exit", "a", "b"],
        ["base", "…-that-is-far-too-long", "x" * 8, "y" * 8], [],
        ["model", "exit", "c"], ["base", "…-that-is-far-too-long", "z" * 8],
    ]  # fmt: skip
    wide = Table("", ("stage", "why"), (("pair", "one two " * 9),), wide=True).text(width=40)
    assert wide.split() == ["stage", "why", wide.split()[2], "pair", *["one", "two"] * 9]
    assert max(map(len, wide.splitlines())) <= 40


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(20, 100))
def test_no_block_is_wider_than_it_has_to_be(widths: list[int], width: int) -> None:
    row = ("r", *("x" * each for each in widths))
    table = Table("", ("n", *("h" for _ in widths)), (row,))
    blocks = [block.splitlines() for block in table.text(width).split("\n\n")]
    assert [cell for block in blocks for cell in block[2].split()[1:]] == list(row[1:])
    assert all(max(map(len, block)) <= max(width, 3 + max(widths)) for block in blocks)
