"""A ControlNet for inpainting on the frozen 3.6B stage C, with random masks: brush strokes, boxes, inverted.

    python train.py configs/train/controlnet_inpainting.py --sources CHECKPOINT --data.path DATA --output RUN

CHECKPOINT and DATA as in `controlnet_canny.py`. A mask is drawn anew each time that a picture is met.
"""

import dataclasses

from configs.train.controlnet_canny import config as canny
from ultrapixel_jax.training.config import ControlNetTask

config = dataclasses.replace(
    canny,
    task=ControlNetTask(offset_noise=0.1),
    model=dataclasses.replace(
        canny.model, controlnet=dataclasses.replace(canny.model.controlnet, kind="inpainting")
    ),
)
