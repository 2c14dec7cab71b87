"""A comparison as a page of the same make as a run's report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dto.baselines.picture import front
from dto.baselines.table import change, p_value, picked, rank, span
from dto.recipe import Recipe
from dto.reporting.page import Section, drawn, render_page
from dto.reporting.sections import reproduce_section
from dto.reporting.table import Table

if TYPE_CHECKING:
    from dto.baselines.records import Comparison, MethodRow


def compare_page(run: Path, recipe: Recipe, result: Comparison) -> str:
    """The HTML of a comparison; `run` is one of its seeds."""
    seeds = ", ".join(map(str, result.seeds))
    subtitle = (
        f"{len(result.rows)} methods on {result.problems:,} test problems × {result.samples} "
        f"samples, seed{'s' if len(result.seeds) > 1 else ''} {seeds}"
    )
    again = reproduce_section(run, recipe)
    if others := ", ".join(str(seed) for seed in result.seeds if seed != recipe.seed):
        again = replace(again, text=(*again.text, f"The same with --set seed=… for {others}."))
    sections = [_methods(result), _spent(result), again]
    return render_page(result.name, subtitle, (), sections)


def _methods(result: Comparison) -> Section:
    reference = result.reference
    pairs = len(result.rows) * (len(result.rows) - 1) // 2
    notes = [
        f"In brackets are 95 % intervals, each for itself. Differences from {reference} are paired "
        f"by problem; p is of a paired bootstrap over problems, with Holm's correction over the "
        f"{pairs} pairs of methods: what it does not let stand is not shown, though an interval "
        "may exclude 0."
    ]
    if all(row.accuracy_rank is None for row in result.rows):
        notes.append(f"{result.problems} problems are too few to rank methods: none is ranked.")
    else:
        notes.append("Rank: 1 + the number of methods that are shown to be better (p < 0.05).")
    says = "; ".join(
        f"{row.method}: {100 * row.accuracy:.1f} % at {row.tokens:,.0f} tokens"
        for row in result.rows
    )
    return Section(
        "methods",
        "Accuracy and tokens",
        ("Up and to the left is better.",),
        drawn("methods", f"Accuracy against tokens. {says}", front, result.rows),
        (
            Table(
                "Accuracy",
                ("method", "accuracy %", f"less {reference}, points", "p", "rank"),
                tuple(_accuracy(row, reference) for row in result.rows),
            ),
            Table(
                "Tokens of a question",
                ("method", "tokens", f"less {reference}", "p", "rank"),
                tuple(_tokens(row, reference) for row in result.rows),
            ),
        ),
        notes=tuple(notes),
    )


def _accuracy(row: MethodRow, reference: str) -> tuple[str, ...]:
    gain = change(100 * row.gain, 100 * row.gain_low, 100 * row.gain_high)
    own = row.method == reference
    return (
        row.method,
        span(100 * row.accuracy, 100 * row.accuracy_low, 100 * row.accuracy_high),
        "–" if own else gain,
        "–" if own else p_value(row.gain_p),
        rank(row.accuracy_rank),
    )


def _tokens(row: MethodRow, reference: str) -> tuple[str, ...]:
    own = row.method == reference
    saved = change(row.tokens_change, row.tokens_change_low, row.tokens_change_high)
    return (
        row.method,
        span(row.tokens, row.tokens_low, row.tokens_high),
        "–" if own else saved,
        "–" if own else p_value(row.tokens_change_p),
        rank(row.tokens_rank),
    )


def _spent(result: Comparison) -> Section:
    rows = tuple(
        (
            row.method, f"{row.policy_tokens:,.0f}", f"{row.charged:,}", f"{row.cpu_seconds:,.0f}",
            f"{row.truncated:,}", f"{row.failed:,}", picked(row),
        )
        for row in result.rows
    )  # fmt: skip
    return Section(
        "budget",
        "What each may spend, and what dev picked",
        (
            f"Each training has {result.budget:,} policy tokens: what was generated for its data, "
            "and what it is trained on. Policy tokens are what a training of the method used, on "
            "average; for data, what of that was generated before it. Core seconds are all that "
            "the method took.",
        ),
        tables=(
            Table(
                "",
                ("method", "policy tokens", "for data", "core seconds", "trun\u00adcated", "failed",
                 "picked on dev"),
                rows,
                wide=True,
            ),
        ),
    )  # fmt: skip
