"""Rows that stages B and C share: the layers of a level."""

from ultrapixel_jax.layouts.rows import (
    DEPTHWISE,
    FLATTEN,
    Row,
    conv,
    linear,
    split_rows,
    split_vector,
)

QKV = ("query", "key", "value")


def _layer(side: str, attention: str) -> tuple[Row, ...]:
    source, target = f"{side}_blocks.{{l}}.{{n}}", f"{side}_{{l}}/layer_{{n}}"
    return (
        # C
        *conv(f"{source}.depthwise", f"{target}/depthwise", DEPTHWISE),
        *linear(f"{source}.channelwise.0", f"{target}/expand"),
        Row(f"{source}.channelwise.2.gamma", f"{target}/grn/gamma", FLATTEN),
        Row(f"{source}.channelwise.2.beta", f"{target}/grn/beta", FLATTEN),
        *linear(f"{source}.channelwise.4", f"{target}/contract"),
        # T
        *linear(f"{source}.mapper", f"{target}/mapper"),
        *linear(f"{source}.mapper_sca", f"{target}/mapper_sca"),
        *linear(f"{source}.mapper_crp", f"{target}/mapper_crp"),
        # A
        *linear(f"{source}.kv_mapper.1", f"{target}/kv_mapper"),
        *(_packed_attention if attention == "packed" else _split_attention)(source, target),
    )


def _packed_attention(source: str, target: str) -> tuple[Row, ...]:
    kernels = tuple(f"{target}/{name}/kernel" for name in QKV)
    biases = tuple(f"{target}/{name}/bias" for name in QKV)
    return (
        Row(f"{source}.attention.attn.in_proj_weight", kernels, split_rows(3)),
        Row(f"{source}.attention.attn.in_proj_bias", biases, split_vector(3)),
        *linear(f"{source}.attention.attn.out_proj", f"{target}/out"),
    )


def _split_attention(source: str, target: str) -> tuple[Row, ...]:
    return (
        *linear(f"{source}.attention.to_q", f"{target}/query"),
        *linear(f"{source}.attention.to_k", f"{target}/key"),
        *linear(f"{source}.attention.to_v", f"{target}/value"),
        *linear(f"{source}.attention.to_out.0", f"{target}/out"),
    )


RELEASED = (*_layer("down", "packed"), *_layer("up", "packed"))
DIFFUSERS = (*_layer("down", "split"), *_layer("up", "split"))
