from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.importing import (
    check_manifest,
    check_round_trip,
    import_named,
    named_variables,
    released_shapes,
    run,
    struct,
    variable_specs,
)
from tests.recordings import nhwc, relative_error
from ultrapixel_jax.checkpoints.named_weights import state_dict
from ultrapixel_jax.config import StageAConfig
from ultrapixel_jax.layouts.tables import stage_a as table
from ultrapixel_jax.models.stage_a import StageA, nearest_entries

TINY = StageAConfig(c_hidden=8, bottleneck_blocks=2, codebook_size=16)


@pytest.fixture
def recorded(golden):
    """The recording's tensors, channels last, its module and its variables."""
    tensors, metadata = golden("stage_a")
    fields = {k: v for k, v in metadata["stage_a"].items() if k != "levels"}
    module = StageA(StageAConfig(**fields))
    specs = variable_specs(module, struct(1, 8, 8, 3))
    keys = released_shapes(table.RELEASED, specs)
    variables = import_named(table.RELEASED, specs, keys, metadata["weight_seed"])
    return {k: nhwc(v) if v.ndim == 4 else v for k, v in tensors.items()}, module, variables


def test_encode_agrees_with_recording(recorded):
    tensors, module, variables = recorded
    latent = run(module, variables, jnp.asarray(tensors["in.image"]), method="encode")
    assert relative_error(latent, tensors["out.latent"]) < 1e-5


def test_quantize_agrees_with_recording(recorded):
    tensors, module, variables = recorded
    latent = jnp.asarray(tensors["out.latent"])
    quantized, indices, loss = run(module, variables, latent, method="quantize")
    np.testing.assert_array_equal(indices, tensors["out.indices"])
    assert relative_error(quantized, tensors["out.quantized"]) < 1e-5
    assert relative_error(loss[None], tensors["out.vq_loss"]) < 1e-5


@pytest.mark.parametrize(
    ("latent", "image"), [("out.latent", "out.decoded"), ("in.latent", "out.decoded_latent")]
)
def test_decode_agrees_with_recording(recorded, latent, image):
    tensors, module, variables = recorded
    decoded = run(module, variables, jnp.asarray(tensors[latent]), method="decode")
    assert relative_error(decoded, tensors[image]) < 1e-5


def test_bfloat16_stays_close_and_keeps_its_dtype(recorded):
    tensors, module, variables = recorded
    latent = jnp.asarray(tensors["in.latent"], jnp.bfloat16)
    decoded = run(module, variables, latent, method="decode")
    assert decoded.dtype == jnp.bfloat16
    assert relative_error(decoded, tensors["out.decoded_latent"]) < 0.03


def test_released_file_maps_onto_the_full_size():
    assert check_manifest("stage_a", table.RELEASED, StageA(StageAConfig()), struct(1, 8, 8, 3)) == 18_406_902


@pytest.mark.parametrize("rows", [table.RELEASED, table.DIFFUSERS])
def test_import_and_export_are_inverse(rows):
    check_round_trip(rows, variable_specs(StageA(TINY), struct(1, 8, 8, 3)))


def test_agrees_with_diffusers():
    import torch
    from diffusers.pipelines.deprecated.wuerstchen import modeling_paella_vq_model as diffusers

    config = dataclasses.replace(TINY, scale_factor=0.3764)
    module = StageA(config)
    specs = variable_specs(module, struct(1, 8, 8, 3))
    other = diffusers.PaellaVQModel(
        bottleneck_blocks=config.bottleneck_blocks, embed_dim=config.c_hidden,
        num_vq_embeddings=config.codebook_size, scale_factor=config.scale_factor,
    ).eval()  # fmt: skip
    keys = {k: tuple(v.shape) for k, v in other.state_dict().items()}
    other.load_state_dict({k: torch.from_numpy(v) for k, v in state_dict(keys).items()})
    variables = import_named(table.DIFFUSERS, specs, keys)

    rng = np.random.default_rng(0)
    image = rng.random((2, 20, 28, 3), np.float32)
    with torch.no_grad():
        z = other.encode(torch.from_numpy(image).permute(0, 3, 1, 2)).latents
        quantized, loss, (_, _, indices) = other.vquantizer(z)
        decoded = other.decode(z).sample
    # There the caller divides and multiplies by the scale factor; ours does so itself.
    latent = run(module, variables, jnp.asarray(image), method="encode")
    assert relative_error(latent, nhwc(z.numpy()) / config.scale_factor) < 1e-5
    ours, our_indices, our_loss = run(module, variables, latent, method="quantize")
    np.testing.assert_array_equal(our_indices.ravel(), indices.numpy())
    assert relative_error(ours, nhwc(quantized.numpy()) / config.scale_factor) < 1e-5
    assert float(our_loss) == pytest.approx(float(loss), rel=1e-5)
    assert relative_error(run(module, variables, latent, method="decode"), nhwc(decoded.numpy())) < 1e-5


def test_training_reaches_every_parameter_and_updates_statistics():
    module = StageA(dataclasses.replace(TINY, bottleneck_blocks=1))
    image = jnp.asarray(np.random.default_rng(0).random((2, 16, 16, 3), np.float32))
    # Not from `init`: at their initial zeros the gammas close every block.
    variables = named_variables(table.RELEASED, module, image)

    def loss(params):
        out, updates = module.apply(
            {**variables, "params": params}, image, train=True, mutable=["batch_stats"]
        )
        reconstruction, _, vq_loss = out
        return jnp.square(reconstruction - image).mean() + vq_loss, updates

    gradients, updates = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    without = [
        jax.tree_util.keystr(path) for path, g in jax.tree_util.tree_leaves_with_path(gradients)
        if not np.abs(g).max() > 0
    ]  # fmt: skip
    assert not without
    before, after = variables["batch_stats"], updates["batch_stats"]
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, after)
    assert all(jax.tree.leaves(changed))


def test_nearest_entry_is_found():
    rng = np.random.default_rng(0)
    z, codebook = rng.normal(size=(2, 3, 5, 4)), rng.normal(size=(16, 4))
    expected = ((z[..., None, :] - codebook) ** 2).sum(-1).argmin(-1)
    found = nearest_entries(jnp.asarray(z, jnp.float32), jnp.asarray(codebook, jnp.float32))
    np.testing.assert_array_equal(found, expected)


def test_gradients_of_the_quantizer():
    """Codebook entries are drawn to z with weight 1, z to its entry with weight 0.25; by hand."""
    config = StageAConfig(c_hidden=8, bottleneck_blocks=1, codebook_size=16)
    rng = np.random.default_rng(0)
    latent, codebook = rng.normal(size=(1, 3, 2, 4)), rng.normal(size=(16, 4))
    z = latent * config.scale_factor
    nearest = ((z[..., None, :] - codebook) ** 2).sum(-1).argmin(-1)
    apart = codebook[nearest] - z

    def loss(latent, codebook):
        quantize = StageA(config).apply({"params": {"codebook": codebook}}, latent, method="quantize")
        return quantize[2]

    value, (in_latent, in_codebook) = jax.value_and_grad(loss, (0, 1))(
        jnp.asarray(latent, jnp.float32), jnp.asarray(codebook, jnp.float32)
    )
    assert float(value) == pytest.approx(1.25 * (apart**2).mean(), rel=1e-5)
    expected = np.zeros_like(codebook)
    np.add.at(expected, nearest.ravel(), 2 * apart.reshape(-1, 4) / apart.size)
    assert relative_error(in_codebook, expected) < 1e-5
    assert relative_error(in_latent, -0.25 * 2 * apart / apart.size * config.scale_factor) < 1e-5
