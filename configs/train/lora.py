"""The paper's LoRA ablation (table 4): rank 48 on stage C's attention at the HR size, no guidance.

    python train.py configs/train/lora.py --sources CHECKPOINT --data.path DATA --output RUN

106 million trained parameters, 5,000 updates.
"""

import dataclasses

from configs.full import config as full
from configs.train.guidance import config as guidance
from ultrapixel_jax.training.config import LoraTask

config = dataclasses.replace(
    guidance,
    task=LoraTask(),
    model=dataclasses.replace(full, lora=dataclasses.replace(full.lora, rank=48)),
    steps=5_000,
)
