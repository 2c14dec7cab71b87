"""Pick the early exit that saves most while its loss of accuracy is certified to be small.

The candidates are put in order on some problems, certified on others, and the one that is picked is
looked at on problems that had no say (`dto.calibration.risk`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from dto.calibration.picture import draw
from dto.calibration.risk import Split, certify, order, split
from dto.calibration.sweep import Point, Sweep, candidates, statics, sweep
from dto.errors import DtoError, disk_errors
from dto.recipe import ExitSettings, Recipe, load_recipe
from dto.reporting.evaluation import MAX_FAILED
from dto.reporting.positions import Reliability, least_off
from dto.reporting.report import without_nan
from dto.runs import manifest
from dto.stages.trace import read_traces

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
