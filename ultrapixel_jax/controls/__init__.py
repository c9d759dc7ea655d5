"""Control images: what a ControlNet sees of a picture, made on the host (§10). Imports no jax.

Training makes them of its pictures in the loader, sampling of what a user gives. `canny` has edges; `masks`
what is to be painted anew, and where in training; super-resolution sees a latent, which its network's task
encodes.
"""

from __future__ import annotations

from ultrapixel_jax.controls.canny import HIGH, LOW, canny_map
from ultrapixel_jax.controls.masks import inpainting_map, random_mask
from ultrapixel_jax.controls.training import map_of_picture

__all__ = ["HIGH", "LOW", "canny_map", "inpainting_map", "map_of_picture", "random_mask"]
