"""Stage A: released and diffusers' (`PaellaVQModel`) names, which differ in the codebook only."""

from __future__ import annotations

from ultrapixel_jax.layouts.rows import CONV_TRANSPOSED, DEPTHWISE, POINTWISE, Row, batch_norm, conv, linear


def block(source: str, target: str) -> tuple[Row, ...]:
    """Rows of one block with its six gammas."""
    return (
        Row(f"{source}.gammas", f"{target}/gammas"),
        *conv(f"{source}.depthwise.1", f"{target}/depthwise", DEPTHWISE),
        *linear(f"{source}.channelwise.0", f"{target}/mlp_in"),
        *linear(f"{source}.channelwise.2", f"{target}/mlp_out"),
    )


NETWORK = (
    *conv("in_block.1", "encoder/in_conv", POINTWISE),
    *block("down_blocks.{n}", "encoder/block_{n}"),
    *conv("down_blocks.1", "encoder/down_1"),
    *conv("down_blocks.3.0", "encoder/out_conv", POINTWISE, bias=False),
    *batch_norm("down_blocks.3.1", "encoder/out_norm"),
    *conv("up_blocks.0.0", "decoder/in_conv", POINTWISE),
    *block("up_blocks.{n}", "decoder/block_{n}"),
    *conv("up_blocks.{n}", "decoder/up_{n}", CONV_TRANSPOSED),
    *conv("out_block.0", "decoder/out_conv", POINTWISE),
)

RELEASED: tuple[Row, ...] = (*NETWORK, Row("vquantizer.codebook.weight", "codebook"))
DIFFUSERS: tuple[Row, ...] = (*NETWORK, Row("vquantizer.embedding.weight", "codebook"))
