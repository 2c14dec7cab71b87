"""Several processes: how they start, train the same, end together, and go on after a kill.

They train on CPUs with gloo. accelerate knows FSDP only with an accelerator: tests of it say that
there is one, which is the CPU (`sharded`).
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
from argparse import Namespace
from functools import partial
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file
from torch.distributed import DistBackendError, DistNetworkError
from transformers import PreTrainedTokenizerBase

from dto.errors import DtoError
from dto.recipe import load_recipe
from dto.runs.run import settings_of
from dto.training import process
from dto.training.devices import check_devices
from dto.training.process import launch_arguments, main
from dto.training.train import accelerate_file, check_training, launching, train
from dto.training.trainers import LONGEST_WAIT_SECONDS
from tests import warm
from tests.commands import dto
from tests.training.conftest import RunFolder, make_run
from tests.training.test_grpo import by_place, steps_of
from tests.training.test_train import ROOM, scores, until

TWO = {"processes": 2, "batch_size": 2, "gradient_accumulation": 2, "dev_samples": 1, "epochs": 3}
LAST = {"keep": "last", "collapse_truncated": 1.0, "collapse_points": 200.0}


class Ended(NamedTuple):
    """How a process has ended."""

    code: int | None
    stdout: str
    stderr: str


class Team:
    """Two processes that train together, forks of one that has imported torch."""

    def __init__(self, entry: Any, run: RunFolder) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.files: list[list[Path]] = []
        self.started: list[BaseProcess] = []
        for rank in range(2):
            environment = environment_of(run) | {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
            self.files.append([run.path / f"{rank}.{stream}" for stream in ("out", "err")])
            opened = [
                os.open(each, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for each in self.files[-1]
            ]
            arguments = [str(run.path)]
            self.started.append(warm.process(entry, arguments, *opened, environment=environment))
            for each in opened:
                os.close(each)

    def end(self) -> list[Ended]:
        ended = []
        for started, files in zip(self.started, self.files, strict=True):
            started.join(120)
            texts = [file.read_text(encoding="utf-8") for file in files]
            ended.append(Ended(started.exitcode, *texts))
            started.kill()
        return ended

    def kill(self) -> None:
        for each in self.started:
            each.kill()
        self.end()


def environment_of(run: RunFolder) -> dict[str, str]:
    """The environment that `accelerate launch` gives to the processes of a run."""
    file = run.recipe.train.accelerate
    options = Namespace(
        processes=2, accelerate=accelerate_file(file).path if file else None, run=run.path,
        allow_code_execution=False,
    )  # fmt: skip
    arguments = launch_arguments(options, bf16=run.recipe.train.bf16)
    parsed, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    return dict(prepare_multi_gpu_env(parsed)) | {"OMP_NUM_THREADS": "1"}


def together(entry: Any, run: RunFolder) -> list[Ended]:
    return Team(entry, run).end()


def sharded(arguments: list[str]) -> int:
    """Be a process of a training with FSDP2, whose accelerator is the CPU."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType
    from transformers import training_args

    from dto.training import trainers

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    state: Any = PartialState
    state._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    trainers.on_cpu = lambda recipe: False
    training_args.is_torch_bf16_gpu_available = lambda: True
    return main(arguments)


def sharded_and_rewarded(arguments: list[str]) -> int:
    """Be such a process; each group of responses has an advantage."""
    from dto.training import grpo

    grpo.reward_of = by_place
    return sharded(arguments)


def patient(entry: Any, arguments: list[str]) -> int:
    """Train, and then see how long the processes would have waited in each of their groups."""
    from torch.distributed.distributed_c10d import _world

    code = int(entry(arguments))
    waits = {
        group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
        for group in _world.pg_map
    }
    print("waits", *waits, flush=True)
    return code


def lost_in_the_second(arguments: list[str]) -> int:
    """The loss of the second process is not a number from its second step on."""
    from dto.training.trainers import SimPOTrainer

    original = SimPOTrainer.get_batch_loss_metrics

    def lost(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss, metrics = original(self, *args, **kwargs)
        broken = os.environ["RANK"] == "1" and self.state.global_step == 1
        return loss * (float("nan") if broken else 1.0), metrics

    SimPOTrainer.get_batch_loss_metrics = lost  # type: ignore[method-assign]
    return main(arguments)


def with_small_files(entry: Any, ranks: str, arguments: list[str]) -> int:
    if os.environ["RANK"] in ranks:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    return int(entry(arguments))


def files_of(run: RunFolder, *names: str) -> list[bytes]:
    return [(run.path / "train" / name).read_bytes() for name in names]


def weights_of(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(run.path / "train" / "model" / "model.safetensors")


@pytest.fixture
def other(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, model_folder: Path) -> RunFolder:
    return make_run(tmp_path / "other", tokenizer, model_folder)


@pytest.mark.slow(seconds=45)
@pytest.mark.usefixtures("users_process")
def test_two_processes_are_started_killed_and_resumed(run: RunFolder, other: RunFolder) -> None:
    """With their parent all of them end; and the weights are those of a training without a kill."""
    settings = TWO | LAST
    whole, killed = other.with_training(**settings), run.with_training(**settings)
    assert [each.code for each in together(main, whole)] == [0, 0]
    code = (
        "import sys; from dto.recipe import load_recipe; from dto.training.train import train; "
        "train(sys.argv[1], load_recipe(sys.argv[1] + '/recipe.yaml'))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(killed.path)])
    until(lambda: scores(killed) >= 2 or parent.poll() is not None)
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len([child for child in children if "--parent" in child.cmdline()]) == 3
    parent.kill()
    parent.wait()
    gone = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    until(lambda: all(not each.is_running() or each.status() in gone for each in children))
    before = scores(killed)

    result = train(killed.path, killed.recipe)
    assert scores(killed) == 5 > before
    assert result["steps"] == result["kept_step"] == 18
    names = ("history.jsonl", "model/model.safetensors")
    assert files_of(killed, *names) == files_of(whole, *names)
    finished = json.loads((whole.path / "train" / "result.json").read_text())
    assert result["tokens_trained"] == finished["tokens_trained"] > 0
    efforts = (killed.path / "train" / "effort.jsonl").read_text().splitlines()
    assert len(efforts) == 5  # each checkpoint was measured once


@pytest.mark.slow(seconds=30)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "method": "grpo",
            "group": 2,
            "bf16": True,
            "lora_rank": 2,
            "learning_rate": 1e-3,
            "evaluations": 2,
            "epochs": 0.5,
            "response_tokens": 16,
        },
    ],
    ids=["simpo", "grpo-lora-bf16"],
)
def test_a_model_split_by_fsdp_is_killed_and_resumed(
    settings: dict[str, Any], run: RunFolder, other: RunFolder, model_folder: Path
) -> None:
    """Its head is tied. What is kept is put together from the shards of a checkpoint."""
    if settings:
        pytest.importorskip("peft", reason="peft is not installed")
    fsdp = TWO | LAST | {"accelerate": "fsdp"} | settings
    whole, killed = other.with_training(**fsdp), run.with_training(**fsdp)
    entry = sharded_and_rewarded if settings else sharded
    ended = together(entry, whole)
    assert [each.code for each in ended] == [0, 0], ended[0].stderr
    team = Team(entry, killed)
    until(lambda: scores(killed) >= 2)
    team.kill()
    shards = list((killed.path / "train" / "checkpoints").glob("*/pytorch_model_fsdp_0/*.distcp"))
    assert len(shards) == 2 * (scores(killed) - 1)
    assert [each.code for each in together(entry, killed)] == [0, 0]
    names = ("history.jsonl", "model/model.safetensors")
    assert files_of(killed, *names) == files_of(whole, *names)
    assert not settings or steps_of(killed) == steps_of(whole) != []
    base, kept = load_file(model_folder / "model.safetensors"), weights_of(whole)
    assert any(not torch.equal(kept[name], base[name].to(kept[name].dtype)) for name in base)
    if not settings:
        copies = killed.with_training(accelerate=None)
        shutil.rmtree(copies.path / "train")
        assert [each.code for each in together(main, copies)] == [0, 0]
        for name, tensor in weights_of(copies).items():
            torch.testing.assert_close(tensor, kept[name], atol=2e-3, rtol=0)


@pytest.mark.slow(seconds=5)
def test_a_loss_that_is_lost_in_one_process_ends_all_with_one_line(run: RunFolder) -> None:
    training = run.with_training(**TWO)
    for ended in together(lost_in_the_second, training):
        assert ended.code == 1 and "Traceback" not in ended.stderr
        line = ended.stdout.splitlines()[-1]
        assert line.startswith("error: train: loss is nan at step 2 of 18 in process 2 of 2: lower")


@pytest.mark.slow(seconds=10)
@pytest.mark.parametrize("entry", [main, sharded], ids=["copies", "fsdp"])
def test_all_groups_wait_for_hours_of_sampling(entry: Any, run: RunFolder) -> None:
    """transformers gives `ddp_timeout` to the groups of GPUs alone; gloo's own is 30 minutes."""
    more = {"accelerate": "fsdp"} if entry is sharded else {}
    training = run.with_training(**TWO | more | {"epochs": 1, "evaluations": 1})
    for ended in together(partial(patient, entry), training):
        assert ended.code == 0, ended.stderr
        assert ended.stdout.splitlines()[-1] == f"waits {float(LONGEST_WAIT_SECONDS)}"


@pytest.mark.slow(seconds=5)
def test_all_processes_stop_on_collapse(run: RunFolder) -> None:
    training = run.with_training(**TWO | {"collapse_points": -200.0})
    assert [each.code for each in together(main, training)] == [0, 0]
    result = json.loads((run.path / "train" / "result.json").read_text())
    assert result["collapsed"] and result["steps"] < 18 and result["kept_step"] == 0


@pytest.mark.parametrize(
    ("error", "processes", "said"),
    [
        (RuntimeError("[/x/gloo/transport/tcp/pair.cc:1] Connection closed by peer [::1]"), 2, ""),
        (RuntimeError("[/x/gloo/transport/tcp/unbound_buffer.cc:1] Timed out\nwaiting"), 2,
         "Timed out waiting"),
        (DistBackendError("NCCL error in: x.cpp:1,\nremote process exited"), 2, "NCCL error in"),
        (DistNetworkError("failed to recv, got 0 bytes"), 2, "got 0 bytes"),
        (DtoError("train: loss is nan"), 2, "error: train: loss is nan"),
        # near misses: faults of this process, whose traceback is needed
        (RuntimeError("CUDA error: device-side assert triggered"), 2, None),
        (DistBackendError("NCCL error in: x.cpp:1"), 1, None),
    ],
)  # fmt: skip
def test_a_process_that_lost_the_others_is_one_line(
    error: Exception,
    processes: int,
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("RANK", "1")

    def fail() -> None:
        raise error

    if said is None:
        with pytest.raises(type(error)):
            process.guarded(fail)
        return
    assert process.guarded(fail) == 1
    out = capsys.readouterr().out
    assert out.count("\n") == bool(said) and said in out
    if said and not said.startswith("error"):
        assert out.startswith("lost: train: process 2 of 2 cannot reach the others (")
        assert "run the same command to resume" in out


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["lost: no peers", "error: it is nan"], "it is nan"),
        (["lost: no peers", "lost: nor here"], "no peers"),
        (["error: first", "error: second"], "first"),
        (["step 1"], "exit code 1; its traceback is above"),
    ],
)
def test_the_process_that_knows_why_is_heard(
    lines: list[str], reason: str, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(command: Any, on_line: Any, environment: Any) -> int:
        for line in lines:
            on_line(f"{line}\n")
        return 1

    monkeypatch.setattr("dto.training.train.run_child", ended)
    with pytest.raises(DtoError, match=f"{reason}$"):
        train(run.path, run.recipe)


@pytest.mark.slow(seconds=10)
@pytest.mark.parametrize(("entry", "ranks"), [(main, "0"), (sharded, "01")], ids=["copies", "fsdp"])
def test_a_full_disk_is_one_line(entry: Any, ranks: str, run: RunFolder) -> None:
    """The process that cannot write says so; the other one ends without a word about itself."""
    more = {"accelerate": "fsdp"} if entry is sharded else {}
    training = run.with_training(**TWO | more)
    ended = together(partial(with_small_files, entry, ranks), training)
    assert [each.code for each in ended] == [1, 1], ended
    assert not [each.stderr for each in ended if "Traceback" in each.stderr]
    assert "".join(each.stdout for each in ended).splitlines()[-1].endswith(ROOM)
    assert scores(training) == 1


def test_a_step_has_as_many_rows_with_any_number_of_processes() -> None:
    train = {"train.batch_size": 2, "train.gradient_accumulation": 12}
    for processes in (1, 2, 3, 4, 6, 12):
        load_recipe("pipelines/quickstart.yaml", train | {"train.processes": processes})
    for processes, batch in ((5, 5), (8, 3), (24, 1)):
        with pytest.raises(DtoError) as caught:
            load_recipe("pipelines/quickstart.yaml", train | {"train.processes": processes})
        way_out = f"processes: set it to {processes}, and batch_size to {batch}"
        assert str(caught.value).endswith(way_out)


def test_how_a_training_is_spread_is_not_part_of_what_is_computed() -> None:
    """Digests of runs from before these settings are those of today."""
    plain = load_recipe("pipelines/quickstart.yaml")
    assert not {"train.processes", "train.accelerate", "train.optimizer"} & set(settings_of(plain))
    spread = load_recipe(
        "pipelines/quickstart.yaml",
        {"train.batch_size": 8, "train.gradient_accumulation": 2, "train.processes": 2,
         "train.accelerate": "fsdp"},
    )  # fmt: skip
    assert set(settings_of(spread)) == set(settings_of(plain))
    other = load_recipe("pipelines/quickstart.yaml", {"train.optimizer": "adamw_8bit"})
    assert settings_of(other)["train.optimizer"] == "adamw_8bit"


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, []),
        ({"processes": 1}, []),
        ({"processes": 2, "method": "none"}, []),
        ({"processes": 2}, ["--processes", "2"]),
        ({"processes": 2, "accelerate": "fsdp"}, ["--processes", "2", "--accelerate", "fsdp.yaml"]),
    ],
)
def test_a_process_is_told_what_to_start(
    settings: dict[str, Any], options: list[str], run: RunFolder
) -> None:
    recipe = run.with_training(gradient_accumulation=2, **settings).recipe
    assert [each.rsplit("/", 1)[-1] for each in launching(recipe)] == options


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"own\.yaml': there is no such file: use fsdp, deepspeed, or a file"),
        ("[", r"own\.yaml' cannot be read: "),
        ("- 1", r"its distributed_type is None: set it to MULTI_GPU, FSDP, DEEPSPEED"),
        ("distributed_type: 'NO'", r"its distributed_type is NO: set it to"),
        ("distributed_type: FSDP", r"its fsdp_config.fsdp_version is 1: set it to 2"),
        ("{distributed_type: FSDP, fsdp_config: {fsdp_version: 1}}", r"fsdp_version is 1"),
        ("{distributed_type: FSDP, fsdp_config: {fsdp_version: 2}}", ""),
        (
            "{distributed_type: FSDP, fsdp_config: {fsdp_version: 2, "
            "fsdp_cpu_ram_efficient_loading: true}}",
            r"fsdp_cpu_ram_efficient_loading to false",
        ),
        ("distributed_type: MULTI_GPU", ""),
    ],
)
def test_a_file_for_accelerate(content: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    if not said:
        assert accelerate_file(str(path)).path == path
        return
    with pytest.raises(DtoError, match=said) as caught:
        accelerate_file(str(path))
    assert "\n" not in str(caught.value)


SPREAD = {"batch_size": 8, "gradient_accumulation": 2, "processes": 2}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (SPREAD | {"accelerate": "no.yaml"}, "train.accelerate = 'no.yaml': there is no such file"),
        (SPREAD | {"accelerate": "deepspeed"}, "needs deepspeed: pip install deepspeed"),
        (SPREAD, "train.processes = 2, but this machine shows 1 GPU(s)"),
        ({"optimizer": "adamw_8bit"}, "needs bitsandbytes and a GPU: pip install"),
        ({"lora_rank": 2}, "train.lora_rank = 2 needs peft: pip install 'dto[peft]'"),
        ({"report_to": "[wandb]"}, "train.report_to: wandb is not installed"),
        ({"engine": "vllm", "engine_gpus": "[3]"}, "train.engine_gpus names GPU 3, and this"),
    ],
)
def test_what_a_training_lacks_ends_a_run_before_its_first_stage(
    changes: dict[str, Any],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("dto.training.train.find_spec", lambda name: None)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setattr("dto.training.devices.visible", lambda: ["0"])
    settings = [f"--set=train.{key}={value}" for key, value in changes.items()]
    code, out, err = dto("run", "quickstart", f"--out={tmp_path / 'x'}", *settings, capsys=capsys)
    assert code == 1 and said in out + err and err.count("\n") == 1
    assert not (tmp_path / "x" / "problems").exists()


def test_what_no_training_uses_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dto.training.train.find_spec", lambda name: None)
    monkeypatch.setattr("dto.training.devices.visible", lambda: ["0"])
    for changes in (
        {"train.method": "none", "train.lora_rank": 2, "train.report_to": ["wandb"]},
        {"train.method": "none", "train.engine": "vllm", "train.engine_gpus": [3]},
        {"train.engine_gpus": [3]},  # of an engine that is not there
        {},
    ):
        check_training(load_recipe("pipelines/quickstart.yaml", changes))


@pytest.mark.parametrize("name", ["fsdp", "deepspeed"])
def test_packaged_files_are_those_of_accelerate(name: str) -> None:
    arguments = launch_arguments(
        Namespace(
            processes=2, accelerate=accelerate_file(name).path, run="RUN", allow_code_execution=True
        ),
        bf16=True,
    )
    parsed, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    assert (parsed.use_fsdp, parsed.use_deepspeed) == (name == "fsdp", name == "deepspeed")
    assert (parsed.num_processes, parsed.mixed_precision) == (2, "bf16")
    assert parsed.training_script == "dto.training.process"
    assert parsed.training_script_args[0] == "RUN"
    text = accelerate_file(name).path.read_text(encoding="utf-8")
    assert ("NOT TRIED" in text) == (name == "deepspeed")
    assert yaml.safe_load(text)["distributed_type"] == name.upper()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "error: train.accelerate: DeepSpeed is not installed"),
        ({"own_key": 1}, "error: train.accelerate: The config file at"),
    ],
)
def test_what_accelerate_does_not_take_is_one_line(
    change: dict[str, Any],
    said: str,
    run: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not change and find_spec("deepspeed") is not None:
        pytest.skip("deepspeed is installed")
    monkeypatch.setattr(process, "check_devices", lambda *_: None)
    monkeypatch.setattr(process, "die_with_parent", lambda *_: None)
    content = yaml.safe_load(accelerate_file("deepspeed").path.read_text(encoding="utf-8"))
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(content | change), encoding="utf-8")
    training = run.with_training(gradient_accumulation=2, processes=2, accelerate=str(path))
    assert main([str(training.path), "--processes", "2", "--accelerate", str(path)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(said)


@pytest.mark.parametrize(
    ("gpus", "device", "settings", "said"),
    [
        (0, "auto", {}, ""),
        (
            0,
            "auto",
            {"accelerate": "fsdp"},
            "splits a model over GPUs, but this training runs on CPUs",
        ),
        (8, "cpu", {}, ""),
        (8, "cpu", {"accelerate": "fsdp"}, "runs on CPUs: remove it"),
        (2, "auto", {"accelerate": "fsdp"}, ""),
        (1, "auto", {}, r"train.processes = 2, but this machine shows 1 GPU\(s\): set it to 1"),
    ],
)
def test_processes_need_gpus(
    gpus: int,
    device: str,
    settings: dict[str, Any],
    said: str,
    run: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: gpus)
    recipe = run.with_training(processes=2, gradient_accumulation=2, **settings).recipe
    model = recipe.model.model_copy(update={"device": device})
    recipe = recipe.model_copy(update={"model": model})
    if not said:
        check_devices(recipe, 2)
        return
    with pytest.raises(DtoError, match=said):
        check_devices(recipe, 2)


@pytest.mark.slow(seconds=8)
@pytest.mark.usefixtures("users_process")
def test_an_error_of_one_of_two_processes_is_one_line(
    run: RunFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    training = run.with_training(**TWO)
    (run.path / "problems" / "rows.parquet").unlink()
    with pytest.raises(DtoError) as caught:
        train(training.path, training.recipe)
    assert "\n" not in str(caught.value) and "problems" in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow(seconds=8)
@pytest.mark.usefixtures("users_process")
def test_a_process_that_is_killed_ends_the_others(run: RunFolder) -> None:
    training = run.with_training(**TWO | {"epochs": 1000})
    ended: list[BaseException] = []

    def attempt() -> None:
        try:
            train(training.path, training.recipe)
        except DtoError as error:
            ended.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    until(lambda: scores(training) >= 1)
    children = psutil.Process().children(recursive=True)
    ranks = [each for each in children if str(run.path) in each.cmdline()]
    ranks[-1].send_signal(signal.SIGKILL)
    thread.join(60)
    assert not thread.is_alive() and not any(each.is_running() for each in ranks)
    assert "of 2 was killed (SIGKILL): run the same command to resume" in str(ended[0])
