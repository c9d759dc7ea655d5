"""How networks were trained, as a table made from the logs of their runs: for the demo's card.

python -m ultrapixel_jax.demo.measure.card RUN…
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ultrapixel_jax import commands
from ultrapixel_jax.demo.measure.scores import table
from ultrapixel_jax.errors import UserError

COLUMNS = ("run", "task", "data", "from", "steps", "batch", "dtype", "rate", "images", "hours", "loss")


def row(run: Path) -> dict[str, str]:
    """What the log of one run tells; `hours` are those of the steps that count, without compilation.

    Raises:
        UserError: it is no run, or has not logged a step.
    """
    try:
        config: dict[str, Any] = json.loads((run / "config.json").read_text(encoding="utf-8"))
        lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        # Steps that a killed run did again are logged again: the last line counts. Others are of validation.
        logged: dict[int, dict[str, Any]] = {line["step"]: line for line in lines if "loss" in line}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{run} has no log of a run: {getattr(error, 'strerror', None) or error}") from error
    if not logged:
        raise UserError(f"{run} has not logged a step")
    steps = sorted(logged)
    seconds = sum((b - a) * logged[b]["step_seconds"] for a, b in zip([0, *steps], steps))
    batch, optimizer = config["data"]["batch_size"], config["optimizer"]
    return {
        "run": run.name,
        "task": config["task_type"].removesuffix("Task"),
        "data": Path(config["data"]["path"]).name,
        "from": ", ".join(Path(source).name for source in config["sources"]),
        "steps": f"{steps[-1]:,}",
        "batch": str(batch),
        "dtype": config["dtype"],
        "rate": f"{optimizer['learning_rate']:g} {optimizer['schedule']}",
        "images": f"{steps[-1] * batch:,}",
        "hours": f"{seconds / 3600:.2f}",
        "loss": f"{logged[steps[0]]['loss']:.4f} to {logged[steps[-1]]['loss']:.4f}",
    }


def parser() -> commands.Parser:
    """The command line."""
    p = commands.Parser("python -m ultrapixel_jax.demo.measure.card", __doc__)
    p.argument("runs", Path, "directory of a training run", nargs="+", metavar="RUN")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""

    def run() -> None:
        rows = [row(path) for path in parser().read(argv).runs]
        print(table(COLUMNS, [[r[name] for name in COLUMNS] for r in rows], labels=4), end="")

    return commands.run(run, interrupted="no file was written")


if __name__ == "__main__":
    sys.exit(main())
