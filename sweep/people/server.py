"""The page's server: the standard library's, on 127.0.0.1 unless told otherwise, behind a secret path.

The path begins with random letters, so that neither another user of this machine nor a page of another site, which can
both reach 127.0.0.1, can read or answer anything.
"""

from __future__ import annotations

import io
import json
import secrets
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from sweep.people.answers import AnswerLog, check_person
from sweep.people.page import PAGE
from trainer.errors import InputError

_LARGEST_BODY = 4096
"""Bytes of an answer; a longer one is refused unread."""

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline'; img-src 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class SurveyServer:
    """A running page. Use it as a context.

    Args:
        log: the survey's answers.
        fit: command that fits a crowd on the answers, shown at the end.
        host: address to listen on; whoever can reach it and knows the link can answer.
        port: 0 takes a free one.

    Raises:
        InputError: for an address or a port that can't be had.
    """

    def __init__(self, log: AnswerLog, *, fit: str, host: str = "127.0.0.1", port: int = 0) -> None:
        self._secret = secrets.token_urlsafe(12)
        self.log, self._fit = log, fit
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(self))
        except (OSError, OverflowError) as error:
            raise InputError(f"--host {host} --port {port}: can't be had: {error}") from None
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def address(self) -> str:
        """The link that opens the page."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}/{self._secret}/"

    def __enter__(self) -> SurveyServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, query: dict[str, list[str]], body: dict[str, Any] | None) -> tuple[str, bytes]:
        """Return the type and content of what a request asks for.

        Raises:
            InputError: for what can't be answered.
            LookupError: for a path that does not exist.
        """
        head, _, rest = path.lstrip("/").partition("/")
        if not secrets.compare_digest(head.encode(), self._secret.encode()):
            raise LookupError(path)
        survey = self.log.survey
        if body is not None and rest == "answer":
            self.log.add(str(body.get("person", "")), _whole(body, "image"), _whole(body, "answer"))
            return "application/json", b"{}"
        if body is not None:
            raise LookupError(path)
        if rest == "":
            return "text/html; charset=utf-8", PAGE.encode()
        if rest == "state":
            person = check_person((query.get("person") or [""])[0])
            state = {"classes": survey.classes, "order": survey.order(person), "answers": self.log.of(person)}
            state["fit"] = self._fit
            return "application/json", json.dumps(state).encode()
        name, _, suffix = rest.removeprefix("image/").partition(".")
        if rest.startswith("image/") and suffix == "png" and name.isdecimal() and int(name) < len(survey.images):
            return "image/png", _png(survey.images[int(name)])
        raise LookupError(path)


def _whole(body: dict[str, Any], key: str) -> int:
    value = body.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{key} = {str(value)[:60]!r}: must be a whole number")
    return value


def _png(image: np.ndarray) -> bytes:
    """Return an image (C, H, W) of bytes as a PNG."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(
        buffer, image[0] if len(image) == 1 else np.moveaxis(image, 0, -1), cmap="gray", vmin=0, vmax=255, format="png"
    )
    return buffer.getvalue()


def _handler(server: SurveyServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "otsweep", ""

        def do_GET(self) -> None:  # noqa: N802 - the name that the base class calls
            self._reply(lambda: None)

        def do_POST(self) -> None:  # noqa: N802
            self._reply(self._body)

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the terminal for what the person is told."""

        def _body(self) -> dict[str, Any]:
            length = self.headers.get("Content-Length", "")
            if self.headers.get_content_type() != "application/json" or not length.isdecimal():
                raise InputError("an answer must be JSON, with its length")
            if int(length) > _LARGEST_BODY:
                self.close_connection = True
                raise InputError(f"an answer of {length} bytes: must be at most {_LARGEST_BODY}")
            try:
                body = json.loads(self.rfile.read(int(length)))
            except (ValueError, RecursionError):
                body = None
            if not isinstance(body, dict):
                raise InputError("an answer must be a JSON object")
            return body

        def _reply(self, body_of: Callable[[], dict[str, Any] | None]) -> None:
            address = urlsplit(self.path)
            try:
                status, (kind, content) = 200, server.answer(address.path, parse_qs(address.query), body_of())
            except LookupError:
                status, kind, content = 404, "text/plain", b"not found"
            except InputError as error:
                status, kind, content = 400, "text/plain; charset=utf-8", str(error).encode()
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **_HEADERS}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    return Handler
