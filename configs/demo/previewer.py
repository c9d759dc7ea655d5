"""The demo's EffNet encoder and its previewer, together as an autoencoder.

The full model's encoder is trained through stage B's noise; trained as an autoencoder, it can be finished
before stage B. Noise is added to the latents (of variance 1), so that they hold no more than a picture needs,
and that the previewer forgives what stage C leaves inexact. Views are drawn at 3/4 of their size, as stage B
shows pictures to the encoder.
"""

from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.demo.config import config as demo
from ultrapixel_jax.demo.train import PICTURES
from ultrapixel_jax.training.config import (
    CheckpointConfig,
    LogConfig,
    OptimizerConfig,
    PreviewerTask,
    TrainConfig,
)

config = TrainConfig(
    task=PreviewerTask(train_encoder=True, latent_noise=0.3, outlier_weight=0.1),
    model=demo,
    data=DataConfig(areas=(288,), ratios=("1/1",), batch_size=64, lr_latent=2, image_vector_probability=0.0),
    steps=2750,
    dtype="float32",
    scanned=False,
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100, schedule="cosine", ema_decay=0.998),
    checkpoints=CheckpointConfig(every=500, keep_last=2),
    log=LogConfig(every=50),
    pictures=PICTURES,
)
