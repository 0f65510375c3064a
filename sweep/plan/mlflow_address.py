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
_BY_TOKEN = ("http", "https", "s3", "gs")
"""Schemes in which user information without a password may be a token or a key."""
_PATHS = ("sqlite", "file")
"""Schemes whose rest is a path, in which a # is a letter."""
_SECRET_NAME = re.compile(r"(?i)password|passwd|pwd|token|secret|key|sig")
_HARMLESS = re.compile(
    r"""(?ix) user | host | port | charset | driver | application_name | connect_timeout | timeout | options | service
    | target_session_attrs | sslmode | sslrootcert | sslcert | ssl | ssl_ca | ssl_cert | ssl_check_hostname
    | ssl_verify_cert | encrypt | trustservercertificate | mode | cache | uri | vfs | immutable
    | region | scheme | endpoint_override | allow_bucket_creation | allow_bucket_deletion | project_id"""
)
"""Parameters of databases' and buckets' URIs that hold no secret."""


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
    if masked(uri) != uri:
        raise InputError(
            f"{shown}: holds what may be a secret, and the plan is stored in a plain file; leave it out and set "
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
    """Return the URI with anything that may be a secret replaced by ***.

    That is user information before the last @ (a password may hold any character), every parameter that is not known
    to be harmless, as signed URLs hold keys under many names, and a fragment.
    """
    start, scheme_ends, rest = uri.partition("://")
    start, rest = (start, rest) if scheme_ends else ("", uri)
    kind = start.partition("+")[0].lower()
    is_path = not scheme_ends or kind in _PATHS
    user, at, host = rest.rpartition("@")
    # A database's user name alone is no secret; a server's may be a token, and in a path an @ is a letter.
    if at and user and not (scheme_ends and rest.startswith("/")) and (":" in user or kind in _BY_TOKEN):
        # With a ? before the @, what follows may be a piece of a parameter too.
        rest = "***" if re.search("[?#]", user) else f"***@{host}"
    rest, fragment, hidden = (rest, "", "") if is_path else rest.partition("#")
    rest, query, parameters = rest.partition("?")
    shown = "&".join(_masked_parameter(each, by_name=not scheme_ends) for each in parameters.split("&"))
    return f"{start}{scheme_ends}{rest}{query}{shown}{fragment}{hidden and '***'}"


def _masked_parameter(parameter: str, *, by_name: bool) -> str:
    """Return a parameter of a URI with its value masked; with `by_name` only if its name tells a secret, as in text
    that is perhaps no URI."""
    name, equals, value = parameter.partition("=")
    harmless = _SECRET_NAME.search(name) is None if by_name else _HARMLESS.fullmatch(name)
    if harmless or not parameter:
        return parameter
    return f"{name}{equals}***" if equals and value else "***"


_named: set[tuple[str, str | None, int | None]] = set()


def given_uri(uri: str) -> str:
    """Return an MLflow URI that the user of this process gave, absolute; credentials may go there from now on.

    Raises:
        InputError: as `check_mlflow_uri`.
    """
    checked = absolute_uri(uri)
    _named.add(_origin(checked))
    return checked


def is_named(uri: str) -> bool:
    """Return whether the user gave this address, now or in the environment; one that only a plan's file names may be
    a stranger's."""
    return _origin(uri) in _named or _origin(uri) == _origin(os.environ.get(VARIABLE, ""))


def _origin(uri: str) -> tuple[str, str | None, int | None]:
    """Return what answers at an address: protocol, host and port."""
    try:
        parts = urlsplit(uri)
        return parts.scheme.partition("+")[0], parts.hostname, parts.port
    except ValueError:
        return uri, None, None
