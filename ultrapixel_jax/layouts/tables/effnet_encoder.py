"""The EffNet encoder."""

from __future__ import annotations

from ultrapixel_jax.config import EffnetEncoderConfig
from ultrapixel_jax.layouts.rows import POINTWISE, Row, batch_norm, conv
from ultrapixel_jax.layouts.tables.efficientnet import backbone


def rows(config: EffnetEncoderConfig) -> tuple[Row, ...]:
    """Rows of the network that `config` describes."""
    return (
        *backbone(config.backbone),
        *conv("mapper.0", "mapper", POINTWISE, bias=False),
        *batch_norm("mapper.1", "mapper_norm", affine=False),
    )


RELEASED: tuple[Row, ...] = rows(EffnetEncoderConfig())
