"""Programs that are given up before the process has no memory maps left."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ultrapixel_jax.compilation import shelf
from ultrapixel_jax.compilation.program import Program
from ultrapixel_jax.report import Report


def several(x: jax.Array) -> jax.Array:
    """Enough kernels to take memory maps."""
    for i in range(8):
        x = jnp.tanh(x) * jnp.sin(x).sum(0, keepdims=True) + i
    return x


@pytest.fixture
def limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the system's limit to so many maps more than there are now."""
    file = tmp_path / "max_map_count"
    monkeypatch.setattr(shelf, "LIMIT", file)
    monkeypatch.setattr(shelf, "AT_LEAST", 20)
    monkeypatch.setattr(shelf.Shelf, "_largest", 20)

    def more(count: int) -> int:
        jax.clear_caches()
        total = (shelf.maps_in_use() or 0) + count
        file.write_text(f"{total}\n")
        return total

    return more


def test_programs_are_given_up_before_the_limit_and_made_again(
    limit: Any, caplog: pytest.LogCaptureFixture
) -> None:
    program = Program(several, batched=(0,), mesh=None, report=Report())
    sizes = list(range(3, 19))
    expected = {n: several(jnp.arange(n, dtype=jnp.float32)[:, None]) for n in sizes}
    total = limit(400)
    with caplog.at_level(logging.WARNING):
        for n in sizes:
            np.testing.assert_allclose(
                program(jnp.arange(n, dtype=jnp.float32)[:, None]), expected[n], rtol=1e-5
            )
            assert (shelf.maps_in_use() or 0) < total
    assert "memory maps (vm.max_map_count). To keep them: sudo sysctl -w" in caplog.text
    assert program.compilations == len(sizes)
    there: list[Any] = list(program._compiled._programs)
    kept = [n for n in sizes if any(shapes[0][0] == (n, 1) for _, _, shapes in there)]
    assert 0 < len(kept) < len(sizes)
    assert kept == sizes[-len(kept) :]  # the last ones
    program(jnp.arange(float(sizes[0]))[:, None].astype(jnp.float32))
    assert program.compilations == len(sizes) + 1  # made again


def test_what_is_used_stays(limit: Any) -> None:
    limit(10**6)
    held = shelf.Shelf()
    for key in "abcd":
        held.get(key, lambda key=key: key.upper())
    assert held.get("a", lambda: "other") == "A"
    limit(0)
    held.get("e", lambda: "E")
    assert sorted(map(str, held._programs)) in (["a", "d", "e"], ["a", "e"])
    assert held.compilations == 5


def test_where_the_system_has_no_limit(limit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "MAPS", Path("/nowhere"))
    held = shelf.Shelf()
    limit(0)
    assert [held.get(key, lambda key=key: 2 * key) for key in (1, 2, 1)] == [2, 4, 2]
    assert held.compilations == 2
