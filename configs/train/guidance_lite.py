"""UltraPixel's guidance networks on the frozen lite stage C (1B), for which none were released.

    python train.py configs/train/guidance_lite.py --sources CHECKPOINT --data.path DATA --output RUN

As `guidance.py`, at a third of the cost.
"""

import dataclasses

from configs.lite import config as lite
from configs.train.guidance import config as guidance

config = dataclasses.replace(guidance, model=lite)
