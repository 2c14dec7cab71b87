"""Turn a response into a program and run its tests, inside the sandbox.

`jail.py` loads this file, which imports neither torch nor dto. It finds the answer here and not in
the parent process, because some texts crash Python's own parser.

The answer is the last fenced block that defines the entry point, or the last block, or without a
fence the whole text. Blocks are tagged python or not at all; they may be inside a list, and use
backticks or tildes; the last one may be unclosed. If the answer defines the entry point, it is a
module that runs after the prompt (for its imports and helper functions). Otherwise it continues the
prompt, as completion models answer.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
import types
import unittest
from typing import Any

FAILED = "failed: "  # prefix of reasons that the problem causes, not the answer

_FENCE = re.compile(
    r"(?P<before>[ \t]*(?:(?:[-*+•]|\d{1,9}[.)])[ \t]+)?)(?P<run>`{3,}|~{3,})"
    r"[ \t]*\{?\.?(?P<tag>[\w+-]*)(?P<info>.*)"
)
_CLOSING = re.compile(r"([ \t]*)(`{3,}|~{3,})(?:\s*$|[ \t]+\S|[.,;:!?)])")
_PYTHON = ("", "python", "python3", "py", "py3")
_IMPORT = re.compile(r"^(?:import|from)\s.*$", re.MULTILINE)


def last_block(response: str) -> str:
    """The last fenced block of Python, or the whole text."""
    blocks = _blocks(response)
    return blocks[-1] if blocks else response


def sources(response: str, prompt: str, entry_point: str) -> list[str]:
    """The source texts to execute in one namespace, in order."""
    blocks = _blocks(response)
    whole = [block for block in blocks or [response] if entry_point in _defined(block)]
    if whole:
        before = prompt if _parsed(prompt) else "\n".join(_IMPORT.findall(prompt))
        return [before, whole[-1]]
    rest = last_block(response)
    if not prompt.endswith("\n"):
        prompt += "\n"
    indented = prompt + textwrap.indent(textwrap.dedent(rest), "    ")
    return [indented if _compiles(indented) and not _compiles(prompt + rest) else prompt + rest]


def run(response: str, prompt: str, test: str, entry_point: str) -> str:
    """Run the tests; the reason if they fail, empty if they pass."""
    try:
        test_code = compile(test, "<test>", "exec")
    except (SyntaxError, ValueError) as error:
        return f"{FAILED}unreadable_gold: test: {type(error).__name__}"
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    names: dict[str, Any] = module.__dict__
    try:
        for source in sources(response, prompt, entry_point):
            exec(compile(source, "<answer>", "exec"), names)
        if entry_point not in names:
            return "no_entry_point"
        before = dict(names)
        exec(test_code, names)
        new = {name: value for name, value in names.items() if before.get(name) is not value}
        if callable(new.get("check")):
            new["check"](names[entry_point])
        return _unittests(new)
    except MemoryError:
        return "memory_limit"
    except SystemExit:
        return "exited"
    except BaseException as error:
        return type(error).__name__[:100]


def _unittests(new: dict[str, Any]) -> str:
    cases = [
        value for value in new.values() if isinstance(value, type)
        if issubclass(value, unittest.TestCase) and value is not unittest.TestCase
    ]  # fmt: skip
    if not cases:
        return ""
    loader, suite, result = unittest.TestLoader(), unittest.TestSuite(), unittest.TestResult()
    suite.addTests(loader.loadTestsFromTestCase(case) for case in cases)
    suite.run(result)
    if result.wasSuccessful():
        return "" if result.testsRun else f"{FAILED}unreadable_gold: no tests"
    return "memory_limit" if "MemoryError" in str(result.errors) else "AssertionError"


def _blocks(response: str) -> list[str]:
    """The fenced blocks of Python, without the indentation of a list.

    As in CommonMark, a block ends at a run of the same character that is at least as long as the
    opening one; text behind that run is allowed.
    """
    blocks: list[str] = []
    lines: list[str] = []
    opened: re.Match[str] | None = None
    for line in response.splitlines(keepends=True):
        if opened is None:
            opened = _FENCE.match(line)
            if opened and "`" in opened["info"] and opened["run"][0] == "`":
                opened = None  # code within a line
            lines = []
            continue
        end = _CLOSING.match(line)
        if end and end[2].startswith(opened["run"]) and _width(end[1]) <= _indent(opened) + 3:
            _close(blocks, opened, lines)
            opened = None
        else:
            lines.append(line)
    if opened is not None:
        _close(blocks, opened, lines)
    return blocks


def _close(blocks: list[str], opened: re.Match[str], lines: list[str]) -> None:
    if opened["tag"].lower() in _PYTHON:
        blocks.append(_outdented(lines, _indent(opened)))


def _indent(fence: re.Match[str]) -> int:
    return _width(fence["before"])


def _width(space: str) -> int:
    return len(space.expandtabs(4))


def _outdented(lines: list[str], width: int) -> str:
    """Remove the indentation of the fence, as far as every line has it."""
    heads = [line[: len(line) - len(line.lstrip(" \t"))] for line in lines]
    common = min((_width(head) for head, line in zip(heads, lines, strict=True) if line.strip()),
                 default=0)  # fmt: skip
    remove = min(width, common)
    if not remove:
        return "".join(lines)
    return "".join(
        head.expandtabs(4)[remove:] + line[len(head) :]
        for head, line in zip(heads, lines, strict=True)
    )


def _parsed(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _compiles(source: str) -> bool:
    """Unlike the parser, the compiler refuses a `return` outside a function."""
    try:
        compile(source, "<answer>", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _defined(source: str) -> set[str]:
    """The names that a module defines at its top level."""
    names: set[str] = set()
    module = _parsed(source)
    for node in module.body if module else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names
