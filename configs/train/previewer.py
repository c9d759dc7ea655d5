"""The previewer from nothing, on a finished EffNet encoder.

python train.py configs/train/previewer.py --sources STAGE_B --data.path DATA --output RUN
"""

from configs.full import config as full
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.training.config import OptimizerConfig, PreviewerTask, TrainConfig

config = TrainConfig(
    task=PreviewerTask(),
    model=full,
    data=DataConfig(areas=(768,), ratios=("1/1",), batch_size=128, workers=8, image_vector_probability=0.0),
    steps=100_000,
    optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=1000, schedule="cosine"),
)
