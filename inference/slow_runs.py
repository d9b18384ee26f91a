"""Threads for runs that would hold up the event loop, shared out so that no version can take them all."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from inference.watchdog import Lane

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Work(Generic[T]):
    digest: str
    deployment_id: int
    allowed_ms: int
    run: Callable[[Lane], T]
    done: Callable[[T], None]


class SlowRuns:
    """Lives on the event loop's thread. A version whose runs never return holds at most half of the threads.

    What waits is bounded by the callers: each batcher has one batch under way.
    """

    def __init__(self, name: str, lanes: Sequence[Lane]) -> None:
        """One thread per lane. Call on the running event loop."""
        self._pool = ThreadPoolExecutor(len(lanes), thread_name_prefix=name)
        self._lanes = list(lanes)
        self._most = max(len(lanes) // 2, 1)
        self._running: Counter[str] = Counter()
        self._waiting: deque[_Work[Any]] = deque()
        self._loop = asyncio.get_running_loop()

    def submit(
        self, digest: str, deployment_id: int, allowed_ms: int, run: Callable[[Lane], T], done: Callable[[T], None]
    ) -> None:
        """Call ``run``, which must not raise, on a thread with its lane; then ``done`` with the result on the loop.

        ``allowed_ms``: how long it may take, if that is more than what is usual.
        """
        self._waiting.append(_Work(digest, deployment_id, allowed_ms, run, done))
        self._start_next()

    def _start_next(self) -> None:
        while self._lanes:
            work = next((one for one in self._waiting if self._running[one.digest] < self._most), None)
            if work is None:
                return
            self._waiting.remove(work)
            self._running[work.digest] += 1
            lane = self._lanes.pop()
            future = self._pool.submit(_run, lane, work)
            future.add_done_callback(partial(self._on_done, lane, work))

    def _on_done(self, lane: Lane, work: _Work[Any], result: Future[Any]) -> None:
        self._loop.call_soon_threadsafe(self._finish, lane, work, result)

    def _finish(self, lane: Lane, work: _Work[Any], result: Future[Any]) -> None:
        self._lanes.append(lane)
        self._running[work.digest] -= 1
        if not self._running[work.digest]:
            del self._running[work.digest]
        self._start_next()
        work.done(result.result())


def slow_runs(lanes: Sequence[Lane]) -> tuple[SlowRuns, SlowRuns]:
    """Threads for slow versions, and one for shadows, which must not take the processor from those that answer."""
    shadow, *slow = lanes
    return SlowRuns("slow-run", slow), SlowRuns("shadow-run", [shadow])


def _run(lane: Lane, work: _Work[T]) -> T:
    lane.begin(work.deployment_id, work.allowed_ms)
    try:
        return work.run(lane)
    finally:
        lane.end()
