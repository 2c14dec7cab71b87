"""One self-contained HTML file per run: an index of its rows, and the rows in compressed chunks.

The file loads nothing from outside, and a content security policy enforces this: only our script
runs, whatever a row contains. Since pages are shared, local paths and servers named in the recipe
are redacted as in `dto publish`, and errors are reduced to their kind (`dto.redact`).
"""

from __future__ import annotations

import json
import logging
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from hashlib import sha256
from html import escape
from importlib.resources import files
from itertools import groupby, islice
from pathlib import Path
from shlex import quote
from shutil import copyfileobj
from string import Template
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple, TypeVar

from dto.errors import DtoError, disk_errors
from dto.records import Dropped, EvaluationRow, OptimizedTrajectory, Verdict
from dto.redact import Redaction, dropped_detail, failure_kind, verdict_reason, visible_text
from dto.viewer.choice import Choice, parse
from dto.viewer.data import AnswersView, BatchView, ChainView, RunTables, TrajectoryView
from dto.viewer.render import node, verdict_label
from dto.viewer.tree import Element, Node, RunText, source

V = TypeVar("V", TrajectoryView, AnswersView, ChainView, BatchView)
TITLE_CHARACTERS = 140
REPORT = "report/report.html"
logger = logging.getLogger("dto")


class Line(NamedTuple):
    """A row of the list. `before` and `after` are tokens; `after` is -1 if there is none.

    `names` maps each filter column to the values of the row.
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
        column: list(dict.fromkeys(value or "none" for value in values))
        for column, values in names.items()
    }
    return Line(id, short, note, before, after, unique)


def trajectory_line(view: TrajectoryView) -> Line:
    """Build the line of a trajectory."""
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
        verdict=map(verdict_label, verdicts),
    )


def answers_line(view: AnswersView) -> Line:
    """Build the line of a question: tokens under the plain exit, and the mean of the others."""
    plain, problem = view.reference, view.problem
    others = [row.tokens for row in view.rows if row is not plain]
    mean = round(sum(others) / len(others)) if others else -1
    right = sum(row.grade == "correct" for row in view.rows)
    return _line(
        view.id,
        # A pulled run can lack the questions of test sets.
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
    """Build the line of a chain."""
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
        prompt=[view.prompt_size],
    )


def batch_line(view: BatchView) -> Line:
    """Build the line of a response to several questions."""
    row = view.response
    return _line(
        view.id,
        view.question,
        f"{row.grades.count('correct')} of {row.k} correct",
        len(row.token_ids),
        -1,
        outcome=[view.outcome],
        chain=(dropped.reason for dropped in view.dropped if dropped is not None),
        prompt=[f"{row.k} questions"],
    )


LISTS: tuple[tuple[str, str, str, str, Callable[[Any], Line]], ...] = (
    ("Trajectories", "trajectories", "sample", "trajectories", trajectory_line),
    ("Batch prompts", "responses", "batch", "batches", batch_line),
    ("Chains", "chains", "chain", "chains", chain_line),
    ("Evaluation", "questions", "evaluate", "answers", answers_line),
)
"""(title, noun for the rows, their stage, method of `RunTables` with their views, function for a
line)."""


def _arm(row: EvaluationRow) -> str:
    return f"{row.model} · {row.exit}"


def _changes(view: AnswersView, plain: EvaluationRow | None) -> Iterable[str]:
    """List the models and exits that gain or lose the question against the plain answer."""
    if plain is None or plain.grade == "failed":
        return
    right = plain.grade == "correct"
    for row in view.ordered:
        if row.grade != "failed" and (row.grade == "correct") != right:
            yield f"{_arm(row)}: {'lost' if right else 'gained'}"


def without_error_texts(view: V) -> V:
    """Reduce the errors of engines and servers in a view to their kind, since pages are shared."""
    values = {field.name: _redacted(getattr(view, field.name)) for field in fields(view)}
    return replace(view, **values)


def _redacted(value: Any) -> Any:
    if type(value) is tuple:
        return tuple(map(_redacted, value))
    if isinstance(value, Dropped):
        return replace(value, detail=dropped_detail(value.reason, value.detail))
    if isinstance(value, OptimizedTrajectory):
        return replace(value, verdicts=_redacted(value.verdicts))
    if reason := getattr(value, "reason", ""):
        redact = verdict_reason if isinstance(value, Verdict) else failure_kind
        return replace(value, reason=redact(reason))
    return value


CHUNK_CHARACTERS = 200_000
"""Text per chunk, roughly. The page unpacks a whole chunk to show one of its rows."""
CHUNK_ROWS = 64
SCRIPTS = ("rows", "list", "page")


PAGE_ROWS = 10_000
PAGE_BYTES = 64 * 2**20
"""A list with more rows or data than this is shown in part: browsers cannot hold all of it."""


def view(
    run: Path | str,
    out: Path | str | None = None,
    *,
    whole: bool = False,
    filter: str | Sequence[str] = (),
) -> Path:
    """Write the page of a run, by default `RUN/view.html`, and return its path.

    `out` is a file, or a folder for `view.html`. Of a list with more than PAGE_ROWS rows or
    PAGE_BYTES of data the page shows the first problems, unless `whole`, and says so. With `filter`
    it shows the rows that meet all conditions (`dto.viewer.choice.parse`). One chunk of rows is in
    memory at a time, and the list line of every row shown. A report beside the page
    (`report/report.html`) is linked. Raises DtoError for a directory that is not a run, for a run
    without rows to show, for a wrong filter, and if the file cannot be written.
    """
    conditions = [*map(parse, [filter] if isinstance(filter, str) else filter)]
    run_tables = RunTables(run)
    path = Path(out) if out is not None else run_tables.path
    path = path / "view.html" if path.is_dir() else path
    try:
        with disk_errors(path):
            _write(run_tables, path, whole, Choice(conditions))
    except DtoError:
        if RunTables(run).states == run_tables.states:
            raise
    if RunTables(run).states != run_tables.states:  # a stage has finished meanwhile
        return view(run, out, whole=whole, filter=filter)
    return path


def _write(run: RunTables, path: Path, whole: bool, choice: Choice) -> None:
    redaction = Redaction.of(run.recipe, run.path)
    with TemporaryFile() as body:
        lists, count = [], 0
        for name, noun, stage, views, line in LISTS:
            lines: list[Line] = []
            chunks, first = [], count
            full = partial(_is_full, whole, lines, body, body.tell())
            shown = map(without_error_texts, getattr(run, views)())
            trees = _trees(shown, line, lines, full, choice)
            for rows, packed in _chunks(trees, redaction.text):
                body.write(f'<script type="text/plain" id="c{count}">{packed}</script>\n'.encode())
                chunks.append(rows)
                count += 1
            if lines:
                cells = zip(*lines, strict=True)
                part = _part(run, stage, noun, len(lines), full(), choice)
                if part:
                    logger.warning("%s: %s", path, part.replace("RUN", quote(str(run.path))))
                head = {"name": name, "noun": noun, "first": first, "chunks": chunks, "part": part}
                lists.append(head | dict(zip(Line._fields, cells, strict=True)))
        index = {"stages": list(_stages(run)), "lists": redaction.data(lists)}
        if not index["lists"]:
            if choice.conditions:
                raise DtoError(f"{run.path}: {choice.nothing()}")
            raise DtoError(f"{run.path} has no rows to show yet: wait for the running stage")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        body.seek(0)
        end = f'<script type="text/plain" id="c{count}"></script>\n</body>\n</html>\n'
        try:
            with temporary.open("wb") as file:
                report = (path.parent / REPORT).is_file()
                file.write(_page(redaction.text(run.recipe.name), pack(index), report).encode())
                copyfileobj(body, file)
                file.write(end.encode())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def pack(content: Any) -> str:
    """Encode JSON as compressed base64, in which no text can close the HTML element around it."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return b64encode(zlib.compress(text.encode("utf-8", "surrogatepass"), 6)).decode()


class Chunk(NamedTuple):
    """Encoded trees of rows; each text and each formula is stored once."""

    rows: list[Any]
    texts: dict[str, int]
    formulas: dict[str, int]
    trees: list[Any]

    def packed(self) -> str:
        """Return the compressed JSON."""
        return pack({"t": list(self.texts), "m": self.trees, "r": self.rows})


def encode(tree: Node, chunk: Chunk, redact: Callable[[str], str] = str) -> Any:
    """Encode a tree as JSON: [tag, attributes or 0, children…]; run texts are indices.

    A text with markup is `["rich", index, pieces…]`: a piece is a number of UTF-16 units of the
    text, an element of pieces, a label, or `["math", index]`. `redact` is applied to every run
    text; where it changes a text with markup, the text is shown without.
    """
    if isinstance(tree, str):
        return tree
    if isinstance(tree, RunText):
        return chunk.texts.setdefault(redact(tree.text), len(chunk.texts))
    if tree.tag == "span.rich":
        text = source(tree)
        if (redacted := redact(text)) != text:
            return encode(RunText(redacted), chunk)
        place = chunk.texts.setdefault(text, len(chunk.texts))
        return ["rich", place, *(_piece(child, chunk) for child in tree.children)]
    attributes = {name: redact(value) for name, value in tree.attributes.items()}
    encoded: list[Any] = [tree.tag, attributes or 0]
    for child in tree.children:
        encoded.append(child if isinstance(child, str) else encode(child, chunk, redact))
    return encoded


def _piece(node: Node, chunk: Chunk) -> Any:
    if isinstance(node, RunText):
        text = node.text
        return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2
    if isinstance(node, str):
        return node
    if not node.tag.startswith("span.math"):
        return [node.tag, node.attributes or 0, *(_piece(child, chunk) for child in node.children)]
    mark, math = node.children
    key = f"{node.tag} {source(mark)}"
    if (place := chunk.formulas.setdefault(key, len(chunk.trees))) == len(chunk.trees):
        chunk.trees.append(_math(math))
    return [node.tag, 0, _piece(mark, chunk), ["math", place]]


def _math(node: Node) -> Any:
    if not isinstance(node, Element):
        return node if isinstance(node, str) else node.text
    return [node.tag, node.attributes or 0, *map(_math, node.children)]


def _page(name: str, index: str, report: bool) -> str:
    assets = files("dto.viewer") / "assets"
    style = "".join(assets.joinpath(name).read_text("utf-8") for name in ("view.css", "page.css"))
    scripts = [assets.joinpath(f"{script}.js").read_text("utf-8") for script in SCRIPTS]
    script = '"use strict";\n{\n' + "".join(scripts) + "}\n"  # a block, so that no name is global
    policy = (
        f"default-src 'none'; script-src {_hashed(script)}; style-src {_hashed(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    template = Template(assets.joinpath("page.html").read_text("utf-8"))
    return template.substitute(
        title=escape(name),
        policy=escape(policy),
        style=style,
        script=script,
        index=index,
        report=f'<a href="{REPORT}">Report</a>' if report else "",
    )


def _hashed(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _trees(
    views: Iterable[Any],
    line: Callable[[Any], Line],
    lines: list[Line],
    full: Callable[[], bool],
    choice: Choice,
) -> Iterator[Node]:
    """Yield the tree of each chosen view and append its line to `lines`, until the page is full.

    All chosen rows of a problem are shown or none.
    """
    for _, group in groupby(views, key=_problem):
        if full():
            return
        for view in group:
            if choice.takes(made := line(view)):
                lines.append(made)
                yield node(view)


def _problem(view: Any) -> str:
    """Return the problem in the id of a row; a batch prompt has several, and stands alone."""
    row_id = str(view.id)
    return row_id if isinstance(view, BatchView) else row_id.partition("/")[0]


def _is_full(whole: bool, lines: list[Line], body: IO[bytes], begin: int) -> bool:
    return not whole and (len(lines) >= PAGE_ROWS or body.tell() - begin >= PAGE_BYTES)


def _part(run: RunTables, stage: str, noun: str, shown: int, full: bool, choice: Choice) -> str:
    """Say how many rows of a list the page shows, and how they were chosen; empty for all."""
    if not full and not choice.conditions:
        return ""
    total = run.total(stage)
    if choice.conditions:
        of = f" of {total:,}" if total is not None else ""
        first = "the first " if full else ""
        return f"Shows {first}{shown:,}{of} {noun}: those with {choice}"
    if shown == total:
        return ""
    of = f"{shown:,} of {total:,} {noun}" if total is not None else f"the first {shown:,} {noun}"
    how = "those of the first problems by id; ids are hashes, so this choice is random"
    if stage == "batch":  # its ids begin with the number of questions
        how = "the first by id"
    return f"Shows {of}: {how}. All: dto view RUN --all"


def _chunks(trees: Iterable[Node], redact: Callable[[str], str]) -> Iterator[tuple[int, str]]:
    """Yield the number of rows and the compressed JSON of each chunk."""
    chunk, size = Chunk([], {}, {}, []), 0
    for tree in trees:
        before = len(chunk.texts)
        chunk.rows.append(encode(tree, chunk, redact))
        size += sum(map(len, islice(chunk.texts, before, None)))
        if size >= CHUNK_CHARACTERS or len(chunk.rows) >= CHUNK_ROWS:
            yield len(chunk.rows), chunk.packed()
            chunk, size = Chunk([], {}, {}, []), 0
    if chunk.rows:
        yield len(chunk.rows), chunk.packed()


def _stages(run: RunTables) -> Iterator[list[str]]:
    """Yield name, state, rows and dropped rows of each stage."""
    for stage, state in run.states.items():
        manifest = run.manifest(stage)
        if manifest is None:
            yield [stage, state, ""]
            continue
        counts = [f"{count:,} {reason}" for reason, count in manifest.get("dropped", {}).items()]
        dropped = f", dropped: {', '.join(counts)}" if counts else ""
        yield [stage, state, f"{manifest.get('rows', 0):,} rows{dropped}"]
    yield from ([stage, "not run yet", ""] for stage in run.missing())
