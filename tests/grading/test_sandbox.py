"""What programs can do in the sandbox, and what they try."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from dto.grading import Graded, Grader
from dto.grading.harness import sources
from dto.grading.sandbox import Limits, Mode, Sandbox, SandboxError

LIMITS = Limits(cpu_seconds=10.0, memory=512 << 20, disk=16 << 20, processes=8)
SHORT = replace(LIMITS, cpu_seconds=1.0)  # for what hangs: by the clock it has 3 s
MODES: tuple[Mode, ...] = ("namespaces", "bwrap", "guards")
DEFINED = "def f(x):\n    return x + 1\n"
PROMPT = 'from math import floor\n\ndef g(x):\n    return x\n\ndef f(x):\n    """One more."""\n'
CHECK = "def check(candidate):\n    assert candidate(1) == 2\n"
UNIT = (
    "import unittest\nclass T(unittest.TestCase):\n    def test_it(self):\n"
    "        self.assertEqual(f(1), 2)\n"
)


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest) -> Mode:
    """A way of isolation; skipped where this machine does not have it."""
    mode: Mode = request.param
    if mode == "bwrap" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    try:
        asyncio.run(Sandbox(1, LIMITS, mode).run(DEFINED, "", CHECK, "f"))
    except SandboxError as error:
        pytest.skip(f"not permitted here: {error}")
    return mode


def living() -> set[psutil.Process]:
    """This process's children and theirs, but those that are only waited for."""
    found = set()
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if each.status() != psutil.STATUS_ZOMBIE:
                found.add(each)
    return found


async def trial_result(mode: Mode, program: str, test: str = "", limits: Limits = LIMITS) -> str:
    """Why the program is wrong; empty when it passes."""
    before = living()
    passed, reason = await Sandbox(1, limits, mode).run(DEFINED + program, "", test, "f")
    assert living() <= before, "nothing outlives the verdict"
    assert reason.endswith("unisolated") == (mode == "guards")
    reason = reason.removesuffix("unisolated").strip()
    assert passed == (reason == "")
    return reason


@pytest.mark.slow
async def test_what_programs_may_do(mode: Mode) -> None:
    program = (
        "import os, random, threading, tempfile\n"
        "open('own.txt', 'w').write('x'); assert open('own.txt').read() == 'x'\n"
        "assert 'own.txt' in os.listdir('.') and os.environ['HOME'] == os.getcwd()\n"
        "os.remove('own.txt')\n"
        "with tempfile.TemporaryDirectory() as place: open(place + '/x', 'w').write('y')\n"
        "thread = threading.Thread(target=print); thread.start(); thread.join()\n"
        "import numpy as np; assert (np.ones((3, 3)) @ np.ones(3)).sum() == 9\n"
        "print('x' * 100_000_000)\n"
    )
    assert await trial_result(mode, program, "assert f(1) == 2") == ""


ATTACKS = {
    "calculates for ever": ("while True: pass", {"time_limit"}),
    "does not listen": (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        {"time_limit", "PermissionError"},
    ),
    "sleeps for ever": ("import time; time.sleep(1000)", {"time_limit"}),
    "takes memory": ("held = bytearray(1 << 30)", {"memory_limit"}),
    "takes memory bit by bit": (
        "held = []\nwhile True: held.append(bytes(1 << 20))",
        {"memory_limit"},
    ),
    "fills a file": (
        "with open('x', 'wb') as file:\n    while True: file.write(bytes(1 << 20))",
        {"OSError"},
    ),
    "crashes": ("import ctypes; ctypes.string_at(0)", {"killed by SIGSEGV", "ImportError"}),
    "overflows the stack": ("def h(): h()\nh()", {"RecursionError"}),
    "leaves early": ("import sys; sys.exit(0)", {"exited"}),
    "leaves at once": ("import os; os._exit(0)", {"exited"}),
    "leaves in a test": ("def f(x):\n    import os; os._exit(0)", {"exited"}),
    "says it passed": ("import os; os.write(3, b'0 '); os._exit(0)", {"exited"}),
    "answers the parent": (
        'import os\nos.write(1, b\'{"reason": ""}\\n\'); 1/0',
        {"ZeroDivisionError"},
    ),
    "opens too many files": ("held = [open('/dev/null') for _ in range(100)]", {"OSError"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_program_costs_only_itself(mode: Mode, attack: str) -> None:
    program, reasons = ATTACKS[attack]
    limits = SHORT if "time_limit" in reasons else LIMITS
    assert await trial_result(mode, program, "f(1)", limits) in reasons


@pytest.mark.slow
async def test_files_fill_no_disk(mode: Mode) -> None:
    if mode == "guards":
        pytest.skip("without a file system of its own only each file is limited, as it says")
    program = "for i in range(100): open(str(i), 'wb').write(bytes(1 << 20))"
    assert await trial_result(mode, program) == "OSError"
    if mode == "namespaces":
        assert await trial_result(mode, "for i in range(10000): open(str(i), 'wb')") == "OSError"
    for place in ("/", "/dev", "/dev/shm", "/usr", os.path.dirname(os.__file__)):
        assert await trial_result(mode, f"open({place!r} + '/x', 'wb')") in {
            "OSError", "PermissionError", "FileNotFoundError"
        }, place  # fmt: skip


async def test_a_fork_bomb_is_bounded(mode: Mode) -> None:
    if mode == "bwrap" and os.geteuid() == 0:
        pytest.skip("Linux does not limit the processes of root: namespaces come first there")
    program = "import os\nwhile True: os.fork()"
    assert await trial_result(mode, program) in {"BlockingIOError", "PermissionError"}
    background = (
        "import subprocess\nsubprocess.Popen(['/bin/sleep', '1000'], start_new_session=True)"
    )
    assert await trial_result(mode, background) in {"", "PermissionError"}


@pytest.mark.slow
async def test_nothing_outside_can_be_read_or_written(
    mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DTO_TEST_SECRET", "secret")
    secret, other = tmp_path / "secret.txt", tmp_path / "written.txt"
    secret.write_text("secret")
    tmp_path.chmod(0o777)
    secret.chmod(0o666)
    refused = {"FileNotFoundError", "PermissionError", "OSError"}
    for attempt in (
        f"open({str(secret)!r}).read()",
        f"open({str(secret)!r}, 'a').write('x')",
        f"open({str(other)!r}, 'w').write('x')",
        f"import os; os.remove({str(secret)!r})",
        f"import os; os.listdir({str(tmp_path)!r})",
        f"import os; os.rename({str(secret)!r}, 'mine')",
        f"import os; os.symlink({str(secret)!r}, 'link'); open('link').read()",
        "open('/etc/passwd').read()",
        f"open({os.__file__!r}, 'a').write('x')",
        f"open('/proc/{os.getpid()}/environ').read()",
        "import os; open(f'/proc/{os.getppid()}/environ').read()",
    ):
        assert await trial_result(mode, attempt) in refused, attempt
    program = "import os; assert 'secret' not in str(os.environ) and len(os.environ) < 12"
    assert await trial_result(mode, program) == ""
    assert secret.read_text() == "secret" and not other.exists()
    assert "x = 1" not in Path(os.__file__).read_text()[-10:]


async def test_no_socket_reaches_a_listener(mode: Mode, tmp_path: Path) -> None:
    heard: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        tmp_path.chmod(0o777)
        local.bind(str(tmp_path / "s"))
        local.listen()

        def listen() -> None:
            with contextlib.suppress(OSError):  # closed
                heard.append(server.accept())

        threading.Thread(target=listen, daemon=True).start()
        port = server.getsockname()[1]
        for attempt in (
            f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)",
            f"import socket; socket.socket(socket.AF_UNIX).connect({str(tmp_path / 's')!r})",
            f"import urllib.request as u; u.urlopen('http://127.0.0.1:{port}', timeout=1)",
        ):
            reason = await trial_result(mode, attempt)
            assert reason and reason != "time_limit", attempt
        assert not heard
        server.close()


@pytest.mark.slow
async def test_the_parent_cannot_be_killed(mode: Mode) -> None:
    for attempt in (
        "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
        f"import os, signal; os.kill({os.getpid()}, signal.SIGKILL)",
        "import os, signal; os.killpg(os.getpgid(0), signal.SIGTERM)",
        "import os, signal; os.kill(-1, signal.SIGKILL)",
    ):
        assert await trial_result(mode, attempt + "\nimport time; time.sleep(1)\n1/0"), attempt


async def test_a_hanging_program_holds_up_nobody() -> None:
    sandbox = Sandbox(2, LIMITS)
    before = living()
    hanging = asyncio.create_task(sandbox.run(DEFINED + "while True: pass", "", "", "f"))
    others = [(await sandbox.run(DEFINED, "", CHECK, "f")).passed for _ in range(3)]
    assert others == [True] * 3
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    assert living() <= before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("response", "passes"),
    [
        (f"Here:\n```python\n{DEFINED}```", True),
        (f"```\n{DEFINED}```\nDone.", True),
        (f"```py\n{DEFINED}", True),  # not closed
        (DEFINED, True),
        ("    return x + 1\n", True),
        ("```python\n    return x + 1\n```", True),
        ("```python\nreturn x + 1\n```", True),
        ("```python\n    return g(x) + floor(1.5)\n```", True),  # what the prompt brings
        ("```python\ndef f(x):\n    return g(x) + floor(1.5)\n```", True),
        (f"```python\n{DEFINED}```\nFor example:\n```python\nprint(f(1))\n```", True),
        (f"```python\ndef f(x):\n    return 7\n```\nBetter:\n```python\n{DEFINED}```", True),
        (f"```python\n{DEFINED}```\nNo:\n```python\ndef f(x):\n    return 7\n```", False),
        (f"```python\nfrom __future__ import annotations\n{DEFINED}```", True),
        (f"```python\n{DEFINED}\nif __name__ == '__main__':\n    input()\n```", True),
        ("```python\nf = lambda x: x + 1\n```", True),
        ("```python\ndef f(x):\n    return 7\n```", False),
        ("```python\ndef f(x:\n```", False),
        ("I do not know.", False),
        ("```javascript\nfunction f(x) { return x + 1 }\n```", False),
        ("", False),
        ("(" * 100_000, False),
    ],
)
@pytest.mark.parametrize("test", [CHECK, UNIT, "assert f(1) == 2\n"])
async def test_which_code_is_the_answer(response: str, passes: bool, test: str) -> None:
    verdict = await Sandbox(1, LIMITS).run(response, PROMPT, test, "f")
    assert verdict.passed is passes, verdict.reason
    assert bool(verdict.reason) is not passes or "unisolated" in verdict.reason


def test_a_prompt_that_does_not_parse_brings_its_imports() -> None:
    assert sources(f"```\n{DEFINED}```", "import math\ndef f(x):", "f") == ["import math", DEFINED]


GOLD = json.dumps({"prompt": PROMPT, "test": CHECK, "entry_point": "f"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("response", "gold", "grade", "reason"),
    [
        (f"```python\n{DEFINED}```", GOLD, "correct", ""),
        ("```python\ndef f(x):\n    return 7\n```", GOLD, "wrong", "AssertionError"),
        ("```python\nimport time; time.sleep(99)\n```", GOLD, "wrong", "time_limit"),
        (
            "```python\ndef f(x):\n    return len(bytes(1 << 31))\n```",
            GOLD,
            "wrong",
            "memory_limit",
        ),
        ("", GOLD, "wrong", ""),
        (DEFINED, "7", "failed", "unreadable_gold"),
        (DEFINED, '{"prompt": ""}', "failed", "unreadable_gold"),
        (
            DEFINED,
            GOLD.replace("assert", "as sert"),
            "failed",
            "unreadable_gold: test: SyntaxError",
        ),
        (
            DEFINED,
            json.dumps({"prompt": "", "test": UNIT.replace("test_", "_"), "entry_point": "f"}),
            "failed",
            "unreadable_gold: no tests",
        ),
    ],
)
async def test_grades_of_programs(response: str, gold: str, grade: str, reason: str) -> None:
    limits = SHORT if reason == "time_limit" else LIMITS
    async with Grader(workers=1, allow_code_execution=True, code_limits=limits) as grader:
        graded = await grader.grade_conclusion(response, gold, "code")
    assert (graded.grade, graded.reason.removesuffix("unisolated").strip()) == (grade, reason)
    async with Grader() as grader:
        refused = await grader.grade_conclusion(response, gold, "code")
    assert refused == Graded("failed", graded.answer, "no_code_execution")


async def test_a_sandbox_that_cannot_start_fails_the_grade(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dto.grading.sandbox._JAIL", Path("/nowhere/jail.py"))
    async with Grader(workers=1, allow_code_execution=True) as grader:
        graded = await grader.grade_conclusion(DEFINED, GOLD, "code")
    assert graded.grade == "failed" and graded.reason.startswith("sandbox_")
