"""The EffNet encoder."""

from __future__ import annotations

from convert.rows import POINTWISE, Row, batch_norm, conv
from convert.tables.efficientnet import BACKBONE

RELEASED: tuple[Row, ...] = (
    *BACKBONE,
    *conv("mapper.0", "mapper", POINTWISE, bias=False),
    *batch_norm("mapper.1", "mapper_norm", affine=False),
)
