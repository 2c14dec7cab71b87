"""`benchmarks.gpu` on a CPU: it refuses, keeps to its time, and the code of its parts runs."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from benchmarks import gpu, gpu_training
from benchmarks.gpu import ERROR, PARTS, Scale, main, part_of, run_case, table

TINY = Scale("cpu", tiny=True)
OPTIONS = ["--device", "cpu", "--tiny"]


@pytest.mark.parametrize("part", PARTS)
def test_without_a_gpu_every_part_says_so_in_one_line(
    part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([part]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith("benchmarks.gpu: no CUDA device: ")
    assert main([part, "--device", "cpu"]) == 1
    assert "--tiny only" in capsys.readouterr().err
    assert part_of(part).cases


def test_a_case_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", *OPTIONS, "--cases", "simpo", "magic"]) == 1
    assert "has no case 'magic': engine, simpo" in capsys.readouterr().err


def test_a_table_has_all_columns_and_errors_last() -> None:
    rows = [
        {"case": "a|b", ERROR: "too\nlong", "tokens/s": 12345.6},
        {"case": "c", "tokens/s": 0.01234, "steps": 2, "resumed": None},
    ]
    assert table(rows).split("\n") == [
        "| case | tokens/s | steps | resumed | error |",
        "|---|---|---|---|---|",
        "| a\\|b | 12,346 |  |  | too long |",
        "| c | 0.0123 | 2 |  |  |",
    ]


def in_place_of_python(path: Path, monkeypatch: pytest.MonkeyPatch, lines: str) -> None:
    """A shell script that runs as the process of a case; $6 is the file for its rows."""
    path.write_text(f"#!/bin/sh\n{lines}\n", encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


def test_a_case_that_takes_too_long_is_ended_with_its_children_and_its_rows_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = tmp_path / "children"
    in_place_of_python(
        tmp_path / "python",
        monkeypatch,
        f"echo '{{\"tokens/s\": 7}}' > $6; sleep 300 & echo $! $$ > {children}.part\n"
        f"mv {children}.part {children}; wait",
    )
    rows = run_case("shapes", "Qwen3-4B", TINY, 1.0)
    assert rows == [
        {"case": "Qwen3-4B", "tokens/s": 7},
        {"case": "Qwen3-4B", ERROR: "ended after 1 s, the time limit"},
    ]
    for child in map(int, children.read_text().split()):
        deadline = time.monotonic() + 20
        while psutil.pid_exists(child) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not psutil.pid_exists(child)


def test_a_case_that_fails_is_a_row_with_the_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_place_of_python(
        tmp_path / "python", monkeypatch, "echo Traceback; echo 'Error: no room' >&2; exit 3"
    )
    found = tmp_path / "rows.jsonl"
    arguments = ["shapes", *OPTIONS, "--cases", "Qwen3-4B", "--json", str(found)]
    assert main(arguments) == 1
    assert "| Qwen3-4B | Error: no room |" in capsys.readouterr().out
    assert json.loads(found.read_text(encoding="utf-8")) == {
        "part": "shapes", "case": "Qwen3-4B", ERROR: "Error: no room",
    }  # fmt: skip
    assert main(["shapes", *OPTIONS, "--seconds", "0"]) == 1
    assert capsys.readouterr().out.count("not reached within the time limit") == 2


@pytest.mark.slow(seconds=5)
def test_a_part_runs_as_users_run_it(tmp_path: Path) -> None:
    """In processes of its own, from the folder of the repository: the engine against itself."""
    found = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "benchmarks.gpu", "methods", "--cases", "engine"]
    done = subprocess.run(
        [*command, *OPTIONS, "--json", str(found)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    title, _, *lines = done.stdout.splitlines()
    assert title.startswith("methods: CPU: figures mean nothing, torch ")
    assert lines[0].startswith("| case | dtype | responses | same tokens, % | branched, % |")
    plain, low = map(json.loads, found.read_text(encoding="utf-8").splitlines())
    assert plain["same tokens, %"] == plain["branched, %"] == 100
    assert plain["largest difference of logprobs"] < 1e-4
    assert 0 <= low["same tokens, %"] <= 100 and low["largest difference of logprobs"] > 1e-4


@pytest.mark.slow(seconds=4)
def test_a_step_of_a_shape_is_measured_in_each_variant() -> None:
    first, *others = rows = list(part_of("shapes").run("Qwen3-4B", TINY))
    assert [row["variant"] for row in rows] == list(gpu_training.VARIANTS)
    assert not [row for row in rows if ERROR in row]
    assert first["tokens a step"] == 128 and first["tokens/s ÷ first row"] == 1
    assert all(row["peak, GiB"] > 0 and row["tokens/s"] > 0 for row in others)
    assert ["formula, GiB" in row for row in rows].count(True) in (0, 3)  # not of the plain head


@pytest.mark.slow(seconds=2)
@pytest.mark.parametrize("method", ["simpo", "drqa", "sft_batch"])  # pairs, chains, neither
def test_a_method_trains_stops_and_goes_on(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from dto.training import fit, grpo

    for module, name in ((fit, "batch_answers"), (grpo, "judging")):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back afterwards
    (row,) = part_of("methods").run(method, TINY)
    assert row["steps"] == gpu_training.STEPS
    losses = [float(each) for each in row["losses"].split(", ")]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    assert row["difference after resuming"] < 1e-6 < row["largest change"]
    assert row["resumed from"] in ("checkpoint-1", "the start")


@pytest.mark.slow(seconds=3)
def test_a_configuration_is_ok_or_an_error_in_one_line() -> None:
    for case in gpu_training.CONFIGURATIONS:
        (row,) = part_of("configurations").run(case, TINY)
        assert (row.get("result") == "ok") != (ERROR in row)
        assert "\n" not in row.get(ERROR, "")
    assert gpu.no_device(TINY) == ""
