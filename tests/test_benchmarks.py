"""What the benchmarks measure beside the project's own code."""

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from benchmarks import layers, parity, sampling, torch_times, training
from benchmarks.pallas_depthwise import depthwise
from ultrapixel_jax.models import convolutions


def test_pallas_depthwise_and_its_gradient() -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    x, weights = jax.random.normal(keys[0], (2, 5, 37, 128)), jax.random.normal(keys[1], (2, 5, 37, 128))
    kernel = jax.random.normal(keys[2], (3, 3, 128))

    def all_of(function):
        out, gradient = jax.vjp(function, x, kernel)
        return out, *gradient(weights)

    found = all_of(lambda x, kernel: depthwise(x, kernel, True))
    expected = all_of(lambda x, kernel: convolutions.depthwise(x, kernel, None))
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def test_pallas_depthwise_lowers_for_gpus() -> None:
    x, kernel = (
        jax.ShapeDtypeStruct((2, 96, 96, 2048), jnp.bfloat16),
        jax.ShapeDtypeStruct((3, 3, 2048), jnp.bfloat16),
    )
    # From jax 0.12 on, the GPU that is lowered for has to be named.
    gpu = AbstractMesh((), (), abstract_device=AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu"))
    with use_abstract_mesh(gpu):
        traced = jax.jit(lambda x, kernel: depthwise(x, kernel)).trace(x, kernel)
        assert "custom_call" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_what_was_measured_before_a_limit_of_time_is_kept(monkeypatch, tmp_path: Path) -> None:
    """Every benchmark that `on_gpu.sh` may stop writes its rows as they come."""
    row = {"recording": "r", "dtype": "float32", "error": 0.0, "seconds": 1.0}

    def stopped_after_one() -> Iterator[dict]:
        yield row
        raise KeyboardInterrupt

    monkeypatch.setattr(parity, "compare", stopped_after_one)
    assert parity.main(["--json", str(tmp_path / "parity.json")]) != 0
    assert json.loads((tmp_path / "parity.json").read_text()) == [row]

    def second_is_stopped(module: str, label: str, arguments: list[str]) -> dict:
        if kept := list(tmp_path.glob(f"{module}.json")):
            assert json.loads(kept[0].read_text()) == [row]
            raise KeyboardInterrupt
        return row

    for module, words in (
        (sampling, ["clip", "c-low"]), (layers, ["attention", "depthwise"]), (torch_times, ["c-plain", "b"]),
        (training, ["tiny", "demo-stage-c"]),
    ):  # fmt: skip
        monkeypatch.setattr(module, "in_own_process", second_is_stopped)
        file = tmp_path / f"{module.__name__}.json"
        assert module.main([*words, "--json", str(file)]) != 0
        assert json.loads(file.read_text()) == [row]
