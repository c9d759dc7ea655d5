"""Stage C, released and diffusers layouts."""

from ultrapixel_jax.layouts.rows import POINTWISE, conv, linear
from ultrapixel_jax.layouts.tables import unet

_COMMON = (
    *linear("clip_txt_mapper", "clip_txt_mapper"),
    *linear("clip_txt_pooled_mapper", "clip_txt_pooled_mapper"),
    *linear("clip_img_mapper", "clip_img_mapper"),
    *conv("embedding.1", "embedding", POINTWISE),
    # With two levels there is one downscaler, into level 1, and one upscaler, out of level 1.
    *conv("down_downscalers.1.1.blocks.0", "downscaler_0", POINTWISE),
    *conv("up_upscalers.0.1.blocks.1", "upscaler_0", POINTWISE),
    *conv("clf.1", "clf", POINTWISE),
)

RELEASED = (*_COMMON, *unet.RELEASED)
DIFFUSERS = (*_COMMON, *unet.DIFFUSERS)
