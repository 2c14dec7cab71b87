"""`dto publish`: a run as a dataset of the Hub, its trained model as a model."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from dto.errors import DtoError
from dto.hub import folder as folders
from dto.hub.card import Shown, write_card
from dto.hub.model import build_model
from dto.hub.origins import (
    Origin,
    models,
    of_test_sets,
    only_here,
    origins,
    single_license,
    with_license,
    withheld,
)
from dto.hub.upload import Kind, Uploaded, upload
from dto.redact import Search, private_of
from dto.reporting.report import measure
from dto.runs.run import Run

logger = logging.getLogger("dto")

HERE = "publish"
"""The folder below the run in which a publication is put together."""


class Publication(NamedTuple):
    """The folder, which stays unless it was sent, and its card; where it went."""

    folder: Path
    card: str
    uploaded: Uploaded | None


def publish(
    run: Run,
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
    private_things = private_of(run.recipe, run.path)
    shared = folders.shared_recipe(run.recipe, private_things)
    target = run / HERE / kind
    sources = _known(origins(shared), dry_run)
    if model:
        (base,) = _known([models(shared)[0][1]], dry_run, "model")
        own = license or single_license([base])
        card = build_model(run.path, target, name, shared, private_things, base, sources, own)
    else:
        tested = _known(of_test_sets(shared), dry_run)
        hidden = () if test_sets else withheld(run.recipe)
        own = license or single_license([*sources, *([] if hidden else tested)])
        stated = {"license": own, "sources": [str(each) for each in (*sources, *tested)]}
        published = folders.build(
            run.path, target, run.recipe, private_things, only, hidden, stated
        )
        found = measure(run.path) if "evaluate" in published.stages else None
        shown = Shown(name, shared, own, sources, tested, found)
        card = write_card(run.path, target, shown, published, private_things)
        _tell(run, published)
    for remark in Search(target, private_things, name).remarks():
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


def _tell(run: Run, published: folders.Published) -> None:
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


def check_name(name: str) -> None:
    """Raises DtoError for what is no `user/name`."""
    from huggingface_hub.errors import HFValidationError

    # Public (`__all__` has it), though not exported as mypy wants it.
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    with suppress(HFValidationError):
        validate_repo_id(name)
        if name.count("/") == 1:
            return
    raise DtoError(f"{name!r} is no name on the Hub: write it as user/name")
