"""The job row: what to do, how far it is, and who may write to it."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Self

from django.db import models

from apps.core.querysets import TeamScopedQuerySet


class JobState(models.TextChoices):
    """A job's states; the last four are final."""

    QUEUED = "QUEUED", "Queued"
    RUNNING = "RUNNING", "Running"
    SUCCEEDED = "SUCCEEDED", "Succeeded"
    FAILED = "FAILED", "Failed"
    CANCELLED = "CANCELLED", "Cancelled"
    PARKED = "PARKED", "Parked"


class JobQuerySet(TeamScopedQuerySet):
    """Reads of jobs."""

    def unfinished(self) -> Self:
        """Queued or running."""
        return self.filter(state__in=(JobState.QUEUED, JobState.RUNNING))

    def expired(self, now: datetime) -> Self:
        """Running without a sign of life since their lease ended."""
        return self.filter(state=JobState.RUNNING, lease_until__lt=now)

    def stuck(self, before: datetime) -> Self:
        """Queued for so long that their ticket must have been lost."""
        return self.filter(state=JobState.QUEUED, queued_at__lt=before)


class Job(models.Model):
    """One piece of long work.

    ``fencing_token`` changes with each attempt: a worker that lost its lease finds that its writes match no row.
    """

    team = models.ForeignKey("accounts.Team", on_delete=models.PROTECT, related_name="jobs")
    kind = models.CharField(max_length=80)
    subject = models.CharField(max_length=200)
    subject_url = models.CharField(max_length=300, blank=True)
    arguments = models.JSONField(default=dict)
    state = models.CharField(max_length=10, choices=JobState.choices, default=JobState.QUEUED)
    progress = models.FloatField(default=0)
    message = models.CharField(max_length=300, blank=True)
    attempt = models.PositiveSmallIntegerField(default=0)
    fencing_token = models.UUIDField(default=uuid.uuid4)
    lease_until = models.DateTimeField(null=True)
    result = models.JSONField(null=True)
    log_tail = models.TextField(blank=True)
    requested_by = models.ForeignKey("accounts.User", null=True, on_delete=models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    queued_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)

    objects = JobQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        constraints = (
            models.CheckConstraint(condition=models.Q(progress__gte=0, progress__lte=1), name="job_progress_0_to_1"),
            models.CheckConstraint(
                condition=~models.Q(state="RUNNING") | models.Q(lease_until__isnull=False), name="job_running_has_lease"
            ),
        )
        indexes = (
            models.Index(fields=("team", "-id"), name="job_team"),
            models.Index(fields=("state",), name="job_open", condition=models.Q(state__in=("QUEUED", "RUNNING"))),
        )

    def __str__(self) -> str:
        return f"{self.subject} (job {self.pk})"

    @property
    def is_finished(self) -> bool:
        """True in a final state."""
        return self.state not in (JobState.QUEUED, JobState.RUNNING)

    @property
    def percent(self) -> int:
        """Progress in whole per cent."""
        return round(self.progress * 100)
