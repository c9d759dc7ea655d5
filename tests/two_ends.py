"""One of several processes that join; what it does then is the last argument. For test_processes.py."""

from __future__ import annotations

import os
import sys
import time

from ultrapixel_jax import commands, processes
from ultrapixel_jax.errors import UserError


def main(index: int, count: int, address: str, what: str) -> int:
    processes.join(address, index, count, patience=int(os.environ.get("PATIENCE", "120")), silence=20)
    if processes.agreed(lambda: [index, what], "who") != [0, what]:
        return 9
    if what == "fine":
        return 0
    who, how = what.split(":")
    if how == "late":  # the other has done all that it had to
        time.sleep(1.5 * (str(index) == who))
    if str(index) == who:
        raise UserError("the disk\nis full") if how in ("refused", "late") else ZeroDivisionError
    if how != "late":
        time.sleep(300)  # for the others
    return 0


if __name__ == "__main__":
    index, count, address, what = sys.argv[1:]

    def action() -> int:
        return processes.together(lambda: main(int(index), int(count), address, what))

    sys.exit(commands.run(action, interrupted="again"))
