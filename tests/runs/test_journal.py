"""What a journal keeps when a run is killed, and when the disk is full."""

from __future__ import annotations

import json
import math
import resource
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto import tables
from dto.records import Dropped, ExitEstimate
from dto.runs.journal import Entry, Journal, read_entries, read_head
from dto.usage import Usage


def estimate(row_id: str, p: float = 0.5) -> ExitEstimate:
    return ExitEstimate(
        id=row_id,
        trajectory_id=row_id[:-2],
        boundary=0,
        rollouts=2,
        successes=1,
        truncated=0,
        failed=0,
        p=p,
        p_low=0.0,
        p_high=1.0,
        decision="above",
        tokens=3,
    )


def entry(key: str) -> Entry:
    rows = [estimate(f"{key}/1", math.nan), estimate(f"{key}/0")]
    return Entry(key, rows, [Dropped(key, "why", "言")], Usage(requests=2), {key: 0.5})


def journal(path: Path) -> Journal:
    return Journal(path, ExitEstimate, {"seed": 0})


def test_entries_come_back_in_order_of_keys(tmp_path: Path) -> None:
    written = journal(tmp_path / "journal")
    for key in ("b", "a", "c"):
        written.append(entry(key))
    written.close()
    again = journal(tmp_path / "journal")
    assert again.done == {"a", "b", "c"}
    back = list(read_entries(again.path, ExitEstimate))
    assert [each.key for each in back] == ["a", "b", "c"]
    assert [row.id for row in back[0].rows] == ["a/0", "a/1"]
    assert math.isnan(back[0].rows[1].p)
    assert back[0].dropped == [Dropped("a", "why", "言")]
    assert back[0].usage == Usage(requests=2)
    assert back[0].seconds == {"a": 0.5}
    assert back[0].given_up == {}
    assert read_head(tmp_path / "journal") == {"seed": 0}


def test_what_is_written_is_not_held(tmp_path: Path) -> None:
    """A stage of a million groups holds their keys and counts of requests, nothing else of them."""
    written = journal(tmp_path / "journal")
    tracemalloc.start()
    for number in range(100):
        key = f"{number:03d}"
        dropped = [Dropped(key, "why", f"{number}" * 10_000)]
        written.append(Entry(key, [], dropped, Usage(requests=2, failed=1), {key: 0.5}))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    written.close()
    assert written.requests() == (200, 100)
    assert held < 100 * 1_000


def test_a_journal_of_an_earlier_version_has_no_answers_given_up(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written = journal(path)
    written.append(replace(entry("a"), given_up={"grader_timeout": 2}))
    written.append(entry("b"))
    written.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    del lines[2]["given_up"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    entries = read_entries(path, ExitEstimate)
    assert [each.given_up for each in entries] == [{"grader_timeout": 2}, {}]


@pytest.mark.slow
def test_a_torn_record_is_owed_again_wherever_it_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written = journal(path)
    written.append(entry("a"))
    whole = path.stat().st_size
    written.append(entry("b"))
    written.close()
    data = path.read_bytes()
    for cut in range(whole, len(data)):
        path.write_bytes(data[:cut])
        again = journal(path)
        assert again.done == {"a"}
        again.append(entry("b"))
        again.close()
        assert [len(each.rows) for each in read_entries(journal(path).path, ExitEstimate)] == [2, 2]


@given(st.integers(0, 1_000))
def test_of_entries_written_together_those_before_the_tear_are_kept(thousandths: int) -> None:
    """However a batch is torn by a kill: its whole lines count, the others are computed again."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        written = journal(path)
        written.append(*map(entry, "ab"))
        kept = path.stat().st_size
        written.append(*map(entry, "cde"))
        written.close()
        content = path.read_bytes()
        cut = kept + (len(content) - kept) * thousandths // 1_000
        path.write_bytes(content[:cut])
        again = journal(path)
        missing = sorted({*"abcde"} - again.done)
        assert len(missing) == 3 - content[kept:cut].count(b"\n")
        again.append(*map(entry, missing))
        again.close()
        whole = list(read_entries(path, ExitEstimate))
        assert [each.key for each in whole] == [*"abcde"]
        assert [len(each.rows) for each in whole] == [2] * 5


attempts = st.tuples(st.sampled_from("abcä𝔸"), st.integers(0, 3), st.booleans())


@given(st.lists(st.lists(attempts, max_size=6), max_size=4), st.integers(1, 5))
def test_the_last_attempt_counts_however_entries_are_written(
    batches: list[list[tuple[str, int, bool]]], kib: int
) -> None:
    """Groups that are done are not tried again; `requests` agrees with a journal that is reread."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "SORTED_KIB", kib)
        path = Path(folder) / "journal"
        written, last = journal(path), dict[str, Usage]()
        for batch in batches:
            entries = dict[str, Entry]()
            for key, requests, fails in batch:
                if key not in written.done and key not in entries:
                    spent = Usage(requests=requests + fails, failed=int(fails))
                    entries[key] = Entry(key, usage=spent)
                    last[key] = spent
            written.append(*entries.values())
        counts = written.requests()
        written.close()
        again = journal(path)
        again.close()
        assert counts == again.requests()
        assert counts == tuple(
            sum(getattr(spent, name) for spent in last.values()) for name in ("requests", "failed")
        )
        back = [(each.key, each.usage) for each in read_entries(path, ExitEstimate)]
        assert back == sorted(last.items())


def test_a_torn_head_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b'{"head": {"se')
    assert read_head(path) is None
    written = journal(path)
    written.close()
    assert read_head(path) == {"seed": 0}


def test_an_error_is_owed_again_and_the_second_attempt_counts(tmp_path: Path) -> None:
    written = journal(tmp_path / "journal")
    written.append(Entry("a", dropped=[Dropped("a", "error", "boom")]))
    written.close()
    again = journal(tmp_path / "journal")
    assert again.done == set()
    again.append(entry("a"))
    assert [len(each.rows) for each in read_entries(again.path, ExitEstimate)] == [2]


def test_full_disk_is_one_line_and_keeps_what_stands(tmp_path: Path) -> None:
    """A limit on file size stands in for a full disk: write() fails half-way through a record."""
    script = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from tests.runs.test_journal import entry, journal
        from dto.errors import DtoError
        written = journal(Path(sys.argv[1]))
        written.append(entry("a"))
        size = Path(sys.argv[1]).stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, size + 100))
        try:
            written.append(entry("b"))
        except DtoError as error:
            print(error)
        written.close()
    """)
    path = tmp_path / "journal"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        preexec_fn=lambda: signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
        check=True,
    )
    assert done.stdout.startswith(f"cannot write {path}: File too large — finished rows are")
    assert done.stdout.count("\n") == 1
    assert [json.loads(line).get("key") for line in path.read_text().splitlines()] == [None, "a"]
    assert journal(path).done == {"a"}
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
