"""The house has floors: what stands on one knows nothing of those above it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import dto
from dto.pipeline import STAGES

ROOT = Path(dto.__file__).parent
MODULES = {
    ".".join(("dto", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}
LAYERS = re.findall(r"^    [a-z]+ +((?:.+\n {14})*.+)$", dto.__doc__ or "", re.MULTILINE)
FLOOR = {name: floor for floor, names in enumerate(LAYERS) for name in names.split()}


def imports(path: Path) -> Iterator[str]:
    """The modules of dto that a module imports, inside functions too; not those for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dto":
            yield from (
                name if (name := f"{node.module}.{each.name}") in MODULES else str(node.module)
                for each in node.names
            )
        elif isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name in MODULES)


@cache
def arrows() -> dict[str, set[str]]:
    """The modules that each module imports."""
    return {name: set(imports(path)) - {name, "dto"} for name, path in MODULES.items()}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def test_every_room_has_a_floor() -> None:
    assert {room(name) for name in MODULES} - {"dto"} == set(FLOOR)


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"dto"}))
def test_nothing_imports_upwards(name: str) -> None:
    assert not [to for to in arrows()[name] if FLOOR[room(to)] > FLOOR[room(name)]]


def test_there_are_no_circles_of_files_or_rooms() -> None:
    TopologicalSorter(arrows()).prepare()
    rooms: dict[str, set[str]] = {}
    for name, to in arrows().items():
        rooms.setdefault(room(name), set()).update(set(map(room, to)) - {room(name)})
    TopologicalSorter(rooms).prepare()


def test_the_house_is_small() -> None:
    lines = {name: len(path.read_text("utf-8").splitlines()) for name, path in MODULES.items()}
    core = sum(count for name, count in lines.items() if FLOOR.get(room(name)) == 0)
    assert core <= 8_500
    assert len(MODULES) <= 208 and sum(lines.values()) <= 48_000
    assert {name: count for name, count in lines.items() if count > 480} == {}


@pytest.mark.slow
def test_stages_are_listed_once() -> None:
    """No other list of stage names: each follows from `dto.pipeline.STAGES`."""
    lists = []
    for name, path in MODULES.items():
        if name in ("dto", "dto.pipeline") or "STAGE = Stage(" in path.read_text("utf-8"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Tuple | ast.List | ast.Set | ast.Dict):
                members = node.keys if isinstance(node, ast.Dict) else node.elts
                words = {each.value for each in members if isinstance(each, ast.Constant)}
                if len(words & set(STAGES)) >= 3:
                    lists.append(f"{name}:{node.lineno}")
    assert lists == []
