"""Damage to a file of a stage, whichever: it is found, said, and never read as rows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dto.commands import reading
from dto.errors import DtoError
from dto.pipeline import STAGES, check_files
from dto.recipe import Recipe
from dto.records import ExitEstimate
from dto.runs import manifest
from dto.runs.journal import read_entries, read_head
from dto.runs.reader import RunReader
from tests.runs.test_journal import entry, journal
from tests.runs.test_run import opened, problems, recipe
from tests.runs.test_stage import whole

KEYS = ("a", "b", "c", "d")


def flipped(data: bytes, place: int, bit: int = 0) -> bytes:
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("journal") / "journal"
    written = journal(path)
    for key in KEYS:
        written.append(entry(key))
    written.close()
    return path.read_bytes()


@settings(max_examples=200)
@given(data=st.data())
def test_a_flipped_bit_of_a_journal_costs_the_groups_of_its_line(
    data: st.DataObject, lines: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A flipped newline costs two. What is kept is what was written, and is added to as before."""
    path = tmp_path_factory.mktemp("damaged") / "journal"
    head = lines.index(b"\n") + 1
    place, bit = data.draw(st.integers(head, len(lines) - 1)), data.draw(st.integers(0, 7))
    path.write_bytes(flipped(lines, place, bit))
    line = lines[:place].count(b"\n") - 1
    lost = {KEYS[line]} | ({*KEYS[line + 1 : line + 2]} if lines[place] == ord("\n") else set())
    again = journal(path)
    assert again.done in ({*KEYS} - lost, {*KEYS})  # the mark of the checksum itself may be hit
    for key in sorted({*KEYS} - again.done):
        again.append(entry(key))
    again.close()
    back = list(read_entries(path, ExitEstimate))
    assert [each.key for each in back] == [*KEYS]
    assert [repr(each.rows) for each in back] == [
        repr(sorted(entry(key).rows, key=lambda row: row.id)) for key in KEYS
    ]


def test_a_damaged_line_is_named(
    lines: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal"
    start = lines.index(b"\n") + 1
    path.write_bytes(flipped(lines, start + 20))
    with caplog.at_level(logging.WARNING, "dto"):
        journal(path).close()
    end = lines.index(b"\n", start) + 1
    assert f"{path}: bytes {start} to {end} are damaged; their group is computed" in caplog.text


def test_groups_of_an_unknown_configuration_are_refused(lines: bytes, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(flipped(lines, 5))
    assert read_head(path) is None
    with pytest.raises(DtoError, match=r"damaged in its first line.*`rm .*/journal`"):
        journal(path)
    assert path.stat().st_size == len(lines)


def lost(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def changed(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(flipped(data, len(data) // 2))


FILES = ("rows.parquet", "timings.parquet", "usage.parquet", "dropped.jsonl", "manifest.json")


@pytest.mark.parametrize("harm", [lost, cut, emptied, changed])
@pytest.mark.parametrize("name", FILES)
async def test_a_damaged_file_of_a_finished_stage_is_refused(
    name: str, harm: Callable[[Path], None], tmp_path: Path
) -> None:
    await whole(tmp_path / "estimate")
    run = RunReader(tmp_path, Recipe(name="r"))
    assert check_files(run, STAGES["estimate"])
    harm(tmp_path / "estimate" / name)
    with pytest.raises(DtoError, match=f"estimate/{name} is .*`dto estimate .* --recompute --yes`"):
        check_files(run, STAGES["estimate"])


async def test_a_stage_of_an_earlier_version_has_a_hash_of_its_table_alone(tmp_path: Path) -> None:
    done = await whole(tmp_path / "estimate")
    del done["files"], done["check"]
    manifest.write(tmp_path / "estimate", done)
    run = RunReader(tmp_path, Recipe(name="r"))
    lost(tmp_path / "estimate" / "usage.parquet")
    assert check_files(run, STAGES["estimate"])
    changed(tmp_path / "estimate" / "rows.parquet")
    with pytest.raises(DtoError, match=r"rows.parquet is damaged"):
        check_files(run, STAGES["estimate"])


@pytest.mark.parametrize("name", FILES)
def test_questions_are_read_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They cost nothing, so nobody is asked."""
    monkeypatch.chdir(tmp_path)
    first = problems(recipe())
    lost(Path("run/problems") / name)
    with caplog.at_level(logging.WARNING, "dto"):
        again = problems(recipe())
    assert again["digest"] == first["digest"]
    assert f"{name} is " in caplog.text and "computed again" in caplog.text
    assert not Path("run/.aside").exists()


def test_what_a_kill_after_the_manifest_leaves_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = problems(recipe())
    journal(Path("run/problems/journal")).close()
    Path("run/.aside/problems").mkdir(parents=True)
    assert problems(recipe()) == first
    assert not Path("run/problems/journal").exists() and not Path("run/.aside").exists()
    for run in opened(recipe()):
        assert run.state("problems") == "finished"


@pytest.mark.parametrize("most", [2**31, 0])
async def test_a_reader_says_which_file_is_damaged(
    most: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dto.commands.COMPARED_BYTES", most)
    await whole(tmp_path / "estimate")
    with reading(tmp_path, refuse=True):
        pass
    assert not caplog.text
    changed(tmp_path / "estimate" / "usage.parquet")
    with reading(tmp_path):
        pass
    assert ("estimate/usage.parquet is damaged" in caplog.text) is (most > 0)
    told = r"usage\.parquet is damaged"
    with pytest.raises(DtoError, match=rf"{told}.*\(ValueError: no footer\)"), reading(tmp_path):
        raise ValueError("no footer")
    with pytest.raises(DtoError, match=told), reading(tmp_path, refuse=True):
        pytest.fail("read")


@pytest.mark.parametrize("left", [(), (".lock",), (".lock", ".recipe.yaml.part")])
def test_a_run_that_was_killed_before_it_had_a_recipe_begins_anew(
    left: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    for name in left:
        (Path("run") / name).write_text("na")
    assert problems(recipe())["rows"] == 7
    assert sorted(path.name for path in Path("run").iterdir() if path.name.startswith(".")) == [
        ".lock"
    ]


def test_a_folder_of_others_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run/.lock").touch()
    Path("run/thesis.tex").touch()
    with pytest.raises(DtoError, match=r"run is not a run directory, it has no recipe\.yaml"):
        problems(recipe())
