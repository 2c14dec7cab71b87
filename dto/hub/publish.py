"""`dto publish`: upload a run as a Hub dataset, or its trained model as a Hub model."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from dto import tables
from dto.errors import DtoError
from dto.hub import folder as folders
from dto.hub.card import (
    CardContent,
    Origin,
    local_sources,
    models,
    origins,
    single_license,
    test_set_origins,
    with_license,
    write_card,
)
from dto.hub.model import build_model
from dto.hub.upload import Kind, UploadResult, check_name, upload
from dto.redact import Redaction, machine_names, texts_of, withheld_stages
from dto.reporting.report import measure
from dto.runs.run import OpenRun

logger = logging.getLogger("dto")

FOLDER = "publish"
"""Folder in the run where a publication is built."""
_TEXTS = (".json", ".jsonl", ".yaml", ".md", ".jinja")
_VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json")
"""Files whose tokens can equal the name of a machine by chance."""


class Publication(NamedTuple):
    """Folder (deleted after an upload), card, and result of the upload."""

    folder: Path
    card: str
    uploaded: UploadResult | None


def publish(
    run: OpenRun,
    name: str,
    *,
    model: bool = False,
    only: Sequence[str] = (),
    test_sets: bool = False,
    private: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
    license: str | None = None,
) -> Publication:
    """Write a run (or, with `model`, its trained model) to a folder inside it and upload that.

    `name` is `user/name`; a dataset and a model can have the same name. `only` names tables by
    config or stage; by default every finished stage is published. Questions and gold answers of
    public test sets, and the responses to them, are left out unless `test_sets` is set: their rows
    keep id and task, and a pulled run reads the questions from the source. `license` applies to the
    rows or the weights; the default is the licence of the source or of the base model, if known.

    Raises DtoError for an unfinished stage in `only`, if private data remains, and as
    :func:`dto.hub.upload.upload` does.
    """
    kind: Kind = "model" if model else "dataset"
    check_name(name)
    redaction = Redaction.of(run.recipe, run.path)
    shared = folders.shared_recipe(run.recipe, redaction)
    target = run / FOLDER / kind
    sources = _with_licenses(origins(shared), dry_run)
    if model:
        (base,) = _with_licenses([models(shared)[0][1]], dry_run, "model")
        content = CardContent(name, shared, license or single_license([base]), sources, (), None)
        card = build_model(run, target, content, base, redaction)
    else:
        test_origins = _with_licenses(test_set_origins(shared), dry_run)
        hidden = () if test_sets else withheld_stages(run.recipe)
        license = license or single_license([*sources, *([] if hidden else test_origins)])
        facts = {"license": license, "sources": [str(each) for each in (*sources, *test_origins)]}
        published = folders.build(run, target, run.recipe, redaction, only, hidden, facts)
        report = measure(run.path) if "evaluate" in published.stages else None
        content = CardContent(name, shared, license, sources, test_origins, report)
        card = write_card(run.path, target, content, published, redaction)
        _warn_of_omissions(run, published)
    for warning in search(target, redaction, name):
        logger.warning("%s", warning)
    uploaded = None
    if not dry_run:
        message = f"Publish {'the model of ' if model else ''}run {shared.name}"
        uploaded = upload(target, name, kind, private=private, overwrite=overwrite, message=message)
        shutil.rmtree(run / FOLDER)
    return Publication(target, card, uploaded)


def _with_licenses(
    origins: Sequence[Origin], dry_run: bool, kind: Kind = "dataset"
) -> list[Origin]:
    """Add the licences stated on the Hub; a dry run does not ask the Hub."""
    return list(origins) if dry_run else [with_license(origin, kind) for origin in origins]


def _warn_of_omissions(run: OpenRun, published: folders.PublishedStages) -> None:
    """Log the parts of the run that are not published."""
    for stage in published.left_out:
        logger.warning("stage %s is not finished and is not published", stage)
    for stage in published.withheld:
        logger.warning(
            "%s is published without the questions and gold answers of public test sets; "
            "--test-sets includes them",
            stage,
        )
    for stage in published.without_responses:
        logger.warning(
            "%s is published without the texts and token ids of responses and trials, which "
            "restate questions of public test sets; --test-sets includes them",
            stage,
        )
    if "problems" in published.withheld and (files := local_sources(run.recipe)):
        logger.warning(
            "a pulled copy of this run can be continued only with your file %s",
            " and ".join(files),
        )
    if (run / "compare").is_dir():
        logger.warning("methods are separate runs: dto publish %s/compare/METHOD", run.path)


def search(folder: Path, redaction: Redaction, name: str) -> Iterator[str]:
    """Search the folder for private data; yield a warning per file that names machine or user.

    `name`, on the Hub, can contain the user name. Raises DtoError if private data remains.
    """
    names = "|".join(map(re.escape, sorted(machine_names())))
    machine = re.compile(rf"(?<![\w-])(?:{names})(?![\w-])" if names else "(?!)")
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        file_name = path.relative_to(folder).as_posix()
        is_table = path.suffix == ".parquet"
        hits: list[str] = []
        for where, text, ours in _of_table(path) if is_table else _of_file(path):
            if kind := redaction.private_kind(text, written_by_us=ours):
                remedy = _remedy(where)
                raise DtoError(f"{file_name}, {where} holds {kind}: nothing is uploaded; {remedy}")
            if (ours or is_table) and machine.search(text.replace(name, "")):
                hits.append(where)
        if hits:
            count = len(hits)
            yield f"{file_name} names this machine or its user {count:,} times, first in {hits[0]}"


def _of_table(path: Path) -> Iterator[tuple[str, str, bool]]:
    """Yield (row and column, text, whether we wrote it) of every text in a table."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=tables.ROW_GROUP):
            ids = batch.column(0).to_pylist()
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                values = column.to_pylist() if folders.has_text(column.type) else ()
                for row, value in zip(ids, values, strict=False):
                    for _, text in texts_of(value):
                        yield f"row {row}, column {name}", text, name == folders.REASON


def _of_file(path: Path) -> Iterator[tuple[str, str, bool]]:
    """Yield (line, text, whether we wrote it) of every line in a file; for weights, the header."""
    ours = path.suffix in _TEXTS and path.name not in _VOCABULARIES
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            data, ours = file.read(min(int.from_bytes(file.read(8), "little"), 2**27)), True
        else:
            data = file.read()
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), start=1):
        yield f"line {number}", line, ours


def _remedy(where: str) -> str:
    column = where.partition(", column ")[2]
    if column in folders.TEXT_COLUMNS:
        return (
            "the token ids of the row encode the same text, so it is not removed: publish without "
            "this table (--only), or remove the problem from the run"
        )
    recompute = "publish without this table (--only), or compute it again without this text"
    return recompute if column else "remove this text"
