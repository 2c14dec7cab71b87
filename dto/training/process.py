"""The training process, which `dto.training.train` starts.

python -m dto.training.process RUN
accelerate launch -m dto.training.process RUN        # several GPUs, several machines

The libraries are imported in functions: by then garbage is collected rarely, and they load faster.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dto.concurrency import die_with_parent
from dto.errors import DtoError
from dto.garbage import collect_rarely
from dto.recipe import load_recipe

DISK_ERRORS = ("(os error", "PytorchStreamWriter", "inline_container")
"""Parts of the messages of safetensors and torch for a file that cannot be written."""


def quiet() -> None:
    """Silence the progress bars and warnings of libraries."""
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()


def guarded(work: Callable[[], object]) -> int:
    """Run the work; return 0, or 1 with a line `error: …` on stdout, or 130 after Ctrl-C."""
    from safetensors import SafetensorError

    try:
        work()
    except DtoError as error:
        print(f"error: {error}", flush=True)
        return 1
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        if not isinstance(error, OSError):
            if all(part not in reason for part in DISK_ERRORS):
                raise
            reason = f"cannot write ({reason})"
        way_out = "finished rows are kept: free some space and run the same command again"
        print(f"error: train: {reason}; {way_out}", flush=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the process; returns the exit code of `guarded`."""
    parser = argparse.ArgumentParser(prog="python -m dto.training.process", description=__doc__)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--parent", type=int, help="process id to end with")
    parser.add_argument("--allow-code-execution", action="store_true", help="run programs")
    options = parser.parse_args(arguments)
    if options.parent is not None:
        die_with_parent(options.parent)
    collect_rarely()
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
