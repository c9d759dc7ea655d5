from __future__ import annotations

import jax
import jax.numpy as jnp

from tests.models.importing import check_manifest, check_round_trip, import_named, run, struct, variable_specs
from tests.recordings import manifest, nhwc, relative_error
from ultrapixel_jax.config import PreviewerConfig
from ultrapixel_jax.layouts.tables.previewer import RELEASED
from ultrapixel_jax.models.previewer import Previewer

TINY = PreviewerConfig(c_latent=4, channels=(12, 8, 6, 6))


def test_agrees_with_recording(golden):
    tensors, metadata = golden("previewer")
    module, latent = Previewer(PreviewerConfig()), jnp.asarray(nhwc(tensors["in.latent"]))
    specs = variable_specs(module, struct(1, 4, 4, 16))
    variables = import_named(RELEASED, specs, manifest("previewer"), metadata["weight_seed"])
    assert relative_error(run(module, variables, latent), nhwc(tensors["out.image"])) < 1e-5


def test_released_file_maps_onto_the_full_size():
    count = check_manifest("previewer", RELEASED, Previewer(PreviewerConfig()), struct(1, 4, 4, 16))
    assert round(count / 1e6, 1) == 4.0


def test_import_and_export_are_inverse():
    check_round_trip(RELEASED, variable_specs(Previewer(TINY), struct(1, 4, 4, 4)))


def test_initialises_and_enlarges_eightfold():
    image, _ = jax.eval_shape(Previewer(TINY).init_with_output, jax.random.key(0), struct(2, 3, 5, 4))
    assert image.shape == (2, 24, 40, 3)
