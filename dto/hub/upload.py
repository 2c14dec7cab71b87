"""Upload a folder in one commit; without changes there is no commit.

Derived files (`dto.hub.folder.is_derived`) alone cause no commit: timings, package versions and the
text of a card stay as they are on the Hub until something else changes.

Large files are stored first, outside of any commit, and the commit that names them comes last. So
an interrupted upload is invisible, and the same command sends the missing files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from dto.errors import DtoError
from dto.hub.folder import MARK, is_derived

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Kind = Literal["dataset", "model"]
_NEUTRAL = {".gitattributes", "README.md"}
"""Files of a new, empty repository."""


class UploadResult(NamedTuple):
    """Address and commit of the repository; `changed` if the commit is new."""

    url: str
    commit: str
    changed: bool
    private: bool


class RemoteRepo(NamedTuple):
    """State of a repository on the Hub."""

    commit: str
    private: bool
    files: frozenset[str]


def upload(
    folder: Path, name: str, kind: Kind, *, private: bool, overwrite: bool, message: str
) -> UploadResult:
    """Make a Hub repository hold exactly the files of `folder`, with at most one commit.

    Raises DtoError before sending anything: without a token with write access, for a repository
    that holds anything but the same run (unless `overwrite`), and for a public repository if
    `private` is set. Also raises DtoError when the connection fails.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    local = frozenset(files)
    with hub_errors(name, kind, writing=True):
        api.whoami()
        repo = remote(api, name, kind)
        if repo is None:
            api.create_repo(name, repo_type=kind, private=private or None, exist_ok=True)
            repo = remote(api, name, kind)
        if repo is None:
            raise DtoError(
                f"{kind} {name} was created but is not visible yet: run the same command again"
            )
        if private and not repo.private:
            raise DtoError(
                f"{kind} {name} exists and is public: nothing is uploaded; make it private on the "
                "Hub, choose another name, or omit --private"
            )
        stale = sorted(repo.files - local - {".gitattributes"})
        if not overwrite and _is_same_state(api, name, kind, repo, folder):
            files = {
                path: file
                for path, file in files.items()
                if not is_derived(path) or path not in repo.files
            }
            stale = [
                path for path in stale if not is_derived(path)
            ]  # the card on the Hub can refer to it
        commit = api.create_commit(
            name,
            [
                *(CommitOperationAdd(path, file) for path, file in files.items()),
                *(CommitOperationDelete(path, is_folder=False) for path in stale),
            ],
            commit_message=message,
            repo_type=kind,
            parent_commit=repo.commit,
        )
    url = f"{api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}"
    return UploadResult(url, commit.oid, commit.oid != repo.commit, repo.private)


def remote(api: HfApi, name: str, kind: Kind, revision: str | None = None) -> RemoteRepo | None:
    """Return commit and files of a repository; None if the token sees no such repository."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        info = api.repo_info(name, repo_type=kind, revision=revision)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return None
    names = frozenset(file.rfilename for file in getattr(info, "siblings", None) or ())
    return RemoteRepo(str(info.sha), bool(info.private), names)


def _is_same_state(api: HfApi, name: str, kind: Kind, repo: RemoteRepo, folder: Path) -> bool:
    """Return whether a repository already has this state of the run.

    Raises DtoError if it holds anything but a run of the same name and seed.
    """
    if not repo.files - _NEUTRAL:
        return False
    if MARK not in repo.files:
        raise DtoError(
            f"{kind} {name} exists and does not hold a run of dto: choose another name, or replace "
            "it with --overwrite"
        )
    path = api.hf_hub_download(name, MARK, repo_type=kind, revision=repo.commit)
    ours = json.loads((folder / MARK).read_text(encoding="utf-8"))
    try:
        mark = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        mark = None
    theirs = mark if isinstance(mark, dict) else {}
    if any(theirs.get(key) != ours[key] for key in ("name", "seed")):
        raise DtoError(
            f"{kind} {name} exists and holds another run ({theirs.get('name')}): choose another "
            "name, or replace it with --overwrite"
        )
    return bool(theirs == ours)


def check_name(name: str) -> None:
    """Raise DtoError unless the name has the form `user/name`."""
    from huggingface_hub.errors import HFValidationError

    # Public (in `__all__`), but not exported in the way that mypy requires.
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    with suppress(HFValidationError):
        validate_repo_id(name)
        if name.count("/") == 1:
            return
    raise DtoError(_MESSAGES["HFValidationError"].format(name=name))


_MESSAGES: dict[str | int, str] = {
    "LocalTokenNotFoundError": "the Hub needs a token and none is set: `hf auth login`, or set "
    "HF_TOKEN",
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set: unset it to reach the Hub",
    "RevisionNotFoundError": "{repo} has no such revision: name a commit or a branch",
    "HFValidationError": "{name!r} is not a Hub name: write it as user/name",
    "GatedRepoError": "{repo} is gated: accept its terms on the Hub, then `hf auth login`",
    "Invalid metadata": "the Hub rejects the card of {repo}: {error}; --license sets its licence",
    400: "the Hub rejects {repo} (400): {error}",
    401: "the Hub rejects the token (401) for {repo}: `hf auth login`, or set another HF_TOKEN",
    403: "the token may not {do} {repo} (403): the name belongs to another user, or the token has "
    "no write access; use your own name or another token",
    404: "{repo} is not on the Hub, or it is private and your token has no access: check the name, "
    "or `hf auth login`",
    409: "{repo} was changed by another user meanwhile: run the same command again",
    412: "{repo} was changed by another user meanwhile: run the same command again",
}
"""Message by class, HTTP status or first characters of an error."""


@contextmanager
def hub_errors(name: str, kind: Kind, *, writing: bool = False) -> Iterator[None]:
    """Turn every error of the client into a DtoError with one line that says what to do."""
    try:
        yield
    except DtoError:
        raise
    except Exception as error:  # errors of the client, of its HTTP library, of Python
        repo, status = f"{kind} {name}", http_status(error)
        text = " ".join(str(error).split())
        keys = [text[:16], *(base.__name__ for base in type(error).__mro__), status or 0]
        if message := next((_MESSAGES[key] for key in keys if key in _MESSAGES), ""):
            do = "write to" if writing else "read"
            raise DtoError(message.format(repo=repo, name=name, error=text, do=do)) from error
        reason = " ".join((str(error.__cause__ or error) or type(error).__name__).split())
        cause = f"the Hub answered {status}" if status else f"the connection failed ({reason})"
        kept = "uploaded files are not sent again" if writing else "downloaded files are kept"
        raise DtoError(f"{repo}: {cause}: run the same command again, {kept}") from error


def http_status(error: BaseException | None) -> int | None:
    """Return the HTTP status of an error or of the error that caused it; None without one."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        if match := _STATUS_TEXT.search(str(error)):
            return int(match[1])
        error = error.__cause__
    return None


_STATUS_TEXT = re.compile(r"HTTP status (?:client|server) error \((\d{3})\b")
"""Status in the errors of the Xet storage client, which have no response object."""
