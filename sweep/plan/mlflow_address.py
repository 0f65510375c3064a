"""The address of MLflow: checked, absolute, and never with a secret in it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from sweep.plan.remote_storage import url_of
from trainer.errors import InputError

DATABASE = "mlflow.db"
_OPTION = "--mlflow-uri"
VARIABLE = "MLFLOW_TRACKING_URI"

_MLFLOW_STORES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql")
_SECRET_PARAMETER = re.compile(r"(?i)[?&][^=&]*(?:password|passwd|pwd|token|secret)[^=&]*=([^&]+)")


def default_mlflow_uri(folder: Path) -> str:
    """Return the SQLite store in the storage folder; absolute, as MLflow's own default follows the working directory.

    Raises:
        InputError: for storage at a URL, which holds no database.
    """
    if url := url_of(folder):
        raise InputError(f"--storage {url}: holds no database; give --mlflow-uri, or set MLFLOW_TRACKING_URI")
    return f"sqlite:///{_as_in_uri(str(folder / DATABASE))}"


def _as_in_uri(path: str) -> str:
    """Return a path as a database's URI holds it: as `%20` there is a space, a `%` is written out."""
    return path.replace("%", "%25")


def absolute_uri(uri: str, *, source: str = _OPTION) -> str:
    """Return a checked MLflow URI; a relative SQLite path is taken from the working directory, once and for all.

    Raises:
        InputError: as `check_mlflow_uri`.
    """
    check_mlflow_uri(uri, source=source)
    start, slashes, path = uri.partition(":///")
    if not slashes or not uri.startswith("sqlite"):
        return uri
    return f"{start}{slashes}{os.path.normpath(os.path.join(_as_in_uri(os.getcwd()), path))}"


def check_mlflow_uri(uri: str, *, source: str = _OPTION) -> None:
    """Check that a URI is a tracking server or a database, without a secret: others may read the plan's file.

    Args:
        source: the option or variable that holds it.

    Raises:
        InputError: quoting the URI with any secret masked.
    """
    scheme, _, rest = uri.partition("://")
    kind, shown = scheme.partition("+")[0].lower(), f"{source} {masked(uri)!r}"
    remedy = "" if source == _OPTION else f"; change it, or give {_OPTION}"
    if kind not in _MLFLOW_STORES or not rest or not uri.isprintable():
        raise InputError(f"{shown}: must be sqlite:///FILE, http(s)://HOST:PORT or a database's URI{remedy}")
    if _secrets(uri):
        raise InputError(
            f"{shown}: holds a secret, and the plan is stored in a plain file; leave it out and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (PostgreSQL's: PGPASSWORD, or ~/.pgpass)"
        )
    if kind == "sqlite" and (not rest.startswith("/") or rest in ("/", "/:memory:")):
        raise InputError(f"{shown}: must name a file, as in sqlite:////absolute/path/{DATABASE}")
    if kind in ("http", "https") and not _has_host(uri):
        raise InputError(f"{shown}: must name a host and, where it has one, a port up to 65535")


def _has_host(uri: str) -> bool:
    try:
        parts = urlsplit(uri)
        return bool(parts.hostname) and not re.search(r"\s", parts.hostname) and parts.port != 0
    except ValueError:
        return False


def masked(uri: str) -> str:
    """Return the URI with anything that may be a secret replaced by ***."""
    for secret in _secrets(uri):
        uri = uri.replace(secret, "***")
    return uri


def _secrets(uri: str) -> list[str]:
    """Return secret query parameters, and user information before the last @ (a password may hold any character)."""
    start, scheme_ends, rest = uri.partition("://")
    rest = rest if scheme_ends else start
    user, at, _ = rest.rpartition("@")
    without_host = scheme_ends and rest.startswith("/")
    # A database's user name alone is no secret; a server's may be a token.
    is_secret = at and user and not without_host and (":" in user or uri.lower().startswith("http"))
    return [*_SECRET_PARAMETER.findall(rest), *([user] if is_secret else [])]
