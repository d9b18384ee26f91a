"""Evidence packs: what was asked for, and the file that came of it."""

from __future__ import annotations

import uuid
from typing import Self

from django.db import models
from django.urls import reverse

from apps.core.querysets import TeamScopedQuerySet
from apps.jobs.models import JobState


class PackKind(models.TextChoices):
    """What a pack is about."""

    PROMOTION = "PROMOTION", "Promotion"
    MODEL = "MODEL", "Model"
    ENDPOINT = "ENDPOINT", "Endpoint and period"


class EvidencePackQuerySet(TeamScopedQuerySet):
    """Reads of packs."""

    def with_names(self) -> Self:
        """Everything that a page shows of a pack, in one query."""
        return self.select_related("requested_by", "job")

    def about(self, kind: str, subject_id: int) -> Self:
        """The packs about one promotion, model or endpoint, newest first."""
        return self.filter(kind=kind, subject_id=subject_id)


class EvidencePack(models.Model):
    """A ZIP for auditors about one promotion, one model, or one endpoint in a period. Built once, never changed."""

    pack_id = models.UUIDField(unique=True, default=uuid.uuid4)
    team = models.ForeignKey("accounts.Team", on_delete=models.PROTECT, related_name="evidence_packs")
    kind = models.CharField(max_length=9, choices=PackKind.choices)
    subject_id = models.BigIntegerField()  # of the promotion request, registered model or endpoint
    subject = models.CharField(max_length=200)
    since = models.DateTimeField(null=True)
    until = models.DateTimeField(null=True)
    requested_by = models.ForeignKey("accounts.User", on_delete=models.PROTECT, related_name="+")
    requested_at = models.DateTimeField()
    job = models.ForeignKey("jobs.Job", null=True, on_delete=models.SET_NULL, related_name="+")
    built_at = models.DateTimeField(null=True)
    path = models.CharField(max_length=200, blank=True)  # relative to the store
    sha256 = models.CharField(max_length=64, blank=True)
    size_bytes = models.BigIntegerField(null=True)
    event_count = models.PositiveIntegerField(null=True)
    checkpoint_size = models.BigIntegerField(null=True)  # events in the log to whose checkpoint the proofs lead

    objects = EvidencePackQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        constraints = (
            models.CheckConstraint(
                condition=models.Q(built_at=None) | (~models.Q(path="") & ~models.Q(sha256="")),
                name="pack_built_is_stored",
            ),
            models.CheckConstraint(
                condition=models.Q(kind="ENDPOINT", since__isnull=False, until__isnull=False)
                | (~models.Q(kind="ENDPOINT") & models.Q(since=None, until=None)),
                name="pack_period_of_endpoints",
            ),
        )
        indexes = (models.Index(fields=("team", "kind", "subject_id", "-id"), name="pack_about"),)

    def __str__(self) -> str:
        return f"Evidence pack {self.pk}: {self.subject}"

    def get_absolute_url(self) -> str:
        """Its page."""
        return reverse("packs:pack-detail", args=[self.pk])

    @property
    def state(self) -> str:
        """The job's state; what is built has succeeded, whatever became of its job's row."""
        if self.built_at is not None:
            return JobState.SUCCEEDED
        return self.job.state if self.job is not None else JobState.FAILED

    @property
    def file_name(self) -> str:
        """What the download is called."""
        return f"evidence-pack-{self.pk}.zip"
