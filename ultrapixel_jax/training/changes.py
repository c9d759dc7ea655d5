"""What may change in a run's configuration when the run goes on, and what would make it another run."""

from __future__ import annotations

from typing import Any

from ultrapixel_jax.config import CascadeConfig
from ultrapixel_jax.training.config import TrainConfig, config_to_json

MAY_CHANGE = (
    "output", "sources", "steps", "mesh", "checkpoints", "log", "pictures", "measures", "machines",
    "data.path", "data.prior", "data.workers", "data.cache_dir", "optimizer.accumulate", "model.sampling_c",
    "model.sampling_b", "validation.every", "validation.examples",
)  # fmt: skip
"""Fields that may differ when a run goes on; any other would make it another run."""


def differences(old: dict[str, Any], config: TrainConfig) -> list[str]:
    """Fields of `config` that differ from those of a run (`config_to_json`) and may not, in words.

    What a run does not name is from after it, and was as it is by default.
    """
    if (
        isinstance(old.get("data"), dict) and "lr_side" in old["data"]
    ):  # its name before, with the model's value
        data = dict(old["data"])
        side = data.pop("lr_side")
        old = {
            **old,
            "data": data | {"lr_latent": config.data.lr_latent if side == config.lr_latent else side},
        }
    default = TrainConfig(type(config.task)(), CascadeConfig())
    return _differences(old, _plain(config_to_json(config)), _plain(config_to_json(default)), "")


def _differences(old: dict[str, Any], new: dict[str, Any], default: dict[str, Any], prefix: str) -> list[str]:
    out = []
    for name in [*old, *(key for key in new if key not in old)]:
        path, known = f"{prefix}{name}", default.get(name)
        a, b = old.get(name, known), new.get(name)
        if path in MAY_CHANGE or a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            out += _differences(a, b, known if isinstance(known, dict) else {}, f"{path}.")
        else:
            out.append(f"{path} was {a!r:.60}, is {b!r:.60}")
    return out


def _plain(value: Any) -> Any:
    """`value` as it is after JSON, which knows no tuples."""
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value
