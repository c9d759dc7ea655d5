from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.filled import filled
from tests.models.importing import (
    check_manifest,
    check_round_trip,
    import_named,
    released_shapes,
    run,
    struct,
    variable_specs,
)
from tests.models.test_effnet_encoder import tiny
from tests.recordings import manifest, nhwc, relative_error
from ultrapixel_jax.checkpoints.named_weights import state_dict
from ultrapixel_jax.compilation.options import UNOPTIMISED
from ultrapixel_jax.config import ControlNetConfig
from ultrapixel_jax.layouts.tables.controlnet import RELEASED, SUPER_RESOLUTION
from ultrapixel_jax.models.controlnet import ControlNet
from ultrapixel_jax.report import Report
from ultrapixel_jax.sampling.stages.base import Setup
from ultrapixel_jax.sampling.stages.control import ControlEncoder

KINDS = ("canny", "inpainting", "super_resolution")
TABLES = {"canny": RELEASED, "inpainting": RELEASED, "super_resolution": SUPER_RESOLUTION}
MILLIONS = {"canny": 54.4, "inpainting": 54.4, "super_resolution": 203.5}


def tiny_config(kind) -> ControlNetConfig:
    return ControlNetConfig(kind, tiny().backbone, bottleneck=(24, 8, 2), projection=12, channels=16)


def test_agrees_with_recording(golden):
    tensors, metadata = golden("controlnet_canny")
    config = ControlNetConfig("canny")
    module, edges = ControlNet(config), jnp.asarray(nhwc(tensors["in.edges"]))
    specs = variable_specs(module, struct(1, 64, 64, 1))
    variables = import_named(RELEASED, specs, manifest("controlnet_canny"), metadata["weight_seed"])
    setup = Setup(jnp.float32, None, Report(), None)
    stage = ControlEncoder(setup, lambda kind: (config, variables))
    maps = stage("canny", edges, (3, 4))  # as sampling runs it
    assert tuple(maps) == config.slots and len(maps) == 8
    for slot, found in maps.items():
        kept = found[..., ::4]  # what the recording keeps
        assert relative_error(kept, nhwc(tensors[f"out.{slot}"])) < 3e-5


@pytest.mark.parametrize("kind", KINDS)
def test_released_files_map_onto_the_full_size(kind):
    config = ControlNetConfig(kind)
    control = struct(1, 64, 64, config.in_channels)
    count = check_manifest(f"controlnet_{kind}", TABLES[kind], ControlNet(config), control)
    assert round(count / 1e6, 1) == MILLIONS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_import_and_export_are_inverse(kind):
    config = tiny_config(kind)
    check_round_trip(TABLES[kind], variable_specs(ControlNet(config), struct(1, 64, 64, config.in_channels)))


@pytest.mark.parametrize("kind", KINDS)
def test_initialises_and_gives_a_map_per_slot(kind):
    config = tiny_config(kind)
    control = struct(2, 64, 96, config.in_channels)
    maps, _ = jax.eval_shape(ControlNet(config).init_with_output, jax.random.key(0), control)
    side = (64, 96) if kind == "super_resolution" else (2, 3)
    assert [m.shape for m in maps] == [(2, *side, 16)] * 8


def test_the_super_resolution_backbone_agrees_with_torch():
    import torch

    config = tiny_config("super_resolution")
    module = ControlNet(config)
    specs = variable_specs(module, struct(1, 6, 7, 16))
    keys = released_shapes(SUPER_RESOLUTION, specs)
    w = {k: torch.from_numpy(v) for k, v in state_dict(keys).items()}
    f = torch.nn.functional

    def conv(x, name, padding=0):
        return f.conv2d(x, w[f"{name}.weight"], w.get(f"{name}.bias"), padding=padding)

    def norm(x, name):
        x = x.permute(0, 2, 3, 1)
        return f.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"]).permute(0, 3, 1, 2)

    control = torch.randn(1, 16, 6, 7, generator=torch.Generator().manual_seed(0))
    x = conv(f.leaky_relu(conv(control, "backbone.0"), 0.2), "backbone.2")
    for i in (3, 4):
        y = conv(f.gelu(norm(x, f"backbone.{i}.blocks.0")), f"backbone.{i}.blocks.2", 1)
        x = x + conv(f.gelu(norm(y, f"backbone.{i}.blocks.3")), f"backbone.{i}.blocks.5", 1)
    x = conv(x, "backbone.5")
    expected = conv(f.leaky_relu(conv(x, "projections.7.0"), 0.2), "projections.7.2")
    variables = import_named(SUPER_RESOLUTION, specs, keys)
    found = run(module, variables, jnp.asarray(nhwc(control.numpy())))[7]
    assert relative_error(found, nhwc(expected.numpy())) < 1e-5


def test_a_control_of_the_wrong_kind_is_refused():
    module = ControlNet(tiny_config("inpainting"))
    with pytest.raises(ValueError, match="the control of inpainting has 4 channels, not 1"):
        variable_specs(module, struct(1, 64, 64, 1))


def test_rematerialised_it_keeps_less_and_learns_the_same() -> None:
    """Of both modules the same gradients and running statistics; and the bytes that a gradient keeps."""
    config = tiny_config("canny")
    stages = config.backbone.stages[:2]
    config = dataclasses.replace(
        config, backbone=dataclasses.replace(config.backbone, stages=stages), slots=(0,)
    )
    variables = filled("controlnet", config)
    edges = jnp.asarray(np.random.default_rng(0).random((2, 32, 48, 1), np.float32))

    def of(*, rematerialised: bool) -> tuple[Any, int]:
        module = ControlNet(config, rematerialised=rematerialised)

        def loss(params: Any) -> tuple[Any, Any]:
            out: Any = module.apply({**variables, "params": params}, edges, True, mutable=["batch_stats"])
            return jnp.square(out[0][0]).sum(), out[1]

        kept = jax.eval_shape(lambda p: jax.vjp(lambda q: loss(q)[0], p)[1], variables["params"])
        gradients = jax.jit(jax.grad(loss, has_aux=True), compiler_options=UNOPTIMISED)(variables["params"])
        return gradients, sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))

    (plain, much), (same, little) = of(rematerialised=False), of(rematerialised=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), plain, same)
    assert little < 0.6 * much
