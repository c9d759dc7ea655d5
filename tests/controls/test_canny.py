"""Edges against OpenCV's, and the released steps around them against torch's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from ultrapixel_jax.controls.canny import SIDE, canny, canny_map

GOLDEN = Path(__file__).parent.parent / "golden" / "canny.npz"


@pytest.mark.parametrize("number", range(5))
def test_edges_are_opencvs(number: int) -> None:
    with np.load(GOLDEN) as recorded:
        image, low_high = recorded[f"{number}.image"], recorded[f"{number}.thresholds"].astype(float).tolist()
        h, w = image.shape[:2]
        expected = np.unpackbits(recorded[f"{number}.edges"], count=h * w).reshape(h, w)
    assert 0.05 < expected.mean() < 0.4
    np.testing.assert_array_equal(canny(image, *low_high), expected)


@pytest.mark.parametrize("size", [(61, 87), (300, 260), (224, 224)])
def test_a_map_is_made_as_released(size: tuple[int, int]) -> None:
    with np.load(GOLDEN) as recorded:
        picture = recorded["1.image"]
    repeats = [-(-side // n) for side, n in zip(size, picture.shape)]
    image = np.tile(picture, (*repeats, 1))[: size[0], : size[1]]
    found = canny_map(image)

    x = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
    small = interpolate(x, size=(SIDE, SIDE), mode="bilinear")[0].mul(255).permute(1, 2, 0)
    edges = canny(small.numpy().astype(np.uint8))
    expected = interpolate(torch.tensor(edges)[None, None].float(), size=size, mode="bilinear")[0]
    # Where a byte's fraction is rounded to a whole number, another order of operations gives the byte below.
    assert found.shape == (*size, 1) and found.dtype == np.float32
    assert (np.abs(found - expected.permute(1, 2, 0).numpy()) > 1e-5).mean() < 1e-3
    assert found.min() == 0 and 0.5 < found.max() <= 1


def test_thresholds_are_those_of_a_step() -> None:
    """A step of n between two columns has a slope of 4·n there."""
    image = np.zeros((20, 20, 3), np.uint8)
    image[:, 10:] = 60  # a slope of 240
    assert canny(image, 100, 200)[:, 9].all() and canny(image, 100, 200).sum() == 20
    assert not canny(image, 100, 240).any() and canny(image, 230, 239).any()
    assert not canny(image, 240, 250).any()
