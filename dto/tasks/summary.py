"""What an import got: `RUN/import.json`, its lines for people, and warnings with a way out.

The figures come from the tables of the run and from a second pass over the source, which knows what
the tables do not: what was left out of each row, and the source's own verdicts. Ids, digests and
lengths are held in memory, no text.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dto import statistics, tables
from dto.errors import disk_errors
from dto.recipe import resolve
from dto.records import Dropped, Problem, Trajectory, content_id
from dto.runs import manifest
from dto.runs.reader import RunReader
from dto.statistics import Estimate
from dto.tags import shown_tags
from dto.tasks.imported import responses_of
from dto.tasks.importing import is_whole

if TYPE_CHECKING:
    from dto.recipe import ModelSettings
    from dto.tasks.importing import Response

logger = logging.getLogger("dto")

FILE = "import.json"
EXAMPLES = 3
_TAG = re.compile(r"\s*(<[^<>\s]{1,40}>|\[[A-Z_]{2,40}\])")
_MOST_PROBLEMS = 5_000  # of the bootstrap, which takes 500 draws of each at once


@dataclass(frozen=True, slots=True)
class DroppedRows:
    """The rows dropped for one reason, with the detail of the first."""

    count: int
    example: str


@dataclass(frozen=True, slots=True)
class Agreement:
    """The source's verdicts beside our grades, of the responses that have both.

    `more` counts those that only the source calls right, `fewer` those that only we do; their ids
    are examples. A truncated response is not right. `kappa` is Cohen's, with a 95 % interval
    clustered by problem.
    """

    both_right: int
    both_wrong: int
    more: int
    fewer: int
    kappa: Estimate
    more_ids: tuple[str, ...] = ()
    fewer_ids: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """The number of responses with both."""
        return self.both_right + self.both_wrong + self.more + self.fewer


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of an import.

    `rows` were read, and gave `responses`. The limit of tokens `cut` some off, as their source
    says; `unclosed` of the others never close their thinking, `no_thinking` have none. `left_out`
    counts rows by the part of them that was not imported, or by `tags` that were rewritten.
    `duplicates` repeat question and text of another response. `tokens` are the median, the 90th
    percentile and the most; `long` responses exceed, with their prompts, the model's `context` (0:
    unknown). `tag` is what most of the unclosed responses begin with. `digest` is that of the stage
    sample.
    """

    source: str
    digest: str
    paired: bool
    rows: int = 0
    responses: int = 0
    problems: int = 0
    grades: dict[str, int] = field(default_factory=dict)
    no_gold: int = 0
    cut: int = 0
    unclosed: int = 0
    no_thinking: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    tokens: tuple[int, int, int] = (0, 0, 0)
    long: int = 0
    context: int = 0
    tag: str = ""
    dropped: dict[str, DroppedRows] = field(default_factory=dict)
    agreement: Agreement | None = None

    def lines(self) -> Iterator[str]:
        """The figures for people, one in a line."""
        responses, questions = _count(self.responses, "response"), _count(self.problems, "question")
        yield f"{self.source}: {_count(self.rows, 'row')}: {responses} to {questions}"
        if not self.paired:
            grades = (f"{self.grades.get(grade, 0):,} {grade}" for grade in _GRADES)
            yield f"grades           {', '.join(grades)}"
        median, most, longest = self.tokens
        yield f"tokens           median {median:,}, 90 % below {most:,}, longest {longest:,}"
        counts = {
            "no gold answer": 0 if self.paired else self.no_gold,
            "cut off": self.cut,
            "thinking": self.unclosed,
            "without thinking": self.no_thinking,
            "duplicates": self.duplicates,
        }
        notes = {
            "cut off": " by the token limit, as the source says",
            "thinking": " never closed",
            "duplicates": " (same question, same response)",
        }
        for label, count in counts.items():
            if count:
                yield f"{label:16} {count:,}{notes.get(label, '')}"
        if self.left_out:
            parts = (
                f"{_PARTS.get(part, part.replace('_', ' '))} of {_count(count, 'row')}"
                for part, count in self.left_out.items()
                if part != "tags"
            )
            if text := ", ".join(parts):
                yield f"left out         {text}"
            if rewritten := self.left_out.get("tags"):
                yield f"tags rewritten   {_count(rewritten, 'row')}"
        for reason, rows in self.dropped.items():
            yield f"dropped          {rows.count:,} {reason}: {rows.example}"
        if (verdicts := self.agreement) is not None:
            agreed = verdicts.both_right + verdicts.both_wrong
            yield (
                f"source's verdict {agreed:,} of {verdicts.count:,} agree with our grade, "
                f"kappa {verdicts.kappa:.2f…}"
            )
            for text, count, ids in (
                ("right for the source, not for us", verdicts.more, verdicts.more_ids),
                ("right for us, not for the source", verdicts.fewer, verdicts.fewer_ids),
            ):
                if count:
                    yield f"                 {count:,} {text}: {', '.join(ids)}"

    def warnings(self) -> Iterator[str]:
        """What is wrong with most responses, each with the way out in one line."""
        most = self.responses / 2
        dropped = sum(rows.count for rows in self.dropped.values())
        if self.responses and 2 * dropped > self.rows:  # without responses the run stops
            reason, rows = max(self.dropped.items(), key=lambda item: item[1].count)
            yield (
                f"{dropped:,} of {self.rows:,} rows are dropped, {rows.count:,} as {reason}, such "
                f"as {rows.example}"
            )
        again = "import again, with --recompute and"
        if self.unclosed > most:
            begin = f", most of them begin with {self.tag}" if self.tag else ""
            tags = '["<open>", "<close>"]'
            yield (
                f"{self.unclosed:,} of {self.responses:,} responses never close their thinking"
                f"{begin}: {again} the model's own tags (--set 'model.think={tags}'), or the field "
                "of the thinking (--map thinking=FIELD)"
            )
        if summaries := self.left_out.get("summary"):
            yield (
                f"{_count(summaries, 'row')} had a summary in place of the full thinking, and it "
                "was imported as the thinking: its length and its steps are not the model's: "
                "import responses with their full thinking"
            )
        if not self.paired and self.no_gold > most:
            yield (
                f"{self.no_gold:,} of {self.responses:,} responses have no gold answer, so they "
                f"are not graded and get no exits: {again} --map answer=FIELD"
            )
        if self.context and self.long > most:
            yield (
                f"{self.long:,} of {self.responses:,} responses do not fit into the context of "
                f"{self.context:,} tokens: import them for a model with a longer one (--model)"
            )


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


_PARTS = {"summary": "full thinking (a summary was imported)", "prompt": "sent prompt"}
_GRADES = ("correct", "wrong", "truncated", "failed")


def read(run: RunReader) -> Summary | None:
    """The summary of the imported rows; None if they are not all imported, or came otherwise."""
    done = run.manifest("sample")
    try:
        data = json.loads((run.path / FILE).read_text(encoding="utf-8"))
        summary: Summary = tables.adapter(Summary).validate_python(data)
    except (OSError, ValueError):  # none, or of another version
        return None
    return summary if done is not None and summary.digest == done["digest"] else None


def write(run: RunReader) -> Summary:
    """Compute the summary of a run whose stage `sample` is finished, and write `import.json`.

    Raises DtoError if the source cannot be read any more.
    """
    summary = summarize(run, responses_of(run.recipe, shown_tags(run.recipe.model)))
    text = json.dumps(asdict(summary), ensure_ascii=False, indent=2)
    with disk_errors(run.path):
        manifest.write_text(run.path / FILE, text + "\n")
    return summary


def log_import(run: RunReader) -> None:
    """Write the summary, and log its first lines in one, and its warnings."""
    summary = write(run)
    lines = (" ".join(line.split()) for line in islice(summary.lines(), 2))
    logger.info("import    %s", ", ".join(lines))
    for line in summary.warnings():
        logger.warning("import    %s", line)


def summarize(run: RunReader, responses: Iterable[Response | Dropped]) -> Summary:
    """Compute the summary of a run whose stage `sample` is finished, and of the rows of its source.

    A response belongs to the row of the one before if it has the same problem, as an object.
    """
    recipe = run.recipe
    rows = 0
    problem: Problem | None = None
    left_out: Counter[str] = Counter()
    tags, own = Counter[str](), shown_tags(recipe.model).open
    seen: set[int] = set()
    duplicates = no_gold = 0
    verdicts: dict[str, bool] = {}
    cut: set[str] = set()
    for response in responses:
        if isinstance(response, Dropped):
            if is_whole(response):
                rows, problem = rows + 1, None
            continue
        if response.problem is not problem:  # else a further response of the same row
            rows, problem = rows + 1, response.problem
            left_out.update(response.left_out)
        no_gold += not response.problem.answer
        digest = int(content_id(response.problem.question, response.text), 16)
        duplicates += digest in seen
        seen.add(digest)
        row_id = Trajectory.make_id(response.problem.id, response.sample)
        if response.correct is not None:
            verdicts[row_id] = response.correct
        if response.cut:
            cut.add(row_id)
        tag = _TAG.match(response.text[:60])
        if tag and tag[1] != own and (tag[1] in tags or len(tags) < 100):
            tags[tag[1]] += 1
    table = _Table(run, verdicts, cut, _context(recipe.model))
    common, count = next(iter(tags.most_common(1)), ("", 0))
    done = run.manifest("sample") or {}
    return Summary(
        source=Path(str(recipe.sample.imported)).name,
        digest=str(done.get("digest", "")),
        paired=recipe.pair.data == "imported",
        rows=rows,
        responses=len(table.lengths),
        problems=len(table.problems),
        grades=dict(table.grades),
        no_gold=no_gold,
        cut=table.cut,
        unclosed=table.unclosed,
        no_thinking=table.no_thinking,
        left_out=dict(left_out),
        duplicates=duplicates,
        tokens=_lengths(table.lengths),
        long=table.long,
        context=table.context,
        tag=common if 2 * count > len(table.lengths) else "",
        dropped=_dropped(run),
        agreement=table.agreement(),
    )


class _Table:
    """Figures of the table of trajectories, read in blocks without its texts."""

    def __init__(
        self, run: RunReader, verdicts: dict[str, bool], cut: set[str], context: int
    ) -> None:
        self.context = context
        self.grades: Counter[str] = Counter()
        self.problems: set[str] = set()
        self.lengths: list[int] = []
        self.long = self.cut = self.unclosed = self.no_thinking = 0
        self._both: list[tuple[str, str, bool, bool]] = []  # id, problem, the source's, ours
        for row in _rows(run):
            ids = row["tokens"]
            self.grades[row["grade"]] += 1
            self.problems.add(row["problem_id"])
            self.lengths.append(ids)
            self.long += 0 < context < ids + row["prompt"]
            self.cut += row["id"] in cut
            self.unclosed += row["finish_reason"] == "length" and row["id"] not in cut
            self.no_thinking += row["finish_reason"] == "stop" and row["thinking"] == 0
            verdict = verdicts.get(row["id"])
            if verdict is not None and row["grade"] != "failed":
                own = row["grade"] == "correct"
                self._both.append((row["id"], row["problem_id"], verdict, own))

    def agreement(self) -> Agreement | None:
        """The source's verdicts beside the grades; None without any."""
        if not self._both:
            return None
        joint = np.zeros((2, 2))
        for *_, verdict, own in self._both:
            joint[int(verdict), int(own)] += 1
        few = set(sorted({problem for _, problem, _, _ in self._both})[:_MOST_PROBLEMS])
        part = [row for row in self._both if row[1] in few]
        theirs, ours = ([str(row[side]) for row in part] for side in (2, 3))
        kappa = statistics.cohen_kappa(theirs, ours, [row[1] for row in part])
        more, fewer = (
            tuple(row[0] for row in self._both if (row[2], row[3]) == pair)
            for pair in ((True, False), (False, True))
        )
        value = statistics.kappa(joint)
        return Agreement(
            both_right=int(joint[1, 1]),
            both_wrong=int(joint[0, 0]),
            more=len(more),
            fewer=len(fewer),
            kappa=Estimate(value, kappa.low, kappa.high, len(self._both), kappa.problems),
            more_ids=more[:EXAMPLES],
            fewer_ids=fewer[:EXAMPLES],
        )


def _rows(run: RunReader) -> Iterator[dict[str, Any]]:
    """The rows of the table of trajectories, with lengths in place of ids."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    columns = ["id", "problem_id", "grade", "finish_reason", "thinking_tokens", "token_ids",
               "prompt_ids"]  # fmt: skip
    with pq.ParquetFile(run.table("sample"), buffer_size=2**20) as file:
        for batch in file.iter_batches(tables.ROW_GROUP, columns=columns):
            lengths = {
                name: pc.list_value_length(batch.column(f"{name}_ids")).to_pylist()
                for name in ("token", "prompt")
            }
            rest = batch.select(columns[:5]).to_pylist()
            for row, tokens, prompt in zip(rest, lengths["token"], lengths["prompt"], strict=True):
                span = row["thinking_tokens"]
                yield row | {
                    "tokens": tokens, "prompt": prompt, "thinking": span["end"] - span["start"]
                }  # fmt: skip


def _lengths(lengths: list[int]) -> tuple[int, int, int]:
    if not lengths:
        return 0, 0, 0
    median, most = np.quantile(lengths, [0.5, 0.9], method="inverted_cdf")
    return int(median), int(most), max(lengths)


def _dropped(run: RunReader) -> dict[str, DroppedRows]:
    rows: dict[str, DroppedRows] = {}
    for row in run.dropped("sample"):
        before = rows.get(row.reason, DroppedRows(0, row.detail or row.id))
        rows[row.reason] = DroppedRows(before.count + 1, before.example)
    return rows


def _context(model: ModelSettings) -> int:
    """The tokens that fit into the model; 0 if no config of it is here."""
    from transformers import PretrainedConfig

    if model.context:
        return model.context
    try:
        config, _ = PretrainedConfig.get_config_dict(
            resolve(model.name), revision=model.revision, local_files_only=True
        )
    except (OSError, ValueError):
        return 0
    text = config.get("text_config") or config
    return int(text.get("max_position_embeddings") or 0)
