"""A page that follows a job: served on this machine's loopback only, read anew from the run's files at each question.

There are two things to get, the page and its data. The browser asks for the data every two seconds with the tag of what
it has; as long as nothing changed the answer is empty. A page elsewhere that has a name resolve to 127.0.0.1 (DNS
rebinding) sends its own name as Host, and is refused.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from squall.errors import InputError
from squall.report.blocks import Document
from squall.report.page import data, html, plotly_script
from squall.report.read import Reader
from squall.report.several import document

ADDRESS = "127.0.0.1"
PORT = 8765
"""Tried first, so that a forwarded port and a bookmark stay good."""

_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_AGES = 10.0  # the data is this many times as old as it took to make before it is made anew
_IDLE_S = 2.0  # a connection that says nothing for so long is closed


class Live:
    """Serves the page of runs until it is closed.

    Arguments:
        readers: of the runs.
        port: to listen on; None: 8765, or any that is free; 0: any that is free.

    Raises:
        InputError: the port is in use, or may not be used.
        MissingExtraError: plotly is not installed.
    """

    def __init__(self, readers: Sequence[Reader], port: int | None = None) -> None:
        self._readers = list(readers)
        self._reading = threading.Lock()
        self._built, self._body, self._cost = -math.inf, b"", 0.0
        plotly_script()
        try:
            self._server = _Server(PORT if port is None else port, self)
        except OSError as error:
            if port is not None:
                raise InputError(
                    f"port {port} of {ADDRESS} cannot be used",
                    [("found", error.strerror or str(error)), ("to do", "another --port N, or none: one is chosen")],
                ) from error
            self._server = _Server(0, self)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self._server.server_address[1]}/"

    def serve(self) -> None:
        """Answers until `stop`, or an exception such as Ctrl-C's."""
        try:
            self._server.serve_forever(poll_interval=0.2)
        finally:
            self._server.server_close()

    def stop(self) -> None:
        """Ends `serve` from another thread."""
        self._server.shutdown()

    def page(self) -> bytes:
        """The page as it is now."""
        with self._reading:
            return html(self._document(), live=True).encode()

    def data(self) -> bytes:
        """What the page shows, as JSON; of a long run a while old, so that following it takes no tenth of a core."""
        with self._reading:
            now = time.monotonic()
            if now - self._built > _AGES * self._cost:
                self._body = data(self._document().to_json()).encode()
                self._built = time.monotonic()
                self._cost = self._built - now
            return self._body

    def _document(self) -> Document:
        return document([reader.read() for reader in self._readers])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int, live: Live) -> None:
        self.live = live
        super().__init__((ADDRESS, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away in mid-answer is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "squall", ""
    timeout = _IDLE_S

    def do_GET(self) -> None:
        """The page, its data, or a refusal."""
        host = self.headers.get("Host", "").strip().lower()
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name not in _HOSTS:
            self._answer(403, b"only by the name of this machine's loopback", "text/plain")
        elif self.path == "/":
            self._answer(200, self.server.live.page(), "text/html; charset=utf-8")
        elif self.path == "/data.json":
            body = self.server.live.data()
            tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            same = self.headers.get("If-None-Match") == tag
            self._answer(304 if same else 200, b"" if same else body, "application/json", ETag=tag)
        else:
            self._answer(404, b"nothing here", "text/plain")

    def _refuse(self) -> None:
        self._answer(405, b"GET only", "text/plain", Allow="GET")

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _refuse  # noqa: N815 - names of http.server

    def _answer(self, status: int, body: bytes, kind: str, **more: str) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            **more,
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Nothing is printed for a question."""
