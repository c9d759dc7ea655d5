"""A ControlNet for edges on the frozen 3.6B stage C, as Stability's was trained.

    python train.py configs/train/controlnet_canny.py --sources CHECKPOINT --data.path DATA --output RUN

CHECKPOINT is what `python -m convert` wrote of stage C, CLIP's two towers and the EffNet encoder, whose
backbone the ControlNet's begins as. DATA holds captioned images; with `--data.cached`, latents with pictures
(`python -m ultrapixel_jax.data.cache … --pictures`). Edges are found while the data are read. 10,000 updates
of 256 images of 768². 54 million trained parameters: 0.9 GB with optimizer and average; the frozen stage C
takes 7.2 GB.
"""

from configs.full import config as full
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.training.config import ControlNetTask, OptimizerConfig, TrainConfig

config = TrainConfig(
    task=ControlNetTask(),
    model=full,
    data=DataConfig(areas=(768,), batch_size=256, workers=8, clip_image_size=224),
    steps=10_000,
    optimizer=OptimizerConfig(learning_rate=1e-4, accumulate=8),
)
