"""Two processes on one run: one is refused with words, and readers see a run in progress."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.conftest import Whole
from tests.chaos.faults import LINUX, SEEDS, TABLES, Command, Fault, check_readers, check_same, draw

pytestmark = [LINUX, pytest.mark.slow(seconds=8)]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_second_driver_is_refused(seed: int, whole: Whole, tmp_path: Path) -> None:
    """Also while the first is about to change any of its files, and not when that is killed."""
    random, run = draw("two", seed), tmp_path / "run"
    whole_run = ("run", str(whole.recipe), "--out", str(run))
    at = random.randint(12, whole.operations)
    first = Command(run, *whole_run, faults=[Fault("stop", at)])
    assert first.stopped()
    single = (random.choice(TABLES[1:]), str(run))
    for command in (whole_run, single):
        ended = Command(run, *command).wait()
        assert ended.code == 1, (command, ended)
        assert "is in use by another process: wait until that ends" in ended.last
        assert str(run) in ended.last
    check_readers(run, random)
    if random.random() < 0.5:
        first.kill()
    first.resume()
    first.wait()
    ended = Command(run, *whole_run).wait()
    assert ended.code == 0, ended.err
    check_same(whole.path, run)


@pytest.mark.parametrize("seed", SEEDS)
def test_two_drivers_start_at_once(seed: int, whole: Whole, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ("run", str(whole.recipe), "--out", str(run))
    ended = [each.wait() for each in [Command(run, *command) for _ in range(2)]]
    refused = [each for each in ended if each.code]
    assert len(refused) < 2, refused
    for each in refused:
        assert each.code == 1 and "is in use by another process" in each.last, each.err
    check_same(whole.path, run)
