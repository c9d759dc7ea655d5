"""Pictures that browsers sent, to draw from: in a folder of the output directory, named by their content."""

from __future__ import annotations

import hashlib
import re
import shutil
import threading
from http import HTTPStatus
from pathlib import Path
from typing import Any

from ultrapixel_jax.errors import UserError, one_line
from ultrapixel_jax.sampling import given
from ultrapixel_jax.web import reading
from ultrapixel_jax.web.server import RefusedError

FOLDER = "sent"
MAX_BYTES = 2 * 10**9
"""Of all of them; somebody has to make room then."""


class Sent:
    """The folder `FOLDER` of `output`."""

    def __init__(self, output: Path) -> None:
        self._folder = output / FOLDER
        self._lock = threading.Lock()

    def keep(self, file: Path) -> dict[str, Any]:
        """Keep the picture in `file`; returns its name and size, as it is upright.

        Raises:
            UserError: it is no picture, is damaged, too small or too large, or the folder is full.
        """
        kind = reading.check_given(file)
        try:
            picture = given.picture(file)
        except UserError as error:
            raise UserError(one_line(error).replace(repr(str(file)), "that was sent")) from error
        with file.open("rb") as data:
            checksum = hashlib.file_digest(data, "sha256").hexdigest()[:16]
        name = f"{checksum}.{kind}"
        with self._lock:
            if not (self._folder / name).is_file():
                self._folder.mkdir(exist_ok=True)
                used = sum(path.stat().st_size for path in self._folder.iterdir())
                if used + file.stat().st_size > MAX_BYTES:
                    raise UserError(
                        f"{used / 1e9:.1f} GB of pictures were sent already; remove some from {FOLDER}/ in "
                        "the output directory"
                    )
                part = self._folder / f".{name}.part"
                shutil.copyfile(file, part)
                part.replace(self._folder / name)
        return {"source": f"{FOLDER}/{name}", "height": picture.height, "width": picture.width}

    def path(self, name: str) -> Path:
        """Where the picture called `name` lies.

        Raises:
            RefusedError: there is none.
        """
        if re.fullmatch(r"[0-9a-f]{16}\.[a-z]{3,4}", name) and (found := self._folder / name).is_file():
            return found
        raise RefusedError(HTTPStatus.NOT_FOUND, f"there is no picture {name!r:.80} that was sent")
