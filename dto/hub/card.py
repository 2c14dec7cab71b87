"""The dataset card: what is in it, where it comes from, what was dropped, what it cost."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import polars as pl
import yaml
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dto import tables
from dto.hub.folder import Published, data_files
from dto.hub.origins import Origin, models
from dto.pipeline import STAGES, shown_prompts
from dto.recipe import Recipe
from dto.redact import Redaction
from dto.reporting.cost import stage_costs
from dto.reporting.evaluation import Figures
from dto.reporting.funnel import DROPPED
from dto.reporting.pictures import COLOURS, INK
from dto.reporting.report import Report
from dto.reporting.write import draw_report
from dto.runs import manifest
from dto.runs.reader import RunReader
from dto.statistics import shown

TAGS = ("dto", "reasoning", "overthinking")
_LENGTHS = (
    ("sampled", "sample", "len"),
    ("finalized", "optimize", "tokens_after"),
    ("optimized", "prune", "tokens_after"),
    ("chosen", "pair", "chosen_tokens"),
    ("rejected", "pair", "rejected_tokens"),
    ("to several questions", "batch", "len"),
    ("labelled chains", "label", "tokens"),
)
BINS = 40
"""Of the histograms of lengths."""
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))

CITATIONS: Mapping[str, tuple[str, str]] = {
    "2505.21765": ("DTO", "dynamic thinking-pattern optimization: exits, pruning, pairs"),
    "2508.17803": ("DRQA", "batch prompts, labelled chains, training on judging them"),
    "2501.17703": ("CFT", "the verdict on a chain, imitated"),
    "2504.15895": ("DEER", "dynamic early exit in reasoning"),
    "2405.14734": ("SimPO", "the loss, with a reference-free reward"),
    "2401.08417": ("CPO", "the NLL anchor beside it"),
    "2305.18290": ("DPO", "the loss"),
    "2501.12570": ("O1-Pruner", "length-harmonizing weights"),
    "2402.03300": ("GRPO", "the training"),
    "2412.21187": ("2412.21187", "shortest responses, first correct solutions"),
    "2503.04472": ("DAST", "the token-length budget"),
}


class Shown(NamedTuple):
    """What a card says beside the tables: its name on the Hub, licence, sources, evaluation.

    `recipe` is the one that others may read (:func:`dto.hub.folder.shared_recipe`).
    """

    name: str
    recipe: Recipe
    license: str | None
    sources: Sequence[Origin]
    test_sources: Sequence[Origin]
    report: Report | None


def write_card(
    run: Path, folder: Path, shown: Shown, published: Published, private: Redaction
) -> str:
    """Write `README.md` and the pictures below `folder`; the text of the card."""
    from huggingface_hub import DatasetCardData

    recipe, name = shown.recipe, shown.name
    configs = list(data_files(folder))
    rows = {
        table.config: {split: tables.count(folder / path) for split, path in paths.items()}
        for table, paths in configs
    }
    lengths = _lengths(folder)
    pictures = _pictures(folder, lengths, shown.report)
    total = sum(sum(counts.values()) for counts in rows.values())
    first = manifest.read(folder / published.stages[0]) or {}
    data = DatasetCardData(
        license=shown.license,
        task_categories=["text-generation"],
        size_categories=next((size for most, size in _SIZES if total < most), "n>1M"),
        pretty_name=in_block(recipe.name),
        tags=[*TAGS, *(["preference", "trl"] if "pairs" in rows else [])],
        configs=[
            {
                "config_name": table.config,
                "data_files": [{"split": split, "path": path} for split, path in paths.items()],
                **({"default": True} if place == 0 else {}),
            }
            for place, (table, paths) in enumerate(configs)
        ],
    )  # fmt: skip
    text = render_card(
        "dataset_card.md.jinja",
        data.to_yaml(),
        name=name,
        recipe=recipe,
        changed=changed_settings(recipe),
        configs=[(table, rows[table.config]) for table, _ in configs],
        sources=shown.sources,
        test_sources=shown.test_sources,
        models=models(recipe),
        results=[] if shown.report is None else results(shown.report, private),
        prompts=[each[:2] for each in shown_prompts(recipe, published.stages)],
        dropped=_dropped(folder, (*published.stages, *published.withheld)),
        lengths=_length_lines(lengths),
        pictures=pictures,
        costs=[
            cost
            for cost in stage_costs(RunReader(run))
            if cost.stage in (*published.stages, "judge")
        ],
        redacted=published.redacted,
        withheld=published.withheld,
        left_out=published.left_out,
        trained="train" in published.stages,
        citations=cited(recipe, published.stages),
        versions=first.get("versions") or {},
        git=first.get("git") or {},
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    return text


def render_card(template: str, metadata: str, **values: Any) -> str:
    """A card from a template beside this module, under its metadata."""
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    environment.filters["block"] = in_block
    environment.filters["line"] = in_line
    source = (files("dto") / "hub" / template).read_text(encoding="utf-8")
    return (
        environment.from_string(source).render(metadata=metadata.strip(), **values).strip() + "\n"
    )


def in_block(text: str) -> str:
    """Text for a block of a card: it cannot end the block, and what cannot be seen is written out.

    So nobody's prompt turns the direction of what follows, or hides in a terminal.
    """
    return _UNSEEN.sub(_written_out, text).replace("```", "ʼʼʼ")


def in_line(text: object) -> str:
    """Text for a line or a cell of a card: no Markdown, no HTML, no second line."""
    plain = _UNSEEN.sub(_written_out, " ".join(str(text).split()))
    return _MEANS_SOMETHING.sub(r"\\\g<0>", plain.replace("&", "&amp;").replace("<", "&lt;"))


_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)
"""Control characters but tab and newline, and those that change the direction of writing."""
_MEANS_SOMETHING = re.compile(r"[\\|`*\[\]]|(?<!\w)_|_(?!\w)")


def _written_out(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def changed_settings(recipe: Recipe) -> str:
    """What the recipe sets other than by default, as YAML."""
    data = recipe.model_dump(mode="json", exclude_defaults=True)
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=10_000))


def cited(recipe: Recipe, stages: Sequence[str]) -> list[tuple[str, str, str]]:
    """(arXiv id, short name, what of it) of the methods that a run made use of."""
    judged = "train" in stages and recipe.train.method in ("drqa", "cft", "sft_batch")
    papers = {STAGES[name].paper for name in stages}
    together = judged or "2508.17803" in papers
    used = ["2505.21765"] if "2505.21765" in papers or not together else []
    used += ["2508.17803"] if together else []
    if any(exit.policy == "deer" for exit in recipe.evaluate.exits) and "evaluate" in stages:
        used.append("2504.15895")
    if "train" in stages:
        used += {
            "simpo": ["2405.14734", "2401.08417"], "dpo": ["2305.18290"],
            "o1_pruner": ["2501.12570"], "grpo": ["2402.03300"],
            "drqa": ["2402.03300"], "cft": ["2501.17703"],
        }.get(recipe.train.method, [])  # fmt: skip
    used += {"shortest": ["2412.21187"], "token_budget": ["2503.04472"]}.get(recipe.pair.data, [])
    return [(number, *CITATIONS[number]) for number in used]


class Result(NamedTuple):
    """One model under one exit on one task, in figures with 95 % intervals.

    `gain`, in points, and `share`, in percent of the base's tokens, are paired with the base by
    problem; empty for the base itself.
    """

    task: str
    model: str
    exit: str
    asked: str
    accuracy: str
    gain: str
    tokens: str
    share: str
    truncated: str
    failed: str


def results(report: Report, private: Redaction, models: Collection[str] = ()) -> list[Result]:
    """The rows of the table, of these models alone if any are named; with several tasks means too.

    Nothing is claimed of an arm of which too many responses failed.
    """
    rows = [
        Result(
            row.task or report.name, row.model, row.exit,
            f"{row.problems:,} × {row.more['samples']}", f"{row.accuracy:%}", _gain(row),
            f"{row.tokens}", _share(row), f"{row.truncated:,}", f"{row.failed:,}",
        )
        for row in report.rows
    ]  # fmt: skip
    rows += [
        Result(
            "mean", row.model, row.exit, f"{row.more['tasks']} tasks", f"{row.accuracy:%}",
            _gain(row), shown(row.tokens.value), _share(row), "", "",
        )
        for row in report.averages
    ]  # fmt: skip
    return [
        row._replace(model=private.text(row.model), task=private.text(row.task))
        for row in rows
        if not models or row.model in models
    ]


def _gain(row: Figures) -> str:
    if row.verdict == "too many failed":
        return row.verdict
    return "" if row.gain is None else f"{row.gain:+%}"


def _share(row: Figures) -> str:
    return "" if row.ratio is None else f"{row.ratio:%}"


def _dropped(folder: Path, stages: Sequence[str]) -> list[tuple[str, str, int, str]]:
    """(stage, reason, rows, what that means), from the files that are published."""
    found = []
    for stage in [name for name in STAGES if name in stages]:
        path = folder / stage / "dropped.jsonl"
        if path.is_file():
            with path.open(encoding="utf-8") as lines:
                counted = Counter(str(json.loads(line)["reason"]) for line in lines)
            found += [
                (stage, reason, count, DROPPED.get(reason, ""))
                for reason, count in sorted(counted.items())
            ]
    return found


def _lengths(folder: Path) -> dict[str, list[int]]:
    found = {}
    for name, stage, column in _LENGTHS:
        path = folder / stage / "rows.parquet"
        if path.is_file():
            wanted = pl.col("token_ids").list.len() if column == "len" else pl.col(column)
            found[name] = pl.scan_parquet(path).select(n=wanted).collect()["n"].to_list()
    return found


def _length_lines(
    lengths: Mapping[str, Sequence[int]],
) -> list[tuple[str, int, str, int, int, int]]:
    """(kind, rows, mean, median, 90 %, longest) in tokens."""
    lines = []
    for name, values in lengths.items():
        if values:
            own = sorted(values)
            middle, most = round(median(own)), own[min(len(own) - 1, int(0.9 * len(own)))]
            lines.append((name, len(own), f"{sum(own) / len(own):,.1f}", middle, most, own[-1]))
    return lines


def _pictures(
    folder: Path, lengths: Mapping[str, Sequence[int]], report: Report | None
) -> list[tuple[str, str]]:
    images = folder / "images"
    images.mkdir(exist_ok=True)
    found = []
    if any(lengths.values()):
        draw_lengths(lengths, images / "lengths.png")
        found.append(("images/lengths.png", "Tokens of the responses"))
    if report is not None:
        draw_report(report, images)
        (images / "report.svg").unlink()
        found.append(("images/report.png", "Accuracy against tokens, with 95 % intervals"))
    return found


def draw_lengths(lengths: Mapping[str, Sequence[int]], path: Path) -> None:
    """Write histograms of token counts below one another, each with its median, on one axis.

    The same counts give the same bytes.
    """
    shown = {name: values for name, values in lengths.items() if values}
    longest = max((max(values) for values in shown.values()), default=1)
    figure = Figure(figsize=(8.6, 0.9 + 1.1 * max(1, len(shown))), dpi=120, layout="constrained")
    panels = figure.subplots(max(1, len(shown)), 1, sharex=True, squeeze=False)[:, 0]
    for place, (axes, (name, values)) in enumerate(zip(panels, shown.items(), strict=False)):
        colour, middle = COLOURS[place % len(COLOURS)], median(values)
        axes.hist(values, bins=BINS, range=(0, longest), color=colour, alpha=0.75)
        axes.axvline(middle, color=INK, linewidth=1.0, linestyle="--")
        axes.set_title(
            f"{name}: {len(values):,} rows, median {middle:,.0f}",
            loc="left", fontsize=9, color=colour, pad=3,
        )  # fmt: skip
        axes.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        axes.set_axisbelow(True)
        axes.grid(color="#e5e5e5", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=8)
    panels[-1].set_xlabel("tokens of the response", color=INK, fontsize=9)
    figure.savefig(path, metadata={"Software": None})
