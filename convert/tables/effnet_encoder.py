"""The EffNet encoder."""

from __future__ import annotations

from convert.rows import POINTWISE, Row, batch_norm, conv
from convert.tables.efficientnet import backbone
from ultrapixel_jax.config import EffnetEncoderConfig


def rows(config: EffnetEncoderConfig) -> tuple[Row, ...]:
    """Rows of the network that `config` describes."""
    return (
        *backbone(config.backbone),
        *conv("mapper.0", "mapper", POINTWISE, bias=False),
        *batch_norm("mapper.1", "mapper_norm", affine=False),
    )


RELEASED: tuple[Row, ...] = rows(EffnetEncoderConfig())
