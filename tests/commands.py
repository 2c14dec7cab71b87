"""The command line, as somebody types it."""

from __future__ import annotations

import sys

import pytest

from dto.cli import main


def dto(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    old, sys.argv = sys.argv, ["dto", *arguments]
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = old
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def told(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code, and all that is printed."""
    code, out, err = dto(*arguments, capsys=capsys)
    return code, out + err
