"""Stage B from nothing, together with the EffNet encoder, on a finished stage A.

    python train.py configs/train/stage_b.py --sources STAGE_A CLIP --data.path DATA --output RUN

`--task.no-train-encoder` takes the encoder from the sources and leaves it as it is.
"""

from configs.full import config as full
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.training.config import OptimizerConfig, StageBTask, TrainConfig

config = TrainConfig(
    task=StageBTask(),
    model=full,
    data=DataConfig(areas=(1024,), ratios=("1/1",), batch_size=256, workers=8, image_vector_probability=0.0),
    steps=500_000,
    optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=10_000, accumulate=4),
)
