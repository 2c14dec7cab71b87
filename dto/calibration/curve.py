"""`dto evaluate --replay`: accuracy against tokens of many exits, read off recorded traces."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dto.calibration.picture import draw
from dto.calibration.replay import check
from dto.calibration.sweep import Point, candidates, statics, sweep
from dto.errors import DtoError, RecipeError, disk_errors
from dto.recipe import Recipe
from dto.reporting.positions import Reliability, least_off
from dto.reporting.report import without_nan
from dto.runs import manifest
from dto.runs.graph import settings_of
from dto.stages.trace import read_traces


@dataclass(frozen=True, slots=True)
class Curve:
    """Every exit over all recorded problems, `none` first; `skipped` says which cannot be replayed.

    Differences among so many exits are partly luck: `dto calibrate` says which can be trusted.
    """

    name: str
    points: tuple[Point, ...]
    skipped: tuple[str, ...]
    reliability: tuple[Reliability, ...]

    def as_json(self) -> dict[str, Any]:
        """The content of `replay.json`."""
        data = asdict(self) | {"points": [point.as_json() for point in self.points]}
        cleaned: dict[str, Any] = without_nan(data)
        return cleaned

    def __str__(self) -> str:
        base = self.points[0]
        lines = [
            f"{self.name}: {len(self.points):,} exits over {base.problems:,} problems, replayed",
            f"{'accuracy %':>10}  {'loss (95 %)':<24}{'tokens':>8}{'trials':>8}{'left %':>8}  exit",
        ]
        for point in (base, *frontier(self.points)):
            loss = f"{point.loss:+.3f} [{point.loss_low:+.3f}, {point.loss_high:+.3f}]"
            lines.append(
                f"{100 * point.accuracy:>10.1f}  {loss:<24}{point.tokens:>8,.0f}"
                f"{point.trial_tokens:>8,.1f}{100 * point.left:>8.1f}  {point.exit.name}"
            )
        return "\n".join([*lines, *self.skipped])


def replay(run_directory: Path, recipe: Recipe) -> Curve:
    """Sweep the grid of `recipe.calibrate`, the recorded shares, and `evaluate.exits`.

    Writes `replay.json` and `replay.png` below `RUN/replay`. Exits that the traces cannot answer
    are skipped, by name. Raises DtoError when the run has no traces, or when they were recorded
    with other settings than those of `recipe`.
    """
    done = manifest.read(run_directory / "trace")
    if done is not None:
        recorded, now = done["config"], settings_of(recipe)
        same = {key: now[key] for key in recorded if key in now}
        if differing := manifest.differences({key: recorded[key] for key in same}, same):
            raise DtoError(
                f"the traces of {run_directory} were recorded with other settings: "
                f"{', '.join(differing)}; replay with theirs, or record anew with dto calibrate"
            )
    skipped: list[str] = []
    exits = [*candidates(recipe), *statics(recipe.trace)]
    for exit in recipe.evaluate.exits:
        try:
            check(exit, recipe.trace)
        except RecipeError as error:
            skipped.append(str(error))
        else:
            exits += [exit] if exit.policy != "none" else []
    swept = sweep(read_traces(run_directory), exits, recipe.trace)
    result = Curve(
        name=recipe.name,
        points=tuple(swept.point(place, swept.problems) for place in range(len(swept.exits))),
        skipped=tuple(skipped),
        reliability=swept.reliability,
    )
    directory = run_directory / "replay"
    with disk_errors(directory):
        directory.mkdir(exist_ok=True)
        text = json.dumps(result.as_json(), indent=2, ensure_ascii=False, allow_nan=False)
        manifest.write_text(directory / "replay.json", text + "\n")
    title = str(result).splitlines()[0]
    draw(directory / "replay.png", title, result.points, None, least_off(result.reliability))
    return result


def frontier(points: Sequence[Point]) -> Iterator[Point]:
    """Those that no other beats in accuracy and tokens, the cheapest first."""
    best = -1.0
    for point in sorted(points, key=lambda point: (point.tokens, -point.accuracy)):
        if point.accuracy > best:
            best = point.accuracy
            yield point
