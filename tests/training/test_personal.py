"""Personalisation: its two losses are the known ones, and of the text encoder only the new rows learn."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tests.models.filled import SMALL, filled
from tests.training.steps import config_of, latents, rows_of, with_
from ultrapixel_jax.checkpoints.tokenizer import BYTE_TOKENIZER, Tokenizer
from ultrapixel_jax.compilation.options import UNOPTIMISED
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.models.clip_text import ClipText
from ultrapixel_jax.models.lora import Lora, changes, merge, misfit
from ultrapixel_jax.training.config import GuidanceTask, LoraTask, PersonalTask
from ultrapixel_jax.training.inputs import with_words
from ultrapixel_jax.training.tasks import make_task

CONFIG = config_of(PersonalTask(lr_steps=2), batch_size=2)
STAGE_C = SMALL.stage_c
LORA = dataclasses.replace(
    CONFIG.model.lora,
    stage_c=STAGE_C,
    rank=2,
    alpha=3.0,
    modules=(".*",),
    tokens=("[fox]=^[qr]</w>$", "[owl]"),
)
MODEL = dataclasses.replace(SMALL, lora=LORA)
CONFIG = with_(CONFIG, model=MODEL)
CAPTIONS = ["a [Fox] there", "x"]
HIGH = ("latent",)


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    names = ("stage_c", "guidance", "clip_text")
    return {name: jax.tree.map(jnp.asarray, filled(name, getattr(MODEL, name))) for name in names}


@pytest.fixture(scope="module")
def batch() -> dict[str, Any]:
    tokenizer, starts = with_words(Tokenizer(BYTE_TOKENIZER), MODEL)
    ids, mask = tokenizer(CAPTIONS)
    own = {"ids": ids, "mask": mask, "starts": np.repeat(starts[None], 2, axis=0)}
    return rows_of(with_(CONFIG, task=LoraTask()), {**latents(CONFIG, hr=(6, 6)), **own})


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    made = make_task(CONFIG).initial("lora", jax.random.key(1))["params"]
    return {"lora": made}


def run(function: Any, *args: Any) -> Any:
    return jax.jit(function, compiler_options=UNOPTIMISED)(*args)


def test_low_resolution_first_then_both() -> None:
    task, whole = make_task(CONFIG), dict.fromkeys(("latent", "latent_lr", "ids"), jnp.zeros(1))
    high = ["latent" in task.part(n, whole) for n in range(1, 8)]
    assert high == [False, False, True, False, True, False, True]
    alone = make_task(with_(CONFIG, model=dataclasses.replace(MODEL, guidance=None)))
    assert alone.part(1, whole) is whole
    assert task.frozen == ("stage_c", "guidance", "clip_text") and alone.frozen == ("stage_c", "clip_text")


def test_losses_are_those_of_its_halves(networks: Any, batch: Any, params: Any) -> None:
    """Before the first update: the ε loss at the LR size, and UltraPixel's, words at their start."""
    task = make_task(CONFIG)
    table = np.array(networks["clip_text"]["params"]["token_embedding"])
    plain = Tokenizer(BYTE_TOKENIZER)
    start = table[[plain(["q"])[0][0, 1], plain(["r"])[0][0, 1]]].mean(0)
    new = np.zeros((2, table.shape[1]), np.float32)
    new[0] = start
    clip: Any = ClipText(MODEL.clip_text).apply(
        networks["clip_text"], batch["ids"], batch["mask"], jnp.asarray(new)
    )
    text = {"text_states": clip[0], "text_pooled": clip[1]}
    assert (batch["ids"][0] == MODEL.clip_text.vocab_size).sum() == 1  # [fox], in whatever case

    def loss(task: Any, params: Any, networks: Any, batch: Any) -> Any:
        rest = {kind: x for kind, x in networks["guidance"].items() if kind != "params"}
        return task.loss(params, {"guidance": rest, "lora": {}}, networks, batch).loss

    cached = {key: x for key, x in batch.items() if key not in ("ids", "mask", "starts")} | text
    without = {name: networks[name] for name in ("stage_c", "guidance")}
    guided = make_task(with_(CONFIG, task=GuidanceTask()))
    expected = run(lambda *a: loss(guided, *a), {"guidance": without["guidance"]["params"]}, without, cached)
    found = run(lambda *a: loss(task, *a), params, networks, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-5)

    low = {**cached, "latent": cached["latent_lr"]}
    alone = make_task(with_(CONFIG, task=LoraTask()))
    expected = run(lambda *a: loss(alone, *a), params, without, low)
    found = run(lambda *a: loss(task, *a), params, networks, task.part(1, batch))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_gradient_of_the_words_alone(networks: Any, batch: Any, params: Any) -> None:
    """By finite differences; a word that no caption has gets none, nor what words start from."""
    task = make_task(CONFIG)
    rng = np.random.default_rng(0)
    lora = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), params["lora"])
    clip = networks["clip_text"]["params"]

    def loss(embeddings: Any, table: Any) -> Any:
        own = {"lora": {**lora, "embeddings": embeddings}}
        text = {"params": {**clip, "token_embedding": table}}
        networks_ = {**networks, "clip_text": text}
        return task.loss(own, {"lora": {}}, networks_, task.part(1, batch)).loss.sum()

    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), compiler_options=UNOPTIMISED)
    at, table = lora["embeddings"], clip["token_embedding"]
    _, (gradient, of_table) = compiled(at, table)
    length = float(jnp.linalg.norm(gradient))
    step = 1e-2
    plus, minus = (float(compiled(at + s / length * gradient, table)[0]) for s in (step, -step))
    np.testing.assert_allclose((plus - minus) / (2 * step), length, rtol=1e-2)
    assert np.abs(gradient[0]).max() > 0 and not np.any(gradient[1])  # [owl] is in no caption
    assert set(np.flatnonzero(np.abs(of_table).max(1))) <= set(np.unique(batch["ids"]))


def test_changes_of_the_text_encoder_are_those_of_its_weights(networks: Any, batch: Any) -> None:
    """Beside the weights in training, merged in sampling; all learn, and nothing changes at first."""
    text = dataclasses.replace(LORA, modules=(".*/out",), text_modules=(".*/(q|mlp_in)", "text_projection"))
    model = dataclasses.replace(SMALL, lora=text)
    task = make_task(with_(CONFIG, model=model))
    start = task.initial("lora", jax.random.key(1))["params"]
    assert sorted(start["clip_text"]["layer_0"]) == ["attention", "mlp_in"]
    rng = np.random.default_rng(0)
    moved = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), start)

    def loss(own: Any, given: Any) -> Any:
        return task.loss({"lora": own}, {"lora": {}}, given, task.part(1, batch)).loss.sum()

    compiled = jax.jit(jax.value_and_grad(loss), compiler_options=UNOPTIMISED)
    found, gradient = compiled(moved, networks)
    for path, change in traverse_util.flatten_dict(gradient["clip_text"], sep="/").items():
        assert np.abs(change).max() > 0, path
    still = jax.tree.map(lambda x: x, moved)
    still["clip_text"] = start["clip_text"]
    own = changes(moved["clip_text"], text.alpha)
    assert misfit(Lora("here", {"clip_text": own}), STAGE_C, SMALL.clip_text) is None
    merged = {**networks, "clip_text": merge(networks["clip_text"], [(own, 1.0)])}
    expected, _ = compiled(still, merged)
    before, _ = compiled(still, networks)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert abs(float(found - before)) > 1e-3 * float(before)


def test_text_modules_that_cannot_be_trained() -> None:
    def model(*own: str) -> Any:
        return dataclasses.replace(SMALL, lora=dataclasses.replace(LORA, tokens=(), text_modules=own))

    with pytest.raises(UserError, match="matches no layer of the text encoder"):
        make_task(with_(CONFIG, model=model("in_proj"))).initial("lora", jax.random.key(0))
    with pytest.raises(UserError, match=r"lora\.text_modules: '\(' is no regular expression"):
        model("(")
    with pytest.raises(UserError, match=r"model\.lora\.text_modules is for personalisation"):
        with_(CONFIG, task=LoraTask(), model=model(".*"))
    assert make_task(with_(CONFIG, model=model(".*"))).frozen == ("stage_c", "guidance", "clip_text")


def test_words_that_cannot_be_trained() -> None:
    def tokens(*own: str) -> Any:
        return dataclasses.replace(MODEL, lora=dataclasses.replace(LORA, tokens=own))

    tokenizer = Tokenizer(BYTE_TOKENIZER)
    for own, message in (("q", "exists already"), ("[fox]=^nothing", "is found in none")):
        with pytest.raises(UserError, match=message):
            with_words(tokenizer, tokens(own))
    with pytest.raises(UserError, match="the tokenizer has 514 tokens, and the text encoder 700"):
        text = dataclasses.replace(MODEL.clip_text, vocab_size=700)
        with_words(tokenizer, dataclasses.replace(MODEL, clip_text=text))
