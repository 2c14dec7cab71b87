"""README and documents: their length, links, anchors and commands."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer

import dto
from dto.cli import app
from dto.commands import parse_changes
from dto.errors import RecipeError
from dto.exits.loop import TrialPolicy
from dto.extension import imported
from dto.recipe import make_recipe
from dto.settings import POLICIES, ExitPolicy

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "benchmarks/README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
CHANGELOG = ROOT / "CHANGELOG.md"  # it names commands that are gone
MOST_WORDS = 1200  # as `wc -w` counts
LARGEST_PICTURE = 300_000

CLI: Any = typer.main.get_command(app)
LINK = re.compile(r"(?<!\\)\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^ {4}\S.*\n?|^ {4,}.*\n?)+", re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
TARGETS = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
PLACEHOLDER = re.compile(r"^[A-Z][A-Z/_|…-]*$")


def slug(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    text = re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", lambda found: found[1] or "", heading.strip())
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = FENCED.sub("", page.read_text("utf-8"))
    return {slug(found) for found in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


def broken_links(page: Path) -> Iterator[str]:
    text = FENCED.sub("", page.read_text("utf-8"))
    for target in LINK.findall(INLINE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists():
            yield f"{target}: there is no such file"
        elif anchor and anchor not in anchors(file):
            yield f"{target}: {file.name} has no such heading"


def commands(page: Path) -> list[str]:
    """Lines of code blocks and inline code that begin with dto, make or python -m."""
    text = page.read_text("utf-8")
    blocks = [code for language, code in FENCED.findall(text) if language in ("", "bash", "sh")]
    text = FENCED.sub("", text)
    blocks += INDENTED.findall(text)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += INLINE.findall(INDENTED.sub("", text))
    lines = [re.sub(r"^(\w+=\S+ )*(\.venv\S*/bin/)?", "", line.strip()) for line in lines]
    return [line for line in lines if re.match(r"(dto|make|python -m) ", line)]


def wrong(line: str) -> Iterator[str]:
    """What is wrong with a command: its target, command, option, setting, recipe or module."""
    words = shlex.split(re.sub(r"\[([^]=]*(?:=[^]]*)?)\]", r"\1", line), comments=True)
    if words[:2] == ["python", "-m"]:
        if words[2].startswith(("dto", "benchmarks", "tests")) and find_spec(words[2]) is None:
            yield f"there is no module {words[2]}"
    elif words[0] == "make":
        for word in words[1:]:
            if "=" not in word and word not in TARGETS:
                yield f"there is no target {word}"
    else:
        yield from wrong_dto(words[1:])


def wrong_dto(words: list[str]) -> Iterator[str]:
    command: Any = CLI
    rest = list(words)
    while rest and hasattr(command, "commands"):
        name = rest.pop(0)
        if name.startswith("-") or PLACEHOLDER.match(name):
            return
        if name not in command.commands:
            yield f"there is no command {name}"
            return
        command = command.commands[name]
    options = {option for each in command.params for option in each.opts}
    for word, following in zip(rest, [*rest[1:], ""], strict=False):
        if word.startswith("--") and word not in {*options, "--help", "--version"}:
            yield f"there is no option {word} of {command.name}"
        if word == "--set" and not PLACEHOLDER.match(following):
            yield from wrong_setting(following)
        if word.endswith(".yaml") and word.startswith("pipelines/") and not (ROOT / word).exists():
            yield f"there is no recipe {word}"


def wrong_setting(change: str) -> Iterator[str]:
    if change.startswith("key"):
        return
    try:
        make_recipe({"name": "recipe"}, parse_changes([change]))
    except RecipeError as error:
        if "unknown key" in str(error) or "cannot be set" in str(error):
            yield f"there is no setting {change}"


def test_readme_can_be_read_in_five_minutes() -> None:
    assert len(README.read_text("utf-8").split()) <= MOST_WORDS


def test_the_readmes_headline_has_the_figures_of_its_table() -> None:
    text = README.read_text("utf-8")
    headline, _, rest = text.partition("\n## ")
    figures = re.findall(r"\b\d\d?\.\d\b", headline)
    cells = [re.match(r"[\d.]+", cell.strip()) for cell in rest.split("|")]
    table = {found[0] for found in cells if found}
    assert figures and set(figures) <= table


@pytest.mark.parametrize("page", [*PAGES, CHANGELOG], ids=[*NAMES, "CHANGELOG.md"])
def test_links_and_anchors_resolve(page: Path) -> None:
    assert list(broken_links(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_exist(page: Path) -> None:
    found = {line: faults for line in commands(page) if (faults := list(wrong(line)))}
    assert found == {}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_public_names_exist(page: Path) -> None:
    names = set(re.findall(r"\bdto\.([A-Za-z_]+)\(", page.read_text("utf-8")))
    assert {name for name in names if not hasattr(dto, name)} == set()


def test_the_program_of_the_readme_is_part_of_a_page_whose_programs_are_run() -> None:
    programs = dict(FENCED.findall(README.read_text("utf-8")))
    page = (ROOT / "docs/python.md").read_text("utf-8")  # tests/test_api.py
    assert set(programs["python"].splitlines()) <= set(page.splitlines())


def table(text: str) -> dict[str, list[str]]:
    """The rows of a Markdown table whose first cell begins with code, by that."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {re.findall(r"`(\w+)`", row[0])[0]: row[1:] for row in rows}


def test_the_tables_of_exits_have_the_settings_of_each_policy() -> None:
    text = (ROOT / "docs/exits.md").read_text("utf-8")
    policies, trials, _ = re.split(r"^##+ .*$", text.partition("| `policy`")[2], flags=re.MULTILINE)
    shared = TrialPolicy.model_fields.keys() - ExitPolicy.model_fields.keys()
    for name, cells in table(policies).items():
        own = imported(POLICIES[name]).model_fields.keys() - ExitPolicy.model_fields.keys()
        named = set(re.findall(r"`(\w+)`(?= \(|,)", cells[1])) if len(cells) > 1 else set()
        assert named | (shared if "of trials" in cells[-1] else set()) == own, name
    assert {name: cells[0].strip("`") for name, cells in table(trials).items()} == {
        name: json.dumps(TrialPolicy.model_fields[name].default).strip('"') for name in shared
    }
    assert set(table(policies)) == {name for name in POLICIES if " " not in name}


def test_the_layout_names_every_module() -> None:
    named = set(re.findall(r"`dto/(\w+)(?:/|\.py)`", (ROOT / "docs/layout.md").read_text("utf-8")))
    hidden = ("_", ".", "py.typed")
    there = {path.stem for path in (ROOT / "dto").iterdir() if not path.name.startswith(hidden)}
    assert named == there


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text("utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages and all(f"({page})" in index for page in pages)


def test_pictures_are_small_and_none_is_left_over() -> None:
    pictures = sorted((ROOT / "docs/images").iterdir())
    text = "".join(page.read_text("utf-8") for page in PAGES)
    assert all(picture.stat().st_size < LARGEST_PICTURE for picture in pictures)
    assert all(f"images/{picture.name})" in text for picture in pictures)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("make quickstart", ""),
        ("make quikstart", "there is no target quikstart"),
        ("make PYTHON=python3.11", ""),
        ("dto run quickstart --set sample.samples=2", ""),
        ("dto run quickstart --set sample.sampels=2", "there is no setting sample.sampels=2"),
        ("dto run quickstart --set exits.threshold=2", "there is no setting exits.threshold=2"),
        ("dto run quickstart --dry-runs", "there is no option --dry-runs of run"),
        ("dto rnu quickstart  # a comment", "there is no command rnu"),
        ("dto tasks validate gsm8k --against math500", ""),
        ("dto tasks valid gsm8k", "there is no command valid"),
        ("dto sample | segment RECIPE|RUN   # stages", ""),
        ("dto run pipelines/nothing.yaml", "there is no recipe pipelines/nothing.yaml"),
        ("python -m benchmarks.real", ""),
        ("python -m benchmarks.rael", "there is no module benchmarks.rael"),
    ],
)
def test_a_wrong_command_is_found(line: str, fault: str) -> None:
    assert "".join(wrong(line)) == fault


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[a](b.md)", "b.md: there is no such file"),
        ("[a](c.md#one-two)", ""),
        ("[a](c.md#one)", "c.md#one: c.md has no such heading"),
        ("# Own `name`, here\n\n[a](#own-name-here) [b](https://example.com/x)", ""),
        ("![picture](images/x.png)", "images/x.png: there is no such file"),
        ("`[a](b.md)` and\n```\n[a](b.md)\n```\n", ""),
    ],
)
def test_a_broken_link_is_found(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "c.md").write_text("# One: two\n")
    page = tmp_path / "page.md"
    page.write_text(text)
    assert "".join(broken_links(page)) == fault
