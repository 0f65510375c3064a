"""MLflow's server behind a secret, in a process of its own: `python -m sweep.tracking.page_server`.

Other users of this machine reach 127.0.0.1 as well. So nobody is answered who does not bring the secret: first in the
link that `otsweep ui` prints, then in a cookie. Whoever has it still can't name a file outside of the folders of
artifacts. The settings come by standard input, since others may read a process's arguments; once that ends, so does
the server.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

from sweep.tracking.mlflow_internals import UNSERVED_PATHS, page_app

TOKEN = "token"
"""Name of the secret in a link."""
_REFUSED = b"This page needs its secret: open the link that `otsweep ui` printed.\n"
_NOT_SERVED = b"not served here\n"

_Message = MutableMapping[str, Any]
_App = Callable[[_Message, Callable[[], Awaitable[_Message]], Callable[[_Message], Awaitable[None]]], Awaitable[None]]


def cookie_name(port: int) -> str:
    """Return the name of the cookie that holds the secret: browsers send cookies to all ports alike."""
    return f"otsweep-{port}"


class _SecretGuard:
    """An ASGI application that lets in whoever brings the secret.

    Args:
        app: the application that it guards.
        port: of the server, on 127.0.0.1.
    """

    def __init__(self, app: _App, secret: str, port: int) -> None:
        self.app, self._secret, self._port = app, secret, port

    async def __call__(self, scope: _Message, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif self._equals(dict(query).get(TOKEN, "")):
            rest = urlencode([(name, value) for name, value in query if name != TOKEN])
            cookie = f"{cookie_name(self._port)}={self._secret}; HttpOnly; SameSite=Lax; Path=/"
            # A browser keeps what stands behind the # of its link.
            location = "/" + scope["path"].lstrip("/") + (f"?{rest}" if rest else "")
            await _answer(send, 303, b"", {"location": location, "set-cookie": cookie})
        elif not self._equals(_cookie(headers.get("cookie", ""), cookie_name(self._port))):
            await _answer(send, 403, _REFUSED)
        elif headers.get("origin", f"http://{headers.get('host')}") != f"http://{headers.get('host')}":
            await _answer(send, 403, _REFUSED)  # a page of another server, in a browser that has the cookie
        elif scope["path"].startswith(UNSERVED_PATHS):
            await _answer(send, 404, _NOT_SERVED)
        else:
            await self.app(scope, receive, send)

    def _equals(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self._secret.encode())


def _cookie(header: str, name: str) -> str:
    """Return the value of a cookie; empty if there is none."""
    # Other servers of this machine may have set cookies that no parser takes.
    for each in header.split(";"):
        key, _, value = each.strip().partition("=")
        if key == name:
            return value
    return ""


async def _answer(send: Any, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
    kept = {"content-type": "text/plain; charset=utf-8", "cache-control": "no-store", "referrer-policy": "no-referrer"}
    every = [(name.encode(), value.encode("latin-1")) for name, value in {**kept, **(headers or {})}.items()]
    await send({"type": "http.response.start", "status": status, "headers": every})
    await send({"type": "http.response.body", "body": body})


def _main() -> None:
    import uvicorn

    settings = json.loads(sys.stdin.readline())
    listener = socket.socket(fileno=settings["listener"])
    app = page_app(settings["uri"], settings["artifacts"])
    guard = _SecretGuard(app, settings["secret"], listener.getsockname()[1])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # No log of requests: links hold the secret.
    config = uvicorn.Config(guard, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[listener])


def _end_with_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    _main()
