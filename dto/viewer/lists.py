"""The lists of a page: of every row a line, by column, and what the filters know of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from dto.records import STAYS, EvaluationRow
from dto.viewer.drqa import BatchView, ChainView
from dto.viewer.nodes import visible_text
from dto.viewer.views import AnswersView, TrajectoryView

if TYPE_CHECKING:
    from dto.hub.private import Private

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


def without_paths(private: Private) -> Callable[[V], V]:
    """Cuts every path in the reasons of failures, which are ours and may name any file."""
    cut = private.redact_paths

    def reason(row: Any) -> Any:
        return replace(row, reason=cut(row.reason)) if row.reason else row

    def detail(row: Any) -> Any:
        return row and replace(row, detail=cut(row.detail))

    def changed(view: V) -> V:
        if isinstance(view, ChainView):
            return replace(view, dropped=tuple(map(detail, view.dropped)))
        if isinstance(view, BatchView):
            ended = tuple(map(detail, view.dropped))
            return replace(view, response=reason(view.response), dropped=ended)
        if isinstance(view, AnswersView):
            return replace(view, rows=tuple(map(reason, view.rows)))
        dropped = tuple((stage, detail(row)) for stage, row in view.dropped)
        return replace(
            view,
            trajectory=reason(view.trajectory),
            estimates=tuple(map(reason, view.estimates)),
            dropped=dropped,
        )

    return changed
