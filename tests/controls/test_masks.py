"""Random masks: how much they cover, of which kinds; and what the ControlNet sees of them."""

import numpy as np

from ultrapixel_jax.controls.masks import INVERTED, NUMBERS, inpainting_map, random_mask

SIZE = (72, 96)


def masks(count: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    numbers = np.random.default_rng(0).random((count, NUMBERS))
    return np.stack([random_mask(row, size) for row in numbers])


def test_statistics_of_masks() -> None:
    found = masks(600)
    covered = found.mean((1, 2))
    assert ((covered > 0) & (covered < 1)).all()
    # What is inverted covers its corners as a rule, and what is not does not.
    corners = found[:, [0, 0, -1, -1], [0, -1, 0, -1]].sum(1)
    np.testing.assert_allclose((corners >= 3).mean(), INVERTED, atol=0.06)
    drawn = np.where((corners >= 3)[:, None, None], ~found, found)
    share = drawn.mean((1, 2))
    assert 0.1 < share.mean() < 0.35 and share.min() < 0.03 and share.max() > 0.5
    # Boxes fill whole rows of their outline; of one box that is all there is.
    boxes = [m for m in drawn if m[np.ix_(m.any(1), m.any(0))].all()]
    assert 0.1 < len(boxes) / len(drawn) < 0.3  # one mask in six has a single box
    everywhere = found.mean(0)
    assert everywhere.min() > 0.3 and everywhere.max() < 0.7  # no place is always or never painted


def test_masks_are_functions_of_their_numbers() -> None:
    np.testing.assert_array_equal(masks(5), masks(5))
    assert len({m.tobytes() for m in masks(20)}) == 20
    for size in ((32, 32), (32, 400), (33, 64)):
        small = masks(50, size).mean((1, 2))
        assert ((small > 0) & (small < 1)).all()


def test_masked_pixels_are_white_and_the_mask_is_the_fourth_channel() -> None:
    image = np.random.default_rng(0).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    mask = np.zeros((4, 5), bool)
    mask[1, 2:] = True
    out = inpainting_map(image, mask)
    assert (out[mask] == 255).all()
    np.testing.assert_array_equal(out[~mask][:, :3], image[~mask])
    assert not out[~mask][:, 3].any()
