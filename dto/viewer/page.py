"""One self-contained HTML file of a run: an index of its rows, and the rows in compressed chunks.

The file asks for nothing from outside, and a content security policy keeps it so: only our script
runs, whatever a row holds.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from html import escape
from importlib.resources import files
from itertools import islice
from pathlib import Path
from shutil import copyfileobj
from string import Template
from tempfile import TemporaryFile
from typing import IO, Any

from dto.errors import DtoError, disk_errors
from dto.runs import manifest
from dto.viewer.data import RunTables
from dto.viewer.nodes import Data, Node, visible_text
from dto.viewer.render import node

CHUNK_CHARACTERS = 200_000
"""A chunk holds about so much text: it is opened as a whole when one of its rows is looked at."""
CHUNK_ROWS = 64
TITLE_CHARACTERS = 140
MAX_KINDS = 30  # what a row's kinds take is a bit each of a 32-bit number


def view(run: Path | str, out: Path | str | None = None) -> Path:
    """Write the page of a run, `RUN/view.html` by default, and return where it is.

    At most a chunk of rows is in memory, and of every row a line for the list. Raises DtoError for
    what is no run, for a run without rows, and where the file cannot be written.
    """
    found = RunTables.open(run)
    path = Path(out) if out is not None else found.path / "view.html"
    with disk_errors(path), TemporaryFile() as body:
        chunks = _Chunks(body)
        lists = [_trajectories(found, chunks), _answers(found, chunks)]
        index = {
            "stages": [[stage, *state] for stage, state in _stages(found)],
            "lists": [each.columns() for each in lists if each.ids],
        }
        if not index["lists"]:
            raise DtoError(f"{found.path} has no row to show yet: wait for the stage under way")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        body.seek(0)
        end = f'<script type="text/plain" id="c{chunks.count}"></script>\n</body>\n</html>\n'
        try:
            with temporary.open("wb") as file:
                file.write(_page(found.name, pack(index)).encode())
                copyfileobj(body, file)
                file.write(end.encode())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def pack(content: Any) -> str:
    """JSON as compressed base64: no text in it can end the element that it stands in."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return b64encode(zlib.compress(text.encode("utf-8", "surrogatepass"), 6)).decode()


def encode(tree: Node, texts: dict[str, int]) -> Any:
    """A tree as JSON: [tag, attributes or 0, children…]; a run's texts are numbers in `texts`."""
    if isinstance(tree, str):
        return tree
    if isinstance(tree, Data):
        return texts.setdefault(tree.text, len(texts))
    encoded: list[Any] = [tree.tag, tree.attributes or 0]
    for child in tree.children:
        encoded.append(child if isinstance(child, str) else encode(child, texts))
    return encoded


def _page(name: str, index: str) -> str:
    assets = files("dto.viewer") / "assets"
    style = "".join(assets.joinpath(each).read_text("utf-8") for each in ("view.css", "page.css"))
    script = assets.joinpath("page.js").read_text("utf-8")
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

    def __init__(self, file: IO[bytes]) -> None:
        self.count = 0
        self._file = file
        self._clear()

    def _clear(self) -> None:
        self._rows: list[Any] = []
        self._texts: dict[str, int] = {}
        self._size = 0

    def add(self, tree: Node) -> bool:
        """Add a row; whether it was the last of its chunk."""
        before = len(self._texts)
        self._rows.append(encode(tree, self._texts))
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


@dataclass(slots=True)
class _List:
    """The lines of a list by column; names are numbers into lists of names."""

    name: str
    noun: str
    kind_name: str
    first: int
    ids: list[str] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    kind: list[int] = field(default_factory=list)
    named: dict[str, list[int]] = field(default_factory=dict)
    names: dict[str, dict[str, int]] = field(default_factory=dict)
    chunks: list[int] = field(default_factory=list)

    def add(
        self, id: str, title: str, note: str, tokens: tuple[int, int], kinds: Iterable[str],
        **named: str,
    ) -> None:  # fmt: skip
        """A line; `tokens` before and after, -1 where there is no after."""
        self.ids.append(id)
        short = title[:TITLE_CHARACTERS].replace("\n", " ").strip()
        self.titles.append(visible_text(short))
        self.notes.append(note)
        self.before.append(tokens[0])
        self.after.append(tokens[1])
        numbers = {self._number("kind", kind) for kind in kinds}
        self.kind.append(sum(1 << number for number in numbers if number < MAX_KINDS))
        for name, value in named.items():
            self.named.setdefault(name, []).append(self._number(name, value))

    def _number(self, column: str, name: str) -> int:
        names = self.names.setdefault(column, {})
        return names.setdefault(name, len(names))

    def columns(self) -> dict[str, Any]:
        """For the page's index."""
        names = {f"{name}s": list(numbers)[:MAX_KINDS] if name == "kind" else list(numbers)
                 for name, numbers in self.names.items()}  # fmt: skip
        return {
            "name": self.name, "noun": self.noun, "kindName": self.kind_name, "first": self.first,
            "id": self.ids, "title": self.titles, "note": self.notes, "before": self.before,
            "after": self.after, "kind": self.kind, "kinds": [], **names, **self.named,
            "chunks": self.chunks,
        }  # fmt: skip


def _trajectories(found: RunTables, chunks: _Chunks) -> _List:
    rows = _List("Trajectories", "trajectories", "kind", chunks.count)
    for row in _kept(found.trajectories(), rows, chunks):
        version, problem = row.optimized, row.problem
        after = version.tokens_after if version is not None else -1
        rows.add(
            row.id,
            problem.question if problem is not None else row.trajectory.text,
            "",
            (row.tokens, after),
            (segment.kind for segment in row.segments),
            outcome=row.outcome,
            grade=row.trajectory.grade,
            task=problem.task if problem is not None else "",
        )
    return rows


def _answers(found: RunTables, chunks: _Chunks) -> _List:
    rows = _List("Evaluation", "questions", "ending", chunks.count)
    for row in _kept(found.answers(), rows, chunks):
        plain = row.reference
        others = [each.tokens for each in row.rows if each is not plain]
        mean = round(sum(others) / len(others)) if others else -1
        right = sum(each.grade == "correct" for each in row.rows)
        problem = row.problem
        rows.add(
            row.id,
            problem.question if problem is not None else row.problem_id,
            f"{right} of {len(row.rows)} correct",
            (plain.tokens, mean) if plain is not None else (mean, -1),
            (each.exit_reason for each in row.rows),
            outcome=row.outcome,
            grade="",
            task=problem.task if problem is not None else "",
        )
    return rows


def _kept(views: Iterable[Any], rows: _List, chunks: _Chunks) -> Iterator[Any]:
    """Each row, once it stands in a chunk."""
    for each in views:
        full = chunks.add(node(each))
        yield each
        if full:
            rows.chunks.append(chunks.flush())
    if (rest := chunks.flush()) > 0:
        rows.chunks.append(rest)


def _stages(found: RunTables) -> Iterator[tuple[str, list[str]]]:
    """How far each stage is, its rows, and what it dropped for which reason."""
    for stage, state in found.states.items():
        done = manifest.read(found.path / stage)
        if done is None:
            yield stage, [state, ""]
            continue
        dropped = [f"{reason} {count:,}" for reason, count in done.get("dropped", {}).items()]
        ended = f", dropped: {', '.join(dropped)}" if dropped else ""
        yield stage, [state, f"{done.get('rows', 0):,} rows{ended}"]
