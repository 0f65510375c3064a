"""Check that every docstring begins with a sentence, or a noun phrase, that stands alone: `make lint` runs this.

A function's docstring begins with a verb in the imperative ("Return ...", "Write ..."); a property's, class's,
module's, field's or constant's with anything but a word that continues the name above it ("Of ...", "That ...").

Usage: python -m tests.docstrings [PATH ...]
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("search_spaces", "sweep", "trainer")

VERBS = set(Path(__file__).with_name("docstring_verbs.txt").read_text().split())
"""How a function's docstring may begin. A verb that is missing is added there."""

FRAGMENTS = {
    "also",
    "among",
    "and",
    "as",
    "at",
    "because",
    "before",
    "behind",
    "beside",
    "between",
    "but",
    "by",
    "during",
    "else",
    "even",
    "except",
    "from",
    "hence",
    "how",
    "if",
    "in",
    "instead",
    "like",
    "nor",
    "not",
    "of",
    "off",
    "on",
    "only",
    "or",
    "other",
    "otherwise",
    "out",
    "over",
    "rather",
    "since",
    "so",
    "than",
    "that",
    "then",
    "there",
    "therefore",
    "though",
    "thus",
    "till",
    "to",
    "told",
    "under",
    "unless",
    "until",
    "up",
    "upon",
    "what",
    "when",
    "where",
    "whether",
    "which",
    "while",
    "who",
    "whom",
    "whose",
    "why",
    "with",
    "within",
    "without",
    "yet",
}
"""How none may begin: such a phrase continues the name above it."""


def first_word(text: str) -> str:
    """Return the first word of a docstring, lower case; empty where it begins with code or a number."""
    found = re.match(r"[A-Za-z][A-Za-z'-]*", text.strip())
    return found[0].lower() if found else ""


def documented(tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """Yield line, text and whether it is a function's, of every docstring, attribute docstrings among them."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text is not None:
                function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
                decorators = {ast.unparse(each) for each in getattr(node, "decorator_list", ())}
                is_property = bool(decorators & {"property", "cached_property", "functools.cached_property"})
                yield node.body[0].lineno, text, function and not is_property
        body = getattr(node, "body", None)
        for before, after in zip(body, body[1:], strict=False) if isinstance(body, list) else ():
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if is_text and isinstance(after.value.value, str) and isinstance(before, (ast.Assign, ast.AnnAssign)):
                yield after.lineno, after.value.value, False


def complaints(path: Path) -> Iterator[str]:
    """Yield a line for every docstring of a file that begins as a fragment."""
    for line, text, function in documented(ast.parse(path.read_text())):
        word = first_word(text)
        first = text.strip().splitlines()[0] if text.strip() else ""
        if function and word not in VERBS:
            yield f"{path}:{line}: begin with a verb in the imperative: {first!r}"
        elif word in FRAGMENTS:
            yield f"{path}:{line}: begins as a fragment: {first!r}"


def main(words: list[str]) -> int:
    """Print every complaint; return 1 if there is any."""
    paths = [Path(word) for word in words] or [ROOT / package for package in PACKAGES]
    files = [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    found = [complaint for file in files for complaint in complaints(file)]
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
