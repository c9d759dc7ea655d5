"""stdout and stderr as they may be: closed, full, without a reader, or without the characters."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


class Output:
    """A text stream that goes on leading somewhere when what it writes to does not.

    It shows ``?`` for a character that it cannot show. What cannot be written is dropped, and so is all that
    comes after it.
    """

    failed: OSError | None = None
    """Why nothing is written any more."""

    def __init__(self, stream: Any, *, ends: bool) -> None:
        """Write to `stream`; `ends` says whether a reader that has gone is a `BrokenPipeError`."""
        self._stream, self._ends = stream, ends
        if hasattr(stream, "reconfigure") and ends:  # stderr writes \u732b by itself, which says more
            stream.reconfigure(errors="replace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As of any text stream."""
        with self._noting():
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:
                self._stream.write(text.encode(error.encoding, "replace").decode(error.encoding))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """As of any text stream."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """As of any text stream."""
        with self._noting():
            self._stream.flush()

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        if self.failed is not None:
            return (yield)
        try:
            yield
        except OSError as error:
            self.failed = error
            with contextlib.suppress(OSError, AttributeError, ValueError):
                # What is still buffered would be tried again, and told, at the interpreter's end.
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if self._ends and isinstance(error, BrokenPipeError):
                raise


@contextlib.contextmanager
def guarded() -> Iterator[Output]:
    """Have stdout and stderr be `Output`s; yields the first."""
    _open_standard_files()
    before = sys.stdout, sys.stderr
    found = [stream or open(os.devnull, "w", encoding="utf-8") for stream in before]  # noqa: PTH123, SIM115
    stdout, stderr = Output(found[0], ends=True), Output(found[1], ends=False)
    streams: Any = sys
    streams.stdout, streams.stderr = stdout, stderr
    try:
        yield stdout
    finally:
        with contextlib.suppress(BrokenPipeError):
            stdout.flush()
        stderr.flush()
        streams.stdout, streams.stderr = before


def _open_standard_files() -> None:
    """Open those of stdin, stdout and stderr that are closed: the next files would get their numbers, and
    what libraries print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
