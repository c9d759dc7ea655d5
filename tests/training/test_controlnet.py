"""Training ControlNets: what they begin as, what they see, and what they learn."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.tiny import config as tiny
from tests.models.filled import SMALL, filled
from tests.training.steps import adamw, config_of, images, latents, rows_of, start, with_
from ultrapixel_jax.compilation.options import UNOPTIMISED
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.models import components
from ultrapixel_jax.models.controlnet import with_backbone
from ultrapixel_jax.models.effnet_encoder import EffnetEncoder
from ultrapixel_jax.training.config import ControlNetTask, OptimizerConfig, StageCTask
from ultrapixel_jax.training.tasks import make_task
from ultrapixel_jax.training.tasks.controlnet import control_of

MODEL = dataclasses.replace(
    SMALL,
    controlnet=dataclasses.replace(
        SMALL.controlnet,
        backbone=dataclasses.replace(SMALL.controlnet.backbone, stages=SMALL.controlnet.backbone.stages[1:3]),
        channels=16,
        slots=(0, 3),
    ),
)
FRESH = ControlNetTask(backbone="nothing", frozen_statistics=False)


def kind_of(kind: Any) -> Any:
    return dataclasses.replace(MODEL, controlnet=dataclasses.replace(MODEL.controlnet, kind=kind))


def made(name: str, config: Any, seed: int = 0) -> Any:
    return jax.tree.map(jnp.asarray, filled(name, config, seed))


@pytest.fixture(scope="module")
def stage_c() -> Any:
    return made("stage_c", MODEL.stage_c)


def test_it_starts_as_no_control_and_learns(stage_c: Any) -> None:
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=1, ema_decay=0.0)
    config = config_of(FRESH, model=MODEL, optimizer=optimizer)
    batch = latents(config)
    _, _, state, step = start(config, optimizer=adamw(optimizer))
    before = state.collections
    # Stage C's own loss of the same batch with the same noise, which knows nothing of controls.
    other = make_task(with_(config, task=StageCTask(dropout=False)))
    alone = jax.jit(
        lambda p, b: other.loss({"stage_c": p}, {"stage_c": {}}, {}, b).loss, compiler_options=UNOPTIMISED
    )
    expected = alone(stage_c["params"], rows_of(config, batch))
    other_control = {**batch, "control": 1 - batch["control"]}
    unseen, losses = float(step(state, {"stage_c": stage_c}, other_control)[1]["loss"]), []
    for _ in range(60):
        state, metrics = step(state, {"stage_c": stage_c}, batch)
        losses.append(float(metrics["loss"]))
    # Another program rounds otherwise; the same one, shown something else, gives the same to the last bit.
    np.testing.assert_allclose(losses[0], expected.mean(), rtol=1e-5)
    assert unseen == losses[0]
    print(f"loss {losses[0]:.3f} -> {np.mean(losses[-10:]):.3f}")
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    jax.tree.map(lambda a, b: np.testing.assert_(bool((a != b).any())), before, state.collections)


def test_a_step_is_adamw_and_frozen_statistics_stay(stage_c: Any) -> None:
    """One step from perturbed weights: the update is AdamW's first, of a gradient by finite differences."""
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=0, ema_decay=0.0, clip_norm=0.0)
    config = config_of(ControlNetTask(backbone="nothing"), model=MODEL, optimizer=optimizer)
    given = {"controlnet": made("controlnet", MODEL.controlnet)}
    task, _, state, step = start(config, given, adamw(optimizer))
    before, batch = state, latents(config)
    rows = rows_of(config, batch)

    def loss_of(params: Any) -> Any:
        out = task.loss({"controlnet": params}, before.collections, {"stage_c": stage_c}, rows)
        assert out.logsnr is not None and not out.collections
        return (out.loss / (1 + jnp.exp(out.logsnr))).mean()  # P2

    loss = jax.jit(loss_of, compiler_options=UNOPTIMISED)
    after, metrics = step(state, {"stage_c": stage_c}, batch)
    old, new = before.params["controlnet"], after.params["controlnet"]
    np.testing.assert_allclose(metrics["objective"], loss(old), rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, before.collections, after.collections)
    for path in (("projection_1", "linear_2"), ("projection_0", "linear_0"), ("backbone", "stem", "conv")):
        a, b = old, new
        for name in path:
            a, b = a[name], b[name]
        a, b = a["kernel"], b["kernel"]
        # AdamW's first update is the sign of the gradient: the loss rises along it, by its sum of absolutes.
        # A gradient that rounding alone makes, as small as AdamW's epsilon, moves less.
        change = (1 - 1e-3 * optimizer.weight_decay) * a - b
        sign = np.sign(change)
        assert (sign != 0).mean() > 0.9
        assert np.abs(change).max() < 1e-3 + 2e-5
        assert (np.abs(change - 1e-3 * sign) < 2e-5).mean() > 0.99

        def moved(h: float, path: Any = path, sign: Any = sign, a: Any = a) -> float:
            tree: Any = jax.tree.map(lambda x: x, old)
            node = tree
            for name in path[:-1]:
                node = node[name]
            node[path[-1]] = {**node[path[-1]], "kernel": a + h * sign}
            return float(loss(tree))

        assert moved(2e-3) > moved(0) > moved(-2e-3)


def test_a_borrowed_backbone_keeps_its_weights_and_the_channels_of_its_first_convolution() -> None:
    source = filled(
        "effnet_encoder", dataclasses.replace(MODEL.effnet_encoder, backbone=MODEL.controlnet.backbone)
    )
    rgb = source["params"]["backbone"]["stem"]["conv"]["kernel"]
    for kind, channels in (("canny", 1), ("inpainting", 4)):
        config = kind_of(kind).controlnet
        variables = with_backbone(made("controlnet", config, seed=1), source)
        kernel = variables["params"]["backbone"]["stem"]["conv"]["kernel"]
        assert kernel.shape == (*rgb.shape[:2], channels, rgb.shape[3])
        np.testing.assert_array_equal(kernel[:, :, :3], rgb[:, :, :channels])
        assert not np.asarray(kernel[:, :, 3:]).any()
        np.testing.assert_array_equal(
            variables["params"]["backbone"]["head"]["conv"]["kernel"],
            source["params"]["backbone"]["head"]["conv"]["kernel"],
        )
        statistics = variables["batch_stats"]["backbone"]
        jax.tree.map(np.testing.assert_array_equal, statistics, source["batch_stats"]["backbone"])
        expected = components.abstract("controlnet", config)
        assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, expected)


def test_the_small_pictures_latent_is_the_control_of_super_resolution() -> None:
    config = kind_of("super_resolution")
    encoder = made("effnet_encoder", config.effnet_encoder)
    picture = images(2, 128)["image"]
    found = control_of({"image": jnp.asarray(picture)}, {"effnet_encoder": encoder}, config, jnp.float32)
    small = jnp.asarray(picture[:, ::2, ::2], jnp.float32) / 255
    latent: Any = EffnetEncoder(config.effnet_encoder).apply(encoder, small)
    assert latent.shape[1:3] == (2, 2)
    np.testing.assert_allclose(found, np.kron(latent, np.ones((1, 2, 2, 1))), rtol=1e-4, atol=1e-5)
    # The loader's bytes are in [0, 1].
    shown = control_of({"control": jnp.asarray(picture)}, {}, config, jnp.float32)
    np.testing.assert_allclose(shown, picture / np.float32(255), rtol=1e-6)


@pytest.mark.parametrize(("kind", "offset"), [("inpainting", 0.1), ("super_resolution", 0.5)])
def test_the_other_kinds_learn_with_offset_noise(kind: str, offset: float, stage_c: Any) -> None:
    """The noise of a whole channel is part of what is to be predicted: zeros miss its variance."""
    model, task = kind_of(kind), dataclasses.replace(FRESH, offset_noise=offset)
    config = config_of(task, model=model, batch_size=64)
    zero = jax.tree.map(jnp.zeros_like, stage_c)
    batch = {**latents(config, (3, 3)), "control": jnp.zeros((64, 8, 8, model.controlnet.in_channels))}
    _, _, state, _ = start(config)
    trainer = make_task(config)
    assert trainer.frozen == (("stage_c", "effnet_encoder") if kind == "super_resolution" else ("stage_c",))
    run = jax.jit(trainer.loss, compiler_options=UNOPTIMISED)
    out = run(state.params, state.collections, {"stage_c": zero}, rows_of(config, batch))
    np.testing.assert_allclose(out.loss.mean(), 1 + offset**2, rtol=0.06)


def test_what_does_not_fit_is_refused() -> None:
    def refused(model: Any, task: Any = FRESH) -> str:
        with pytest.raises(UserError) as error:
            make_task(config_of(task, model=model)).check()
        return str(error.value)

    def other(**changes: Any) -> Any:
        return dataclasses.replace(MODEL, controlnet=dataclasses.replace(MODEL.controlnet, **changes))

    make_task(config_of(ControlNetTask(), model=tiny)).check()
    assert "slots has 4, and stage C has 4 blocks" in refused(other(slots=(0, 4)))
    assert "channels 32 is not the 16 of stage C" in refused(other(channels=32))
    assert "--task.backbone nothing" in refused(kind_of("super_resolution"), ControlNetTask())
    assert "not that of model.effnet_encoder" in refused(MODEL, ControlNetTask())
    for offset in (-1.0, float("nan")):
        with pytest.raises(UserError, match="offset_noise"):
            ControlNetTask(offset_noise=offset)
