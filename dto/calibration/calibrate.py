"""Choose the early exit that saves most among those certified to lose little accuracy.

Some problems order the candidates, others certify them, and held-out problems check the chosen one
(`dto.calibration.risk`). `dto evaluate --replay` shows all candidates, without a certificate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

import yaml

from dto.calibration.replay import Sweep, candidates, check, statics, sweep
from dto.calibration.risk import Split, certify, order, problems_needed, split
from dto.errors import DtoError, RecipeError, disk_errors
from dto.exits.deer import Deer
from dto.recipe import Recipe
from dto.reporting.evaluation import MAX_FAILED, Figures
from dto.reporting.pictures import front, pareto_front, save
from dto.reporting.positions import Reliability
from dto.reporting.table import Table, arms_table, token_filters, write_json
from dto.runs import manifest
from dto.runs.reader import RunReader
from dto.runs.run import settings_of
from dto.settings import CalibrateSettings, ExitPolicy
from dto.statistics import shown
from dto.studies.trace import read_traces

POLICY = "calibrated"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tested exit: its p-value and its loss on the certifying problems."""

    exit: str
    p: float
    loss: float
    certified: bool


@dataclass(frozen=True, slots=True)
class Calibration:
    """The chosen policy, its certificate, and its figures on the held-out problems.

    Unless `policy` is `none`: with probability at least 1 - `error` over the draw of the certifying
    problems, its expected paired loss of accuracy is below `max_loss` on new problems of the same
    distribution, for the same model and sampling, without failed requests. The loss of a problem is
    the mean over its samples. `points` are all exits on the held-out problems, `none` first.
    """

    name: str
    max_loss: float
    error: float
    policy: ExitPolicy
    reason: str  # why the policy is `none`
    split: Split
    failed: int
    tested: tuple[Candidate, ...]
    held_out: Figures
    points: tuple[Figures, ...]
    reliability: tuple[Reliability, ...]

    @property
    def base(self) -> Figures:
        """The figures without an exit on the held-out problems."""
        return self.points[0]

    def as_json(self) -> dict[str, Any]:
        """The content of `calibration.json`."""
        split = {part: len(problems) for part, problems in self.split._asdict().items()}
        return asdict(self) | {"policy": self.policy.changed(), "split": split}

    def __str__(self) -> str:
        parts = ", ".join(
            f"{len(problems):,} {part.replace('_', ' ')}"
            for part, problems in self.split._asdict().items()
        )
        lines = [f"{self.name}: problems: {parts}, {self.failed:,} failed"]
        if self.reason:
            return "\n".join([*lines, f"policy none: {self.reason}"])
        picked, base = self.held_out, self.base
        proof = next(row for row in self.tested if row.exit == picked.exit)
        lines += [
            f"picked       {picked.exit}",
            f"certified    loss of accuracy ≤ {100 * self.max_loss:g} points with "
            f"probability ≥ {100 * (1 - self.error):g} % (p = {proof.p:.2g}; "
            f"{sum(row.certified for row in self.tested)} candidates certified)",
            f"held out     gain {picked.gain:+%} points: accuracy "
            f"{shown(picked.accuracy.value, '%')} % against {shown(base.accuracy.value, '%')} %, "
            f"{picked.tokens.value:,.0f} tokens against "
            f"{base.tokens.value:,.0f}",
        ]
        if isinstance(self.policy, Deer):
            kind = (self.policy.monitor, self.policy.inducer, self.policy.confidence)
            lines += [
                f"confidence   off by {row.ece:.1%} on average over {row.trials:,} trials, of "
                f"which {row.accuracy:.1%} are right (expected calibration error)"
                for row in self.reliability
                if (row.monitor, row.inducer, row.confidence) == kind
            ]
        return "\n".join(lines)


def check_problems(recipe: Recipe, problems: int) -> str:
    """Say how many of the dev problems certify an exit.

    Raises DtoError if so few certify none, even one that loses no answer.
    """
    settings = recipe.calibrate
    goal = (
        f"to certify a loss of at most {100 * settings.max_loss:g} points "
        f"(calibrate.max_loss) with probability {100 * (1 - settings.error):g} %"
    )
    needed = problems_needed(settings.max_loss, settings.error)
    if needed is None or not settings.certify:
        raise DtoError(f"no number of problems is enough {goal}: raise calibrate.max_loss")
    certifying = _certifying(problems, settings)
    if certifying >= needed:
        return f"{certifying:,} of {problems:,} dev problems certify; {needed:,} are needed {goal}"
    enough = ceil(needed / settings.certify)
    while _certifying(enough, settings) < needed:
        enough += 1
    raise DtoError(
        f"{problems:,} dev problems are too few {goal}, even for an exit "
        f"that changes no grade: {certifying:,} "
        f"of them certify (calibrate.certify), {needed:,} are needed. Set problems.dev to "
        f"{enough:,} or more, or raise calibrate.max_loss; --force records them all the same, for "
        "`dto evaluate --replay`"
    )


def _certifying(problems: int, settings: CalibrateSettings) -> int:
    """How many of the problems certify, as `dto.calibration.risk.split` divides them."""
    first = round(settings.choose * problems)
    return min(problems, first + round(settings.certify * problems)) - first


def calibrate(run_directory: Path) -> Calibration:
    """Choose and certify a policy from a run's traces; write it to `RUN/calibrate`.

    `evaluate.exits` takes `policy.yaml` as `{file: …}`. `calibration.json` has everything else,
    `calibration.png` the picture. If nothing can be certified, the policy is `none`, and both files
    say why.

    Raises:
        DtoError: the run has no traces, too few problems, or lacks a recorded setting.
    """
    recipe = RunReader(run_directory).recipe
    grid = list(candidates(recipe))
    swept = sweep(read_traces(run_directory), [*grid, *statics(recipe.trace)], recipe.trace)
    result = pick(swept, recipe, len(grid))
    directory = run_directory / "calibrate"
    with disk_errors(directory):
        directory.mkdir(exist_ok=True)
        manifest.write_text(directory / "policy.yaml", policy_text(result, recipe))
        write_json(directory / "calibration.json", result.as_json())
    title = f"{result.name}, held-out problems: picked {result.policy.name}"
    _draw(directory, "calibration", title, result.points, result.held_out)
    return result


def pick(swept: Sweep, recipe: Recipe, count: int) -> Calibration:
    """Choose the policy among the first `count` exits of the sweep after `none`."""
    settings = recipe.calibrate
    parts = split(swept.problems, recipe.seed, settings.choose, settings.certify)
    if not all(parts):
        raise DtoError(
            f"{len(swept.problems):,} problems are too few for calibrate.choose, "
            "calibrate.certify and a held-out part: raise problems.dev"
        )
    problems = len(swept.problems) + swept.failed
    tested: list[Candidate] = []
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
            tested.append(Candidate(name, p, float(losses_P.mean()), passed))
            certified += [place] * passed
        if not tested:
            reason = "no candidate saves tokens"
        elif not certified:
            reason = (
                f"no candidate can be certified to lose at most "
                f"{100 * settings.max_loss:g} points: the best, {tested[0].exit}, loses "
                f"{shown(tested[0].loss, '%')} points on {len(parts.certify):,} problems "
                f"(p = {tested[0].p:.2g}, needed {settings.error:g}). More problems or a larger "
                "calibrate.max_loss may help; every further attempt carries its own risk, so halve "
                "calibrate.error for it"
            )
    tokens_E = swept.tokens(parts.certify)
    best = min(certified, key=lambda place: (tokens_E[place], place), default=0)
    points = tuple(swept.figures(place, parts.held_out) for place in range(len(swept.exits)))
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
        points=points,
        reliability=swept.reliability,
    )


def policy_text(result: Calibration, recipe: Recipe) -> str:
    """The policy as YAML, under a comment with its certificate and the scope of that."""
    model, sampling = recipe.model, recipe.evaluate
    revision = f" at revision {model.revision}" if model.revision else ""
    scope = (
        f"Holds for {model.name}{revision} on problems like those of {recipe.problems.source}, at "
        f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g}{token_filters(sampling)} "
        f"and at most {sampling.max_tokens:,} tokens; not after further training of its weights."
    )
    comment = "\n".join(f"# {line}" for line in [*str(result).splitlines(), scope])
    settings = result.policy.changed() | {"name": POLICY}
    return f"{comment}\n{yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)}"


@dataclass(frozen=True, slots=True)
class Curve:
    """Every exit on all recorded problems, `none` first; `skipped` names those not replayed.

    Differences among so many exits are partly luck: `dto calibrate` certifies one.
    """

    name: str
    points: tuple[Figures, ...]
    reliability: tuple[Reliability, ...]
    skipped: tuple[str, ...]

    def __str__(self) -> str:
        return self.table().text()

    def table(self) -> Table:
        """A table of `none` and the exits that no other beats in accuracy and tokens."""
        base = self.points[0]
        columns = {"exit": "exit", "accuracy % (95 %)": "accuracy", "gain, points (95 %)": "gain",
                   "tokens (95 %)": "tokens"}  # fmt: skip
        return arms_table(
            (base, *pareto_front(self.points)),
            columns,
            f"{self.name}: {len(self.points):,} exits over {base.problems:,} problems, replayed",
            notes=self.skipped,
        )


def replay_run(run_directory: Path, recipe: Recipe) -> Curve:
    """Replay the grid of `recipe.calibrate`, the recorded shares, and `evaluate.exits`.

    Writes `replay.json` and `replay.png` to `RUN/replay`, and names exits that cannot be replayed.
    Raises DtoError if the run has no traces, or they were recorded with different settings.
    """
    done = RunReader(run_directory).manifest("trace")
    if done is not None:
        recorded, now = done["config"], settings_of(recipe)
        same = {key: now[key] for key in recorded if key in now}
        if differing := manifest.differences({key: recorded[key] for key in same}, same):
            raise DtoError(
                f"the traces of {run_directory} were recorded with different settings: "
                f"{', '.join(differing)}; use those, or record them again with dto calibrate"
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
    points = [swept.figures(place, swept.problems) for place in range(len(swept.exits))]
    result = Curve(recipe.name, tuple(points), swept.reliability, tuple(skipped))
    directory = run_directory / "replay"
    with disk_errors(directory):
        directory.mkdir(exist_ok=True)
        write_json(directory / "replay.json", result)
    _draw(directory, "replay", result.table().title, points, points[0])
    return result


def _draw(
    directory: Path, name: str, title: str, points: Sequence[Figures], picked: Figures
) -> None:
    """Draw `none`, the picked exit, and the exits that no other beats in accuracy and tokens."""
    shown = {point.exit: point for point in (points[0], picked, *pareto_front(points))}
    paths = (directory / f"{name}.png", directory / f"{name}.svg")
    save(lambda: front([*shown.values()], title), *paths)
