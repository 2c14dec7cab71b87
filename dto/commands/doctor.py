"""`dto doctor`: what this machine can do."""

from __future__ import annotations

import os


def doctor() -> None:
    """Which engines this machine has, with versions."""
    from dto.runs.manifest import provenance

    for package, version in provenance()["versions"].items():
        print(f"{package:<13} {version}")
    import torch

    from dto.engines import usable

    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    print(f"cores         {os.cpu_count()}")
    print(f"accelerator   {accelerator or 'none'}")
    for engine, state in usable():
        print(f"{engine:<13} {state}")
