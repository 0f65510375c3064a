"""The files that go with a job: this project's own source as it is here, the search space, the user's own modules."""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from trainer.errors import InputError
from trainer.plugins import SentPlugin

_ROOT = Path(__file__).resolve().parents[2]

_SOURCE = {
    "search_spaces": ("**/*.py", "*.yaml", "studies/*.yaml"),
    "sweep": ("**/*.py", "report/*.html"),
    "trainer": ("**/*.py",),
}
"""The packages, and in each what an installation of it would hold and a cluster needs."""

_MOST_NAMED = 5


class Package(NamedTuple):
    """The content of a job's folder."""

    sizes: dict[str, int]
    """Bytes of each file, by its path in the folder."""
    brought: tuple[str, ...]
    """The files and modules of the user's own among them, by the names of the space's file and the top modules."""
    left_out: tuple[str, ...]
    """Files among the project's source that were not taken: links, hidden ones, ones that are not the project's own."""

    @property
    def summary(self) -> str:
        """One line that tells how much it is, and of whom."""
        names = ", ".join(("otsweep", *self.brought))
        return f"{len(self.sizes)} files, {sum(self.sizes.values()) / 1e6:.1f} MB: {names}"

    @property
    def warning(self) -> str:
        """One line that names what was left out; empty if that is nothing."""
        if not self.left_out:
            return ""
        more = len(self.left_out) - _MOST_NAMED
        names = ", ".join(self.left_out[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
        return f"not sent, since it is a link, hidden, or unknown to git or to the installation: {names}"


def pack(folder: Path, space_file: tuple[str, str] | None, plugins: Sequence[SentPlugin] = ()) -> Package:
    """Copy the project's source, as it is imported here, the space's file and the user's own modules into a folder.

    Only what belongs to the project is taken, whatever else lies beside it, and no link is followed.

    Raises:
        InputError: for a module of the user's own that is a link.
    """
    own, left_out = _own_files(_ROOT)
    texts = {name: (_ROOT / name).read_bytes() for name in own}
    for module in plugins:
        for name, text in module.files:
            _refuse_link(Path(module.place), name)
            texts[name] = text.encode()
    if space_file:
        texts[space_file[0]] = space_file[1].encode()
    for name, content in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    brought = (*([space_file[0]] if space_file else []), *(module.name for module in plugins))
    return Package({name: len(content) for name, content in texts.items()}, brought, tuple(left_out))


def _own_files(root: Path) -> tuple[list[str], list[str]]:
    """Return the paths below a folder of the project's own source files, and of what lies among them and is not."""
    found = sorted(path for package, kinds in _SOURCE.items() for kind in kinds for path in (root / package).glob(kind))
    listed = _listed_by_git(root) or _listed_by_installation(root)

    def is_own(path: Path) -> bool:
        name = path.relative_to(root)
        is_hidden = any(part.startswith(".") for part in name.parts)
        return path.is_file() and path.resolve() == path and not is_hidden and (not listed or str(name) in listed)

    own = [path for path in found if is_own(path)]
    return [str(path.relative_to(root)) for path in own], [
        str(path.relative_to(root)) for path in found if path not in own
    ]


def _listed_by_git(root: Path) -> Collection[str]:
    """Return the paths of the files that a clone's index names; nothing where git can't tell."""
    if not (root / ".git").exists():
        return ()
    command = ["git", "-C", str(root), "ls-files", "-z", "--", *_SOURCE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return set(done.stdout.split("\0")) - {""}


def _listed_by_installation(root: Path) -> Collection[str]:
    """Return the paths of the files that were installed into a folder; nothing for one that was not installed."""
    try:
        distribution = metadata.distribution("otsweep")
    except metadata.PackageNotFoundError:
        return ()
    is_here = Path(str(distribution.locate_file("sweep"))).resolve() == root / "sweep"
    return {str(file) for file in distribution.files or ()} if is_here else ()


def _refuse_link(place: Path, name: str) -> None:
    place = place.resolve()
    if (place / name).resolve() != place / name:
        raise InputError(f"{str(place / name)!r} is a link, or lies behind one; none is followed: put the file there")
