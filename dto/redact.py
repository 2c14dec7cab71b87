"""What does not leave the machine: local paths, servers, user names, keys, error texts of others.

What is known to be private (the paths and servers that a recipe names, the run's directory, the
home directory) is replaced in what we write and left in what models and people wrote: the spans and
token ids beside such a text would still tell it. Nobody is served by a guess at what else may be a
path. A key ends everything: its value is looked for in every text before anything is sent. Why an
engine or a server failed is quoted nowhere: its kind is (:func:`failure_kind`).
"""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

from dto.recipe import NAMES, Recipe
from dto.source import Source

NO_SERVER = "http://server.invalid/v1"
"""Stands for a server's address (RFC 2606): a run that was pulled asks nobody by itself."""
NO_KEY = "OPENAI_API_KEY"
_MODELS = ("base", "trained", *NAMES)
_HERE = ("localhost", "127.0.0.1", "::1")
_KEYS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{32,}|gh[pousr]_[A-Za-z0-9]{30,}"
    r"|AKIA[0-9A-Z]{16})\b|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_KEY_STARTS = ("hf_", "sk-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "AKIA", "PRIVATE KEY")
"""Looked for first: the pattern takes far longer."""
_KEY_NAME = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD)$")
ANYBODY = (
    "admin", "build", "debian", "default", "ec2-user", "guest", "home", "jovyan", "localhost",
    "nobody", "root", "runner", "server", "test", "ubuntu", "user", "worker",
)  # fmt: skip
"""Names of users and machines that tell nothing, and that stand in any text."""
_ANYBODYS_HOME = re.compile(rf"[/\\](?:home|Users)[/\\](?:{'|'.join(ANYBODY)})")

_OURS = re.compile(
    r"(?:grader|sandbox|no|time|memory|foreign)_\w+(?: unisolated$)?"
    r"|rule_\w+(?:: \w+(?=:|$))?|unreadable_gold(?:(?:: \w+)+$)?"
    r"|exited|unisolated|killed by SIG[A-Z]+|prompt has [\d,]+ tokens, context is [\d,]+"
    r"|estimate\.error_scan tests [\d,]+ boundaries of a trajectory"
)
"""How the reasons begin that this package gives itself."""
_STATUS = re.compile(r"\b(?:answered|HTTP|[Ss]tatus|[Ee]rror code)\W{0,3}(?:code\W{0,3})?(\d{3})\b")
_EXCEPTION = re.compile(r"\b[A-Z]\w*(?:Error|Exception|Timeout|Interrupt|Exit)\b")
_JUDGE_FAILED = "the judge failed: "


def failure_kind(reason: str) -> str:
    """What may be told of why something failed: our own reason, else the kind of the error alone.

    The kind is the HTTP status, else the exception's class, else `failed`. The text of an error may
    quote whatever a server, a file or a program holds.
    """
    if not reason:
        return ""
    if ours := _OURS.match(reason):
        return ours[0]
    if status := _STATUS.search(reason):
        return f"HTTP {status[1]}"
    exception = _EXCEPTION.search(reason)
    return exception[0] if exception else "failed"


def verdict_reason(reason: str) -> str:
    """What may be told of why a judge said so: its own words, of its failure the kind alone."""
    if reason.startswith(_JUDGE_FAILED):
        return _JUDGE_FAILED + failure_kind(reason.removeprefix(_JUDGE_FAILED))
    return reason


def dropped_detail(reason: str, detail: str) -> str:
    """What may be told of a dropped row beside its reason: of a failure the kind alone."""
    return failure_kind(detail) if reason in ("failed", "error") else detail


@dataclass(frozen=True, slots=True)
class Redaction:
    """What is replaced and by what, longest first; keys by value, with the variable that holds it.

    A key ends everything.
    """

    replaced: Mapping[str, str]
    secrets: Mapping[str, str]

    @classmethod
    def of(cls, recipe: Recipe, run: Path | None = None) -> Redaction:
        """What is private about a run, or a recipe alone, on this machine."""
        settings = recipe.model_dump(mode="json")
        texts = list(texts_of(settings))
        places = [text for key, text in texts if key != "system" and _is_place(text)]
        replaced = public_names([*_MODELS, *places])
        replaced |= {_absolute(place): replaced[place] for place in places}
        for key, value in texts:
            if key == "server" and value:
                replaced |= dict.fromkeys(_hosts(value), "server.invalid")
                replaced[value] = NO_SERVER
        if run is not None:
            replaced[str(run.absolute())] = run.name
        home = str(Path.home())
        if len(Path(home).parts) > 2:
            replaced[home] = "~"
        with suppress(OSError, KeyError):  # a user without a name
            user = getpass.getuser()
            replaced |= {f"{folder}{user}": "~" for folder in ("/home/", "/Users/", "\\Users\\")}
        known = ((original, shown) for original, shown in replaced.items() if original != shown)
        ordered = dict(sorted(known, key=lambda pair: (-len(pair[0]), pair[0])))
        return cls(ordered, _secrets({value for key, value in texts if key == "api_key"}))

    def text(self, text: str) -> str:
        """The text without what is known to be private."""
        for original, shown in self.replaced.items():
            if original in text:
                text = _pattern(original).sub(shown.replace("\\", r"\\"), text)
        return text

    def data(self, data: Any) -> Any:
        """The same for every text within data as JSON has it, keys included."""
        return walk(data, self.text)

    def found(self, text: str, *, written_by_us: bool) -> str | None:
        """What kind of private thing a text still holds, if any.

        Where a model wrote it (not `written_by_us`), `/home/user` and the like are anybody's.
        """
        for secret, holder in self.secrets.items():
            if secret in text:
                return f"the value of {holder}"
        if any(start in text for start in _KEY_STARTS) and _KEYS.search(text):
            return "a key"
        for original in self.replaced:
            known = original in text and _pattern(original).search(text)
            if known and (written_by_us or not _ANYBODYS_HOME.fullmatch(original)):
                return "a local path or a server"
        return None


def public_names(names: Iterable[str]) -> dict[str, str]:
    """For each name of a model or a source what others see: of a local path its last part.

    No two places have one label, and none has the name of something that is no place.
    """
    owners: dict[str, str] = {}
    shown: dict[str, str] = {}
    for name in sorted(dict.fromkeys(names), key=_is_place):
        place = _absolute(name) if _is_place(name) else name
        last = Source.parse(name).last_part if _is_place(name) else name
        label, number = last, 2
        while owners.setdefault(label, place) != place:
            label, number = f"{last}-{number}", number + 1
        shown[name] = label
    return shown


def _is_place(text: str) -> bool:
    """Whether a name says where something is on this machine."""
    return Source.parse(text).tells_place


def _absolute(place: str) -> str:
    return str(Path(place).expanduser().absolute())


@cache
def _pattern(original: str) -> re.Pattern[str]:
    """Where a path or a server stands as such: `/m` does not stand in `km/min`.

    A path of one part, which models write too, is replaced only as a whole text, at the start of a
    row's id, and at the end of a key of a stage's configuration.
    """
    exact = re.escape(original)
    if ":" in original and not PureWindowsPath(original).drive:
        return re.compile(exact)
    is_host = "." in original and not re.search(r"[/\\]", original)
    parts = [part for part in re.split(r"[/\\]", original) if part not in ("", ".")]
    if not is_host and len(parts) < 2:
        return re.compile(rf"^{exact}(?=/|$)|(?<= of ){exact}$")
    return re.compile(rf"(?<![\w.-]){exact}(?![\w-])")


def _hosts(server: str) -> list[str]:
    """How a server's host stands in errors, with its port and alone; not where it is any word."""
    place = urlsplit(server)
    if place.hostname in (*_HERE, None):
        return []
    forms = (place.netloc, str(place.hostname))
    return [form for form in forms if "." in form or ":" in form]


def _secrets(variables: set[str]) -> dict[str, str]:
    from huggingface_hub import get_token

    found = {
        value: name
        for name, value in sorted(os.environ.items())
        if name in variables or _KEY_NAME.search(name)
    }
    found[get_token() or ""] = "the token of the Hub"
    return {value: name for value, name in found.items() if len(value) >= 8}


def names_of_machine() -> set[str]:
    """How this machine and its user are called, unless anybody's are called so."""
    names = {Path.home().name, socket.gethostname(), socket.gethostname().partition(".")[0]}
    with suppress(OSError, KeyError):  # a user without a name
        names.add(getpass.getuser())
    return {name for name in names if len(name) > 2 and name.lower() not in ANYBODY}


def without_servers(settings: dict[str, Any]) -> dict[str, Any]:
    """A recipe's settings without addresses, and without the names of keys' variables.

    Done to what is pulled too: a recipe of somebody else's would otherwise send a key of one's own
    wherever it says.
    """
    for group in (settings.get("model"), settings.get("judge")):
        if isinstance(group, dict):
            if group.get("server"):
                group["server"] = NO_SERVER
            group["api_key"] = NO_KEY
    return settings


def walk(data: Any, change: Callable[[str], str]) -> Any:
    """Plain data with every text in it changed."""
    if isinstance(data, str):
        return change(data)
    if isinstance(data, Mapping):
        return {walk(key, change): walk(value, change) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [walk(each, change) for each in data]
    return data


def texts_of(data: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, text) of every text within plain data, the nearest key around each."""
    if isinstance(data, str):
        yield key, data
    elif isinstance(data, Mapping):
        for name, value in data.items():
            yield from texts_of(value, name)
    elif isinstance(data, list | tuple):
        for value in data:
            yield from texts_of(value, key)
