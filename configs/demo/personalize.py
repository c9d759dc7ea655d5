r"""The demo with a LoRA and a new word, from ten pictures of 768² with captions that have the word [subject].

    python train.py configs/demo/personalize.py --sources ultrapixel_jax/assets/demo --data.path DATA \
        --data.prior WORLD --output RUN

WORLD holds pictures of the demo's world (`python -m ultrapixel_jax.demo.world.build`), without which it is
forgotten (docs/demo.md); a rate that falls to nothing brings its textures back. All updates are at the low
resolution; more, with `--steps`, go on at both.
"""

import dataclasses

from configs.demo.stage_c import config as stage_c
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.training.config import (
    CheckpointConfig,
    DiffusionTraining,
    LogConfig,
    OptimizerConfig,
    PersonalTask,
)

demo = stage_c.model
config = dataclasses.replace(
    stage_c,
    task=PersonalTask(DiffusionTraining("stable_diffusion", shift=2.0, adaptive_buckets=32), lr_steps=4000),
    model=dataclasses.replace(
        demo,
        lora=dataclasses.replace(
            demo.lora, rank=16, alpha=16.0, modules=(r".*/(in_proj|out|kv_mapper|expand|contract)",),
            tokens=("[subject]",),
        ),
    ),
    data=DataConfig(
        areas=(576,), ratios=("1/1",), batch_size=4, image_vector_probability=0.0, caption_dropout=0.1
    ),
    dtype="float32",
    steps=4000,
    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=20, ema_decay=0.99),
    checkpoints=CheckpointConfig(every=500, keep_last=2),
    log=LogConfig(every=50),
)  # fmt: skip
