"""The examples of docs/extending.md, run as a user runs them: from a package outside dto."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from dto.records import EvaluationRow, OptimizedTrajectory, Segment, Trajectory
from dto.runs.reader import RunReader

DOCUMENT = Path(__file__).parent.parent / "docs" / "extending.md"
MOST_LINES = 10
DTO = Path(sys.executable).with_name("dto")
"""The command itself: unlike `python -m`, it does not search the working directory for modules."""

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

    def dto(self, command: str, *arguments: str, target: str = "recipe.yaml") -> str:
        """What a command prints. It runs in the folder; its run directory is `run`."""
        words = [str(DTO), command, target, *arguments]
        if target == "recipe.yaml":
            words += ["--out", "run"]
        done = subprocess.run(words, cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr


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


EFFECTS: dict[str, Callable[[Example], None]] = {
    "Exit policy": responses_leave_at_the_phrase,
    "Judge": verdicts_are_those_of_the_judge,
    "Engine": completions_are_logged,
    "Reward": rewards_fall_with_the_words,
}


@pytest.mark.parametrize("title", SECTIONS)
def test_the_example_takes_effect(title: str, tmp_path: Path) -> None:
    EFFECTS[title](Example(SECTIONS[title], tmp_path))


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
