"""Every text that a model is shown, read from `prompts/`, and the chat template around it.

A prompt is a Jinja file with a front matter of `name` and `purpose`. A model family (such as
`nano`) has a folder that overrides `default`, file by file; `judge` holds what judges are asked. In
a checkout the folder stands at the top; in a wheel it travels inside the package.

Every prompt of messages is rendered here, whoever asks: the stages, the engines, the judge. What
goes wrong with a model's own template is said in one line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined, Template, TemplateError, meta

from dto.errors import DtoError, EngineError
from dto.protocols import Message, Prompt
from dto.tags import DEFAULT_TAGS, ThinkTags

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


Argument = bool | int | float | str | None
Arguments = Mapping[str, Argument]

NAME = "chat_template"
"""The argument that picks one of several named templates; it is not handed to the template."""
RESERVED = frozenset(
    (
        "messages", "conversation", "tools", "documents", "add_generation_prompt",
        "continue_final_message", "tokenize", "padding", "truncation", "max_length",
        "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
    )
)  # fmt: skip
"""What dto or transformers says itself."""
_NOT_ASKED = RESERVED | {
    "raise_exception", "strftime_now", "range", "namespace", "dict", "lipsum", "cycler", "joiner",
    "bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token",
    "additional_special_tokens",
}  # fmt: skip
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # transformers' own tag
_PARSER = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False)
_PROBE = "What is 1 + 1?"


def render_chat(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    model: str,
    arguments: Arguments | None = None,
) -> tuple[int, ...]:
    """Messages as the model reads them, up to the response; the template brings the only BOS.

    `arguments` are `model.template`. Raises DtoError, in one line that says what to set: no
    template, several without a default, an argument that the template does not know, one that it
    does not take, and messages (a system message) that it refuses.
    """
    arguments = dict(arguments or {})
    check_arguments(tokenizer, model, arguments)
    try:
        text = _rendered(messages, tokenizer, arguments)
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise DtoError(_why(error, messages, tokenizer, model, arguments)) from None
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def check_template(
    tokenizer: PreTrainedTokenizerBase,
    model: str,
    arguments: Arguments | None = None,
    system: str | None = None,
) -> tuple[int, ...]:
    """A prompt rendered on trial, before any work; its ids. Raises DtoError as `render_chat` does.

    Also for a system message that the template leaves out.
    """
    asked: Message = {"role": "user", "content": _PROBE}
    plain = render_chat([asked], tokenizer, model, arguments)
    if system is None:
        return plain
    ids = render_chat([{"role": "system", "content": system}, asked], tokenizer, model, arguments)
    if ids == plain and system.strip():
        raise DtoError(
            f"the chat template of {model!r} leaves the system message out: set model.system to "
            "null, and put its words into a prompt (model.prompt)"
        )
    return ids


def check_arguments(tokenizer: PreTrainedTokenizerBase, model: str, arguments: Arguments) -> None:
    """Raises DtoError for a tokenizer without the template, and for unknown arguments of it."""
    template: Any = tokenizer.chat_template
    if not template:
        raise DtoError(
            f"tokenizer of {model!r} has no chat template: use the reasoning version of the "
            "model, put a chat_template.jinja beside its tokenizer, or send token ids"
        )
    name = arguments.get(NAME)
    if isinstance(template, dict):
        names = ", ".join(sorted(template))
        if name is None and "default" not in template:
            raise DtoError(
                f"tokenizer of {model!r} has several chat templates and no default: set "
                f"model.template.{NAME} to one of {names}"
            )
        template = template.get("default" if name is None else name)
        if template is None:
            raise DtoError(f"model.template.{NAME} = {name!r}: {model!r} has {names}")
    elif name is not None:
        raise DtoError(
            f"model.template.{NAME} = {name!r}: {model!r} has one chat template, without a name"
        )
    try:
        known = _known(str(template))
    except TemplateError:
        return  # rendering says so
    for key in arguments.keys() - known - {NAME}:
        known_ = ", ".join(sorted(known)) or "none"
        raise DtoError(
            f"model.template.{key}: the chat template of {model!r} has no argument {key!r}; its "
            f"arguments: {known_}"
        )


def _rendered(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, arguments: Arguments
) -> str:
    rendered: Any = tokenizer.apply_chat_template(
        list(messages),  # type: ignore[arg-type]
        add_generation_prompt=True,
        tokenize=False,
        **dict(arguments),  # type: ignore[arg-type]
    )
    return str(rendered)


def _why(
    error: Exception,
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    model: str,
    arguments: Arguments,
) -> str:
    """One line: what the template said, and the setting that mends it."""
    said = " ".join(str(error).split()) or type(error).__name__
    without = [message for message in messages if message["role"] != "system"]
    if len(without) < len(messages):
        try:
            _rendered(without, tokenizer, arguments)
        except (TemplateError, TypeError, ValueError, KeyError):
            pass
        else:
            return (
                f"the chat template of {model!r} takes no system message ({said}): set "
                "model.system to null, and put its words into a prompt (model.prompt)"
            )
    given = " ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
    try:
        template: Any = tokenizer.chat_template
        texts = template.values() if isinstance(template, dict) else [template]
        known = sorted(frozenset().union(*(_known(str(text)) for text in texts)))
    except TemplateError:
        return (
            f"the chat template of {model!r} is not valid Jinja ({said}): put a "
            "chat_template.jinja that can be read beside its tokenizer"
        )
    return (
        f"the chat template of {model!r} fails with {given} ({said}): set model.template, whose "
        f"arguments are {', '.join(known) or 'none'}"
    )


@cache
def _known(template: str) -> frozenset[str]:
    """The arguments that a template reads; raises jinja2's TemplateError where it is none."""
    parsed = _PARSER.parse(_GENERATION.sub("", template))
    return frozenset(meta.find_undeclared_variables(parsed)) - _NOT_ASKED


def encode_prompt(
    prompt: Prompt,
    tokenizer: PreTrainedTokenizerBase,
    model: str,
    template: Arguments | None = None,
) -> tuple[int, ...]:
    """Ids of a prompt; messages go through the chat template, which brings the only BOS.

    `template` are the arguments of that. Raises EngineError for messages to a `model` whose
    tokenizer has no chat template, or one that cannot render them.
    """
    messages = [part for part in prompt if not isinstance(part, int)]
    if not messages:
        return tuple(part for part in prompt if isinstance(part, int))
    try:
        return render_chat(messages, tokenizer, model, template)
    except DtoError as error:
        raise EngineError(str(error)) from None
