"""A released LoRA file, whose numbers `convert.formats` has turned into names of attention weights."""

from ultrapixel_jax.layouts.rows import Row

RELEASED = (
    *(
        Row(f"{side}.{{l}}.{{n}}.{part}.lora_{way}", f"{side}_{{l}}/layer_{{n}}/{part}/{way}")
        for side in ("down", "up")
        for part in ("in_proj", "out")
        for way in ("down", "up")
    ),
    # New text tokens, and the rows of the vocabulary that they are
    Row("tokens.embeddings", "embeddings"),
    Row("tokens.indices", None),
)
