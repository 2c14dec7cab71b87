"""Render prompts: the texts of `prompts/`, and the chat template around them.

A prompt is a Jinja file with a front matter of `name` and `purpose`. A model family (such as
`nano`) has a folder that overrides `default`, file by file; `judge` holds the judges' prompts. In a
checkout the folder is at the top level; a wheel has it inside the package.

Stages, engines and judges all render their messages here. An error in a model's own template is
reported in one line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined, Template, TemplateError, meta

from dto.errors import DtoError
from dto.protocols import Message
from dto.tags import DEFAULT_TAGS, ThinkTags, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

JUDGE = "judge"
"""The folder of the judges' prompts; it is not a model family."""
INSERTED = {
    "exit": "estimate",
    "finalize": "optimize",
    "trial_inside": "evaluate",
    "trial_closed": "evaluate",
    "early_close": "evaluate",
}
"""The prompts that are inserted into a response, with the stage that inserts each."""

_ENVIRONMENT = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)


def resource(folder: str) -> Traversable:
    """The top-level folder `prompts` or `pipelines`, from the wheel or from the checkout."""
    packaged = files("dto") / "_resources" / folder
    if packaged.is_dir():
        return packaged
    return files("dto") / ".." / folder


@cache
def families() -> tuple[str, ...]:
    """The names of the model families in `prompts/`, including `default`."""
    folders = (folder for folder in resource("prompts").iterdir() if folder.is_dir())
    names = (folder.name for folder in folders if any(folder.iterdir()))
    return tuple(sorted(name for name in names if name != JUDGE))


def source(name: str, family: str = "default") -> str:
    """The template text of a prompt, without its front matter; the family's own file wins."""
    return _read(name, family)[1]


def purpose(name: str, family: str = "default") -> str:
    """The first sentence of a prompt's `purpose`, from its front matter."""
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
    """Render a prompt; `open_tag` and `close_tag` are the model's tags around its thinking.

    Raises DtoError for an unknown name.
    """
    if not values:
        return _fixed(name, family, tags)
    return _template(name, family).render(open_tag=tags.open, close_tag=tags.close, **values)


@cache
def _fixed(name: str, family: str, tags: ThinkTags) -> str:
    return _template(name, family).render(open_tag=tags.open, close_tag=tags.close)


@cache
def _template(name: str, family: str) -> Template:
    return _ENVIRONMENT.from_string(source(name, family))


Argument = bool | int | float | str | None
Arguments = Mapping[str, Argument]

NAME = "chat_template"
"""The argument that selects one of several named templates; the template does not receive it."""
RESERVED = frozenset(
    (
        "messages", "conversation", "tools", "documents", "add_generation_prompt",
        "continue_final_message", "tokenize", "padding", "truncation", "max_length",
        "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
    )
)  # fmt: skip
"""Arguments that dto or transformers sets itself."""
_NOT_ARGUMENTS = RESERVED | {
    "raise_exception", "strftime_now", "range", "namespace", "dict", "lipsum", "cycler", "joiner",
    "bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token",
    "additional_special_tokens",
}  # fmt: skip
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # transformers' own tag
_PARSER = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False)


def render_chat(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    model: str,
    arguments: Arguments | None = None,
) -> tuple[int, ...]:
    """Apply the model's chat template to messages; the ids end where the response begins.

    Only the template adds a BOS. `arguments` are `model.template`. Raises DtoError, with the
    setting that mends it, if the tokenizer has no template or several without a default, and if the
    template does not know an argument, refuses its value or refuses a message (a system message).
    """
    arguments = dict(arguments or {})
    check_arguments(tokenizer, model, arguments)
    try:
        text = _rendered(messages, tokenizer, arguments)
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise DtoError(_explain(error, messages, tokenizer, model, arguments)) from None
    return tuple(encode(tokenizer, text))


def check_arguments(tokenizer: PreTrainedTokenizerBase, model: str, arguments: Arguments) -> None:
    """Raise DtoError if the tokenizer lacks the template, or the template an argument."""
    template: Any = tokenizer.chat_template
    if not template:
        raise DtoError(
            f"the tokenizer of {model!r} has no chat template: use the reasoning version of the "
            "model, put a chat_template.jinja beside its tokenizer, or send token ids"
        )
    name = arguments.get(NAME)
    if isinstance(template, dict):
        names = ", ".join(sorted(template))
        if name is None and "default" not in template:
            raise DtoError(
                f"the tokenizer of {model!r} has several chat templates and no default: set "
                f"model.template.{NAME} to one of {names}"
            )
        template = template.get("default" if name is None else name)
        if template is None:
            raise DtoError(f"model.template.{NAME} = {name!r}: {model!r} has {names}")
    elif name is not None:
        raise DtoError(
            f"model.template.{NAME} = {name!r}: {model!r} has a single chat template without a "
            f"name: remove model.template.{NAME}"
        )
    try:
        allowed = _variables(str(template))
    except TemplateError:
        return  # rendering reports it
    for key in arguments.keys() - allowed - {NAME}:
        listed = ", ".join(sorted(allowed)) or "none"
        raise DtoError(
            f"model.template.{key}: the chat template of {model!r} has no argument {key!r}; its "
            f"arguments: {listed}"
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


def _explain(
    error: Exception,
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    model: str,
    arguments: Arguments,
) -> str:
    """One line with the template's error and the setting that mends it."""
    reason = " ".join(str(error).split()) or type(error).__name__
    without = [message for message in messages if message["role"] != "system"]
    if len(without) < len(messages):
        try:
            _rendered(without, tokenizer, arguments)
        except (TemplateError, TypeError, ValueError, KeyError):
            pass
        else:
            return (
                f"the chat template of {model!r} refuses a system message ({reason}): set "
                "model.system to null and put its text into a prompt (model.prompt)"
            )
    given = " ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
    try:
        template: Any = tokenizer.chat_template
        texts = template.values() if isinstance(template, dict) else [template]
        allowed = sorted(frozenset().union(*(_variables(str(text)) for text in texts)))
    except TemplateError:
        return (
            f"the chat template of {model!r} is not valid Jinja ({reason}): put a valid "
            "chat_template.jinja beside its tokenizer"
        )
    return (
        f"the chat template of {model!r} fails with {given} ({reason}): set model.template, whose "
        f"arguments are {', '.join(allowed) or 'none'}"
    )


@cache
def _variables(template: str) -> frozenset[str]:
    """The arguments that a template reads. Raises jinja2's TemplateError for invalid syntax."""
    parsed = _PARSER.parse(_GENERATION.sub("", template))
    return frozenset(meta.find_undeclared_variables(parsed)) - _NOT_ARGUMENTS
