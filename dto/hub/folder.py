"""A run as the folder that goes up: the stages' own files, and the card.

The tables themselves are the dataset's data files, so nothing is stored twice but questions and
labels, which have a file for each of their splits beside. Files are linked where the disk can do
that.
"""

from __future__ import annotations

import json
import operator
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from dto import tables
from dto.errors import DtoError, disk_errors
from dto.grading.pool import UNREADABLE_GOLD
from dto.pipeline import STAGES
from dto.recipe import Recipe, make_recipe
from dto.records import Problem, content_id
from dto.redact import (
    Redaction,
    dropped_detail,
    failure_kind,
    verdict_reason,
    walk,
    without_servers,
)
from dto.runs import manifest
from dto.runs.reader import RunReader
from dto.runs.stage import Card

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
_CARDS = sorted((stage.card, stage.name) for stage in STAGES.values() if stage.card)
TABLES: dict[str, Card] = {name: card for card, name in _CARDS}
"""By stage, in the order of the card; the first that a run has is what `load_dataset` gives."""
PUBLISHED = (*TABLES, "train")
"""The stages that may go up, in that order."""
SPLITS = {"train": "train", "dev": "validation", "test": "test"}
"""The splits that rows have of their own, by the Hub's names."""
ASKING = tuple(name for name, stage in STAGES.items() if stage.record is Problem)
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


_KEPT = (
    "stage", "digest", "config", "content", "rows", "groups", "dropped", "usage", "judge_usage",
    "seconds", "peak_memory", "git", "kept_step", "reason", "steps", "collapsed",
    "tokens_trained", "attention_flops_trained", "model_flops_trained", "policy_tokens", "epochs",
    "train_seconds", "dev_seconds",
)  # fmt: skip
"""What a manifest may say to others; `versions` beside it, of the packages that we name."""
REASON = "reason"
"""The column of tables that no model writes: why an engine or a grader failed."""
WRITTEN = ("text", "question", "prompt", "chosen", "rejected", "chain")
"""The columns of tables that models and people write, and that token ids and spans stand beside."""
_OF_A_QUESTION = {"question": "", "answer": "", "metadata": "{}"}
"""The columns of a problem that are withheld, and what stands there then."""


class Published(NamedTuple):
    """What is in the folder: the finished stages, and what became of some.

    `withheld`: tables without the questions of others' test sets; `left_out`: stages begun and not
    finished, which are not there; `redacted`: tables that had something replaced.
    """

    stages: tuple[str, ...]
    withheld: tuple[str, ...]
    left_out: tuple[str, ...]
    redacted: tuple[str, ...] = ()


def chosen_stages(
    run: RunReader, only: Collection[str] = (), withheld: Collection[str] = ()
) -> Published:
    """What to publish of a run.

    `only` names configs or stages; the stages `withheld` go up without their test questions, and
    count as not finished where they are pulled. Raises DtoError for one that is not known or not
    finished, for a run without any table to show, and for stages that do not belong together any
    more.
    """
    path = run.path
    stages_of = {card.config: stage for stage, card in TABLES.items()}
    asked = set()
    for name in only:
        stage = stages_of.get(name, name)
        if stage not in PUBLISHED:
            raise DtoError(
                f"--only {name}: no such table; there are {', '.join(stages_of)} and train"
            )
        asked.add(stage)
        if stage in TABLES and TABLES[stage].split and stage in withheld:
            raise DtoError(
                f"--only {name}: these are questions and gold answers of others' test sets; "
                "publish them with --test-sets if their licence lets you"
            )
    done = {stage for stage in PUBLISHED if run.manifest(stage) is not None}
    # A table without a manifest was pulled; that a stage was begun in vain since changes nothing.
    there = {stage for stage in ASKING if run.table(stage).is_file()}
    cut = there & set(withheld)
    begun = {stage for stage in PUBLISHED if (run / stage / "journal").is_file()}
    if (run / "train").is_dir():  # which keeps checkpoints in place of a journal
        begun.add("train")
    begun -= done | cut
    for stage in sorted(asked - done - cut):
        state = "is not finished" if stage in begun else "is not there"
        raise DtoError(f"stage {stage} {state} in {path}: start `dto {stage} {path}` first")
    if owed := sorted(there - done - cut - begun) if not only else []:
        raise DtoError(
            f"{path} was pulled without the test questions of {owed[0]}: start `dto run {path}` "
            "first, or leave --test-sets away"
        )
    if not only and "pair" in begun:
        raise DtoError(f"stage pair is not finished in {path}: go on with `dto run {path}`")
    wanted = [stage for stage in PUBLISHED if not only or stage in asked]
    stages = tuple(stage for stage in wanted if stage in done and stage not in withheld)
    if not set(stages) - {"problems", "train"}:
        raise DtoError(f"{path} has no finished stage to publish: go on with `dto run {path}`")
    check_chain(run, [stage for stage in wanted if stage in done])
    without = tuple(stage for stage in wanted if stage in cut)
    return Published(stages, without, () if only else tuple(sorted(begun)))


def check_chain(run: RunReader, stages: Sequence[str]) -> None:
    """Raises DtoError for a stage that was computed from another state of one before it."""
    path = run.path
    for stage in stages:
        config = (run.manifest(stage) or {}).get("config", {})
        for key, digest in config.items():
            upstream = key.removeprefix("digest of ")
            before = run.manifest(upstream) if upstream != key else None
            if before is not None and before["digest"] != digest:
                raise DtoError(
                    f"stage {stage} in {path} was computed from another {upstream} than is there: "
                    f"`dto run {path}` brings them together"
                )


def shared_recipe(recipe: Recipe, private: Redaction) -> Recipe:
    """The recipe as others may read it. Raises DtoError where it is none without its paths."""
    settings = without_servers(private.data(recipe.model_dump(mode="json")))
    return make_recipe(settings, origin="the recipe without local paths", imports=False)


def build(
    run: RunReader,
    folder: Path,
    recipe: Recipe,
    private: Redaction,
    only: Collection[str] = (),
    withheld: Collection[str] = (),
    stated: Mapping[str, Any] | None = None,
) -> Published:
    """Write a run's stages below `folder`, without what is private; the card comes afterwards.

    `recipe` is the run's own; `stated` is what the card says that no table does (JSON), and the
    mark with it. Raises DtoError as `chosen_stages` does.
    """
    chosen = chosen_stages(run, only, withheld)
    shared = shared_recipe(recipe, private)
    with disk_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        dumped = yaml.safe_dump(shared.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        (folder / "recipe.yaml").write_text(dumped, encoding="utf-8")
        for stage in (*chosen.stages, *chosen.withheld):
            (folder / stage).mkdir()
        redacted = [
            stage for stage in chosen.stages if _stage(run / stage, folder / stage, private)
        ]
        for stage in chosen.withheld:
            _stage(run / stage, folder / stage, private, hide=True)
        for stage, card in TABLES.items():
            if not card.split and (folder / stage).is_dir():
                _by_split(folder / stage, hidden="test" if stage in chosen.withheld else "")
        published = chosen._replace(redacted=tuple(redacted))
        digests = {stage: (run.manifest(stage) or {}).get("digest") for stage in chosen.stages}
        mark = {"format": FORMAT, "name": shared.name, "seed": shared.seed, "digests": digests}
        write_mark(folder, mark | published._asdict() | dict(stated or {}))
    return published


def write_mark(folder: Path, said: Mapping[str, Any]) -> None:
    """Write the mark: what a folder is of, with a hash of all that does not only follow from it."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    deciding = sorted(name for name in names if not follows(name) and name != MARK)
    held = content_id(*(f"{name}\n{manifest.of_path(folder / name)}" for name in deciding))
    text = json.dumps({**said, "content": held}, indent=2, ensure_ascii=False) + "\n"
    (folder / MARK).write_text(text, encoding="utf-8")


def data_files(folder: Path) -> Iterator[tuple[Card, dict[str, str]]]:
    """The configs that a folder has, each with its file by split."""
    for stage, card in TABLES.items():
        if card.split:
            whole = (folder / stage / "manifest.json").is_file()  # or its questions are withheld
            files = {card.split: f"{stage}/rows.parquet"} if whole else {}
        else:
            names = {name: f"{stage}/{name}.parquet" for name in SPLITS.values()}
            files = {name: path for name, path in names.items() if (folder / path).is_file()}
        if files:
            yield card, files


def _stage(source: Path, target: Path, private: Redaction, hide: bool = False) -> bool:
    """Copy a stage; whether its table had something replaced.

    `hide`: leave out the questions to evaluate on with their gold answers, why a gold answer could
    not be read, which quotes it, and the manifest. Their ids stay, by which an evaluation names
    them, and the task that each is of.
    """
    names = OF_TRAINING if source.name == "train" else BESIDE
    rewritten = False
    for name in ("rows.parquet", "dropped.jsonl") if hide else names:
        path, copy = source / name, target / name
        if not path.is_file():
            continue
        if path.suffix == ".parquet":
            changed = _redact_table(path, copy, private, hide)
            rewritten = rewritten or (changed and name == "rows.parquet")
        elif path.suffix == ".jsonl":
            with path.open(encoding="utf-8") as lines, copy.open(
                "w", encoding="utf-8", newline="\n"
            ) as file:  # fmt: skip
                for line in lines:
                    row = json.loads(line)
                    if name == "dropped.jsonl":
                        hidden = hide and row["reason"] == UNREADABLE_GOLD
                        told = "" if hidden else dropped_detail(row["reason"], row["detail"])
                        row["detail"] = told
                    file.write(json.dumps(private.data(row), ensure_ascii=False) + "\n")
        elif name != "manifest.json":
            data = private.data(json.loads(path.read_text(encoding="utf-8")))
            copy.write_text(json.dumps(data) + "\n", encoding="utf-8")
    if not hide:
        said = _shared_manifest(manifest.read(source) or {}, private)
        if rewritten:  # the digest stays, which tells the stages after it that nothing else changed
            said["content"] = manifest.of_path(target / "rows.parquet")
        manifest.write(target, said)
    return rewritten


def _redact_table(source: Path, target: Path, private: Redaction, hide: bool) -> bool:
    """Copy a table without what is private, a link where it holds none; whether it did.

    Rows stand in the order of their ids afterwards too: those of an evaluation begin with the name
    of a model, which may be a path, and only then the table is gathered to sort it.
    """

    def shown(name: str, column: pa.Array, batch: Any) -> pa.Array:
        after = column
        if hide and name in _OF_A_QUESTION:
            after = pc.if_else(pc.equal(batch["split"], "test"), _OF_A_QUESTION[name], column)
        if name not in WRITTEN and has_text(column.type):
            kind = failure_kind if name == REASON else verdict_reason
            before = after.to_pylist()
            texts = walk(before, lambda text: private.text(kind(text)))
            after = after if texts == before else pa.array(texts, column.type)
        return column if after is column or after.equals(column) else after

    changed = False
    with pq.ParquetFile(source) as file:
        schema = file.schema_arrow
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            for batch in file.iter_batches(batch_size=tables.ROW_GROUP):
                before = batch.columns
                after = [shown(*each, batch) for each in zip(schema.names, before, strict=True)]
                changed = changed or any(map(operator.is_not, before, after))
                tables.write_rows(writer, pa.Table.from_arrays(after, schema=schema))
    if not changed:
        target.unlink()
        link(source, target)
        return False
    table = pq.read_table(target)
    ids = table[0].to_pylist()
    if ids != sorted(ids):
        _write(target, table.sort_by(table.column_names[0]))
    return True


def _write(path: Path, table: pa.Table) -> None:
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        tables.write_rows(writer, table)


def has_text(kind: pa.DataType) -> bool:
    """Whether a column holds texts, however deep they lie."""
    if pa.types.is_list(kind):
        return has_text(kind.value_type)
    if pa.types.is_struct(kind):
        return any(has_text(kind.field(place).type) for place in range(kind.num_fields))
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _shared_manifest(done: Mapping[str, Any], private: Redaction) -> dict[str, Any]:
    said = {key: done[key] for key in _KEPT if key in done}
    known = ("python", *manifest.PACKAGES)
    versions = done.get("versions", {})
    said["versions"] = {name: versions[name] for name in known if name in versions}
    redacted: dict[str, Any] = private.data(said)
    return redacted


def _by_split(stage: Path, hidden: str = "") -> None:
    """Write each split but the `hidden` one as a file of its own, from one row group at a time."""
    with pq.ParquetFile(stage / "rows.parquet") as file, ExitStack() as opened:
        schema, writers = file.schema_arrow, dict[str, pq.ParquetWriter]()
        for batch in file.iter_batches(batch_size=tables.ROW_GROUP):
            for split, name in SPLITS.items():
                own = pa.Table.from_batches([batch.filter(pc.equal(batch["split"], split))])
                if split == hidden or not own.num_rows:
                    continue
                if split not in writers:
                    writer = pq.ParquetWriter(stage / f"{name}.parquet", schema, compression="zstd")
                    writers[split] = opened.enter_context(writer)
                tables.write_rows(writers[split], own)


def link(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where the disk has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
