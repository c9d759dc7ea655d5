"""Draws what every task shows while training, with random networks, in one process or several.

    python -m tests.training.draw OUT PROCESS COUNT PORT WAY,… TASK…

The mesh has four devices, data=2 and fsdp=2, in an order that scatters the rows of a batch over two
processes.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax.experimental import multihost_utils

from ultrapixel_jax.training.config import (
    GuidanceTask,
    LoraTask,
    PicturesConfig,
    PreviewerTask,
    StageATask,
    StageBTask,
    StageCTask,
    TrainConfig,
)

TASKS: Mapping[str, Any] = {
    "guidance": GuidanceTask(),
    "lora": LoraTask(),
    "stage_c": StageCTask(),
    "stage_b": StageBTask(train_encoder=False),
    "stage_b_encoder": StageBTask(train_encoder=True),
    "stage_a": StageATask(),
    "previewer": PreviewerTask(train_encoder=False),
    "previewer_encoder": PreviewerTask(train_encoder=True),
}
SAMPLING = ("guidance", "lora", "stage_c")
"""Those that draw prompts."""
WAYS = ("whole", "tiled")
"""How stage A decodes."""
SAMPLED = (256, 320)
"""Height and width of what stage C's tasks draw."""
SHOWN = (64, 96)
"""Of the images that the other tasks show."""
ROWS = 4
"""Images of a batch."""
WINDOW = {True: 40, False: 15}
"""Side of a tile with its halo, in stage A's latents, of sampled and of shown pictures: several tiles."""


def config_of(name: str) -> TrainConfig:
    """A run of the tiny cascade, with a stage B that is smaller still."""
    from configs.tiny import config as tiny
    from ultrapixel_jax.config import LevelConfig
    from ultrapixel_jax.data.config import DataConfig

    data = DataConfig(batch_size=ROWS, image_vector_probability=0.0)
    shown = PicturesConfig(every=1, size=SAMPLED, prompts=("a red fox", "a lighthouse", "snow"))
    levels = (LevelConfig(8, 1, 1, 1, layers="CT"), LevelConfig(16, 2, 1, 1))
    model = dataclasses.replace(tiny, stage_b=dataclasses.replace(tiny.stage_b, levels=levels))
    return TrainConfig(
        task=TASKS[name], model=model, data=data, pictures=shown, dtype="float32", scanned=True
    )


def batch_of(rows: Iterable[int]) -> dict[str, Any]:
    """Those rows of a batch."""
    rows = list(rows)
    images = np.random.default_rng(0).integers(0, 256, (ROWS, *SHOWN, 3), dtype=np.uint8)
    captions = ["", "a red circle", "ein Fuchs läuft über das Eis", "snow"]
    return {"image": images[rows], "caption": [captions[row] for row in rows]}


def filled(path: Any, struct: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.Array:
    """Random values, since much starts at zero and would draw nothing; compiles nothing."""
    name, shape = jax.tree_util.keystr(path), struct.shape
    values = np.random.default_rng(list(name.encode())).standard_normal(shape)
    values = values / np.sqrt(max(np.prod(shape[:-1]), 1)) if len(shape) > 1 else 0.1 * values
    if name.endswith(("['var']", "['scale']")):
        values = 1 + np.abs(values)
    if not np.issubdtype(struct.dtype, np.floating):
        values = np.zeros(shape)
    values = np.asarray(values, struct.dtype)
    return jax.make_array_from_callback(shape, sharding, lambda index: values[index])


def drawn(name: str, mesh: jax.sharding.Mesh, ways: Sequence[str]) -> dict[str, np.ndarray]:
    """The pictures of one task, decoded in each of `WAYS` that is asked for."""
    from ultrapixel_jax.checkpoints.sources import Sources
    from ultrapixel_jax.sampling import tiling
    from ultrapixel_jax.sampling.requests import DECODE_BYTES
    from ultrapixel_jax.training import state as states
    from ultrapixel_jax.training.inputs import Inputs, rows_of_batch
    from ultrapixel_jax.training.optimizer import make_optimizer
    from ultrapixel_jax.training.pictures import make_pictures
    from ultrapixel_jax.training.tasks import make_task

    config, out = config_of(name), {}
    with jax.set_mesh(mesh):
        task, optimizer = make_task(config), make_optimizer(config.optimizer)
        sources = Sources(())
        sources.fill_with_random(config.model, 0)
        abstract = jax.eval_shape(states.creator(task, optimizer), {})
        shardings = states.state_shardings(abstract, optimizer, mesh)
        state = jax.tree_util.tree_map_with_path(filled, abstract, shardings)
        frozen = states.frozen(task, sources, mesh)
        inputs = Inputs(task, sources.tokenizer, mesh)
        batch = batch_of(rows_of_batch(mesh, ROWS))
        draw = make_pictures(task, sources, mesh, inputs.place)
        for way in ways:
            window = WINDOW[name in SAMPLING] if way == "tiled" else 1000
            width = config.model.stage_a.c_hidden / tiling.MEASURED_WIDTH * ROWS
            bytes_per_latent = {"float32": int(DECODE_BYTES / window**2 / width)}
            with mock.patch.dict(tiling.BYTES_PER_LATENT, bytes_per_latent):
                out[f"{name}, {way}"] = draw(state, frozen, batch)
    return out


def mesh_of_four(devices: list[Any]) -> jax.sharding.Mesh:
    """Rows 0 and 2 on the first two devices, 1 and 3 on the last two."""
    from ultrapixel_jax.sharding import make_mesh

    a, b, c, d = devices
    return make_mesh({"data": 2, "fsdp": 2}, [a, c, b, d])


def meet(out: Path, process: str, count: int, name: str) -> None:
    """Return when all processes are here: gloo gives up where one is 30 s behind when they first exchange."""
    (out / f"{process}-{name}").touch()
    while len(list(out.glob(f"*-{name}"))) < count:
        time.sleep(0.05)


def main(out: str, process: str, count: str, port: str, ways: str, *names: str) -> None:
    """Write the pictures of the named tasks, or all of them, to OUT/PROCESS.npz."""
    from ultrapixel_jax.compilation.cache import use

    if int(count) > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", int(count), int(process))
    use()
    mesh, pictures = mesh_of_four(jax.devices()), {}
    for name in names or TASKS:
        meet(Path(out), process, int(count), name)
        multihost_utils.sync_global_devices(name)
        pictures |= drawn(name, mesh, ways.split(","))
        print(name, file=sys.stderr, flush=True)
    np.savez(Path(out) / f"{process}.npz", **pictures)


if __name__ == "__main__":
    main(*sys.argv[1:])
