"""The demo's EffNet encoder and its previewer, together as an autoencoder.

The full model's encoder is trained through stage B's noise. Trained so, this one's latents of large pictures
came out four times those of small; as an autoencoder's they have one scale, and stage C need not wait for
stage B. Tiles are read at 3/4 of their size, as stage B shows them to the encoder.
"""

from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.demo.config import config as demo
from ultrapixel_jax.training.config import (
    CheckpointConfig,
    LogConfig,
    OptimizerConfig,
    PreviewerTask,
    TrainConfig,
)

config = TrainConfig(
    task=PreviewerTask(train_encoder=True),
    model=demo,
    data=DataConfig(areas=(192,), ratios=("1/1",), batch_size=16, lr_side=2, image_vector_probability=0.0),
    steps=4000,
    dtype="float32",
    scanned=False,
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100, schedule="cosine", ema_decay=0.998),
    checkpoints=CheckpointConfig(every=500, keep_last=2),
    log=LogConfig(every=50),
)
