"""Stage B, released and diffusers layouts."""

from ultrapixel_jax.layouts.rows import CONV, CONV_TRANSPOSED, POINTWISE, conv, linear
from ultrapixel_jax.layouts.tables import unet

_COMMON = (
    *conv("effnet_mapper.0", "effnet_mapper/expand", POINTWISE),
    *conv("effnet_mapper.2", "effnet_mapper/contract", POINTWISE),
    *conv("pixels_mapper.0", "pixels_mapper/expand", POINTWISE),
    *conv("pixels_mapper.2", "pixels_mapper/contract", POINTWISE),
    *conv("embedding.1", "embedding", POINTWISE),
    # The released lists are by level, ours by transition: one fewer.
    *conv("down_downscalers.1.1", "downscaler_0", CONV),
    *conv("down_downscalers.2.1", "downscaler_1", CONV),
    *conv("down_downscalers.3.1", "downscaler_2", CONV),
    *conv("up_upscalers.{l}.1", "upscaler_{l}", CONV_TRANSPOSED),
    *conv("down_repeat_mappers.{l}.{n}", "down_{l}/repeat_mapper_{n}", POINTWISE),
    *conv("up_repeat_mappers.{l}.{n}", "up_{l}/repeat_mapper_{n}", POINTWISE),
    *conv("clf.1", "clf", POINTWISE),
)

RELEASED = (*linear("clip_mapper", "clip_mapper"), *_COMMON, *unet.RELEASED)
DIFFUSERS = (*linear("clip_txt_pooled_mapper", "clip_mapper"), *_COMMON, *unet.DIFFUSERS)
