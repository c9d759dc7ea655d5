"""The released models at full size: stage C 3.6B with UltraPixel's guidance, stage B 1.5B, CLIP bigG.

    python sample.py --checkpoint DIR --prompt "…" --size 4096x4096

Weights in bfloat16: 12 GB (stage C 7.2, stage B 3.1, CLIP 1.4, the rest 0.3).
"""

from ultrapixel_jax.config import CascadeConfig, GuidanceConfig

# 1K to 6K, and shapes up to 6:1: what the paper trained UltraPixel for.
config = CascadeConfig(guidance=GuidanceConfig(trained_sides=(1024, 6144), trained_ratio=6.0))
