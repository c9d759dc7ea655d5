"""The paper's Table 1 by itself: pictures of every size drawn, timed and measured."""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ultrapixel_jax.data.paths import user_errors
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.evaluate.measures import TITLES, Figure, Figures
from ultrapixel_jax.evaluate.reports import shown
from ultrapixel_jax.sampling import pictures
from ultrapixel_jax.sampling.prompts import read_prompts
from ultrapixel_jax.sampling.ultrapixel import UltraPixel
from ultrapixel_jax.sizes import HW

PICTURES, SECONDS = "pictures", "seconds.jsonl"
LATENCY = "latency"


def name_of(size: HW) -> str:
    """As in the paper's table."""
    return f"{size[0]}x{size[1]}"


def draw(
    output: Path,
    sizes: Sequence[HW],
    prompts: Path,
    *,
    checkpoint: Path | None = None,
    count: int | None = None,
    progress: Callable[[str], Any] = lambda _: None,
) -> dict[HW, Path]:
    """Draw every prompt at every size, one picture at a time, and note how long each took.

    Pictures that are there already are kept; compiling does not count.

    Args:
        output: pictures of a size lie in `pictures/HEIGHTxWIDTH` in it.
        sizes: height and width.
        prompts: a file, as for sample.py.
        checkpoint: a checkpoint or run; None is the demo.
        count: of prompts, the first ones; None takes all.
        progress: told the name of every finished picture's size.

    Raises:
        UserError: no such prompts or checkpoint, or a picture cannot be written.
    """
    entries = read_prompts(prompts)[:count]
    if len(entries) < 2:
        raise UserError(f"prompts {prompts} are {len(entries)}; a set that is measured needs two or more")
    folders = {size: pictures.check_writable(output / PICTURES / name_of(size)) for size in sizes}
    model = UltraPixel.load(checkpoint)
    run = model.run(batch_size=model.device_batch(1), tile=None, decode_memory=4.0)
    for size, folder in folders.items():
        requests = model.requests(entries, height=size[0], width=size[1])
        todo = [
            (i, request) for i, request in enumerate(requests)
            if pictures.find(folder, f"{i:05d}", pictures.describe(request, run)) is None
        ]  # fmt: skip
        for _ in range(len(requests) - len(todo)):
            progress(name_of(size))
        if todo:
            model.compile([request for _, request in todo])
        for i, request in todo:
            began = time.perf_counter()
            ((_, picture),) = model.draw([request])
            seconds = time.perf_counter() - began
            pictures.save_picture(folder, f"{i:05d}", picture)
            with user_errors(folder, "times"), (folder / SECONDS).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"name": f"{i:05d}", "seconds": seconds}) + "\n")
            progress(name_of(size))
    del model
    gc.collect()  # its weights are not needed while others measure
    return folders


def latency(folder: Path) -> Figure | None:
    """Median seconds of a picture, with the quarter below and above; None where no time was noted."""
    path = folder / SECONDS
    if not path.is_file():
        return None
    seconds = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            seconds.append(float(json.loads(line)["seconds"]))
        except (ValueError, KeyError, TypeError):  # a line that a killed process did not finish
            continue
    if not seconds:
        return None
    quarters = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else None
    between = None if quarters is None else (quarters[0], quarters[2])
    return Figure(statistics.median(seconds), len(seconds), between, note="median; half of them lie between")


def markdown(columns: Mapping[str, Figures], head: str) -> str:
    """A row for each size."""
    names = list(dict.fromkeys(name for figures in columns.values() for name in figures))
    lines = [
        f"# {head}",
        "",
        "| size | " + " | ".join(TITLES[name] for name in names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for size, figures in columns.items():
        cells = []
        for name in names:
            value, interval = shown(figures[name]) if name in figures else ("–", "–")
            cells.append(value if interval == "–" else f"{value} ({interval})")
        lines.append(f"| {size} | " + " | ".join(cells) + " |")
    return "\n".join(
        [*lines, "", "In brackets: 95 % intervals; of seconds, the middle half of the pictures.", ""]
    )
