"""FID's Inception beside torch-fidelity's network, recorded with weights made from names."""

from __future__ import annotations

import jax
import numpy as np

from convert.formats import recognise
from tests.models.importing import check_round_trip, import_named, run
from tests.recordings import nhwc, relative_error
from ultrapixel_jax.config import InceptionConfig
from ultrapixel_jax.evaluate import resizing
from ultrapixel_jax.layouts.apply import flatten
from ultrapixel_jax.layouts.tables.inception import FILE
from ultrapixel_jax.models import measuring


def test_features_and_logits_are_those_of_torch_fidelity(golden) -> None:
    """All of it: the file's keys, the resizing, the network."""
    recorded, metadata = golden("measures")
    keys = {key: tuple(shape) for key, shape in metadata["shapes"].items()}
    (found,) = recognise(keys, [], "pt_inception")
    assert (found.format.component, found.config) == ("inception", InceptionConfig())
    variables = import_named(FILE, flatten(measuring.abstract(found.config)), keys)
    pictures = [resizing.fidelity(x, 299) for x in nhwc(recorded["in.picture"])]
    features, logits = run(
        measuring.build(found.config), variables, resizing.scaled(np.stack(pictures), "fidelity")
    )
    assert relative_error(features, recorded["out.features"]) < 1e-5
    assert relative_error(logits, recorded["out.logits"]) < 1e-5


def test_import_and_export_are_inverse() -> None:
    check_round_trip(FILE, flatten(measuring.abstract(InceptionConfig(divide=16))))


def test_random_weights_are_those_of_their_seed() -> None:
    config = InceptionConfig(75, 16)
    first, again, other = (measuring.random_inception(config, seed) for seed in (1, 1, 2))
    assert jax.tree.all(jax.tree.map(np.array_equal, first, again))
    kernel = first["params"]["mixed_6b"]["branch7x7_2"]["conv"]["kernel"]
    assert not np.array_equal(kernel, other["params"]["mixed_6b"]["branch7x7_2"]["conv"]["kernel"])
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (7 * 8)), rtol=0.1)  # He's, of 7 × 8 inputs
    assert (first["batch_stats"]["mixed_6b"]["branch7x7_2"]["norm"]["var"] == 1).all()
