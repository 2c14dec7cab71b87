"""Which of a run's files make up its dataset, and under which names people find the tables."""

from __future__ import annotations

from typing import NamedTuple

MARK = "run.json"
"""The file by which a dataset is known as a run, and two states of one as the same."""
FORMAT = 1
BESIDE = ("rows.parquet", "timings.parquet", "usage.parquet", "dropped.jsonl", "manifest.json")
"""What a stage leaves behind; all of it is read again when a run goes on."""
OF_TRAINING = (
    "history.jsonl", "effort.jsonl", "judging.jsonl", "steps.jsonl", "dropped.jsonl", "result.json",
    "training.json", "manifest.json",
)  # fmt: skip
"""The same of `train`, but for the weights, which are a model of their own on the Hub."""


class Table(NamedTuple):
    """One stage's table as a config of the dataset; `rows.parquet` itself is the config's file.

    Without a `split` the rows have one of their own, and the config a file for each of them.
    """

    stage: str
    config: str
    split: str
    about: str


TABLES = (
    Table("pair", "pairs", "train", "preference pairs: prompt, chosen, rejected"),
    Table(
        "label", "labels", "", "chains with the question about each, and the letter that is right"
    ),
    Table("sample", "trajectories", "train", "sampled responses: token ids, text, thinking, grade"),
    Table("segment", "segments", "train", "thinking patterns: spans over tokens and text, kind"),
    Table("estimate", "exits", "train", "how likely an answer given there is right, with interval"),
    Table("optimize", "finalized", "train", "trajectories truncated at their exit, concluded"),
    Table("prune", "optimized", "train", "the same after pruning, with the judge's verdicts"),
    Table("batch", "batch_responses", "train", "responses to several numbered questions, grades"),
    Table("chain", "chains", "train", "the reasoning about one question, asked alone or together"),
    Table("evaluate", "evaluation", "test", "answers by model and exit: grade, tokens, trials"),
    Table("problems", "problems", "", "questions with gold answers"),
    Table("test", "test_sets", "test", "the questions of the test sets that the recipe names"),
    Table("trace", "traces", "validation", "responses with all their trial answers"),
    Table("pilot", "static_exits", "train", "responses cut at shares of their thinking"),
)
"""In the order of the card; the first that a run has is what `load_dataset` gives unasked."""
STAGES = (*(table.stage for table in TABLES), "train")
SPLITS = {"train": "train", "dev": "validation", "test": "test"}
"""The splits that rows have of their own, by the Hub's names."""
ASKING = ("problems", "test")
"""The stages whose tables hold the questions of an evaluation."""
_FOLLOWING = {
    "README.md", "manifest.json", "timings.parquet", "usage.parquet",
    *(set(OF_TRAINING) - {"dropped.jsonl"}), *(f"{name}.parquet" for name in SPLITS.values()),
}  # fmt: skip


def follows(path: str) -> bool:
    """Whether a file only follows from what the mark and the tables say, and from the occasion.

    Seconds, tokens that scheduling wasted, versions of packages, the wording of a card and the
    bytes of a picture are no reason for a commit; they go along where there is another one.
    """
    return path.startswith("images/") or path.rpartition("/")[2] in _FOLLOWING


def by_config(name: str) -> Table | None:
    """The table of that name, which may be the stage's too."""
    return next((table for table in TABLES if name in (table.config, table.stage)), None)
