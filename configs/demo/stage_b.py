"""The demo's stage B and its EffNet encoder, from tiles of the drawn world, on the finished stage A.

The encoder sees every picture at 3/4 of its size: the 42.67 of the full model over the encoder's 32.
"""

from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.demo.config import config as demo
from ultrapixel_jax.training.config import (
    CheckpointConfig,
    LogConfig,
    OptimizerConfig,
    StageBTask,
    TrainConfig,
)

config = TrainConfig(
    task=StageBTask(condition_scales=(0.75,), condition_dropout=0.05, pyramid_levels=(0, 0)),
    model=demo,
    data=DataConfig(areas=(256,), ratios=("1/1",), batch_size=16, lr_side=2, image_vector_probability=0.0),
    start_from_sources=True,  # the encoder
    random_frozen=True,  # the text encoder, which does not exist yet; a second part takes the real one
    steps=2400,
    scanned=False,
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=200, schedule="cosine", ema_decay=0.998),
    checkpoints=CheckpointConfig(every=500, keep_last=2),
    log=LogConfig(every=50),
)
