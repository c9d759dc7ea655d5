"""Writing pictures while the next ones are drawn: compressing a PNG of 4096² takes seconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

Done = TypeVar("Done")


class Writer(Generic[Done]):
    """One thread that writes, in the order given; a failure stops the next `add`, or at the latest `close`.

    As a context manager it waits at the end for all that was added, after an interruption too.

    Args:
        finished: told, in the caller's thread and in order, what each job returned.
        pending: most jobs that wait, beyond which `add` does: pictures are large.
    """

    def __init__(self, finished: Callable[[Done], Any], pending: int = 2) -> None:
        self._finished, self._pending = finished, pending
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._jobs: deque[Future[Done]] = deque()

    def add(self, job: Callable[[], Done]) -> None:
        """Have `job` done.

        Raises:
            Exception: what an earlier job raised; `job` is done nevertheless.
        """
        self._jobs.append(self._pool.submit(job))
        while self._jobs and (self._jobs[0].done() or len(self._jobs) > self._pending):
            self._next()

    def close(self) -> None:
        """Wait for all jobs.

        Raises:
            Exception: what the first of them that failed raised, after the others were done.
        """
        self._pool.shutdown(wait=True)
        failures = []
        while self._jobs:
            try:
                self._next()
            except Exception as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _next(self) -> None:
        self._finished(self._jobs.popleft().result())

    def __enter__(self) -> Writer[Done]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
