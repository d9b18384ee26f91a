"""Batching per tick of the event loop: what arrived together runs together, without waiting for more."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import numpy as np

from inference.contracts import Signature, TensorSpec
from inference.errors import CallerGone, InferenceError, ModelFailed, Overloaded
from inference.model_store import LoadedModel
from inference.protocol import BatchOutputs, InferRequest, Values, to_array
from inference.runtime import Array, run

SLOW_MS: Final = 5.0
"""A batch expected to run longer than this goes to a thread, so that it does not hold up other models."""
BATCH_MS: Final = 50.0
"""A batch gets no more rows than are expected to run in this time: those behind it should not wait for long."""


class Job:
    """A request on its way through a batcher. ``arrived`` is of ``time.perf_counter``."""

    __slots__ = ("arrived", "request")

    arrived: float
    request: InferRequest

    @property
    def is_open(self) -> bool:
        """Whether the caller still waits."""
        raise NotImplementedError


@dataclass(slots=True)
class BatchResult:
    """The outcome of one run for the jobs that shared it; ``outputs`` is None when there is an error."""

    started: float  # perf_counter
    run_us: int
    rows: int
    inputs: list[Array]
    outputs: BatchOutputs | None
    error: InferenceError | None = None


J = TypeVar("J", bound=Job)


class Batcher(Generic[J]):
    """The queue of one version on one endpoint. Lives on the event loop's thread; slow batches run on ``executor``."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        max_rows: int,
        timeout: float,
        executor: Executor,
        done: Callable[[Sequence[J], BatchResult], None],
    ) -> None:
        """``done`` is called on the loop's thread, once for every job; ``timeout`` in seconds bounds the wait."""
        self._model = model
        quick_rows = int(BATCH_MS / max(model.warm_up.run_ms, 1e-6))
        self._max_rows = max(1, min(max_rows, quick_rows)) if model.is_batchable else 1
        self._timeout = timeout
        self._executor = executor
        self._done = done
        self._queue: deque[J] = deque()
        self._is_busy = False  # a drain is scheduled or a batch is on a thread
        self._has_free_rows = any(-1 in spec.shape[1:] for spec in model.signature.inputs)
        self._loop = asyncio.get_running_loop()

    def submit(self, job: J) -> None:
        """Queue a job for the end of this tick."""
        self._queue.append(job)
        if not self._is_busy:
            self._is_busy = True
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        """Run one batch; the next one gets its turn after other models and the sockets had theirs."""
        jobs = self._next_batch()
        rows = sum(job.request.rows for job in jobs)
        if jobs and rows * self._model.warm_up.run_ms > SLOW_MS:
            future = self._loop.run_in_executor(self._executor, execute, self._model, jobs)
            future.add_done_callback(lambda done: self._finish(done.result()))
        else:
            self._finish(execute(self._model, jobs) if jobs else [])

    def _finish(self, results: list[tuple[Sequence[J], BatchResult]]) -> None:
        if self._queue:
            self._loop.call_soon(self._drain)
        else:
            self._is_busy = False
        for jobs, result in results:
            self._done(jobs, result)

    def _next_batch(self) -> list[J]:
        queue, rows, now = self._queue, 0, time.perf_counter()
        jobs: list[J] = []
        while queue:
            job = queue[0]
            request = job.request
            if jobs and (rows + request.rows > self._max_rows or not self._fits(request, jobs[0].request)):
                break
            queue.popleft()
            if not job.is_open:
                self._drop(job, CallerGone("The caller closed the connection before the model ran."))
            elif now - job.arrived > self._timeout:
                self._drop(job, Overloaded("The request waited too long for its turn."))
            else:
                jobs.append(job)
                rows += request.rows
                if rows >= self._max_rows:
                    break
        return jobs

    def _fits(self, request: InferRequest, first: InferRequest) -> bool:
        """Whether the rows of two requests have the same shape and can be stacked."""
        return not self._has_free_rows or all(
            one[1:] == other[1:] for one, other in zip(request.shapes, first.shapes, strict=True)
        )

    def _drop(self, job: J, error: InferenceError) -> None:
        now = time.perf_counter()
        self._done([job], BatchResult(now, 0, 0, [], None, error))


def execute(model: LoadedModel, jobs: Sequence[J]) -> list[tuple[Sequence[J], BatchResult]]:
    """Run jobs together. If that fails each runs alone, so that one request cannot spoil its neighbours' answers."""
    rows = sum(job.request.rows for job in jobs)
    started = time.perf_counter()
    inputs: list[Array] = []
    try:
        inputs = collate(model.signature, [job.request for job in jobs])
        names = (spec.name for spec in model.signature.inputs)
        arrays = run(model.session, dict(zip(names, inputs, strict=True)))
        if model.is_batchable and any(len(array) != rows for array in arrays):
            raise ModelFailed("The model returned another number of rows than it was given.")
    except Exception as error:
        if len(jobs) > 1:
            return [result for job in jobs for result in execute(model, [job])]
        known = error if isinstance(error, InferenceError) else ModelFailed(f"{type(error).__name__}: {error}")
        return [(jobs, BatchResult(started, _elapsed_us(started), rows, inputs, None, known))]
    run_us = _elapsed_us(started)
    return [(jobs, BatchResult(started, run_us, rows, inputs, BatchOutputs(arrays, rows, is_batch=model.is_batchable)))]


def collate(signature: Signature, requests: Sequence[InferRequest]) -> list[Array]:
    """One array per input with the rows of all requests. Raises ``RequestRejected`` for a number that overflows."""
    collated = []
    for position, spec in enumerate(signature.inputs):
        if len(requests) == 1:
            request = requests[0]
            array = to_array(request.values[position], request.shapes[position], spec.datatype, spec.name)
        else:
            array = _stack([(request.values[position], request.shapes[position]) for request in requests], spec)
        collated.append(array)
    return collated


def _stack(parts: Sequence[tuple[Values, list[int]]], spec: TensorSpec) -> Array:
    if any(isinstance(values, np.ndarray) for values, _ in parts):
        return np.concatenate([to_array(values, shape, spec.datatype, spec.name) for values, shape in parts])
    flat = [number for values, _ in parts for number in values]
    rows = sum(shape[0] for _, shape in parts)
    return to_array(flat, [rows, *parts[0][1][1:]], spec.datatype, spec.name)


def _elapsed_us(started: float) -> int:
    return int((time.perf_counter() - started) * 1e6)
