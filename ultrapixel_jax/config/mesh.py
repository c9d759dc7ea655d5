"""Sizes of a mesh as they are written."""

from __future__ import annotations

import re

from ultrapixel_jax.errors import UserError, unknown_key

MESH_AXES = ("data", "fsdp", "tensor", "rows")
"""Batch, batch and parameters, channels and heads, rows of maps."""


def parse_mesh(text: str) -> dict[str, int]:
    """Read ``data=2,fsdp=2,tensor=2``; axes that are left out have size 1.

    Raises:
        UserError: another form, an unknown axis, one given twice, or a size below 1.
    """
    mesh: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([^=\s]+)\s*=\s*([0-9]{1,6})\s*", part)
        if match is None:
            raise UserError(f"mesh {text!r:.80} is not AXIS=SIZE,…; write it like data=2,fsdp=2,tensor=2")
        axis, size = match[1], int(match[2])
        if axis not in MESH_AXES:
            raise UserError(unknown_key(axis, MESH_AXES, "mesh axis"))
        if axis in mesh:
            raise UserError(f"mesh {text!r:.80} gives the axis {axis} twice")
        if size < 1:
            raise UserError(f"mesh axis {axis} has size {size}; use 1 or more")
        mesh[axis] = size
    return mesh
