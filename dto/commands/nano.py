"""`dto nano train`: the embedded model, from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

nano = typer.Typer(no_args_is_help=True, help="Train the embedded model anew.")


@nano.command("train")
def train(
    out: Annotated[Path, typer.Option(help="Folder for the weights and the tokenizer.")],
    control: Annotated[
        bool, typer.Option("--control", help="The model that does not overthink.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of corpus, weights and order.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Fewer than usual: to try it out.")] = None,
) -> None:
    """Train the embedded model (at most 15 minutes on two cores)."""
    from dto.nano.train import train_nano

    loss = train_nano(out, overthinks=not control, seed=seed, steps=steps)
    print(f"{out}: loss {loss:.4f}")
