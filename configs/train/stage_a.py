"""Stage A from nothing: the autoencoder between pixels and stage B's latent.

python train.py configs/train/stage_a.py --data.path DATA --output RUN
"""

from configs.full import config as full
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.training.config import OptimizerConfig, StageATask, TrainConfig

config = TrainConfig(
    task=StageATask(),
    model=full,
    data=DataConfig(areas=(512,), ratios=("1/1",), batch_size=256, workers=8, image_vector_probability=0.0),
    steps=500_000,
    dtype="float32",
    optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=1000, schedule="cosine"),
)
