"""The tasks of the base models: what each trains, that it learns, and the noise and crops that it draws."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.tiny import config as tiny
from tests.models.filled import SMALL, filled
from tests.training.steps import adamw, config_of, images, latents, start
from ultrapixel_jax.checkpoints.tokenizer import BYTE_TOKENIZER
from ultrapixel_jax.checkpoints.weights import load_weights
from ultrapixel_jax.compilation.options import UNOPTIMISED
from ultrapixel_jax.config import LevelConfig, StageBConfig
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.models.clip_text import ClipText
from ultrapixel_jax.models.effnet_encoder import EffnetEncoder
from ultrapixel_jax.sharding import make_mesh
from ultrapixel_jax.training.config import (
    GuidanceTask,
    OptimizerConfig,
    PreviewerTask,
    StageATask,
    StageBTask,
    TextTask,
)
from ultrapixel_jax.training.inputs import Inputs
from ultrapixel_jax.training.tasks import make_task
from ultrapixel_jax.training.tasks.stage_a import random_crop
from ultrapixel_jax.training.tasks.stage_b import PYRAMID_DECAY, keys_of_draws, pyramid_noise
from ultrapixel_jax.training.tasks.text import project

STAGE_B = StageBConfig(
    levels=(
        LevelConfig(8, 1, down_blocks=1, up_blocks=1, layers="CT"),
        LevelConfig(16, 2, down_blocks=1, up_blocks=1),
    ),
    c_cond=16,
    c_clip=48,
)


def keys(count: int) -> dict[str, Any]:
    key = jax.random.fold_in(jax.random.key(0), 1)
    return {"key": jax.vmap(lambda i: jax.random.key_data(jax.random.fold_in(key, i)))(jnp.arange(count))}


def train(task: Any, steps: int, **changes: Any) -> tuple[Any, Any, list[dict[str, Any]]]:
    """States before and after `steps` on one batch, and the metrics of each."""
    data = DataConfig(batch_size=4, image_vector_probability=0.0)
    optimizer = OptimizerConfig(learning_rate=3e-3, warmup_steps=5, ema_decay=0.0)
    config = config_of(task, data=data, optimizer=optimizer, **changes)
    trainer, _, state, step = start(config, optimizer=adamw(config.optimizer))
    frozen = {name: filled(name, getattr(config.model, name)) for name in trainer.frozen}
    first, metrics = state, []
    for _ in range(steps):
        state, found = step(state, frozen, images(4, 64))
        metrics.append({name: np.asarray(value) for name, value in found.items()})
    return first, state, metrics


def moved(before: Any, after: Any) -> list[bool]:
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return [bool((a != b).any()) for a, b in pairs]


def test_stage_a_learns_to_reconstruct() -> None:
    first, last, metrics = train(StageATask(crop=32), 40)
    assert list(last.params) == ["stage_a"]
    assert metrics[-1]["reconstruction"] < 0.5 * metrics[0]["reconstruction"]
    for found in metrics:
        np.testing.assert_allclose(found["loss"], found["reconstruction"] + found["quantizer"], rtol=1e-5)
    assert all(moved(first.collections, last.collections))  # running mean and variance


@pytest.mark.parametrize("train_encoder", [False, True])
def test_previewer_learns_to_reconstruct(train_encoder: bool) -> None:
    first, last, metrics = train(PreviewerTask(train_encoder), 40)
    assert set(last.params) == {"previewer", *(["effnet_encoder"] if train_encoder else [])}
    assert metrics[-1]["loss"] < 0.5 * metrics[0]["loss"]
    assert all(moved(first.collections, last.collections))


def test_noise_on_latents_is_what_the_previewer_sees_and_not_the_encoder() -> None:
    batch = images(2, 64)

    def losses(noise: float, seed: int) -> Any:
        config = config_of(PreviewerTask(train_encoder=True, latent_noise=noise), batch_size=2)
        task, _, state, _ = start(config)
        key = jax.vmap(lambda i: jax.random.key_data(jax.random.key(i)))(seed + jnp.arange(2))
        compute = jax.jit(task.loss, compiler_options=UNOPTIMISED)
        return compute(state.params, state.collections, {}, {**batch, "key": key})

    plain, noisy, other = losses(0.0, 0), losses(0.5, 0), losses(0.5, 2)
    assert not np.allclose(plain.loss, noisy.loss, rtol=1e-3)
    assert not np.allclose(noisy.loss, other.loss, rtol=1e-3)
    encoder, noised = (x.collections["effnet_encoder"] for x in (plain, noisy))
    jax.tree.map(np.testing.assert_array_equal, encoder, noised)


def test_outliers_of_the_latent_cost_their_mean_square() -> None:
    batch = {**images(2, 64), **keys(2)}

    def losses(weight: float) -> Any:
        config = config_of(
            PreviewerTask(train_encoder=True, outlier_weight=weight, outlier_limit=0.5), batch_size=2
        )
        task, _, state, _ = start(config)
        loss = jax.jit(task.loss, compiler_options=UNOPTIMISED)(state.params, state.collections, {}, batch)
        return state, np.asarray(loss.loss)

    (state, plain), (_, more) = losses(0.0), losses(2.0)
    variables = {"params": state.params["effnet_encoder"], **state.collections["effnet_encoder"]}
    image = jnp.asarray(batch["image"], jnp.float32) / 255
    encoder = EffnetEncoder(tiny.effnet_encoder)
    latent, _ = encoder.apply(variables, image, train=True, mutable=["batch_stats"])
    beyond = np.abs(np.asarray(latent)).clip(0.5) - 0.5
    assert beyond.any()
    np.testing.assert_allclose(more - plain, 2 * (beyond**2).mean((1, 2, 3)), rtol=1e-3)


def test_text_encoder_learns_the_order_of_words() -> None:
    optimizer = OptimizerConfig(learning_rate=3e-3, warmup_steps=5, ema_decay=0.0)
    config = config_of(TextTask(), batch_size=6, optimizer=optimizer)
    orders = np.array(list(itertools.permutations([5, 6, 7])), np.int32)
    end = np.full((6, 1), tiny.clip_text.vocab_size - 1, np.int32)
    ids = np.concatenate([orders, end], axis=1)
    batch = {"latent": latents(config)["latent"], "ids": ids, "mask": np.ones_like(ids)}
    _, _, state, step = start(config, optimizer=adamw(optimizer))
    assert list(state.params) == ["clip_text"]
    found = []
    for _ in range(60):
        state, metrics = step(state, {}, batch)
        found.append(float(metrics["loss"]))
    assert found[-1] < 0.2 * found[0]


def test_what_the_text_encoder_predicts_keeps_distances_between_latents() -> None:
    latent = np.random.default_rng(0).standard_normal((5, 9, 9, 16)).astype(np.float32)
    projected = np.asarray(project(jnp.asarray(latent), 4000))
    np.testing.assert_array_equal(projected, project(jnp.asarray(latent), 4000))
    flat = latent.reshape(5, -1)
    ours, theirs = (((x[:, None] - x[None]) ** 2).mean(2) for x in (projected, flat))
    np.testing.assert_allclose(ours, theirs, rtol=0.1)


def test_what_the_text_encoder_predicts_is_the_same_for_pictures_of_other_shapes() -> None:
    def scene(height: int, width: int) -> jax.Array:  # something above, something else to the left
        y, x = ((np.arange(n) + 0.5) / n for n in (height, width))
        return jnp.asarray(
            np.stack(np.broadcast_arrays(np.cos(3 * y)[:, None], np.cos(3 * x)[None]), -1)[None]
        )

    square = project(scene(9, 9), 4000)
    for size in ((6, 12), (12, 6), (8, 10), (18, 18)):
        other = project(scene(*size), 4000)
        assert np.abs(other - square).mean() < 0.1 * np.abs(square).mean()
    upright = project(jnp.swapaxes(scene(9, 9), 1, 2), 4000)
    assert np.abs(upright - square).mean() > np.abs(square).mean()


@pytest.mark.parametrize("train_encoder", [True, False])
def test_stage_b_trains_the_encoder_if_asked(train_encoder: bool) -> None:
    scales = (0.5,) if train_encoder else (0.5, 1.0)  # each compiles the encoder once more
    draws = 1 if train_encoder else 3
    task = StageBTask(
        train_encoder=train_encoder, condition_scales=scales, pyramid_levels=(1, 4), draws=draws
    )
    model = dataclasses.replace(tiny, stage_b=STAGE_B)
    first, last, metrics = train(task, 5, model=model)
    assert set(last.params) == {"stage_b", *(["effnet_encoder"] if train_encoder else [])}
    assert all(np.isfinite(found["loss"]) for found in metrics)
    assert all(found["band_count"].sum() == 4 * draws for found in metrics)
    assert sum(moved(first.params, last.params)) > 0.8 * len(jax.tree.leaves(first.params))
    if train_encoder:
        changed = moved(first.collections["effnet_encoder"], last.collections["effnet_encoder"])
        assert all(changed)


def test_draws_of_one_image_have_noise_of_their_own() -> None:
    noised = keys_of_draws(keys(2), 3)
    assert noised.shape == (6, 2)
    assert len({tuple(key) for key in np.asarray(noised).tolist()}) == 6
    np.testing.assert_array_equal(noised[3:], keys_of_draws({"key": keys(2)["key"][1:]}, 3))


def test_pyramid_noise_has_unit_variance_and_strong_low_frequencies() -> None:
    noise = np.asarray(pyramid_noise(keys(3000), (16, 16, 1), (2, 8)))
    weights = {16: 1.0, 8: PYRAMID_DECAY, 4: PYRAMID_DECAY**2, 2: PYRAMID_DECAY**3}
    total = sum(w**2 for w in weights.values())
    np.testing.assert_allclose(noise.std(0).mean(), 1, rtol=0.02)
    # The mean over a picture of a map of s × s numbers has variance 1/s².
    expected = sum(w**2 / side**2 for side, w in weights.items()) / total
    np.testing.assert_allclose(noise.mean((1, 2)).var(), expected, rtol=0.1)
    assert expected > 9 / 256  # nine times that of white noise


def test_pyramid_noise_without_levels_is_white() -> None:
    noise = np.asarray(pyramid_noise(keys(3000), (16, 16, 1), (0, 0)))
    np.testing.assert_allclose(noise.mean((1, 2)).var(), 1 / 256, rtol=0.1)


def test_crops_are_windows_of_their_images() -> None:
    image = np.random.default_rng(0).uniform(size=(6, 9, 12, 3)).astype(np.float32)
    out = np.asarray(random_crop(jnp.asarray(image), 5, keys(6)))
    places = []
    for crop, whole in zip(out, image, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(whole, (5, 5), (0, 1)).transpose(0, 1, 3, 4, 2)
        found = np.argwhere((windows == crop).all((2, 3, 4)))
        assert len(found) == 1
        places.append(tuple(found[0]))
    assert len(set(places)) > 1
    assert random_crop(jnp.asarray(image), 32, keys(6)).shape == image.shape


def test_text_of_cached_latents_can_be_computed_in_training() -> None:
    config = config_of(GuidanceTask(), batch_size=2, model=SMALL)
    later = dataclasses.replace(config, data=dataclasses.replace(config.data, cached_text=False))
    # Fresh weights give zero whatever the text; these do not.
    frozen = load_weights(None, SMALL, dtype="float32", mesh=None, preview=True).variables
    side = config.reading.lr_latent
    batch = {**latents(config, lr=(side, side)), "bucket": (256, 256), "caption": ["a red circle", ""]}
    mesh = make_mesh({"data": 1}, jax.devices()[:1])

    def loss(config: Any, batch: dict[str, Any]) -> Any:
        task = make_task(config)
        assert "clip_text" in task.frozen or config.data.cached_text
        arrays = {**Inputs(task, BYTE_TOKENIZER, mesh)(batch), **keys(2)}
        collections = dict(frozen["guidance"])
        params = {"guidance": collections.pop("params")}
        kept = {name: frozen[name] for name in task.frozen}
        compute = jax.jit(lambda *x: task.loss(*x).loss, compiler_options=UNOPTIMISED)
        return compute(params, {"guidance": collections}, kept, arrays)

    task = make_task(later)
    tokens = Inputs(task, BYTE_TOKENIZER, mesh)(batch)
    text: Any = ClipText(SMALL.clip_text).apply(frozen["clip_text"], tokens["ids"], tokens["mask"])
    cached = {**batch, "text_states": np.asarray(text[0]), "text_pooled": np.asarray(text[1])}
    np.testing.assert_allclose(loss(later, batch), loss(config, cached), rtol=1e-5)
    assert not np.allclose(loss(later, batch), loss(config, batch), rtol=1e-3)
