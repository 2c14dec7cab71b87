"""Redaction of private data: local paths, servers, user names, keys and error texts.

Known private strings (paths and servers in a recipe, the directory of the run, the home directory)
are replaced in texts that dto writes. Texts by models and people stay unchanged, since their spans
and token ids would still reveal the string. Other strings that look like paths are not guessed at.
Every text is searched for keys before an upload, and a match aborts it. Errors of engines and
servers are never quoted, only their kind (:func:`failure_kind`). Invisible characters can be shown
(:func:`visible_text`).
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
from dto.tasks import TASKS

NO_SERVER = "http://server.invalid/v1"
"""Replaces the address of a server (RFC 2606), so that a pulled run calls no server."""
NO_KEY = "OPENAI_API_KEY"
_MODELS = ("base", "trained", *NAMES)
_HERE = ("localhost", "127.0.0.1", "::1")
_KEYS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{32,}|gh[pousr]_[A-Za-z0-9]{30,}"
    r"|AKIA[0-9A-Z]{16})\b|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_KEY_STARTS = ("hf_", "sk-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "AKIA", "PRIVATE KEY")
"""Searched first, since the pattern is far slower."""
_KEY_NAME = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD)$")
ANYBODY = (
    "admin", "build", "debian", "default", "ec2-user", "guest", "home", "jovyan", "localhost",
    "nobody", "root", "runner", "server", "test", "ubuntu", "user", "worker",
)  # fmt: skip
"""Names of users and machines that are common and reveal nothing."""
_ANYBODYS_HOME = re.compile(rf"[/\\](?:home|Users)[/\\](?:{'|'.join(ANYBODY)})")

_OURS = re.compile(
    r"(?:grader|sandbox|no|time|memory|foreign)_\w+(?: unisolated$)?"
    r"|rule_\w+(?:: \w+(?=:|$))?|unreadable_gold(?:(?:: \w+)+$)?"
    r"|exited|unisolated|killed by SIG[A-Z]+|prompt has [\d,]+ tokens, context is [\d,]+"
    r"|estimate\.error_scan tests [\d,]+ boundaries of a trajectory"
)
"""How reasons written by dto itself start."""
# Invisible characters and those that change the display of others: C0 and C1 except line feed and
# tab, soft hyphen, zero-width space, line separators, bidirectional embeddings and isolates, BOM,
# surrogates. Joiners and left-to-right marks stay, since some scripts and emoji need them.
CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)

_STATUS = re.compile(r"\b(?:answered|HTTP|[Ss]tatus|[Ee]rror code)\W{0,3}(?:code\W{0,3})?(\d{3})\b")
_EXCEPTION = re.compile(r"\b[A-Z]\w*(?:Error|Exception|Timeout|Interrupt|Exit)\b")
_JUDGE_FAILED = "the judge failed: "


def failure_kind(reason: str) -> str:
    """Reduce the reason of a failure to what can be published.

    A reason written by dto stays. Else the result is the HTTP status, the class of the exception or
    `failed`, since the text of an error can quote a server, a file or a program.
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
    """Return the reason of a verdict in the judge's words; a failure is reduced to its kind."""
    if reason.startswith(_JUDGE_FAILED):
        return _JUDGE_FAILED + failure_kind(reason.removeprefix(_JUDGE_FAILED))
    return reason


def dropped_detail(reason: str, detail: str) -> str:
    """Return the detail of a dropped row; a failure is reduced to its kind."""
    return failure_kind(detail) if reason in ("failed", "error", "failed_request") else detail


@dataclass(frozen=True, slots=True)
class Redaction:
    """Private strings with replacements, longest first, and secrets with their variables.

    Finding a secret aborts publishing.
    """

    replacements: Mapping[str, str]
    secrets: Mapping[str, str]

    @classmethod
    def of(cls, recipe: Recipe, run: Path | None = None) -> Redaction:
        """Collect the private strings of a recipe, a run and this machine."""
        settings = recipe.model_dump(mode="json")
        texts = list(texts_of(settings))
        places = [text for key, text in texts if key != "system" and _is_place(text)]
        replacements = public_names([*_MODELS, *places])
        replacements |= {_absolute(place): replacements[place] for place in places}
        for key, value in texts:
            if key == "server" and value:
                replacements |= dict.fromkeys(_hosts(value), "server.invalid")
                replacements[value] = NO_SERVER
        if run is not None:
            replacements[str(run.absolute())] = run.name
        home = str(Path.home())
        if len(Path(home).parts) > 2:
            replacements[home] = "~"
        with suppress(OSError, KeyError):  # a user without a name
            user = getpass.getuser()
            replacements |= {
                f"{folder}{user}": "~" for folder in ("/home/", "/Users/", "\\Users\\")
            }
        changed = ((old, new) for old, new in replacements.items() if old != new)
        ordered = dict(sorted(changed, key=lambda pair: (-len(pair[0]), pair[0])))
        return cls(ordered, _secrets({value for key, value in texts if key == "api_key"}))

    def text(self, text: str) -> str:
        """Replace known private strings in a text."""
        for original, replacement in self.replacements.items():
            if original in text:
                text = _pattern(original).sub(replacement.replace("\\", r"\\"), text)
        return text

    def data(self, data: Any) -> Any:
        """Replace known private strings in JSON data, including keys."""
        return walk(data, self.text)

    def private_kind(self, text: str, *, written_by_us: bool) -> str | None:
        """Return the kind of private data that a text contains, or None.

        In texts by models (not `written_by_us`), common home directories such as `/home/user` do
        not count.
        """
        for secret, variable in self.secrets.items():
            if secret in text:
                return f"the value of {variable}"
        if any(start in text for start in _KEY_STARTS) and _KEYS.search(text):
            return "a key"
        for original in self.replacements:
            match = original in text and _pattern(original).search(text)
            if match and (written_by_us or not _ANYBODYS_HOME.fullmatch(original)):
                return "a local path or a server"
        return None


def public_names(names: Iterable[str]) -> dict[str, str]:
    """Map names of models and sources to public labels: a local path becomes its last part.

    Labels are unique: two paths never share one, and no path gets the label of another name.
    """
    owners: dict[str, str] = {}
    labels: dict[str, str] = {}
    for name in sorted(dict.fromkeys(names), key=_is_place):
        place = _absolute(name) if _is_place(name) else name
        last = Source.parse(name).last_part if _is_place(name) else name
        label, number = last, 2
        while owners.setdefault(label, place) != place:
            label, number = f"{last}-{number}", number + 1
        labels[name] = label
    return labels


def _is_place(text: str) -> bool:
    """Return whether a name is a path on this machine."""
    return Source.parse(text).tells_place


def _absolute(place: str) -> str:
    return str(Path(place).expanduser().absolute())


@cache
def _pattern(original: str) -> re.Pattern[str]:
    """Build the pattern that finds a path or server but not parts of other words.

    A path with one part, such as `/m`, also occurs in prose (`km/min`). So it is replaced only as a
    whole text, at the start of a row id, and at the end of a key of a stage's configuration.
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
    """List the forms of a host in errors, with and without port, unless it is a plain word."""
    place = urlsplit(server)
    if place.hostname in (*_HERE, None):
        return []
    forms = (place.netloc, str(place.hostname))
    return [form for form in forms if "." in form or ":" in form]


def _secrets(variables: set[str]) -> dict[str, str]:
    from huggingface_hub import get_token

    secrets = {
        value: name
        for name, value in sorted(os.environ.items())
        if name in variables or _KEY_NAME.search(name)
    }
    secrets[get_token() or ""] = "the token of the Hub"
    return {value: name for value, name in secrets.items() if len(value) >= 8}


def secrets_of(recipe: Recipe) -> dict[str, str]:
    """Return the names of the keys and tokens of this environment, by their values."""
    models = (recipe.model, recipe.judge, recipe.batch.teacher)
    return _secrets({model.api_key for model in models if model is not None})


def without_secrets(text: str, secrets: Mapping[str, str]) -> str:
    """Replace secrets by their names, and other texts that have the form of a key."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, f"<{secrets[secret]}>")
    return _KEYS.sub("<a key>", text) if any(start in text for start in _KEY_STARTS) else text


def withheld_stages(recipe: Recipe) -> tuple[str, ...]:
    """List the stages with questions and gold answers of public test sets.

    These are not published again by default: we cannot grant their licence, and copies of a
    benchmark with answers end up in training data. `recipe` is the recipe of the run itself, whose
    sources distinguish local files from Hub datasets.
    """
    problems = recipe.problems
    source = problems.test_source or problems.source
    sources = {"problems": [source] if problems.test else [], "test": recipe.evaluate.tasks}
    return tuple(
        stage
        for stage, names in sources.items()
        if any(Source.parse(name, TASKS).kind in ("task", "import", "hub") for name in names)
    )


def machine_names() -> set[str]:
    """Return the names of this machine and its user, except common ones."""
    names = {Path.home().name, socket.gethostname(), socket.gethostname().partition(".")[0]}
    with suppress(OSError, KeyError):  # a user without a name
        names.add(getpass.getuser())
    return {name for name in names if len(name) > 2 and name.lower() not in ANYBODY}


def without_servers(settings: dict[str, Any]) -> dict[str, Any]:
    """Remove server addresses and the names of key variables from a recipe's settings.

    Pulled recipes are cleaned too: a recipe by someone else could otherwise send your key to a
    server of its choice.
    """
    batch, evaluate = settings.get("batch"), settings.get("evaluate")
    teacher = batch.get("teacher") if isinstance(batch, dict) else None
    for group in (settings.get("model"), settings.get("judge"), teacher):
        if isinstance(group, dict):
            if group.get("server"):
                group["server"] = NO_SERVER
            group["api_key"] = NO_KEY
    if isinstance(evaluate, dict) and evaluate.get("server"):
        evaluate["server"] = NO_SERVER
    return settings


def visible(character: str) -> str:
    """Return the picture of a control character, such as `␛`, or its number."""
    code = ord(character)
    return chr(0x2400 + code) if code < 32 else f"U+{code:04X}"


def visible_text(text: str) -> str:
    """Replace invisible characters by `‹␛›` and the like, for plain text."""
    return CONTROL.sub(lambda match: f"‹{visible(match[0])}›", text)


def walk(data: Any, change: Callable[[str], str]) -> Any:
    """Apply `change` to every text in plain data."""
    if isinstance(data, str):
        return change(data)
    if isinstance(data, Mapping):
        return {walk(key, change): walk(value, change) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [walk(value, change) for value in data]
    return data


def texts_of(data: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (nearest key, text) of every text in plain data."""
    if isinstance(data, str):
        yield key, data
    elif isinstance(data, Mapping):
        for name, value in data.items():
            yield from texts_of(value, name)
    elif isinstance(data, list | tuple):
        for value in data:
            yield from texts_of(value, key)
