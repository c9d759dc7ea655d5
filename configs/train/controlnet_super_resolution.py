r"""A ControlNet that sees the picture at half its size, on the frozen 3.6B stage C.

    python train.py configs/train/controlnet_super_resolution.py --sources CHECKPOINT --data.path DATA \
      --output RUN

CHECKPOINT and DATA as in `controlnet_canny.py`; the EffNet encoder is needed with cached latents too, for the
small picture's. 30,000 updates of 203 million parameters that begin as random numbers.
"""

import dataclasses

from configs.train.controlnet_canny import config as canny
from ultrapixel_jax.training.config import ControlNetTask

config = dataclasses.replace(
    canny,
    task=ControlNetTask(backbone="nothing", offset_noise=0.1),
    model=dataclasses.replace(
        canny.model, controlnet=dataclasses.replace(canny.model.controlnet, kind="super_resolution")
    ),
    steps=30_000,
)
