"""A server in this process, with a model that draws at once, or waits where a test wants it to."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.tiny import config
from tests.sampling.test_sample import FakeCascade
from ultrapixel_jax import UltraPixel
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.web.gallery import Gallery
from ultrapixel_jax.web.routes import Routes
from ultrapixel_jax.web.sent import Sent
from ultrapixel_jax.web.server import Server
from ultrapixel_jax.web.steering import Shelf
from ultrapixel_jax.web.studio import Studio


class Stepping(FakeCascade):
    """Pictures of random pixels, after steps that can be held up."""

    compilations = 0

    def __init__(self) -> None:
        super().__init__(config, False)
        self.mesh, self.dtype = None, "float32"
        self.conditioner = types.SimpleNamespace(
            on_demand=types.SimpleNamespace(control_identity=lambda kind: "")
        )
        self.personal.words = self.words
        self.previewer = types.SimpleNamespace(variables={"previewer": 1})
        self.before: dict[tuple[str, int], Callable[[], Any]] = {}
        """What happens before a step is told of, by stage and step."""
        self.drawn: list[str] = []
        self.last: Any = ()

    @staticmethod
    def words(path: str, checksum: str) -> tuple[str | None, ...]:
        if Path(path).read_bytes() == b"no LoRA":
            raise UserError(f"{path} is no LoRA of this model")
        return "[cat]", None

    def previewed(self, latent: Any) -> np.ndarray:
        return np.full((len(latent), 24, 32, 3), int(latent.flat[0]), np.uint8)

    def generate(self, requests: Any, *, batch_size: int, progress: Any, **rest: Any) -> Any:
        self.drawn.append(requests[0].prompt)
        self.last = requests
        first = requests[0]
        for stage, steps in (
            ("C low", first.stage_c.steps),
            ("C high", first.stage_c.steps),
            ("B", first.stage_b.steps),
        ):
            for step in range(steps + 1):
                self.before.get((stage, step), lambda: None)()
                shade = np.full((batch_size, 3, 4, 4), 100 if stage == "C low" else 200)
                progress(stage, step, steps, lambda shade=shade: shade)
        return super().generate(requests, batch_size=batch_size, progress=progress, **rest)


class Client:
    """Asks a server."""

    def __init__(self, server: Server) -> None:
        self.port = server.server_address[1]

    def raw(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def get(self, path: str, **headers: str) -> Any:
        status, _, data = self.raw("GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        return status, json.loads(data)

    def ask(self, browser: str = "", **asked: Any) -> tuple[int, Any]:
        body = json.dumps({"height": 256, "width": 264, **asked})
        headers = {"Content-Type": "application/json"}
        status, _, data = self.raw("POST", f"/api/jobs?browser={browser}", body, headers)
        return status, json.loads(data)

    @contextlib.contextmanager
    def events(self, browser: str = "") -> Iterator[Iterator[Any]]:
        """What a page is told, from now on."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", f"/api/events?browser={browser}")
        answer = connection.getresponse()

        def told() -> Iterator[Any]:
            for line in answer:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])

        with contextlib.closing(connection):
            yield told()

    def until(self, holds: Callable[[list[Any]], Any], browser: str = "") -> list[Any]:
        """The jobs as they are when `holds` does."""
        with self.events(browser) as told:
            return next(shown["jobs"] for shown in told if holds(shown["jobs"]))

    def over(self, name: str) -> Any:
        """The job of that id when nothing more happens to it."""
        states = ("done", "failed", "cancelled")
        jobs = self.until(lambda jobs: any(job["id"] == name and job["state"] in states for job in jobs))
        return next(job for job in jobs if job["id"] == name)

    def draw(self, **asked: Any) -> Any:
        status, answer = self.ask(**asked)
        assert status == 200, answer
        return self.over(answer["id"])


@contextlib.contextmanager
def serving(model: UltraPixel, output: Path) -> Iterator[Client]:
    """A server with `model` whose pictures go to `output`."""
    output.mkdir(exist_ok=True)
    gallery = Gallery(output, output.parent / "small")
    server = Server.at("127.0.0.1", 0, ["pictures.example"])
    with server, Studio(model, gallery) as studio:
        shelf = Shelf(gallery, Sent(output), output.parent / "loras")
        server.routes = Routes(studio, shelf, name="the fake")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield Client(server)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def cascade() -> Stepping:
    return Stepping()


@pytest.fixture
def web(cascade: Stepping, tmp_path: Path) -> Iterator[Client]:
    with serving(UltraPixel(cascade, dict), tmp_path / "out") as client:
        yield client
