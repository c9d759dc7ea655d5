"""In a real browser: LoRAs with their words, and a mask that is painted (`in_browser` runs these)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from playwright.sync_api import Page, expect
from safetensors.numpy import save_file

from tests.web.person import PATIENCE, ask, status
from ultrapixel_jax import UltraPixel
from ultrapixel_jax.layouts.lora.names import numbered
from ultrapixel_jax.layouts.lora.write import write
from ultrapixel_jax.models.lora import Change, Lora, NewToken, stage_c_layers


def some_loras(folder: Path) -> None:
    """One that brings the word ``[zob]``, one whose word has no name, and a file that is no LoRA."""
    config = UltraPixel.load().config
    path = numbered(config.stage_c)[0]
    inputs, outputs = stage_c_layers(config.stage_c)[path]
    rng = np.random.default_rng(0)
    change = Change(rng.normal(size=(1, inputs)), rng.normal(size=(outputs, 1)), 1e-3)
    vector = rng.normal(size=(1, config.clip_text.width)).astype(np.float32)
    for layout, token in (
        ("comfyui", NewToken("[zob]", vector, absolute=True)),
        ("ultrapixel", NewToken(None, vector, absolute=False)),
    ):
        written = write(Lora(layout, {"stage_c": {path: change}}, (token,)), layout, config, layout)
        save_file(written.tensors, folder / f"{layout}.safetensors", written.metadata)
    save_file({"x": np.zeros(3, np.float32)}, folder / "other.safetensors")


def with_loras(page: Page, output: Path) -> None:
    """Their new words are shown, put into the prompt, or asked for; one that cannot be used is said."""
    ask(page, "a red circle", side=384, steps=3)
    expect(status(page)).to_contain_text("Finished in", timeout=PATIENCE)
    page.select_option("#lora-add", "other.safetensors")
    expect(page.locator("#said")).to_contain_text("other.safetensors")
    expect(page.locator("#loras li")).to_have_count(0)
    page.select_option("#lora-add", "comfyui.safetensors")
    expect(page.locator("#token-field")).to_be_hidden()
    page.fill("#prompt", "a red")
    page.get_by_label("Put [zob] into the prompt").click()
    expect(page.locator("#prompt")).to_have_value("a red [zob]")
    page.select_option("#lora-add", "ultrapixel.safetensors")
    expect(page.locator("#token-field")).to_be_visible()
    page.press("#prompt", "Control+Enter")
    expect(page.locator("#easel .fault, #fault").filter(has_text="brings a new word").first).to_be_visible()
    page.fill("#token", "[cat]=^circle</w>")
    ask(page, "a red [zob] [cat]", side=384, steps=3)
    expect(page.locator("#easel .caption")).to_contain_text("a red [zob] [cat]")
    expect(status(page)).to_contain_text("Finished in", timeout=PATIENCE)
    card = page.locator("#pictures li", has_text="a red [zob] [cat]")
    for name in ("comfyui", "ultrapixel"):
        page.get_by_label(f"Without {name}.safetensors").click()
    page.fill("#token", "")
    card.get_by_text("use again").click()
    expect(page.locator("#loras li")).to_have_count(2)
    expect(page.locator("#token")).to_have_value("[cat]=^circle</w>")
    for name in ("comfyui", "ultrapixel"):
        page.get_by_label(f"Without {name}.safetensors").click()
    page.fill("#token", "")


def painted_into(page: Page, output: Path, shots: Path | None) -> str:
    """A mask is painted over a picture of the gallery; what is outside of it stays as it was."""
    (path,) = output.glob("a-red-circle-a*.png")
    before = set(output.glob("*.png"))
    page.click("[aria-label='Look at: a red circle above a striped blue square']")
    page.click("#viewer [data-do=settings]")
    page.locator("#details").get_by_text("Start from it").click()
    expect(page.locator("#viewer")).not_to_be_visible()
    page.locator("#guides select").select_option("inpaint")
    page.press("#prompt", "Control+Enter")
    expect(page.locator("#fault")).to_contain_text("needs a mask")
    page.locator("#guides .mask").click()
    canvas = page.locator("#masking canvas")
    expect(canvas).to_be_focused()
    page.locator("#masking [data-do=done]").click()
    expect(page.locator("#masking [role=status]")).to_have_text("Nothing is painted yet.")
    page.wait_for_function("document.querySelector('#masking img').naturalWidth === 768")
    box = canvas.bounding_box()
    assert box is not None and abs(box["width"] - box["height"]) < 1

    def drag(*points: tuple[float, float]) -> None:
        for n, (x, y) in enumerate(points):
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
            if n == 0:
                page.mouse.down()
        page.mouse.up()

    page.locator("#masking input[type=range]").fill("20")
    drag((0.3, 0.8), (0.7, 0.8))
    drag((0.1, 0.1), (0.1, 0.2))
    page.locator("#masking [data-do=undo]").click()
    page.locator("#masking [data-do=erase]").click()
    drag((0.5, 0.8), (0.52, 0.8))
    page.locator("#masking [data-do=erase]").click()
    canvas.focus()
    for key in ("ArrowRight", "ArrowDown", "e", "e", "i", "i"):
        page.keyboard.press(key)
    if shots:
        page.screenshot(path=shots / "mask.png")
    page.locator("#masking [data-do=done]").click()
    expect(page.locator("#masking")).not_to_be_visible()
    expect(page.locator("#guides .mask")).to_have_text("mask ✓")
    page.locator("#guides .mask").click()  # taken up again: by the keys, at the left edge
    expect(canvas).to_be_focused()
    for _ in range(25):
        page.keyboard.press("ArrowLeft")
    page.keyboard.press(" ")
    page.locator("#masking [data-do=done]").click()
    expect(page.locator("#masking")).not_to_be_visible()
    page.fill("#prompt", "a yellow star")
    page.fill("#steps", "5")
    page.press("#prompt", "Control+Enter")
    expect(page.locator("#easel .caption")).to_contain_text("a yellow star")
    expect(status(page)).to_contain_text("Finished in", timeout=PATIENCE)
    (made,) = set(output.glob("*.png")) - before
    with Image.open(made) as image:
        mask = output / json.loads(image.text["ultrapixel"])["conditions"]["inpaint"]["mask"]["path"]
        new = np.asarray(image.convert("RGB"), int)
    white = np.asarray(Image.open(mask).convert("L")) > 127
    old = np.asarray(Image.open(path).convert("RGB"), int)
    assert white.shape == (768, 768)
    places = {(0.8, 0.35): 1, (0.8, 0.65): 1, (0.8, 0.51): 0, (0.15, 0.1): 0, (0.25, 0.01): 1, (0.5, 0.5): 0}
    for (down, across), wanted in places.items():
        found = white[int(down * 768), int(across * 768)]
        assert found == wanted, (down, across, found)
    far = ~np.asarray(Image.fromarray(white).filter(ImageFilter.MaxFilter(129)))
    assert far.mean() > 0.3 and (new[far] == old[far]).all() and (new != old)[white].mean() > 0.3
    page.get_by_label("Without the picture").click()
    return f"{white.mean():.0%} painted, {far.mean():.0%} far from it and unchanged"
