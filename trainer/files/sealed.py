"""Content with its SHA-256, so that damage is known before anything is parsed; in three formats.

`seal` puts the digest before the bytes (checkpoints), `seal_json` among a mapping's keys (results of audits),
`write_with_checksum` into a file beside, so that the content can be memory-mapped (the cache).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.files.atomic import write_whole

SEAL = "sha256"
"""Key of the digest in sealed JSON."""

_CHECKSUM_SUFFIX = ".sha256"

_DIGEST_SIZE = hashlib.sha256().digest_size


def seal(payload: bytes) -> bytes:
    """Return the payload behind its digest."""
    return hashlib.sha256(payload).digest() + payload


def unseal(content: bytes) -> bytes:
    """Return the payload that `seal` was given.

    Raises:
        ValueError: if the digest does not fit.
    """
    digest, payload = content[:_DIGEST_SIZE], content[_DIGEST_SIZE:]
    if hashlib.sha256(payload).digest() != digest:
        raise ValueError("its checksum does not fit")
    return payload


def seal_json(content: Mapping[str, Any]) -> bytes:
    """Return a mapping as JSON that holds its own digest."""
    return json.dumps({**content, SEAL: _json_digest(content)}, indent=1).encode()


def unseal_json(text: bytes) -> dict[str, Any]:
    """Return the mapping that `seal_json` was given.

    Raises:
        ValueError: for anything else.
    """
    content = json.loads(text)
    if not isinstance(content, dict) or content.pop(SEAL, None) != _json_digest(content):
        raise ValueError("its checksum does not fit")
    return content


def _json_digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_with_checksum(path: Path, content: bytes | memoryview) -> None:
    """Write a file, then its digest beside it."""
    write_whole(path, content)
    write_whole(_checksum_file(path), hashlib.sha256(content).hexdigest().encode())


def fits_checksum(path: Path) -> bool:
    """Return whether a file and its digest are there and fit."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        return found == _checksum_file(path).read_text(errors="replace")
    except FileNotFoundError:
        return False


def _checksum_file(path: Path) -> Path:
    return path.with_suffix(_CHECKSUM_SUFFIX)
