"""The demo's page as a process of its own, and people who look at it in a real browser."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect

ROOT = Path(__file__).parents[2]
PATIENCE = 1_200_000
"""Milliseconds that a drawing may take."""


@contextlib.contextmanager
def server(output: Path, loras: Path) -> Iterator[tuple[str, int]]:
    """The demo's page; yields its address and its process."""
    command = [sys.executable, "-m", "ultrapixel_jax.web", "--port", "0", "--output", str(output)]
    command += ["--loras", str(loras)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[-1], process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    finally:
        process.kill()


@contextlib.contextmanager
def person(browser: Browser, address: str, **look: Any) -> Iterator[Page]:
    """A page of somebody with a browser of his own, in which nothing may go wrong unseen."""
    context = browser.new_context(**{"viewport": {"width": 1360, "height": 900}, **look})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.goto(address)
    expect(page.locator("#model")).to_contain_text("the demo")
    yield page
    refused = [fault for fault in faults if "status of 4" not in fault]
    assert not refused, refused
    context.close()


def ask(page: Page, prompt: str, side: int = 384, steps: int = 6) -> None:
    page.fill("#prompt", prompt)
    page.fill("#width", str(side))
    page.fill("#height", str(side))
    page.fill("#steps", str(steps))
    page.press("#prompt", "Control+Enter")


def status(page: Page) -> Any:
    return page.locator("#easel .status")
