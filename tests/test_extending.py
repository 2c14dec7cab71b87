"""The examples of docs/extending.md, run as a user runs them: from a package outside dto."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from dto.engines import open_engine
from dto.errors import DtoError, EngineError, RecipeError
from dto.extension import is_import_path, load
from dto.hub.card import models
from dto.judges import check
from dto.pipeline import STAGES
from dto.recipe import ModelSettings, load_recipe, make_recipe, read_recipe
from dto.records import (
    EvaluationRow,
    OptimizedTrajectory,
    Problem,
    Segment,
    Span,
    Trajectory,
    Verdict,
)
from dto.runs.reader import RunReader
from tests import warm

DOCUMENT = Path(__file__).parent.parent / "docs" / "extending.md"
MOST_LINES = 10
DTO = Path(sys.executable).with_name("dto")
"""The installed command."""

RECIPE = """
model: {name: nano, context: 1024, slots: 16}
problems: {train: 4, dev: 2, test: 2}
sample: {samples: 2, temperature: 1.0, top_p: 1.0, max_tokens: 320}
estimate: {threshold: 0.3, margin: 0.2, cap: 8, max_tokens: 16}
optimize: {max_tokens: 48}
prune: {rollouts: 2, confirmations: 0}
train: {method: none, batch_size: 4, evaluations: 1, dev_samples: 1}
evaluate: {samples: 1, temperature: 1.0, top_p: 1.0, max_tokens: 320, models: [base]}
"""


class Section(NamedTuple):
    """One extension point of the document: its module, and the recipe that uses it."""

    title: str
    module: str  # my_package/judges.py
    code: str
    recipe: dict[str, Any]


def sections(document: str) -> dict[str, Section]:
    """The sections that have an example, by title."""
    found = {}
    for part in re.split(r"^## ", document, flags=re.MULTILINE)[1:]:
        title = part.partition("\n")[0].strip()
        blocks = re.findall(r"^```(\w+)\n(.*?)^```$", part, flags=re.MULTILINE | re.DOTALL)
        code = [text for language, text in blocks if language == "python"]
        recipe = [text for language, text in blocks if language == "yaml"]
        if code:
            assert len(code) == len(recipe) == 1, f"{title}: one module and one recipe"
            first = code[0].partition("\n")[0]
            assert re.fullmatch(r"# my_package/\w+\.py", first), f"{title}: {first!r} names no file"
            data = yaml.safe_load(recipe[0])
            found[title] = Section(title, first.removeprefix("# "), code[0], data)
    return found


def merged(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of both; those of `changes` win."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = merged(base[key], value) if both else value
    return result


SECTIONS = sections(DOCUMENT.read_text(encoding="utf-8"))


class Example:
    """The example of one section, in a folder that holds its package and its recipe."""

    def __init__(self, section: Section, folder: Path) -> None:
        self.folder, self.run = folder, folder / "run"
        module = folder / section.module
        module.parent.mkdir(parents=True)
        module.write_text(section.code, encoding="utf-8")
        self.recipe = merged(yaml.safe_load(RECIPE), section.recipe)
        self.write()

    def write(self, changes: Mapping[str, Any] | None = None) -> None:
        """Write the recipe, with changes."""
        recipe = merged(self.recipe, changes or {})
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")

    def start(self, command: str, *arguments: str, target: str) -> tuple[int, str]:
        """Exit code and output of a command. It runs in the folder; its run directory is `run`."""
        words = [command, target, *arguments]
        if target == "recipe.yaml":
            words += ["--out", "run"]
        done = warm.run(warm.dto, words, self.folder)
        return done.returncode, done.stdout + done.stderr

    def dto(self, command: str, *arguments: str, target: str = "recipe.yaml") -> str:
        """The output of a command that succeeds."""
        code, output = self.start(command, *arguments, target=target)
        assert code == 0, output
        return output

    def refused(self, command: str, *arguments: str, target: str = "recipe.yaml") -> str:
        """The one line that a command ends with when it refuses."""
        code, output = self.start(command, *arguments, target=target)
        assert code == 1 and len(output.splitlines()) == 1, output
        return output


# One function for each section, named in EFFECTS. It starts the commands that the example needs and
# asserts what only the example can have done.


def responses_leave_at_the_phrase(example: Example) -> None:
    """The phrase ends the first paragraph of a chain; the model alone goes on to check it."""
    example.dto("run")
    rows = {
        (row.exit, row.problem_id): row
        for row in RunReader(example.run).rows("evaluate", EvaluationRow)
    }
    early = [row for (exit, _), row in rows.items() if exit == "phrase"]
    assert len(early) == example.recipe["problems"]["test"]
    assert {row.exit_reason for row in early} == {"policy"}
    for row in early:
        whole = rows["none", row.problem_id]
        assert whole.exit_reason == "closed" and whole.seed == row.seed
        assert 0 < row.thinking_tokens < whole.thinking_tokens
    shutil.rmtree(example.folder / "my_package")  # a finished run is looked at without it
    assert "phrase" in example.dto("report", target="run")
    example.dto("view", "--no-open", target="run")
    assert (example.run / "view.html").is_file()


def verdicts_are_those_of_the_judge(example: Example) -> None:
    """The built-in judge gives each segment a verdict, with its rates as the reason."""
    example.dto("pilot")
    share = example.recipe["prune"]["judge_settings"]["share"]
    run = RunReader(example.run)
    texts = {row.id: row.text for row in run.rows("sample", Trajectory)}
    segments = {
        (row.trajectory_id, row.index): set(texts[row.trajectory_id][slice(*row.chars)].split())
        for row in run.rows("segment", Segment)
    }
    optimized = list(run.rows("optimize", OptimizedTrajectory))
    expected = [
        (row.id, segment)
        for row in optimized
        for place, segment in enumerate(row.kept[1:-1], start=1)
        if len(
            (words := segments[row.trajectory_id, segment])
            & set().union(*(segments[row.trajectory_id, each] for each in row.kept[:place]))
        )
        >= share * len(words)
    ]
    verdicts = [
        (row.id, verdict.segment)
        for row in run.rows("prune", OptimizedTrajectory)
        for verdict in row.verdicts
        if verdict.verdict == "redundant" and verdict.reason.startswith("no new words")
    ]
    assert verdicts == expected and verdicts
    assert sum(len(row.verdicts) for row in run.rows("prune", OptimizedTrajectory)) == len(verdicts)


def completions_are_logged(example: Example) -> None:
    example.dto("sample")
    lines = (example.folder / "completions.txt").read_text(encoding="utf-8").splitlines()
    texts = [row.text for row in RunReader(example.run).rows("sample", Trajectory)]
    assert sorted(map(ast.literal_eval, lines)) == sorted(texts) and texts


def rewards_fall_with_the_words(example: Example) -> None:
    """Right or wrong, more than 20 words cost more than the right answer is worth."""
    example.dto("train")
    steps = (example.run / "train" / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    rewards = [json.loads(line)["reward"] for line in steps]
    assert rewards and max(rewards) < 0  # the built-in reward, by default, is never below 0


def answers_near_the_gold_answer_are_right(example: Example) -> None:
    """Answers are single digits, so that a tolerance of 9 accepts all of them."""
    example.dto("sample")
    example.write({"problems": {"rule_settings": {"tolerance": 9}}})
    example.dto("sample", "--recompute", "--yes")
    run = RunReader(example.run)
    golds = {row.id: row.answer for row in run.rows("problems", Problem)}
    assert {row.rule for row in run.rows("problems", Problem)} == {
        'my_package.rules:Near {"tolerance": 9}'
    }
    rows = [row for row in run.rows("sample", Trajectory) if row.grade != "truncated"]
    assert {row.grade for row in rows} == {"correct"}
    assert any(row.answer != golds[row.problem_id] for row in rows)


def questions_are_those_of_the_task(example: Example) -> None:
    example.dto("sample")
    rows = list(RunReader(example.run).rows("problems", Problem))
    assert {row.task for row in rows} == {"sums"}
    assert Counter(row.split for row in rows) == {"train": 4, "dev": 2, "test": 2}
    firsts = {row.split: set[str]() for row in rows}
    for row in rows:
        numbers = re.fullmatch(r"Start with (\d)\. Add (\d)\. What is .*", row.question)
        assert numbers and row.answer == str(sum(map(int, numbers.groups())) % 10)
        firsts[row.split].add(numbers[1])
    assert firsts["train"] <= set("0123") and firsts["dev"] <= set("45")
    assert firsts["test"] <= set("6789")


EFFECTS: dict[str, Callable[[Example], None]] = {
    "Answer rule": answers_near_the_gold_answer_are_right,
    "Task": questions_are_those_of_the_task,
    "Exit policy": responses_leave_at_the_phrase,
    "Judge": verdicts_are_those_of_the_judge,
    "Engine": completions_are_logged,
    "Reward": rewards_fall_with_the_words,
}


@pytest.mark.slow
@pytest.mark.parametrize("title", SECTIONS)
def test_the_example_takes_effect(title: str, tmp_path: Path) -> None:
    EFFECTS[title](Example(SECTIONS[title], tmp_path))


@pytest.mark.slow
def test_the_command_finds_a_package_where_it_is_started(tmp_path: Path) -> None:
    """Unlike `python -m`, an installed command does not search that directory by itself."""
    example = Example(SECTIONS["Task"], tmp_path)
    command = [str(DTO), "problems", "recipe.yaml", "--out", "run"]
    subprocess.run(command, cwd=tmp_path, check=True)
    rows = RunReader(example.run).rows("problems", Problem)
    assert {row.task for row in rows} == {"sums"}


@pytest.mark.slow
def test_a_run_whose_package_is_missing_is_reported_and_viewed(tmp_path: Path) -> None:
    """All examples in one recipe; only a command that computes needs the package."""
    example = Example(next(iter(SECTIONS.values())), tmp_path)
    for section in SECTIONS.values():
        (tmp_path / section.module).write_text(section.code, encoding="utf-8")
        example.recipe = merged(example.recipe, section.recipe)
    example.write({"train": {"method": "none"}})
    example.dto("run")
    (tmp_path / "my_package").rename(tmp_path / "elsewhere")
    assert "evaluate" in example.dto("report", target="run")
    assert "view.html" in example.dto("view", "--no-open", target="run")
    message = example.refused("run", target="run")
    assert "module 'my_package' is not installed: install its package, or start in" in message


@pytest.mark.parametrize("title", SECTIONS)
def test_the_example_has_at_most_ten_lines(title: str) -> None:
    lines = [line for line in SECTIONS[title].code.splitlines()[1:] if line.strip()]
    assert len(lines) <= MOST_LINES
    assert all(len(line) <= 100 for line in lines)


def test_each_section_with_an_example_has_an_effect() -> None:
    assert set(SECTIONS) == set(EFFECTS)


def test_two_modules_in_one_section_are_refused() -> None:
    block = "```python\n# my_package/a.py\nx = 1\n```\n"
    with pytest.raises(AssertionError, match="Judge: one module"):
        sections(f"# T\n\n## Judge\n\n{block}{block}```yaml\na: 1\n```\n")


PACKAGE = {
    "extensions/__init__.py": "",
    "extensions/good.py": """
import dto

class Thing(dto.Settings):
    limit: int = 3

    def __call__(self, *arguments):
        raise NotImplementedError

def function(*arguments):
    raise NotImplementedError

class Plain(dto.Settings):
    limit: int = 3
""",
    "extensions/needy.py": "import no_such_dependency",
    "extensions/broken.py": "1 / 0",
}
NAMES = {  # each key, with a built-in name
    "prune.judge": "counterfactual",
    "model.engine": "vllm",
    "judge.engine": "openai",
    "train.reward": "accuracy",
    "problems.rule": "math",
    "problems.source": "chains",
}
MISTAKES = [  # name, settings, the key that the message names, the message
    ("no_package:Thing", {}, "", "module 'no_package' is not installed: install its package, or "),
    ("extensions.bad:Thing", {}, "", "module 'extensions.bad' is not installed: install its"),
    ("extensions.needy:Thing", {}, "", "module 'no_such_dependency' is not installed: install its"),
    ("extensions.broken:Thing", {}, "", "module 'extensions.broken' cannot be imported: ZeroDiv"),
    ("extensions.good:Thin", {}, "", "module 'extensions.good' defines no 'Thin' (did you mean 'T"),
    ("extensions/good.py:Thing", {}, "", "it is neither built in nor an import path: use "),
    ("Thing", {}, "", "it is neither built in nor an import path: use "),
    ("extensions.good:Thing", {"limt": 3}, "_settings", "unknown key 'limt' (did you mean 'limit'"),
    ("extensions.good:Thing", {"limit": "x"}, "_settings", "limit = 'x': Input should be a valid"),
    ("extensions.good:function", {"limit": 3}, "_settings", "is not a subclass of dto.Settings"),
    ("extensions.good:Plain", {}, "_settings", "cannot be called: name a function or a class with"),
    (None, {"limit": 3}, "_settings", "does not read limit: the other keys of this group are its"),
]
ANY_SOURCE = ("Thing", "extensions/good.py:Thing", "extensions.good:Plain")
"""Names that are a dataset of the Hub, a file, or a task: `problems.source` allows them here."""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # for the end of the test: dto adds the folder itself
    for name in [name for name in sys.modules if name.partition(".")[0] == "extensions"]:
        monkeypatch.delitem(sys.modules, name)
    for path, code in PACKAGE.items():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(code, encoding="utf-8")


def recipe_of(key: str, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with this name under a key, and the settings beside it."""
    group, field = key.split(".")
    values = {field: name, f"{field}_settings": dict(settings)}
    return {"name": "r", group: {"name": "nano", **values} if group == "judge" else values}


@pytest.mark.parametrize(
    ("key", "name", "settings", "suffix", "message"),
    [
        (key, *mistake)
        for key in NAMES
        for mistake in MISTAKES
        if key != "problems.source" or mistake[0] not in ANY_SOURCE
    ],
)
def test_a_mistake_is_refused_when_the_recipe_is_read(
    key: str, name: str | None, settings: dict[str, Any], suffix: str, message: str, package: None
) -> None:
    data = recipe_of(key, name or NAMES[key], settings)
    Path("r.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    with pytest.raises(RecipeError) as refused:
        load_recipe("r.yaml")
    line = str(refused.value)
    assert line.startswith(f"recipe r.yaml: {key}{suffix}") and "\n" not in line
    assert message in line
    if name and is_import_path(name):
        read_recipe(Path("r.yaml"))  # a finished run: nothing is imported, nothing is checked


@pytest.mark.parametrize("key", NAMES)
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("extensions.good:Thing", {}),
        ("extensions.good:Thing", {"limit": 7}),
        ("extensions.good:function", {}),
        (None, {}),
    ],
)
def test_a_good_name_is_accepted(
    key: str, name: str | None, settings: dict[str, Any], package: None
) -> None:
    recipe = make_recipe(recipe_of(key, name or NAMES[key], settings))
    group, field = key.split(".")
    data = recipe.model_dump(mode="json")
    assert data[group][field] == (name or NAMES[key])
    assert data[group][f"{field}_settings"] == settings
    assert make_recipe(data) == recipe


def test_settings_without_a_default_are_required(package: None) -> None:
    Path("extensions/strict.py").write_text(
        "import dto\n\nclass Strict(dto.Settings):\n    limit: int\n", encoding="utf-8"
    )
    data = recipe_of("train.reward", "extensions.strict:Strict", {})
    with pytest.raises(RecipeError, match=r"train\.reward_settings: limit: Field required"):
        make_recipe(data)


def test_a_secret_in_settings_is_not_shown(package: None) -> None:
    data = recipe_of("model.engine", "extensions.good:function", {"password": "hunter2"})
    with pytest.raises(RecipeError) as refused:
        make_recipe(data)
    assert "hunter2" not in str(refused.value) and "drop password" in str(refused.value)


def test_the_same_settings_have_one_instance_in_a_process(package: None) -> None:
    path = "extensions.good:Thing"
    assert load(path, {"limit": 2}) is load(path, {"limit": 2})
    assert load(path, {"limit": 2}) is not load(path, {"limit": 4})


def test_something_that_is_not_an_engine_is_refused(package: None) -> None:
    Path("extensions/engines.py").write_text(
        """
import dto

class Partial:
    def __init__(self, model, name):
        self.model, self.tokenizer, self.shape, self.context = name, None, None, 9

    async def complete(self, prompt, sampling, n=1):
        return []

class Named(dto.Settings):
    suffix: str = ""

    def __call__(self, model, name):
        engine = dto.open_engine(model.model_copy(update={"engine": "transformers"}), name)
        engine.model = name + self.suffix
        return engine
""",
        encoding="utf-8",
    )
    settings = ModelSettings(engine="extensions.engines:Partial")
    with pytest.raises(EngineError) as refused:
        open_engine(settings)
    assert str(refused.value) == (
        "model.engine 'extensions.engines:Partial' returned Partial, which has no capabilities, "
        "stream, branched, score, __aenter__, __aexit__: return an engine, see dto.protocols.Engine"
    )
    named = ModelSettings(engine="extensions.engines:Named", engine_settings={"suffix": "-2"})
    assert open_engine(named).model == "nano-2"


SEGMENTS = [
    Segment(f"t/{index}", "t", index, Span(index, index + 1), Span(index, index + 1), index + 1,
            "", "step")
    for index in (0, 2, 3, 5)
]  # fmt: skip


@pytest.mark.parametrize(
    ("verdicts", "wrong"),
    [
        ([], None),
        ([Verdict(2, "redundant", 1.0), Verdict(3, "keep", -2.0)], None),
        ([Verdict(3, "unjudged", 0.0, reason="no time")], None),
        (None, "None"),
        (Verdict(9, "keep", 0.0), "segment=9"),  # not a list
        ([2, 3], "2"),
        ([Verdict(0, "harmful", 1.0)], "segment=0"),
        ([Verdict(5, "keep", 1.0)], "segment=5"),
        ([Verdict(1, "redundant", 1.0)], "segment=1"),
        ([Verdict(2, "redundant", 1.0)] * 2, "segment=2"),
        ([Verdict(2, "useless", 1.0)], "verdict='useless'"),  # type: ignore[arg-type]
        ([Verdict(2, "redundant", nan)], "score=nan"),
    ],
)
def test_a_judge_returns_at_most_one_verdict_for_each_segment_between(
    verdicts: Any, wrong: str | None
) -> None:
    if wrong is None:
        check(verdicts, SEGMENTS, "my_package.judges:f")
        return
    with pytest.raises(DtoError, match=r"prune\.judge 'my_package\.judges:f' returned") as refused:
        check(verdicts, SEGMENTS, "my_package.judges:f")
    assert wrong in str(refused.value)


@pytest.mark.parametrize(
    ("judge", "own", "asked"),
    [
        ("counterfactual", True, False),
        ("none", True, False),
        ("llm", True, True),
        ("llm", False, True),
        ("extensions.good:function", True, True),
        ("extensions.good:function", False, False),
    ],
)
def test_the_judge_of_a_recipe_is_opened_for_a_judge_that_can_ask_it(
    judge: str, own: bool, asked: bool, package: None
) -> None:
    data: dict[str, Any] = {"name": "r", "prune": {"judge": judge}}
    recipe = make_recipe(data | ({"judge": {"name": "nano"}} if own else {}))
    assert STAGES["prune"].asks_judge(recipe) == asked
    assert ("judge" in STAGES["prune"].settings(recipe)) == asked
    assert any(what == "judged patterns" for what, _ in models(recipe)) == (asked and own)
