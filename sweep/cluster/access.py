"""Address of a Ray cluster, and the token that it may ask for.

Ray's job API runs whatever it is sent, so a cluster asks for a token (`RAY_AUTH_MODE=token` on its nodes). It is read
here from the places where Ray itself looks, goes into a header of each request, and nowhere else.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from sweep.plan import masked
from sweep.ray_internals import first_line
from trainer.errors import InputError

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
_TOKEN, _TOKEN_FILE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_DEFAULT_TOKEN_FILE = "~/.ray/auth_token"
_ANSWER_SECONDS = 10.0


def check_address(address: str | None) -> str:
    """Return a dashboard's address as given, or else as the environment has it.

    Raises:
        InputError: quoting it, with any secret masked.
    """
    source, text = (
        ("--address", address) if address is not None else (ADDRESS_VARIABLE, os.environ.get(ADDRESS_VARIABLE, ""))
    )
    if not text:
        raise InputError(f"which cluster? give --address http://HOST:8265, or set {ADDRESS_VARIABLE}")
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        wanted = "must be http(s)://HOST:PORT of a cluster's dashboard, as in http://127.0.0.1:8265"
        raise InputError(f"{source} {masked(text)!r}: {wanted}")
    if masked(text) != text:
        raise InputError(f"{source} {masked(text)!r}: holds a secret; set {_TOKEN} or {_TOKEN_FILE} instead")
    return text.rstrip("/")


def read_token() -> str:
    """Return the token for clusters, from the environment or a file; empty if there is none.

    Raises:
        InputError: if the file that the environment names can't be read, or holds nothing.
    """
    if token := os.environ.get(_TOKEN, "").strip():
        return token
    named = os.environ.get(_TOKEN_FILE)
    path = Path(named or _DEFAULT_TOKEN_FILE).expanduser()
    try:
        token = path.read_text().strip()
    except OSError as error:
        if named:
            raise InputError(f"{_TOKEN_FILE}={named}: can't be read: {error.strerror}") from None
        return ""
    if not token and named:
        raise InputError(f"{_TOKEN_FILE}={named}: the file is empty")
    return token


def ask_version(address: str, token: str) -> str:
    """Return the version of Ray that answers at `address`.

    Raises:
        InputError: if none does, or it refuses the token.
    """
    request = urllib.request.Request(f"{address}/api/version")
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
            return str(json.load(answer)["ray_version"])
    except urllib.error.HTTPError as error:
        raise InputError(f"{address}: {_explain_status(error.code, token)}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(f"{address}: no Ray cluster answers there ({first_line(reason)})") from None
    except (KeyError, TypeError):
        raise InputError(f"{address}: something answers there that is no Ray dashboard") from None


def _explain_status(code: int, token: str) -> str:
    if code == 401 and not token:
        return f"the cluster asks for a token; set {_TOKEN}, or {_TOKEN_FILE} to a file that holds it"
    if code in (401, 403):
        source = _TOKEN if os.environ.get(_TOKEN) else os.environ.get(_TOKEN_FILE) or _DEFAULT_TOKEN_FILE
        return f"the cluster refuses the token in {source}"
    return f"answers with HTTP status {code}; is this the address of a Ray dashboard?"
