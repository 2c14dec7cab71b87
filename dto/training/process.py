"""The training process, which `dto.training.train` starts.

python -m dto.training.process RUN
python -m dto.training.process RUN --processes 8     # this process becomes `accelerate launch`
accelerate launch -m dto.training.process RUN        # several machines

Processes that train together end together: if one fails, accelerate ends the others; if
`accelerate launch` or its parent is killed, the kernel ends them (`dto.concurrency`). An optimizer
step has as many rows as with one process.

The libraries are imported in functions: by then garbage is collected rarely, and they load faster.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dto.errors import DtoError
from dto.processes import collect_rarely, die_with_parent
from dto.recipe import load_recipe
from dto.training.devices import check_devices
from dto.training.train import LOST

DISK_ERRORS = ("(os error", "PytorchStreamWriter", "inline_container")
"""Parts of the messages of safetensors and torch for a file that cannot be written."""
PEER_ERRORS = ("Connection closed by peer", "Connection reset by peer")
"""Parts of gloo's message in a process when another one has ended, which has said why."""
GROUP_ERRORS = ("gloo/transport", "NCCL")
"""Parts of the messages of gloo and NCCL where processes cannot reach each other."""


def quiet() -> None:
    """Silence the progress bars and warnings of libraries."""
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()


def say(line: str) -> None:
    """Write a line to stdout at once, in one piece: several processes write to the same pipe."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def guarded(work: Callable[[], object]) -> int:
    """Run the work; return 0, or 1 with a line `error: …` on stdout, or 130 after Ctrl-C.

    A process that has lost the others says `lost: …`, since one of them may know more.
    """
    from safetensors import SafetensorError
    from torch.distributed import DistError
    from torch.distributed.checkpoint.api import CheckpointException  # of a sharded checkpoint

    try:
        work()
    except DtoError as error:
        say(f"error: {error}")
        return 1
    except (OSError, RuntimeError, SafetensorError, CheckpointException) as failure:
        cause: BaseException = failure
        if isinstance(failure, CheckpointException):
            cause = next((error for error, _ in failure.failures.values()), failure)
        reason = " ".join(str(cause).split())
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1 and isinstance(cause, RuntimeError)
        if several and any(part in reason for part in PEER_ERRORS):
            return 1
        if several and (
            isinstance(cause, DistError) or any(part in reason for part in GROUP_ERRORS)
        ):
            which = f"process {int(os.environ['RANK']) + 1} of {os.environ['WORLD_SIZE']}"
            say(f"{LOST}train: {which} cannot reach the others ({reason[:300]}); checkpoints are "
                "kept: run the same command to resume")  # fmt: skip
            return 1
        if not isinstance(cause, OSError):
            if all(part not in reason for part in DISK_ERRORS):
                raise
            reason = f"cannot write ({reason})"
        way_out = "finished rows are kept: free some space and run the same command again"
        say(f"error: train: {reason}; {way_out}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def launch(options: argparse.Namespace) -> int:
    """Be `accelerate launch`: start the processes, wait for them, and return an exit code."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    recipe = load_recipe(options.run / "recipe.yaml")

    def work() -> None:
        check_devices(recipe, options.processes)
        arguments = launch_arguments(options, bf16=recipe.train.bf16)
        logging.disable()  # the processes say what has happened to them
        try:
            launch_command(launch_command_parser().parse_args(arguments))
        except (ValueError, ImportError) as error:  # of the file; deepspeed is not installed
            raise DtoError(f"train.accelerate: {' '.join(str(error).split())}") from None
        finally:
            logging.disable(logging.NOTSET)

    try:
        return guarded(work)
    except SignalException as error:
        return 128 + int(error.sigval)
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            if failure.exitcode < 0:
                name = signal.Signals(-failure.exitcode).name
                say(f"error: train: process {rank + 1} of {options.processes} was killed ({name}): "
                    "run the same command to resume")  # fmt: skip
                return 1
        return int(error.get_first_failure()[1].exitcode)


def launch_arguments(options: argparse.Namespace, *, bf16: bool) -> list[str]:
    """The arguments of `accelerate launch`; its own defaults file is not used."""
    threads = max(1, (os.cpu_count() or 1) // options.processes)
    arguments = [
        "--num_processes", str(options.processes), "--num_machines", "1",
        "--main_process_port", "0",  # a free one
        "--mixed_precision", "bf16" if bf16 else "no", "--dynamo_backend", "no",
        "--num_cpu_threads_per_process", os.environ.get("OMP_NUM_THREADS", str(threads)),
    ]  # fmt: skip
    if options.accelerate:
        arguments += ["--config_file", str(options.accelerate)]
    else:  # on CPUs, too: it is torch.distributed.run, with a backend for the devices there are
        arguments += ["--multi_gpu", "--gpu_ids", "all"]
    arguments += ["--module", "dto.training.process", str(options.run)]
    arguments += ["--parent", str(os.getpid())]
    return arguments + ["--allow-code-execution"] * options.allow_code_execution


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the process; returns the exit code of `guarded`."""
    parser = argparse.ArgumentParser(prog="python -m dto.training.process", description=__doc__)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--parent", type=int, help="process id to end with")
    parser.add_argument("--allow-code-execution", action="store_true", help="run programs")
    parser.add_argument("--processes", type=int, default=1, help="number of processes to start")
    parser.add_argument("--accelerate", type=Path, help="configuration file for accelerate")
    options = parser.parse_args(arguments)
    if options.parent is not None:
        die_with_parent(options.parent)
    collect_rarely()
    if options.processes > 1:
        return launch(options)
    if os.environ.get("RANK", "0") == "0":
        logging.basicConfig(stream=sys.stdout, format="%(message)s")
        logging.getLogger("dto.train").setLevel(logging.INFO)
    quiet()

    def work() -> None:
        from dto.training.fit import fit

        recipe = load_recipe(options.run / "recipe.yaml")
        fit(options.run, recipe, allow_code_execution=options.allow_code_execution)

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
