"""The folder that is uploaded for a run: the files of its stages.

The tables themselves are the data files of the dataset. Only questions and labels are stored twice:
they also have a file per split. Unchanged files are hard links where the disk supports them.
"""

from __future__ import annotations

import json
import operator
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from shlex import quote
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
from dto.records import EvaluationRow, Problem, content_id
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
"""The file that marks a dataset as a run and identifies its state."""
FORMAT = 1
STAGE_FILES = ("rows.parquet", "timings.parquet", "usage.parquet", "dropped.jsonl", "manifest.json")
"""Files of a stage; a pulled run needs them to continue."""
TRAINING_FILES = (
    "history.jsonl", "effort.jsonl", "judging.jsonl", "steps.jsonl", "dropped.jsonl", "result.json",
    "training.json", "manifest.json",
)  # fmt: skip
"""Files of `train` except the weights, which are a separate model on the Hub."""
_CARDS = sorted((stage.card, stage.name) for stage in STAGES.values() if stage.card)
TABLES: dict[str, Card] = {name: card for card, name in _CARDS}
"""Card by stage, in the order of the card; the first one in a run is the default config."""
PUBLISHED = (*TABLES, "train")
"""The stages that can be published, in this order."""
SPLITS = {"train": "train", "dev": "validation", "test": "test"}
"""Name on the Hub of each split of questions and labels."""
QUESTION_STAGES = tuple(name for name, stage in STAGES.items() if stage.record is Problem)
"""The stages whose tables hold test questions."""
_DERIVED = {
    "README.md", "manifest.json", "timings.parquet", "usage.parquet",
    *(set(TRAINING_FILES) - {"dropped.jsonl"}), *(f"{name}.parquet" for name in SPLITS.values()),
}  # fmt: skip


def is_derived(path: str) -> bool:
    """Return whether a change of this file alone is no reason for a commit.

    Such files hold timings, tokens wasted by scheduling, package versions, card text and pictures.
    They are uploaded together with other changes.
    """
    return path.startswith("images/") or path.rpartition("/")[2] in _DERIVED


_KEPT = (
    "stage", "digest", "config", "content", "rows", "groups", "dropped", "usage", "judge_usage",
    "seconds", "peak_memory", "git", "kept_step", "reason", "steps", "collapsed",
    "tokens_trained", "attention_flops_trained", "model_flops_trained", "policy_tokens", "epochs",
    "train_seconds", "dev_seconds",
)  # fmt: skip
"""Keys of a manifest that are published, besides `versions` of known packages."""
REASON = "reason"
"""The text column that no model writes: why an engine or a grader failed."""
TEXT_COLUMNS = ("text", "question", "prompt", "chosen", "rejected", "chain", "trials")
"""Text columns written by models and people; token ids and spans refer to them."""
_QUESTION = {"question": "", "answer": "", "metadata": "{}"}
"""Withheld columns of a problem, and their replacement."""
_NOWHERE = {"start": 0, "end": 0}
_RESPONSE = {
    "token_ids": [], "inserted_tokens": _NOWHERE, "text": "", "thinking": _NOWHERE,
    "inserted": _NOWHERE, "conclusion": _NOWHERE,
}  # fmt: skip
"""Withheld columns of an evaluation, since responses restate questions, and their replacement."""
_TRIAL = {"token_ids": [], "text": "", "char": 0}


class PublishedStages(NamedTuple):
    """Stages in the folder.

    `stages` are finished. `withheld` are published without the questions of test sets. `left_out`
    are unfinished and not in the folder. `redacted` have texts replaced in their tables.
    `without_responses` are published without the responses to questions that are not published.
    """

    stages: tuple[str, ...]
    withheld: tuple[str, ...]
    left_out: tuple[str, ...]
    redacted: tuple[str, ...] = ()
    without_responses: tuple[str, ...] = ()


def chosen_stages(
    run: RunReader, only: Collection[str] = (), withheld: Collection[str] = ()
) -> PublishedStages:
    """Choose the stages of a run to publish.

    `only` names configs or stages. Stages in `withheld` are published without their test questions
    and count as unfinished in a pulled run. Raises DtoError for unknown or unfinished names in
    `only`, for a run without tables, and for stages that were not computed from each other.
    """
    path = run.path
    stages_of = {card.config: stage for stage, card in TABLES.items()}
    requested = set()
    for name in only:
        stage = stages_of.get(name, name)
        if stage not in PUBLISHED:
            raise DtoError(
                f"--only {name}: unknown table; choose from {', '.join(stages_of)}, train"
            )
        requested.add(stage)
        if stage in TABLES and TABLES[stage].split and stage in withheld:
            raise DtoError(
                f"--only {name}: this table holds questions and gold answers of public test sets; "
                "if their licence allows it, publish them with --test-sets"
            )
    finished = {stage for stage in PUBLISHED if run.manifest(stage) is not None}
    # A table without a manifest was pulled, even if the stage was started again without success.
    existing = {stage for stage in QUESTION_STAGES if run.table(stage).is_file()}
    cut = existing & set(withheld)
    started = {stage for stage in PUBLISHED if (run / stage / "journal").is_file()}
    if (run / "train").is_dir():  # it has checkpoints, no journal
        started.add("train")
    started -= finished | cut
    place = quote(str(path))
    for stage in sorted(requested - finished - cut):
        state = "not finished" if stage in started else "missing"
        raise DtoError(f"stage {stage} is {state} in {path}: run `dto {stage} {place}` first")
    if pending := sorted(existing - finished - cut - started) if not only else []:
        raise DtoError(
            f"{path} was pulled without the test questions of {pending[0]}: run `dto run {place}` "
            "first, or omit --test-sets"
        )
    if not only and "pair" in started:
        raise DtoError(f"stage pair is not finished in {path}: continue with `dto run {place}`")
    wanted = [stage for stage in PUBLISHED if not only or stage in requested]
    stages = tuple(stage for stage in wanted if stage in finished and stage not in withheld)
    if not set(stages) - {"problems", "train"}:
        raise DtoError(f"{path} has no finished stage to publish: continue with `dto run {place}`")
    check_chain(run, [stage for stage in wanted if stage in finished])
    withheld = tuple(stage for stage in wanted if stage in cut)
    return PublishedStages(stages, withheld, () if only else tuple(sorted(started)))


def check_chain(run: RunReader, stages: Sequence[str]) -> None:
    """Raise DtoError for a stage that was computed from an older state of an earlier stage."""
    path = run.path
    for stage in stages:
        config = (run.manifest(stage) or {}).get("config", {})
        for key, digest in config.items():
            upstream = key.removeprefix("digest of ")
            current = run.manifest(upstream) if upstream != key else None
            if current is not None and current["digest"] != digest:
                raise DtoError(
                    f"stage {stage} in {path} was computed from another state of {upstream}: "
                    f"update it with `dto run {quote(str(path))}`"
                )


def shared_recipe(recipe: Recipe, redaction: Redaction) -> Recipe:
    """Return the recipe without private data; DtoError if the result is not a valid recipe."""
    settings = without_servers(redaction.data(recipe.model_dump(mode="json")))
    return make_recipe(settings, origin="the recipe without local paths", imports=False)


def build(
    run: RunReader,
    folder: Path,
    recipe: Recipe,
    redaction: Redaction,
    only: Collection[str] = (),
    withheld: Collection[str] = (),
    card_facts: Mapping[str, Any] | None = None,
) -> PublishedStages:
    """Write the stages of a run to `folder` without private data, and without the card.

    `recipe` is the recipe of the run. `card_facts` (JSON) are facts of the card that no table has;
    they become part of the mark. Raises DtoError as `chosen_stages` does.
    """
    chosen = chosen_stages(run, only, withheld)
    shared = shared_recipe(recipe, redaction)
    with disk_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        dumped = yaml.safe_dump(shared.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        (folder / "recipe.yaml").write_text(dumped, encoding="utf-8")
        for stage in (*chosen.stages, *chosen.withheld):
            (folder / stage).mkdir()
        silent = [
            stage
            for stage in chosen.stages
            if STAGES[stage].record is EvaluationRow and run.test_stage in withheld
        ]
        redacted = [
            stage
            for stage in chosen.stages
            if _copy_stage(run / stage, folder / stage, redaction, responses=stage not in silent)
        ]
        for stage in chosen.withheld:
            _copy_stage(run / stage, folder / stage, redaction, hide=True)
        for stage, card in TABLES.items():
            if not card.split and (folder / stage).is_dir():
                _by_split(folder / stage, hidden="test" if stage in chosen.withheld else "")
        published = chosen._replace(redacted=tuple(redacted), without_responses=tuple(silent))
        digests = {stage: (run.manifest(stage) or {}).get("digest") for stage in chosen.stages}
        mark = {"format": FORMAT, "name": shared.name, "seed": shared.seed, "digests": digests}
        write_mark(folder, mark | published._asdict() | dict(card_facts or {}))
    return published


def write_mark(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the mark: facts about the run and a hash of all files that are not derived."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    deciding = sorted(name for name in names if not is_derived(name) and name != MARK)
    content = content_id(*(f"{name}\n{manifest.of_path(folder / name)}" for name in deciding))
    text = json.dumps({**facts, "content": content}, indent=2, ensure_ascii=False) + "\n"
    (folder / MARK).write_text(text, encoding="utf-8")


def data_files(folder: Path) -> Iterator[tuple[Card, dict[str, str]]]:
    """Yield the configs in a folder, each with its file by split."""
    for stage, card in TABLES.items():
        if card.split:
            whole = (folder / stage / "manifest.json").is_file()  # else its questions are withheld
            files = {card.split: f"{stage}/rows.parquet"} if whole else {}
        else:
            names = {name: f"{stage}/{name}.parquet" for name in SPLITS.values()}
            files = {name: path for name, path in names.items() if (folder / path).is_file()}
        if files:
            yield card, files


def _copy_stage(
    source: Path, target: Path, redaction: Redaction, hide: bool = False, responses: bool = True
) -> bool:
    """Copy a stage without private data; return whether its table had any.

    `hide`: leave out test questions, their gold answers, details of unreadable gold answers (they
    quote the answer) and the manifest. Ids stay, since evaluations refer to them, and tasks too.
    Unless `responses`, leave out text and token ids of responses and trials.
    """
    names = TRAINING_FILES if source.name == "train" else STAGE_FILES
    rewritten = private = False
    for name in ("rows.parquet", "dropped.jsonl") if hide else names:
        path, copy = source / name, target / name
        if not path.is_file():
            continue
        if path.suffix == ".parquet":
            changes = _redact_table(path, copy, redaction, hide, responses)
            if name == "rows.parquet":
                rewritten, private = changes
        elif path.suffix == ".jsonl":
            with path.open(encoding="utf-8") as lines, copy.open(
                "w", encoding="utf-8", newline="\n"
            ) as file:  # fmt: skip
                for line in lines:
                    row = json.loads(line)
                    if name == "dropped.jsonl":
                        hidden = hide and row["reason"] == UNREADABLE_GOLD
                        detail = dropped_detail(row["reason"], row["detail"])
                        row["detail"] = "" if hidden else detail
                    file.write(json.dumps(redaction.data(row), ensure_ascii=False) + "\n")
        elif name != "manifest.json":
            data = redaction.data(json.loads(path.read_text(encoding="utf-8")))
            copy.write_text(json.dumps(data) + "\n", encoding="utf-8")
    if not hide:
        shared = _shared_manifest(manifest.read(source) or {}, redaction)
        if rewritten:  # the digest stays, so that later stages still match
            shared["content"] = manifest.of_path(target / "rows.parquet")
        manifest.write(target, shared)
    return private


def _redact_table(
    source: Path, target: Path, redaction: Redaction, hide: bool, responses: bool
) -> tuple[bool, bool]:
    """Copy a table without private and withheld data, or link it if it has none.

    Return whether it had any, and whether it had private data. The copy is sorted by id as well.
    Redaction can change the order, since ids of an evaluation start with the model, which can be a
    path. Only then is the whole table read into memory.
    """

    def kept(name: str, column: pa.Array, batch: Any) -> pa.Array:
        after = column
        if hide and name in _QUESTION:
            after = pc.if_else(pc.equal(batch["split"], "test"), _QUESTION[name], column)
        elif not responses and name in _RESPONSE:
            after = pa.array([_RESPONSE[name]] * len(column), column.type)
        elif not responses and name == "trials":
            rows = [[{**trial, **_TRIAL} for trial in trials] for trials in column.to_pylist()]
            after = pa.array(rows, column.type)
        return column if after.equals(column) else after

    def redacted(name: str, column: pa.Array) -> pa.Array:
        if name in TEXT_COLUMNS or not has_text(column.type):
            return column
        kind = failure_kind if name == REASON else verdict_reason
        before = column.to_pylist()
        texts = walk(before, lambda text: redaction.text(kind(text)))
        return column if texts == before else pa.array(texts, column.type)

    changed = private = False
    with pq.ParquetFile(source) as file:
        schema = file.schema_arrow
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            for batch in file.iter_batches(batch_size=tables.ROW_GROUP):
                before = batch.columns
                columns = zip(schema.names, before, strict=True)
                public = [kept(name, column, batch) for name, column in columns]
                after = list(map(redacted, schema.names, public))
                private = private or any(map(operator.is_not, public, after))
                changed = changed or private or any(map(operator.is_not, before, public))
                tables.write_rows(writer, pa.Table.from_arrays(after, schema=schema))
    if not changed:
        target.unlink()
        link(source, target)
        return False, False
    ids = pq.read_table(target, columns=schema.names[:1])[0].to_pylist()
    if ids != sorted(ids):
        _write(target, pq.read_table(target).sort_by(schema.names[0]))
    return True, private


def _write(path: Path, table: pa.Table) -> None:
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        tables.write_rows(writer, table)


def has_text(kind: pa.DataType) -> bool:
    """Return whether a column holds texts, at any depth."""
    if pa.types.is_list(kind):
        return has_text(kind.value_type)
    if pa.types.is_struct(kind):
        return any(has_text(kind.field(place).type) for place in range(kind.num_fields))
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _shared_manifest(original: Mapping[str, Any], redaction: Redaction) -> dict[str, Any]:
    shared = {key: original[key] for key in _KEPT if key in original}
    packages = ("python", *manifest.PACKAGES)
    versions = original.get("versions", {})
    shared["versions"] = {name: versions[name] for name in packages if name in versions}
    redacted: dict[str, Any] = redaction.data(shared)
    return redacted


def _by_split(stage: Path, hidden: str = "") -> None:
    """Write one file per split except `hidden`, reading one row group at a time."""
    with pq.ParquetFile(stage / "rows.parquet") as file, ExitStack() as opened:
        schema, writers = file.schema_arrow, dict[str, pq.ParquetWriter]()
        for batch in file.iter_batches(batch_size=tables.ROW_GROUP):
            for split, name in SPLITS.items():
                part = pa.Table.from_batches([batch.filter(pc.equal(batch["split"], split))])
                if split == hidden or not part.num_rows:
                    continue
                if split not in writers:
                    writer = pq.ParquetWriter(stage / f"{name}.parquet", schema, compression="zstd")
                    writers[split] = opened.enter_context(writer)
                tables.write_rows(writers[split], part)


def link(source: Path, target: Path) -> None:
    """Make a hard link, or a copy where the disk has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
