"""A parser of command lines that answers a wrong word with the nearest right one."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from trainer.errors import InputError
from trainer.words import did_you_mean


class Parser(argparse.ArgumentParser):
    """argparse's parser, but a mistake raises one line that names the nearest right word, without the whole usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")

    def parse_all(self, argv: list[str] | None) -> argparse.Namespace:
        """Parse all words, as `parse_args` does; the nearest option is one of `arguments.parser` if that is set."""
        arguments, unknown = self.parse_known_args(argv)
        known = getattr(arguments, "parser", self).options()
        if unknown and "--set" in known and "=" in unknown[0] and not unknown[0].startswith("-"):
            raise InputError(f"unexpected {unknown[0]!r}: write --set {unknown[0]}")
        if unknown:
            raise InputError(f"unknown option {unknown[0]!r}: {did_you_mean(unknown[0], known)}")
        return arguments

    def options(self) -> list[str]:
        return [word for action in self._actions for word in action.option_strings if word.startswith("--")]
