"""The library's front door: run a recipe, look at the run, and cut, grade or pair your own texts.

These functions return when they are done, in a script and in a notebook alike; `grade_async` is for
programs with an event loop of their own. While a run is computed, its progress goes to stderr, as
that of `dto run` does. A program that sets up logging gets it as messages of the logger `dto`
instead, and sees no more than the level it set.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from dto.errors import DtoError, RecipeError, RunConflictError, disk_errors
from dto.extension import nearest
from dto.grading import Grader
from dto.languages import DEFAULT, Languages
from dto.pipeline import changes_of_run, needed, open_run, run_stages
from dto.protocols import Graded
from dto.recipe import Recipe, make_recipe
from dto.recipe import load_recipe as read_recipe_file
from dto.records import RULES, Dropped, PreferencePair, Span, Trajectory
from dto.runs.manifest import write_text
from dto.runs.reader import RunReader
from dto.runs.run import agree, refuse
from dto.segmentation.patterns import Granularity
from dto.segmentation.worker import segment_text as cut
from dto.source import Source, beside, recipes
from dto.source import packaged as packaged
from dto.tags import DEFAULT_TAGS, shown_tags
from dto.tasks.importing import holds_pairs, json_line
from dto.tasks.load import check_rule
from dto.tasks.shapes import SIDES
from dto.text import split_thinking
from dto.training.pairs import load_pairs
from dto.training.train import trained_model

if TYPE_CHECKING:
    from datasets import Dataset

    from dto.reporting.report import Report
    from dto.viewer.render import Display

logger = logging.getLogger("dto")
T = TypeVar("T")
PairData = Literal["optimized", "shortest", "token_budget"]


class Run(RunReader):
    """A run directory, finished or under way: its rows, pairs, figures and trained model.

    RunReader adds `recipe`, `rows(stage, record)`, `frame(stage)`, `dropped(stage)` and
    `manifest(stage)`. Raises DtoError for a directory without a recipe.
    """

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        if not (self.path / "recipe.yaml").is_file():
            raise DtoError(f"{path} is not a run directory: it has no recipe.yaml")

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def trajectories(self) -> Iterator[Trajectory]:
        """Stream the sampled or imported responses, sorted by id.

        Raises DtoError at the first row if the stage `sample` has not started.
        """
        return self.rows("sample", Trajectory)

    def pairs(self) -> Dataset:
        """Load the preference pairs in TRL's standard format, as text and as exact token ids.

        `prompt` is text with the chat template, `chosen` and `rejected` are text without the token
        that ends them. `prompt_ids`, `chosen_ids` and `rejected_ids` are the model's own tokens,
        under the names that the collator of TRL's DPOTrainer reads. The trainer itself tokenizes
        the text again, appends the end token and overwrites these columns. The other columns are
        those of :class:`dto.PreferencePair`. Pairs with an empty side are left out, with a warning.

        Raises DtoError when the stage `pair` has not begun, or not all pairs can be read.
        """
        from datasets import Dataset, Features, List, Value

        tokens = {row.id: row for row in load_pairs(self, sys.maxsize)}
        rows, columns = [], [f"{side}_ids" for side in ("prompt", *SIDES)]
        for pair in self.rows("pair", PreferencePair):
            ids = tokens[pair.id]
            if isinstance(ids, Dropped):
                logger.warning("pair %s is left out: %s %s", pair.id, ids.reason, ids.detail)
            else:
                rows.append(asdict(pair) | {name: getattr(ids, name) for name in columns})
        features = Features(
            {
                field.name: Value("string" if field.type == "str" else "int64")
                for field in fields(PreferencePair)
            }
            | {name: List(Value("int32")) for name in columns}
        )
        return Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features)

    def report(self) -> Report:
        """Compute the figures of the evaluation, costs and training; `print` shows them as tables.

        Writes nothing. Raises DtoError when the run has not been evaluated.
        """
        from dto.reporting.report import measure

        return measure(self.path)

    @property
    def model_path(self) -> Path:
        """The folder of the trained model, for `from_pretrained` or `vllm serve`.

        Raises DtoError when the run has no trained model, with the way to get it.
        """
        return trained_model(self)

    def show(self, row_id: str = "") -> Display:
        """Show a trajectory or another row by its id: HTML in a notebook, text elsewhere.

        Without an id the first trajectory is shown. Raises DtoError for an unknown id.
        """
        from dto.viewer.render import show

        return show(self.path, row_id)


def load_recipe(recipe: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Read a packaged recipe by its name ("quickstart"), a YAML file, or the recipe of a run.

    `changes` replaces settings by their dotted keys: `{"problems.train": 12}`. Raises RecipeError,
    in one line, for a recipe that does not exist and for keys and values that are not allowed.
    """
    return find_recipe(recipe, changes)[0]


def find_recipe(
    target: str | Path, changes: Mapping[str, Any] | None = None
) -> tuple[Recipe, Path]:
    """Read a recipe as :func:`load_recipe` does; return it with its run directory."""
    path = Path(target)
    if path.is_dir():
        if not (path / "recipe.yaml").is_file():
            raise RecipeError(f"{path} is not a run directory: it has no recipe.yaml")
        return read_recipe_file(path / "recipe.yaml", changes_of_run(changes)), path
    if (file := path if path.exists() else packaged(path)) is None:
        names = [recipe.stem for recipe in recipes().glob("*.yaml")]
        raise RecipeError(
            f"there is no recipe or run {path}{nearest(path.stem, names)}; packaged recipes: "
            f"{', '.join(sorted(names))}"
        )
    recipe = read_recipe_file(file, changes)
    if files := beside(recipe, file.parent):
        recipe = read_recipe_file(file, {**files, **(changes or {})})
    return recipe, Path("runs") / recipe.name


def import_recipe(
    source: str,
    model: str,
    changes: Mapping[str, Any] | None = None,
    recipe: str | Path | None = None,
    *,
    rows: Sequence[Mapping[str, Any]] | None = None,
    origin: str = "changes",
) -> Recipe:
    """Make the recipe of a run that begins with the responses or the pairs of a source.

    `rows`: the rows of a source that is not written yet. Without a `recipe` there are no dev and
    test problems, unless `changes` names their source. Raises DtoError as `holds_pairs` does.
    """
    changes = {**(changes or {}), "sample.imported": source, "model.name": model}
    if recipe is not None:
        settings = load_recipe(recipe, changes)
    else:
        held_out = {} if "problems.source" in changes else {"dev": 0, "test": 0}
        data = {"name": Source.parse(source).stem, "problems": {"train": 0, **held_out}}
        settings = make_recipe(data, changes, origin)
    sample, tags = settings.sample, shown_tags(settings.model)
    if not holds_pairs(source, sample.map, sample.batch_input, tags=tags, rows=rows):
        return settings
    pair = settings.pair.model_copy(update={"data": "imported"})
    return settings.model_copy(update={"pair": pair})


def run(
    recipe: str | Path | Recipe,
    changes: Mapping[str, Any] | None = None,
    *,
    out: str | Path | None = None,
    recompute: bool = False,
    overwrite: bool = False,
    allow_code_execution: bool = False,
) -> Run:
    """Compute every stage of a recipe and write the report, as `dto run` does.

    A run that was interrupted goes on where it stopped; finished stages are not computed again.

    Args:
        recipe: the name of a packaged recipe, a YAML file, a run directory, or a Recipe.
        changes: settings by their dotted keys, such as `{"problems.train": 12}`.
        out: the run directory; `runs/NAME` by default.
        recompute: compute again the stages whose settings changed.
        overwrite: begin the run anew. Earlier results are kept aside until it is finished.
        allow_code_execution: run programs that a model wrote, in a sandbox.

    Raises DtoError in one line, as `dto run` does: RecipeError for unknown recipes and settings,
    RunConflictError for changed settings without `recompute`, for a run that another process is
    working on and for an `out` that is not a run directory. Finished work is kept.
    """
    if isinstance(recipe, Recipe):
        place = Path("runs") / recipe.name
        if changes:
            recipe = make_recipe(recipe.model_dump(exclude_unset=True), changes)
    else:
        recipe, place = find_recipe(recipe, changes)
    if recipe.compare.methods:
        raise DtoError(f"recipe {recipe.name} compares methods: start it with `dto run`")
    place = place if out is None else Path(out)
    with _progress():
        opened = open_run(
            place,
            recipe,
            recompute=agree if recompute or overwrite else refuse,
            overwrite=overwrite,
            allow_code_execution=allow_code_execution,
        )
        try:
            run_stages(opened, needed(recipe), run_async)
        finally:
            opened.close()
        from dto.reporting.write import report

        report(place)
    return Run(place)


@contextmanager
def _progress() -> Iterator[None]:
    """Log to stderr as the command line does, unless the program has set up logging itself."""
    if logger.level != logging.NOTSET or logger.hasHandlers():
        yield
        return
    handler = logging.StreamHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(logging.NOTSET)
        logger.removeHandler(handler)


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also in a notebook, whose own event loop waits meanwhile.

    Where a loop is running, the coroutine runs in a loop of a second thread. Ctrl-C cancels it.
    """
    if not _loop_is_running():
        return asyncio.run(work)
    tasks: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []

    async def main() -> T:
        task = asyncio.current_task()
        assert task is not None
        tasks.append((asyncio.get_running_loop(), task))
        return await work

    in_main = threading.current_thread() is threading.main_thread()
    with ThreadPoolExecutor(1, "dto-loop") as thread:
        future = thread.submit(asyncio.run, main())
        # The handler of asyncio would wait for the loop of this thread, which waits for the other.
        handler = signal.signal(signal.SIGINT, signal.default_int_handler) if in_main else None
        try:
            return future.result()
        except KeyboardInterrupt:
            for loop, task in tasks:
                if not future.done():
                    loop.call_soon_threadsafe(task.cancel)
            raise
        finally:
            if in_main:
                signal.signal(signal.SIGINT, handler)


class ThinkingPattern(NamedTuple):
    """A thinking pattern: its kind, its text, its half-open character span and its cue.

    The kind is `opening`, `loop` or that of the cue: `verification`, `alternative`, `hypothesis`,
    `summary`, `conclusion`. The cue is the phrase that opened the pattern; empty for `opening`.
    """

    kind: str
    text: str
    chars: Span
    cue: str


def segment_text(
    text: str, granularity: Granularity = "pattern", languages: Languages = DEFAULT
) -> list[ThinkingPattern]:
    """Cut the thinking of a text into patterns (2505.21765, section 3).

    The thinking is the part between `<think>` and `</think>`, or all of the text where it has
    neither tag. The patterns tile it without gaps; their spans are offsets in `text`. `pattern`
    cuts where a new pattern begins, `cue` at every cue at the start of a sentence. `languages` are
    those of a recipe: `en`, `zh` or paths of language files. Empty thinking has no patterns.
    """
    start, end = split_thinking(text, opened=DEFAULT_TAGS.open not in text).thinking
    return [
        ThinkingPattern(
            kind=segment.kind,
            text=text[start + segment.start : start + segment.end],
            chars=Span(start + segment.start, start + segment.end),
            cue=segment.cue,
        )
        for segment in cut(text[start:end], granularity, languages)
    ]


def grade(
    response: str,
    gold: str,
    rule: str = "math",
    question: str = "",
    *,
    allow_code_execution: bool = False,
) -> Graded:
    r"""Grade a response against its gold answer; works in a notebook too.

    The answer is the last `\boxed{…}` of the response or the answer that it states; a text that is
    only an answer counts as well. Thinking is not graded; thinking that never closes is
    `truncated`. `rule` is `math`, `choice`, `code` or an import path (`dto.Grader` describes them);
    `question` tells whether 27 may mean 27 %. Programs (rule `code`) are only run with
    `allow_code_execution`, in a sandbox. Raises DtoError for an unknown rule.
    """

    async def work() -> Graded:
        async with Grader(allow_code_execution=allow_code_execution) as grader:
            return await grade_async(response, gold, rule, question, grader=grader)

    return run_async(work())


async def grade_async(
    response: str,
    gold: str,
    rule: str = "math",
    question: str = "",
    *,
    grader: Grader | None = None,
) -> Graded:
    """Grade as :func:`grade` does, without blocking the event loop.

    Grade many responses with one open `grader`: its worker processes start once.
    """
    if grader is None:
        async with Grader() as grader:
            return await grade_async(response, gold, rule, question, grader=grader)
    if ":" not in rule and rule not in RULES:
        raise DtoError(f"no rule {rule!r}{nearest(rule, RULES)}: there are {', '.join(RULES)}")
    check_rule(rule)
    split = split_thinking(response, opened=False)
    if not split.closed:
        return Graded("truncated", "")
    conclusion = response[slice(*split.conclusion)]
    return await grader.grade_conclusion(conclusion, gold, rule, question)


def pairs_from(
    rows: str | Path | Iterable[Mapping[str, Any]],
    model: str,
    changes: Mapping[str, Any] | None = None,
    *,
    data: PairData | None = None,
    recipe: str | Path | None = None,
    out: str | Path | None = None,
) -> Dataset:
    """Make preference pairs of responses you already have: import, optimize, prune, pair.

    `optimized`, the default, loads `model` and samples from it: up to 32 rollouts of 64 tokens
    (`estimate.cap`, `estimate.max_tokens`) at each boundary up to the first good exit, then 4
    finalizations, and 8 rollouts for each segment that may be pruned. `shortest` (the shortest
    correct response of a question over its longest) and `token_budget` need several responses to a
    question and only the tokenizer: they sample nothing. Rows that have a chosen and a rejected
    response become pairs as they are, without sampling.

    The log has the number of rows that each stage drops, with reasons; with `out`,
    `dto.Run(out).dropped(stage)` lists them.

    Args:
        rows: a file, a folder, a Hub dataset, or mappings, as `dto import` reads them
            (docs/data.md); for other columns `changes={"sample.map": {"response": "attempt"}}`.
        model: the model that wrote the responses, as a Hub id or a folder.
        changes: settings by their dotted keys.
        data: which pairs are built (`pair.data`); None: as the recipe says.
        recipe: a recipe for the settings; the defaults of dto without one.
        out: keep the run in this directory, so that it can be resumed; None: a temporary one.

    Returns the pairs as :meth:`Run.pairs` does. Raises DtoError if rows cannot be read and if no
    pair can be made; the message has the reasons.
    """
    changes = dict(changes or {}) | ({} if data is None else {"pair.data": data})
    with _progress(), ExitStack() as stack:
        if out is None:
            out = Path(stack.enter_context(TemporaryDirectory(prefix="dto-"))) / "pairs"
        place, source, mappings = Path(out), str(rows), None
        if not isinstance(rows, str | Path):
            source, mappings = str(place / "imported.jsonl"), [dict(row) for row in rows]
        settings = import_recipe(source, model, changes, recipe, rows=mappings)
        opened = open_run(place, settings)
        stack.callback(opened.close)
        if mappings is not None:
            _write_once(Path(source), "\n".join(map(json_line, mappings)))
        stages = needed(settings, "problems", "pair")
        run_stages(opened, stages, run_async, may_be_empty=True)
        made = Run(place)
        reasons = _drop_reasons(made, stages)
        pairs = made.pairs()
        if not len(pairs):
            raise DtoError(f"no pair was made: {'; '.join(reasons) or 'there is no response'}")
        for reason in reasons:
            logger.info("%s", reason)
        return pairs


def _write_once(path: Path, lines: str) -> None:
    if path.is_file() and path.read_text(encoding="utf-8") != lines:
        raise RunConflictError(f"{path.parent} holds pairs of other rows: pass another `out`")
    with disk_errors(path):
        write_text(path, lines)


def _drop_reasons(run: Run, stages: Iterable[str]) -> list[str]:
    """Grades of the responses, then for each stage and reason the dropped rows, with an example."""
    grades = Counter(row.grade for row in run.trajectories())
    lines = [
        f"{grades.total():,} responses are "
        + ", ".join(f"{count:,} {grade}" for grade, count in grades.most_common())
    ] * bool(grades)
    for stage in stages:
        dropped = list(run.dropped(stage))
        for reason, count in Counter(row.reason for row in dropped).items():
            example = next(row for row in dropped if row.reason == reason)
            lines.append(
                f"{stage} dropped {count:,}: {reason}, such as {example.detail or example.id}"
            )
    return lines
