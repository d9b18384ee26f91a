"""The promotion request and its reviews."""

from __future__ import annotations

from datetime import timedelta
from typing import Final, Self

from django.db import models
from django.utils import timezone

from apps.core.querysets import TeamScopedQuerySet
from apps.deployments.models import Deployment
from apps.registry.models import ModelVersion

REQUEST_LIFETIME: Final = timedelta(days=30)
APPROVAL_LIFETIME: Final = timedelta(days=14)


class RequestState(models.TextChoices):
    """Where the decision stands. A timeout never approves."""

    SUBMITTED = "SUBMITTED", "Submitted"
    APPROVED = "APPROVED", "Approved"
    REJECTED = "REJECTED", "Rejected"
    CANCELLED = "CANCELLED", "Cancelled"
    EXPIRED = "EXPIRED", "Expired"
    SUPERSEDED = "SUPERSEDED", "Superseded"


class RolloutState(models.TextChoices):
    """Where the version stands on its way into service. Approved is not applied: these are two facts."""

    WAITING = "WAITING", "Waiting for approval"
    QUEUED = "QUEUED", "Queued"
    APPLYING = "APPLYING", "Applying"
    LIVE = "LIVE", "Live"
    FAILED = "FAILED", "Failed"
    ENDED = "ENDED", "Ended"


class PromotionRequestQuerySet(TeamScopedQuerySet):
    """Reads of promotion requests."""

    def submitted(self) -> Self:
        """Waiting for a decision."""
        return self.filter(state=RequestState.SUBMITTED)

    def decidable_by(self, user_id: int | None) -> Self:
        """Waiting, and neither requested nor uploaded by this person."""
        return self.submitted().exclude(requested_by_id=user_id).exclude(model_version__uploaded_by_id=user_id)

    def overdue(self) -> Self:
        """Past their time without a decision, or approved and never rolled out."""
        return self.filter(
            models.Q(state=RequestState.SUBMITTED) | models.Q(state=RequestState.APPROVED, rollout=RolloutState.QUEUED),
            expires_at__lt=timezone.now(),
        )

    def to_apply(self) -> Self:
        """Approved and waiting, first; then what is on its way, and what serves no more or did not at first."""
        active = Deployment.objects.active().values("pk")
        followed = models.Q(rollout__in=(RolloutState.APPLYING, RolloutState.FAILED), deployment_id__isnull=False)
        replaced = models.Q(rollout=RolloutState.LIVE) & ~models.Q(deployment_id__in=active)
        waiting = models.Q(rollout=RolloutState.QUEUED)
        is_later = models.Case(models.When(waiting, then=0), default=1)
        return self.filter(waiting | followed | replaced).order_by(is_later, "pk")

    def for_list(self) -> Self:
        """With names, without the evidence, which may be large."""
        return self.with_names().defer("evidence")

    def with_names(self) -> Self:
        """Everything that a list shows of a request, in one query."""
        return self.select_related("endpoint", "model_version__model", "model_version__uploaded_by", "requested_by")


class PromotionRequest(models.Model):
    """A request to have one version answer on one endpoint, on evidence frozen when it was made.

    With 100 % it becomes the champion when approved; with less it starts as a canary, and operators raise its share.
    """

    team = models.ForeignKey("accounts.Team", on_delete=models.PROTECT, related_name="promotion_requests")
    endpoint = models.ForeignKey("deployments.Endpoint", on_delete=models.PROTECT, related_name="promotion_requests")
    model_version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="promotion_requests")
    state = models.CharField(max_length=12, choices=RequestState.choices, default=RequestState.SUBMITTED)
    rollout = models.CharField(max_length=10, choices=RolloutState.choices, default=RolloutState.WAITING)
    rollout_message = models.CharField(max_length=500, blank=True)
    deployment_id = models.BigIntegerField(null=True)
    initial_weight = models.PositiveSmallIntegerField(default=100)
    justification = models.TextField(max_length=4_000)
    artifact_digest = models.CharField(max_length=64)
    evidence = models.JSONField()
    evidence_digest = models.CharField(max_length=64)
    requested_by = models.ForeignKey("accounts.User", on_delete=models.PROTECT, related_name="+")
    requested_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    decided_at = models.DateTimeField(null=True)
    applied_at = models.DateTimeField(null=True)

    objects = PromotionRequestQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        constraints = (
            models.UniqueConstraint(
                fields=("endpoint", "model_version"),
                condition=models.Q(state="SUBMITTED"),
                name="promotion_one_open_request",
            ),
            models.CheckConstraint(
                condition=models.Q(state="APPROVED") | ~models.Q(rollout__in=("QUEUED", "APPLYING", "LIVE")),
                name="promotion_rollout_needs_approval",
            ),
            models.CheckConstraint(
                condition=models.Q(initial_weight__gte=1, initial_weight__lte=100), name="promotion_weight_in_per_cent"
            ),
        )
        indexes = (
            models.Index(fields=("team", "-id"), name="promotion_team"),
            models.Index(
                fields=("rollout",), name="promotion_rolling", condition=models.Q(rollout__in=("QUEUED", "APPLYING"))
            ),
        )

    def __str__(self) -> str:
        return f"Promotion of {self.model_version} to {self.endpoint.name}"

    @property
    def is_open(self) -> bool:
        """True while it waits for a decision."""
        return self.state == RequestState.SUBMITTED


class Decision(models.TextChoices):
    """What a reviewer may say."""

    APPROVED = "APPROVED", "Approve"
    REJECTED = "REJECTED", "Reject"


class Meaning(models.TextChoices):
    """What the signature means; 21 CFR 11.50 wants it stated beside name and time."""

    APPROVAL = "APPROVAL", "I have reviewed the evidence and approve this promotion"
    RESPONSIBILITY = "RESPONSIBILITY", "I approve, and take responsibility for this version in service"
    REJECTION = "REJECTION", "I have reviewed the evidence and reject this promotion"


class Review(models.Model):
    """A person's signed decision, bound to the digests of what they saw. Never changed, never deleted."""

    request = models.ForeignKey(PromotionRequest, on_delete=models.PROTECT, related_name="reviews")
    reviewer = models.ForeignKey("accounts.User", on_delete=models.PROTECT, related_name="+")
    reviewer_name = models.CharField(max_length=120)
    decision = models.CharField(max_length=10, choices=Decision.choices)
    meaning = models.CharField(max_length=16, choices=Meaning.choices)
    comment = models.TextField(max_length=4_000)
    artifact_digest = models.CharField(max_length=64)
    evidence_digest = models.CharField(max_length=64)
    signed_at = models.DateTimeField()

    class Meta:
        ordering = ("id",)
        constraints = (
            models.CheckConstraint(
                condition=models.Q(decision="REJECTED", meaning="REJECTION")
                | models.Q(decision="APPROVED", meaning__in=("APPROVAL", "RESPONSIBILITY")),
                name="review_meaning_fits_decision",
            ),
        )

    def __str__(self) -> str:
        return f"{self.get_decision_display()} by {self.reviewer_name}"
