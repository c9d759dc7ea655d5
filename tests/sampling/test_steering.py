"""Pictures that are steered: by controls, image prompts, pictures to start from and to paint into."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sample
from configs.tiny import config as tiny
from tests.models.test_effnet_encoder import tiny as tiny_encoder
from tests.recordings import relative_error
from ultrapixel_jax import Canny, Inpainting, UltraPixel, UserError
from ultrapixel_jax.config import ControlNetConfig, DiffusionConfig, LevelConfig, LoraConfig
from ultrapixel_jax.diffusion.sampler import image_keys, make_table, noise
from ultrapixel_jax.sampling import canvas, given, pictures
from ultrapixel_jax.sampling.arguments import conditions
from ultrapixel_jax.sampling.conditions import NONE, Conditions, Control
from ultrapixel_jax.sampling.pipeline import Cascade
from ultrapixel_jax.sampling.requests import Request
from ultrapixel_jax.sampling.stages.base import HR
from ultrapixel_jax.sharding import make_mesh
from ultrapixel_jax.sizes import control_side

assert tiny.guidance is not None
LEVEL = LevelConfig(32, 2, down_blocks=1, up_blocks=1)
config = dataclasses.replace(
    tiny,
    stage_c=dataclasses.replace(tiny.stage_c, levels=(LEVEL, LEVEL), c_cond=32),
    guidance=dataclasses.replace(tiny.guidance, lr_side=8, channels=32),
    controlnet=ControlNetConfig(
        "canny", tiny_encoder().backbone, projection=12, channels=32, slots=(0, 1, 3)
    ),
    lora=LoraConfig(),
)
SIZE = (256, 320)
STEPS = DiffusionConfig(steps=4)
BATCH = 2


def blobs(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """A picture with soft shapes and hard edges."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return small.resize(size[::-1], Image.Resampling.NEAREST)


def hole(left: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[60:130, left : left + 90] = 255
    return mask


def request(own: Conditions, seed: int = 0) -> Request:
    return Request("a red circle", "blurry", seed, *SIZE, STEPS, STEPS, conditions=own)


def everything(k: int) -> Conditions:
    """Of every kind one, with other pictures and values for each `k`."""
    return conditions({
        "control": Canny(blobs(k), strength=0.5 + k, passes="both", until=1.0 - k / 4),
        "image_prompt": [(blobs(k + 2), 1.0 + k), blobs(k + 3)],
        "image": blobs(k + 4), "mask": hole(40 + 100 * k), "strength": 0.75,
    })  # fmt: skip


@pytest.fixture(scope="module")
def cascade() -> Cascade:
    return Cascade.load(None, config=config, preview=True)


def draw(cascade: Cascade, *requests: Request, batch_size: int = BATCH, **more):
    return cascade.generate(requests, batch_size=batch_size, **more)


@pytest.fixture(scope="module")
def plain(cascade):
    assert cascade.compilations == 0
    made = draw(cascade, request(NONE))[0]
    # Text, conditioning, noise of both sizes, empty features, LR, guidance, HR, previewer: as ever.
    assert cascade.compilations == 9
    return made


@pytest.fixture(scope="module")
def both(cascade, plain):
    return draw(cascade, request(everything(0), 1), request(everything(1), 2))


# -- controls


def test_a_control_counts_by_its_strength_and_steps(cascade, plain):
    def latent(**values) -> np.ndarray:
        return draw(cascade, request(Conditions((Canny(blobs(0), **values),))))[0].latents["stage_c"]

    full = latent()
    before = cascade.compilations
    assert relative_error(latent(strength=0.0), plain.latents["stage_c"]) < 1e-5
    assert relative_error(full, plain.latents["stage_c"]) > 1e-3
    first, second = latent(until=0.5), latent(start=0.5)
    assert relative_error(first, second) > 1e-3
    assert relative_error(latent(start=0.3, until=0.5), full) > 1e-3
    # Steps 0 and 1 of 4 are those below a half; a share between two steps counts from the next one.
    np.testing.assert_array_equal(latent(start=0.3, until=0.5), latent(start=0.4, until=0.5))
    np.testing.assert_array_equal(first, latent(until=0.26))
    assert cascade.compilations == before


def test_what_a_control_sees():
    side = control_side(8)
    assert side == 192
    image = given.picture(blobs(0, (512, 640)))
    lr = canvas.control_size(SIZE, (6, 8), side, None)
    assert lr == (192, 240)
    hr = Control("canny", image, passes="hr")
    assert canvas.control_size((2048, 2560), (48, 60), side, hr) == (512, 640)  # its own
    assert canvas.control_size(SIZE, (7, 9), side, hr) == (224, 280)  # no more than the latent shows
    edges = canvas.control_image(Control("canny", image), lr, side)
    assert edges.shape == (192, 240, 1) and edges.max() > 100 and (edges == 0).mean() > 0.5
    ready = Control("canny", given.picture(edges[..., 0]), ready=True)
    np.testing.assert_array_equal(canvas.control_image(ready, lr, side), edges)
    mask = given.picture(hole(40, (512, 640)))
    painted = canvas.control_image(Control("inpainting", image, mask), (512, 640), side)
    white = painted[..., 3] == 255
    np.testing.assert_array_equal(white, hole(40, (512, 640)) == 255)
    assert (painted[white] == 255).all()
    np.testing.assert_array_equal(painted[~white][:, :3], np.asarray(image.image())[~white])
    small = canvas.control_image(Control("super_resolution", image), (192, 240), side)
    assert small.shape == (96, 120, 3)


# -- all of them


def test_neighbours_and_place_in_the_batch_change_nothing(cascade, both):
    swapped = draw(cascade, request(everything(1), 2), request(everything(0), 1))
    padded = draw(cascade, request(everything(0), 1))
    for name in ("stage_c_low", "stage_c"):
        np.testing.assert_array_equal(both[0].latents[name], padded[0].latents[name])
        for k in (0, 1):
            assert relative_error(both[k].latents[name], swapped[1 - k].latents[name]) < 1e-4
        assert relative_error(both[0].latents[name], both[1].latents[name]) > 1e-2


def test_each_kind_and_each_value_matters_and_compiles_nothing(cascade, both):
    whole = everything(0)
    before = cascade.compilations
    other = everything(1)
    for changed in (
        dataclasses.replace(whole, controls=other.controls),
        dataclasses.replace(whole, image_prompts=other.image_prompts),
        dataclasses.replace(whole, start=other.start),
        dataclasses.replace(whole, inpaint=other.inpaint),
    ):
        made = draw(cascade, request(changed, 1))[0]
        assert relative_error(made.latents["stage_c"], both[0].latents["stage_c"]) > 1e-3
    assert cascade.compilations == before


def test_a_mesh_gives_the_single_devices_picture(both):
    model = Cascade.load(
        None, config=config, preview=True, mesh=make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    )
    made = draw(model, *(request(everything(k), 1 + k) for k in (0, 1, 0, 1)), batch_size=4)
    for k in (0, 1):
        for name in ("stage_c_low", "stage_c"):
            assert relative_error(made[k].latents[name], both[k].latents[name]) < 1e-3


def test_without_conditions_nothing_has_changed(cascade, plain, both):
    before = cascade.compilations
    again = draw(cascade, request(NONE))[0]
    assert cascade.compilations == before
    np.testing.assert_array_equal(again.latents["stage_c"], plain.latents["stage_c"])


# -- image prompts


def test_image_prompts_weigh_and_add_up(cascade, plain, both):
    def latent(image, weight=1.0) -> np.ndarray:
        own = conditions({"image_prompt": (image, weight)})
        return draw(cascade, request(own))[0].latents["stage_c"]

    before = cascade.compilations
    assert relative_error(latent(blobs(0), 0.0), plain.latents["stage_c"]) == 0  # zeros, as without
    one = latent(blobs(0))
    assert relative_error(one, latent(blobs(0), 2.0)) > 1e-4 < relative_error(one, plain.latents["stage_c"])
    assert cascade.compilations <= before + 1  # CLIP's tower for one picture
    # Attention knows no order.
    own = everything(0)
    swapped = dataclasses.replace(own, image_prompts=own.image_prompts[::-1])
    found = draw(cascade, request(swapped, 1))[0].latents["stage_c"]
    assert relative_error(found, both[0].latents["stage_c"]) < 1e-4


# -- pictures to start from, and to paint into


def latents(cascade: Cascade, image: Image.Image) -> np.ndarray:
    one = canvas.fitted(given.picture(image), (6, 8))
    return np.asarray(cascade.conditioner.encoder(np.stack([one] * BATCH)))[0]


def test_it_starts_from_the_noised_latent_of_the_picture(cascade, plain):
    """By hand: with as few steps as are left, from what the schedule mixes."""
    seen = {}

    def latent(strength: float, callback=None) -> np.ndarray:
        own = conditions({"image": blobs(0), "strength": strength})
        return draw(cascade, request(own, 3), progress=callback)[0].latents["stage_c"]

    def watch(stage, done, steps, estimate):
        seen.setdefault((stage, done), (steps, np.asarray(estimate())[0]))

    latent(0.5, watch)
    steps, x = seen["C high", 0]
    assert steps == 2 and seen["C low", 0][0] == 2
    encoded = latents(cascade, blobs(0))
    table = make_table(STEPS, 0.5)
    fresh = np.asarray(noise(jnp.asarray(image_keys([3], HR)), 0, (6, 8, 16)))[0]
    np.testing.assert_allclose(x, table.a[0] * encoded + table.b[0] * fresh, rtol=1e-5, atol=1e-5)
    assert table.r[0] == pytest.approx(0.5, abs=1e-3)
    before = cascade.compilations
    away = [np.linalg.norm(latent(strength) - encoded) for strength in (0.25, 0.5, 0.75)]
    assert away == sorted(away) and cascade.compilations == before
    noise_alone = draw(cascade, request(NONE, 3))[0].latents["stage_c"]
    np.testing.assert_array_equal(latent(1.0), noise_alone)
    # The schedule's largest noise level is not all noise: a hundredth of the picture is left.
    assert relative_error(latent(1 - 1e-6), noise_alone) < 0.05


def test_what_is_not_painted_stays(cascade, both):
    for k in (0, 1):
        own = everything(k)
        assert own.inpaint is not None and both[k].image.shape == (48, 64, 3)  # of the previewer
        encoded, mask = latents(cascade, blobs(k + 4)), canvas.latent_mask(own.inpaint.mask, (6, 8))
        assert 0 < mask.mean() < 0.5
        found = both[k].latents["stage_c"]
        np.testing.assert_allclose(found * (1 - mask), encoded * (1 - mask), rtol=1e-6, atol=1e-6)
        assert relative_error(found * mask, encoded * mask) > 0.1


def test_untouched_pixels_come_back():
    own = conditions({"image": blobs(1), "mask": hole(40), "feather": 8})
    assert own.inpaint is not None
    # Over decoded pixels of full size.
    drawn = np.asarray(blobs(7))
    result = canvas.pasted(drawn, own.inpaint)
    painted = np.argwhere(hole(40) > 0)
    far = np.ones(SIZE, bool)
    low, high = painted.min(0) - 8, painted.max(0) + 9
    far[low[0] : high[0], low[1] : high[1]] = False
    np.testing.assert_array_equal(result[far], np.asarray(blobs(1))[far])
    np.testing.assert_array_equal(result[hole(40) > 0], drawn[hole(40) > 0])
    between = ~far & (hole(40) == 0)
    assert (result[between] != drawn[between]).any() and (
        result[between] != np.asarray(blobs(1))[between]
    ).any()
    sharp = canvas.pasted(drawn, dataclasses.replace(own.inpaint, feather=0))
    np.testing.assert_array_equal(sharp, np.where(hole(40)[..., None] > 0, drawn, np.asarray(blobs(1))))


def test_masks_and_feathers_by_brute_force():
    rng = np.random.default_rng(0)
    mask = rng.random((37, 50)) < 0.01
    given_mask = given.picture(mask)
    for size in ((6, 8), (5, 7), (37, 50)):
        found = canvas.latent_mask(given_mask, size)[..., 0]
        for i in range(size[0]):
            for j in range(size[1]):
                y, x = np.arange(37), np.arange(50)  # pixels that overlap the cell
                rows = (y + 1 > i * 37 / size[0] + 1e-9) & (y < (i + 1) * 37 / size[0] - 1e-9)
                columns = (x + 1 > j * 50 / size[1] + 1e-9) & (x < (j + 1) * 50 / size[1] - 1e-9)
                assert found[i, j] == mask[np.ix_(rows, columns)].any()
    weight = canvas.feathered(mask, 6)
    where = np.argwhere(mask)
    for y in range(37):
        for x in range(50):
            away = np.abs(where - (y, x)).max(1).min()
            assert (weight[y, x] == 1) if away == 0 else (weight[y, x] == 0) if away > 6 else True
    assert ((weight > 0) & (weight < 1)).any()


# -- bad input


def test_what_a_model_lacks_is_a_line(cascade):
    mask = hole(0)
    with pytest.raises(UserError, match="ControlNet is for canny, not for inpainting"):
        draw(cascade, request(Conditions((Inpainting(blobs(0), mask),))))
    demo = Cascade.load(None, preview=True)
    with pytest.raises(UserError, match="an image prompt needs clip_vision, and the sources have clip_text"):
        draw(demo, request(conditions({"image_prompt": blobs(0)})))
    with pytest.raises(UserError, match=r"no ControlNet for canny \(there is: none\); .* --controlnet"):
        draw(demo, request(Conditions((Canny(blobs(0)),))))
    with pytest.raises(UserError, match="has no ControlNet, only clip_text"):
        Cascade.load(None, preview=True, controlnets=[Path("ultrapixel_jax/assets/demo").absolute()])
    apart = conditions({"image": blobs(0), "strength": 0.5, "strength_hr": 0.6})
    side_by_side = dataclasses.replace(
        config, guidance=dataclasses.replace(config.guidance, timestep="synchronized")
    )
    with pytest.raises(UserError, match="one strength for both"):
        draw(Cascade.load(None, config=side_by_side, preview=True), request(apart))


# -- from the command line


def test_the_command_line_draws_saves_and_reproduces(cascade, both, tmp_path, monkeypatch, capsys):
    model = UltraPixel(cascade, dict)
    monkeypatch.setattr(UltraPixel, "load", lambda *_, **__: model)
    blobs(0).save(tmp_path / "a.png")
    blobs(1).save(tmp_path / "b.png")
    Image.fromarray(hole(40)).save(tmp_path / "mask.png")
    listed = tmp_path / "p.jsonl"
    lines = [
        {"prompt": "a", "control": "canny:a.png", "name": "edges"},
        {"prompt": "b", "inpaint": ["b.png", "mask.png"], "strength": 0.5, "control_map": "canny:mask.png",
         "image_prompt": ["a.png:0.5", "b.png"], "control_pass": "both", "name": "all"},
    ]  # fmt: skip
    listed.write_text("\n".join(map(json.dumps, lines)))
    common = ["--size", "256x320", "--steps", "4", "--batch-size", "2", "--no-cache", "--quiet"]
    drawn = [
        "--prompts",
        str(listed),
        "--control-strength",
        "0.5",
        *common,
        "--output",
        str(tmp_path / "out"),
    ]
    before = cascade.compilations
    assert sample.main(drawn) == 0
    out, files = tmp_path / "out", ["all.canny.png", "all.png", "edges.canny.png", "edges.png"]
    assert sorted(p.name for p in out.iterdir()) == files
    with Image.open(out / "edges.canny.png") as shown:
        assert shown.mode == "L" and shown.size == (240, 192)
    request, _ = pictures.recorded(pictures.read_metadata(out / "edges.png"))
    (control,) = request.conditions.controls
    assert control.strength == 0.5 and control.image.path == str(tmp_path / "a.png")
    assert sample.main(drawn) == 0  # all there
    for name in ("edges", "all"):
        again = ["--reproduce", str(out / f"{name}.png"), "--no-cache", "--output", str(tmp_path / "again")]
        assert sample.main(again) == 0
    said = capsys.readouterr()
    assert said.out.count("every pixel is bit-identical") == 2 and cascade.compilations == before
    blobs(5).save(tmp_path / "a.png")
    assert sample.main(["--reproduce", str(out / "edges.png"), "--no-cache"]) == 2
    assert "a.png' of checksum" in capsys.readouterr().err
