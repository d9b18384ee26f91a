"""Running jobs: a registry of kinds, leases with fencing, and a child process per attempt.

The queue carries only a job's id. The worker that takes it claims the row (attempt counted *before* the work),
starts ``manage.py run_job`` as a process of its own, and renews the lease while that lives. A job that takes its
process down costs an attempt, never the worker; a worker that dies leaves a lease that expires.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from django.conf import settings
from django.db import close_old_connections, transaction
from django.utils import timezone
from django.utils.module_loading import autodiscover_modules
from django_q.tasks import async_task

from apps.audit.actor import Actor
from apps.core.errors import DomainError
from apps.jobs.models import Job, JobState

LEASE: Final = timedelta(seconds=30)
_RENEW_SECONDS: Final = 5.0
_PROGRESS_SECONDS: Final = 0.25
_LOG_TAIL_CHARACTERS: Final = 16_000


class JobCancelled(Exception):
    """The job was cancelled, or its lease went to somebody else: stop without writing anything more."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How a kind of job is run."""

    function: Callable[..., dict[str, Any]]
    timeout_s: float
    max_attempts: int


_kinds: dict[str, Kind] = {}


def job(name: str, *, timeout_s: float, max_attempts: int = 3) -> Callable[[Callable[..., dict[str, Any]]], Any]:
    """Register ``function(run, **arguments) -> result`` as a kind of job. It must be idempotent."""

    def register(function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        _kinds[name] = Kind(function, timeout_s, max_attempts)
        return function

    return register


def kind_of(name: str) -> Kind:
    """The registered kind; loads every app's ``jobs`` module first. Raises ``KeyError`` for an unknown one."""
    autodiscover_modules("jobs")
    return _kinds[name]


class JobRun:
    """One attempt at a job, as its function sees it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.actor = Actor.system(f"{job.kind} job {job.pk}")
        self._token = job.fencing_token
        self._lines = job.log_tail
        self._reported_at = 0.0

    def progress(self, fraction: float, message: str) -> None:
        """Report how far the work is, 0..1, and what is being done; raises ``JobCancelled`` if it is to stop.

        Cheap to call often: the database is written a few times a second at most.
        """
        now = time.monotonic()
        if now - self._reported_at >= _PROGRESS_SECONDS:
            self._reported_at = now
            self._write(progress=min(max(fraction, 0.0), 1.0), message=message[:300])

    def log(self, line: str) -> None:
        """Append a line to the job's log; its tail is kept."""
        self._lines = f"{self._lines}{timezone.now():%H:%M:%S} {line}\n"[-_LOG_TAIL_CHARACTERS:]
        self._write(log_tail=self._lines)

    def _write(self, **values: Any) -> None:
        if not self._row().update(lease_until=timezone.now() + LEASE, **values):
            raise JobCancelled

    def finish(self, state: JobState, message: str, *, result: dict[str, Any] | None = None) -> bool:
        """Write the end of the attempt; False if the lease had gone to somebody else."""
        progress = {"progress": 1.0} if state == JobState.SUCCEEDED else {}
        ended = self._row().update(
            state=state, message=message[:300], result=result, lease_until=None, finished_at=timezone.now(), **progress
        )
        return bool(ended)

    def _row(self) -> Any:
        return Job.objects.filter(pk=self.job.pk, state=JobState.RUNNING, fencing_token=self._token)


def dispatch(job: Job) -> None:
    """Put a ticket for the job into the queue, in the caller's transaction."""
    async_task("apps.jobs.runner.work", job.pk)


@transaction.atomic
def claim(job_id: int) -> Job | None:
    """Take the job for one attempt; None if it is not waiting any more."""
    waiting = Job.objects.select_for_update(skip_locked=True).filter(pk=job_id, state=JobState.QUEUED)
    job: Job | None = waiting.first()
    if job is None:
        return None
    now = timezone.now()
    job.state, job.attempt, job.fencing_token = JobState.RUNNING, job.attempt + 1, uuid.uuid4()
    job.lease_until, job.started_at = now + LEASE, now
    job.save(update_fields=["state", "attempt", "fencing_token", "lease_until", "started_at"])
    return job


def execute(job: Job) -> None:
    """Run one claimed attempt in this process."""
    run = JobRun(job)
    try:
        result = kind_of(job.kind).function(run, **job.arguments)
    except JobCancelled:
        return
    except DomainError as error:
        run.finish(JobState.FAILED, error.message)
    except Exception as error:
        run.log(traceback.format_exc())
        retry_or_park(run, f"{type(error).__name__}: {error}")
    else:
        run.finish(JobState.SUCCEEDED, "Done", result=result)


@transaction.atomic
def retry_or_park(run: JobRun, reason: str) -> None:
    """After an attempt that broke: queue the next one, or park the job when its attempts are used up."""
    kind = kind_of(run.job.kind)
    if run.job.attempt >= kind.max_attempts:
        run.finish(JobState.PARKED, f"Gave up after {run.job.attempt} attempts. {reason}")
    elif run.finish(JobState.QUEUED, f"Attempt {run.job.attempt} failed, trying again. {reason}"):
        Job.objects.filter(pk=run.job.pk).update(finished_at=None, queued_at=timezone.now())
        dispatch(run.job)


def run_inline(job: Job) -> Job:
    """Claim and run a job in this process, as tests do; returns the job as it ended."""
    claimed = claim(job.pk)
    if claimed is not None:
        execute(claimed)
    return Job.objects.get(pk=job.pk)


def work(job_id: int) -> None:
    """What the queue calls: one attempt in a child process, its lease renewed while it lives."""
    job = claim(job_id)
    if job is None:
        return
    run = JobRun(job)
    command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "run_job", str(job.pk), str(job.fencing_token)]
    child = subprocess.Popen(command, cwd=settings.BASE_DIR, start_new_session=True, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + kind_of(job.kind).timeout_s
    try:
        reason = _attend(run, child, deadline)
    finally:
        _kill_group(child)
        close_old_connections()
    if reason:
        retry_or_park(run, reason)


def _attend(run: JobRun, child: subprocess.Popen[bytes], deadline: float) -> str:
    """Wait for the child while renewing its lease; returns why it has to be tried again, or an empty string."""
    while True:
        try:
            code = child.wait(timeout=_RENEW_SECONDS)
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                return "It took longer than its time limit."
            if not run._row().update(lease_until=timezone.now() + LEASE):
                return ""
        else:
            if code == 0:
                return ""
            ending = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            return f"Its process {ending}."


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    """End whatever the attempt started and left behind."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    child.wait()


def stop_with_parent() -> None:
    """End this process group when the worker that started it is gone, on any kernel."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()
