"""A run as the folder that goes up: the stages' own files, and the card.

The tables themselves are the dataset's data files, so nothing is stored twice but questions and
labels, which have a file for each of their splits beside. Files are linked where the disk can do
that.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from dto import tables
from dto.errors import DtoError, disk_errors
from dto.grading.pool import UNREADABLE_GOLD
from dto.recipe import Recipe, make_recipe
from dto.redact import Private, redact_table, without_servers
from dto.reporting.funnel import json_lines
from dto.runs import manifest
from dto.seeds import content_id

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


_KEPT = (
    "stage", "digest", "config", "content", "rows", "groups", "dropped", "usage", "judge_usage",
    "seconds", "fed_seconds", "peak_memory", "git", "kept_step", "reason", "steps", "collapsed",
    "tokens_trained", "attention_flops_trained", "model_flops_trained", "policy_tokens", "epochs",
    "train_seconds", "dev_seconds",
)  # fmt: skip
"""What a manifest may say to others; `versions` beside it, of the packages that we name."""
_OF_A_QUESTION = {"question": "", "answer": "", "metadata": "{}"}
"""The columns of a problem that are withheld, and what stands there then."""


class Published(NamedTuple):
    """What is in the folder: the stages, and what became of some.

    `redacted`: tables that had something replaced; `withheld`: tables without the questions of
    others' test sets; `left_out`: stages begun and not finished, which are not there.
    """

    stages: tuple[str, ...]
    redacted: tuple[str, ...]
    withheld: tuple[str, ...]
    left_out: tuple[str, ...]


class Chosen(NamedTuple):
    """The finished stages to publish, those without others' questions, those begun alone."""

    stages: tuple[str, ...]
    withheld: tuple[str, ...]
    left_out: tuple[str, ...]


def chosen_stages(run: Path, only: Collection[str] = (), withheld: Collection[str] = ()) -> Chosen:
    """What to publish of a run.

    `only` names configs or stages; the stages `withheld` go up without their test questions, and
    count as not finished where they are pulled. Raises DtoError for one that is not known or not
    finished, for a run without any table to show, and for stages that do not belong together any
    more.
    """
    asked = set()
    for name in only:
        table = by_config(name)
        if table is None and name != "train":
            names = ", ".join(each.config for each in TABLES)
            raise DtoError(f"--only {name}: no such table; there are {names} and train")
        asked.add(table.stage if table else "train")
        if table and table.split and table.stage in withheld:
            raise DtoError(
                f"--only {name}: these are questions and gold answers of others' test sets; "
                "publish them with --test-sets if their licence lets you"
            )
    done = {stage for stage in STAGES if manifest.read(run / stage) is not None}
    # A table without a manifest was pulled; that a stage was begun in vain since changes nothing.
    there = {stage for stage in ASKING if (run / stage / "rows.parquet").is_file()}
    cut = there & set(withheld)
    begun = {stage for stage in STAGES if _is_begun(run / stage)} - done - cut
    for stage in sorted(asked - done - cut):
        state = "is not finished" if stage in begun else "is not there"
        raise DtoError(f"stage {stage} {state} in {run}: start `dto {stage} {run}` first")
    if owed := sorted(there - done - cut - begun) if not only else []:
        raise DtoError(
            f"{run} was pulled without the test questions of {owed[0]}: start `dto run {run}` "
            "first, or leave --test-sets away"
        )
    if not only and "pair" in begun:
        raise DtoError(f"stage pair is not finished in {run}: go on with `dto run {run}`")
    wanted = [stage for stage in STAGES if not only or stage in asked]
    stages = tuple(stage for stage in wanted if stage in done and stage not in withheld)
    if not set(stages) - {"problems", "train"}:
        raise DtoError(f"{run} has no finished stage to publish: go on with `dto run {run}`")
    check_chain(run, [stage for stage in wanted if stage in done])
    without = tuple(stage for stage in wanted if stage in cut)
    return Chosen(stages, without, () if only else tuple(sorted(begun)))


def _is_begun(stage: Path) -> bool:
    """`train` keeps checkpoints in place of a journal."""
    return (stage / "journal").is_file() or (stage.name == "train" and stage.is_dir())


def check_chain(run: Path, stages: Sequence[str]) -> None:
    """Raises DtoError for a stage that was computed from another state of one before it."""
    for stage in stages:
        config = (manifest.read(run / stage) or {}).get("config", {})
        for key, digest in config.items():
            upstream = key.removeprefix("digest of ")
            before = manifest.read(run / upstream) if upstream != key else None
            if before is not None and before["digest"] != digest:
                raise DtoError(
                    f"stage {stage} in {run} was computed from another {upstream} than is there: "
                    f"`dto run {run} --resume` brings them together"
                )


def shared_recipe(recipe: Recipe, private: Private) -> Recipe:
    """The recipe as others may read it. Raises DtoError where it is none without its paths."""
    settings = without_servers(private.redact_all(recipe.model_dump(mode="json")))
    return make_recipe(settings, None, "the recipe without local paths")


def build(
    run: Path,
    folder: Path,
    recipe: Recipe,
    private: Private,
    only: Collection[str] = (),
    withheld: Collection[str] = (),
    stated: Mapping[str, Any] | None = None,
) -> Published:
    """Write a run's stages below `folder`, without what is private; the card comes afterwards.

    `recipe` is the run's own; `stated` is what the card says that no table does (JSON), and the
    mark with it. Raises DtoError as `chosen_stages` does.
    """
    stages, without, left_out = chosen_stages(run, only, withheld)
    shared = shared_recipe(recipe, private)
    redacted = []
    with disk_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        dumped = yaml.safe_dump(shared.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        (folder / "recipe.yaml").write_text(dumped, encoding="utf-8")
        for stage in stages:
            (folder / stage).mkdir()
            if _stage(run / stage, folder / stage, private):
                redacted.append(stage)
        for stage in without:
            (folder / stage).mkdir()
            _without_tests(run / stage, folder / stage, private)
        for table in TABLES:
            if not table.split and table.stage in (*stages, *without):
                _by_split(folder / table.stage, hidden="test" if table.stage in without else "")
        digests = {stage: (manifest.read(run / stage) or {}).get("digest") for stage in stages}
        mark = {
            "format": FORMAT, "name": shared.name, "seed": shared.seed, "stages": list(stages),
            "redacted": redacted, "withheld": list(without), "left_out": list(left_out),
            "digests": digests, **(stated or {}),
        }  # fmt: skip
        write_mark(folder, mark)
    return Published(stages, tuple(redacted), without, left_out)


def write_mark(folder: Path, said: Mapping[str, Any]) -> None:
    """Write the mark: what a folder is of, with a hash of all that does not only follow from it."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    deciding = sorted(name for name in names if not follows(name) and name != MARK)
    held = content_id(*(f"{name}\n{manifest.of_path(folder / name)}" for name in deciding))
    text = json.dumps({**said, "content": held}, indent=2, ensure_ascii=False) + "\n"
    (folder / MARK).write_text(text, encoding="utf-8")


def data_files(folder: Path) -> Iterator[tuple[Table, dict[str, str]]]:
    """The configs that a folder has, each with its file by split."""
    for table in TABLES:
        place = folder / table.stage
        if table.split and (place / "manifest.json").is_file():  # or its questions are withheld
            yield table, {table.split: f"{table.stage}/rows.parquet"}
        elif not table.split:
            names = [name for name in SPLITS.values() if (place / f"{name}.parquet").is_file()]
            if names:
                yield table, {name: f"{table.stage}/{name}.parquet" for name in names}


def _stage(source: Path, target: Path, private: Private) -> bool:
    """Copy a stage; whether its table had something replaced."""
    names = OF_TRAINING if source.name == "train" else BESIDE
    rewritten = _copy(source, target, names, private)
    said = _shared_manifest(manifest.read(source) or {}, private)
    if rewritten:  # the digest stays, by which the stages after it know that nothing else changed
        said["content"] = manifest.of_path(target / "rows.parquet")
    manifest.write(target, said)
    return rewritten


def _copy(source: Path, target: Path, names: Sequence[str], private: Private) -> bool:
    """Copy files but for the manifest; whether the table had something replaced."""
    rewritten = False
    for name in names:
        path = source / name
        if name == "manifest.json" or not path.is_file():
            continue
        if path.suffix == ".parquet":
            changed = redact_table(path, target / name, private)
            if not changed:
                link(path, target / name)
            rewritten = rewritten or (changed and name == "rows.parquet")
        elif path.suffix == ".jsonl":
            with path.open(encoding="utf-8") as lines, (target / name).open(
                "w", encoding="utf-8", newline="\n"
            ) as file:  # fmt: skip
                for line in lines:
                    row = private.redact_paths(json.loads(line))
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        else:
            data = private.redact_paths(json.loads(path.read_text(encoding="utf-8")))
            (target / name).write_text(json.dumps(data) + "\n", encoding="utf-8")
    return rewritten


def _without_tests(source: Path, target: Path, private: Private) -> None:
    """Copy a table of problems without the questions to evaluate on, and why others were dropped.

    Their ids stay, by which an evaluation names them, and the task that each is of.
    """
    _copy(source, target, ("rows.parquet", "dropped.jsonl"), private)
    _hide_gold_answers(target / "dropped.jsonl")
    path = target / "rows.parquet"
    cut, changed = path.with_name("cut.parquet"), False
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        with pq.ParquetWriter(cut, schema, compression="zstd") as writer:
            for batch in file.iter_batches(batch_size=tables.ROW_GROUP):
                rows = whole = pa.Table.from_batches([batch])
                hidden = pc.equal(rows["split"], "test")
                for name, nothing in _OF_A_QUESTION.items():
                    shown = pc.if_else(hidden, nothing, rows[name])
                    rows = rows.set_column(schema.get_field_index(name), name, shown)
                changed = changed or not rows.equals(whole)
                tables.write_rows(writer, rows)
    if not changed:  # it was pulled without them
        cut.unlink()
    else:
        cut.replace(path)


def _hide_gold_answers(path: Path) -> None:
    """Leave out why a gold answer could not be read: the reason quotes it."""
    if not path.is_file():
        return
    rows = json_lines(path)
    for row in rows:
        if row["reason"] == UNREADABLE_GOLD:
            row["detail"] = ""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def _shared_manifest(done: Mapping[str, Any], private: Private) -> dict[str, Any]:
    said = {key: done[key] for key in _KEPT if key in done}
    known = ("python", *manifest.PACKAGES)
    versions = done.get("versions", {})
    said["versions"] = {name: versions[name] for name in known if name in versions}
    shown: dict[str, Any] = private.redact_paths({**said, "config": {}})
    return shown | {"config": private.redact_all(said.get("config", {}))}


def _by_split(stage: Path, hidden: str = "") -> None:
    """Write each split but the `hidden` one as a file of its own."""
    with pq.ParquetFile(stage / "rows.parquet") as file:
        for split, name in SPLITS.items():
            if split == hidden:
                continue
            path = stage / f"{name}.parquet"
            rows = 0
            with pq.ParquetWriter(path, file.schema_arrow, compression="zstd") as writer:
                for batch in file.iter_batches(batch_size=tables.ROW_GROUP):
                    table = pa.Table.from_batches([batch])
                    own = table.filter(pc.equal(table["split"], split))
                    if own.num_rows:
                        tables.write_rows(writer, own)
                        rows += own.num_rows
            if not rows:
                path.unlink()


def link(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where the disk has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
