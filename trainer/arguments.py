"""TODO one line."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NoReturn

from trainer.errors import InputError
from trainer.words import did_you_mean

if TYPE_CHECKING:
    pass


class Parser(argparse.ArgumentParser):
    """argparse, with the nearest right word for a wrong one, and one line instead of the whole usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")

    def parse_all(self, argv: list[str] | None) -> argparse.Namespace:
        """As `parse_args`; an unknown word is blamed on the subcommand's parser where `arguments.parser` names one."""
        arguments, unknown = self.parse_known_args(argv)
        known = getattr(arguments, "parser", self).options()
        if unknown and "--set" in known and "=" in unknown[0] and not unknown[0].startswith("-"):
            raise InputError(f"unexpected {unknown[0]!r}: write --set {unknown[0]}")
        if unknown:
            raise InputError(f"unknown option {unknown[0]!r}: {did_you_mean(unknown[0], known)}")
        return arguments

    def options(self) -> list[str]:
        return [word for action in self._actions for word in action.option_strings if word.startswith("--")]
