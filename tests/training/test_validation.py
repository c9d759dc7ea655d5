"""The loss on held-out examples against a loop over single examples, and that none of them is trained on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from tests.training.presets.stage_c import config as preset
from tests.training.tiny_run import write_latents
from ultrapixel_jax.checkpoints.tokenizer import BYTE_TOKENIZER
from ultrapixel_jax.compilation.options import UNOPTIMISED
from ultrapixel_jax.data import records
from ultrapixel_jax.data.held_out import key_of
from ultrapixel_jax.data.loader import Loader
from ultrapixel_jax.data.plan import uniforms
from ultrapixel_jax.diffusion import schedule
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.models import components
from ultrapixel_jax.models.stage_c import StageC
from ultrapixel_jax.sharding import make_mesh
from ultrapixel_jax.training import state as states
from ultrapixel_jax.training.changes import differences
from ultrapixel_jax.training.config import (
    LogConfig,
    OptimizerConfig,
    StageCTask,
    TrainConfig,
    ValidationConfig,
    config_to_json,
)
from ultrapixel_jax.training.inputs import Inputs, rows_of_batch
from ultrapixel_jax.training.log import Log
from ultrapixel_jax.training.optimizer import make_optimizer
from ultrapixel_jax.training.programs import Programs
from ultrapixel_jax.training.tasks import make_task
from ultrapixel_jax.training.validation import Validation

SHARE = 0.4
COUNT = 40


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("validation") / "data", COUNT)


def config_on(data: Path, **optimizer: Any) -> TrainConfig:
    """Captions and image vectors are dropped from half of the examples; `preset` has dropout."""
    return dataclasses.replace(
        preset,
        data=dataclasses.replace(preset.data, path=str(data), caption_dropout=0.5),
        optimizer=OptimizerConfig(ema_decay=0.9, **optimizer),
        validation=ValidationConfig(SHARE, every=1, examples=9),
    )


def validate(config: TrainConfig, tmp_path: Path, axes: dict[str, int]) -> tuple[Any, dict[str, float]]:
    """A state whose average is not its parameters, on a mesh, and its losses."""
    mesh = make_mesh(axes, jax.devices()[: math.prod(axes.values())])
    task, optimizer = make_task(config), make_optimizer(config.optimizer)
    with jax.set_mesh(mesh):
        state = jax.jit(states.creator(task, optimizer), compiler_options=UNOPTIMISED)({})
        # Far from their initial values, with which dropout would hardly show.
        rng = np.random.default_rng(0)
        away = jax.tree.map(lambda x: x + 0.03 * rng.standard_normal(x.shape, np.float32), state.params)
        state = state._replace(ema=away)
        shardings = states.state_shardings(jax.eval_shape(lambda: state), optimizer, mesh)
        state = jax.device_put(state, shardings)
        rows = rows_of_batch(mesh, config.data.batch_size, config.optimizer.accumulate)
        loader = Loader(config.data, rows=rows, held_out=SHARE)
        log = Log(epath.Path(tmp_path), LogConfig(tensorboard=False), steps=1, start=0, batch_size=4)
        inputs = Inputs(task, BYTE_TOKENIZER, mesh)
        validation = Validation(task, loader, inputs, mesh, Programs(log, 2))
        losses = validation(state, {})
        assert validation(state, {}) == losses, "the second time the same"
        log.close()
    return state, losses


def by_hand(config: TrainConfig, state: Any, data: Path) -> Iterator[tuple[float, float]]:
    """logSNR and loss of one held-out example after the other."""
    source = records.open_dataset(data, records.CachedLatents).source
    examples = {key_of(source[i]["id"].decode()): source[i] for i in range(COUNT)}
    model = StageC(config.model.stage_c)
    variables = {"params": jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), state.ema["stage_c"])}

    @jax.jit
    def predict(x: Any, r: Any, *text: Any) -> Any:
        conditioning = model.apply(variables, *text, method="condition")
        return model.apply(variables, x, r, conditioning).epsilon

    for number in sorted(n for n in examples if n < SHARE * 2**64)[:9]:
        example = {name: np.asarray(value, np.float32) for name, value in examples[number].items()
                   if name.startswith(("latent", "text", "image"))}  # fmt: skip
        drop, use = uniforms(4, (config.data.seed, 3, number))[2:]
        text = [example["text_states"], example["text_pooled"]]
        if drop < 0.5:
            text = [0 * x for x in text]  # as the dataset has the empty prompt
        text.append(example["image_vector"] * (use < 0.5))
        key = components.key_for(config.seed, "validation")
        key = jax.random.fold_in(jax.random.fold_in(key, number >> 32), number & (2**32 - 1))
        t, noise = (jax.random.fold_in(key, stream) for stream in (0, 1))
        moment = np.clip(1 - np.float64(jax.random.uniform(t)) + 0.001, 0.001, 1)
        logsnr = float(schedule.logsnr(moment, "cosine", 1.0))
        epsilon = np.asarray(jax.random.normal(noise, example["latent"].shape), np.float64)
        alpha = np.sqrt(1 / (1 + np.exp(-logsnr)))
        x = alpha * example["latent"] + np.sqrt(1 - alpha**2) * epsilon
        r = schedule.noise_level(jnp.float32(logsnr), jnp)
        found = predict(jnp.asarray(x[None], jnp.float32), r[None], *(jnp.asarray(v[None]) for v in text))
        yield logsnr, float(np.square(np.asarray(found[0], np.float64) - epsilon).mean())


def test_it_is_the_mean_over_single_examples(data: Path, tmp_path: Path) -> None:
    """Of the average, without dropout; on a mesh, in parts, through padded batches."""
    config = config_on(data, accumulate=2)
    state, losses = validate(config, tmp_path, {"data": 1, "fsdp": 2})
    expected = np.array(list(by_hand(config, state, data)))
    assert len(expected) == 9
    assert losses["validation_loss"] == pytest.approx(expected[:, 1].mean(), rel=1e-5)
    bands = {f"{low}_{high}": expected[(low <= expected[:, 0]) & (expected[:, 0] < high), 1]
             for low, high in ((-6, -4), (-4, -2), (-2, 0), (0, 2), (2, 4), (4, 6))}  # fmt: skip
    assert sum(map(len, bands.values())) == 9
    found = {name.removeprefix("validation_loss_logsnr/"): value for name, value in losses.items()}
    del found["validation_loss"]
    assert found == {name: pytest.approx(v.mean(), rel=1e-5) for name, v in bands.items() if len(v)}


def ids(path: Path, **more: Any) -> set[str]:
    """Of the examples that are held out."""
    with Loader(config_on(path).data, held_out=SHARE, **more) as loader:
        return {
            id_
            for batch in loader.held_out_batches(1000)
            for id_, weight in zip(batch["ids"], batch["weight"])
            if weight
        }


def test_held_out_examples_are_never_trained_on(data: Path, tmp_path: Path) -> None:
    """They are those whose ids hash lowest: of any dataset, old ones too, in any order and shards."""
    lowest = int(SHARE * 2**64)
    expected = {
        f"example-{i}"
        for i in range(COUNT)
        if int(hashlib.sha256(f"example-{i}".encode()).hexdigest()[:16], 16) < lowest
    }
    assert 5 < len(expected) < COUNT - 5
    assert ids(data) == expected
    with Loader(config_on(data).data, held_out=SHARE) as loader:
        assert loader.held_out == len(expected)
        trained = {id_ for _ in range(3 * COUNT // 4) for id_ in next(loader)["ids"]}
    assert trained == {f"example-{i}" for i in range(COUNT)} - expected
    with Loader(config_on(data).data) as loader:
        assert loader.identity != Loader(config_on(data).data, held_out=SHARE).identity

    fewer = write_latents(tmp_path / "fewer", COUNT // 2)
    (fewer / records.KEYS).unlink()  # as before hashes were kept
    assert ids(fewer) == {id_ for id_ in expected if int(id_.removeprefix("example-")) < COUNT // 2}
    for share, how_many in ((1e-9, "none"), (1 - 1e-9, "all")):
        with pytest.raises(UserError, match=f"validation.share .* holds out {how_many} of the 40 examples"):
            Loader(config_on(data).data, held_out=share)


def test_a_run_of_before_goes_on_without_and_not_with(data: Path) -> None:
    """A field that a run's configuration does not name had its default value."""
    old = json.loads(json.dumps(config_to_json(preset)))
    del old["validation"], old["data"]["max_megapixels"]
    assert differences(old, dataclasses.replace(preset, validation=ValidationConfig(every=7))) == []
    assert differences(old, config_on(data))[-1] == "validation.share was 0.0, is 0.4"
    changed = dataclasses.replace(preset, task=StageCTask(dropout=False))
    assert differences(old, changed) == ["task.dropout was True, is False"]
