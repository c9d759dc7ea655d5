"""The demo's stage B, from tiles of the drawn world, on the finished stage A and EffNet encoder.

The encoder sees every picture at 3/4 of its size: the 42.67 of the full model over the encoder's 32.
"""

from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.demo.config import config as demo
from ultrapixel_jax.demo.train import PICTURES
from ultrapixel_jax.training.config import (
    CheckpointConfig,
    DiffusionTraining,
    LogConfig,
    OptimizerConfig,
    StageBTask,
    TrainConfig,
)

config = TrainConfig(
    task=StageBTask(
        DiffusionTraining("stable_diffusion", shift=2.0, adaptive_buckets=32),
        train_encoder=False,
        condition_scales=(0.75,),
        condition_dropout=0.05,
        pyramid_levels=(0, 0),
        draws=4,
        dropout=False,
    ),
    model=demo,
    data=DataConfig(areas=(256,), ratios=("1/1",), batch_size=32, lr_latent=2, image_vector_probability=0.0),
    steps=2500,
    scanned=False,
    optimizer=OptimizerConfig(
        algorithm="muon", learning_rate=6e-3, warmup_steps=200, schedule="cosine", ema_decay=0.998
    ),
    checkpoints=CheckpointConfig(every=500, keep_last=2),
    log=LogConfig(every=50),
    pictures=PICTURES,
)
