"""The previewer; both sides number its layers alike."""

from __future__ import annotations

from ultrapixel_jax.layouts.rows import CONV_TRANSPOSED, POINTWISE, Row, batch_norm, conv

POINTWISES = (0, 24)
CONVS = (3, 9, 15, 21)
UPS = (6, 12, 18)
NORMS = (2, 5, 8, 11, 14, 17, 20, 23)

RELEASED: tuple[Row, ...] = (
    *(row for n in POINTWISES for row in conv(f"blocks.{n}", f"conv_{n}", POINTWISE)),
    *(row for n in CONVS for row in conv(f"blocks.{n}", f"conv_{n}")),
    *(row for n in UPS for row in conv(f"blocks.{n}", f"up_{n}", CONV_TRANSPOSED)),
    *(row for n in NORMS for row in batch_norm(f"blocks.{n}", f"norm_{n}")),
)
