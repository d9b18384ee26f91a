"""Changes to jobs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from django.db import transaction
from django.utils import timezone

from apps.audit.actor import Actor
from apps.audit.services import record
from apps.core.errors import Conflict
from apps.jobs.models import Job, JobState
from apps.jobs.runner import JobRun, dispatch, retry_or_park

MAX_UNFINISHED_PER_TEAM: Final = 200
RETRYABLE: Final = frozenset({JobState.FAILED, JobState.CANCELLED, JobState.PARKED})
_TICKET_LOST_AFTER: Final = timedelta(minutes=10)


@transaction.atomic
def enqueue(
    actor: Actor, kind: str, *, team: Any, subject: str, subject_url: str = "", arguments: dict[str, Any]
) -> Job:
    """Create a job and its ticket in the caller's transaction: both are there after the commit, or neither."""
    if Job.objects.for_team(team).unfinished().count() >= MAX_UNFINISHED_PER_TEAM:
        raise Conflict("Your team has too many jobs waiting. Try again when some have finished.")
    job = Job.objects.create(
        team=team,
        kind=kind,
        subject=subject[:200],
        subject_url=subject_url,
        arguments=arguments,
        requested_by_id=actor.user_id,
        queued_at=timezone.now(),
    )
    dispatch(job)
    return job


@transaction.atomic
def cancel_job(actor: Actor, *, job: Job) -> Job:
    """Stop a job that has not finished; its process notices at its next report and writes nothing more."""
    job = Job.objects.select_for_update().get(pk=job.pk)
    if job.is_finished:
        raise Conflict(f"The job has already ended: {job.get_state_display().lower()}.")
    job.state, job.lease_until, job.finished_at = JobState.CANCELLED, None, timezone.now()
    job.message = f"Cancelled by {actor.name}"[:300]
    job.save(update_fields=["state", "lease_until", "finished_at", "message"])
    record(actor, "job.cancelled", job, team=job.team)
    return job


@transaction.atomic
def retry_job(actor: Actor, *, job: Job) -> Job:
    """Queue a job again that failed, was cancelled or was parked, with its attempts counted anew."""
    job = Job.objects.select_for_update().get(pk=job.pk)
    if job.state not in RETRYABLE:
        raise Conflict("Only a job that failed, was cancelled or was parked can be tried again.")
    job.state, job.attempt, job.progress, job.finished_at = JobState.QUEUED, 0, 0.0, None
    job.message, job.queued_at = "Queued again", timezone.now()
    job.save(update_fields=["state", "attempt", "progress", "finished_at", "message", "queued_at"])
    dispatch(job)
    record(actor, "job.retried", job, team=job.team)
    return job


def recover_jobs() -> int:
    """Give jobs whose worker vanished to another one; returns how many. Called by the controller."""
    now = timezone.now()
    recovered = 0
    for job in Job.objects.expired(now)[:100]:
        retry_or_park(JobRun(job), "Its worker disappeared.")
        recovered += 1
    for job in Job.objects.stuck(now - _TICKET_LOST_AFTER)[:100]:
        # A second ticket is harmless: the first one to claim the row wins, the other finds nothing to do.
        Job.objects.filter(pk=job.pk).update(queued_at=now)
        dispatch(job)
        recovered += 1
    return recovered
