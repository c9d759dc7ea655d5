"""The queue, and the thread that draws: one model, one request after the other, whoever asked."""

from __future__ import annotations

import dataclasses
import io
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from PIL import Image

from ultrapixel_jax import UltraPixel
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sampling import effects, pictures
from ultrapixel_jax.sampling.requests import Request, plan, slug
from ultrapixel_jax.web.asks import Ask
from ultrapixel_jax.web.gallery import Gallery
from ultrapixel_jax.web.jobs import Job
from ultrapixel_jax.web.pace import Load, Pace
from ultrapixel_jax.web.server import RefusedError

MAX_WAITING = 32
"""Requests in the queue."""
REMEMBERED = 12
"""Finished requests that are still shown."""
PREVIEW_SHARE = 0.15
"""Share of the time that previews may take."""
KINDS = {"C low": "plan", "C high": "large"}
"""Stages whose latents are shown, and as what."""


class CancelledError(Exception):
    """Somebody no longer wants the picture at work."""


class Studio:
    """The model with its queue.

    As a context manager it draws; at the end the request at work is cancelled, and waited for.

    Args:
        model: what draws.
        gallery: where pictures go.
        tile: as in `UltraPixel.draw`.
        decode_memory: as there.
    """

    def __init__(
        self, model: UltraPixel, gallery: Gallery, *, tile: int | None = None, decode_memory: float = 4.0
    ) -> None:
        self.model, self.gallery, self.pace = model, gallery, Pace()
        self._tile, self._decode_memory = tile, decode_memory
        self._jobs: list[Job] = []
        self._changed = threading.Condition()
        self._version = 0
        self._open = True
        self._shows = True
        self._thread = threading.Thread(target=self._work, name="studio", daemon=True)

    def __enter__(self) -> Studio:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changing():
            self._open = False
            for job in self._jobs:
                job.cancelled.set()
        self._thread.join()

    # ------------------------------------------------------------------------ for browsers

    def ask(self, ask: Ask, browser: str) -> str:
        """Put `ask` into the queue; returns the id of its job.

        Raises:
            UserError: the model cannot draw that.
            RefusedError: the queue is full.
        """
        requests = self._requests(ask)
        batch_size = self.model.device_batch(ask.batch_size)
        batches = len(plan(requests, batch_size, self.model.cascade.lr_side))
        load = Load(self._steps(requests[0]), requests[0].height * requests[0].width, batch_size)
        job = Job(ask, browser, len(requests), load, batches, self._notes(ask, requests, batch_size))
        with self._changing():
            if sum(not job.over for job in self._jobs) >= MAX_WAITING:
                raise RefusedError(
                    HTTPStatus.TOO_MANY_REQUESTS, f"{MAX_WAITING} requests wait already; try later"
                )
            self._jobs.append(job)
        return job.id

    def cancel(self, name: str) -> None:
        """Take the job of id `name` out of the queue, or stop drawing it at its next step.

        Raises:
            RefusedError: there is none.
        """
        job = self._job(name)
        with self._changing():
            job.cancelled.set()
            if job.state == "waiting":
                job.state = "cancelled"

    def preview(self, name: str, kind: str, place: int) -> bytes:
        """A small picture of what a job is drawing, WebP.

        Raises:
            RefusedError: there is none.
        """
        images = self._job(name).previews.get(kind, [])
        if not 0 <= place < len(images):
            raise RefusedError(HTTPStatus.NOT_FOUND, "there is no such preview")
        return images[place]

    def shown(self, browser: str) -> dict[str, Any]:
        """All that `browser` is told: the queue in its order, then what is finished, the last first."""
        with self._changed:
            waiting = [job.shown(self.pace, browser) for job in self._jobs if not job.over]
            over = [job.shown(self.pace, browser) for job in self._jobs[::-1] if job.over]
            ahead: float | None = 0.0
            for place, job in enumerate(waiting):
                job["place"], job["wait"] = place, ahead
                ahead = None if ahead is None or job["seconds"] is None else ahead + job["seconds"]
            return {"jobs": waiting + over, "version": self._version}

    def changes(self, browser: str, patience: float, spacing: float = 0.1) -> Iterator[dict[str, Any] | None]:
        """`shown` now and after every change, at most every `spacing` seconds; None after `patience` seconds
        without any. Ends with the studio.
        """
        seen = -1
        while self._open:
            with self._changed:
                self._changed.wait_for(lambda seen=seen: self._version != seen or not self._open, patience)
                new = self._version != seen
                seen = self._version
            yield self.shown(browser) if new else None
            time.sleep(spacing)

    # ------------------------------------------------------------------------ inside

    def _changing(self) -> _Changing:
        return _Changing(self)

    def _job(self, name: str) -> Job:
        with self._changed:
            for job in self._jobs:
                if job.id == name:
                    return job
        raise RefusedError(HTTPStatus.NOT_FOUND, "that request is not known any more")

    def _requests(self, ask: Ask) -> list[Request]:
        requests = self.model.requests([ask.entry])
        return [dataclasses.replace(r, name=f"{slug(r.prompt)}-{r.seed}") for r in requests]

    def _steps(self, request: Request) -> dict[str, int]:
        guided, preview = self.model.config.guidance is not None, self.model.cascade.preview
        steps = {"C low": request.stage_c.steps} if guided else {}
        steps["C high"] = request.stage_c.steps
        return steps if preview else {**steps, "B": request.stage_b.steps, "A": 1}

    def _notes(self, ask: Ask, requests: Sequence[Request], batch_size: int) -> list[str]:
        notes = [f"{line:.300}" for line in self.model.doubts(requests)]
        assert isinstance(ask.entry.conditions, Mapping)
        given = {*ask.entry.settings, *ask.entry.conditions}
        given |= {"negative_prompt"} if ask.entry.negative_prompt else set()
        situation = effects.Situation(
            given, (), requests,
            preview=self.model.cascade.preview, guided=self.model.config.guidance is not None,
        )  # fmt: skip
        if batch_size != ask.batch_size:
            notes.append(f"{batch_size} pictures are drawn at once, a multiple of the mesh's data·fsdp")
        return notes + effects.without_effect(situation)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._open or self._next() is not None)
                if not self._open:
                    return
                job = self._next()
            assert job is not None
            with self._changing():
                job.state, job.began = "drawing", time.monotonic()
            state, error = "done", ""
            try:
                self._draw(job)
            except CancelledError:
                state = "cancelled"
            except UserError as fault:
                state, error = "failed", str(fault)
            except Exception as fault:  # of this request alone: the next ones are drawn
                print(f"error: {job.ask.entry.prompt!r:.80} failed", file=sys.stderr)
                traceback.print_exc()
                state, error = "failed", f"a fault of the program's: {type(fault).__name__}: {fault!s:.300}"
            with self._changing():
                job.state, job.error = state, error
                job.stage, job.took = None, time.monotonic() - job.began
                over = [job for job in self._jobs if job.over]
                for old in over[: max(0, len(over) - REMEMBERED)]:
                    self._jobs.remove(old)

    def _next(self) -> Job | None:
        return next((job for job in self._jobs if job.state == "waiting"), None)

    def _draw(self, job: Job) -> None:
        requests = self._requests(job.ask)
        batch_size = self.model.device_batch(job.ask.batch_size)
        drawn_with: dict[str, Any] = {
            "batch_size": batch_size, "tile": self._tile, "decode_memory": self._decode_memory,
        }  # fmt: skip
        the_run = self.model.run(**drawn_with)
        todo = []
        for request in requests:
            found = pictures.find(
                self.gallery.directory, request.file_name, pictures.describe(request, the_run)
            )
            if found is None:
                todo.append(request)
                continue
            with self._changing():
                job.pictures.append(found.name)
                job.notes.append(f"{found.name} was there already: the same model, prompt, seed and settings")
        watch = _Watch(self, job)
        for done, (place, picture) in enumerate(self.model.draw(todo, **drawn_with, callback=watch), 1):
            watch.decoded()
            saved = pictures.save_picture(self.gallery.directory, todo[place].file_name, picture)
            self.gallery.remember(saved.path.name, picture)
            with self._changing():
                job.pictures.append(saved.path.name)
                job.batches_done = done // batch_size
                job.stage, job.step = None, 0
            if job.cancelled.is_set() and done < len(todo):
                raise CancelledError


class _Changing:
    """Changes what is shown: holds the lock, and wakes who waits for changes."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    def __enter__(self) -> None:
        self._studio._changed.acquire()

    def __exit__(self, *_: object) -> None:
        self._studio._version += 1
        self._studio._changed.notify_all()
        self._studio._changed.release()


class _Watch:
    """Told of every step of a job: measures, shows previews, and stops it when it was cancelled."""

    def __init__(self, studio: Studio, job: Job) -> None:
        self._studio, self._job = studio, job
        self._last = time.monotonic()
        self._next_preview = 0.0

    def __call__(self, stage: str, done: int, steps: int, preview: Callable[[], list[Image.Image]]) -> None:
        job, now = self._job, time.monotonic()
        if job.cancelled.is_set():
            raise CancelledError
        with self._studio._changing():
            # The first step of a stage may have compiled it, and says nothing unless it is the only one.
            if stage == job.stage and done > job.step and (job.step > 0 or done == steps):
                self._studio.pace.note(stage, job.load, (now - self._last) / (done - job.step))
            if done == 0:
                job.previews = {} if stage == next(iter(job.load.steps)) else job.previews
            job.stage, job.step = stage, done
            if stage == "B" and done == steps:
                job.stage, job.step = "A", 0
        if stage in KINDS and done and (now >= self._next_preview or done == steps):
            self._show(KINDS[stage], preview)
        self._last = time.monotonic()

    def decoded(self) -> None:
        """The pixels are there."""
        job = self._job
        if job.stage == "A":
            self._studio.pace.note("A", job.load, time.monotonic() - self._last)

    def _show(self, kind: str, preview: Callable[[], list[Image.Image]]) -> None:
        if not self._studio._shows:
            return
        began, compiled = time.monotonic(), self._studio.model.cascade.compilations
        try:
            images = [_webp(image) for image in preview()]
        except UserError as error:  # a checkpoint without a previewer draws all the same
            self._studio._shows = False
            with self._studio._changing():
                self._job.notes.append(f"no previews: {error}")
            return
        with self._studio._changing():
            self._job.previews[kind] = images
            self._job.previewed += 1
        new = self._studio.model.cascade.compilations > compiled  # what it took says nothing of the next
        took = 0.0 if new else time.monotonic() - began
        self._next_preview = time.monotonic() + took * (1 / PREVIEW_SHARE - 1)


def _webp(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "WEBP", quality=85)
    return out.getvalue()
