from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tests.models.importing import check_manifest, check_round_trip, import_named, run, struct, variable_specs
from tests.recordings import manifest, nhwc, relative_error
from ultrapixel_jax.config import EfficientNetConfig, EffnetEncoderConfig
from ultrapixel_jax.layouts.tables.effnet_encoder import RELEASED
from ultrapixel_jax.models.effnet_encoder import EffnetEncoder


def tiny() -> EffnetEncoderConfig:
    """The released stages, narrow and one block each."""
    stages = tuple(dataclasses.replace(s, channels=8, blocks=1) for s in EfficientNetConfig().stages)
    return EffnetEncoderConfig(EfficientNetConfig(stem=8, stages=stages, head=12), c_latent=4)


def test_agrees_with_recording(golden):
    tensors, metadata = golden("effnet_encoder")
    module, image = EffnetEncoder(EffnetEncoderConfig()), jnp.asarray(nhwc(tensors["in.image"]))
    specs = variable_specs(module, struct(1, 64, 64, 3))
    variables = import_named(RELEASED, specs, manifest("effnet_encoder"), metadata["weight_seed"])
    assert relative_error(run(module, variables, image), nhwc(tensors["out.latent"])) < 3e-5


def test_released_file_maps_onto_the_full_size():
    module = EffnetEncoder(EffnetEncoderConfig())
    count = check_manifest("effnet_encoder", RELEASED, module, struct(1, 64, 64, 3))
    assert round(count / 1e6, 1) == 20.4


def test_import_and_export_are_inverse():
    check_round_trip(RELEASED, variable_specs(EffnetEncoder(tiny()), struct(1, 64, 64, 3)))


def test_training_updates_the_statistics_and_evaluation_does_not():
    config = tiny()
    backbone = dataclasses.replace(config.backbone, stages=config.backbone.stages[2:4])
    module = EffnetEncoder(dataclasses.replace(config, backbone=backbone))
    image = jnp.asarray(np.random.default_rng(0).random((2, 64, 96, 3), np.float32))
    variables = jax.jit(module.init)(jax.random.key(0), image)
    assert run(module, variables, image).shape == (2, 8, 12, 4)

    @jax.jit
    def train(variables):
        return module.apply(variables, image, train=True, mutable=["batch_stats"])[1]

    changed = jax.tree.map(
        lambda a, b: bool((a != b).any()), variables["batch_stats"], train(variables)["batch_stats"]
    )
    assert all(jax.tree.leaves(changed))
