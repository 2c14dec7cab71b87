"""Serve the page of a run over HTTP, for a browser on another machine or a run in progress.

Only the page and the report are served. A reload shows the newer state of the run: the page is
written again when a stage has new rows.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copyfileobj
from socket import AF_INET6, gethostname
from threading import Lock

from dto.errors import DtoError
from dto.viewer.page import REPORT, view

logger = logging.getLogger("dto")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
PORT = 8765
FILES = tuple(
    f"{stage}/{name}"
    for stage in ("*", "compare/*/*")
    for name in ("rows.parquet", "journal", "manifest.json", "dropped.jsonl")
)
"""What changes while a run goes on."""
State = tuple[tuple[str, int, int], ...]


class Page:
    """The page of a run on disk, written again when the run has changed since."""

    def __init__(self, run: Path, write: Callable[[], Path]) -> None:
        self._run, self._write, self._lock = run, write, Lock()
        self._state = state(run)
        self.path = write()

    def current(self) -> Path:
        """Return the path of a page that shows the state of the run.

        If the run cannot be read at the moment, the last page stays.
        """
        with self._lock:
            now = state(self._run)
            if now != self._state:
                try:
                    self.path = self._write()
                    self._state = now
                except DtoError as error:
                    logger.warning("%s", error)
            return self.path


def state(run: Path) -> State:
    """Return name, size and time of the tables, journals and manifests of a run, and its report."""
    files = [run / REPORT, *(path for name in FILES for path in run.glob(name))]
    stats = [(path, path.stat()) for path in files if path.is_file()]
    return tuple(sorted((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats))


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD of the page and of the report beside it."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    server_version = "dto"
    sys_version = ""

    def __init__(self, page: Page, hosts: tuple[str, ...], *arguments: object) -> None:
        self._page, self._hosts = page, hosts
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Send the file."""
        self._send(body=True)

    def do_HEAD(self) -> None:
        """Send the headers."""
        self._send(body=False)

    def _send(self, body: bool) -> None:
        name = self.path.partition("?")[0].lstrip("/")
        if self._hosts and _host(self.headers.get("Host", "")) not in self._hosts:
            # A page of another site that resolves its name to this machine.
            self.send_error(HTTPStatus.FORBIDDEN, "not a name of this server")
            return
        if name not in ("", "view.html", REPORT):
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        page = self._page.current()
        try:
            file = (page.parent / REPORT if name == REPORT else page).open("rb")
        except OSError:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        with file:
            stat = os.fstat(file.fileno())  # the path may lead to a newer page by now
            tag = f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"'
            same = self.headers.get("If-None-Match") == tag
            size = file.seek(0, 2)
            file.seek(0)
            self.send_response(HTTPStatus.NOT_MODIFIED if same else HTTPStatus.OK)
            self.send_header("ETag", tag)
            self.send_header("Cache-Control", "no-cache")
            if not same:
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(size))
                self.send_header("X-Content-Type-Options", "nosniff")
                self.send_header("X-Frame-Options", "DENY")
                self.send_header("Referrer-Policy", "no-referrer")
            self.end_headers()
            if body and not same:
                copyfileobj(file, self.wfile)

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing: requests are of no interest."""


def _host(header: str) -> str:
    """Return the name in a Host header, without the port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay quiet about a browser that has gone away; print any other error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Server6(_Server):
    address_family = AF_INET6


def open_server(
    run: Path,
    out: Path | None = None,
    *,
    whole: bool = False,
    filter: Sequence[str] = (),
    host: str = "localhost",
    port: int,
) -> _Server:
    """Write the page and open a server for it; `serve_forever` runs it.

    Port 0 takes a free one. Raises DtoError for a port in use and a host that is not this machine.
    """
    family = _Server6 if ":" in host else _Server
    hosts = LOOPBACK if host in LOOPBACK else ()
    # The port first: writing the page can take minutes.
    try:
        server = family((host, port), BaseHTTPRequestHandler)
    except OverflowError:
        raise DtoError(f"--port {port}: a port is a number from 0 to 65535") from None
    except OSError as error:
        raise DtoError(
            f"cannot serve on {host}:{port}: {(error.strerror or str(error)).lower()}; use --port "
            "0 for a free port, or another --host"
        ) from None
    try:
        page = Page(run, partial(view, run, out, whole=whole, filter=filter))
    except BaseException:
        server.server_close()
        raise
    server.RequestHandlerClass = partial(Handler, page, hosts)
    return server


def addresses(server: _Server, host: str) -> list[str]:
    """Return the lines that say where the page is."""
    port = server.server_address[1]
    if host not in LOOPBACK:
        name = gethostname() if host in ("0.0.0.0", "::") else host
        shown = f"[{name}]" if ":" in name else name
        return [
            f"http://{shown}:{port}/",
            f"everybody who reaches this machine can read the page; with --host localhost only "
            f"users of this machine, over: ssh -L {port}:localhost:{port} {gethostname()}",
        ]
    return [
        f"http://localhost:{port}/",
        f"from another machine: ssh -L {port}:localhost:{port} {gethostname()}, then the same "
        "address",
    ]
