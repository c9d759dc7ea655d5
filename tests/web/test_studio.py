"""The queue: who is drawn when, what is told meanwhile, and what a failure leaves."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.tiny import config
from tests.web.conftest import Client, Stepping, serving
from ultrapixel_jax import UltraPixel
from ultrapixel_jax.sampling import pictures
from ultrapixel_jax.web.pace import Load, Pace


def test_a_picture_with_its_plan_before_it(web: Client, cascade: Stepping, tmp_path: Path) -> None:
    reached, go = threading.Event(), threading.Event()
    cascade.before["B", 0] = lambda: (reached.set(), go.wait(30))
    status, answer = web.ask(prompt="a red circle", seed=7, steps=3, num_images=2, batch_size=2)
    assert status == 200 and reached.wait(30)
    (job,) = web.until(lambda jobs: jobs[0]["stage"] == "C high" and jobs[0]["step"] == 3)
    assert job["stages"] == {"C low": 3, "C high": 3, "B": 2, "A": 1}
    assert job["previews"] == {"plan": 2, "large": 2} and not job["pictures"] and job["place"] == 0
    for kind, shade in (("plan", 100), ("large", 200)):
        _, headers, data = web.raw("GET", f"/api/jobs/{job['id']}/{kind}/1?v={job['previewed']}")
        assert headers["Content-Type"] == "image/webp"
        shown = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert shown.shape == (24, 32, 3) and abs(int(shown.mean()) - shade) <= 3
    go.set()
    job = web.over(answer["id"])
    assert (job["state"], job["error"], len(job["pictures"])) == ("done", "", 2)
    for name, seed in zip(job["pictures"], (7, 8)):
        request, run = pictures.recorded(pictures.read_metadata(tmp_path / "out" / name))
        assert (request.prompt, request.seed, request.stage_c.steps) == ("a red circle", seed, 3)
        assert (request.height, request.width, run.batch_size) == (256, 264, 2)
    assert web.get(f"/api/jobs/{job['id']}/plan/2")[0] == 404


def test_two_people_wait_in_turn_and_see_where(web: Client, cascade: Stepping) -> None:
    reached, go = threading.Event(), threading.Event()
    cascade.before["C low", 1] = lambda: (reached.set(), go.wait(30))
    names = [web.ask(who, prompt=f"{who}'s", seed=i)[1]["id"] for i, who in enumerate(("one", "two", "one"))]
    assert reached.wait(30)
    for browser, mine in (("one", [True, False, True]), ("two", [False, True, False])):
        with web.events(browser) as told:
            jobs = next(told)["jobs"]
        assert [job["id"] for job in jobs] == names and [job["mine"] for job in jobs] == mine
        assert [job["state"] for job in jobs] == ["drawing", "waiting", "waiting"]
        assert [job["place"] for job in jobs] == [0, 1, 2]
    # One that waits is taken out at once; the one that is drawn stops at its next step.
    assert web.raw("DELETE", f"/api/jobs/{names[1]}")[0] == 200
    assert web.raw("DELETE", f"/api/jobs/{names[0]}")[0] == 200
    assert web.over(names[1])["state"] == "cancelled"
    go.set()
    assert [web.over(name)["state"] for name in names] == ["cancelled", "cancelled", "done"]
    assert cascade.drawn == ["one's", "one's"]
    assert web.get("/api/pictures")[1]["total"] == 1
    assert web.raw("DELETE", "/api/jobs/none")[0] == 404


def test_the_queue_is_bounded(web: Client, cascade: Stepping, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ultrapixel_jax.web.studio.MAX_WAITING", 2)
    go = threading.Event()
    cascade.before["C low", 1] = lambda: go.wait(30)
    last = [web.ask(prompt="x", seed=i) for i in range(3)]
    go.set()
    assert [status for status, _ in last] == [200, 200, 429]
    assert last[2][1] == {"error": "2 requests wait already; try later"}
    web.over(last[1][1]["id"])
    assert web.ask(prompt="x")[0] == 200


def test_a_crash_is_that_of_one_request(
    web: Client, cascade: Stepping, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def crash() -> None:
        del cascade.before["B", 1]
        raise ZeroDivisionError("by zero")

    cascade.before["B", 1] = crash
    job = web.draw(prompt="a red circle", seed=1)
    assert job["state"] == "failed" and "ZeroDivisionError: by zero" in job["error"]
    assert not list((tmp_path / "out").iterdir())
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert web.draw(prompt="a red circle", seed=1)["state"] == "done"


def test_what_lies_there_is_not_drawn_again(web: Client, cascade: Stepping) -> None:
    first, again = (web.draw(prompt="a red circle", seed=3, steps=2) for _ in range(2))
    assert first["pictures"] == again["pictures"] and len(cascade.drawn) == 1
    assert "was there already" in again["notes"][0]
    other = web.draw(prompt="a red circle", seed=3, steps=3)
    assert other["pictures"] == ["a-red-circle-3-1.png"]


def test_what_may_be_a_surprise_is_said(web: Client) -> None:
    job = web.draw(prompt="word " * 60, cfg=1, cfg_b=1, cfg_hr=1, negative_prompt="blue", seed=1)
    assert len(job["notes"]) == 2 and "cut off is" in job["notes"][0]
    assert job["notes"][1].startswith("negative_prompt without effect")
    seeds = {web.draw(prompt="a", seed=None)["seed"] for _ in range(3)}
    assert len(seeds) == 3


def test_a_model_without_a_previewer_draws_all_the_same(cascade: Stepping, tmp_path: Path) -> None:
    from ultrapixel_jax.errors import UserError

    def load() -> None:
        raise UserError("the checkpoint has no previewer")

    cascade.previewer.variables = {}
    with serving(UltraPixel(cascade, load), tmp_path / "out") as web:  # type: ignore[arg-type]
        job = web.draw(prompt="a", seed=1)
    assert job["state"] == "done" and job["notes"] == ["no previews: the checkpoint has no previewer"]


def test_what_was_measured_says_how_long_it_takes() -> None:
    pace, load = Pace(), Load({"C low": 10, "C high": 10, "B": 5, "A": 1}, pixels=100, batch=1)
    assert pace.remaining(load, "C low", 4) is None and pace.of("B", load) is None
    for stage, seconds in (("C low", 1.0), ("C high", 2.0), ("B", 3.0), ("A", 4.0)):
        pace.note(stage, load, seconds)
    assert pace.remaining(load, None, 0) == 10 * 1 + 10 * 2 + 5 * 3 + 4
    assert pace.remaining(load, "C high", 9) == 2 + 5 * 3 + 4
    double = Load(load.steps, pixels=200, batch=1)
    assert pace.remaining(double, None, 0) == 10 * 1 + 2 * (10 * 2 + 5 * 3 + 4)
    assert pace.of("C high", Load(load.steps, pixels=100, batch=3)) == 6.0


def test_with_networks_and_after_a_cancelled_picture(tmp_path: Path) -> None:
    """What the page draws is what Python draws, although a picture before it was cut short in the middle."""
    model = UltraPixel.load(config=config, cache=False)
    small = {"seed": 3, "height": 256, "width": 256, "steps": 2, "steps_b": 1}
    (expected,) = model("a red circle", **small)
    cut: list[str] = []
    with serving(model, tmp_path / "out") as web:
        real = model.cascade.previewed

        def previewed(latent: np.ndarray) -> np.ndarray:
            if not cut:  # while it shows its plan
                cut.extend(job["id"] for job in web.until(bool))
                web.raw("DELETE", f"/api/jobs/{cut[0]}")
            return real(latent)

        model.cascade.previewed = previewed  # type: ignore[method-assign]
        assert web.draw(prompt="another", **small)["state"] == "cancelled"
        job = web.draw(prompt="a red circle", **small)
    assert job["state"] == "done" and job["previews"] == {"plan": 1, "large": 1}
    drawn = pictures.load_pixels(tmp_path / "out" / job["pictures"][0])
    np.testing.assert_array_equal(drawn, np.asarray(expected))
