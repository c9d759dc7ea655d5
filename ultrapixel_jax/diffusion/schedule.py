"""Noise schedules: t in [0, 1] to logSNR, its scalings, and the noise level that networks see (§5).

Everything runs in numpy on the host as well as in jax (`xp`), because samplers make their tables on
the host, once, and training draws t on the device.
"""

from __future__ import annotations

import functools
import math
from types import ModuleType
from typing import Any

import numpy as np

from ultrapixel_jax.config import ScheduleName
from ultrapixel_jax.errors import UserError

COSINE_S = 0.008
VAR_MIN, VAR_MAX = 1e-4, 1 - 1e-4

Values = Any
"""A numpy or jax array of float32."""


def logsnr(t: Values, schedule: ScheduleName = "cosine", shift: float = 1.0, xp: ModuleType = np) -> Values:
    """logSNR at `t`, any shape, t = 0 clean and t = 1 noise.

    A `shift` k adds 2·log(1/k), clipped to the range of the unshifted schedule.
    """
    out = _unshifted(t, schedule, xp)
    if isinstance(shift, (int, float)) and shift == 1:
        return out
    ends = _unshifted(np.asarray([1.0, 0.0], np.float32), schedule, np)
    return xp.clip(out + 2 * xp.log(1 / xp.asarray(shift, dtype=np.float32)), ends[0], ends[1])


def _unshifted(t: Values, schedule: ScheduleName, xp: ModuleType) -> Values:
    t = xp.asarray(t, dtype=np.float32)
    if schedule == "cosine":
        start = math.cos(COSINE_S / (1 + COSINE_S) * math.pi / 2) ** 2
        angle = xp.clip((COSINE_S + t) / (1 + COSINE_S) * (math.pi / 2), 0, math.pi / 2)
        var = xp.clip(xp.clip(xp.cos(angle), 0, 1) ** 2 / start, VAR_MIN, VAR_MAX)
        return xp.log(var / (1 - var))
    if schedule == "linear":
        return 10 - 20 * t
    if schedule == "rectified_flow":
        with np.errstate(divide="ignore"):
            return xp.clip(2 * xp.log((1 - t) / t), -15.0, 15.0)
    if schedule == "sqrt":
        var = xp.clip(1 - xp.sqrt(t + 1e-4), VAR_MIN, VAR_MAX)
        return xp.log(var / (1 - var))
    if schedule == "cosine2":
        low, high = math.atan(math.exp(-7.5)), math.atan(math.exp(7.5))
        return -2 * xp.log(xp.tan(low + t * (high - low)))
    if schedule == "edm":
        low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
        return -2 * xp.log((low + t * (high - low)) ** 7)
    if schedule == "stable_diffusion":
        var = xp.interp(t * 1000, np.arange(1001, dtype=np.float32), _stable_diffusion_variances())
        var = xp.asarray(var, dtype=np.float32)
        return xp.log(var / (1 - var))
    raise UserError(f"schedule {schedule!r} is not known")


@functools.cache
def _stable_diffusion_variances() -> np.ndarray:
    betas = np.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1001) ** 2
    return np.cumprod(1 - betas).astype(np.float32)


def scalings(logsnr: Values, xp: ModuleType = np) -> tuple[Values, Values]:
    """a and b of `x_t = a·x₀ + b·ε`, variance preserving: `a = sqrt(sigmoid(logSNR))`."""
    a = xp.sqrt(_sigmoid(logsnr, xp))
    return a, xp.sqrt(1 - a**2)


def noise_level(logsnr: Values, xp: ModuleType = np) -> Values:
    """The conditioning r in [0, 1] given to a network, from logSNR: the cosine schedule's own t."""
    factor = math.cos(COSINE_S / (1 + COSINE_S) * math.pi / 2) ** 2
    var = xp.clip(_sigmoid(logsnr, xp), 0, 1)
    angle = xp.arccos(xp.sqrt(var * np.float32(factor))) / (math.pi / 2)
    return angle * (1 + COSINE_S) - COSINE_S


def _sigmoid(x: Values, xp: ModuleType) -> Values:
    return 1 / (1 + xp.exp(-x))
