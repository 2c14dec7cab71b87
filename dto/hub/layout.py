"""Which of a run's files make up its dataset, and under which names people find the tables."""

from __future__ import annotations

from typing import NamedTuple

MARK = "run.json"
"""The file by which a dataset is known as a run."""
FORMAT = 1
BESIDE = ("rows.parquet", "timings.parquet", "usage.parquet", "dropped.jsonl", "manifest.json")
"""What a stage leaves behind; all of it is read again when a run goes on."""
OF_TRAINING = (
    "history.jsonl", "effort.jsonl", "dropped.jsonl", "result.json", "training.json",
    "manifest.json",
)  # fmt: skip
"""The same of `train`, but for the weights, which are a model of their own on the Hub."""


class Table(NamedTuple):
    """One stage's table as a config of the dataset; `rows.parquet` itself is the config's file."""

    stage: str
    config: str
    split: str
    about: str


TABLES = (
    Table("pair", "pairs", "train", "preference pairs: prompt, chosen, rejected"),
    Table("label", "labels", "train", "chains with a question about each and its right letter"),
    Table("sample", "trajectories", "train", "sampled responses: token ids, text, thinking, grade"),
    Table("segment", "segments", "train", "thinking patterns: spans over tokens and text, kind"),
    Table("estimate", "exits", "train", "how likely an answer given there is right, with interval"),
    Table("optimize", "finalized", "train", "trajectories truncated at their exit, concluded"),
    Table("prune", "optimized", "train", "the same after pruning, with the judge's verdicts"),
    Table("evaluate", "evaluation", "test", "answers by model and exit: grade, tokens, trials"),
    Table("batch", "batches", "train", "responses to several questions at once, graded one by one"),
    Table("chain", "chains", "train", "the thinking about one question, asked alone or in a batch"),
    Table("problems", "problems", "", "questions with gold answers"),
    Table("test", "test_sets", "test", "the questions of the test sets that the recipe names"),
    Table("trace", "traces", "validation", "responses with all their trial answers"),
    Table("pilot", "static_exits", "train", "responses cut at shares of their thinking"),
)
"""In the order of the card; the first that a run has is what `load_dataset` gives unasked."""
SPLITS = {"train": "train", "dev": "validation", "test": "test"}
"""The problems' own splits, by the Hub's names: their config has a file for each of them."""


def by_config(name: str) -> Table | None:
    """The table of that name, which may be the stage's too."""
    return next((table for table in TABLES if name in (table.config, table.stage)), None)
