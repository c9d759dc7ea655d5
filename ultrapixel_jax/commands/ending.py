"""How a command ends: with what code, and in which words."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from ultrapixel_jax.commands import surroundings, terminal
from ultrapixel_jax.errors import UserError, one_line


def run(action: Callable[[], int | None], *, interrupted: str) -> int:
    """Run a command: what it returns, 0 for None, 2 after printing a `UserError`, 130 when interrupted.

    A terminal that cannot show a character gets another one. Where stdout cannot be written, all else is
    done, and the code is 2. A reader that has gone, as of ``--help | head``, ends the command quietly.
    jax's settings that cannot work are errors of one line, too.
    """
    with terminal.guarded() as stdout:
        code = _code(action, stdout, interrupted)
        if stdout.failed is None or code:
            return code
        if isinstance(stdout.failed, BrokenPipeError):
            return 128 + signal.SIGPIPE
        reason = stdout.failed.strerror or stdout.failed
        print(f"error: stdout cannot be written: {reason}; all else is done", file=sys.stderr)
        return 2


def _code(action: Callable[[], int | None], stdout: terminal.Output, interrupted: str) -> int:
    try:
        surroundings.check()
        with surroundings.explaining():
            code = action() or 0
        stdout.flush()
        return code
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted: {interrupted}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not isinstance(stdout.failed, BrokenPipeError):  # that of another pipe is no reader's doing
            raise
        return 128 + signal.SIGPIPE
