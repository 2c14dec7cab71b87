"""`RUN/log.txt`: what is in it after commands, errors and Ctrl-C; that it never ends a run."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import dto.log
from dto.errors import DtoError
from dto.log import RunLog
from dto.pipeline import open_run, run_stages
from dto.recipe import Recipe, make_recipe
from dto.redact import without_secrets

STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4} ")
KEY = "hf_" + "a" * 34


def open_logs() -> set[logging.Handler]:
    handlers = [*logging.getLogger().handlers, *logging.getLogger("dto").handlers]
    return {handler for handler in handlers if isinstance(handler, RunLog)}


@pytest.fixture(autouse=True)
def as_on_the_command_line() -> Iterator[None]:
    """The logger of dto at INFO, and no log left open that was not open before."""
    logger = logging.getLogger("dto")
    level, before = logger.level, open_logs()
    logger.setLevel(logging.INFO)
    yield
    logger.setLevel(level)
    assert open_logs() <= before


def recipe(**changes: object) -> Recipe:
    small = {"problems.train": 2, "problems.dev": 2, "problems.test": 2}
    return make_recipe({"name": "x"}, {**small, **changes}, "test")


def lines(run: Path) -> list[str]:
    """The texts of a log; each line begins with a time or is indented."""
    found = (run / "log.txt").read_text(encoding="utf-8").splitlines()
    assert all(STAMP.match(line) or line.startswith("    ") for line in found)
    return [STAMP.sub("", line) for line in found]


def test_commands_append(tmp_path: Path) -> None:
    for again in (False, True):
        run = open_run(tmp_path, recipe())
        run_stages(run, ["problems"])
        logging.getLogger("dto.train").info("step 1: %d %%", 3)
        logging.getLogger("other").info("not ours")
        logging.getLogger("other").warning("of a library")
        run.close()
        logging.getLogger("dto").info("after the end")
        begun, stage, step, warning, ended = lines(tmp_path)[-5:]
        assert begun.startswith(f"dto {dto.__version__}: ")
        assert stage.startswith("problems  6 rows") and ("finished" in stage) == again
        assert (step, warning, ended) == ("step 1: 3 %", "WARNING: of a library", "ended")
    assert len(lines(tmp_path)) == 10


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DtoError("pair x: gone"), "error: pair x: gone"),
        (KeyboardInterrupt(), "interrupted"),
        (ZeroDivisionError("so"), "    ZeroDivisionError: so"),
    ],
)
def test_the_end_of_a_command_is_told(tmp_path: Path, error: BaseException, said: str) -> None:
    run = open_run(tmp_path, recipe())
    with pytest.raises(type(error)):
        try:
            raise error
        finally:
            run.close()
    assert lines(tmp_path)[-1] == said
    run.close()  # nothing more
    assert lines(tmp_path)[-1] == said


def test_secrets_are_not_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "first-secret-of-mine")
    monkeypatch.setenv("OTHER_TOKEN", "first-secret-of-mine-2")
    monkeypatch.setenv("NAMED_IN_THE_RECIPE", "a-third-secret")
    monkeypatch.setattr("sys.argv", ["/bin/dto", "run", "x", "--set", "a=first-secret-of-mine"])
    run = open_run(tmp_path, recipe(**{"model.api_key": "NAMED_IN_THE_RECIPE"}))
    logger = logging.getLogger("dto")
    logger.info("header: %s and first-secret-of-mine-2", "Bearer a-third-secret")
    logger.warning("two lines\nwith %s", KEY)
    run.close()
    text = (tmp_path / "log.txt").read_text()
    assert "secret-of" not in text and "a-third" not in text and KEY not in text
    assert lines(tmp_path)[:4] == [
        f"dto {dto.__version__}: dto run x --set a=<MY_KEY>",
        "header: Bearer <NAMED_IN_THE_RECIPE> and <OTHER_TOKEN>",
        "WARNING: two lines",
        "    with <a key>",
    ]


def test_a_text_without_secrets_stays() -> None:
    text = "hf_transfer is off; sk-learn; /home/me/run; 12 %"
    assert without_secrets(text, {"another-secret": "KEY"}) == text


def test_a_full_disk_is_said_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = open_run(tmp_path, recipe())
    (tmp_path / "log.txt").unlink()
    (tmp_path / "log.txt").mkdir()  # can be written by nobody
    run_stages(run, ["problems"])
    logging.getLogger("dto").info("more")
    run.close()
    told = [text for text in caplog.messages if "log.txt" in text]
    assert len(told) == 1 and "the run goes on" in told[0] and "\n" not in told[0]
    assert run.manifest("problems") is not None


def test_a_message_with_wrong_arguments_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    run = open_run(tmp_path, recipe())
    log = [each for each in logging.getLogger().handlers if isinstance(each, RunLog)][-1]
    log.handle(logging.LogRecord("dto", logging.INFO, "x", 1, "%d", ("text",), None))
    run.close()
    assert lines(tmp_path)[-1] == "ended"


def test_without_handlers_the_warnings_of_libraries_still_reach_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    run = open_run(tmp_path, recipe())
    assert not logging.getLogger("other").hasHandlers()
    logging.getLogger("dto").info("ours")
    run.close()
    assert lines(tmp_path)[1] == "ours"


def test_two_runs_have_their_own(tmp_path: Path) -> None:
    for name in ("one", "two"):
        run = open_run(tmp_path / name, recipe())
        logging.getLogger("dto").info(name)
        run.close()
    assert [lines(tmp_path / name)[1] for name in ("one", "two")] == ["one", "two"]
