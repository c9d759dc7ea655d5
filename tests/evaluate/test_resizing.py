"""Resizing conventions beside the libraries that they are named after, and crops by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests.recordings import nhwc
from ultrapixel_jax.evaluate import resizing


def test_clean_and_fidelity_are_clean_fids_and_torch_fidelitys(golden) -> None:
    recorded, _ = golden("measures")
    for i, picture in enumerate(nhwc(recorded["in.picture"])):
        np.testing.assert_array_equal(resizing.clean(picture, 37), nhwc(recorded["out.clean"])[i])
        np.testing.assert_allclose(
            resizing.fidelity(picture, 37), nhwc(recorded["out.fidelity"])[i], atol=2e-5
        )


@pytest.mark.parametrize("size", [(120, 90), (20, 31), (37, 37)])
def test_pytorch_is_torchs(size: tuple[int, int]) -> None:
    import torch

    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    x = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    expected = torch.nn.functional.interpolate(x, (37, 37), mode="bilinear", align_corners=False)
    found = resizing.scaled(resizing.pytorch(picture, 37), "pytorch")
    np.testing.assert_allclose(found, 2 * expected[0].permute(1, 2, 0) - 1, atol=1e-5)


def test_values_are_scaled_as_the_networks_were_trained() -> None:
    x = np.array([[[0, 128, 255]]], np.uint8)
    assert resizing.scaled(x, "clean").ravel().tolist() == [-1.0, 0.0, 127 / 128]
    assert resizing.scaled(x, "pytorch").ravel()[[0, 2]].tolist() == [-1.0, 1.0]


def test_a_grid_of_crops_covers_the_middle_once() -> None:
    picture = np.arange(7 * 11 * 3, dtype=np.uint8).reshape(7, 11, 3)
    parts = resizing.crops(picture, 3, "grid", "a", 0)
    assert len(parts) == 2 * 3
    np.testing.assert_array_equal(parts[0], picture[0:3, 1:4])
    np.testing.assert_array_equal(parts[-1], picture[3:6, 7:10])
    assert np.shares_memory(parts[0], picture)  # a picture of 50 MB is not copied
    assert len(resizing.crops(np.zeros((4096, 4096, 3), np.uint8), 299, "grid", "a", 0)) == 169
    assert resizing.crops(picture, 8, "grid", "a", 0) == []


def test_random_crops_depend_on_seed_and_name_alone() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)

    def places(name: str, seed: int) -> list[bytes]:
        return [part.tobytes() for part in resizing.crops(picture, 8, 5, name, seed)]

    assert places("a", 1) == places("a", 1)
    assert len({*places("a", 1), *places("b", 1), *places("a", 2)}) == 15
