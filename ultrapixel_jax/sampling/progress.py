"""What ``sample.py`` shows while it works."""

from __future__ import annotations

import sys
from pathlib import Path


class Progress:
    """A bar over pictures and one over the steps of the stage at work, where stderr is a terminal."""

    def __init__(self, pictures: int, done: int, *, quiet: bool) -> None:
        from tqdm import tqdm

        self.visible = not quiet and sys.stderr.isatty()
        hide = not self.visible
        self._pictures = tqdm(total=pictures, initial=done, unit="picture", disable=hide, position=0)
        self._steps = tqdm(total=1, unit="step", disable=hide, position=1, leave=False)
        self._stage = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._steps.close()
        self._pictures.close()

    def __call__(self, stage: str, done: int, total: int, *_: object) -> None:
        """Show that `done` of `total` steps of `stage` are done."""
        if stage != self._stage or done < self._steps.n:
            self._stage = stage
            self._steps.set_description(stage, refresh=False)
            self._steps.reset(total)
        self._steps.update(done - self._steps.n)

    def picture(self, path: Path) -> None:
        """Count one picture and print where it lies."""
        self._pictures.update()
        self.write(str(path))

    def write(self, text: str) -> None:
        """Print a line on stdout above the bars."""
        self._pictures.write(text, file=sys.stdout)
