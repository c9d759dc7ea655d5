"""The demo's stage A, from tiles of the drawn world."""

from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.demo.config import config as demo
from ultrapixel_jax.demo.train import PICTURES
from ultrapixel_jax.training.config import (
    CheckpointConfig,
    LogConfig,
    OptimizerConfig,
    StageATask,
    TrainConfig,
)

config = TrainConfig(
    task=StageATask(crop=64, quantize_probability=0.25, quantizer_weight=0.1),
    model=demo,
    data=DataConfig(areas=(256,), ratios=("1/1",), batch_size=16, lr_latent=2, image_vector_probability=0.0),
    steps=3000,
    dtype="float32",
    scanned=False,
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=200, schedule="cosine", ema_decay=0.998),
    checkpoints=CheckpointConfig(every=500, keep_last=2),
    log=LogConfig(every=50),
    pictures=PICTURES,
)
