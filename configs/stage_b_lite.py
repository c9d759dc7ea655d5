"""Stage C 3.6B with guidance as in `full`, and the lite stage B (0.7B): the paper's own combination."""

import dataclasses

from configs.full import config as full
from configs.lite import config as lite

config = dataclasses.replace(full, stage_b=lite.stage_b)
