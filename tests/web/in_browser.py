"""The page in a real browser: drawn, cancelled, reloaded, looked at to the pixel, by two people at once.

    pip install -e '.[browser]'
    apt-get install -y --no-install-recommends chromium
    python -m tests.web.in_browser [--chromium /usr/bin/chromium] [--shots DIRECTORY]

Starts the demo's page as a process of its own. Takes a few minutes, and ends with an error where something is
not as it should be.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.web.person import PATIENCE, ask, person, server, status
from tests.web.steered import painted_into, some_loras, with_loras

SIDE = 6144
"""Of a picture of random pixels, as large as the largest that anybody draws."""


def drawn(page: Page, output: Path) -> None:
    """The plan first, then the large preview, then the picture, which is the file's."""
    ask(page, "a red circle above a striped blue square", side=768, steps=20)
    expect(page.locator("#easel img.plan").first).to_be_visible(timeout=PATIENCE)
    assert page.locator("#easel img.large").count() == 0
    expect(page.locator("#easel img.large").first).to_be_visible(timeout=PATIENCE)
    assert page.locator("#easel .inset img.plan").count() == 1
    expect(status(page)).to_contain_text("Finished in", timeout=PATIENCE)
    expect(page.locator("#easel .finished img")).to_be_visible()
    (path,) = output.glob("a-red-circle*.png")
    with Image.open(path) as made:
        shown = np.asarray(made.convert("RGB"), float)
    data = page.evaluate(
        "async () => [...new Uint8Array(await (await fetch("
        "document.querySelector('#easel .finished img').src)).arrayBuffer())]"
    )
    seen = np.asarray(Image.open(io.BytesIO(bytes(data))).convert("RGB"), float)
    assert seen.shape == shown.shape and np.abs(seen - shown).mean() < 3
    expect(page.locator("#pictures .look")).to_have_count(1)


def cancelled_and_reloaded(page: Page, output: Path) -> None:
    """A reload in the middle shows the request at work; cancelling ends it; the next one is drawn."""
    before = len(list(output.glob("*.png")))
    ask(page, "a yellow star", side=768, steps=400)
    expect(page.locator("#easel img.plan").first).to_be_visible(timeout=PATIENCE)
    page.reload()
    expect(page.locator("#easel .caption")).to_contain_text("a yellow star")
    expect(status(page)).to_contain_text("Planning at low resolution")
    expect(page.locator("#easel img.plan").first).to_be_visible()
    assert page.input_value("#prompt") == "a yellow star" and page.input_value("#steps") == "400"
    page.click("#easel .cancel")
    expect(status(page)).to_have_text("Cancelled", timeout=PATIENCE)
    assert len(list(output.glob("*.png"))) == before
    ask(page, "a green square", side=768, steps=5)
    expect(status(page)).to_contain_text("Finished in", timeout=PATIENCE)
    assert len(list(output.glob("*.png"))) == before + 1


def two_people(one: Page, other: Page) -> None:
    """The second waits, sees where, and is drawn in turn."""
    ask(one, "a blue star", side=768, steps=200)
    expect(status(one)).not_to_contain_text("Waiting")
    expect(other.locator("#queue")).to_be_hidden()  # one that is on the easel is no queue
    expect(other.locator("#easel .caption")).to_contain_text("a blue star")
    ask(other, "a red square", side=768, steps=5)
    expect(status(other)).to_contain_text("Waiting: 2nd in the queue")
    expect(other.locator("#jobs li").first).to_contain_text("Somebody else's: being drawn")
    expect(one.locator("#jobs li").last).to_contain_text("Somebody else's: 2nd in the queue")
    one.click("#easel .cancel")
    expect(status(other)).to_contain_text("Finished in", timeout=PATIENCE)
    expect(status(one)).to_have_text("Cancelled")
    expect(one.locator("#pictures .look")).to_have_count(other.locator("#pictures .look").count())


def down_to_a_pixel(page: Page, pixels: np.ndarray, shots: Path | None) -> list[str]:
    """Colours on the screen are the file's at places all over the picture; returns what was read."""
    page.click("[aria-label='Look at: random.png']")
    expect(page.locator("#pane-a [role=application]")).to_be_focused()
    page.keyboard.press("1")
    found = []
    rng = np.random.default_rng(0)
    for x, y in [(0, 0), (SIDE - 1, SIDE - 1), *rng.integers(0, SIDE, (6, 2)).tolist()]:
        page.evaluate(
            """async ([x, y]) => {
                const { viewerOf } = await import("/page/viewer.js");
                const viewer = viewerOf("a");
                const item = viewer.world.getItemAt(0);
                viewer.viewport.zoomTo(item.imageToViewportZoom(32), null, true);
                viewer.viewport.panTo(item.imageToViewportCoordinates(x + 0.5, y + 0.5), true);
            }""",
            [x, y],
        )
        expect(page.locator("#readout-a")).to_have_text(re.compile(rf"^{x}, {y} · #[0-9a-f]{{6}} · 32:1$"))
        wanted = "#" + bytes(pixels[y, x]).hex()
        expect(page.locator("#readout-a")).to_contain_text(wanted)  # when its piece has come
        box = page.locator("#pane-a").bounding_box()
        assert box is not None
        middle = {"x": box["x"] + box["width"] / 2 - 5, "y": box["y"] + box["height"] / 2 - 5}
        shot = page.screenshot(clip={**middle, "width": 10, "height": 10})
        on_screen = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))
        assert (on_screen == pixels[y, x]).all(), (x, y, on_screen, pixels[y, x])
        found.append(f"{x},{y} {wanted}")
    page.mouse.move(0, 0)
    page.keyboard.press("c")
    page.click("#strip li:nth-child(2) button")
    expect(page.locator("#pane-b [role=application]")).to_be_visible()
    page.locator("#pane-a [role=application]").focus()
    for key in ("0", "+", "+", "+", "ArrowLeft", "ArrowUp", "+"):
        page.keyboard.press(key)
    page.wait_for_timeout(1500)
    places = page.evaluate(
        """async () => {
            const { viewerOf } = await import("/page/viewer.js");
            return ["a", "b"].map((side) => {
                const { viewport } = viewerOf(side);
                return [viewport.getZoom(), viewport.getCenter().x, viewport.getCenter().y];
            });
        }"""
    )
    np.testing.assert_allclose(*places, atol=1e-6)
    assert places[0][0] > 1.5
    if shots:
        page.screenshot(path=shots / "compared.png")
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).not_to_be_visible()
    return found


def used_again(page: Page, output: Path) -> None:
    """Settings come back from the gallery, and from a picture that is chosen; others are refused in words."""
    card = page.locator("#pictures li", has_text="a green square")
    card.get_by_text("use again").click()
    expect(page.locator("#prompt")).to_have_value("a green square")
    assert page.input_value("#steps") == "5" and not page.is_checked("#random")
    page.fill("#prompt", "")
    (path,) = output.glob("a-red-circle*.png")
    page.set_input_files("#open", path)
    expect(page.locator("#prompt")).to_have_value("a red circle above a striped blue square")
    assert page.input_value("#width") == "768" and page.input_value("#seed") in path.stem
    data = page.evaluate_handle(
        """async (name) => {
            const file = new File([await (await fetch(name)).blob()], "dropped.png", { type: "image/png" });
            const transfer = new DataTransfer();
            transfer.items.add(file);
            return transfer;
        }""",
        f"pictures/{next(output.glob('a-red-square*')).name}",
    )
    page.dispatch_event("body", "dragover", {"dataTransfer": data})
    expect(page.locator("#drop")).to_be_visible()
    page.dispatch_event("body", "drop", {"dataTransfer": data})
    expect(page.locator("#prompt")).to_have_value("a red square")
    for name, kind, body, words in (
        ("x.png", "image/png", b"nothing", "'x.png' is not a PNG picture"),
        ("x.png", "image/png", path.read_bytes()[:-99], "'x.png' is truncated or damaged"),
        ("x.jpg", "image/jpeg", b"nothing", "x.jpg is no PNG"),
    ):
        page.set_input_files("#open", {"name": name, "mimeType": kind, "buffer": body})
        expect(page.locator("#said")).to_contain_text(words)
    large = output.parent / "large.png"
    with large.open("wb") as file:
        file.truncate(200 * 10**6)
    page.set_input_files("#open", large)
    expect(page.locator("#said")).to_contain_text("large.png has 200 MB; at most 128 MB are taken")


def refused(page: Page) -> None:
    """What cannot be drawn is said beside the form."""
    ask(page, "x" * 10_000)
    expect(page.locator("#fault")).to_have_text("the prompt has 10,000 characters; at most 4,000 are taken")
    ask(page, "x", side=100)
    expect(page.locator("#plan")).to_contain_text("height 100 is outside 256 to 8192 pixels")
    expect(page.locator("#fault")).to_contain_text("100 is outside 256 to 8192")
    for address in ("pictures/..%2Flarge.png", "pictures/%2e%2e%2flarge.png", "page/..%2Froutes.py"):
        found = page.evaluate("async (x) => (await fetch(x)).status", address)
        assert found == 404, (address, found)


def by_keyboard(page: Page) -> None:
    """From the top of the page to a picture and back, without a mouse; every control has a name."""
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, progress, a")]
            .filter((x) => !x.labels?.length && !x.getAttribute("aria-label") && !x.textContent.trim())
            .map((x) => x.outerHTML)"""
    )
    assert not nameless, nameless
    page.reload()
    expect(page.locator("#pictures .look").first).to_be_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the link that skips the form
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#viewer")).to_be_visible()
    expect(page.locator("#pane-a [role=application]")).to_be_focused()
    page.keyboard.press("s")
    expect(page.locator("#details")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).not_to_be_visible()


def shoot(browser: Browser, address: str, shots: Path) -> None:
    """Pictures of the page in every look, and of it at work."""
    view = {"viewport": {"width": 1240, "height": 800}}
    with person(browser, address, **view) as page:
        ask(page, "a red circle above a striped blue square", side=768, steps=100)
        expect(page.locator("#easel img.large").first).to_be_visible(timeout=PATIENCE)
        expect(page.locator("#easel .stages li:nth-child(2) .quiet")).to_contain_text(
            re.compile("^[3-9]. of")
        )
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=shots / "at-work.png")
        expect(status(page)).to_contain_text("Finished in", timeout=PATIENCE)
    with person(browser, address, **view, color_scheme="dark") as page:
        looks = page.locator("[aria-label='Look at: a red circle above a striped blue square']")
        expect(looks).to_have_count(2)
        looks.first.click()
        expect(page.locator("#pane-a [role=application]")).to_be_focused()
        page.keyboard.press("c")
        page.locator("#strip button[aria-label$='striped blue square']").last.click()
        expect(page.locator("#pane-b [role=application]")).to_be_visible()
        page.evaluate(
            """async () => {
                const { viewerOf } = await import("/page/viewer.js");
                const { viewport } = viewerOf("a");
                viewport.zoomTo(7, null, true);
                viewport.panTo(new OpenSeadragon.Point(0.5, 0.62), true);
            }"""
        )
        page.wait_for_timeout(1500)
        page.screenshot(path=shots / "pixels.png")
    for scheme in ("light", "dark"):
        for name, width, height in (("wide", 1360, 860), ("narrow", 390, 844)):
            view = {"viewport": {"width": width, "height": height}, "color_scheme": scheme}
            with person(browser, address, **view) as page:
                expect(page.locator("#pictures .look").first).to_be_visible()
                page.wait_for_timeout(1500)
                page.screenshot(path=shots / f"{name}-{scheme}.png")
                page.locator("#pictures .look").last.click()
                page.wait_for_timeout(2500)
                page.keyboard.press("s")
                page.wait_for_timeout(500)
                page.screenshot(path=shots / f"viewer-{name}-{scheme}.png")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--chromium", default="/usr/bin/chromium")
    p.add_argument("--shots", type=Path)
    options = p.parse_args()
    if options.shots:
        options.shots.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=60_000)
    with tempfile.TemporaryDirectory() as here, sync_playwright() as playwright:
        output = Path(here) / "output"
        output.mkdir()

        def told(what: str, do: Callable[[], Any]) -> None:
            began = time.monotonic()
            said = do()
            print(f"{what}: yes, {time.monotonic() - began:.1f} s{f' ({said})' if said else ''}", flush=True)

        loras = Path(here) / "loras"
        loras.mkdir()
        some_loras(loras)
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        with (
            server(output, loras) as (address, process),
            person(browser, address) as one,
            person(browser, address) as other,
        ):
            told("drawn, plan first", lambda: drawn(one, output))
            told(
                "reloaded in the middle, cancelled, next one drawn",
                lambda: cancelled_and_reloaded(one, output),
            )
            told("two people wait in turn", lambda: two_people(one, other))
            told("settings used again, dropped, broken ones refused", lambda: used_again(one, output))
            told("LoRAs and their words", lambda: with_loras(one, output))
            told("a mask painted", lambda: painted_into(one, output, options.shots))
            told("prompts and addresses refused", lambda: refused(one))
            told("by keyboard", lambda: by_keyboard(other))
            pixels = np.random.default_rng(7).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(output / "random.png", compress_level=1)
            one.reload()
            told(f"pixels of {SIDE}² as in the file, two pictures at one place",
                 lambda: ", ".join(down_to_a_pixel(one, pixels, options.shots)))  # fmt: skip
            (output / "random.png").unlink()
            if options.shots:
                told("pictures of the page", lambda: shoot(browser, address, options.shots))
            with urllib.request.urlopen(f"{address}api/model") as answer:
                print(f"the server lives: {json.load(answer)['name']}")
            (peak,) = re.findall(r"VmHWM:\s*(.*)", Path(f"/proc/{process}/status").read_text())
            print(f"its largest memory: {peak}")
        print(f"Chromium {browser.version}")
        browser.close()


if __name__ == "__main__":
    main()
