"""`dto publish`: a run as a dataset of the Hub, its trained model as a model."""

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
    Origin,
    Shown,
    models,
    of_test_sets,
    only_here,
    origins,
    single_license,
    with_license,
    withheld,
    write_card,
)
from dto.hub.model import build_model
from dto.hub.upload import Kind, Uploaded, check_name, upload
from dto.redact import Redaction, names_of_machine, texts_of
from dto.reporting.report import measure
from dto.runs.run import OpenRun

logger = logging.getLogger("dto")

HERE = "publish"
"""The folder below the run in which a publication is put together."""
_TEXTS = (".json", ".jsonl", ".yaml", ".md", ".jinja")
_VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json")
"""Some tokens are names that a machine may have."""


class Publication(NamedTuple):
    """The folder, which stays unless it was sent, and its card; where it went."""

    folder: Path
    card: str
    uploaded: Uploaded | None


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
    """Write a run (or, with `model`, what it trained) as a folder below it, and upload that.

    `name` is `user/name`; datasets and models have names of their own, so both may have the same.
    `only` names tables by config or stage; without it every finished stage goes up. Questions and
    gold answers of others' test sets stay behind unless `test_sets` says so: their rows keep id and
    task, and a run that is pulled reads them from where they come from. `license` is
    that of the rows, or the weights; unless it is given, that of the source, or of the base model,
    where there is one and it is known.

    Raises DtoError: for a stage that is asked for and not finished, where something private
    remains, and as :func:`dto.hub.upload.upload` does.
    """
    kind: Kind = "model" if model else "dataset"
    check_name(name)
    redaction = Redaction.of(run.recipe, run.path)
    shared = folders.shared_recipe(run.recipe, redaction)
    target = run / HERE / kind
    sources = _known(origins(shared), dry_run)
    if model:
        (base,) = _known([models(shared)[0][1]], dry_run, "model")
        shown = Shown(name, shared, license or single_license([base]), sources, (), None)
        card = build_model(run, target, shown, base, redaction)
    else:
        tested = _known(of_test_sets(shared), dry_run)
        hidden = () if test_sets else withheld(run.recipe)
        own = license or single_license([*sources, *([] if hidden else tested)])
        stated = {"license": own, "sources": [str(each) for each in (*sources, *tested)]}
        published = folders.build(run, target, run.recipe, redaction, only, hidden, stated)
        found = measure(run.path) if "evaluate" in published.stages else None
        shown = Shown(name, shared, own, sources, tested, found)
        card = write_card(run.path, target, shown, published, redaction)
        _tell(run, published)
    for remark in search(target, redaction, name):
        logger.warning("%s", remark)
    uploaded = None
    if not dry_run:
        message = f"Publish {'the model of ' if model else ''}run {shared.name}"
        uploaded = upload(target, name, kind, private=private, overwrite=overwrite, message=message)
        shutil.rmtree(run / HERE)
    return Publication(target, card, uploaded)


def _known(found: Sequence[Origin], dry_run: bool, kind: Kind = "dataset") -> list[Origin]:
    """With the licences that the Hub states, which a dry run does not ask for."""
    return list(found) if dry_run else [with_license(each, kind) for each in found]


def _tell(run: OpenRun, published: folders.Published) -> None:
    """What is not in it, for who might expect it there."""
    for stage in published.left_out:
        logger.warning("%s is not finished and is left out", stage)
    for stage in published.withheld:
        logger.warning(
            "%s goes up without questions and gold answers to evaluate on, which are others'; "
            "--test-sets publishes them too",
            stage,
        )
    if "problems" in published.withheld and (own := only_here(run.recipe)):
        logger.warning(
            "who pulls it can go on only with %s, which problems is read from again",
            " and ".join(own),
        )
    if (run / "compare").is_dir():
        logger.warning("methods are runs of their own: dto publish %s/compare/METHOD", run.path)


def search(folder: Path, redaction: Redaction, name: str) -> Iterator[str]:
    """Look through what goes up; a line for each file that names this machine or its user.

    `name`, on the Hub, may hold the name of the user. Raises DtoError where something private
    remains.
    """
    names = "|".join(map(re.escape, sorted(names_of_machine())))
    machine = re.compile(rf"(?<![\w-])(?:{names})(?![\w-])" if names else "(?!)")
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        shown = path.relative_to(folder).as_posix()
        is_table = path.suffix == ".parquet"
        hits: list[str] = []
        for where, text, ours in _of_table(path) if is_table else _of_file(path):
            if kind := redaction.found(text, written_by_us=ours):
                way = _way_out(where)
                raise DtoError(f"{shown}, {where} holds {kind}: nothing is uploaded; {way}")
            if (ours or is_table) and machine.search(text.replace(name, "")):
                hits.append(where)
        if hits:
            yield f"{shown}: a name of this machine in {len(hits):,} texts, the first is {hits[0]}"


def _of_table(path: Path) -> Iterator[tuple[str, str, bool]]:
    """(row and column, text, whether we wrote it) of every text in a table."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=tables.ROW_GROUP):
            ids = batch.column(0).to_pylist()
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                values = column.to_pylist() if folders.has_text(column.type) else ()
                for row, value in zip(ids, values, strict=False):
                    for _, text in texts_of(value):
                        yield f"row {row}, column {name}", text, name == folders.REASON


def _of_file(path: Path) -> Iterator[tuple[str, str, bool]]:
    """(line, text, whether we wrote it) of every line in a file; of weights in their header."""
    ours = path.suffix in _TEXTS and path.name not in _VOCABULARIES
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            data, ours = file.read(min(int.from_bytes(file.read(8), "little"), 2**27)), True
        else:
            data = file.read()
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), start=1):
        yield f"line {number}", line, ours


def _way_out(where: str) -> str:
    column = where.partition(", column ")[2]
    if column in folders.WRITTEN:
        return (
            "the row's token ids say the same, so it is not cut out: publish without this table "
            "(--only), or take the problem out of the run"
        )
    again = "publish without this table (--only), or compute it again without that"
    return again if column else "change that"
