"""What a browser is told of files: their names, not where they are."""

from __future__ import annotations

import re
from pathlib import Path

from ultrapixel_jax.errors import one_line

_PATH = re.compile(
    r"""(?P<quote>['"])(?P<quoted>/(?:(?!(?P=quote)).)+)(?P=quote)"""
    r"""|(?<![\w/:.~-])(?P<bare>/[^\s'"`,;:()]+)"""
)


def by_name(words: object) -> str:
    """`words` on one line, files and folders of this machine by name instead of by path."""

    def shortened(found: re.Match[str]) -> str:
        path = found["quoted"] or found["bare"]
        here = Path(path).parts[1:2] and Path("/", Path(path).parts[1]).exists()
        quote = found["quote"] or ""
        return f"{quote}{Path(path).name}{quote}" if here else found[0]

    return _PATH.sub(shortened, one_line(words))
