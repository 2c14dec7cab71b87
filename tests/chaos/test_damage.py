"""A file of a run is lost, cut off or damaged: the same tables are made, or it is refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from random import Random

import pytest

from tests.chaos.conftest import Whole
from tests.chaos.faults import (
    LINUX,
    SEEDS,
    Command,
    Fault,
    check_readers,
    check_same,
    draw,
    files,
)

pytestmark = [LINUX, pytest.mark.slow(seconds=8)]
DAMAGES = ("lost", "cut", "emptied", "flipped", "zeroed")


def damage(path: Path, kind: str, random: Random) -> str:
    """Damage a file, and say how."""
    data = bytearray(path.read_bytes())
    if kind == "lost":
        path.unlink()
        return "lost"
    place = random.randrange(len(data) or 1)
    if kind == "cut":
        del data[place:]
    elif kind == "emptied":
        data.clear()
    elif kind == "flipped" and data:
        data[place] ^= 1 << random.randrange(8)
    elif kind == "zeroed":
        data[place : place + 512] = bytes(len(data[place : place + 512]))
    path.write_bytes(data)
    return f"{kind} at {place}"


def mended(run: Path, whole: Whole, done: str) -> None:
    """The same command makes the same tables, or is refused until what it says has been done."""
    command = ("run", str(whole.recipe), "--out", str(run))
    for _ in range(4):
        ended = Command(run, *command).wait()
        if ended.code == 0:
            break
        assert ended.code == 1 and ended.last.startswith("dto: error: "), (done, ended.err)
        assert str(run) in ended.last, (done, ended.last)
        way = re.search(r"`(?:dto|(rm)) ([^`]*)`|use (--recompute)", ended.last)
        assert way, (done, ended.last)
        if way[1]:
            Path(way[2]).unlink()
            continue
        again = (*command, "--recompute", "--yes") if way[3] else way[2].split()
        mending = Command(run, *again).wait()
        assert mending.code == 0, (done, ended.last, mending.err)
    else:
        pytest.fail(f"{done}: still refused: {ended.last}")
    check_same(whole.path, run)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_file_of_a_finished_run(seed: int, whole: Whole, tmp_path: Path) -> None:
    random, run = draw("finished", seed), tmp_path / "run"
    kind = DAMAGES[seed % len(DAMAGES)]
    shutil.copytree(whole.path, run)
    name = random.choice(sorted(file for file in files(run) if "/" in file))
    done = f"{name} {damage(run / name, kind, random)}"
    shown = check_readers(run, random)
    lost = not (run / name).exists()
    if lost or (run / name).read_bytes() != (whole.path / name).read_bytes():
        assert f"{name} is {'missing' if lost else 'damaged'}" in shown.err, (done, shown)
    mended(run, whole, done)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_file_of_a_run_in_progress(seed: int, whole: Whole, tmp_path: Path) -> None:
    random, run = draw("begun", seed), tmp_path / "run"
    kind = DAMAGES[(seed + 2) % len(DAMAGES)]
    command = ("run", str(whole.recipe), "--out", str(run))
    fault = Fault("kill", random.randint(20, whole.operations), random.random())
    Command(run, *command, faults=[fault]).wait()
    names = sorted(file for file in files(run) if "/" in file)
    journals = [name for name in names if name.endswith("/journal")]
    name = random.choice(journals or names)
    done = f"{name} {damage(run / name, kind, random)}"
    mended(run, whole, done)
