"""The three ControlNets: `RELEASED` has canny's and inpainting's, `SUPER_RESOLUTION` the third's names."""

from __future__ import annotations

from ultrapixel_jax.config import ControlNetConfig
from ultrapixel_jax.layouts.rows import POINTWISE, Row, conv, norm
from ultrapixel_jax.layouts.tables.efficientnet import backbone

PROJECTIONS = (
    *conv("projections.{n}.0", "projection_{n}/linear_0", POINTWISE, bias=False),
    *conv("projections.{n}.2", "projection_{n}/linear_2", POINTWISE, bias=False),
)


def rows(config: ControlNetConfig) -> tuple[Row, ...]:
    """Rows of canny's or inpainting's network that `config` describes."""
    return (*backbone(config.backbone), *PROJECTIONS)


RELEASED: tuple[Row, ...] = rows(ControlNetConfig())

SUPER_RESOLUTION: tuple[Row, ...] = (
    *conv("backbone.{n}", "backbone/linear_{n}", POINTWISE),
    *norm("backbone.{n}.blocks.0", "backbone/block_{n}/norm_0"),
    *conv("backbone.{n}.blocks.2", "backbone/block_{n}/conv_2"),
    *norm("backbone.{n}.blocks.3", "backbone/block_{n}/norm_3"),
    *conv("backbone.{n}.blocks.5", "backbone/block_{n}/conv_5"),
    *PROJECTIONS,
)
