"""Pick the early exit that saves most while its loss of accuracy is certified to be small.

The candidates are put in order on some problems, certified on others, and the one that is picked is
looked at on problems that had no say (`dto.calibration.risk`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dto.calibration.replay import Point, Sweep, candidates, check, statics, sweep
from dto.calibration.risk import Split, certify, order, split
from dto.errors import DtoError, RecipeError, disk_errors
from dto.recipe import ExitSettings, Recipe, load_recipe
from dto.reporting.evaluation import MAX_FAILED
from dto.reporting.pictures import COLOURS, INK, error_bars
from dto.reporting.positions import Reliability, least_off
from dto.runs import manifest
from dto.runs.manifest import without_nan
from dto.runs.run import settings_of
from dto.studies.trace import read_traces


def draw(
    path: Path,
    title: str,
    points: Sequence[Point],
    picked: ExitSettings | None,
    reliable: Reliability | None,
) -> None:
    """Write a PNG; `points` begin with `none`. The same figures give the same bytes.

    Exits that differ only in threshold (or in the number of equal answers) share one line.
    """
    figure = Figure(figsize=(12.0, 6.4), dpi=150, layout="constrained")
    curve, diagram = figure.subplots(1, 2, width_ratios=[1.7, 1.0])
    _curve(curve, points, picked)
    _reliability(diagram, reliable)
    for axes in (curve, diagram):
        axes.grid(color="#e5e5e5", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=9)
    figure.legend(loc="outside lower left", frameon=False, fontsize=7.5, ncols=4)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=INK)
    figure.savefig(path, metadata={"Software": None})


def _curve(axes: Axes, points: Sequence[Point], picked: ExitSettings | None) -> None:
    families: dict[str, list[Point]] = {}
    for point in points[1:]:
        families.setdefault(_family(point.exit), []).append(point)
    for index, (family, members) in enumerate(families.items()):
        members.sort(key=lambda point: point.tokens)
        axes.plot(
            [point.tokens for point in members],
            [100 * point.accuracy for point in members],
            color=COLOURS[index % len(COLOURS)],
            linestyle=("-", "--", ":", "-.")[index // len(COLOURS) % 4],
            marker=".",
            markersize=4,
            linewidth=0.9,
            label=family,
        )
    marked = [(points[0], "none", "s")]
    marked += [(each, f"picked: {each.exit.name}", "*") for each in points if each.exit == picked]
    for point, label, marker in marked:
        low, high = point.accuracy - point.accuracy_low, point.accuracy_high - point.accuracy
        axes.errorbar(
            point.tokens,
            100 * point.accuracy,
            yerr=[[100 * low], [100 * high]],
            fmt=marker,
            markersize=12 if marker == "*" else 6,
            color=INK,
            elinewidth=1.0,
            capsize=2.5,
            label=label,
        )
    axes.set_xlim(left=0)
    axes.set_xlabel("tokens per question (thinking, answer, trials)", color=INK)
    axes.set_ylabel("accuracy, %", color=INK)


def _family(exit: ExitSettings) -> str:
    if exit.policy == "static":
        return "static"
    knob = f" {exit.confidence}" if exit.policy == "deer" else ""
    extra = f" from {exit.min_thinking}" * (exit.min_thinking > 0)
    extra += f" cooldown {exit.cooldown}" * (exit.cooldown > 0)
    return f"{exit.policy} {exit.monitor} {exit.inducer}{knob}{extra}"


def _reliability(axes: Axes, reliable: Reliability | None) -> None:
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle="--")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("confidence of a trial answer", color=INK)
    axes.set_ylabel("share that is right", color=INK)
    if reliable is None or not reliable.trials:
        axes.set_title("no trials", loc="left", fontsize=9, color=INK)
        return
    bins = reliable.bins
    error_bars(
        axes,
        [bin.confidence for bin in bins],
        [bin.accuracy for bin in bins],
        fmt="o-",
        markersize=4,
        linewidth=1.0,
        capsize=2.5,
        color=COLOURS[1],
    )
    axes.set_title(
        f"{reliable.monitor} {reliable.inducer} {reliable.confidence}: ECE {reliable.ece:.3f}, "
        f"{reliable.trials:,} trials",
        loc="left",
        fontsize=9,
        color=INK,
    )


POLICY = "calibrated"


@dataclass(frozen=True, slots=True)
class Tested:
    """A candidate that was tested: its p-value and its loss on the problems that certify."""

    exit: str
    p: float
    loss: float
    certified: bool


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was asked for, what was certified, and what the held-out problems say of it.

    Where `policy` is not `none`: with probability at least 1 - `error` over the draw of the
    problems that certify, its expected paired loss of accuracy is below `max_loss`, on further
    problems drawn alike, for the same model and sampling, as far as requests do not fail. The loss
    of a problem is the mean over its samples. `points` are all exits over the held-out problems,
    `none` first.
    """

    name: str
    max_loss: float
    error: float
    policy: ExitSettings
    reason: str  # why it is `none`
    split: Split
    failed: int
    tested: tuple[Tested, ...]
    held_out: Point
    base: Point
    points: tuple[Point, ...]
    reliability: tuple[Reliability, ...]

    def as_json(self) -> dict[str, Any]:
        """The content of `calibration.json`."""
        data = asdict(self) | {
            "policy": self.policy.changed(),
            "split": {part: len(problems) for part, problems in self.split._asdict().items()},
            "held_out": self.held_out.as_json(),
            "base": self.base.as_json(),
            "points": [point.as_json() for point in self.points],
        }
        cleaned: dict[str, Any] = without_nan(data)
        return cleaned

    def __str__(self) -> str:
        parts = ", ".join(
            f"{len(problems):,} {part.replace('_', ' ')}"
            for part, problems in self.split._asdict().items()
        )
        lines = [f"{self.name}: problems: {parts}, {self.failed:,} failed"]
        if self.reason:
            return "\n".join([*lines, f"policy none: {self.reason}"])
        picked, base = self.held_out, self.base
        certificate = next(each for each in self.tested if each.exit == picked.exit.name)
        return "\n".join(
            [
                *lines,
                f"picked       {picked.exit.name}",
                f"certified    loss of accuracy ≤ {self.max_loss:g} with probability "
                f"≥ {1 - self.error:g} (p = {certificate.p:.2g}; "
                f"{sum(each.certified for each in self.tested)} candidates certified)",
                f"held out     loss {_interval(picked.loss, picked.loss_low, picked.loss_high)}: "
                f"accuracy {picked.accuracy:.3f} against {base.accuracy:.3f}, "
                f"{picked.tokens:,.0f} tokens against {base.tokens:,.0f}",
            ]
        )


def calibrate(run_directory: Path) -> Calibration:
    """Pick and certify a policy from a run's traces; write it below `RUN/calibrate`.

    `policy.yaml` is what `evaluate.exits` takes as `{file: …}`; `calibration.json` holds everything
    else, `calibration.png` its picture. Where nothing can be certified the policy is `none`, and
    both files say why.

    Raises:
        DtoError: the run has no traces, too few problems, or a setting is out of reach.
    """
    recipe = load_recipe(run_directory / "recipe.yaml")
    grid = list(candidates(recipe))
    swept = sweep(read_traces(run_directory), [*grid, *statics(recipe.trace)], recipe.trace)
    result = pick(swept, recipe, len(grid))
    directory = run_directory / "calibrate"
    with disk_errors(directory):
        directory.mkdir(exist_ok=True)
        manifest.write_text(directory / "policy.yaml", policy_text(result, recipe))
        text = json.dumps(result.as_json(), indent=2, ensure_ascii=False, allow_nan=False)
        manifest.write_text(directory / "calibration.json", text + "\n")
    draw(
        directory / "calibration.png",
        str(result).splitlines()[0],
        result.points,
        result.policy if not result.reason else None,
        _of(result),
    )
    return result


def pick(swept: Sweep, recipe: Recipe, count: int) -> Calibration:
    """The policy, from the first `count` exits of the sweep after `none`."""
    settings = recipe.calibrate
    parts = split(swept.problems, recipe.seed, settings.choose, settings.certify)
    if not all(parts):
        raise DtoError(
            f"{len(swept.problems):,} problems are too few for calibrate.choose, "
            "calibrate.certify and a held-out part: raise problems.dev"
        )
    problems = len(swept.problems) + swept.failed
    tested: list[Tested] = []
    certified: list[int] = []
    reason = ""
    if swept.failed > MAX_FAILED * problems:
        reason = f"{swept.failed:,} of {problems:,} problems have a request that failed"
    else:
        losses_EP = swept.losses(parts.choose)[1 : count + 1]
        tokens_E = swept.tokens(parts.choose)
        ranked = order(losses_EP, tokens_E[1 : count + 1], tokens_E[0], settings.max_loss)
        places = [place + 1 for place in ranked]
        losses_TP = swept.losses(parts.certify)[places]
        ps = certify(losses_TP, settings.max_loss, settings.error)
        for place, p, losses_P in zip(places, ps, losses_TP, strict=False):
            passed = p <= settings.error
            name = swept.exits[place].name
            tested.append(Tested(name, p, float(losses_P.mean()), passed))
            certified += [place] * passed
        if not tested:
            reason = "no candidate saves tokens"
        elif not certified:
            reason = (
                f"none can be certified to lose at most {settings.max_loss:g}: the best, "
                f"{tested[0].exit}, loses {tested[0].loss:+.3f} on {len(parts.certify):,} problems "
                f"(p = {tested[0].p:.2g}, needed {settings.error:g}). More problems or a larger "
                "calibrate.max_loss may do; an attempt after one that was looked at errs on its "
                "own account, so halve calibrate.error for it"
            )
    tokens_E = swept.tokens(parts.certify)
    best = min(certified, key=lambda place: (tokens_E[place], place), default=0)
    points = tuple(swept.point(place, parts.held_out) for place in range(len(swept.exits)))
    return Calibration(
        name=recipe.name,
        max_loss=settings.max_loss,
        error=settings.error,
        policy=swept.exits[best],
        reason=reason,
        split=parts,
        failed=swept.failed,
        tested=tuple(tested),
        held_out=points[best],
        base=points[0],
        points=points,
        reliability=swept.reliability,
    )


def policy_text(result: Calibration, recipe: Recipe) -> str:
    """The policy as YAML, under a comment that says what is certified of it, and for what."""
    model, sampling = recipe.model, recipe.evaluate
    revision = f" at revision {model.revision}" if model.revision else ""
    scope = (
        f"Holds for {model.name}{revision} on problems like those of {recipe.problems.source}, at "
        f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g}{sampling.further} and at "
        f"most {sampling.max_tokens:,} tokens; not for weights that were trained further."
    )
    comment = "\n".join(f"# {line}" for line in [*str(result).splitlines(), scope])
    settings = result.policy.changed() | {"name": POLICY}
    return f"{comment}\n{yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)}"


def _of(result: Calibration) -> Reliability | None:
    """The reliability of the confidence that the policy looks at, or of the one least off."""
    policy = result.policy
    own = (policy.monitor, policy.inducer, policy.confidence)
    if policy.policy == "deer":
        return next(
            each
            for each in result.reliability
            if (each.monitor, each.inducer, each.confidence) == own
        )
    return least_off(result.reliability)


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


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
