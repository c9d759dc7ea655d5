"""The four guidance networks of UltraPixel.

The released file numbers them `{m}.{i}`, with m the position of a list in the training module (64 for
the down places and 65 for the up places of the full model). `convert.keys` turns these into `down.{i}`
and `up.{i}`, which the rows below read.
"""

from ultrapixel_jax.layouts.rows import (
    CONV,
    POINTWISE,
    Row,
    conv,
    linear,
    norm,
    split_rows,
    split_vector,
)


def _network(side: str) -> tuple[Row, ...]:
    source, target = f"{side}.{{i}}", f"{side}_{{i}}"
    inr, layers = f"{target}/upsampler", f"{source}.transformer_encoder.layers.0"
    transformer = f"{inr}/transformer"
    return (
        # The implicit neural representation
        Row(f"{source}.wtokens", f"{inr}/wtokens"),
        *conv(f"{source}.input_layer", f"{inr}/input_layer", POINTWISE),
        Row(f"{source}.tokenizer.posemb", f"{inr}/posemb"),
        *linear(f"{source}.tokenizer.prefc", f"{inr}/tokenizer"),
        *norm(f"{layers}.0.norm", f"{transformer}/attention_norm"),
        *linear(f"{layers}.0.fn.to_q.1", f"{transformer}/query"),
        Row(
            f"{layers}.0.fn.to_kv.1.weight",
            (f"{transformer}/key/kernel", f"{transformer}/value/kernel"),
            split_rows(2),
        ),
        Row(
            f"{layers}.0.fn.to_kv.1.bias",
            (f"{transformer}/key/bias", f"{transformer}/value/bias"),
            split_vector(2),
        ),
        *norm(f"{layers}.1.norm", f"{transformer}/mlp_norm"),
        *linear(f"{layers}.1.fn.net.0", f"{transformer}/mlp_in"),
        *linear(f"{layers}.1.fn.net.3", f"{transformer}/mlp_out"),
        Row(f"{source}.base_params.wb{{k}}", f"{inr}/wb{{k}}"),
        *norm(f"{source}.wtoken_postfc.wb{{k}}.0", f"{inr}/wb{{k}}_norm"),
        *linear(f"{source}.wtoken_postfc.wb{{k}}.1", f"{inr}/wb{{k}}_mapper"),
        *conv(f"{source}.output_layer", f"{inr}/output_layer", POINTWISE),
        # The ablation's upsampler, which was not released: our name
        *conv(f"{source}.upsample_conv", f"{inr}/conv", CONV),
        # Fusion and scale-aware normalisation
        *linear(f"{source}.toout.0", f"{target}/fuse_in"),
        *linear(f"{source}.toout.2", f"{target}/fuse_out"),
        *linear(f"{source}.mapp_t.mapper", f"{target}/mapp_t"),
        *linear(f"{source}.hr_norm.mapping.mapper", f"{target}/hr_norm/mapper"),
        # Stored in the released file, used by nothing
        Row(f"{source}.hr_norm.alpha.weight", f"unused/{target}/hr_norm/alpha_kernel", POINTWISE),
        Row(f"{source}.hr_norm.alpha.bias", f"unused/{target}/hr_norm/alpha_bias"),
        Row(f"{source}.hr_norm.gamma.weight", f"unused/{target}/hr_norm/gamma_kernel", POINTWISE),
        Row(f"{source}.hr_norm.gamma.bias", f"unused/{target}/hr_norm/gamma_bias"),
    )


RELEASED = (*_network("down"), *_network("up"))
