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
from dataclasses import dataclass, field, replace
from hashlib import sha256
from html import escape
from importlib.resources import files
from itertools import islice
from pathlib import Path
from shutil import copyfileobj
from string import Template
from tempfile import TemporaryFile
from typing import IO, Any, TypeVar

from dto.errors import DtoError
from dto.records import STAYS, Dropped, EvaluationRow
from dto.redact import Redaction, dropped_detail, failure_kind, verdict_reason
from dto.viewer.data import AnswersView, BatchView, ChainView, RunTables, TrajectoryView
from dto.viewer.nodes import Data, Node, visible_text
from dto.viewer.render import node

V = TypeVar("V", TrajectoryView, AnswersView, ChainView, BatchView)
TITLE_CHARACTERS = 140


@dataclass(slots=True)
class Column:
    """What a filter chooses by. A row may have several names: it holds the number of their set."""

    label: str
    title: str = ""
    names: dict[str, int] = field(default_factory=dict)
    sets: dict[tuple[int, ...], int] = field(default_factory=dict)
    of: list[int] = field(default_factory=list)

    def add(self, names: Iterable[str]) -> None:
        """The names of the next row."""
        numbers = {self.names.setdefault(name or "none", len(self.names)) for name in names}
        self.of.append(self.sets.setdefault(tuple(sorted(numbers)), len(self.sets)))


@dataclass(slots=True)
class List:
    """A list's lines by column; `before` and `after` are tokens, -1 where there is no after."""

    name: str
    noun: str
    first: int  # of its chunks
    ids: list[str] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    columns: dict[str, Column] = field(default_factory=dict)
    chunks: list[int] = field(default_factory=list)

    def add_trajectory(self, view: TrajectoryView) -> None:
        """The line of a trajectory."""
        version, problem = view.optimized, view.problem
        title = problem.question if problem is not None else view.trajectory.text
        after = version.tokens_after if version is not None else -1
        self._add(view.id, title, "", view.tokens, after)
        self._put("outcome", "outcome", [view.outcome])
        self._put("grade", "grade", [view.trajectory.grade])
        self._put("task", "task", [problem.task if problem is not None else ""])
        self._put("kind", "kind", (segment.kind for segment in view.segments))
        verdicts = version.verdicts if version is not None else ()
        self._put("verdict", "verdict", (_fate(each) for each in verdicts))

    def add_answers(self, view: AnswersView) -> None:
        """The line of a question: tokens under the plain exit, and the mean of the others."""
        plain, problem = view.reference, view.problem
        others = [row.tokens for row in view.rows if row is not plain]
        mean = round(sum(others) / len(others)) if others else -1
        tokens = (plain.tokens, mean) if plain is not None else (mean, -1)
        right = sum(row.grade == "correct" for row in view.rows)
        # Of a run that was pulled the questions of others' test sets are not there yet.
        title = (problem.question if problem is not None else "") or view.problem_id
        self._add(view.id, title, f"{right} of {len(view.rows)} correct", *tokens)
        self._put("outcome", "outcome", [view.outcome])
        self._put("task", "task", [problem.task if problem is not None else ""])
        self._put("grade", "grade", (f"{_arm(row)}: {row.grade}" for row in view.ordered))
        against = f"against {_arm(plain)}" if plain is not None else ""
        self._put("change", "gain or loss", _changes(view, plain), against)
        self._put("ending", "ending", (row.exit_reason for row in view.rows))

    def add_chain(self, view: ChainView) -> None:
        """The line of a chain."""
        title = view.problem.question if view.problem is not None else view.chain.text
        self._add(view.id, title, "", view.chain.tokens, -1)
        self._put("outcome", "label", [view.outcome])
        self._put("grade", "grade", [view.chain.grade])
        self._put("asked", "number asked", [view.asked])

    def add_batch(self, view: BatchView) -> None:
        """The line of a response to several questions."""
        row = view.response
        right = row.grades.count("correct")
        self._add(view.id, view.question, f"{right} of {row.k} correct", len(row.token_ids), -1)
        self._put("outcome", "outcome", [view.outcome])
        ended = (each.reason for each in view.dropped if each is not None)
        self._put("chain", "reason against", ended)
        self._put("asked", "number asked", [f"{row.k} together"])

    def _add(self, id: str, title: str, note: str, before: int, after: int) -> None:
        self.ids.append(id)
        short = title[:TITLE_CHARACTERS].replace("\n", " ").strip()
        self.titles.append(visible_text(short))
        self.notes.append(note)
        self.before.append(before)
        self.after.append(after)

    def _put(self, name: str, label: str, names: Iterable[str], title: str = "") -> None:
        column = self.columns.setdefault(name, Column(label))
        column.add(names)
        column.title = column.title or title

    def packed(self) -> dict[str, Any]:
        """For the page's index."""
        columns = [
            {"name": name, "label": each.label, "title": each.title, "names": list(each.names),
             "sets": list(each.sets), "of": each.of}
            for name, each in self.columns.items()
        ]  # fmt: skip
        return {
            "name": self.name, "noun": self.noun, "first": self.first, "id": self.ids,
            "title": self.titles, "note": self.notes, "before": self.before, "after": self.after,
            "columns": columns, "chunks": self.chunks,
        }  # fmt: skip


def _fate(verdict: Any) -> str:
    """A verdict, and what came of it."""
    if verdict.pruned:
        return f"{verdict.verdict}, pruned"
    return str(verdict.verdict) + ("" if verdict.verdict in STAYS else ", restored")


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
    if isinstance(view, ChainView):
        return replace(view, dropped=tuple(map(_shown_detail, view.dropped)))
    if isinstance(view, BatchView):
        ended = tuple(row and _shown_detail(row) for row in view.dropped)
        return replace(view, response=_shown_reason(view.response), dropped=ended)
    if isinstance(view, AnswersView):
        return replace(view, rows=tuple(map(_shown_reason, view.rows)))
    version = view.optimized
    if version is not None and version.verdicts:
        said = tuple(replace(one, reason=verdict_reason(one.reason)) for one in version.verdicts)
        version = replace(version, verdicts=said)
    return replace(
        view,
        trajectory=_shown_reason(view.trajectory),
        estimates=tuple(map(_shown_reason, view.estimates)),
        optimized=version,
        dropped=tuple((stage, _shown_detail(row)) for stage, row in view.dropped),
    )


def _shown_reason(row: Any) -> Any:
    return replace(row, reason=failure_kind(row.reason)) if row.reason else row


def _shown_detail(row: Dropped) -> Dropped:
    return replace(row, detail=dropped_detail(row.reason, row.detail))


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
    failure: OSError | None = None
    try:
        _write(found, path)
    except OSError as error:
        failure = error
    if RunTables(run).states != found.states:  # a stage has ended meanwhile
        return view(run, out)
    if failure is not None:
        raise DtoError(
            f"cannot write {path}: {failure.strerror or failure}: make room, or name another place "
            "with --out"
        ) from failure
    return path


def _write(found: RunTables, path: Path) -> None:
    redaction = Redaction.of(found.recipe, found.path)
    with TemporaryFile() as body:
        chunks = _Chunks(body, redaction.text)
        lists = []
        for name, noun, rows, add in (
            ("Trajectories", "trajectories", found.trajectories, List.add_trajectory),
            ("Batch prompts", "responses", found.batches, List.add_batch),
            ("Chains", "chains", found.chains, List.add_chain),
            ("Evaluation", "questions", found.answers, List.add_answers),
        ):
            own = List(name, noun, chunks.count)
            for each in _kept(map(without_error_texts, rows()), own, chunks):
                add(own, each)
            lists.append(own)
        index = {
            "stages": list(_stages(found)),
            "state": _state(found),
            "lists": redaction.data([each.packed() for each in lists if each.ids]),
        }
        if not index["lists"]:
            raise DtoError(f"{found.path} has no row to show yet: wait for the stage under way")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        body.seek(0)
        end = f'<script type="text/plain" id="c{chunks.count}"></script>\n</body>\n</html>\n'
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


class _Chunks:
    """Rows on their way into elements of compressed JSON, each of its own number."""

    def __init__(self, file: IO[bytes], shown: Callable[[str], str]) -> None:
        self.count = 0
        self._file = file
        self._shown = shown
        self._clear()

    def _clear(self) -> None:
        self._rows: list[Any] = []
        self._texts: dict[str, int] = {}
        self._size = 0

    def add(self, tree: Node) -> bool:
        """Add a row; whether it was the last of its chunk."""
        before = len(self._texts)
        self._rows.append(encode(tree, self._texts, self._shown))
        self._size += sum(map(len, islice(self._texts, before, None)))
        return self._size >= CHUNK_CHARACTERS or len(self._rows) >= CHUNK_ROWS

    def flush(self) -> int:
        """Write the chunk, and return how many rows it has."""
        written = len(self._rows)
        if written:
            packed = pack({"t": list(self._texts), "r": self._rows})
            line = f'<script type="text/plain" id="c{self.count}">{packed}</script>\n'
            self._file.write(line.encode())
            self.count += 1
        self._clear()
        return written


def _kept(views: Iterable[Any], rows: List, chunks: _Chunks) -> Iterator[Any]:
    """Each row, once it stands in a chunk."""
    for each in views:
        full = chunks.add(node(each))
        yield each
        if full:
            rows.chunks.append(chunks.flush())
    if (rest := chunks.flush()) > 0:
        rows.chunks.append(rest)


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


def _state(found: RunTables) -> str:
    """What of the run is not there to be shown; empty where nothing is missing."""
    under_way = [stage for stage, state in found.states.items() if state == "under way"]
    said = [("Under way", under_way), ("Not there", list(found.missing()))]
    return " ".join(f"{name}: {', '.join(stages)}." for name, stages in said if stages)
