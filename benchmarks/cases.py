"""The components of sampling as functions to be compiled, with inputs, here and in torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sizes import Bucket


@dataclasses.dataclass
class Case:
    """One component at one size, ready to be compiled."""

    function: Callable[..., Any]
    """What is jitted, of (variables, *inputs)."""
    variables: Any
    inputs: tuple[Any, ...]
    operations: int
    latent: tuple[int, int]
    batch: int
    torch: Callable[[bool], Any] | None = None
    """The same in torch, maps in memory channels last or not; gives what `function` gives, as numpy."""
    plain: Callable[..., Any] | None = None
    """The same without guidance, of the same arguments."""


def build(name: str, config: Any, size: tuple[int, int], dtype: str, *, torch: bool) -> Case:
    """The case of component `name` for a picture of `size`."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from ultrapixel_jax import flops, sizes
    from ultrapixel_jax.diffusion.two_branch import Prompts, ScaleInputs, StageCModel
    from ultrapixel_jax.models import components
    from ultrapixel_jax.models.clip_text import ClipText
    from ultrapixel_jax.models.guidance import Guidance
    from ultrapixel_jax.models.stage_a import StageA
    from ultrapixel_jax.models.stage_b import StageB
    from ultrapixel_jax.models.stage_c import PLACES, StageC

    kind = jnp.dtype(dtype)
    guidance = config.guidance
    bucket = Bucket.of(*size, *([guidance.lr_side] if guidance else []))
    random = np.random.default_rng(0)

    def values(*shape: int, of: Any = None) -> Any:
        return jnp.asarray(random.standard_normal(shape, np.float32), of or kind)

    def other(x: Any) -> Any:
        """`x` as a tensor of torch; a map is one of both of torch's layouts, by `channels_last`."""
        import torch as t

        tensor = t.from_numpy(np.asarray(x, np.float32)).to(getattr(t, str(x.dtype)))
        if x.ndim != 4:
            return tensor
        tensor = tensor.permute(0, 3, 1, 2)
        return {True: tensor, False: tensor.contiguous()}

    def weights(part: str, model: Any, of: Any) -> Any:
        part_config = getattr(config, part)
        if model is not None:
            from benchmarks import torch_models

            return torch_models.variables(part, part_config, model, of)
        make = jax.jit(lambda key: components.initialise(part, part_config, key, of))
        return make(jax.random.key(0))

    def reference(make: str, part: str) -> Any:
        if not torch:
            return None
        from benchmarks import torch_models

        model = getattr(torch_models, make)(getattr(config, part))
        return model if part == "stage_a" else model.to(getattr(torch_models.torch, dtype))

    def to_numpy(x: Any) -> Any:
        return x.float().permute(0, 2, 3, 1).numpy() if x.ndim == 4 else x.float().numpy()

    if name == "clip":
        c = config.clip_text
        model = reference("clip", "clip_text")
        ids = random.integers(0, c.vocab_size - 1, (2, c.positions))
        ids[:, -1] = c.vocab_size - 1
        mask = np.ones_like(ids)
        clip = ClipText(c, dtype=kind, param_dtype=kind)
        run = None
        if model is not None:
            import torch as t

            run = lambda last: model(input_ids=t.from_numpy(ids)).text_embeds.float().numpy()  # noqa: E731
        return Case(
            lambda v, ids, mask: clip.apply(v, ids, mask)[1],
            weights("clip_text", model, kind), (jnp.asarray(ids, jnp.int32), jnp.asarray(mask, jnp.int32)),
            flops.clip_text_flops(c, 2), (1, c.positions), 2, run,
        )  # fmt: skip
    if name in ("c-low", "c-high", "c-plain", "prepare"):
        c = config.stage_c
        latent = bucket.lr if name == "c-low" else bucket.hr
        model = reference("unet", "stage_c") if name in ("c-low", "c-plain") else None
        guided = name in ("c-high", "prepare")
        if guided and guidance is None:
            raise UserError(f"{name} needs a configuration with guidance networks")
        g = Guidance(guidance, kind) if guided and guidance else None
        made = {"c": weights("stage_c", model, kind) if name != "prepare" else None}
        if guided:
            made["g"] = weights("guidance", None, kind)

        def stage_c(v: Any) -> StageCModel:
            return StageCModel(StageC(c, kind), v["c"], g, v.get("g"), kind)

        tokens = config.clip_text.positions
        text, pooled = values(2, tokens, c.c_clip_text), values(2, c.c_clip_text_pooled)
        image = jnp.zeros((2, c.c_clip_img), kind)
        x, r = values(2, *latent, c.c_latent), jnp.asarray([0.6, 0.6], jnp.float32)
        widths = [level.channels for level in c.levels]
        operations = flops.stage_c_flops(c, latent, 2, text_tokens=tokens)
        lr = {p: values(1, *bucket.lr, w) for p, w in zip(PLACES, widths + widths[::-1], strict=True)}
        if name == "prepare":
            assert guidance is not None
            return Case(
                lambda v, f: stage_c(v).prepare(f, latent), made, (lr,),
                flops.guidance_prepare_flops(guidance, bucket.lr, bucket.hr), latent, 1,
            )  # fmt: skip
        condition = jax.jit(lambda v, p: stage_c(v).condition(p))
        conditioning = jax.block_until_ready(condition(made, Prompts(text, pooled, image)))
        if not guided:
            run = None
            if model is not None:
                maps, r_torch = other(x), other(r).to(model.dtype)  # as its pipeline does
                more = {
                    "clip_text_pooled": other(pooled)[:, None], "clip_text": other(text),
                    "clip_img": other(image)[:, None],
                }  # fmt: skip
                run = lambda last: to_numpy(model(maps[last], r_torch, **more).sample)  # noqa: E731
            return Case(
                lambda v, x, r, k: stage_c(v).denoise(x, r, k).epsilon, made, (x, r, conditioning),
                operations, latent, 2, run,
            )  # fmt: skip
        assert guidance is not None
        once = jax.jit(lambda v, f: stage_c(v).prepare(f, latent))
        prepared = jax.tree.map(lambda y: jnp.concatenate([y, y]), once(made, lr))
        scale = ScaleInputs(jnp.float32(sizes.scale(*bucket.hr)), jnp.float32(1))
        return Case(
            lambda v, x, r, k, p, s: stage_c(v).denoise(x, r, k, p, s).epsilon, made,
            (x, r, conditioning, prepared, scale),
            operations + flops.guidance_fuse_flops(guidance, latent, 2), latent, 2,
            plain=lambda v, x, r, k, p, s: stage_c(v).denoise(x, r, k).epsilon,
        )  # fmt: skip
    if name == "b":
        c = config.stage_b
        model, latent = reference("unet", "stage_b"), bucket.stage_b
        v = weights("stage_b", model, kind)
        stage_b = StageB(c, kind)
        pooled, effnet = values(2, c.c_clip), values(2, *bucket.hr, c.c_effnet)
        x, r = values(2, *latent, c.c_latent), jnp.asarray([0.6, 0.6], jnp.float32)
        condition = jax.jit(lambda v, p, e: stage_b.apply(v, p, e, latent, method="condition"))
        conditioning = jax.block_until_ready(condition(v, pooled, effnet))
        run = None
        if model is not None:
            maps, effnets, vector = other(x), other(effnet), other(pooled)[:, None]
            r_torch = other(r).to(model.dtype)
            run = lambda last: to_numpy(  # noqa: E731
                model(maps[last], r_torch, clip_text_pooled=vector, effnet=effnets[last]).sample
            )
        return Case(
            stage_b.apply, v, (x, r, conditioning),
            flops.stage_b_flops(c, latent, 2), latent, 2, run,
        )  # fmt: skip
    c, latent = config.stage_a, bucket.stage_b  # float32 whatever the dtype, as in sampling
    model = reference("paella", "stage_a")
    z = values(1, *latent, c.c_latent, of=jnp.float32)
    stage_a = StageA(c)
    run = None
    if model is not None:
        maps = {last: latent * c.scale_factor for last, latent in other(z).items()}
        run = lambda last: to_numpy(model.decode(maps[last]).sample)  # noqa: E731
    return Case(
        lambda v, z: stage_a.apply(v, z, method="decode"), weights("stage_a", model, jnp.float32), (z,),
        flops.stage_a_decode_flops(c, latent), latent, 1, run,
    )  # fmt: skip
