"""LoRAs and new words in a loaded model: what they change, that they go again, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ultrapixel_jax
from configs.tiny import config
from convert.__main__ import main as convert
from tests.conftest import ROOT
from tests.layouts.lora.files import file_of
from tests.recorded_models import import_component
from tests.recordings import relative_error
from tests.released import state_dict, write
from ultrapixel_jax import Picture, UltraPixel, UserError
from ultrapixel_jax.checkpoints.directory import CheckpointWriter, ComponentInfo
from ultrapixel_jax.config import to_dict
from ultrapixel_jax.layouts.lora.read import read_file
from ultrapixel_jax.models.clip_text import ClipText
from ultrapixel_jax.models.components import initialise
from ultrapixel_jax.models.lora import changes as of_component
from ultrapixel_jax.models.lora import merge
from ultrapixel_jax.sampling import pictures
from ultrapixel_jax.sampling.condition_keys import conditions_of
from ultrapixel_jax.sampling.conditions import Conditions, Token
from ultrapixel_jax.sampling.requests import Entry, Request

SMALL: dict[str, Any] = {"height": 256, "width": 256, "steps": 2, "steps_b": 1}
TEXT = config.clip_text
FOX, TINY = "[fox]", ROOT / "configs" / "tiny.py"
Z = 345
"""Id of the token that "z" is."""


@pytest.fixture(scope="module")
def model() -> UltraPixel:
    return UltraPixel.load(config=config, cache=False)


@pytest.fixture(scope="module")
def plain(model: UltraPixel) -> Picture:
    return model("a red circle", return_latents=True, **SMALL)[0]


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files: `kohya` with changes of the text encoder, `wide` of another rank, `offset` and `named` words."""
    folder, rng = tmp_path_factory.mktemp("loras"), np.random.default_rng(0)
    vectors = rng.standard_normal((2, TEXT.width)).astype(np.float32)
    kohya, _ = file_of("kohya")
    files = {
        "kohya": kohya,
        "wide": file_of("peft", rank=7)[0],
        "offset": {
            "embeddings.embeddings": vectors, "embeddings.indices": np.array([TEXT.vocab_size, Z]),
            **{key: x for key, x in kohya.items() if "_down_blocks_0_2_attention_attn_to_q" in key},
        },
        "named": {"bundle_emb.<two words>.clip_g": vectors},
        "inversion": {"clip_g": np.concatenate([vectors] * 33)},
    }  # fmt: skip
    for name, tensors in files.items():
        write(folder / f"{name}.safetensors", {key: np.asarray(x) for key, x in tensors.items()})
    return {name: folder / f"{name}.safetensors" for name in files}


def arrays(model: UltraPixel) -> dict[str, Any]:
    return {
        name: jax.tree.leaves(stage.variables[name])
        for stage in model.cascade.stages
        for name in stage.variables
    }


def test_switching_compiles_nothing_and_the_base_comes_back_bit_for_bit(
    model: UltraPixel, plain: Picture, loras: dict[str, Path]
) -> None:
    base, compiled = arrays(model), model.cascade.compilations

    def drawn(*files: Any) -> np.ndarray:
        (picture,) = model("a red circle", lora=list(files), return_latents=True, **SMALL)
        return picture.latents["stage_c"]

    expected = plain.latents["stage_c"]
    one, other = drawn((loras["kohya"], 0.8)), drawn(loras["wide"])
    both = drawn((loras["kohya"], 0.8), loras["wide"])
    assert len({x.tobytes() for x in (expected, one, other, both)}) == 4
    np.testing.assert_array_equal(drawn((loras["kohya"], 0.8)), one)
    np.testing.assert_array_equal(drawn((loras["kohya"], 0.0)), expected)
    drawn(loras["wide"])
    assert any(a is not b for a, b in zip(arrays(model)["stage_c"], base["stage_c"], strict=True))
    (again,) = model("a red circle", return_latents=True, **SMALL)
    np.testing.assert_array_equal(again.latents["stage_c"], expected)
    np.testing.assert_array_equal(np.asarray(again), np.asarray(plain))
    assert all(a is b for name, own in arrays(model).items() for a, b in zip(own, base[name], strict=True))
    assert model.cascade.compilations == compiled


def test_lists_group_by_lora(model: UltraPixel, plain: Picture, loras: dict[str, Path]) -> None:
    """Pictures of two LoRAs in one call are those of two calls, and come in order."""
    own = [{}, {"lora": ((loras["wide"], 1.0),)}, {}]
    c, b = model.settings(steps=2, steps_b=1)
    requests = [Request("a red circle", "", 0, 256, 256, c, b, conditions=conditions_of(one)) for one in own]
    made = dict(model.draw(requests, batch_size=1))
    for i in (0, 2):
        np.testing.assert_array_equal(np.asarray(made[i]), np.asarray(plain))
    assert not np.array_equal(np.asarray(made[1]), np.asarray(plain))
    assert made[1].metadata["conditions"]["loras"][0]["file"]["checksum"]


def test_the_text_encoder_against_a_dense_merge(model: UltraPixel, loras: dict[str, Path]) -> None:
    _, deltas = file_of("kohya")
    zeros = {key: np.zeros(x.shape, np.float32) for key, x in state_dict("clip_text", TEXT).items()}
    added = {key: (x + 0.8 * deltas.get(key, 0)).astype(np.float32) for key, x in zeros.items()}
    ids, mask = model.cascade.text.tokenizer(["a red circle", ""])
    model.cascade.personal.use(Conditions())
    base = model.cascade.text.variables["clip_text"]
    variables = jax.tree.map(jnp.add, base, import_component("clip_text", TEXT, added))
    expected: Any = ClipText(TEXT).apply(variables, jnp.asarray(ids), jnp.asarray(mask))
    model.cascade.personal.use(conditions_of({"lora": ((loras["kohya"], 0.8),)}))
    found = model.cascade.text(["a red circle"], [""])
    for one, other in zip(found, expected, strict=False):
        assert relative_error(one, other) < 1e-5
    model.cascade.personal.use(Conditions())
    assert relative_error(model.cascade.text(["a red circle"], [""])[0], expected[0]) > 0.1


def states(model: UltraPixel, prompt: str, **steered: Any) -> np.ndarray:
    model.cascade.personal.use(conditions_of(steered))
    return np.asarray(model.cascade.text([prompt], [""]).states[0])


def by_hand(model: UltraPixel, ids: np.ndarray, rows: dict[int, np.ndarray]) -> np.ndarray:
    """States of `ids` with other rows of the embedding: tokens that no prompt here has stand for new ones."""
    variables = model.cascade.text.variables["clip_text"]
    table = np.array(variables["params"]["token_embedding"])
    for index, row in rows.items():
        table[index] = row
    variables = {"params": {**variables["params"], "token_embedding": jnp.asarray(table)}}
    out: Any = ClipText(TEXT).apply(variables, jnp.asarray(ids), jnp.ones(ids.shape, jnp.int32))
    return np.asarray(out[0][0])


def test_words_start_from_a_pattern_and_have_an_offset(model: UltraPixel, loras: dict[str, Path]) -> None:
    plain = model.cascade.text.tokenizer
    vectors = np.random.default_rng(0).standard_normal((2, TEXT.width)).astype(np.float32)
    table = np.asarray(model.cascade.text.variables["clip_text"]["params"]["token_embedding"])
    start = table[[plain([letter])[0][0, 1] for letter in "qr"]].mean(0)
    steered = {"lora": ((loras["offset"], 1.0),), "token": ((FOX, "^[qr]</w>$"),)}
    found = states(model, "x [FOX] z x", **steered)
    assert model.cascade.text.tokenizer([f"x {FOX} x"])[0][0, 2] == TEXT.vocab_size
    spare = 7  # in no prompt here: it stands for the new one
    ids = plain(["x q z x"])[0][:, :6]
    assert (ids[0, 3], ids[0, 5]) == (Z, TEXT.vocab_size - 1)
    ids[0, 2] = spare
    # The offset to a token that the vocabulary has counts too.
    expected = by_hand(model, ids, {spare: start + vectors[0], Z: table[Z] + vectors[1]})
    assert relative_error(found[:6], expected) < 1e-5
    zero = states(model, "x [fox] x x", **{**steered, "token": ((FOX, ""),)})
    ids[0, 3] = ids[0, 1]
    assert relative_error(zero[:6], by_hand(model, ids, {spare: vectors[0]})) < 1e-5
    # Without the LoRA, the same words are letters again.
    states(model, "x")
    np.testing.assert_array_equal(model.cascade.text.tokenizer(["x [fox]"])[0], plain(["x [fox]"])[0])
    # What is cut off counts them as what they are, whatever was drawn before.
    (long,) = model.requests([Entry("[fox] " * 40 + "end", conditions=steered)])
    (without,) = model.requests([Entry("[fox] " * 40 + "end")])
    assert model.cascade.cut_off([long]) == []
    assert model.cascade.cut_off([without])[0].endswith("end")


def test_words_of_several_tokens(model: UltraPixel, loras: dict[str, Path]) -> None:
    vectors = np.random.default_rng(0).standard_normal((2, TEXT.width)).astype(np.float32)
    plain = model.cascade.text.tokenizer
    found = states(model, "x <Two Words> x", lora=((loras["named"], 1.0),))
    ids, _ = plain(["x q r x"])
    ids[0, 2:4] = 7, 11
    assert relative_error(found[:6], by_hand(model, ids[:, :6], {7: vectors[0], 11: vectors[1]})) < 1e-5
    compiled = model.cascade.compilations
    states(model, "x", lora=((loras["named"], 1.0), (loras["offset"], 1.0)), token=((FOX, ""),))
    assert model.cascade.compilations == compiled
    states(model, "x")


@pytest.mark.parametrize(
    ("names", "tokens", "message"),
    [
        (["offset"], [], "brings a new word and not its name"),
        (["offset"], [Token("q", "")], "token 'q' exists already"),
        (["offset"], [Token(FOX, "^nothing</w>")], "is found in none of the vocabulary's 514 tokens"),
        (["offset"], [Token(FOX, "(")], "is no regular expression"),
        (["offset"], [Token(FOX), Token("[cat]")], r"token '\[cat\]': nothing that is given brings"),
        (["kohya"], [Token(FOX)], r"token '\[fox\]': nothing that is given brings an embedding"),
        ([], [Token(FOX)], "nothing that is given brings"),
        (["named", "offset"], [Token("<two words>")], "is brought twice"),
        (["inversion"], [Token(FOX)], "66 new tokens are more than the 64"),
        (["inversion"], [Token(FOX, "^q")], "has an embedding of its own; leave out the pattern"),
    ],
)
def test_words_that_are_refused(
    names: list[str], tokens: list[Token], message: str, model: UltraPixel, loras: dict[str, Path]
) -> None:
    given = {"lora": [loras[name] for name in names], "token": {t.name: t.pattern for t in tokens}}
    with pytest.raises(UserError, match=message) as caught:
        model("a red circle", **{key: value for key, value in given.items() if value}, **SMALL)
    assert "\n" not in str(caught.value)


def test_a_picture_is_made_again_with_its_lora(
    model: UltraPixel, loras: dict[str, Path], tmp_path: Path
) -> None:
    file, png = tmp_path / "fox.safetensors", tmp_path / "x.png"
    file.write_bytes(loras["offset"].read_bytes())
    (drawn,) = model("a [fox] x", lora=(file, 0.5), token={FOX: "^q</w>"}, **SMALL)
    drawn.save(png)
    request, _ = pictures.recorded(pictures.read_metadata(png), tmp_path)
    assert request.conditions.loras[0].scale == 0.5 and request.conditions.tokens == (Token(FOX, "^q</w>"),)
    ((_, again),) = model.draw([request])
    np.testing.assert_array_equal(np.asarray(again), np.asarray(drawn))
    assert not np.array_equal(np.asarray(model("a [fox] x", **SMALL)[0]), np.asarray(drawn))
    file.write_bytes(loras["kohya"].read_bytes())
    with pytest.raises(UserError, match="it has changed"):
        pictures.recorded(pictures.read_metadata(png), tmp_path)


def test_a_checkpoint_is_a_lora_too(model: UltraPixel, loras: dict[str, Path], tmp_path: Path) -> None:
    """Converted, a file draws as it is; and words whose names lie in the configuration need no --token."""
    assert convert([str(loras["offset"]), str(tmp_path / "converted"), "--config", str(TINY)]) == 0
    steered = {"token": ((FOX, "^q</w>"),)}
    found = states(model, "x [fox] z x", lora=((tmp_path / "converted", 1.0),), **steered)
    changed = model.cascade.stage_c.variables["stage_c"]
    expected = states(model, "x [fox] z x", lora=((loras["offset"], 1.0),), **steered)
    np.testing.assert_array_equal(found, expected)
    jax.tree.map(np.testing.assert_array_equal, changed, model.cascade.stage_c.variables["stage_c"])

    made = initialise("lora", config.lora, jax.random.key(0))
    made = jax.tree.map(lambda x: np.array(x) + 0.1, made)
    own = dataclasses.replace(config.lora, tokens=("[fox]=^q</w>",))
    with CheckpointWriter(tmp_path / "own") as writer:
        writer.add("lora", made, ComponentInfo(to_dict(own)))
    found = states(model, "x [fox] x", lora=((tmp_path / "own", 1.0),))
    ids = model.cascade.text.tokenizer(["x [fox] x"])[0][:, :5]
    assert ids[0, 2] == TEXT.vocab_size
    table = np.asarray(model.cascade.text.variables["clip_text"]["params"]["token_embedding"])
    q = table[model.cascade.text.tokenizer(["q"])[0][0, 1]]
    ids[0, 2] = 7
    assert relative_error(found[:5], by_hand(model, ids, {7: q + 0.1})) < 1e-5
    with pytest.raises(UserError, match="has no LoRA, but clip_text"):
        demo = Path(ultrapixel_jax.__file__).parent / "assets" / "demo"
        states(model, "x", lora=((demo, 1.0),))
    states(model, "x")
    for layout in ("ultrapixel", "comfyui"):
        out = tmp_path / layout
        arguments = ["--export", str(tmp_path / "own"), str(out), "--layout", layout, "--component", "lora"]
        assert convert(arguments) == 0
        changes = read_file(out / "lora.safetensors", config).changes["stage_c"]
        merged = merge(model.cascade.stage_c.variables["stage_c"], [(changes, 1.0)])
        wanted = merge(model.cascade.stage_c.variables["stage_c"], [(of_component(made["params"]), 1.0)])
        for one, other in zip(jax.tree.leaves(merged), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
