"""Write the report of a run: page, figures as JSON, pictures and tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dto.redact import public_names
from dto.reporting.batch import draw_batch
from dto.reporting.pictures import draw
from dto.reporting.report import Report, measure
from dto.reporting.sections import run_page
from dto.reporting.table import write_json, write_tables
from dto.runs import manifest
from dto.runs.reader import RunReader


def report(run_directory: Path | str) -> Report:
    """Write `report.html`, `report.json`, the picture and the tables below `RUN/report`.

    Everything is compared with the model `base` under the first exit whose policy is none, over
    the same problems and seeds, task by task; with several tasks there is a mean over them. The
    page is one to send around (:mod:`dto.reporting.sections`), the picture is `report.png` and
    `report.svg`, the tables are `tables.md`, `tables.csv`, `difficulty.csv`
    (:mod:`dto.reporting.table`). Where questions were asked together, `batch.png` and `batch.svg`
    stand beside them. Raises DtoError when the run has not been evaluated.
    """
    run = RunReader(run_directory)
    result = measure(run.path)
    directory = run / "report"
    directory.mkdir(exist_ok=True)
    write_json(directory / "report.json", result.as_json())
    draw_report(result, directory)
    if result.batch is not None:
        draw_batch(result.batch, directory, run.recipe.name)
    write_tables(directory, result.title, result.rows, result.averages, result.difficulty)
    manifest.write_text(directory / "report.html", run_page(run, result))
    return result


def draw_report(result: Report, directory: Path) -> None:
    """Write `report.png` and `report.svg`: models by names that can be shown to others."""
    names = public_names([row.model for row in result.rows])
    draw([replace(row, model=names[row.model]) for row in result.rows], directory, result.title)
