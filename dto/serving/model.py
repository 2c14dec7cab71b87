"""An open model that answers questions under exit policies, and the functions of `import dto`.

The engine runs on an event loop of its own, in a thread, so that scripts, notebooks and programs
with a loop of their own use it alike.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack, aclosing, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import yaml

from dto.context import Context
from dto.context import sampling as drawing
from dto.engines import open_engine
from dto.engines.checks import check_model
from dto.errors import DtoError, EngineError, RecipeError
from dto.prompts import render_chat
from dto.protocols import Engine, Message
from dto.recipe import Recipe, make_recipe
from dto.records import Problem, content_id
from dto.serving.live import Live, Ungraded
from dto.serving.records import Event, Reply
from dto.settings import ExitPolicy, SamplingSettings, open_policy
from dto.trajectories import no_room, prompt_ids

T = TypeVar("T")
Question = str | Sequence[Message] | Sequence[int]
Exit = ExitPolicy | Mapping[str, Any] | str | Path
NO_EXIT = ExitPolicy(name="none")
OPTIONS = {
    *SamplingSettings.model_fields, "max_tokens", "seed", "stop",
}  # fmt: skip
"""What a caller may set of a response's `Sampling`."""


def policy_of(exit: Exit) -> ExitPolicy:
    """The policy that a caller means: a policy, its settings, its short name, or a YAML file.

    A file of `dto calibrate` is a YAML file. Raises RecipeError for anything else.
    """
    if isinstance(exit, ExitPolicy):
        return exit
    name = str(exit)
    try:
        if isinstance(exit, Path) or name.endswith((".yaml", ".yml")):
            settings = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
        else:
            settings = {"policy": exit} if isinstance(exit, str) else exit
        if not isinstance(settings, Mapping):
            raise ValueError("it holds no settings")
        named = {"name": str(settings.get("policy", "none")), **settings}
        return open_policy(named)
    except (OSError, ValueError, yaml.YAMLError) as error:
        first = " ".join(str(error).split())
        raise RecipeError(f"exit {name}: {first}") from None


def serving_recipe(model: str | Path = "nano", changes: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of a model that answers: `changes` by dotted keys, `evaluate` for sampling."""
    return make_recipe({"name": "serve"}, {"model.name": str(model), **(changes or {})}, "serve")


class Serving:
    """A model's engine and how it is asked. An async context manager, for one event loop."""

    def __init__(self, recipe: Recipe, name: str | None = None) -> None:
        self.recipe = recipe
        self._name = name
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Serving:
        settings = self.recipe.model
        opened = open_engine(settings, self._name)
        if opened.tokenizer is not None:
            check_model(opened.tokenizer, settings)
        try:
            engine: Engine = await self._stack.enter_async_context(opened)
            grader = await self._stack.enter_async_context(Ungraded())
            if engine.tokenizer is None or engine.capabilities.messages_only:
                raise EngineError(
                    f"{engine.model!r} is served as chat or without a tokenizer, but an exit "
                    "continues the model's own tokens: set model.api to completions and "
                    "model.tokenizer, or use another engine"
                )
        except BaseException:
            await self._stack.aclose()
            raise
        self.ctx = Context(self.recipe, engine, grader)
        return self

    @property
    def name(self) -> str:
        """The name under which the model is served: its last part, for a folder."""
        name = self._name or self.recipe.model.name
        return Path(name).name if Path(name).is_dir() else name

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    def prompt(self, question: Question) -> tuple[int, ...]:
        """The ids of the prompt: a question is asked as `evaluate` asks it, the rest as it is.

        Raises DtoError if the model's chat template refuses the messages.
        """
        settings, tokenizer = self.recipe.model, self.ctx.tokenizer
        if isinstance(question, str):
            return prompt_ids(question, tokenizer, settings)
        if ids := tuple(part for part in question if isinstance(part, int)):
            return ids
        messages = [part for part in question if not isinstance(part, int)]
        if settings.system is not None and all(part["role"] != "system" for part in messages):
            messages.insert(0, {"role": "system", "content": settings.system})
        return render_chat(messages, tokenizer, settings.name, settings.template)

    def ask(self, question: Question, exit: Exit = NO_EXIT, **sampling: Any) -> Live:
        """Begin a response; `sampling` replaces fields of its `Sampling`.

        Raises DtoError for a policy or an option that the engine does not support, and without room
        for a response.
        """
        policy = policy_of(exit)
        if policy.policy == "static":
            raise DtoError("exit static knows the length of the thinking in advance: use another")
        ctx, settings = self.ctx, self.recipe.evaluate
        policy.check(ctx.engine)
        prompt = self.prompt(question)
        if full := no_room(prompt, ctx.engine.context):
            raise DtoError(f"{full}: no room for a response")
        last = question if isinstance(question, str) else question[-1]
        text = str(last["content"]) if isinstance(last, dict) else str(last)
        row_id = content_id("serve", *map(str, prompt))
        rule = self.recipe.problems.rule or "math"
        problem = Problem(row_id, "serve", "test", text, "", rule)
        drawn = drawing(settings, settings.max_tokens, ctx.seed(row_id, "evaluate"))
        if unknown := sampling.keys() - OPTIONS:
            raise DtoError(f"{min(unknown)!r} is no option: use {', '.join(sorted(OPTIONS))}")
        return Live(prompt, policy, ctx, replace(drawn, **sampling), problem)


class OpenModel:
    """A model that stays open for many questions: `with dto.open_model(...) as model`.

    `async with` works too. Its methods may be called from any thread and any event loop.
    """

    def __init__(self, recipe: Recipe, name: str | None = None) -> None:
        self.serving = Serving(recipe, name)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="dto-model", daemon=True)

    def __enter__(self) -> OpenModel:
        self._thread.start()
        try:
            self._run(self.serving.__aenter__())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self._run(self.serving.__aexit__(*exc))
        finally:
            self._stop()

    async def __aenter__(self) -> OpenModel:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.to_thread(self.__exit__, *exc)

    def stream(self, question: Question, exit: Exit = NO_EXIT, **sampling: Any) -> Stream:
        """The events of a response. See :func:`stream`."""
        return Stream(self, lambda: self.serving.ask(question, exit, **sampling))

    def answer(self, question: Question, exit: Exit = NO_EXIT, **sampling: Any) -> Reply:
        """The whole response. See :func:`answer`."""
        return self.stream(question, exit, **sampling).reply()

    async def answer_async(
        self, question: Question, exit: Exit = NO_EXIT, **sampling: Any
    ) -> Reply:
        """The whole response, for programs with an event loop of their own."""
        return await self.stream(question, exit, **sampling).reply_async()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def _stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Stream:
    """The events of one response, for `for` and for `async for`; read it once.

    Leaving the loop early cancels the response.
    """

    def __init__(self, model: OpenModel, begin: Callable[[], Live], closes: bool = False) -> None:
        self._model, self._begin, self._closes = model, begin, closes
        self._live: Live | None = None
        self._asked = False
        self._events: SimpleQueue[Event | BaseException | None] = SimpleQueue()
        self._heard: Callable[[], object] = lambda: None

    def answer_now(self) -> None:
        """End the thinking: the model answers with what it has. Nothing if it is over already."""
        self._asked = True
        if self._live is not None:
            self._model.loop.call_soon_threadsafe(self._live.answer_now)

    def reply(self) -> Reply:
        """Read all events; return the whole response."""
        return [event for event in self if isinstance(event, Reply)][-1]

    async def reply_async(self) -> Reply:
        """Read all events; return the whole response."""
        return [event async for event in self if isinstance(event, Reply)][-1]

    def __iter__(self) -> Iterator[Event]:
        with self._model if self._closes else nullcontext():
            work = self._start()
            try:
                while (event := self._events.get()) is not None:
                    yield _raised(event)
            finally:
                work.cancel()

    async def __aiter__(self) -> AsyncIterator[Event]:
        loop, news = asyncio.get_running_loop(), asyncio.Event()
        self._heard = lambda: loop.call_soon_threadsafe(news.set)
        async with self._model if self._closes else nullcontext():
            work = self._start()
            try:
                while True:
                    await news.wait()
                    news.clear()
                    while not self._events.empty():
                        if (event := self._events.get()) is None:
                            return
                        yield _raised(event)
            finally:
                work.cancel()

    def _start(self) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(self._read(), self._model.loop)

    async def _read(self) -> None:
        try:
            self._live = self._begin()
            if self._asked:
                self._live.answer_now()
            async with aclosing(self._live.events()) as events:
                async for event in events:
                    self._put(event)
        except Exception as error:  # raised to the reader
            self._put(error)
        finally:
            self._put(None)

    def _put(self, event: Event | BaseException | None) -> None:
        self._events.put(event)
        with suppress(RuntimeError):  # the reader's loop has ended
            self._heard()


def _raised(event: Event | BaseException) -> Event:
    if isinstance(event, BaseException):
        raise event
    return event


def open_model(model: str | Path = "nano", changes: Mapping[str, Any] | None = None) -> OpenModel:
    """A model to keep open for many questions, with settings by their dotted keys.

    `model` is a Hub id, a folder, or the embedded `nano`. `changes` are settings of a recipe:
    `model.engine`, `model.server`, `evaluate.max_tokens`, `evaluate.temperature`, …
    """
    return OpenModel(serving_recipe(model, changes))


def stream(
    question: Question,
    model: str | Path | OpenModel = "nano",
    exit: Exit = NO_EXIT,
    **sampling: Any,
) -> Stream:
    """Answer a question as it is thought, under an exit policy, without a gold answer.

    Iterate with `for` or `async for`: text of the thinking, trials with their confidence, the exit,
    text of the answer, and last the whole :class:`Reply`. A model given by name is opened for this
    question alone: :func:`open_model` keeps one open. Raises DtoError at the first event if the
    model cannot be opened or lacks what the policy needs.

    Args:
        question: a question, asked with the model's prompt `solve`, or chat messages.
        model: a Hub id, a folder, the embedded `nano`, or an open model.
        exit: a policy, its settings, its short name (`deer`), or the file of `dto calibrate`.
        sampling: fields of the response's `Sampling`: `max_tokens`, `temperature`, `seed`, …
    """
    if isinstance(model, OpenModel):
        return model.stream(question, exit, **sampling)
    opened = open_model(model)
    return Stream(opened, lambda: opened.serving.ask(question, exit, **sampling), closes=True)


def answer(
    question: Question,
    model: str | Path | OpenModel = "nano",
    exit: Exit = NO_EXIT,
    **sampling: Any,
) -> Reply:
    """The whole response to a question, under an exit policy. See :func:`stream`."""
    return stream(question, model, exit, **sampling).reply()


async def answer_async(
    question: Question,
    model: str | Path | OpenModel = "nano",
    exit: Exit = NO_EXIT,
    **sampling: Any,
) -> Reply:
    """The same for programs with an event loop of their own."""
    return await stream(question, model, exit, **sampling).reply_async()
