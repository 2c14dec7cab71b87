"""`dto view --serve` over real sockets: what is served, to whom, and how it ends."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dto.errors import DtoError
from dto.viewer.serve import addresses, open_server
from tests.viewer.browser import OPENED, Browser
from tests.viewer.generated import write

Answer = tuple[int, http.client.HTTPMessage, bytes]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write(tmp_path / "run", 2, samples=2, segments=3, sentences=1)
    return tmp_path / "run"


@contextmanager
def serving(run: Path, out: Path | None = None) -> Iterator[int]:
    with open_server(run, out, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def ask(port: int, path: str, method: str = "GET", **headers: str) -> Answer:
    connection = http.client.HTTPConnection("localhost", port, timeout=30)
    try:
        connection.request(
            method, path, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def test_only_the_page_is_served(run: Path) -> None:
    with serving(run) as port:
        whole = (run / "view.html").read_bytes()
        for path in ("/", "/view.html", "/?x=1", "/view.html?x"):
            status, headers, body = ask(port, path)
            assert (status, body) == (200, whole)
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        assert headers["Content-Length"] == str(len(whole))
        assert headers["X-Content-Type-Options"] == "nosniff"
        status, headers, body = ask(port, "/", "HEAD")
        assert (status, body, headers["Content-Length"]) == (200, b"", str(len(whole)))
        assert ask(port, "/", If_None_Match=headers["ETag"])[0] == 304
        for path in ("/recipe.yaml", "/../run/recipe.yaml", "/sample/rows.parquet", "//etc/passwd",
                     "/%2e%2e/recipe.yaml", "/report/report.html", "/report/"):  # fmt: skip
            assert ask(port, path)[0] == 404, path
        assert ask(port, "/", "POST")[0] == 501
        (run / "report").mkdir()
        (run / "report/report.html").write_text("report")
        assert ask(port, "/report/report.html")[::2] == (200, b"report")
        assert b'<a href="report/report.html">' in ask(port, "/")[2]  # and the page links it


def test_a_page_of_another_site_cannot_read_it(run: Path) -> None:
    with serving(run) as port:
        for host in ("evil.example", f"evil.example:{port}", "", "localhost.evil.example"):
            assert ask(port, "/", Host=host)[0] == 403
        for host in ("localhost", f"127.0.0.1:{port}", f"[::1]:{port}"):
            assert ask(port, "/", Host=host)[0] == 200


def test_a_reload_shows_the_newer_state(run: Path) -> None:
    later = run.parent / "pair"
    shutil.move(run / "pair", later)
    with serving(run) as port:
        before = ask(port, "/")[2]
        written = (run / "view.html").stat().st_mtime_ns
        assert ask(port, "/")[2] == before
        assert (run / "view.html").stat().st_mtime_ns == written  # nothing has changed
        shutil.move(later, run / "pair")
        after = ask(port, "/")[2]
        assert after != before
        (run / "pair/rows.parquet").write_bytes(b"torn")  # a run that cannot be read for a moment
        assert ask(port, "/")[2] == after


def test_many_readers_at_once(run: Path) -> None:
    answers: list[int] = []
    with serving(run) as port:
        threads = [
            threading.Thread(target=lambda: answers.append(ask(port, "/")[0])) for _ in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [200] * 16


def test_a_port_in_use_and_a_host_of_another_machine(run: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DtoError, match=rf"cannot serve on localhost:{port}: .*use --port 0"):
            open_server(run, port=port)
    for host in ("192.0.2.1", "no.such.host.invalid"):
        with pytest.raises(DtoError, match=f"cannot serve on {host}:0: .*another --host"):
            open_server(run, port=0, host=host)
    with pytest.raises(DtoError, match="0 to 65535"):
        open_server(run, port=70_000)
    assert not (run / "view.html").exists()  # the port comes first


def test_what_is_said(run: Path) -> None:
    with open_server(run, port=0) as server:
        port = server.server_address[1]
        first, second = addresses(server, "localhost")
        assert first == f"http://localhost:{port}/"
        assert f"ssh -L {port}:localhost:{port} " in second
        assert "everybody" in addresses(server, "0.0.0.0")[1]
        assert "localhost only users of this machine, over: ssh" in addresses(server, "0.0.0.0")[1]


def test_the_tag_is_that_of_the_file_that_is_sent(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page is written again between opening it and reading its time."""
    fstat = os.fstat

    def late(file: int) -> os.stat_result:
        replacement = run / "newer.html"
        replacement.write_text("newer")
        os.utime(replacement, (2**31 - 1, 2**31 - 1))
        replacement.replace(run / "view.html")
        return fstat(file)

    with serving(run) as port:
        tag = ask(port, "/")[1]["ETag"]
        with monkeypatch.context() as patch:
            patch.setattr("dto.viewer.serve.os.fstat", late)
            again = ask(port, "/")[1]["ETag"]
    assert again == tag and (run / "view.html").read_text() == "newer"


@pytest.mark.parametrize(
    ("error", "shown"),
    [(BrokenPipeError(), False), (ConnectionResetError(), False), (TimeoutError(), False),
     (ZeroDivisionError("a defect"), True), (OSError("disk"), True)],
)  # fmt: skip
def test_only_a_browser_that_left_is_no_error(
    error: Exception, shown: bool, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_server(run, port=0) as server:
        try:
            raise error
        except Exception:
            server.handle_error(None, ("localhost", 1))
    assert (type(error).__name__ in capsys.readouterr().err) is shown


@pytest.mark.slow(seconds=6)
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
def test_ctrl_c_ends_it_cleanly(run: Path) -> None:
    command = [sys.executable, "-m", "dto.cli", "view", str(run), "--serve", "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    try:
        assert process.stdout is not None
        match = re.fullmatch(r"http://localhost:(\d+)/\n", process.stdout.readline())
        assert match is not None and ask(int(match[1]), "/")[0] == 200
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0 and said == ""


@pytest.mark.slow
def test_the_served_page_in_a_browser(browser: Browser, run: Path) -> None:
    for log in (browser.requests, browser.errors):
        log.clear()
    with serving(run) as port:
        browser.open(f"http://localhost:{port}/")
        assert browser.js(OPENED)
        shown = [url for url in browser.requests if not url.startswith("about:")]
        assert shown == [f"http://localhost:{port}/"]
    assert browser.errors == []
