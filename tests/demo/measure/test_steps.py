"""Rows of samplers and steps: named, resumed and tabled rightly, whatever draws the pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from ultrapixel_jax.demo.measure import steps
from ultrapixel_jax.demo.world import scenes
from ultrapixel_jax.demo.world.render import render
from ultrapixel_jax.errors import UserError


class Artist:
    """Draws the scene with eight steps or more, else another; and says what it drew."""

    def __init__(self, stop: int = 100) -> None:
        self.drawn, self.stop = [], stop

    def __call__(self, batch: steps.Batch, captions: list[str]) -> tuple[list, float | None]:
        if len(self.drawn) == self.stop:
            raise KeyboardInterrupt
        self.drawn.append((batch.settings["sampler"], batch.settings["steps"]))
        wrong = 0 if batch.settings["steps"] >= 8 else 10
        images = [
            render(scenes.sample(0, case.scene + wrong, "held_out"), *case.size) for case in batch.cases
        ]
        return images, None if len(self.drawn) == 1 else float(batch.settings["steps"])


def options(*arguments: str) -> argparse.Namespace:
    return steps.parser().read(["out", "--samplers", "ddpm", "dpmpp_2m", "--sizes", "256", *arguments])


def measured(artist: Artist, output: Path) -> list[dict]:
    todo = [*steps.batches(options("--steps", "4", "8", "--count", "2", "--batch-size", "2"))]
    return steps.rows(
        steps.measure(artist, output, {"model": "artist"}, todo, lr=lambda size: size, quiet=True)
    )


def test_rows_go_on_where_they_stopped_and_add_up(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        measured(Artist(stop=3), tmp_path)
    again = Artist()
    table = measured(again, tmp_path)
    assert again.drawn == [("dpmpp_2m", 8)]
    assert [(r["settings"]["sampler"], r["settings"]["steps"], r["all"], r["pictures"]) for r in table] == [
        ("ddpm", 4, 0, 2), ("ddpm", 8, 1, 2), ("dpmpp_2m", 4, 0, 2), ("dpmpp_2m", 8, 1, 2),
    ]  # fmt: skip
    assert [r["seconds"] for r in table] == [None, 4, 2, None]  # per picture; the first of each run compiles
    text = steps.markdown(table)
    assert "| 256×256 | `sampler=ddpm steps=8` | 2 | 100.0 | 34–100 | 4.00 |" in text
    assert steps.plot(table, tmp_path / "plot.png") and (tmp_path / "plot.png").stat().st_size > 5000
    with pytest.raises(UserError, match="another model"):
        steps.measure(again, tmp_path, {"model": "other"}, [], lr=lambda size: size, quiet=True)


def test_the_interval_is_wilsons() -> None:
    """Of 8 right among 10, by the formula's usual example."""
    assert steps.wilson(8.0, 10) == pytest.approx((0.490, 0.943), abs=1e-3)
    assert steps.wilson(0.0, 10)[0] == pytest.approx(0) and steps.wilson(10.0, 10)[1] == pytest.approx(1)


def test_what_is_varied() -> None:
    found = [*steps.batches(options("--steps", "5", "--count", "3", "--stage", "HR", "--batch-size", "2",
                                    "--set", "cfg_until=0.5", "reuse-b=2"))]  # fmt: skip
    assert [len(batch.cases) for batch in found] == [2, 2, 1, 1]
    assert found[1].settings == {"sampler_hr": "dpmpp_2m", "steps_hr": 5, "cfg_until": 0.5, "reuse_b": 2}
    assert steps.named(found[1].settings) == "cfg_until=0.5 reuse_b=2 sampler_hr=dpmpp_2m steps_hr=5"
    for value, message in (
        ("cfg_untl=1", "did you mean 'cfg_until'"),
        ("reuse=0", "--set reuse: 0 is outside"),
    ):
        with pytest.raises(UserError, match=message):
            options("--set", value)
