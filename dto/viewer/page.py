"""One self-contained HTML file of a run: an index of its rows, and the rows in compressed chunks.

The file asks for nothing from outside, and a content security policy keeps it so: only our script
runs, whatever a row holds. Pages are passed on: local paths and servers that the recipe names are
cut as `dto publish` cuts them, and of errors only the kind is told (`dto.redact`).
"""

from __future__ import annotations

import json
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from hashlib import sha256
from html import escape
from importlib.resources import files
from itertools import islice
from pathlib import Path
from shutil import copyfileobj
from string import Template
from tempfile import TemporaryFile
from typing import Any, NamedTuple, TypeVar

from dto.errors import DtoError, disk_errors
from dto.records import Dropped, EvaluationRow, OptimizedTrajectory, Verdict
from dto.redact import Redaction, dropped_detail, failure_kind, verdict_reason
from dto.viewer.data import AnswersView, BatchView, ChainView, RunTables, TrajectoryView
from dto.viewer.nodes import Data, Node, visible_text
from dto.viewer.render import node, verdict_fate

V = TypeVar("V", TrajectoryView, AnswersView, ChainView, BatchView)
TITLE_CHARACTERS = 140


class Line(NamedTuple):
    """A row as the list shows it: `before` and `after` are tokens, -1 where there is no after.

    `names` are what filters choose by, by column.
    """

    id: str
    title: str
    note: str
    before: int
    after: int
    names: dict[str, list[str]]


def _line(id: str, title: str, note: str, before: int, after: int, **names: Iterable[str]) -> Line:
    short = visible_text(title[:TITLE_CHARACTERS].replace("\n", " ").strip())
    unique = {
        column: list(dict.fromkeys(name or "none" for name in each))
        for column, each in names.items()
    }
    return Line(id, short, note, before, after, unique)


def trajectory_line(view: TrajectoryView) -> Line:
    """The line of a trajectory."""
    version, problem = view.optimized, view.problem
    verdicts = version.verdicts if version is not None else ()
    return _line(
        view.id,
        problem.question if problem is not None else view.trajectory.text,
        "",
        view.tokens,
        version.tokens_after if version is not None else -1,
        outcome=[view.outcome],
        grade=[view.trajectory.grade],
        task=[problem.task if problem is not None else ""],
        kind=(segment.kind for segment in view.segments),
        verdict=map(verdict_fate, verdicts),
    )


def answers_line(view: AnswersView) -> Line:
    """The line of a question: tokens under the plain exit, and the mean of the others."""
    plain, problem = view.reference, view.problem
    others = [row.tokens for row in view.rows if row is not plain]
    mean = round(sum(others) / len(others)) if others else -1
    right = sum(row.grade == "correct" for row in view.rows)
    return _line(
        view.id,
        # Of a run that was pulled the questions of others' test sets are not there yet.
        (problem.question if problem is not None else "") or view.problem_id,
        f"{right} of {len(view.rows)} correct",
        *((plain.tokens, mean) if plain is not None else (mean, -1)),
        outcome=[view.outcome],
        task=[problem.task if problem is not None else ""],
        grade=(f"{_arm(row)}: {row.grade}" for row in view.ordered),
        change=_changes(view, plain),
        ending=(row.exit_reason for row in view.rows),
    )


def chain_line(view: ChainView) -> Line:
    """The line of a chain."""
    chain, problem = view.chain, view.problem
    title = problem.question if problem is not None else chain.text
    return _line(
        view.id,
        title,
        "",
        chain.tokens,
        -1,
        outcome=[view.outcome],
        grade=[chain.grade],
        asked=[view.asked],
    )


def batch_line(view: BatchView) -> Line:
    """The line of a response to several questions."""
    row = view.response
    return _line(
        view.id,
        view.question,
        f"{row.grades.count('correct')} of {row.k} correct",
        len(row.token_ids),
        -1,
        outcome=[view.outcome],
        chain=(each.reason for each in view.dropped if each is not None),
        asked=[f"{row.k} together"],
    )


LISTS: tuple[tuple[str, str, str, Callable[[Any], Line]], ...] = (
    ("Trajectories", "trajectories", "trajectories", trajectory_line),
    ("Batch prompts", "responses", "batches", batch_line),
    ("Chains", "chains", "chains", chain_line),
    ("Evaluation", "questions", "answers", answers_line),
)
"""(name, what its rows are, their views in `RunTables`, the line of one)."""


def _arm(row: EvaluationRow) -> str:
    return f"{row.model} · {row.exit}"


def _changes(view: AnswersView, plain: EvaluationRow | None) -> Iterable[str]:
    """Which models and exits gain or lose the question against the plain answer."""
    if plain is None or plain.grade == "failed":
        return
    right = plain.grade == "correct"
    for row in view.ordered:
        if row.grade != "failed" and (row.grade == "correct") != right:
            yield f"{_arm(row)}: {'lost' if right else 'gained'}"


def without_error_texts(view: V) -> V:
    """The view without the text of any error of an engine or a server: a page is passed on."""
    return replace(view, **{each.name: _told(getattr(view, each.name)) for each in fields(view)})


def _told(value: Any) -> Any:
    if type(value) is tuple:
        return tuple(map(_told, value))
    if isinstance(value, Dropped):
        return replace(value, detail=dropped_detail(value.reason, value.detail))
    if isinstance(value, OptimizedTrajectory):
        return replace(value, verdicts=_told(value.verdicts))
    if reason := getattr(value, "reason", ""):
        told = verdict_reason if isinstance(value, Verdict) else failure_kind
        return replace(value, reason=told(reason))
    return value


CHUNK_CHARACTERS = 200_000
"""A chunk holds about so much text: it is opened as a whole when one of its rows is looked at."""
CHUNK_ROWS = 64
SCRIPTS = ("rows", "list", "page")


def view(run: Path | str, out: Path | str | None = None) -> Path:
    """Write the page of a run, `RUN/view.html` by default, and return where it is.

    `out` is a file, or a folder for `view.html`. At most a chunk of rows is in memory, and of every
    row a line for the list. Raises DtoError for what is no run, for a run without rows, and where
    the file cannot be written.
    """
    found = RunTables(run)
    path = Path(out) if out is not None else found.path
    path = path / "view.html" if path.is_dir() else path
    try:
        with disk_errors(path):
            _write(found, path)
    except DtoError:
        if RunTables(run).states == found.states:
            raise
    if RunTables(run).states != found.states:  # a stage has ended meanwhile
        return view(run, out)
    return path


def _write(found: RunTables, path: Path) -> None:
    redaction = Redaction.of(found.recipe, found.path)
    with TemporaryFile() as body:
        lists, count = [], 0
        for name, noun, views, line in LISTS:
            lines: list[Line] = []
            chunks, first = [], count
            trees = _trees(map(without_error_texts, getattr(found, views)()), line, lines)
            for rows, packed in _chunks(trees, redaction.text):
                body.write(f'<script type="text/plain" id="c{count}">{packed}</script>\n'.encode())
                chunks.append(rows)
                count += 1
            if lines:
                cells = zip(*lines, strict=True)
                own = {"name": name, "noun": noun, "first": first, "chunks": chunks}
                lists.append(own | dict(zip(Line._fields, cells, strict=True)))
        index = {"stages": list(_stages(found)), "lists": redaction.data(lists)}
        if not index["lists"]:
            raise DtoError(f"{found.path} has no row to show yet: wait for the stage under way")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        body.seek(0)
        end = f'<script type="text/plain" id="c{count}"></script>\n</body>\n</html>\n'
        try:
            with temporary.open("wb") as file:
                file.write(_page(redaction.text(found.recipe.name), pack(index)).encode())
                copyfileobj(body, file)
                file.write(end.encode())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def pack(content: Any) -> str:
    """JSON as compressed base64: no text in it can end the element that it stands in."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return b64encode(zlib.compress(text.encode("utf-8", "surrogatepass"), 6)).decode()


def encode(tree: Node, texts: dict[str, int], shown: Callable[[str], str] = str) -> Any:
    """A tree as JSON: [tag, attributes or 0, children…]; a run's texts are numbers in `texts`.

    `shown` says how a run's text stands in the page.
    """
    if isinstance(tree, str):
        return tree
    if isinstance(tree, Data):
        return texts.setdefault(shown(tree.text), len(texts))
    attributes = {name: shown(value) for name, value in tree.attributes.items()}
    encoded: list[Any] = [tree.tag, attributes or 0]
    for child in tree.children:
        encoded.append(child if isinstance(child, str) else encode(child, texts, shown))
    return encoded


def _page(name: str, index: str) -> str:
    assets = files("dto.viewer") / "assets"
    style = "".join(assets.joinpath(each).read_text("utf-8") for each in ("view.css", "page.css"))
    scripts = [assets.joinpath(f"{each}.js").read_text("utf-8") for each in SCRIPTS]
    script = '"use strict";\n{\n' + "".join(scripts) + "}\n"  # a block: no name of ours is global
    policy = (
        f"default-src 'none'; script-src {_hashed(script)}; style-src {_hashed(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    template = Template(assets.joinpath("page.html").read_text("utf-8"))
    return template.substitute(
        title=escape(name), policy=escape(policy), style=style, script=script, index=index
    )


def _hashed(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _trees(views: Iterable[Any], line: Callable[[Any], Line], lines: list[Line]) -> Iterator[Node]:
    """The tree of each view, whose line is added to `lines`."""
    for each in views:
        lines.append(line(each))
        yield node(each)


def _chunks(trees: Iterable[Node], shown: Callable[[str], str]) -> Iterator[tuple[int, str]]:
    """How many rows a chunk has, and its compressed JSON."""
    rows: list[Any] = []
    texts: dict[str, int] = {}
    size = 0
    for tree in trees:
        before = len(texts)
        rows.append(encode(tree, texts, shown))
        size += sum(map(len, islice(texts, before, None)))
        if size >= CHUNK_CHARACTERS or len(rows) >= CHUNK_ROWS:
            yield len(rows), pack({"t": list(texts), "r": rows})
            rows, texts, size = [], {}, 0
    if rows:
        yield len(rows), pack({"t": list(texts), "r": rows})


def _stages(found: RunTables) -> Iterator[list[str]]:
    """How far each stage is, its rows, and what it dropped for which reason."""
    for stage, state in found.states.items():
        done = found.manifest(stage)
        if done is None:
            yield [stage, state, ""]
            continue
        dropped = [f"{reason} {count:,}" for reason, count in done.get("dropped", {}).items()]
        ended = f", dropped: {', '.join(dropped)}" if dropped else ""
        yield [stage, state, f"{done.get('rows', 0):,} rows{ended}"]
    yield from ([stage, "not there", ""] for stage in found.missing())
