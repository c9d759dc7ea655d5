"""What the benchmarks share: one measurement in a process of its own, and a table of many."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ultrapixel_jax.errors import UserError
from ultrapixel_jax.files import write_whole

Row = dict[str, Any]


def in_own_process(module: str, label: str, arguments: Sequence[str]) -> Row | None:
    """The row that `python -m module arguments` prints last, as JSON; None, and a line, where it fails."""
    print(f"{label} …", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["killed; out of memory?"])[-1]
        print(f"{label} failed: {last}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def keep(file: Path | None, rows: Sequence[Row]) -> None:
    """Write `rows` to `file`, if there is one; after each row, so that a limit of time loses none."""
    if file:
        write_whole(file, json.dumps(rows, indent=1) + "\n")


def check_names(what: str, names: Sequence[str], known: Mapping[str, Any]) -> None:
    """Raise `UserError` for the first of `names` that is not among the `known`."""
    for name in names:
        if name not in known:
            raise UserError(f"{what} {name!r:.80} is not known; known are {', '.join(known)}")


def table(columns: Sequence[tuple[str, str]], rows: Sequence[Row]) -> str:
    """Markdown of `rows`; columns are (key, title), and those that no row has are left out.

    Raises:
        UserError: no rows.
    """
    if not rows:
        raise UserError("nothing could be measured")

    def cell(row: Row, key: str) -> str:
        value = row.get(key)
        if value is None:
            return "–"
        if key == "utilisation":
            return f"{value:.0%}"
        if key == "difference":
            return f"{value:.0e}"
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    columns = [(key, title) for key, title in columns if any(row.get(key) is not None for row in rows)]
    lines = ["| " + " | ".join(title for _, title in columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(cell(row, key) for key, _ in columns) + " |" for row in rows])
