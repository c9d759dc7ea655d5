"""CLIPs of the full sizes beside transformers' `CLIPModel`, with weights made from names.

    python -m tests.models.full_clip [clip_l14 clip_h14 …]

Takes a minute or two, and up to four times the weights' memory for each (H/14: 4 GB of weights).
"""

import sys

import jax

from tests.models.test_whole_clip import difference
from ultrapixel_jax.models import measuring

if __name__ == "__main__":
    jax.config.update("jax_default_matmul_precision", "highest")
    for network in sys.argv[1:] or ("clip_l14", "clip_h14"):
        print(f"{network}: {difference(measuring.CLIPS[network]):.1e} of the largest logit", flush=True)
