"""EfficientNetV2's `features` in torchvision's names, under `backbone`; shared by two networks."""

from __future__ import annotations

from ultrapixel_jax.config import EfficientNetConfig
from ultrapixel_jax.layouts.rows import CONV, DEPTHWISE, POINTWISE, Layout, Row, batch_norm, conv


def conv_norm(source: str, target: str, layout: Layout) -> tuple[Row, ...]:
    """Rows of a convolution without bias and the batch norm behind it."""
    kernel = conv(f"{source}.0", f"{target}/conv", layout, bias=False)
    return (*kernel, *batch_norm(f"{source}.1", f"{target}/norm"))


def fused(stage: int) -> tuple[Row, ...]:
    """Rows of a stage of Fused-MBConv blocks with expansion."""
    source, target = f"backbone.{stage}.{{n}}.block", f"backbone/stage_{stage}_block_{{n}}"
    return (
        *conv_norm(f"{source}.0", f"{target}/fused", CONV),
        *conv_norm(f"{source}.1", f"{target}/project", POINTWISE),
    )


def mbconv(stage: int) -> tuple[Row, ...]:
    """Rows of a stage of MBConv blocks."""
    source, target = f"backbone.{stage}.{{n}}.block", f"backbone/stage_{stage}_block_{{n}}"
    return (
        *conv_norm(f"{source}.0", f"{target}/expand", POINTWISE),
        *conv_norm(f"{source}.1", f"{target}/depthwise", DEPTHWISE),
        *conv(f"{source}.2.fc1", f"{target}/squeeze/fc1", POINTWISE),
        *conv(f"{source}.2.fc2", f"{target}/squeeze/fc2", POINTWISE),
        *conv_norm(f"{source}.3", f"{target}/project", POINTWISE),
    )


def backbone(config: EfficientNetConfig) -> tuple[Row, ...]:
    """Rows of the network that `config` describes."""
    rows = conv_norm("backbone.0", "backbone/stem", CONV)
    for number, stage in enumerate(config.stages, 1):
        if stage.kind == "fused" and stage.expand == 1:
            block = f"backbone.{number}.{{n}}.block.0", f"backbone/stage_{number}_block_{{n}}/fused"
            rows += conv_norm(*block, CONV)
        else:
            rows += (fused if stage.kind == "fused" else mbconv)(number)
    return (*rows, *conv_norm(f"backbone.{len(config.stages) + 1}", "backbone/head", POINTWISE))
