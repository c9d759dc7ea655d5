"""Losses of the tasks against what section 12 says, put together by hand from the networks."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.tiny import config as tiny
from tests.models.filled import SMALL, filled
from tests.training.steps import config_of, latents
from tests.training.test_tasks import images, keys
from ultrapixel_jax.compilation.options import UNOPTIMISED
from ultrapixel_jax.diffusion import schedule
from ultrapixel_jax.models.clip_text import ClipText
from ultrapixel_jax.models.clip_vision import ClipVision
from ultrapixel_jax.models.effnet_encoder import EffnetEncoder
from ultrapixel_jax.models.embeddings import sinusoidal
from ultrapixel_jax.models.guidance import Guidance
from ultrapixel_jax.models.resize import resize_bilinear
from ultrapixel_jax.models.stage_a import StageA
from ultrapixel_jax.models.stage_b import StageB
from ultrapixel_jax.models.stage_c import StageC
from ultrapixel_jax.training.config import DiffusionTraining, GuidanceTask, StageATask, StageBTask
from ultrapixel_jax.training.tasks import encode, make_task

SHIFT = 2.0


def compiled(function: Any) -> Any:
    return jax.jit(function, compiler_options=UNOPTIMISED)


def drawn(batch: Any, stream: int, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Uniform numbers of a stream of every sample, or normal ones of a `shape`."""

    def one(key: Any) -> Any:
        key = jax.random.fold_in(jax.random.wrap_key_data(key), stream)
        return jax.random.uniform(key) if shape is None else jax.random.normal(key, shape)

    return np.stack([one(key) for key in batch["key"]])


def noised(x: Any, noise: Any, logsnr: np.ndarray) -> Any:
    """`sqrt(α)·x + sqrt(1 − α)·ε`, with α the sigmoid of logSNR."""
    alpha = (1 / (1 + np.exp(-logsnr.astype(np.float64)))).reshape(-1, 1, 1, 1)
    return np.sqrt(alpha).astype(np.float32) * x + np.sqrt(1 - alpha).astype(np.float32) * noise


def level_of(batch: Any, stream: int) -> np.ndarray:
    """The logSNR of every sample, from the numbers of a stream."""
    t = np.clip(1 - drawn(batch, stream) + 0.001, 0.001, 1)
    return schedule.logsnr(t.astype(np.float32), "cosine", SHIFT)


def loss_of(config: Any, variables: Any, batch: Any) -> Any:
    task = make_task(config)
    params = {name: variables[name]["params"] for name in task.trained}
    collections = {
        name: {kind: x for kind, x in variables[name].items() if kind != "params"} for name in task.trained
    }
    frozen = {name: variables[name] for name in task.frozen}
    return params, collections, frozen, compiled(task.loss)(params, collections, frozen, batch)


def test_guidance() -> None:
    """Noise at the HR size, given the features of an LR pass at t = 0.05, at full guide weight."""
    config = config_of(GuidanceTask(diffusion=DiffusionTraining(shift=SHIFT)), model=SMALL, batch_size=2)
    variables = {"stage_c": filled("stage_c", SMALL.stage_c), "guidance": filled("guidance", SMALL.guidance)}
    batch = {**latents(config), **keys(2)}
    *_, found = loss_of(config, variables, batch)

    assert SMALL.guidance is not None
    stage_c, guidance = StageC(SMALL.stage_c), Guidance(SMALL.guidance)
    hr, lr = batch["latent"], batch["latent_lr"]
    logsnr = level_of(batch, 0)
    logsnr_lr = np.full(2, schedule.logsnr(np.float32(0.05), "cosine", SHIFT))
    epsilon = drawn(batch, 1, hr.shape[1:])
    x_lr, x_hr = noised(lr, drawn(batch, 2, lr.shape[1:]), logsnr_lr), noised(hr, epsilon, logsnr)
    scale = math.sqrt(math.log(hr.shape[1] * hr.shape[2]) / math.log(24 * 24))

    @compiled
    def predicted(variables: Any, text: Any, x_lr: Any, r_lr: Any, x_hr: Any, r: Any) -> Any:
        conditioning = stage_c.apply(variables["stage_c"], *text, method="condition")
        features: Any = stage_c.apply(variables["stage_c"], x_lr, r_lr, conditioning)
        prepared: Any = guidance.apply(
            variables["guidance"], features.features, x_hr.shape[1:3], method="prepare"
        )

        def fuse(place: str, y: Any) -> Any:
            e_t, e_s = sinusoidal(r), sinusoidal(jnp.full(1, scale, jnp.float32))
            return guidance.apply(variables["guidance"], place, y, prepared[place], e_t, e_s, method="fuse")

        out: Any = stage_c.apply(variables["stage_c"], x_hr, r, conditioning, fuse=fuse)
        return out.epsilon

    text = [batch[name] for name in ("text_states", "text_pooled", "image_vector")]
    r_lr, r = schedule.noise_level(logsnr_lr), schedule.noise_level(logsnr)
    expected = np.square(predicted(variables, text, x_lr, r_lr, x_hr, r) - epsilon).mean((1, 2, 3))
    np.testing.assert_allclose(found.logsnr, logsnr, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.loss, expected, rtol=1e-3)


def test_stage_b_with_a_frozen_encoder() -> None:
    """Noise of stage A's latent, given the encoder's view at a drawn scale, or zeros for a drawn share."""
    task = StageBTask(
        diffusion=DiffusionTraining(shift=SHIFT), train_encoder=False, condition_scales=(0.5, 1.0),
        condition_dropout=0.5, pyramid_levels=(0, 0),
    )  # fmt: skip
    config = config_of(task, model=SMALL, batch_size=4)
    names = ("stage_a", "stage_b", "clip_text", "effnet_encoder")
    variables = {name: filled(name, getattr(SMALL, name)) for name in names}
    batch = {**images(4, 64), **keys(4)}
    *_, found = loss_of(config, variables, batch)

    dropped = drawn(batch, 2) < 0.5
    assert dropped.any() and not dropped.all()
    assert drawn(batch, 3)[0] >= 0.5  # the second scale
    logsnr = level_of(batch, 0)

    @compiled
    def latent_and_condition(variables: Any, image: Any) -> Any:
        x0 = StageA(SMALL.stage_a).apply(variables["stage_a"], image, method="encode")
        effnet: Any = EffnetEncoder(SMALL.effnet_encoder).apply(variables["effnet_encoder"], image)
        ids, mask = jnp.asarray(batch["ids"]), jnp.asarray(batch["mask"])
        text: Any = ClipText(SMALL.clip_text).apply(variables["clip_text"], ids, mask)
        return x0, resize_bilinear(effnet, (8, 8)), text[1]

    @compiled
    def predicted(variables: Any, x: Any, r: Any, effnet: Any, pooled: Any) -> Any:
        model = StageB(SMALL.stage_b)
        conditioning = model.apply(variables["stage_b"], pooled, effnet, x.shape[1:3], method="condition")
        return model.apply(variables["stage_b"], x, r, conditioning)

    x0, effnet, pooled = latent_and_condition(variables, batch["image"].astype(np.float32) / 255)
    effnet = np.where(dropped[:, None, None, None], 0, effnet)
    epsilon = drawn(batch, 1, x0.shape[1:])
    x, r = noised(np.asarray(x0), epsilon, logsnr), schedule.noise_level(logsnr)
    expected = np.square(predicted(variables, x, r, effnet, pooled) - epsilon).mean((1, 2, 3))
    np.testing.assert_allclose(found.logsnr, logsnr, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.loss, expected, rtol=1e-3)


def test_stage_a_passes_gradients_straight_through_its_codebook() -> None:
    """Drawn images are decoded from codebook entries; the encoder gets the decoder's gradient there."""
    task = StageATask(quantizer_weight=0.0, quantize_probability=0.5, crop=0)
    config = config_of(task, model=SMALL, batch_size=4)
    variables = {"stage_a": filled("stage_a", SMALL.stage_a)}
    # Entries as far apart as latents are, so that being quantized matters.
    codebook = np.random.default_rng(1).standard_normal(variables["stage_a"]["params"]["codebook"].shape)
    variables["stage_a"]["params"]["codebook"] = codebook.astype(np.float32)
    batch = {**images(4, 32), **keys(4)}
    params, collections, _, found = loss_of(config, variables, batch)
    gradient = compiled(jax.grad(lambda p, b: make_task(config).loss(p, collections, {}, b).loss.mean()))
    in_params = gradient(params, batch)["stage_a"]

    image = jnp.asarray(batch["image"], jnp.float32) / 255
    use = drawn(batch, 1) < 0.5
    assert use.any() and not use.all()
    module = StageA(SMALL.stage_a)

    def with_params(params: Any) -> Any:
        return {"params": params, **collections["stage_a"]}

    def encode_(params: Any) -> Any:
        return module.apply(with_params(params), image, True, method="encode", mutable=["batch_stats"])[0]

    def error(params: Any, latent: Any) -> Any:
        return jnp.square(module.apply(with_params(params), latent, method="decode") - image).mean((1, 2, 3))

    @compiled
    def by_hand(params: Any) -> Any:
        latent, pull = jax.vjp(encode_, params)
        entries: Any = module.apply(with_params(params), latent, method="quantize")
        decoded = jnp.where(use[:, None, None, None], entries[0], latent)
        in_params, in_latent = jax.grad(lambda *a: error(*a).mean(), (0, 1))(params, decoded)
        return error(params, decoded), jax.tree.map(jnp.add, in_params, pull(in_latent)[0])

    losses, expected = by_hand(params["stage_a"])
    np.testing.assert_allclose(found.loss, losses, rtol=1e-5)
    assert not np.any(in_params["codebook"])
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected["encoder"]))
    assert largest > 0
    for a, b in zip(jax.tree.leaves(in_params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * largest)


def test_image_vectors_of_those_samples_that_use_them() -> None:
    config = dataclasses.replace(tiny, clip_vision=dataclasses.replace(tiny.clip_vision, layers=1))
    frozen = {name: filled(name, getattr(config, name)) for name in ("clip_text", "clip_vision")}
    ones = np.ones((3, 4), np.int32)
    random = np.random.default_rng(0)
    batch: Any = {
        "ids": ones, "mask": ones, "use_image": np.array([True, False, True]),
        "image_clip": random.standard_normal((3, 28, 28, 3)).astype(np.float32),
    }  # fmt: skip
    found = compiled(lambda f, b: encode.text(b, f, config, jnp.float32).image)(frozen, batch)
    expected = compiled(ClipVision(config.clip_vision).apply)(frozen["clip_vision"], batch["image_clip"])
    assert np.abs(expected).min(1).max() > 0
    np.testing.assert_allclose(found, np.where([[True], [False], [True]], expected, 0), rtol=1e-5, atol=1e-6)


def test_pixels_are_parts_of_255() -> None:
    found = encode.pixels(jnp.asarray([[[[0, 51, 255]]]], jnp.uint8))
    np.testing.assert_allclose(found[0, 0, 0], [0, 0.2, 1], rtol=1e-6)
