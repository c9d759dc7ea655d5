"""What each address answers.

- ``GET /``: the page; ``/page/…`` its parts
- ``GET /api/model``: what the model is, and what can be asked of it
- ``GET /api/plan?height=…&width=…``: the shapes of a picture
- ``GET /api/events``: the queue, after every change (server-sent events)
- ``POST /api/jobs``: a request; ``DELETE /api/jobs/ID`` cancels it
- ``GET /api/jobs/ID/KIND/N``: a preview
- ``GET /api/pictures?start=…``: the gallery; ``/api/pictures/NAME`` one picture's settings
- ``POST /api/settings?name=…``: the settings of a PNG that is sent
- ``GET /api/loras/NAME``: the new words that a LoRA brings
- ``POST /api/sent``: a picture to draw from; ``GET /sent/NAME``
- ``GET /pictures/NAME``: the file; ``/small/SIDE/VERSION/NAME`` a small one
- ``GET /tiles/VERSION/NAME.dzi``: Deep Zoom; ``/tiles/VERSION/NAME_files/LEVEL/COLUMN_ROW.png``
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from importlib import resources
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

from ultrapixel_jax.config import HR_FIELDS, MAX_STEPS, SamplerName, ScheduleName
from ultrapixel_jax.config.version import __version__
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sampling import given
from ultrapixel_jax.sampling.requests import MAX_SEED, SETTINGS, SETTINGS_B
from ultrapixel_jax.sizes import LR_SIDE, MAX_SIDE, MIN_SIDE, Bucket, outside_training
from ultrapixel_jax.web import asks, reading, steering, tiles
from ultrapixel_jax.web.server import Answer, Asked, RefusedError
from ultrapixel_jax.web.steering import Shelf
from ultrapixel_jax.web.studio import Studio

MAX_UPLOAD = 128 * 10**6
"""Bytes of a picture that is sent: one of 6144² that no compressor can shrink has 113 MB."""
UPLOADS = 2
"""Pictures that are taken at once."""
HEARTBEAT = 15.0
"""Seconds between two signs of life to a page that waits, which is how its going away is noticed."""
GIVEN = tuple(f"image/{name.lower()}" for name in reading.GIVEN)
"""Types of pictures that can be drawn from."""
FOR_GOOD = {"Cache-Control": "private, max-age=31536000, immutable"}
"""Of what has its version in its address."""
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml",
         ".txt": "text/plain"}  # fmt: skip
"""Types of the page's parts, all of them UTF-8."""


class Routes:
    """Answers with a studio and a shelf.

    Args:
        studio: what draws.
        shelf: pictures that were drawn or sent.
        name: what the page calls the model.
    """

    def __init__(self, studio: Studio, shelf: Shelf, *, name: str) -> None:
        self._studio, self._shelf, self._gallery, self._name = studio, shelf, shelf.gallery, name
        self._tiles = tiles.Tiles()
        self._uploads = threading.BoundedSemaphore(UPLOADS)
        self._page = _page()

    def answer(self, asked: Asked) -> Answer:
        """As `server.Answering`."""
        match asked.method, *asked.path:
            case "GET", "":
                return self._part("index.html", asked)
            case "GET", "page", name:
                return self._part(name, asked)
            case "GET", "api", "model":
                return Answer.json(self._model())
            case "GET", "api", "plan":
                return Answer.json(self._plan(asked))
            case "GET", "api", "events":
                return Answer(self._events(_browser(asked)), "text/event-stream")
            case "POST", "api", "jobs":
                return Answer.json(
                    {"id": self._studio.ask(asks.read(asked.json(), self._shelf), _browser(asked))}
                )
            case "DELETE", "api", "jobs", name:
                self._studio.cancel(name)
                return Answer.json({})
            case "GET", "api", "jobs", name, kind, place:
                return Answer(self._studio.preview(name, kind, _number(place)), "image/webp", FOR_GOOD)
            case "GET", "api", "pictures":
                return Answer.json(self._gallery.listed(_number(asked.query.get("start", "0"))))
            case "GET", "api", "pictures", name:
                return Answer.json(self._described(self._gallery.path(name), name))
            case "POST", "api", "settings":
                return Answer.json(self._settings(asked))
            case "GET", "api", "loras", name:
                return Answer.json({"words": self._words(self._shelf.lora(name))})
            case "POST", "api", "sent":
                return Answer.json(self._with_upload(asked, self._shelf.sent.keep, *GIVEN))
            case "GET", "sent", name:
                path = self._shelf.sent.path(name)
                return Answer(path, f"image/{path.suffix[1:]}", FOR_GOOD)
            case "GET", "pictures", name:
                shown = f"inline; filename*=UTF-8''{quote(name)}"
                return Answer(self._gallery.path(name), "image/png", {"Content-Disposition": shown})
            case "GET", "small", side, version, name:
                item = self._version(name, version)
                return Answer(self._gallery.small(item, _number(side)), "image/webp", FOR_GOOD)
            case "GET", "tiles", version, *rest:
                return self._tile(version, rest)
            case (("GET" | "POST" | "DELETE"), *_):
                raise RefusedError(HTTPStatus.NOT_FOUND, "there is nothing at this address")
            case _:
                raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, "that cannot be done here")

    # ------------------------------------------------------------------------ the page

    def _part(self, name: str, asked: Asked) -> Answer:
        if name not in self._page:
            raise RefusedError(HTTPStatus.NOT_FOUND, "the page has no such part")
        data, kind = self._page[name], f"{KINDS[Path(name).suffix]}; charset=utf-8"
        tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        headers = {"Cache-Control": "no-cache", "ETag": tag}
        if asked.headers.get("If-None-Match") == tag:
            return Answer(b"", kind, headers, HTTPStatus.NOT_MODIFIED)
        return Answer(data, kind, headers)

    def _model(self) -> dict[str, Any]:
        model = self._studio.model
        cascade, config = model.cascade, model.config
        defaults = dataclasses.asdict(config.sampling_c)
        defaults |= {f"{name}_b": value for name, value in dataclasses.asdict(config.sampling_b).items()}
        names = [*SETTINGS, *([] if cascade.preview else SETTINGS_B)]
        if config.guidance is None:
            names = [name for name in names if name not in HR_FIELDS]
        side = max(MIN_SIDE, 1024 if cascade.lr_side == LR_SIDE else 64 * cascade.lr_side)
        return {
            "name": self._name,
            "version": __version__,
            "dtype": cascade.dtype,
            "mesh": {} if cascade.mesh is None else {a: n for a, n in cascade.mesh.shape.items() if n > 1},
            "checkpoint": cascade.identity,
            "preview": cascade.preview,
            "guided": config.guidance is not None,
            "defaults": {name: defaults[name] for name in names},
            "choices": {"sampler": get_args(SamplerName), "schedule": get_args(ScheduleName)},
            "side": side,
            "limits": {
                "min_side": MIN_SIDE, "max_side": MAX_SIDE, "steps": MAX_STEPS, "seed": MAX_SEED,
                "prompt": asks.MAX_PROMPT, "images": asks.MAX_IMAGES, "batch": asks.MAX_BATCH,
                "upload": MAX_UPLOAD,
            },
            "roles": steering.available(),
            "loras": self._shelf.loras,
            "output": self._gallery.directory.name or str(self._gallery.directory),
        }  # fmt: skip

    def _plan(self, asked: Asked) -> dict[str, Any]:
        height, width = (_number(asked.query.get(name, "")) for name in ("height", "width"))
        bucket = Bucket.of(height, width, self._studio.model.cascade.lr_side)
        guidance = self._studio.model.config.guidance
        known = guidance and outside_training(height, width, guidance.trained_sides, guidance.trained_ratio)
        return dataclasses.asdict(bucket) | {"guided": guidance is not None, "doubt": known or ""}

    def _words(self, lora: Path) -> tuple[str | None, ...]:
        """New words that the file brings; None for one without its name."""
        file = given.file(lora)
        return self._studio.model.cascade.personal.words(file.path, file.checksum)

    def _events(self, browser: str) -> Iterator[bytes]:
        yield b"retry: 1000\n\n"
        for shown in self._studio.changes(browser, HEARTBEAT):
            yield b": still here\n\n" if shown is None else f"data: {json.dumps(shown)}\n\n".encode()

    # ------------------------------------------------------------------------ pictures

    def _version(self, name: str, version: str) -> Any:
        item = self._gallery.item(name)
        if item.version != version:
            raise RefusedError(HTTPStatus.GONE, f"{name!r:.80} is another picture now; load the list again")
        return item

    def _tile(self, version: str, rest: list[str]) -> Answer:
        match rest:
            case [name] if name.endswith(".dzi"):
                item = self._version(name.removesuffix(".dzi"), version)
                found = reading.head(self._gallery.path(item.name))
                return Answer(tiles.description(found.width, found.height), "application/xml", FOR_GOOD)
            case [folder, level, piece] if folder.endswith("_files"):
                item = self._version(folder.removesuffix("_files"), version)
                place = re.fullmatch(r"([0-9]{1,4})_([0-9]{1,4})\.png", piece)
                if place is None:
                    raise RefusedError(HTTPStatus.NOT_FOUND, "the picture has no such piece")
                at = _number(level), int(place[1]), int(place[2])
                data = self._tiles.cut(self._gallery.path(item.name), version, *at)
                return Answer(data, "image/png", FOR_GOOD)
        raise RefusedError(HTTPStatus.NOT_FOUND, "there is nothing at this address")

    def _settings(self, asked: Asked) -> dict[str, Any]:
        name = asked.query.get("name", "the picture")[:200]
        return self._with_upload(asked, lambda path: self._described(path, name), "image/png")

    def _described(self, path: Path, name: str) -> dict[str, Any]:
        """The settings of a picture, with what steered it as far as that is here."""
        found = reading.settings(path, name)
        steered = steering.guides_of(found.pop("conditions"), self._shelf)
        found["asked"] |= {key: steered[key] for key in asks.STEERING}
        return found | {"missing": steered["missing"]}

    def _with_upload(self, asked: Asked, use: Callable[[Path], Any], *kinds: str) -> Any:
        """What `use` makes of the picture of one of `kinds` that is sent, which is a file for that long."""
        asked.check_body(kinds, MAX_UPLOAD)
        if not self._uploads.acquire(blocking=False):
            raise RefusedError(HTTPStatus.TOO_MANY_REQUESTS, "other pictures are being sent; try again")
        try:
            with tempfile.TemporaryDirectory(prefix="ultrapixel-") as directory:
                path = Path(directory) / "sent.png"
                with path.open("xb") as file:
                    asked.save(file)
                return use(path)
        except (ConnectionError, TimeoutError):
            raise
        except OSError as error:
            raise UserError(f"the picture cannot be stored: {error.strerror}") from error
        finally:
            self._uploads.release()


def _page() -> dict[str, bytes]:
    """Every part of the page, by its name."""
    return {
        part.name: part.read_bytes()
        for part in (resources.files("ultrapixel_jax.web") / "page").iterdir()
        if Path(part.name).suffix in KINDS
    }


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise UserError(f"{text!r:.80} is not a whole number")
    return int(text)


def _browser(asked: Asked) -> str:
    """The word by which a browser is known."""
    return asked.query.get("browser", "")[:64]
