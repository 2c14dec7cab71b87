"""One folder, one commit: what changed goes up, what did not makes no commit.

Nor does what only follows from the tables (`dto.hub.folder.follows`): seconds, versions of packages
and the wording of a card stay as they are on the Hub until something else changes.

Large files are stored first and belong to no commit yet; the commit that names them comes last.
So an upload that breaks off leaves nothing to be seen, and the same command sends what is missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from dto.errors import DtoError
from dto.hub.folder import MARK, follows

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Kind = Literal["dataset", "model"]
_NEUTRAL = {".gitattributes", "README.md"}
"""What a repository holds that nobody has put anything into."""


class Uploaded(NamedTuple):
    """Where it is, at which commit, and whether that is a new one."""

    url: str
    commit: str
    changed: bool
    private: bool


class Remote(NamedTuple):
    """A repository as it stands on the Hub."""

    commit: str
    private: bool
    files: frozenset[str]


def upload(
    folder: Path, name: str, kind: Kind, *, private: bool, overwrite: bool, message: str
) -> Uploaded:
    """Make a repository of the Hub hold exactly what is in `folder`, with at most one commit.

    Raises DtoError, before anything is sent: without a token that may write there, for a repository
    that holds something else than the same run (unless `overwrite`), and for a public one where
    `private` is asked for; and when the connection breaks.
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
        there = remote(api, name, kind)
        if there is None:
            api.create_repo(name, repo_type=kind, private=private or None, exist_ok=True)
            there = remote(api, name, kind)
        if there is None:
            raise DtoError(f"{kind} {name} was made and is not there: start the same command again")
        if private and not there.private:
            raise DtoError(
                f"{kind} {name} exists and is public: nothing is uploaded; make it private on the "
                "Hub, take another name, or leave --private away"
            )
        stale = sorted(there.files - local - {".gitattributes"})
        if not overwrite and _state(api, name, kind, there, folder):
            files = {
                path: file
                for path, file in files.items()
                if not follows(path) or path not in there.files
            }
            stale = [path for path in stale if not follows(path)]  # the card there may show it
        commit = api.create_commit(
            name,
            [
                *(CommitOperationAdd(path, file) for path, file in files.items()),
                *(CommitOperationDelete(path, is_folder=False) for path in stale),
            ],
            commit_message=message,
            repo_type=kind,
            parent_commit=there.commit,
        )
    url = f"{api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}"
    return Uploaded(url, commit.oid, commit.oid != there.commit, there.private)


def remote(api: HfApi, name: str, kind: Kind, revision: str | None = None) -> Remote | None:
    """A repository's commit and files; None where there is none that the token can see."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        info = api.repo_info(name, repo_type=kind, revision=revision)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return None
    names = frozenset(each.rfilename for each in getattr(info, "siblings", None) or ())
    return Remote(str(info.sha), bool(info.private), names)


def _state(api: HfApi, name: str, kind: Kind, there: Remote, folder: Path) -> bool:
    """Whether a repository has this very state of the run already.

    Raises DtoError where it holds something else than a run of that name and seed.
    """
    if not there.files - _NEUTRAL:
        return False
    if MARK not in there.files:
        raise DtoError(
            f"{kind} {name} exists and holds something else than a run of dto: take another name, "
            "or replace it with --overwrite"
        )
    path = api.hf_hub_download(name, MARK, repo_type=kind, revision=there.commit)
    own = json.loads((folder / MARK).read_text(encoding="utf-8"))
    try:
        said = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        said = None
    before = said if isinstance(said, dict) else {}
    if any(before.get(key) != own[key] for key in ("name", "seed")):
        raise DtoError(
            f"{kind} {name} exists and holds another run ({before.get('name')}): take another "
            "name, or replace it with --overwrite"
        )
    return bool(before == own)


def check_name(name: str) -> None:
    """Raises DtoError for what is no `user/name`."""
    from huggingface_hub.errors import HFValidationError

    # Public (`__all__` has it), though not exported as mypy wants it.
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    with suppress(HFValidationError):
        validate_repo_id(name)
        if name.count("/") == 1:
            return
    raise DtoError(_SAID["HFValidationError"].format(name=name))


_SAID: dict[str | int, str] = {
    "LocalTokenNotFoundError": "the Hub asks for a token and there is none: `hf auth login`, or "
    "put it into HF_TOKEN",
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set: unset it to reach the Hub",
    "RevisionNotFoundError": "{what} has no such revision: name a commit or a branch",
    "HFValidationError": "{name!r} is no name on the Hub: write it as user/name",
    "GatedRepoError": "{what} is gated: accept its terms on the Hub, then `hf auth login`",
    "Invalid metadata": "the Hub refuses the card of {what}: {said}; --license sets its licence",
    400: "the Hub refuses {what} (400): {said}",
    401: "the Hub does not accept the token (401) for {what}: `hf auth login`, or put another "
    "into HF_TOKEN",
    403: "the token may not {do} {what} (403): the name belongs to somebody else, or the token has "
    "no right to write; take a name of your own or another token",
    404: "{what} is not on the Hub, or is private and the token may not see it",
    409: "{what} was changed by somebody else meanwhile: start the same command again",
    412: "{what} was changed by somebody else meanwhile: start the same command again",
}
"""By how an error begins, its class or its HTTP status, what has happened and what to do."""


@contextmanager
def hub_errors(name: str, kind: Kind, *, writing: bool = False) -> Iterator[None]:
    """Turn whatever the client raises into one line that says what to do."""
    try:
        yield
    except DtoError:
        raise
    except Exception as error:  # the client raises its own, its HTTP library's, and plain ones
        what, status = f"{kind} {name}", http_status(error)
        said = " ".join(str(error).split())
        keys = [said[:16], *(each.__name__ for each in type(error).__mro__), status or 0]
        if known := next((_SAID[key] for key in keys if key in _SAID), ""):
            do = "write to" if writing else "read"
            raise DtoError(known.format(what=what, name=name, said=said, do=do)) from error
        reason = " ".join((str(error.__cause__ or error) or type(error).__name__).split())
        broke = f"the connection to the Hub broke ({reason})"
        kept = "what is there already is not sent again" if writing else "what is here is kept"
        raise DtoError(
            f"{what}: {f'the Hub answered {status}' if status else broke}: start the same command "
            f"again, {kept}"
        ) from error


def http_status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error, which may be the cause of another one."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        if said := _IN_WORDS.search(str(error)):
            return int(said[1])
        error = error.__cause__
    return None


_IN_WORDS = re.compile(r"HTTP status (?:client|server) error \((\d{3})\b")
"""How the client of the Xet storage, which is no Python, tells a status."""
