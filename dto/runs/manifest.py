"""Manifests of finished stages, and hashes of files.

A stage's manifest is written last, so a stage with a manifest is complete. The hashes detect files
that changed under the same name.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dto.prompts import resource
from dto.records import content_id

PACKAGES = (
    "dto", "torch", "transformers", "trl", "accelerate", "datasets", "polars", "pyarrow", "spacy",
    "math-verify", "openai", "vllm", "ray",
)  # fmt: skip
_CLEAR_PEAK = Path("/proc/self/clear_refs")


def digest(config: Mapping[str, Any]) -> str:
    """Hash a stage's configuration."""
    return content_id(json.dumps(config, sort_keys=True, ensure_ascii=False))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys whose values differ between two configurations, with both values, for people."""
    return [
        f"changed {key}"
        if key.startswith("digest of ")
        else f"{key} ({_shown(before.get(key))} → {_shown(now.get(key))})"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}…"


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted keys; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read(directory: Path) -> dict[str, Any] | None:
    """Read the manifest of a stage or a run; None if it is not finished."""
    try:
        data = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def finished(
    stage: str, config: Mapping[str, Any], content: str | None, **counts: Any
) -> dict[str, Any]:
    """The manifest of a finished stage: its configuration, the hash of its rows, and its usage.

    The digest covers configuration and content, because later stages depend on both.
    """
    return {
        "stage": stage,
        "digest": digest({**config, "content": content}),
        "config": dict(config),
        "content": content,
        **counts,
        "peak_memory": peak_memory(),
        **provenance(),
    }


def write(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest completely or not at all."""
    write_text(
        directory / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    )


def write_text(path: Path, text: str | Iterable[str]) -> None:
    """Write a text, or its parts, as a complete file or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines([text] if isinstance(text, str) else text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def provenance() -> dict[str, Any]:
    """Package versions and, in a checkout, the commit and whether the checkout has changes."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"versions": versions, "git": _git_state()}


def _git_state() -> dict[str, Any] | None:
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", str(checkout), *arguments],
                capture_output=True,
                text=True,
                check=True,
                timeout=10,
            ).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(status)}


def reset_peak_memory() -> None:
    """Reset the peak on Linux; on other systems it stays the peak of the whole process."""
    with suppress(OSError):
        _CLEAR_PEAK.write_text("5")


def peak_memory(process: int | None = None) -> int:
    """The peak resident memory of a process since its last reset, in bytes; unknown: 0.

    None: this process. Of others it is known on Linux only, and on Windows of none.
    """
    try:
        status = Path(f"/proc/{process or 'self'}/status").read_text(encoding="ascii")
    except OSError:
        if sys.platform == "win32" or process is not None:
            return 0
        from resource import RUSAGE_SELF, getrusage

        unit = 1 if sys.platform == "darwin" else 1024
        return getrusage(RUSAGE_SELF).ru_maxrss * unit
    peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    return int(peaks[0]) * 1024 if peaks else 0  # none: it has ended


def of_path(path: Path) -> str | None:
    """Hash a file, or all files in a folder except hidden ones; None if the path does not exist."""
    if path.is_file():
        return _of_file(path)
    if not path.is_dir():
        return None
    names = sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file())
    visible = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    return content_id(*(f"{name.as_posix()}\n{_of_file(path / name)}" for name in visible))


def of_model(name: str) -> str | None:
    """Hash a model in a local folder; None for a model on the Hub."""
    from dto.recipe import resolve

    return of_path(Path(resolve(name)))


def of_prompts(family: str) -> str:
    """Hash the prompts of a model family."""
    texts: list[str] = []
    for folder in ("default", family):
        place = resource("prompts") / folder
        if place.is_dir():
            prompts = sorted(place.iterdir(), key=lambda file: file.name)
            texts += [f"{folder}/{file.name}\n{file.read_text('utf-8')}" for file in prompts]
    return content_id(*texts)


def _of_file(path: Path) -> str:
    state = path.stat()
    return _hash(path, state.st_size, state.st_ctime_ns)


@cache
def _hash(path: Path, size: int, changed: int) -> str:
    """Hash a file once per process and file state: weights are large, and every stage asks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:16]
