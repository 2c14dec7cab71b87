"""`dto pull`: restore a published run, so that any stage can continue from it.

Runs published by others are not trusted: only known files of a run are downloaded, and the recipe
can neither call a server nor choose the environment variable of a key.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from dto.errors import DtoError, RunConflictError, disk_errors
from dto.hub.folder import FORMAT, MARK, PUBLISHED, QUESTION_STAGES, STAGE_FILES, TRAINING_FILES
from dto.hub.upload import RemoteRepo, check_name, hub_errors, remote
from dto.pipeline import write_run_manifest
from dto.recipe import known_recipe
from dto.redact import without_servers
from dto.runs import manifest
from dto.runs.reader import RunReader

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger("dto")

PARTIAL = ".pulled"
_GROUPS = ("config", "dropped", "usage", "judge_usage", "versions", "git")


def is_run(name: str, revision: str | None = None) -> bool:
    """Return whether a Hub dataset is a run. Raises DtoError if the dataset does not exist."""
    from huggingface_hub import HfApi

    check_name(name)
    with hub_errors(name, "dataset"):
        return MARK in _find_dataset(HfApi(), name, revision).files


def pull(
    name: str, out: Path, *, revision: str | None = None, weights: bool = False
) -> tuple[str, ...]:
    """Download a published run to the directory `out`; return its stages.

    Stages published without test questions are unfinished: `dto run` reads the questions from their
    source. After an interruption the same call continues. `weights`: also download the model with
    the same name as the result of `train`. Raises DtoError if that model is from another run or a
    table does not match its manifest, and RunConflictError if `out` is not empty.
    """
    from huggingface_hub import HfApi, snapshot_download

    check_name(name)
    partial = out.with_name(f".{out.name}{PARTIAL}")
    if out.exists() and any(out.iterdir()):
        if weights and (out / "recipe.yaml").is_file():
            _pull_weights(HfApi(), name, out)
            return tuple(sorted(p.name for p in out.iterdir() if manifest.read(p) is not None))
        raise RunConflictError(f"{out} exists already: choose another --out, or remove it")
    with hub_errors(name, "dataset"):
        dataset = _find_dataset(HfApi(), name, revision)
        snapshot_download(
            name,
            repo_type="dataset",
            revision=dataset.commit,
            local_dir=partial,
            allow_patterns=[
                MARK,
                "recipe.yaml",
                *(f"*/{file}" for file in sorted({*STAGE_FILES, *TRAINING_FILES})),
            ],
        )
    with disk_errors(out):
        for path in partial.rglob("*"):  # files left by a pull of another revision
            if path.is_file() and path.relative_to(partial).as_posix() not in dataset.files:
                path.unlink()
        stages = _check_run(partial, name)
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    write_run_manifest(RunReader(out))
    if weights:
        _pull_weights(HfApi(), name, out)
    return stages


def pending_stages(run: Path) -> tuple[str, ...]:
    """List the stages of a pulled run whose test questions were not published."""
    reader = RunReader(run)
    existing = (stage for stage in QUESTION_STAGES if reader.table(stage).is_file())
    return tuple(stage for stage in existing if reader.manifest(stage) is None)


def _find_dataset(api: HfApi, name: str, revision: str | None) -> RemoteRepo:
    repo = remote(api, name, "dataset", revision)
    if repo is not None:
        return repo
    if remote(api, name, "model") is not None:
        raise DtoError(f"{name} is a model, not a dataset: use it in a recipe as model.name")
    raise DtoError(
        f"dataset {name} is not on the Hub, or it is private and your token has no access: check "
        "the name, or `hf auth login`"
    )


def _check_run(folder: Path, name: str) -> tuple[str, ...]:
    """Check a downloaded run, remove all other files, and return its finished stages."""
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        mark = None
    if not isinstance(mark, dict) or mark.get("format") != FORMAT:
        raise DtoError(f"{name} was published by another version of dto: update dto")
    names = mark.get("withheld")
    withheld = [stage for stage in QUESTION_STAGES if isinstance(names, list) and stage in names]
    for path in folder.iterdir():
        if path.is_dir() and path.name in withheld:
            # Without its questions the stage is unfinished.
            (path / "manifest.json").unlink(missing_ok=True)
        elif path.is_dir() and (path.name not in PUBLISHED or manifest.read(path) is None):
            shutil.rmtree(path)
        elif path.is_file() and path.name != "recipe.yaml":
            path.unlink()
    names = (path.name for path in folder.iterdir() if path.is_dir())
    stages = tuple(sorted(set(names) - set(withheld)))
    for stage in stages:
        stage_manifest = manifest.read(folder / stage) or {}
        invalid = [key for key in _GROUPS if not isinstance(stage_manifest.get(key) or {}, dict)]
        invalid += [key for key in ("digest",) if not isinstance(stage_manifest.get(key), str)]
        if invalid:
            raise DtoError(
                f"{name}: the manifest of {stage} has an invalid value of {invalid[0]!r}"
            )
        table = folder / stage / "rows.parquet"
        if stage != "train" and manifest.of_path(table) != stage_manifest.get("content"):
            raise DtoError(
                f"{name}: the table of {stage} does not match its manifest: remove {folder} and "
                "pull again"
            )
    path, origin = folder / "recipe.yaml", f"{name}: its recipe.yaml"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DtoError(f"{origin} is missing: try another --revision") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise DtoError(f"{origin} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise DtoError(f"{origin} holds {type(data).__name__}, not a mapping of settings")
    # Replace servers first: their values need not be valid.
    recipe, unknown = known_recipe({"name": path.stem, **without_servers(data)}, origin)
    if unknown:
        keys = ", ".join(unknown)
        logger.warning("%s: dropped settings that this version does not know: %s", name, keys)
    settings = without_servers(recipe.model_dump(mode="json"))
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
    return stages


def _pull_weights(api: HfApi, name: str, out: Path) -> None:
    from huggingface_hub import snapshot_download

    training = manifest.read(out / "train")
    if training is None:
        raise DtoError(f"{out} has no finished stage train, so it has no weights to pull")
    partial = out / "train" / PARTIAL
    with hub_errors(name, "model"):
        repo = remote(api, name, "model")
        if repo is None:
            raise DtoError(
                f"model {name} is not on the Hub: publish it with `dto publish RUN {name} --model`"
            )
        snapshot_download(
            name, revision=repo.commit, local_dir=partial, ignore_patterns=["README.md", MARK]
        )
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    (partial / ".gitattributes").unlink(missing_ok=True)
    if manifest.of_path(partial) != training["content"]:
        raise DtoError(
            f"model {name} was published from another run than {out}: pull without its weights"
        )
    with disk_errors(out):
        shutil.rmtree(out / "train" / "model", ignore_errors=True)
        os.rename(partial, out / "train" / "model")
