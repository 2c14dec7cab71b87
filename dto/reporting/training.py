"""The training curve of a run: dev accuracy, tokens and thinking at each measurement, and the loss.

All figures were recorded during the training (`history.jsonl`, `steps.jsonl`). Runs of earlier
versions lack some of them: the interval of the accuracy then comes from its standard error, and the
others are unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, nan
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dto.reporting.funnel import training_sentence
from dto.reporting.page import OmittedSection, Section, make_figure
from dto.reporting.pictures import COLOURS, INK, WIDTH, error_bars, style_axes
from dto.reporting.table import Table
from dto.runs.reader import RunReader
from dto.statistics import NOTHING, Estimate, normal_quantile, shown
from dto.training.train import json_lines

MOST_POINTS = 300
"""Points of the loss in the picture and in `report.json`, each a mean over equally many steps."""
SHRUNK = 0.05
"""A loss of valid thinking that the last lines of a run mention."""
STATES = ("valid", "empty", "missing", "truncated")


@dataclass(frozen=True, slots=True)
class DevPoint:
    """The model after `step` steps (0: the base) on the dev problems.

    `loss` is the mean training loss since the previous point. `thinking` has the shares of
    responses by the state of their thinking (`dto.training.dev.thinking_state`), and `given_valid`
    is the accuracy over those with valid thinking. Unknown figures are nan or None.
    """

    step: int
    kept: bool
    accuracy: Estimate
    tokens: Estimate
    truncated: float | None
    loss: float | None
    thinking: Mapping[str, float] | None
    given_valid: Estimate

    @property
    def name(self) -> str:
        """The step for people, and whether its model was kept."""
        return f"{self.step:,}{' (kept)' if self.kept else ''}"


@dataclass(frozen=True, slots=True)
class Loss:
    """The mean training loss over the steps that end at `step`."""

    step: int
    loss: float


@dataclass(frozen=True, slots=True)
class TrainingCurve:
    """Points of the dev measurements, and of the loss over `steps_a_point` steps each."""

    points: tuple[DevPoint, ...]
    losses: tuple[Loss, ...]
    steps_a_point: int

    @property
    def kept(self) -> DevPoint:
        """The point of the model that was kept."""
        return next((point for point in self.points if point.kept), self.points[0])


def training_curve(run: RunReader) -> TrainingCurve | None:
    """Read the curve of a finished training; None if the run has none."""
    manifest, history = run.manifest("train"), json_lines(run / "train" / "history.jsonl")
    if manifest is None or not history:
        return None
    kept_step = int(manifest.get("kept_step", 0))
    recorded = [
        Loss(int(line["step"]), float(line["loss"]))
        for line in json_lines(run / "train" / "steps.jsonl")
        if line.get("loss") is not None
    ]
    size = max(1, ceil(len(recorded) / MOST_POINTS))
    parts = [recorded[start : start + size] for start in range(0, len(recorded), size)]
    losses = [Loss(part[-1].step, sum(each.loss for each in part) / len(part)) for part in parts]
    points = [_point(score, score["step"] == kept_step) for score in history]
    return TrainingCurve(tuple(points), tuple(losses), size)


def _point(score: Mapping[str, Any], kept: bool) -> DevPoint:
    thinking = score.get("thinking")
    valid = thinking or {}
    half = normal_quantile(0.95) * score.get("standard_error", nan)
    accuracy, tokens = score["accuracy"], score["tokens_mean"]
    return DevPoint(
        step=int(score["step"]),
        kept=kept,
        accuracy=_estimate(
            accuracy,
            _or(score.get("low"), max(0.0, accuracy - half)),
            _or(score.get("high"), min(1.0, accuracy + half)),
            score,
        ),
        tokens=_estimate(tokens, score.get("tokens_low"), score.get("tokens_high"), score),
        truncated=score.get("truncated"),
        loss=score.get("loss"),
        thinking={state: valid[state] for state in STATES} if thinking else None,
        given_valid=_estimate(valid.get("accuracy"), valid.get("low"), valid.get("high"), score),
    )


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _estimate(
    value: float | None, low: float | None, high: float | None, score: Mapping[str, Any]
) -> Estimate:
    if value is None:
        return NOTHING
    return Estimate(value, _or(low, nan), _or(high, nan), int(score.get("responses", 0)), 0)


def draw_curve(curve: TrainingCurve) -> Figure:
    """Plot accuracy, tokens and loss over the steps; a dotted line marks the kept step."""
    points = curve.points
    means = [
        (before.step, Loss(point.step, point.loss))
        for before, point in pairwise(points)
        if point.loss is not None
    ]
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    panels = figure.subplots(1, 3 if means or curve.losses else 2, sharex=True)
    accuracy, tokens = panels[:2]
    steps = [point.step for point in points]
    style: dict[str, Any] = {
        "marker": "o",
        "markersize": 4,
        "linewidth": 1.2,
        "elinewidth": 1.1,
        "capsize": 2.5,
    }
    error_bars(accuracy, steps, [point.accuracy for point in points], 100, color=COLOURS[0],
               **style)  # fmt: skip
    error_bars(tokens, steps, [point.tokens for point in points], color=COLOURS[1], **style)
    tokens.set_ylim(bottom=0)
    for axes, title in ((accuracy, "dev accuracy, %"), (tokens, "tokens per dev response")):
        _finish(axes, title, curve.kept.step)
    if len(panels) > 2:
        panels[2].plot(
            [each.step for each in curve.losses],
            [each.loss for each in curve.losses],
            color=COLOURS[2],
            linewidth=0.9,
            alpha=0.55,
        )
        for start, mean in means:
            panels[2].plot([start, mean.step], [mean.loss] * 2, color=COLOURS[2], linewidth=2.2)
        _finish(panels[2], "training loss", curve.kept.step)
    return figure


def _finish(axes: Axes, title: str, kept_step: int) -> None:
    style_axes(axes)
    axes.axvline(kept_step, color=INK, linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel("step", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def curve_section(
    curve: TrainingCurve | None, training: Mapping[str, Any] | None
) -> Section | OmittedSection:
    """Build the section with the dev measurements of a training."""
    title = "Training curve"
    if curve is None or training is None:
        return OmittedSection(title, "the run has no finished training.")
    if len(curve.points) < 2:
        return OmittedSection(title, f"nothing was trained: {training['reason'] or 'no steps'}.")
    scores = Table.of(
        "",
        curve.points,
        {
            "step": (lambda point: point.name, ""),
            "dev accuracy %": (lambda point: point.accuracy, "%"),
            "tokens": (lambda point: point.tokens, ""),
            "truncated %": (lambda point: point.truncated, "%"),
            "loss": (lambda point: point.loss, ",.4f"),
        },
    )
    thinking = _thinking_table(curve.points)
    sentence = thinking_sentence(curve)
    mean = "" if curve.steps_a_point == 1 else f", averaged over {curve.steps_a_point} steps"
    losses = "" if not curve.losses else f" The thin line is the loss of each step{mean}."
    return Section(
        "training",
        title,
        (
            "The model on the dev problems, before and during the training. Bars are 95 % "
            "intervals over problems. The dotted line marks the step that was kept. The thick "
            f"lines of the loss are its means between measurements.{losses}",
        ),
        make_figure("training", "Dev accuracy, tokens and training loss by step; the table below "
                    "has the figures.", draw_curve, curve),
        (scores, *([thinking] if thinking else [])),
        (training_sentence(training), *([sentence] if sentence else [])),
    )  # fmt: skip


def _thinking_table(points: Sequence[DevPoint]) -> Table | None:
    """The states of the thinking; a folded table if all of it is valid, None if unknown."""
    known = [(point, point.thinking) for point in points if point.thinking is not None]
    if not known:
        return None
    shares = {
        f"{state} %": (lambda row, state=state: row[1][state], "%") for state in STATES
    }  # fmt: skip
    columns: dict[str, Any] = {
        "step": (lambda row: row[0].name, ""),
        **shares,
        "accuracy given valid thinking %": (lambda row: row[0].given_valid, "%"),
    }
    all_valid = all(thinking["valid"] == 1.0 for _, thinking in known)
    note = (
        "Missing: the response has no thinking. Empty: it holds nothing but white space. "
        "Truncated: it is never closed. Valid: any other."
    )
    title = "Thinking of the dev responses"
    return Table.of(title, known, columns, notes=(note,), folded=all_valid)


def thinking_sentence(curve: TrainingCurve, least: float = 0.0) -> str:
    """Say how much thinking of the kept model is valid, if its share fell by more than `least`.

    Empty without a fall, and if the shares are not known.
    """
    before, after = curve.points[0].thinking, curve.kept.thinking
    if before is None or after is None or before["valid"] - after["valid"] <= least:
        return ""
    return (
        f"The share of dev responses with valid thinking fell from {shown(before['valid'], '%')} "
        f"to {shown(after['valid'], '%')} %; given valid thinking, {curve.kept.given_valid:%} % "
        "are right."
    )
