"""A driver, actor or node is killed, or the disk is full: the same command ends the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.conftest import Whole
from tests.chaos.faults import LINUX, SEEDS, Command, Ended, Fault, check_same, draw

pytestmark = [LINUX, pytest.mark.slow(seconds=12)]
KILLED = -9


def start(run: Path, whole: Whole, *more: str, nodes: bool = False, faults: tuple[Fault, ...] = ()):
    command = ("run", str(whole.recipe), "--out", str(run), *more)
    return Command(run, *command, faults=faults, nodes=nodes)


def goes_on(run: Path, whole: Whole) -> Ended:
    ended = start(run, whole).wait()
    assert ended.code == 0, ended.err
    check_same(whole.path, run)
    return ended


@pytest.mark.parametrize("seed", SEEDS)
def test_the_driver_is_killed(seed: int, whole: Whole, tmp_path: Path) -> None:
    random, run = draw("driver", seed), tmp_path / "run"
    at = random.randint(1, random.choice((12, whole.operations, whole.operations)))
    ended = start(run, whole, faults=(Fault("kill", at, random.random()),)).wait()
    assert ended.code == KILLED, ended.err
    if random.random() < 0.5:  # and again, while it goes on
        rest = random.randint(1, whole.operations - at + 10)
        ended = start(run, whole, faults=(Fault("kill", rest, random.random()),)).wait()
        assert ended.code in (KILLED, 0), ended.err
    goes_on(run, whole)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_disk_is_full(seed: int, whole: Whole, tmp_path: Path) -> None:
    random, run = draw("disk", seed), tmp_path / "run"
    fault = Fault("full", random.randint(1, whole.operations), random.random())
    ended = start(run, whole, faults=(fault,)).wait()
    if ended.code:  # else only the log could not be written
        assert ended.code == 1, ended.err
        assert "free some space and run the same command again" in ended.last, ended.err
    goes_on(run, whole)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_actor_is_killed_and_then_the_driver_or_a_node(
    seed: int, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    random, run, nodes = draw("ray", seed), tmp_path / "run", bool(seed % 2)
    first, second = sorted(random.sample(range(20, whole.operations), 2))
    faults = (
        Fault("actor", first, random.random()),
        Fault("node" if nodes else "kill", second, random.random()),
    )
    more = () if nodes else ("--ray", "2")
    if not nodes:  # actors on this machine need no cluster that runs already
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    ended = start(run, whole, *more, nodes=nodes, faults=faults).wait()
    if nodes:
        assert ended.code == 0, ended.err
        check_same(whole.path, run)
    else:
        assert ended.code == KILLED, ended.err
        goes_on(run, whole)
