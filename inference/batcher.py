"""Batching per tick of the event loop: what arrives together runs together, without waiting for more."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, TypeVar

import numpy as np

from inference.contracts import GuardrailRule, Limits, Signature, TensorSpec
from inference.datatypes import V2_DATATYPES, Array
from inference.errors import CallerGone, DeadlineExceeded, GuardrailViolated, InferenceError, ModelFailed, Overloaded
from inference.guardrails import Guard, Violation, fallback_row
from inference.model_store import LoadedModel
from inference.protocol import BatchOutputs, InferRequest, Values, read_rows, to_array
from inference.runtime import Session, run
from inference.slow_runs import SlowRuns
from inference.watchdog import Lane

SLOW_MS: Final = 5.0
"""A batch expected to run longer than this goes to a thread, so that it does not hold up other models."""
BATCH_MS: Final = 50.0
"""A batch gets no more rows than are expected to run in this time: those behind it should not wait for long."""
SOON_S: Final = 0.005
"""A request that waited no longer runs without asking whether its caller is still there."""
WATCH_S: Final = 0.25
"""How often deadlines are looked at while a batch is on a thread, or the model is being loaded again."""
HELD_UP_S: Final = 0.5
"""After a batch that ran on the loop's thread for so long, this version's batches run on threads."""


class Job:
    """A request on its way through a batcher. ``arrived`` and ``deadline`` are of ``time.perf_counter``."""

    __slots__ = ("arrived", "deadline", "request")

    arrived: float
    deadline: float
    request: InferRequest

    @property
    def is_open(self) -> bool:
        """Whether the caller still waits."""
        raise NotImplementedError


@dataclass(slots=True)
class BatchResult:
    """The outcome of one run for the jobs that share it; ``outputs`` is None when there is an error.

    Arrays and the masks of ``violations`` have the rows of these jobs, one after the other.
    """

    started: float  # perf_counter
    run_us: int
    rows: int  # that ran together
    inputs: Sequence[Array]
    outputs: BatchOutputs | None
    error: InferenceError | None = None
    violations: Sequence[Violation] = ()


J = TypeVar("J", bound=Job)
Results = list[tuple[Sequence[J], BatchResult]]


class Batcher(Generic[J]):
    """The queue of one version on one endpoint. Lives on the event loop's thread; slow batches run on threads."""

    def __init__(
        self,
        model: LoadedModel,
        guard: Guard | None,
        limits: Limits,
        *,
        deployment_id: int,
        loop: asyncio.AbstractEventLoop,
        lane: Lane,
        slow_runs: SlowRuns,
        done: Callable[[Sequence[J], BatchResult], None],
        spent: Callable[[float], None],
        is_shadow: bool = False,
    ) -> None:
        """``done`` is called on the loop's thread, once for every job, and ``spent`` with the CPU seconds of each run.

        A shadow never runs on the loop's thread, which is what ``lane`` is of. The constructor, and nothing else, may
        be called on another one.
        """
        self._model = model
        self._guard = guard
        warm_up = model.warm_up
        self._max_rows = max(1, min(limits.batch_rows, warm_up.rows_within(BATCH_MS))) if model.is_batchable else 1
        self._slow_rows = 0 if is_shadow else warm_up.rows_within(SLOW_MS)
        self._cpu_cores = limits.cpu_cores
        self._timeout_ms = limits.timeout_ms
        self._deployment_id = deployment_id
        self._lane = lane
        self._slow_runs = slow_runs
        self._done = done
        self._spent = spent
        self._queue: deque[J] = deque()
        self._running: Sequence[J] = ()  # on a thread
        self._expired: set[J] = set()  # of those, what was answered already
        self._is_busy = False  # a drain is scheduled, a batch is on a thread, or the model is being loaded again
        self._is_recalling = False
        self._free_at = 0.0  # loop time before which a capped version may not run again
        self._has_free_rows = any(-1 in spec.shape[1:] for spec in model.signature.inputs)
        self._loop = loop
        self.queued_rows = 0

    def submit(self, job: J) -> None:
        """Queue a job for the end of this tick."""
        self._queue.append(job)
        self.queued_rows += job.request.rows
        if not self._is_busy:
            self._is_busy = True
            self._schedule()

    def _schedule(self) -> None:
        if self._cpu_cores is None:
            self._loop.call_soon(self._drain)
        else:
            self._loop.call_at(self._free_at, self._drain)

    def _drain(self) -> None:
        """Run one batch; the next one gets its turn after other models and the sockets had theirs."""
        session = self._model.session
        if session is not None:
            self._run_next(session)
        else:
            self._is_recalling = True
            self._loop.call_later(WATCH_S, self._watch, self._running)
            self._model.recall(self._on_recalled)

    def _run_next(self, session: Session) -> None:
        model = self._model
        model.last_used = time.perf_counter()
        jobs, rows = self._next_batch()
        if not jobs:
            self._go_on()
        elif rows <= self._slow_rows:
            self._lane.begin(self._deployment_id)
            started = time.perf_counter()
            results = _run(model, session, self._guard, jobs, rows, self._lane)
            held_s = time.perf_counter() - started  # the thread's own clock costs as much as a small model
            self._lane.end()
            if held_s > HELD_UP_S:
                self._slow_rows = 0
            self._finish((results, held_s))
        else:
            self._running = jobs
            work = partial(execute, model, session, self._guard, jobs, rows)
            self._slow_runs.submit(model.digest, self._deployment_id, self._timeout_ms, work, self._finish)
            self._watch_later(jobs)

    def _on_recalled(self, outcome: Session | InferenceError) -> None:
        """Called on a loader's thread when the model, which was unloaded, is back, or cannot be loaded."""
        self._loop.call_soon_threadsafe(self._recalled, outcome)

    def _recalled(self, outcome: Session | InferenceError) -> None:
        self._is_recalling = False
        if not isinstance(outcome, InferenceError):
            self._run_next(outcome)  # with this very session, whoever is short of memory by now
            return
        waiting = list(self._queue)
        self._queue.clear()
        self._is_busy = False
        for job in waiting:
            self.queued_rows -= job.request.rows
            self._drop(job, outcome)

    def _finish(self, outcome: tuple[Results[J], float]) -> None:
        results, cpu_s = outcome
        self._spent(cpu_s)
        if self._cpu_cores is not None:
            self._free_at = max(self._free_at, self._loop.time()) + cpu_s / self._cpu_cores
        self._running = ()
        self._go_on()
        gone, self._expired = self._expired, set()
        for jobs, result in results:
            if gone:
                left = [job for job in jobs if job not in gone]
                if not left:
                    continue
                jobs, result = left, part(jobs, result, left, is_batch=self._model.is_batchable)
            self._done(jobs, result)

    def _go_on(self) -> None:
        if self._queue:
            self._schedule()
        else:
            self._is_busy = False

    def _next_batch(self) -> tuple[list[J], int]:
        queue, rows, now = self._queue, 0, time.perf_counter()
        max_rows, has_free_rows = self._max_rows, self._has_free_rows
        jobs: list[J] = []
        while queue:
            job = queue[0]
            count = job.request.rows
            if jobs and (rows + count > max_rows or (has_free_rows and not _fits(job.request, jobs[0].request))):
                break
            queue.popleft()
            self.queued_rows -= count
            if now - job.arrived > SOON_S and not job.is_open:
                self._drop(job, CallerGone("The caller closed the connection before the model ran."))
            elif now > job.deadline:
                self._drop(job, Overloaded("The request waited too long for its turn."))
            else:
                jobs.append(job)
                rows += count
        return jobs, rows

    def _watch(self, running: Sequence[J]) -> None:
        """Answer those whose time is up while a batch is on a thread: they cannot know how long it still takes."""
        if self._running is not running or not (running or self._is_recalling):
            return
        now = time.perf_counter()
        late = [job for job in running if now > job.deadline and job not in self._expired]
        self._expired.update(late)
        for job in late:
            self._drop(job, DeadlineExceeded("The model did not answer in time."))
        if any(now > job.deadline for job in self._queue):
            waiting = list(self._queue)
            self._queue.clear()
            for job in waiting:
                if now > job.deadline:
                    self.queued_rows -= job.request.rows
                    self._drop(job, Overloaded("The request waited too long for its turn."))
                else:
                    self._queue.append(job)
        self._watch_later(running)

    def _watch_later(self, running: Sequence[J]) -> None:
        now = time.perf_counter()
        left = [job.deadline - now for job in running if job not in self._expired]
        self._loop.call_later(max(min([WATCH_S, *left]), 0.001), self._watch, running)

    def _drop(self, job: J, error: InferenceError) -> None:
        self._done([job], BatchResult(time.perf_counter(), 0, 0, (), None, error))


def execute(
    model: LoadedModel, session: Session, guard: Guard | None, jobs: Sequence[J], rows: int, lane: Lane
) -> tuple[Results[J], float]:
    """Run jobs together on a thread of their own; returns what came of it, and the CPU seconds that it took.

    If the run fails each job runs alone, so that one request cannot spoil its neighbours' answers.
    """
    cpu = time.thread_time()
    results = _run(model, session, guard, jobs, rows, lane)
    return results, time.thread_time() - cpu


def _run(
    model: LoadedModel, session: Session, guard: Guard | None, jobs: Sequence[J], rows: int, lane: Lane
) -> Results[J]:
    started = time.perf_counter()
    inputs: Sequence[Array] = ()
    violations: list[Violation] = []
    is_batch = model.is_batchable
    try:
        inputs = collate(model.signature, [job.request for job in jobs])
        if guard is not None and (violations := guard.check_inputs(inputs)):
            refused = _refused(jobs, violations, is_batch=is_batch)
            if refused:
                whole = BatchResult(started, 0, rows, inputs, None, None, violations)
                kept = [job for job in jobs if job not in refused]
                left = sum(job.request.rows for job in kept)
                results = _run(model, session, guard, kept, left, lane) if kept else []
                return results + _refuse(jobs, whole, refused, is_batch=is_batch)
        names = (spec.name for spec in model.signature.inputs)
        arrays: Sequence[Array] = run(session, dict(zip(names, inputs, strict=True)), lane.options)
        if is_batch and any(len(array) != rows for array in arrays):
            raise ModelFailed("The model returned another number of rows than it was given.")
        if guard is not None:
            violations += guard.check_outputs(inputs, arrays)
            if violations:
                arrays = _fall_back(arrays, violations, model.signature, is_batch=is_batch)
    except Exception as error:
        if len(jobs) > 1 and not isinstance(error, DeadlineExceeded):
            return [result for job in jobs for result in _run(model, session, guard, [job], job.request.rows, lane)]
        arrays = _from_fallbacks(violations, model.signature, rows) if is_batch else []
        if arrays:
            outputs = BatchOutputs(arrays, rows, is_batch=True)
            return [(jobs, BatchResult(started, _elapsed_us(started), rows, inputs, outputs, None, violations))]
        known = error if isinstance(error, InferenceError) else ModelFailed(f"{type(error).__name__}: {error}")
        return [(jobs, BatchResult(started, _elapsed_us(started), rows, inputs, None, known, violations))]
    outputs = BatchOutputs(arrays, rows, is_batch=is_batch)
    result = BatchResult(started, _elapsed_us(started), rows, inputs, outputs, None, violations)
    refused = _refused(jobs, violations, is_batch=is_batch) if violations else {}
    if not refused:
        return [(jobs, result)]
    kept = [job for job in jobs if job not in refused]
    answered = [(kept, part(jobs, result, kept, is_batch=is_batch))] if kept else []
    return answered + _refuse(jobs, result, refused, is_batch=is_batch)


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
    texts = [values for values, _ in parts if isinstance(values, bytes)]
    if len(texts) == len(parts):
        return to_array(read_rows(texts, spec.name), [len(texts), *parts[0][1][1:]], spec.datatype, spec.name)
    return np.concatenate([to_array(values, shape, spec.datatype, spec.name) for values, shape in parts])


def _fits(request: InferRequest, first: InferRequest) -> bool:
    """Whether the rows of two requests have the same shape and can be stacked."""
    return all(one[1:] == other[1:] for one, other in zip(request.shapes, first.shapes, strict=True))


# -- guardrails: some jobs of a batch go another way than the rest ----------------------------------------------------


def spans(jobs: Sequence[Job], *, is_batch: bool) -> list[slice]:
    """Where each job's rows are in the arrays of its batch."""
    if not is_batch:
        return [slice(0, 1)]
    ends = np.cumsum([job.request.rows for job in jobs]).tolist()
    return [slice(end - job.request.rows, end) for job, end in zip(jobs, ends, strict=True)]


def _refused(jobs: Sequence[J], violations: Sequence[Violation], *, is_batch: bool) -> dict[J, GuardrailRule]:
    """The jobs that a rule refuses, with the first such rule."""
    refused: dict[J, GuardrailRule] = {}
    for violation in violations:
        if violation.rule.action == "reject":
            for job, span in zip(jobs, spans(jobs, is_batch=is_batch), strict=True):
                if violation.rows[span].any():
                    refused.setdefault(job, violation.rule)
    return refused


def _refuse(jobs: Sequence[J], whole: BatchResult, refused: dict[J, GuardrailRule], *, is_batch: bool) -> Results[J]:
    results: Results[J] = []
    for job, rule in refused.items():
        result = part(jobs, whole, [job], is_batch=is_batch)
        result.error = GuardrailViolated(rule.name)
        results.append(([job], result))
    return results


def part(jobs: Sequence[J], whole: BatchResult, wanted: Sequence[J], *, is_batch: bool) -> BatchResult:
    """A batch's result for some of its jobs."""
    if not is_batch:
        return whole
    keep = np.zeros(sum(job.request.rows for job in jobs), np.bool_)
    chosen = set(wanted)
    for job, span in zip(jobs, spans(jobs, is_batch=True), strict=True):
        keep[span] = job in chosen
    outputs = None
    if whole.outputs is not None:
        outputs = BatchOutputs([array[keep] for array in whole.outputs.arrays], int(keep.sum()), is_batch=True)
    return BatchResult(
        whole.started,
        whole.run_us,
        whole.rows,
        [array[keep] for array in whole.inputs],
        outputs,
        whole.error,
        [Violation(one.rule, one.rows[keep]) for one in whole.violations if one.rows[keep].any()],
    )


def _fall_back(
    arrays: Sequence[Array], violations: Sequence[Violation], signature: Signature, *, is_batch: bool
) -> list[Array]:
    """The outputs with the fallback of each violated rule in the rows that violate it."""
    replaced = list(arrays)
    for violation in violations:
        fallback = violation.rule.fallback
        if violation.rule.action != "fallback" or fallback is None:
            continue
        for position, spec in enumerate(signature.outputs):
            row = fallback_row(fallback[spec.name], spec, is_batch=is_batch)
            if is_batch:
                replaced[position] = replaced[position].copy()
                replaced[position][violation.rows] = row
            else:
                replaced[position] = row
    return replaced


def _from_fallbacks(violations: Sequence[Violation], signature: Signature, rows: int) -> list[Array]:
    """The outputs of a request on which the model broke, if fallbacks have all of its rows; else nothing."""
    covered = np.zeros(rows, np.bool_)
    for violation in violations:
        if violation.rule.action == "fallback":
            covered |= violation.rows
    if not rows or not covered.all():
        return []
    arrays: list[Array] = []
    for spec in signature.outputs:
        shape = tuple(max(size, 1) for size in spec.shape[1:])
        arrays.append(np.zeros((rows, *shape), V2_DATATYPES[spec.datatype]))
    return _fall_back(arrays, violations, signature, is_batch=True)


def _elapsed_us(started: float) -> int:
    return int((time.perf_counter() - started) * 1e6)
