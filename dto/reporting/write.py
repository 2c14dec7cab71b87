"""Write the report of a run: its page, figures as JSON, pictures and tables."""

from __future__ import annotations

from pathlib import Path

from dto.redact import public_names
from dto.reporting.page import Headline, render_page
from dto.reporting.pictures import draw
from dto.reporting.report import Report, measure
from dto.reporting.reproduce import reproduce_section
from dto.reporting.table import papers_table, write_json
from dto.runs.manifest import write_text
from dto.runs.reader import RunReader


def report(run_directory: Path | str) -> Report:
    """Write `report.html`, `report.json`, the picture and the tables below `RUN/report`.

    Everything is compared with the model `base` under the first exit whose policy is none, over
    the same problems and seeds, task by task; with several tasks there is a mean over them. The
    page is one to send around, the picture is `report.png` and `report.svg`. `tables.md` and
    `tables.csv` are laid out as in the papers, and hold shares as percent and as they are. Raises
    DtoError when the run has not been evaluated.
    """
    run = RunReader(run_directory)
    result = measure(run.path)
    directory = run / "report"
    directory.mkdir(exist_ok=True)
    write_json(directory / "report.json", result.as_json())
    draw_report(result, directory)
    _write_tables(directory, result)
    write_text(directory / "report.html", run_page(run, result.public()))
    return result


def draw_report(result: Report, directory: Path) -> None:
    """Write `report.png` and `report.svg`: models by names that can be shown to others."""
    draw(result.public().rows, directory, result.title)


def _write_tables(directory: Path, result: Report) -> None:
    papers = papers_table(result.rows, result.averages)
    parts = [
        f"# {result.title}",
        "Accuracy in %, tokens of a response with its trials, and these in % of the base's.",
        papers.markdown(),
    ]
    write_text(directory / "tables.md", "\n\n".join(parts) + "\n")
    write_text(directory / "tables.csv", papers.csv())


def run_page(run: RunReader, report: Report) -> str:
    """The HTML of a run's report; its models by names that can be shown to others."""
    recipe = run.recipe
    model = f"{public_names([recipe.model.name])[recipe.model.name]} on {recipe.model.engine}"
    asked = report.title.removeprefix(report.name).removeprefix(": ")
    subtitle = f"{model}, {asked or 'nothing evaluated'}, seed {recipe.seed}"
    sections = [*report.sections(), reproduce_section(run)]
    return render_page(report.name, subtitle, _headlines(report), sections)


def _headlines(report: Report) -> list[Headline]:
    """The trained model, the fewest tokens that no loss is shown of, and when it has paid."""
    failed = {row.arm for row in report.rows if row.verdict == "too many failed"}
    compared = [
        (row, row.gain, row.ratio)
        for row in report.averages or report.rows
        if row.arm not in failed and row.gain is not None and row.ratio is not None
    ]
    trained = [part for part in compared if part[0].arm == ("trained", report.plain)]
    others = [part for part in compared if part not in trained and part[1].high >= 0]
    headlines = []
    for row, gain, ratio in [*trained, *sorted(others, key=lambda part: part[2].value)[:1]]:
        name = row.model if row.exit == report.plain else f"{row.model}, {row.exit}"
        mood = "good" if gain.low > 0 else "bad" if gain.high < 0 else "open"
        claim = {"good": "a gain", "bad": "a loss", "open": "no difference shown"}[mood]
        change = "fewer" if ratio.value <= 1 else "more"
        headlines.append(
            Headline(
                name if row.model == "trained" and row.exit == report.plain
                else f"{name}: the fewest where no loss is shown",
                f"{abs(100 * (1 - ratio.value)):.0f} % {change} tokens",
                f"accuracy {gain:+%} points: {claim}",
                f"{ratio:%} % of the base's tokens",
                mood,
            )
        )  # fmt: skip
    if (even := report.break_even) is not None:
        what = "optimizing and training have paid for themselves"
        spent = f"{even.tokens.spent / 1e6:,.2f} million tokens went into them"
        headlines.append(Headline(what, even.tokens.after, "", spent))
    return headlines
