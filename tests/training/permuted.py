"""`train.py` and `sample.py` on meshes whose devices lie in the order that the variable `ORDER` tells.

As on TPUs, where the torus decides; CPUs are in order. ORDER=0,3,1,2 puts device 3 in the second place.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import sample
import train
from ultrapixel_jax import sharding


def arranged(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """In place of `sharding.arranged`."""
    order = [int(number) for number in os.environ["ORDER"].split(",")]
    return np.array(devices, object)[order].reshape(shape)


if __name__ == "__main__":
    sharding.arranged = arranged
    scripts = {"train.py": train, "sample.py": sample}
    sys.exit(scripts[os.environ.get("SCRIPT", "train.py")].main())
