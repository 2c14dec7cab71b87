"""Every text that a model is shown, read from `prompts/`.

A prompt is a Jinja file with a front matter of `name` and `purpose`. A model family (such as
`nano`) has a folder that overrides `default`, file by file; `judge` holds what judges are asked. In
a checkout the folder stands at the top; in a wheel it travels inside the package.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from jinja2 import Environment, StrictUndefined, Template

from dto.errors import DtoError
from dto.tags import DEFAULT_TAGS, ThinkTags

JUDGE = "judge"
"""The folder of the judge's prompts, which is no family."""
PUT_IN = {
    "exit": "estimate",
    "finalize": "optimize",
    "trial_inside": "evaluate",
    "trial_closed": "evaluate",
    "early_close": "evaluate",
}
"""The prompts that are put into a response, each with the stage that does so."""

_ENVIRONMENT = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)


def resource(folder: str) -> Traversable:
    """The top-level folder `prompts` or `pipelines`, from the wheel or from the checkout."""
    packaged = files("dto") / "_resources" / folder
    if packaged.is_dir():
        return packaged
    return files("dto") / ".." / folder


@cache
def families() -> tuple[str, ...]:
    """The folders of `prompts/` that hold a model family's texts, `default` among them."""
    folders = (folder for folder in resource("prompts").iterdir() if folder.is_dir())
    names = (folder.name for folder in folders if any(folder.iterdir()))
    return tuple(sorted(name for name in names if name != JUDGE))


def source(name: str, family: str = "default") -> str:
    """The template text of a prompt, without its front matter; the family's own file wins."""
    return _read(name, family)[1]


def purpose(name: str, family: str = "default") -> str:
    """What a prompt is for: the first sentence of the `purpose` in its front matter."""
    return _read(name, family)[0].partition(". ")[0].removesuffix(".")


@cache
def _read(name: str, family: str) -> tuple[str, str]:
    """(purpose, template text) of a prompt."""
    for folder in (family, "default"):
        path = resource("prompts") / folder / f"{name}.jinja"
        if path.is_file():
            _, header, body = path.read_text(encoding="utf-8").split("---\n", 2)
            fields = dict(line.split(": ", 1) for line in header.splitlines() if ": " in line)
            if "name" not in fields or "purpose" not in fields:
                raise DtoError(f"prompt {folder}/{name}.jinja: front matter needs name and purpose")
            return fields["purpose"], body
    raise DtoError(f"no prompt {name!r} for family {family!r}: add prompts/default/{name}.jinja")


def render(
    name: str, family: str = "default", tags: ThinkTags = DEFAULT_TAGS, /, **values: object
) -> str:
    """A prompt as the model sees it, with its own tags around thinking (`open_tag`, `close_tag`).

    Raises DtoError for an unknown name.
    """
    own = {"open_tag": tags.open, "close_tag": tags.close}
    return _template(name, family).render(**own, **values)


@cache
def _template(name: str, family: str) -> Template:
    return _ENVIRONMENT.from_string(source(name, family))
