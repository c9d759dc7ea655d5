"""Mutants of the networks, and of where their arrays lie on a mesh."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

BLOCKS, LAYERS, CONVOLUTIONS, ATTENTION, EMBEDDINGS, GUIDANCE, SCAN = (
    f"models/{name}.py"
    for name in ("blocks", "layers", "convolutions", "attention", "embeddings", "guidance", "scan")
)
TEST_BLOCKS, TEST_LAYERS, TEST_CONVOLUTIONS, TEST_SCAN, TEST_STAGE_C, TEST_STAGE_A, TEST_CLIP, TEST_NORMS = (
    f"tests/models/test_{name}.py"
    for name in ("blocks", "layers", "convolutions", "scan", "stage_c", "stage_a", "clip", "norms")
)
TEST_SHARDING, TEST_ROWS = "tests/test_sharding.py", "tests/models/test_rows.py"
FORMULA = f"{TEST_STAGE_C}::test_prepared_guidance_equals_the_formula_written_out"
GUIDED = f"{TEST_STAGE_C}::test_guided_pass"
GRN = f"{TEST_BLOCKS}::test_global_response_norm_formula"
ON_GPUS = f"{TEST_BLOCKS}::test_the_resblock_of_gpus_forward_and_gradient"
GPU_PRODUCTS = f"{TEST_BLOCKS}::test_what_gpus_multiply"
OWN_ATTENTION = f"{TEST_BLOCKS}::test_attention_forward_and_gradient"
FOURIER = f"{TEST_BLOCKS}::test_fourier_features_by_the_specification"
TIME = f"{TEST_BLOCKS}::test_time_embedding_rounds_where_the_reference_does"

MUTANTS = (
    Mutant("GRN: epsilon", BLOCKS, "+ 1e-6)", "+ 1e-5)", (TEST_NORMS,)),
    Mutant(
        "GRN: mean of squares",
        BLOCKS,
        "self.affine_of(sum_of_squares(x))",
        "self.affine_of(sum_of_squares(x) / (x.shape[1] * x.shape[2]))",
        (TEST_NORMS,),
    ),
    Mutant(
        "GRN: pixels left over by slices",
        LAYERS,
        "optimization_barrier(sums).sum(1) + rest.sum(1)",
        "optimization_barrier(sums).sum(1)",
        (f"{TEST_LAYERS}::test_sum_of_squares",),
    ),
    Mutant(
        "GRN: gradient of half the squares",
        LAYERS,
        "2 * cotangent[:, None, None]",
        "cotangent[:, None, None]",
        (f"{TEST_LAYERS}::test_sum_of_squares",),
    ),
    Mutant("GRN: without its input", BLOCKS, "* relative + 1.0", "* relative", (GRN,)),
    Mutant("GRN: relative to the largest", BLOCKS, "norm.mean(-1", "norm.max(-1", (GRN,)),
    Mutant("GRN: beta multiplies", LAYERS, "[:, None, None] + per", "[:, None, None] * per", (GRN,)),
    Mutant("GRN in the kernel: beta", LAYERS, "kernel32).sum(0)", "kernel32).mean(0)", (ON_GPUS,)),
    Mutant(
        "GRN in the kernel of a small map",
        LAYERS,
        "x.shape[1:-1]) > features",
        "x.shape[1:-1]) < features",
        (GPU_PRODUCTS,),
    ),
    Mutant(
        "products of GPUs",
        LAYERS,
        'dtype if platform() == "gpu"',
        'dtype if platform() == "tpu"',
        (GPU_PRODUCTS,),
    ),
    Mutant("T: scale without its 1", BLOCKS, "* (1.0 + a) + b", "* a + b", (FORMULA,)),
    Mutant(
        "skip before the norm's output",
        BLOCKS,
        "[y, skip], axis",
        "[skip, y], axis",
        ("tests/models/test_stage_b.py",),
    ),
    Mutant(
        "A: tokens without SiLU",
        BLOCKS,
        "self.kv_mapper(jax.nn.silu(tokens))",
        "self.kv_mapper(tokens)",
        (f"{TEST_STAGE_C}::test_plain_pass",),
    ),
    Mutant(
        "A: keys and values exchanged",
        BLOCKS,
        "(self.key, self.value))",
        "(self.value, self.key))",
        (f"{TEST_STAGE_C}::test_plain_pass",),
    ),
    Mutant(
        "first A of every repetition gives guidance",
        BLOCKS,
        "if attn == 0 and repeat == 0",
        "if attn == 1 and repeat == 0",
        (f"{TEST_STAGE_C}::test_guidance_maps",),
    ),
    Mutant(
        "skip joins the first repetition alone",
        BLOCKS,
        "joins = res == 0 and",
        "joins = res == 0 and repeat == 0 and",
        ("tests/models/test_stage_b.py",),
    ),
    Mutant(
        "dropout: none",
        BLOCKS,
        "dropout(grn(y), self.dropout, keys)",
        "dropout(grn(y), 0.0, keys)",
        ("tests/models/test_dropout.py",),
    ),
    Mutant(
        "dropout: one key for all scanned blocks",
        BLOCKS,
        "jnp.arange(1, self.blocks) * len(self.config.layers)",
        "jnp.zeros(self.blocks - 1, jnp.int32)",
        ("tests/models/test_dropout.py",),
    ),
    Mutant(
        "fresh residual branches at full size",
        BLOCKS,
        "for level in levels)) ** 0.5",
        "for level in levels)) ** 0.0",
        (f"{TEST_BLOCKS}::test_residual_branches_start_the_smaller_the_more_there_are",),
    ),
    Mutant(
        "layer norm: epsilon",
        LAYERS,
        "epsilon: float = 1e-6) -> Float",
        "epsilon: float = 1e-5) -> Float",
        (TEST_NORMS,),
    ),
    Mutant(
        "affine layer norm: epsilon",
        LAYERS,
        'statistics in float32."""\n\n    epsilon: float = 1e-5',
        'statistics in float32."""\n\n    epsilon: float = 1e-6',
        (TEST_NORMS,),
    ),
    Mutant("batch norm: biased variance kept", LAYERS, "(count / max(count - 1, 1))", "1.0", (TEST_NORMS,)),
    Mutant(
        "batch norm: momentum of the old",
        LAYERS,
        "momentum: float = 0.1",
        "momentum: float = 0.9",
        (TEST_NORMS,),
    ),
    Mutant(
        "GELU by tanh",
        LAYERS,
        "1.0 + jax.lax.erf(x32 * math.sqrt(0.5))",
        "1.0 + jnp.tanh(0.7978845608 * (x32 + 0.044715 * x32**3))",
        (f"{TEST_LAYERS}::test_gelu",),
    ),
    Mutant(
        "pixel shuffle: order",
        LAYERS,
        "x.transpose(0, 1, 4, 2, 5, 3)",
        "x.transpose(0, 1, 5, 2, 4, 3)",
        (f"{TEST_BLOCKS}::test_pixel_unshuffle_as_in_torch_and_back",),
    ),
    Mutant(
        "depthwise: border",
        CONVOLUTIONS,
        'mode="edge" if edge else "constant"',
        'mode="reflect" if edge else "constant"',
        (f"{TEST_CONVOLUTIONS}::test_depthwise",),
    ),
    Mutant(
        "depthwise: kernel of the gradient",
        CONVOLUTIONS,
        "kernel[::-1, ::-1], (padded",
        "kernel[::-1], (padded",
        (f"{TEST_CONVOLUTIONS}::test_depthwise",),
    ),
    Mutant(
        "depthwise on rows: neighbours exchanged",
        CONVOLUTIONS,
        "jnp.concatenate([above, x, below]",
        "jnp.concatenate([below, x, above]",
        (f"{TEST_CONVOLUTIONS}::test_depthwise_on_divided_rows",),
    ),
    Mutant(
        "attention: scale",
        ATTENTION,
        "logits = dot(q, k, 1, 1) * (1.0 / math.sqrt(q.shape[-1]))",
        "logits = dot(q, k, 1, 1) * (1.0 / q.shape[-1])",
        (OWN_ATTENTION,),
    ),
    Mutant("attention: scale of the gradient", ATTENTION, "(change * scale)", "(change)", (OWN_ATTENTION,)),
    Mutant("attention: mean of the gradient", ATTENTION, "- mean[None])", "+ mean[None])", (OWN_ATTENTION,)),
    Mutant(
        "angle of the noise level", EMBEDDINGS, "MAX_POSITIONS = 10_000", "MAX_POSITIONS = 9_999", (TIME,)
    ),
    Mutant(
        "sine and cosine exchanged",
        EMBEDDINGS,
        "[jnp.sin(angle), jnp.cos(angle)]",
        "[jnp.cos(angle), jnp.sin(angle)]",
        (TIME,),
    ),
    Mutant("INR: pixels' corners", EMBEDDINGS, "(2.0 * (0.5 + i))", "(2.0 * i)", (FOURIER,)),
    Mutant(
        "INR: x before y",
        EMBEDDINGS,
        "jnp.concatenate([y, x], axis=-1)",
        "jnp.concatenate([x, y], axis=-1)",
        (FOURIER,),
    ),
    Mutant("INR: highest frequency", EMBEDDINGS, "math.log(1024.0)", "math.log(1023.0)", (FOURIER,)),
    Mutant("INR: positions", GUIDANCE, "posemb[None, : h * w]", "posemb[None, h * w - 1 :: -1]", (GUIDED,)),
    Mutant(
        "INR: kernels not of unit length", GUIDANCE, "kernel / jnp.maximum(norm, 1e-12)", "kernel", (GUIDED,)
    ),
    Mutant("INR: ReLU on the second layer", GUIDANCE, "if i == 0 else y", "if i == 1 else y", (GUIDED,)),
    Mutant("INR: without the enlarged map", GUIDANCE, " + resize_nearest(g, size)", "", (GUIDED,)),
    Mutant(
        "fusion: order of its halves",
        GUIDANCE,
        "apply_linear(u, self.kernel[: self.channels]",
        "apply_linear(u, self.kernel[self.channels :]",
        (FORMULA,),
    ),
    Mutant(
        "fusion: modulated after the norm",
        GUIDANCE,
        "layer_norm(modulate(y, self.mapp_t(e_t)))",
        "modulate(layer_norm(y), self.mapp_t(e_t))",
        (FORMULA,),
    ),
    Mutant(
        "SAN: without its input",
        GUIDANCE,
        "modulate(y, mapper(e_s)) + y",
        "modulate(y, mapper(e_s))",
        (FORMULA,),
    ),
    Mutant(
        "guide weight on the sum",
        GUIDANCE,
        "(x.astype(jnp.float32) + weight * added)",
        "(weight * (x.astype(jnp.float32) + added))",
        (FORMULA,),
    ),
    Mutant(
        "bilinear: corners not aligned",
        "models/resize.py",
        "jnp.maximum(jnp.asarray(target - 1, jnp.float32), 1.0)",
        "jnp.asarray(target, jnp.float32)",
        (f"{TEST_BLOCKS}::test_bilinear_aligned_as_in_torch",),
    ),
    Mutant(
        "stacked blocks: order",
        SCAN,
        "for b in range(1, blocks))\n                )",
        "for b in range(blocks - 1, 0, -1))\n                )",
        (f"{TEST_SCAN}::test_scanned_equals_unrolled",),
    ),
    Mutant(
        "stage A: commitment", "models/stage_a.py", "COMMITMENT = 0.25", "COMMITMENT = 0.5", (TEST_STAGE_A,)
    ),
    Mutant(
        "stage A: codebook's gradient to z",
        "models/stage_a.py",
        "jnp.square(q - jax.lax.stop_gradient(z))",
        "jnp.square(q - z)",
        (f"{TEST_STAGE_A}::test_gradients_of_the_quantizer",),
    ),
    Mutant("CLIP: looks ahead", "models/clip_text.py", "jnp.tril(", "jnp.triu(", (TEST_CLIP,)),
    Mutant(
        "ControlNet: slope",
        "models/controlnet.py",
        "LEAK = 0.2",
        "LEAK = 0.1",
        ("tests/models/test_controlnet.py",),
    ),
    Mutant(
        "EfficientNet: epsilon",
        "models/efficientnet.py",
        "EPSILON = 1e-3",
        "EPSILON = 1e-5",
        ("tests/models/test_efficientnet.py",),
    ),
    Mutant(
        "last layers split as others",
        "sharding.py",
        'P("tensor", "fsdp")),',
        'P("fsdp", "tensor")),',
        (TEST_SHARDING,),
    ),
    Mutant(
        "stacked weights split by block",
        "sharding.py",
        "return P(None, *parameter_spec(",
        "return P(*parameter_spec(",
        (TEST_SHARDING,),
    ),
)
