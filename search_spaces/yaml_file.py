"""Small YAML files written by hand: read with the line of every value, and written so that they read back the same.

The dialect is a safe subset. Scalars are those of YAML 1.2's core schema (`1e-3` is a number, `no` and `1:30` are
words), and fractions such as `8/255`, which are numbers. What a short file of settings never needs is refused: anchors
and aliases (a few lines of them can stand for gigabytes), tags, more than one document, deep nesting, large files.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from yaml.composer import ComposerError
from yaml.reader import ReaderError

from trainer.errors import InputError
from trainer.number import DECIMAL, FRACTION, Fraction, parse_number
from trainer.words import did_you_mean

LARGEST_FILE = 256 * 1024
LONGEST_TEXT = 5000
_LONGEST_INTEGER = 18
"""Most digits of an integer; a longer one overflows a float or a file format later on."""
_DEEPEST = 12


class Located(NamedTuple):
    """A value and the place that it was read from."""

    value: Any
    """None, bool, int, float, str, list[Located] or dict[str, Located]."""

    where: str
    """File and line as shown to the user."""

    def error(self, message: str) -> InputError:
        """Return the error of a mistake at this place."""
        return InputError(f"{self.where}: {message}")

    def plain(self) -> Any:
        """Return the value without places."""
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        return self.value

    def mapping(self, what: str, *, known: list[str] | None = None) -> dict[str, Located]:
        """Return the entries of a mapping after a check that its keys are among `known`."""
        if not isinstance(self.value, dict):
            raise self.error(f"{what} must be a mapping (key: value), not {_describe(self.value)}")
        for key, item in self.value.items():
            if known is not None and key not in known:
                raise item.error(f"unknown key {key!r} in {what}: {did_you_mean(key, known)}")
        return self.value

    def items(self, what: str) -> list[Located]:
        """Return the entries of a list."""
        if not isinstance(self.value, list):
            raise self.error(f"{what} must be a list, not {_describe(self.value)}")
        return self.value

    def word(self, what: str) -> str:
        """Return a text."""
        if not isinstance(self.value, str):
            raise self.error(f"{what} must be a word, not {_describe(self.value)}")
        return self.value

    @contextmanager
    def error_context(self) -> Iterator[None]:
        """Put this place before the message of an `InputError` raised inside."""
        try:
            yield
        except InputError as error:
            raise self.error(str(error)) from None


def _describe(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "empty" if value is None else repr(value)


def locate(plain: Any, where: str) -> Located:
    """Return plain values as if read from one place."""
    if isinstance(plain, dict):
        return Located({key: locate(item, where) for key, item in plain.items()}, where)
    if isinstance(plain, (list, tuple)):
        return Located([locate(item, where) for item in plain], where)
    return Located(plain, where)


def read_yaml(path: Path) -> Located:
    """Return the values of a YAML file, or of JSON, with their lines.

    Raises:
        InputError: for anything that is not one small, plain YAML document; with file and, where there is one, line.
    """
    return _parse(read_text(path), str(path))


def read_text(path: Path) -> str:
    """Return the text of a small file in UTF-8, or in UTF-16 if it says so.

    Raises:
        InputError: for anything else.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder, not a file")
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        with path.open("rb") as file:
            raw = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror}") from None
    return _decode(raw, str(path))


def parse_yaml(raw: bytes, name: str) -> Located:
    """Return the values of YAML text, encoded as `read_text` says; `name` stands for the file in messages.

    Raises:
        InputError: as `read_yaml`.
    """
    return _parse(_decode(raw, name), name)


def _decode(raw: bytes, name: str) -> str:
    if len(raw) > LARGEST_FILE:
        raise InputError(f"{name}: larger than {LARGEST_FILE // 1024} KiB, so not a file of settings")
    encoding = "UTF-16" if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "UTF-8"
    try:
        text = raw.decode(encoding).removeprefix("\ufeff")
        if "\0" in text:  # of a workbook, an archive, Parquet, or UTF-16 without its mark
            line = text.count("\n", 0, text.index("\0")) + 1
            raise InputError(f"{name}, line {line}: holds a zero byte: is no text; save it as text in UTF-8")
        return text
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name}, line {line}: byte 0x{raw[error.start]:02x} is not {encoding} text") from None


def _parse(text: str, name: str) -> Located:
    if ("\t" in text or "\\u" in text) and _is_json(text):
        text = text.replace("\t", " ")  # allowed between the words of JSON, where PyYAML refuses it
        text = _SURROGATES.sub(lambda found: json.loads(f'"{found[0]}"'), text)
    root = _compose(text, name)
    if root is None:
        raise InputError(f"{name}: is empty")
    return _convert(root, name, root.start_mark.line)


_SURROGATES = re.compile(r"(?<!\\)(?:\\\\)*\\u[dD][89abAB]..\\u[dD][c-fC-F]..")
"""Two escapes by which JSON writes one character beyond the first 65,536; YAML reads two characters."""


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, _Loader)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(f"{name}, line {line}: holds a character that can't stand in a text file") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{name}{place}: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # A directive's version and an escape such as "\UFFFFFFFF" are turned into numbers without a check.
        raise InputError(f"{name}: not YAML: {error}") from None


class _Loader(yaml.SafeLoader):
    """A loader that composes plain nodes only, to a bounded depth: no YAML bomb, no recursion error."""

    yaml_implicit_resolvers: dict = {}
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if event.anchor is not None:
            raise ComposerError(problem="anchors and aliases are refused", problem_mark=event.start_mark)
        if event.tag is not None:
            raise ComposerError(problem=f"the tag {event.tag} is refused", problem_mark=event.start_mark)
        if self.depth == _DEEPEST:
            raise ComposerError(problem="nested too deeply", problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes what YAML 1.1 or this dialect would misread, and never writes an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_PREFIX = "tag:yaml.org,2002:"
_NUMBER_STARTS = list("-+.0123456789")
_Loader.add_implicit_resolver(_PREFIX + "null", re.compile(r"^(null|Null|NULL|~|)$"), ["n", "N", "~", ""])
_Loader.add_implicit_resolver(_PREFIX + "bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tfTF"))
_Loader.add_implicit_resolver(_PREFIX + "int", re.compile(r"^[-+]?(0|[1-9][0-9]*)$"), _NUMBER_STARTS)
for _dialect in (_Loader, _Dumper):
    for _form in (DECIMAL, FRACTION):
        _dialect.add_implicit_resolver(_PREFIX + "float", re.compile(rf"^(?:{_form.pattern})$"), _NUMBER_STARTS)
_Dumper.add_representer(Fraction, lambda dumper, number: dumper.represent_scalar(_PREFIX + "float", number.text))


def _convert(node: yaml.Node, name: str, line: int) -> Located:
    """Return a node as plain values; `line` counts from 0, and a mapping's values stand at the lines of their keys."""
    where = f"{name}, line {line + 1}"
    if isinstance(node, yaml.MappingNode):
        return Located(_convert_mapping(node, name), where)
    if isinstance(node, yaml.SequenceNode):
        return Located([_convert(item, name, item.start_mark.line) for item in node.value], where)
    return Located(_scalar(node, where), where)


def _convert_mapping(node: yaml.MappingNode, name: str) -> dict[str, Located]:
    entries: dict[str, Located] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line
        where = f"{name}, line {line + 1}"
        key = _scalar(key_node, where) if isinstance(key_node, yaml.ScalarNode) else None
        if not isinstance(key, str):
            shown = key_node.value[:40] if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
            raise InputError(f"{where}: a key must be a word, not {shown or 'empty'}")
        if key in entries:
            raise InputError(f"{where}: {key!r} stands twice; the first is at {entries[key].where.rpartition(', ')[2]}")
        entries[key] = _convert(value_node, name, line)
    return entries


def _scalar(node: yaml.Node, where: str) -> None | bool | int | float | str:
    text: str = node.value
    if len(text) > LONGEST_TEXT:
        raise InputError(f"{where}: a text of {len(text)} characters; at most {LONGEST_TEXT} are read")
    if not all(character.isprintable() or character.isspace() for character in text):
        raise InputError(f"{where}: {text!r} holds a character that can't be printed")
    match node.tag.removeprefix(_PREFIX):
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return _whole_number(text, where)
        case "float":
            return _finite_number(text, where)
    return text


def _whole_number(text: str, where: str) -> int:
    if len(text.lstrip("+-")) > _LONGEST_INTEGER:
        raise InputError(
            f"{where}: {text[:_LONGEST_INTEGER]}...: a number of at most {_LONGEST_INTEGER} digits is read"
        )
    return int(text)


def _finite_number(text: str, where: str) -> float:
    number = parse_number(text)
    if isinstance(number, str) or not math.isfinite(number):
        raise InputError(f"{where}: {text} is not a finite number")
    return number


def dump_yaml(plain: Any) -> str:
    """Return plain values as text that `parse_yaml` gives back exactly, and any YAML reader but for fractions."""
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
