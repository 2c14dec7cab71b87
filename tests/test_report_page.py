"""The page of a report: whole without a network, escaped, and without the names of this machine."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D

from dto import tables
from dto.api import find_recipe
from dto.cli import app
from dto.commands import parse_changes
from dto.recipe import Recipe, load_recipe, make_recipe
from dto.records import (
    EvaluationRow,
    ExitEstimate,
    OptimizedTrajectory,
    Outcome,
    Problem,
    Segment,
    Span,
    Trajectory,
    Trial,
)
from dto.redact import public_names
from dto.reporting.page import Section, render_page
from dto.reporting.pictures import front, legend_marks
from dto.reporting.positions import exit_positions, histogram, trial_reliability
from dto.reporting.report import measure
from dto.reporting.table import Table
from dto.reporting.training import training_curve
from dto.reporting.write import TASK, command, outcome, report, reproduce_section
from dto.runs.reader import RunReader
from tests import warm

PROBLEMS, SAMPLES = 6, 2
VOID = {"meta", "link", "img", "br", "path", "use"}
EXITS = [
    {"name": "none"},
    {"name": "deer", "policy": "deer"},
    {"name": "half", "policy": "static"},
]


def answers(model: str, exit: str) -> list[EvaluationRow]:
    """Full responses think 100 tokens; deer leaves after 30, but sample 1 of the last problem."""
    rows = []
    for problem in range(PROBLEMS):
        for sample in range(SAMPLES):
            stays = exit == "none" or (exit == "deer" and (problem, sample) == (PROBLEMS - 1, 1))
            thinking = 100 if stays else 30
            trials: tuple[Trial, ...] = ()
            if exit == "deer":
                trials = (
                    Trial(10, 0.55, "1", "wrong", 3),
                    Trial(30, 0.95, "2", "correct", 3),
                    Trial(40, 0.95, "", "failed", 3),
                )
            rows.append(
                EvaluationRow(
                    id=EvaluationRow.make_id(model, exit, f"{problem:03d}", sample),
                    model=model,
                    exit=exit,
                    problem_id=f"{problem:03d}",
                    sample=sample,
                    seed=sample,
                    grade="correct" if problem % 3 else "wrong",
                    answer="2",
                    reason="",
                    exit_reason="closed" if stays else "policy",
                    thinking_tokens=thinking,
                    answer_tokens=10,
                    trial_tokens=9 if trials else 0,
                    tokens=thinking + 10 + (9 if trials else 0),
                    prompt_tokens=10,
                    attention_flops=100.0 * thinking,
                    trials=trials,
                )
            )
    return rows


def write(run: Path, stage: str, record: type[Any], rows: list[Any], **done: Any) -> None:
    directory = run / stage
    directory.mkdir(parents=True)
    tables.write(directory / "rows.parquet", record, sorted(rows, key=lambda row: str(row.id)))
    content = f"hash of {stage}"
    manifest = {"content": content, "rows": len(rows), "dropped": {}, "seconds": 1.5,
                "usage": {"generated": 100}, "versions": {"dto": "0.1.0"},
                "git": {"commit": "abc123", "dirty": False}}  # fmt: skip
    (directory / "manifest.json").write_text(json.dumps(manifest | done))


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """An evaluated run as the runner leaves it; without `optimized` it was only evaluated."""

    def make(
        settings: dict[str, Any] | None = None,
        optimized: bool = True,
        exits: list[dict[str, Any]] = EXITS,
        models: tuple[str, ...] = ("base", "trained"),
    ) -> Path:
        run = tmp_path / "run"
        data = {"name": "toy", "evaluate": {"samples": SAMPLES, "exits": exits, "models": models}}
        changes = settings or {}
        recipe = make_recipe(data, changes)
        run.mkdir()
        (run / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
        problems = [Problem(f"{n:03d}", "toy", "test", f"{n}?", "2") for n in range(PROBLEMS)]
        write(run, "problems", Problem, problems)
        if optimized:
            stages(run)
        rows = [row for model in models for exit in exits for row in answers(model, exit["name"])]
        write(run, "evaluate", EvaluationRow, rows)
        return run

    return make


def stages(run: Path) -> None:
    """Four trajectories of 40 thinking tokens, cut after 10, 20 and 40 of them; one is dropped."""
    sampled, segments, versions = [], [], []
    outcomes: list[tuple[int, Outcome]] = [(0, "shortened"), (1, "shortened"), (3, "unchanged")]
    for number in range(4):
        row_id = Trajectory.make_id("000", number)
        sampled.append(
            Trajectory(
                row_id, "000", "nano", number, number, (1,), (5,) * 50, "sampled", "text",
                Span(0, 4), Span(4, 4), Span(2, 42), "stop", "correct",
            )
        )  # fmt: skip
        for index in range(4):
            span = Span(2 + 10 * index, 12 + 10 * index)
            segments.append(
                Segment(Segment.make_id(row_id, index), row_id, index, span, Span(index, index + 1),
                        span.end, "", "opening")
            )  # fmt: skip
        if number < len(outcomes):
            exit, outcome = outcomes[number]
            versions.append(
                OptimizedTrajectory(
                    row_id, row_id, "000", exit, (0,), (5,), "t", Span(0, 1), Span(0, 1), "2", 1.0,
                    50, 20, 9.0, 4.0, outcome,
                )
            )  # fmt: skip
    write(run, "sample", Trajectory, sampled)
    write(run, "segment", Segment, segments)
    write(run, "optimize", OptimizedTrajectory, versions, dropped={"no_exit": 1})
    write(run, "train", Problem, [], dropped={})
    dropped = [{"id": "a", "reason": "empty_response"}, {"id": "b", "reason": "too_long"}]
    (run / "train" / "dropped.jsonl").write_text("\n".join(map(json.dumps, dropped)))


def page(run: Path) -> str:
    report(run)
    return (run / "report" / "report.html").read_text("utf-8")


class Outline(HTMLParser):
    """Open tags, ids and addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.addresses: list[str] = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs, closed=True)

    def handle_starttag(
        self, tag: str, attrs: list[tuple[str, str | None]], closed: bool = False
    ) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids[str(value)] += 1
            if name in ("href", "src", "xlink:href"):
                self.addresses.append(str(value))
            assert not name.startswith("on"), (tag, name)
        if not closed and tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def outline(html: str) -> Outline:
    found = Outline()
    found.feed(html)
    assert found.open == []
    return found


@pytest.mark.slow
def test_a_page_has_all_sections_and_no_network(make_run: Callable[..., Path]) -> None:
    html = page(make_run())
    found = outline(html)
    sections = {"front", "difficulty", "exits", "calibration", "cost", "funnel", "reproduce"}
    assert sections <= set(found.ids)
    assert "Left out" not in html
    assert found.tags["svg"] == 4 and "script" not in found.tags and "img" not in found.tags
    assert max(found.ids.values()) == 1
    assert {each for each in found.addresses if not each.startswith("#")} == {"data:,"}
    assert all(each[1:] in found.ids for each in found.addresses if each.startswith("#"))
    assert "://" not in html
    assert "default-src 'none'" in html


@pytest.mark.slow
def test_pictures_take_their_colours_from_the_page(make_run: Callable[..., Path]) -> None:
    html = page(make_run())
    pictures = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert all("var(--ink)" in each for each in pictures)
    assert not [each for each in pictures if re.search(r"#[0-9a-f]{6}\b", each)]
    named = {name for each in pictures for name in re.findall(r"var\(--(\w+)\)", each)}
    for name in named:  # in light and in dark
        assert len(re.findall(rf"--{name}: #", html)) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("drawn_anew")
def test_the_same_run_gives_the_same_page(make_run: Callable[..., Path]) -> None:
    run = make_run()
    assert page(run) == page(run)


@pytest.mark.slow
def test_a_model_that_equals_the_base_on_all_tasks_has_its_figures(
    make_run: Callable[..., Path],
) -> None:
    run = make_run({"evaluate.tasks": ["even.jsonl", "odd.jsonl"]}, exits=EXITS[:1])
    problems = [
        Problem(f"{n:03d}", ("even", "odd")[n % 2], "test", f"{n}?", "2") for n in range(PROBLEMS)
    ]
    write(run, "test", Problem, problems)
    html = page(run)
    assert "<span>trained</span><b>0 % fewer tokens</b>" in html
    mean = html[html.index("mean over 2 tasks") :].partition("</table>")[0]
    assert mean.count("+0.0 (+0.0…+0.0)") == 1 and mean.count("<td>–</td>") == 2


@pytest.mark.slow
def test_a_point_under_another_is_a_ring(make_run: Callable[..., Path]) -> None:
    rows = measure(make_run(exits=EXITS[:1])).rows  # the trained model answers as the base does
    base, trained = legend_marks(front(rows).axes[0]).values()
    assert base.get_markerfacecolor() == "none" != trained.get_markerfacecolor()
    assert base.get_markersize() > trained.get_markersize()
    (alone,) = legend_marks(front(rows[:1]).axes[0]).values()
    assert alone.get_markersize() == trained.get_markersize()


def cards(html: str) -> str:
    return html[html.index('<div class="headlines">') :].partition("<nav")[0]


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [[], ["even.jsonl", "odd.jsonl"]])
def test_cards_have_the_accuracies(make_run: Callable[..., Path], tasks: list[str]) -> None:
    run = make_run({"evaluate.tasks": tasks}, exits=EXITS[:1])
    if tasks:
        write(run, "test", Problem, [
            Problem(f"{n:03d}", ("even", "odd")[n % 2], "test", "?", "2") for n in range(PROBLEMS)
        ])  # fmt: skip
    report(run)
    figures = measure(run)
    row = next(row for row in figures.averages or figures.rows if row.model == "trained")
    shown = cards((run / "report" / "report.html").read_text("utf-8"))
    assert "accuracy 66.7 → 66.7 %: +0.0 (+0.0…+0.0) points, no difference shown" in shown
    assert f"{row.accuracy:%} % right" in shown


@pytest.mark.slow
def test_without_a_training_nothing_is_said_of_one(make_run: Callable[..., Path]) -> None:
    run = make_run({"train.method": "none"}, exits=EXITS[:1])
    train(run, kept_step=0)
    html = page(run)
    assert "<span>trained</span>" not in html and "breaks even" not in html
    assert "Nothing was trained (train.method is none)" in html
    assert "The break-even is unknown" not in html


@pytest.mark.slow
def test_every_drop_reason_is_there(make_run: Callable[..., Path]) -> None:
    html = page(make_run())
    assert "1 no_exit (no boundary passed the threshold)" in html
    assert "1 empty_response" in html and "1 too_long" in html


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {},
            "share is at most 0.65 (below) or at least 0.85 (above)",
        ),
        ({}, "estimate.error_scan bounds them jointly"),
        ({"estimate.error_scan": 0.1}, "passes at any of them with probability at most 0.1"),
        (
            {"estimate.method": "fixed"},
            "more than 0.75 of its 16 rollouts are right. This decision has no stated error",
        ),
    ],
)
def test_the_error_of_estimates_is_stated(
    make_run: Callable[..., Path], settings: dict[str, Any], said: str
) -> None:
    run = make_run(settings)
    assert said not in page(run), "nothing was estimated"
    row = ExitEstimate("000/000/00000", "000/000", 0, 10, 10, 0, 0, 1.0, 0.7, 1.0, "above", 20)
    write(run, "estimate", ExitEstimate, [row])
    assert said in page(run)


def test_sections_without_data_are_omitted_with_a_reason(make_run: Callable[..., Path]) -> None:
    html = page(make_run(optimized=False, exits=[{"name": "none"}], models=("base",)))
    assert {"exits", "calibration", "difficulty"}.isdisjoint(outline(html).ids)
    titles = ("Tokens saved by difficulty", "Exit positions", "Calibration of the confidence")
    for title in titles:
        assert f"Not shown: <em>{title}</em>" in html


@pytest.mark.slow
def test_text_is_escaped(make_run: Callable[..., Path]) -> None:
    bad = "<script>alert(1)</script>"
    exits = [*EXITS[:2], {"name": f"$x_{{1${bad}", "policy": "deer"}]
    html = page(make_run({"name": f'"><img src=x onerror="x">{bad}'}, exits=exits))
    found = outline(html)
    assert "script" not in found.tags and "img" not in found.tags
    assert "&lt;script&gt;" in html


@pytest.mark.slow
def test_nothing_names_the_machine(make_run: Callable[..., Path], tmp_path: Path) -> None:
    local = tmp_path / "joes models"
    local.mkdir()
    places = {
        "model.name": str(local),
        "model.engine": "openai",
        "model.server": "http://gpu17.internal.example:8000/v1",
        "model.family": "default",
        "problems.source": "/home/joe/secret/questions.jsonl",
        "problems.test_source": "data/of/joe/more.parquet",
        "sample.imported": "~/joe/rows.jsonl",
        "judge.name": "C:\\Users\\joe\\judge",
        "evaluate.tasks": ["/home/joe/toy.jsonl"],
    }
    further = str(tmp_path / "checkpoints" / "step-12")
    run = make_run(places, models=("base", further))
    write(run, "test", Problem, [])
    html = page(run)
    hidden = ("/home", "gpu17", "joe/", "Users", str(tmp_path), "checkpoints", "secret")
    assert [word for word in hidden if word in html] == []
    picture = (run / "report" / "report.svg").read_text("utf-8")  # names stand in its comments
    assert "step-12" in picture and not [word for word in hidden if word in picture]
    shown = ("joes models", "questions.jsonl", "more.parquet", "rows.jsonl", "judge", "step-12")
    assert [word for word in shown if word not in html] == []


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"),
        ("nano", "nano"),
        ("/srv/models/mine", "mine"),
        ("/srv/models/mine/", "mine"),
        ("./mine", "mine"),
        ("../a/mine", "mine"),
        ("~/mine", "mine"),
        ("data/mine.jsonl", "mine.jsonl"),
        ("runs/a/train/model", "model"),
        ("file:///srv/mine.json", "mine.json"),
        ("C:\\models\\mine", "mine"),
        ("/", "folder"),
    ],
)
def test_a_path_is_shown_by_its_last_part(name: str, public: str) -> None:
    assert public_names([name]) == {name: public}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seed": 3},
        {"train.learning_rate": 1e-6, "model.system": "Think, but not 'too' much.\n$HOME"},
        {"judge": {"name": "org/judge", "engine": "openai"}, "prune.judge": "llm"},
        {"evaluate.exits": [{"name": "none"}, {"name": "a b", "policy": "budget", "budget": 7}]},
        {"evaluate.tasks": ["math500", "gsm8k"], "evaluate.limit": 5, "sample.top_p": 0.95},
        {"name": "my own", "evaluate.samples": 4},
    ],
)
def test_the_command_gives_the_same_recipe(changes: dict[str, Any], tmp_path: Path) -> None:
    recipe = load_recipe("pipelines/quickstart.yaml", changes)
    section = reproduce_section(RunReader(tmp_path, recipe))
    assert "shown by the last part" not in " ".join(section.text)
    dto, run, target = shlex.split(section.code)
    assert (dto, run) == ("dto", "run") and section.folded is not None
    saved = tmp_path / target
    saved.write_text(section.folded[1])
    assert load_recipe(saved) == recipe


def test_programs_are_allowed_where_they_were(tmp_path: Path) -> None:
    problem = Problem("a", "toy", "test", "?", "{}", rule="code")
    write(tmp_path, "problems", Problem, [problem])
    assert command(RunReader(tmp_path, Recipe(name="toy"))).endswith("--allow-code-execution")


def finish(run: Path, *stages: str) -> None:
    for stage in stages:
        (run / stage).mkdir(parents=True)
        (run / stage / "manifest.json").write_text('{"rows": 1}')


BEFORE_TRAINING = ("problems", "sample", "segment", "estimate", "optimize", "prune", "pair")
RUN, REPORT = "dto run quickstart.yaml", "dto report runs/quickstart"


@pytest.mark.parametrize(
    ("changes", "finished", "commands"),
    [
        ({}, (*BEFORE_TRAINING, "train", "evaluate"), [RUN]),
        # `dto run` would train.
        ({}, ("problems", "evaluate"), ["dto evaluate quickstart.yaml", REPORT]),
        (
            {},
            ("problems", "sample", "segment", "evaluate"),
            [
                "dto sample quickstart.yaml",
                "dto segment runs/quickstart",
                "dto evaluate runs/quickstart",
                REPORT,
            ],
        ),
        # Nothing trained is evaluated, so that `dto run` needs no training.
        (
            {"evaluate.models": ["base"]},
            ("problems", "test", "evaluate"),
            [RUN],
        ),
        # `dto run` would not sample.
        (
            {"evaluate.models": ["base"]},
            ("problems", "sample", "evaluate"),
            [RUN, "dto sample runs/quickstart", REPORT],
        ),
        ({"compare.methods": ["sft"]}, ("problems", "sample"), [RUN]),
    ],
)  # fmt: skip
def test_the_commands_do_what_was_done(
    changes: dict[str, Any], finished: tuple[str, ...], commands: list[str], tmp_path: Path
) -> None:
    finish(tmp_path, *finished)
    recipe = load_recipe("pipelines/quickstart.yaml", changes)
    assert command(RunReader(tmp_path, recipe)) == "\n".join(commands)


@pytest.mark.slow
def test_tables_and_pictures_have_names_for_those_who_do_not_see_them(
    make_run: Callable[..., Path],
) -> None:
    html = page(make_run())
    regions = re.findall(
        r'<div class="scroll" tabindex="0" role="region" aria-label="([^"]*)"', html
    )
    assert len(regions) == html.count("<table") and all(regions)
    assert all(re.findall(r'<figure role="img" aria-label="([^"]*)"', html))
    assert not re.search(r"<th[^>]*></th>", html)


@pytest.mark.slow
def test_the_fewest_tokens_may_be_those_of_another_model(make_run: Callable[..., Path]) -> None:
    html = page(make_run(models=("base", "nano-control")))
    assert "fewest tokens without a shown loss" in html


def test_a_legend_shows_points_without_their_bars() -> None:
    figure = Drawing()
    axes = figure.add_subplot()
    axes.errorbar([1], [1], yerr=[1], fmt="o", label="a")
    axes.plot([0], [0], label="b")
    marks = legend_marks(axes)
    assert sorted(marks) == ["a", "b"]
    assert all(isinstance(mark, Line2D) for mark in marks.values())


@pytest.mark.slow
def test_stages_of_another_commit_are_named(make_run: Callable[..., Path]) -> None:
    run = make_run()
    done = json.loads((run / "sample" / "manifest.json").read_text())
    done["git"] = {"commit": "other", "dirty": True}
    (run / "sample" / "manifest.json").write_text(json.dumps(done))
    html = page(run)
    assert "Computed with another version or commit: sample." in html
    assert "git checkout abc123" in html and "The checkout held changes" not in html


def test_where_the_exits_lie(make_run: Callable[..., Path]) -> None:
    run = make_run()
    found = {(each.stage, each.model, each.group): each for each in exit_positions(RunReader(run))}
    assert list(found) == [
        ("optimize", "", "shortened"), ("optimize", "", "unchanged"),
        ("evaluate", "base", "deer"), ("evaluate", "trained", "deer"),
    ]  # fmt: skip
    cut = found["optimize", "", "shortened"]
    assert (cut.exits, cut.without, cut.median) == (2, 1, 0.375)
    assert [place for place, count in enumerate(cut.counts) if count] == [4, 9]
    assert found["optimize", "", "unchanged"].counts[-1] == 1
    deer = found["evaluate", "base", "deer"]
    assert (deer.exits, deer.without, deer.median) == (11, 1, 0.3)
    assert deer.counts[5] == 11


@pytest.mark.slow
def test_trajectories_without_an_optimized_version_are_counted_once(
    make_run: Callable[..., Path],
) -> None:
    result = report(make_run())
    section = next(part for part in result.sections() if part.title == "Exit positions")
    assert isinstance(section, Section)
    assert [row[:4] for row in section.tables[0].rows] == [
        ("optimized", "shortened", 2, None),
        ("optimized", "unchanged", 1, None),
        ("optimized", "none", None, 1),
        ("base", "deer", 11, 1),
        ("trained", "deer", 11, 1),
    ]


@pytest.mark.slow
def test_early_exits_only_have_no_row_for_optimized(make_run: Callable[..., Path]) -> None:
    result = report(make_run(optimized=False))
    section = next(part for part in result.sections() if part.title == "Exit positions")
    assert isinstance(section, Section)
    assert [row[:4] for row in section.tables[0].rows] == [
        ("base", "deer", 11, 1), ("trained", "deer", 11, 1),
    ]  # fmt: skip


def test_a_table_without_rows_is_not_shown() -> None:
    empty = Table("By difficulty", ("right alone", "k"), ())
    folded = Table("Hashes", ("what", "hash"), (), folded=True)
    full = Table("All", ("k", "tokens"), (("1", 2.0),))
    section = Section("batch", "Together", tables=(empty, full, folded))
    html = render_page("toy", "", (), [section])
    for text in (str(section), html):
        assert "By difficulty" not in text and "Hashes" not in text and "All" in text
    assert html.count("<table") == 1


@pytest.mark.parametrize(
    ("share", "place"), [(0.0, 0), (0.05, 0), (0.051, 1), (0.5, 9), (1.0, 19), (0.999, 19)]
)
def test_an_exit_on_a_border_belongs_to_the_part_before(share: float, place: int) -> None:
    assert [n for n, count in enumerate(histogram([share])) if count] == [place]


def test_graded_trials_are_set_against_their_confidence(make_run: Callable[..., Path]) -> None:
    run = make_run()
    found = trial_reliability(RunReader(run))
    assert [(each.model, each.exit) for each in found] == [("base", "deer"), ("trained", "deer")]
    held = found[0].reliability
    assert (held.trials, held.accuracy) == (2 * PROBLEMS * SAMPLES, 0.5)
    assert [(bin.trials, bin.accuracy.value) for bin in held.bins] == [(12, 0.0), (12, 1.0)]
    assert held.ece == pytest.approx((0.55 + 0.05) / 2)


@pytest.mark.slow
def test_figures_are_in_the_json_too(make_run: Callable[..., Path]) -> None:
    run = make_run()
    report(run)
    data = json.loads((run / "report" / "report.json").read_text())
    assert {each["group"] for each in data["exit_positions"]} == {"shortened", "unchanged", "deer"}
    assert [each["exit"] for each in data["trials"]] == ["deer", "deer"]


HISTORY = [
    (0, 0.70, 200.0, None, (1.0, 0.0, 0.0, 0.0)),
    (8, 0.74, 120.0, 1.25, (0.9, 0.1, 0.0, 0.0)),
    (16, 0.72, 60.0, 1.0, (0.25, 0.5, 0.125, 0.125)),
]


def train(
    run: Path, *, kept_step: int = 16, old: bool = False, model: bool = True, reason: str = ""
) -> None:
    """A finished training of 16 steps; `old`: recorded by an earlier version."""
    folder = run / "train"
    folder.mkdir(exist_ok=True)
    reason = reason or f"step {kept_step} is kept: it is short"
    (folder / "manifest.json").write_text(
        json.dumps({"kept_step": kept_step, "steps": 16, "reason": reason, "usage": {}})
    )
    history: list[dict[str, Any]] = []
    for step, accuracy, tokens, loss, shares in HISTORY:
        score = {"step": step, "accuracy": accuracy, "standard_error": 0.02, "responses": 80}
        history.append({**score, "tokens_mean": tokens, "truncated": 0.0, "loss": loss})
        if not old:
            thinking = dict(zip(("valid", "empty", "missing", "truncated"), shares, strict=True))
            history[-1] |= {
                "low": accuracy - 0.06, "high": accuracy + 0.05,
                "tokens_low": tokens - 10, "tokens_high": tokens + 12,
                "thinking": {**thinking, "accuracy": 0.8, "low": 0.7, "high": 0.9},
            }  # fmt: skip
    texts = {"history.jsonl": history}
    if not old:
        texts["steps.jsonl"] = [{"step": n + 1, "loss": 2 - n / 16} for n in range(16)]
    for name, rows in texts.items():
        (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    if model:
        (folder / "model").mkdir(exist_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True], ids=["this version", "an earlier one"])
def test_the_training_curve(make_run: Callable[..., Path], old: bool) -> None:
    run = make_run()
    train(run, old=old)
    result = report(run)
    html = (run / "report" / "report.html").read_text("utf-8")
    assert outline(html).ids["training"] == 1
    section = html[html.index('<h2 id="training">') :].partition("</section>")[0]
    assert section.count("<svg") == 1 and "16 (kept)" in section
    assert "72.0 (66.0–77.0)" in section if not old else "72.0 (68.1–75.9)" in section
    assert ("60.0 (50.0–72.0)" in section) != old
    assert ("25.0" in section and "80.0 (70.0–90.0)" in section) != old
    fell = "valid thinking fell from 100.0 to 25.0 %; given valid thinking, 80.0 (70.0–90.0) %"
    assert (fell in section) != old
    curve = json.loads((run / "report" / "report.json").read_text())["training_curve"]
    points = curve["points"]
    assert [point["step"] for point in points] == [0, 8, 16]
    assert [point["kept"] for point in points] == [False, False, True]
    assert points[2]["tokens"]["low"] == (None if old else 50.0)
    assert points[1]["thinking"] == (
        None if old else {"valid": 0.9, "empty": 0.1, "missing": 0.0, "truncated": 0.0}
    )
    assert [row["loss"] for row in curve["losses"]] == (
        [] if old else [2 - n / 16 for n in range(16)]
    )
    text = str(result)
    assert "── Training curve" in text and "Training took 16 steps" in text


def test_a_long_curve_is_averaged(make_run: Callable[..., Path]) -> None:
    run = make_run()
    train(run)
    lines = [json.dumps({"step": n, "loss": float(n)}) + "\n" for n in range(1, 1001)]
    (run / "train" / "steps.jsonl").write_text("".join(lines) + '{"step": 1001, "lo')
    curve = training_curve(RunReader(run))
    assert curve is not None and curve.steps_a_point == 4 and len(curve.losses) == 250
    assert (curve.losses[0].step, curve.losses[0].loss) == (4, 2.5)
    assert (curve.losses[-1].step, curve.losses[-1].loss) == (1000, 998.5)


@pytest.mark.slow
def test_without_a_training_there_is_no_curve_and_nothing_to_use(
    make_run: Callable[..., Path],
) -> None:
    html = page(make_run(optimized=False))
    assert {"training", "use"}.isdisjoint(outline(html).ids)
    for title in ("Training curve", "Use it"):
        assert f"Not shown: <em>{title}</em>" in html


def options_of(name: str) -> set[str]:
    """The options of a command of dto."""
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    return {option for parameter in command.params for option in parameter.opts}


MODEL = {
    "model.context": 4096, "model.tensor_parallel": 2, "model.dtype": "bfloat16",
    "model.system": 'Be "brief".\nAlways.', "model.template": {"enable_thinking": True},
    "evaluate.temperature": 0.6, "evaluate.top_p": 0.95,
}  # fmt: skip


@pytest.mark.parametrize("settings", [{}, MODEL, {"evaluate.temperature": 0.0}])
@pytest.mark.parametrize("kept_step", [16, 0])
def test_how_to_use_what_came_out(
    make_run: Callable[..., Path], settings: dict[str, Any], kept_step: int
) -> None:
    """The commands are commands of dto, the program is Python, and the sentence is true."""
    run = make_run(settings)
    why = "training did not help: base is kept (no checkpoint is as accurate)"
    train(run, kept_step=kept_step, reason="" if kept_step else why)
    use = outcome(RunReader(run), measure(run))
    assert use is not None
    commands = dict(use.commands)
    folder = f"{run}/train/model"
    assert commands["model"] == folder and Path(folder).is_dir()
    flags = shlex.split(commands["serve"])
    assert flags[:3] == ["vllm", "serve", folder]
    assert flags[3:] == (
        ["--max-model-len", "4096", "--tensor-parallel-size", "2", "--dtype", "bfloat16"]
        if settings is MODEL
        else []
    )
    for name, target in (("evaluate", [str(run)]), ("publish", [str(run), "USER/NAME"])):
        if name == "publish" and not kept_step:
            assert name not in commands, "a base model is not published"
            continue
        program, command, *rest = shlex.split(commands[name])
        assert (program, command) == ("dto", name) and rest[: len(target)] == target
        assert {word for word in rest if word.startswith("--")} <= options_of(name)
    changes = [word for word in shlex.split(commands["evaluate"]) if "=" in word]
    recipe, _ = find_recipe(run, parse_changes(changes))
    assert recipe.model.name == folder and recipe.evaluate.models == ("base",)
    tree = ast.parse(use.program)
    if settings is MODEL:
        assert {"role": "system", "content": MODEL["model.system"]} in [
            ast.literal_eval(node) for node in ast.walk(tree) if isinstance(node, ast.Dict)
        ]
        assert (
            "enable_thinking=True" in use.program and "temperature=0.6, top_p=0.95" in use.program
        )
    if settings.get("evaluate.temperature") == 0.0:
        assert "do_sample=False" in use.program
    sentence = use.sentences[0]
    if kept_step:
        assert sentence == (
            "On the test problems, training changed accuracy from 66.7 to 66.7 %, by +0.0 "
            "(+0.0…+0.0) points (no difference shown), and saved 0.0 (0.0…0.0) % of the tokens."
        )
        assert "fell from 100.0 to 25.0 %" in use.sentences[1]
    else:
        assert sentence == f"T{why[1:]}. The model of this run is the base model."
        assert len(use.sentences) == 1


def test_a_model_that_is_not_here_is_not_named(make_run: Callable[..., Path]) -> None:
    run = make_run()
    train(run, model=False)
    use = outcome(RunReader(run), measure(run))
    assert use is not None and "The model is not in this directory." in use.sentences
    assert [name for name, _ in use.commands] == ["download", "train"] and not use.program
    for _, line in use.commands:
        program, command, *rest = shlex.split(line)
        assert program == "dto"
        assert {word for word in rest if word.startswith("--")} <= options_of(command)


@pytest.mark.slow
def test_the_page_names_no_place_of_this_machine(make_run: Callable[..., Path]) -> None:
    run = make_run()
    train(run)
    html = page(run)
    section = html[html.index('<h2 id="use">') :].partition("</section>")[0]
    assert "vllm serve runs/toy/train/model" in section
    assert "dto publish runs/toy USER/NAME --model" in section
    assert "from_pretrained" in section and str(run) not in html


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row if row.model == "base" else None, "was not compared with the base"),
        (
            lambda row: (
                replace(row, grade="failed", reason="x") if row.problem_id == "001" else row
            ),
            "Too many test responses failed",
        ),
    ],
)
def test_a_result_that_cannot_be_compared_is_not_claimed(
    make_run: Callable[..., Path], change: Callable[[EvaluationRow], Any], said: str
) -> None:
    run = make_run()
    train(run)
    path = run / "evaluate" / "rows.parquet"
    rows = [*tables.read(path, EvaluationRow)]
    tables.write(path, EvaluationRow, [new for row in rows if (new := change(row)) is not None])
    use = outcome(RunReader(run), measure(run))
    assert use is not None and said in use.sentences[0]


@pytest.mark.slow(seconds=20)
def test_the_commands_of_a_run_work(small_run: Path, tmp_path: Path) -> None:
    """The program answers, and the evaluation of another task is a run of its own."""
    use = outcome(RunReader(small_run), measure(small_run))
    assert use is not None
    said: list[str] = []
    assert "do_sample=True, temperature=1," in use.program
    greedy = re.sub(r"do_sample=True.*\)", "do_sample=False)", use.program)
    exec(greedy, {"print": said.append})
    assert "</think>" in said[0]
    task = tmp_path / "mine.jsonl"
    task.write_text('{"problem": "Start with 7. Add 5. What is the last digit?", "answer": "2"}\n')
    line = dict(use.commands)["evaluate"].replace("\\\n", "").replace(f"[{TASK}]", f"[{task}]")
    arguments = shlex.split(line.replace(f"--out {small_run}-{TASK}", f"--out {tmp_path}/mine"))
    done = warm.run(warm.dto, [*arguments[1:], "--set", "problems.train=2"], tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [*RunReader(tmp_path / "mine").rows("evaluate", EvaluationRow)]
    assert rows and {row.model for row in rows} == {"base"}
    manifest = RunReader(tmp_path / "mine").manifest("evaluate")
    kept = RunReader(small_run).manifest("train")
    assert manifest is not None and kept is not None
    assert manifest["config"]["weights"] == kept["content"]
