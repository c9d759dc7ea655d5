"""CLIP's text and vision towers in transformers' names; old files also hold `position_ids`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ultrapixel_jax.layouts.rows import CONV, Row, conv, linear, norm


def layers(source: str) -> tuple[Row, ...]:
    """Rows of the transformer layers of either tower."""
    attention = f"{source}.{{n}}.self_attn"
    return (
        *norm(f"{source}.{{n}}.layer_norm1", "layer_{n}/norm_1"),
        *linear(f"{attention}.q_proj", "layer_{n}/attention/q"),
        *linear(f"{attention}.k_proj", "layer_{n}/attention/k"),
        *linear(f"{attention}.v_proj", "layer_{n}/attention/v"),
        *linear(f"{attention}.out_proj", "layer_{n}/attention/out"),
        *norm(f"{source}.{{n}}.layer_norm2", "layer_{n}/norm_2"),
        *linear(f"{source}.{{n}}.mlp.fc1", "layer_{n}/mlp_in"),
        *linear(f"{source}.{{n}}.mlp.fc2", "layer_{n}/mlp_out"),
    )


TEXT: tuple[Row, ...] = (
    Row("text_model.embeddings.token_embedding.weight", "token_embedding"),
    Row("text_model.embeddings.position_embedding.weight", "position_embedding"),
    Row("text_model.embeddings.position_ids", None, optional=True),
    *layers("text_model.encoder.layers"),
    *norm("text_model.final_layer_norm", "final_norm"),
    *linear("text_projection", "text_projection", bias=False),
)

VISION: tuple[Row, ...] = (
    Row("vision_model.embeddings.class_embedding", "class_embedding"),
    *conv("vision_model.embeddings.patch_embedding", "patch_embedding", CONV, bias=False),
    Row("vision_model.embeddings.position_embedding.weight", "position_embedding"),
    Row("vision_model.embeddings.position_ids", None, optional=True),
    *norm("vision_model.pre_layrnorm", "pre_norm"),  # spelt so in the files
    *layers("vision_model.encoder.layers"),
    *norm("vision_model.post_layernorm", "post_norm"),
    *linear("visual_projection", "visual_projection", bias=False),
)


def under(prefix: str, rows: Sequence[Row]) -> tuple[Row, ...]:
    """`rows` whose targets lie in a submodule."""
    return tuple(
        row if row.target is None else dataclasses.replace(row, target=f"{prefix}/{row.target}")
        for row in rows
    )


WHOLE: tuple[Row, ...] = (*under("text", TEXT), *under("vision", VISION), Row("logit_scale", "logit_scale"))
"""Both towers and their scale, in one file."""
