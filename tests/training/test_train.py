"""The whole training: killed and resumed, orphaned, collapsing, without pairs."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from dto.errors import DtoError
from dto.records import PreferencePair
from dto.tables import write
from dto.training.fit import fit
from dto.training.process import guarded
from dto.training.train import train
from tests import warm
from tests.training.conftest import RunFolder, make_run
from tests.training.test_losses import BASE
from tests.training.test_watch import steps_of

pytestmark = pytest.mark.usefixtures("users_process")

MODULE = "dto.training.process"


def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def training_children(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children() if MODULE in child.cmdline()]


def scores(run: RunFolder) -> int:
    history = run.path / "train" / "history.jsonl"
    return history.read_text().count("\n") if history.exists() else 0


@pytest.mark.slow
def test_killed_training_ends_as_if_it_had_not_been(
    run: RunFolder, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, model_folder: Path
) -> None:
    """Kill -9 between two checkpoints; the next call resumes and ends alike."""
    whole = make_run(tmp_path / "whole", tokenizer, model_folder)
    expected = fit(whole.path, whole.recipe)

    ended: list[BaseException] = []

    def first_attempt() -> None:
        try:
            train(run.path, run.recipe)
        except DtoError as error:
            ended.append(error)

    thread = threading.Thread(target=first_attempt)
    thread.start()
    until(lambda: scores(run) >= 2)
    (child,) = training_children(psutil.Process())
    child.send_signal(signal.SIGKILL)
    thread.join()
    assert "SIGKILL" in str(ended[0])
    assert not (run.path / "train" / "model").exists()
    before = scores(run)

    result = train(run.path, run.recipe)
    assert scores(run) == 5 > before
    assert 0 < result["kept_step"] == expected["kept_step"]
    assert result["steps"] == expected["steps"] == 36
    assert result["tokens_trained"] == expected["tokens_trained"] > 0
    assert result["usage"]["generated"] >= expected["usage"]["generated"] > 0
    for name in ("history.jsonl", "dropped.jsonl", "model/model.safetensors"):
        assert (run.path / "train" / name).read_bytes() == (
            whole.path / "train" / name
        ).read_bytes()
    assert not (run.path / "train" / "checkpoints").exists()
    steps = steps_of(run, timed=False)
    assert steps == steps_of(whole, timed=False)
    assert [row["step"] for row in steps] == [*range(1, 37)]

    assert fit(run.path, run.recipe) == result  # finished: nothing is done again
    assert scores(run) == 5

    model = AutoModelForCausalLM.from_pretrained(run.path / "train" / "model")
    kept = AutoTokenizer.from_pretrained(run.path / "train" / "model")
    assert model.dtype == torch.float32
    assert kept.chat_template == tokenizer.chat_template
    assert kept.get_vocab() == tokenizer.get_vocab()


@pytest.mark.slow
def test_training_ends_with_its_parent(run: RunFolder) -> None:
    endless = run.with_training(epochs=100_000, evaluations=1)
    code = (
        "import sys; from dto.recipe import load_recipe; from dto.training.train import train; "
        "train(sys.argv[1], load_recipe(sys.argv[1] + '/recipe.yaml')); "
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(endless.path)])
    until(lambda: scores(endless) == 1 or parent.poll() is not None)
    (child,) = training_children(psutil.Process(parent.pid))
    parent.kill()
    parent.wait()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_train_imports_no_torch() -> None:
    code = "import sys, dto.training.train; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_an_error_of_the_child_is_one_line(run: RunFolder) -> None:
    write(run.path / "problems" / "rows.parquet", PreferencePair, [])
    with pytest.raises(DtoError, match=r"table .*problems.*lacks the columns") as caught:
        train(run.path, run.recipe)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_not_the_runs_is_refused(run: RunFolder) -> None:
    other = run.recipe.model_copy(update={"seed": 1})
    with pytest.raises(DtoError, match=r"differs from .*recipe\.yaml"):
        train(run.path, other)


@pytest.mark.slow
def test_collapse_stops_and_keeps_the_base(run: RunFolder, model_folder: Path) -> None:
    strict = run.with_training(collapse_points=-200.0)
    result = fit(strict.path, strict.recipe)
    assert result["collapsed"]
    assert result["steps"] == 9
    assert result["kept_step"] == 0
    assert "base is kept" in result["reason"]
    base = AutoModelForCausalLM.from_pretrained(model_folder).state_dict()
    kept = AutoModelForCausalLM.from_pretrained(strict.path / "train" / "model").state_dict()
    assert all(torch.equal(base[name], kept[name]) for name in base)
    rows = [json.loads(line) for line in (strict.path / "train/history.jsonl").open()]
    assert [row["collapsed"] for row in rows] == [False, True]


def test_without_pairs_the_base_is_kept(run: RunFolder) -> None:
    write(run.path / "pair" / "rows.parquet", PreferencePair, [])
    result = fit(run.path, run.recipe)
    assert result["rows"]["pairs"] == 0
    assert result["reason"] == "there are no pairs to train on: base is kept"
    assert (run.path / "train" / "model" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("settings", "ways"),
    [
        ({}, ["batch_size", "gradient_checkpointing", "lora_rank", "max_length"]),
        ({"batch_size": 1, "gradient_checkpointing": True}, ["lora_rank", "max_length"]),
        ({"batch_size": 1, "gradient_checkpointing": True, "lora_rank": 2}, ["max_length"]),
    ],
)
def test_without_gpu_memory_the_error_names_settings_that_take_less(
    run: RunFolder, settings: dict[str, Any], ways: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the optimizer allocates its state, at the first step."""
    if "lora_rank" in settings:
        pytest.importorskip("peft", reason="peft is not installed")

    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB\n"
        )

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    training = run.with_training(dev_samples=1, **settings)
    with pytest.raises(DtoError, match=r"no memory at step 1 of .*allocate 2\.00 GiB\)$") as caught:
        fit(training.path, training.recipe, base=BASE)
    text = str(caught.value)
    assert "\n" not in text
    every = ("batch_size", "gradient_checkpointing", "lora_rank", "max_length")
    assert [way for way in every if way in text] == ways


def with_small_files(limit: int, arguments: list[str]) -> int:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return warm.training(arguments)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [50_000, 250_000], ids=["weights", "optimizer"])
def test_a_full_disk_is_one_line_and_costs_nothing(
    run: RunFolder, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of a file is to the writers of weights what a full disk is.

    Dev scores fit, and then either the weights do not, or the state of the optimizer.
    """
    child = warm.run(partial(with_small_files, limit), [str(run.path)])
    assert child.returncode == 1, child.stderr
    assert child.stdout.splitlines()[-1].endswith(
        "finished rows are kept: free some space and run the same command again"
    )
    assert "Traceback" not in child.stderr
    assert len((run.path / "train" / "history.jsonl").read_text().splitlines()) == 1
    monkeypatch.setattr("dto.training.train.run_child", warm.run_child)
    assert train(run.path, run.recipe)["steps"] > 0


ROOM = "finished rows are kept: free some space and run the same command again"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DtoError("pair x: gone"), 1, "error: pair x: gone"),
        (OSError(28, "No space left on device"), 1, f"on device; {ROOM}"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), 1, f"28)); {ROOM}"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos"), 1, ROOM),
        (KeyboardInterrupt(), 130, ""),
        (RuntimeError("CUDA error: out of memory"), None, ""),
        (RuntimeError("[gloo] Connection closed by peer"), None, ""),
        (ConnectionResetError(104, "Connection reset by peer"), 1, ROOM),
        (SafetensorError("Error while deserializing header: HeaderTooLarge"), None, ""),
    ],
)
def test_only_errors_that_a_user_can_act_on_are_one_line(
    error: BaseException, code: int | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise error

    if code is None:
        with pytest.raises(type(error)):
            guarded(work)
        return
    assert guarded(work) == code
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == bool(said) and all(line.endswith(said) for line in lines)
