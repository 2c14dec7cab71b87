"""Execute notebooks, and write their outputs: `python -m tests.notebooks` does so for all of them.

Outputs are kept, but not what depends on the machine: timings, and what libraries warn of.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = (
    "01_inspect_pruned_trajectories",
    "02_exit_curves_and_pearls",
    "03_compare_methods",
    "04_your_own_model",
)
_SECONDS = re.compile(r", [\d,]+\.\d s$", re.MULTILINE)
"""What stages took."""


def read(name: str) -> Any:
    """A notebook as it is committed."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def executed(name: str, directory: Path) -> Any:
    """The same with the outputs that it gives in a directory; raises what a cell raises."""
    notebook = read(name)
    client = NotebookClient(
        notebook,
        timeout=900,
        resources={"metadata": {"path": str(directory)}},
        record_timing=False,
        coalesce_streams=True,
    )
    asyncio.run(client.async_execute())
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
            for each in cell.outputs:
                if "text" in each:
                    each.text = _SECONDS.sub("", each.text.replace("\r\n", "\n"))
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def main() -> None:
    """Write all outputs anew."""
    with tempfile.TemporaryDirectory() as directory:
        for name in NAMES:
            nbformat.write(executed(name, Path(directory)), FOLDER / f"{name}.ipynb")
            print(name)


if __name__ == "__main__":
    main()
