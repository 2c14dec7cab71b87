"""`dto publish`: a run as a dataset of the Hub, its trained model as a model."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dto.errors import DtoError
from dto.hub import folder as folders
from dto.hub.card import UNKNOWN, Origin, models, origins, write_card
from dto.hub.model import build_model
from dto.hub.private import private_of
from dto.hub.upload import Kind, Uploaded, upload
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
    private: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
    license: str | None = None,
) -> Publication:
    """Write a run (or, with `model`, what it trained) as a folder below it, and upload that.

    `name` is `user/name`; datasets and models have names of their own, so both may have the same.
    `only` names tables by config or stage; without it every finished stage goes up. `license` is
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
    sources = [each if dry_run else _with_license(each) for each in origins(shared)]
    if model:
        base = models(shared)[0][1]
        base = base if dry_run else _with_license(base, "model")
        own = license or _single([base])
        card = build_model(run.path, target, name, shared, private_things, base, sources, own)
    else:
        published = folders.build(run.path, target, run.recipe, private_things, only)
        own = license or _single(sources)
        card = write_card(run.path, target, name, shared, published, sources, own)
        for stage in published.left_out:
            logger.warning("%s is not finished and is left out", stage)
        if (run / "compare").is_dir():
            logger.warning("methods are runs of their own: dto publish %s/compare/METHOD", run.path)
    folders.check(target, private_things)
    uploaded = None
    if not dry_run:
        message = f"Publish {'the model of ' if model else ''}run {shared.name}"
        uploaded = upload(target, name, kind, private=private, overwrite=overwrite, message=message)
        shutil.rmtree(run / HERE)
    return Publication(target, card, uploaded)


def _single(origins: Sequence[Origin]) -> str | None:
    """The one licence that all have; None where they differ, or one has several, or none known."""
    known = {each.license for each in origins}
    license = known.pop() if len(known) == 1 else UNKNOWN
    return None if license == UNKNOWN or "," in license else license


def check_name(name: str) -> None:
    """Raises DtoError for what is no `user/name`."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
        raise DtoError(f"{name!r} is no name on the Hub: write it as user/name")


def _with_license(source: Origin, kind: Kind = "dataset") -> Origin:
    """The licence that a source states on the Hub; unknown where it states none."""
    if source.license != UNKNOWN or source.name.count("/") != 1:
        return source
    from huggingface_hub import HfApi

    try:
        info = HfApi().repo_info(source.name, repo_type=kind, revision=source.revision or None)
        stated = getattr(info, "card_data", None)
    except Exception:  # none there, no network: the card says that it is not known
        return source
    license = stated.get("license") if stated is not None else None
    if isinstance(license, list):
        license = ", ".join(map(str, license))
    return replace(source, license=str(license)) if license else source
