"""What people write: names of dtypes, keys, and Python files with a configuration."""

from __future__ import annotations

import dataclasses
import runpy
import typing
from pathlib import Path
from typing import Any, get_args

from ultrapixel_jax.config import cascade, networks
from ultrapixel_jax.config.cascade import CascadeConfig
from ultrapixel_jax.errors import UserError, unknown_key

DTYPES = ("float32", "bfloat16")
OTHER_FORMATS = (".json", ".jsonl", ".yaml", ".yml", ".toml")


def check_dtype(name: str) -> str:
    """Return `name` if it is a usable compute or parameter dtype; raise `UserError` otherwise."""
    aliases = {"fp32": "float32", "f32": "float32", "bf16": "bfloat16"}
    name = aliases.get(name, name)
    if name in ("float16", "fp16", "f16", "half"):
        raise UserError(
            "dtype float16 is not supported: stage C's activations exceed float16's range and become "
            "NaN; use bfloat16 or float32"
        )
    if name not in DTYPES:
        raise UserError(f"dtype {name!r} is not known; use one of {', '.join(DTYPES)}")
    return name


def to_dict(config: Any) -> dict[str, Any]:
    """Plain JSON-able form of a configuration."""
    return dataclasses.asdict(config)


def drawn_alike(guidance: Any) -> Any:
    """A plain `GuidanceConfig` without what no picture depends on: the sizes that it was trained on."""
    if not isinstance(guidance, dict):
        return guidance
    return {name: value for name, value in guidance.items() if name not in networks.NOT_DRAWN}


def from_dict(cls: type, values: dict[str, Any]) -> Any:
    """Inverse of `to_dict` for dataclass `cls`; unknown keys raise `UserError`."""
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    out: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise UserError(unknown_key(name, known, f"configuration key of {cls.__name__}"))
        out[name] = _revive(hints[name], value)
    return cls(**out)


def _revive(hint: Any, value: Any) -> Any:
    """Turn JSON's lists and dicts back into the tuples and dataclasses that `hint` asks for."""
    if value is None:
        return None
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return from_dict(typing.cast(type, hint), value)
    args = get_args(hint)
    if typing.get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_revive(args[0], v) for v in value)
        return tuple(_revive(a, v) for a, v in zip(args, value, strict=True))
    # A union: its dataclass where the value is a dict, its tuple where it is a list.
    for arg in args:
        if dataclasses.is_dataclass(arg) and isinstance(value, dict):
            return from_dict(typing.cast(type, arg), value)
        if typing.get_origin(arg) is tuple and isinstance(value, (list, tuple)):
            return _revive(arg, value)
    return value


def load_config(path: str | Path, kind: type = CascadeConfig) -> Any:
    """Run the Python file at `path` and return its `config`, which must be a `kind`.

    Raises:
        UserError: no such file, an error in it, or no `kind` named `config` in it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"configuration {str(path)!r} does not exist; see configs/ for examples")
    if path.suffix.lower() in OTHER_FORMATS:
        raise UserError(
            f"configuration {str(path)!r} is {path.suffix[1:].upper()}, and has to be a Python file that "
            f"defines `config = {kind.__name__}(...)`, such as those in configs/"
        )
    try:
        config = runpy.run_path(str(path)).get("config")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except TypeError as error:  # a dataclass called with an unknown keyword
        raise UserError(f"{path}: {_explain_type_error(error)}") from error
    except Exception as error:
        raise UserError(f"{path}: {type(error).__name__}: {error}") from error
    if not isinstance(config, kind):
        found = type(config).__name__
        raise UserError(f"{path} must define `config = {kind.__name__}(...)`, found {found}")
    return config


def _explain_type_error(error: TypeError) -> str:
    text = str(error)
    if "unexpected keyword argument" in text:
        # From Python 3.12 on, the text may go on with a name that was perhaps meant.
        name = text.partition("unexpected keyword argument")[2].split("'")[1]
        cls = text.split(".", 1)[0]
        found = (vars(networks) | vars(cascade)).get(cls)
        if dataclasses.is_dataclass(found):
            return unknown_key(name, [f.name for f in dataclasses.fields(found)],
                               f"configuration key of {cls}")  # fmt: skip
    return text
