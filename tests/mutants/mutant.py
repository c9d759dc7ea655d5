"""One change to one line of the program that some test has to notice."""

from __future__ import annotations

import dataclasses
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A fault to be put into a copy of the program."""

    name: str
    file: str
    """From `ultrapixel_jax/` on."""
    old: str
    """What is replaced; it occurs in the file exactly once."""
    new: str
    tests: tuple[str, ...] = ()
    """The narrowest tests that notice: files, or single tests as pytest names them."""
    equivalent: str = ""
    """Why no test can notice, where that is so."""

    @property
    def path(self) -> Path:
        """The file, from the project's root on."""
        return Path("ultrapixel_jax") / self.file

    def applied(self, text: str) -> str:
        """The changed text of the file.

        Raises:
            ValueError: what is to be replaced is not there exactly once.
        """
        if (count := text.count(self.old)) != 1:
            raise ValueError(
                f"mutant {self.name!r} replaces {self.old!r}, which occurs {count} times in {self.path}"
            )
        return text.replace(self.old, self.new)
