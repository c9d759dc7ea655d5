"""UltraPixel as published: the four guidance networks on the frozen 3.6B stage C (paper section 4.1).

    python train.py configs/train/guidance.py --sources CHECKPOINT --data.path DATA --output RUN

CHECKPOINT is what `python -m convert` wrote of stage C, CLIP's two towers and the EffNet encoder; with
`--data.cached`, stage C alone. DATA holds captioned images of 1024 to 4608 pixels a side. 15,000 updates of
64 images, as in the paper. The frozen stage C takes 7.2 GB, the trained networks with optimizer and
average 1.7 GB, divided by `--mesh.fsdp`.

Ablations: `--model.guidance.upsampler bilinear_conv`, `--model.guidance.no-scale-aware-norm`,
`--model.guidance.inr-channels 512`, `--model.guidance.timestep 0.5` or `synchronized`, with
`--steps 5000`; LoRA in `lora.py`.
"""

from configs.full import config as full
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.training.config import GuidanceTask, OptimizerConfig, TrainConfig

config = TrainConfig(
    task=GuidanceTask(),
    model=full,
    data=DataConfig(batch_size=64, workers=8, clip_image_size=224),
    steps=15_000,
    optimizer=OptimizerConfig(accumulate=8),
)
