"""`dto pull`: a published run comes back as it was, so that any stage can go on from it.

What was published by others is read with care: only the files that a run consists of are taken, and
its recipe asks no server and reads no key's variable of its choice.
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
from dto.hub.folder import ASKING, BESIDE, FORMAT, MARK, OF_TRAINING, PUBLISHED
from dto.hub.upload import Remote, check_name, hub_errors, remote
from dto.pipeline import write_run_manifest
from dto.recipe import known_recipe
from dto.redact import without_servers
from dto.runs import manifest
from dto.runs.reader import RunReader

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger("dto")

HIDDEN = ".pulled"
_GROUPS = ("config", "dropped", "usage", "judge_usage", "versions", "git")


def find(name: str, revision: str | None = None) -> bool:
    """Whether a dataset of the Hub is a run. Raises DtoError where it is not there."""
    from huggingface_hub import HfApi

    check_name(name)
    with hub_errors(name, "dataset"):
        return MARK in _there(HfApi(), name, revision).files


def pull(
    name: str, out: Path, *, revision: str | None = None, weights: bool = False
) -> tuple[str, ...]:
    """Bring a published run back as the run directory `out`; its stages.

    Stages whose test questions were not published are not finished: `dto run` reads the questions
    from where they come from. Killed or cut off, the same call takes up what is there already.
    `weights`: the model that was published under the same name comes too, as what `train` left.
    Raises DtoError where that is another model, for a table that is not what its manifest says, and
    for a directory that holds something already (RunConflictError).
    """
    from huggingface_hub import HfApi, snapshot_download

    check_name(name)
    begun = out.with_name(f".{out.name}{HIDDEN}")
    if out.exists() and any(out.iterdir()):
        if weights and (out / "recipe.yaml").is_file():
            _pull_weights(HfApi(), name, out)
            return tuple(sorted(p.name for p in out.iterdir() if manifest.read(p) is not None))
        raise RunConflictError(f"{out} is there already: give another --out, or remove it")
    with hub_errors(name, "dataset"):
        there = _there(HfApi(), name, revision)
        snapshot_download(
            name,
            repo_type="dataset",
            revision=there.commit,
            local_dir=begun,
            allow_patterns=[
                MARK,
                "recipe.yaml",
                *(f"*/{file}" for file in sorted({*BESIDE, *OF_TRAINING})),
            ],
        )
    with disk_errors(out):
        for path in begun.rglob("*"):  # what an attempt at something else left
            if path.is_file() and path.relative_to(begun).as_posix() not in there.files:
                path.unlink()
        stages = _arrange(begun, name)
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists():
            out.rmdir()
        begun.rename(out)
    write_run_manifest(RunReader(out))
    if weights:
        _pull_weights(HfApi(), name, out)
    return stages


def owed(run: Path) -> tuple[str, ...]:
    """The stages of a pulled run whose test questions were not published."""
    reader = RunReader(run)
    there = (stage for stage in ASKING if reader.table(stage).is_file())
    return tuple(stage for stage in there if reader.manifest(stage) is None)


def _there(api: HfApi, name: str, revision: str | None) -> Remote:
    found = remote(api, name, "dataset", revision)
    if found is not None:
        return found
    if remote(api, name, "model") is not None:
        raise DtoError(f"{name} is a model, not a dataset: name it in a recipe as model.name")
    raise DtoError(f"dataset {name} is not on the Hub, or is private and the token may not see it")


def _arrange(begun: Path, name: str) -> tuple[str, ...]:
    """Leave below `begun` what a run consists of, checked."""
    try:
        mark = json.loads((begun / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        mark = None
    if not isinstance(mark, dict) or mark.get("format") != FORMAT:
        raise DtoError(f"{name} was published by another version of dto: update dto")
    said = mark.get("withheld")
    withheld = [stage for stage in ASKING if isinstance(said, list) and stage in said]
    for path in begun.iterdir():
        if path.is_dir() and path.name in withheld:
            # Without its questions a stage is yet to be computed.
            (path / "manifest.json").unlink(missing_ok=True)
        elif path.is_dir() and (path.name not in PUBLISHED or manifest.read(path) is None):
            shutil.rmtree(path)
        elif path.is_file() and path.name != "recipe.yaml":
            path.unlink()
    there = (path.name for path in begun.iterdir() if path.is_dir())
    stages = tuple(sorted(set(there) - set(withheld)))
    for stage in stages:
        done = manifest.read(begun / stage) or {}
        odd = [key for key in _GROUPS if not isinstance(done.get(key) or {}, dict)]
        odd += [key for key in ("digest",) if not isinstance(done.get(key), str)]
        if odd:
            raise DtoError(f"{name}: the manifest of {stage} holds no settings under {odd[0]!r}")
        table = begun / stage / "rows.parquet"
        if stage != "train" and manifest.of_path(table) != done.get("content"):
            raise DtoError(
                f"{name}: the table of {stage} is not the one that its manifest names: remove "
                f"{begun} and pull again"
            )
    path, origin = begun / "recipe.yaml", f"{name}: its recipe.yaml"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DtoError(f"{origin} is not there: another --revision may have it") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise DtoError(f"{origin} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise DtoError(f"{origin} holds {type(data).__name__}, not a mapping of settings")
    # Servers first: what stands there is replaced in any case, so it need not be right.
    recipe, unknown = known_recipe({"name": path.stem, **without_servers(data)}, origin)
    if unknown:
        keys = ", ".join(unknown)
        logger.warning("%s: settings of another version, left out of its recipe: %s", name, keys)
    settings = without_servers(recipe.model_dump(mode="json"))
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
    return stages


def _pull_weights(api: HfApi, name: str, out: Path) -> None:
    from huggingface_hub import snapshot_download

    done = manifest.read(out / "train")
    if done is None:
        raise DtoError(f"{out} has no stage train that weights could belong to")
    begun = out / "train" / HIDDEN
    with hub_errors(name, "model"):
        there = remote(api, name, "model")
        if there is None:
            raise DtoError(f"model {name} is not on the Hub: `dto publish RUN {name} --model`")
        snapshot_download(
            name, revision=there.commit, local_dir=begun, ignore_patterns=["README.md", MARK]
        )
    shutil.rmtree(begun / ".cache", ignore_errors=True)
    (begun / ".gitattributes").unlink(missing_ok=True)
    if manifest.of_path(begun) != done["content"]:
        raise DtoError(
            f"model {name} is not the one that {out} trained: it was published from another run"
        )
    with disk_errors(out):
        shutil.rmtree(out / "train" / "model", ignore_errors=True)
        os.rename(begun, out / "train" / "model")
