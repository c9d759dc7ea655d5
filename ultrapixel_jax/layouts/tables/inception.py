"""FID's Inception in the names of `pt_inception-2015-12-05`; ours are those in small letters."""

from __future__ import annotations

from ultrapixel_jax.layouts.rows import CONV, POINTWISE, Row, batch_norm, conv, linear

STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
A = (
    "branch1x1", "branch5x5_1", "branch5x5_2", "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3",
    "branch_pool",
)  # fmt: skip
B = ("branch3x3", "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
C = (
    "branch1x1", "branch7x7_1", "branch7x7_2", "branch7x7_3", "branch7x7dbl_1", "branch7x7dbl_2",
    "branch7x7dbl_3", "branch7x7dbl_4", "branch7x7dbl_5", "branch_pool",
)  # fmt: skip
D = (
    "branch3x3_1", "branch3x3_2", "branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4",
)  # fmt: skip
E = (
    "branch1x1", "branch3x3_1", "branch3x3_2a", "branch3x3_2b", "branch3x3dbl_1", "branch3x3dbl_2",
    "branch3x3dbl_3a", "branch3x3dbl_3b", "branch_pool",
)  # fmt: skip
BLOCKS = {
    "Mixed_5b": A, "Mixed_5c": A, "Mixed_5d": A, "Mixed_6a": B, "Mixed_6b": C, "Mixed_6c": C, "Mixed_6d": C,
    "Mixed_6e": C, "Mixed_7a": D, "Mixed_7b": E, "Mixed_7c": E,
}  # fmt: skip
POINTWISES = ("Conv2d_3b_1x1", "branch1x1", "branch_pool")
"""1×1 convolutions, besides the first one of every chain (`…_1`)."""


def _is_pointwise(name: str) -> bool:
    return name in POINTWISES or name.endswith("_1")


def unit(name: str) -> tuple[Row, ...]:
    """Rows of a convolution and the batch norm behind it."""
    target = name.lower().replace(".", "/")
    layout = POINTWISE if _is_pointwise(name.rpartition(".")[2]) else CONV
    kernel = conv(f"{name}.conv", f"{target}/conv", layout, bias=False)
    return (*kernel, *batch_norm(f"{name}.bn", f"{target}/norm"))


FILE: tuple[Row, ...] = (
    *(row for name in STEM for row in unit(name)),
    *(row for block, units in BLOCKS.items() for name in units for row in unit(f"{block}.{name}")),
    *linear("fc", "fc"),
)
