"""The promotion request, the signed reviews, and what people say and owe around them."""

from __future__ import annotations

from datetime import timedelta
from typing import Final, Self

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.utils import timezone

from apps.core.querysets import TeamScopedQuerySet
from apps.deployments.models import Deployment
from apps.registry.models import ModelVersion

DRAFT_LIFETIME: Final = timedelta(days=30)


class RequestState(models.TextChoices):
    """Where the decision stands. A timeout never approves."""

    DRAFT = "DRAFT", "Draft"
    SUBMITTED = "SUBMITTED", "Submitted"
    CHANGES_REQUESTED = "CHANGES_REQUESTED", "Changes requested"
    APPROVED = "APPROVED", "Approved"
    APPROVED_WITH_CONDITIONS = "APPROVED_WITH_CONDITIONS", "Approved with conditions"
    REJECTED = "REJECTED", "Rejected"
    CANCELLED = "CANCELLED", "Cancelled"
    EXPIRED = "EXPIRED", "Expired"
    REVOKED = "REVOKED", "Revoked"
    SUPERSEDED = "SUPERSEDED", "Superseded"


OPEN_STATES: Final = (RequestState.SUBMITTED, RequestState.CHANGES_REQUESTED)
APPROVED_STATES: Final = (RequestState.APPROVED, RequestState.APPROVED_WITH_CONDITIONS)


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

    def open(self) -> Self:
        """Submitted and not decided: with the reviewers, or back with the requester."""
        return self.filter(state__in=OPEN_STATES)

    def approved(self) -> Self:
        """Those whose approval stands, with conditions or without."""
        return self.filter(state__in=APPROVED_STATES)

    def overdue(self) -> Self:
        """Past their time without a decision, or approved and never rolled out."""
        is_waiting = models.Q(state__in=(RequestState.DRAFT, *OPEN_STATES))
        is_unused = models.Q(state__in=APPROVED_STATES, rollout=RolloutState.QUEUED)
        return self.filter(is_waiting | is_unused, expires_at__lt=timezone.now())

    def to_apply(self) -> Self:
        """Approved and waiting, first; then what is on its way, and what serves no more or did not at first."""
        active = Deployment.objects.active().values("pk")
        followed = models.Q(rollout__in=(RolloutState.APPLYING, RolloutState.FAILED), deployment_id__isnull=False)
        replaced = models.Q(rollout=RolloutState.LIVE) & ~models.Q(deployment_id__in=active)
        waiting = models.Q(rollout=RolloutState.QUEUED) & (
            models.Q(apply_after=None) | models.Q(apply_after__lte=timezone.now())
        )
        is_later = models.Case(models.When(waiting, then=0), default=1)
        return self.filter(waiting | followed | replaced).order_by(is_later, "pk")

    def unprotected(self) -> Self:
        """Submitted for endpoints where the gates alone decide."""
        return self.submitted().filter(endpoint__is_protected=False, is_break_glass=False)

    def emergencies(self) -> Self:
        """Break-glass changes in force that nobody has reviewed after the fact."""
        return self.approved().filter(is_break_glass=True, reviewed_at=None)

    def unreviewed_in_time(self) -> Self:
        """Those of them whose deadline has passed."""
        return self.emergencies().filter(review_due_at__lt=timezone.now())

    def for_list(self) -> Self:
        """With names, without the documents, which may be large."""
        return self.with_names().defer("evidence", "binding")

    def with_names(self) -> Self:
        """Everything that a list shows of a request, in one query."""
        return self.select_related(
            "endpoint",
            "model_version__model",
            "model_version__artifact",
            "model_version__uploaded_by",
            "requested_by",
            "policy_version__policy",
        )


class PromotionRequest(models.Model):
    """A request to have one version answer on one endpoint, on evidence frozen when it was submitted.

    With 100 % it becomes the champion when approved; with less it starts as a canary, and operators raise its share.
    ``binding`` is what a signature stands for and ``approval_digest`` its SHA-256 (see ``binding.py``). ``round``
    counts the submissions: what was signed in an earlier round is void.
    """

    team = models.ForeignKey("accounts.Team", on_delete=models.PROTECT, related_name="promotion_requests")
    endpoint = models.ForeignKey("deployments.Endpoint", on_delete=models.PROTECT, related_name="promotion_requests")
    model_version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="promotion_requests")
    state = models.CharField(max_length=24, choices=RequestState.choices, default=RequestState.SUBMITTED)
    state_reason = models.CharField(max_length=500, blank=True)
    rollout = models.CharField(max_length=10, choices=RolloutState.choices, default=RolloutState.WAITING)
    rollout_message = models.CharField(max_length=500, blank=True)
    deployment_id = models.BigIntegerField(null=True)
    initial_weight = models.PositiveSmallIntegerField(default=100)
    justification = models.TextField(max_length=4_000)
    round = models.PositiveSmallIntegerField(default=1)
    artifact_digest = models.CharField(max_length=64, blank=True)
    evidence = models.JSONField(default=dict)
    evidence_digest = models.CharField(max_length=64, blank=True)
    policy_version = models.ForeignKey(
        "policies.PolicyVersion", null=True, on_delete=models.PROTECT, related_name="promotion_requests"
    )
    binding = models.JSONField(default=dict)
    approval_digest = models.CharField(max_length=64, blank=True)
    is_break_glass = models.BooleanField(default=False)
    review_due_at = models.DateTimeField(null=True)  # of a break-glass change: until when somebody has to review it
    reviewed_at = models.DateTimeField(null=True)
    binding_checked_at = models.DateTimeField(null=True)
    requested_by = models.ForeignKey("accounts.User", on_delete=models.PROTECT, related_name="+")
    requested_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    decided_at = models.DateTimeField(null=True)
    apply_after = models.DateTimeField(null=True)
    applied_at = models.DateTimeField(null=True)

    objects = PromotionRequestQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        constraints = (
            models.UniqueConstraint(
                fields=("endpoint", "model_version"),
                condition=models.Q(state__in=("SUBMITTED", "CHANGES_REQUESTED")),
                name="promotion_one_open_request",
            ),
            models.CheckConstraint(
                condition=models.Q(state__in=("APPROVED", "APPROVED_WITH_CONDITIONS"))
                | ~models.Q(rollout__in=("QUEUED", "APPLYING", "LIVE")),
                name="promotion_rollout_needs_approval",
            ),
            models.CheckConstraint(
                condition=models.Q(initial_weight__gte=1, initial_weight__lte=100), name="promotion_weight_in_per_cent"
            ),
            models.CheckConstraint(
                condition=models.Q(is_break_glass=False) | models.Q(review_due_at__isnull=False),
                name="promotion_emergency_has_a_deadline",
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
    def is_submitted(self) -> bool:
        """True while it waits for the reviewers."""
        return self.state == RequestState.SUBMITTED

    @property
    def is_open(self) -> bool:
        """True while nothing has been decided, neither for nor against."""
        return self.state in OPEN_STATES

    @property
    def is_approved(self) -> bool:
        """True while an approval stands, with conditions or without."""
        return self.state in APPROVED_STATES

    @property
    def is_revisable(self) -> bool:
        """True while the requester may change what it asks for: until the rollout starts."""
        is_waiting = self.is_approved and self.rollout == RolloutState.QUEUED
        return self.state == RequestState.DRAFT or ((self.is_open or is_waiting) and not self.is_break_glass)


class Decision(models.TextChoices):
    """What a reviewer may say."""

    APPROVED = "APPROVED", "Approve"
    APPROVED_WITH_CONDITIONS = "APPROVED_WITH_CONDITIONS", "Approve with conditions"
    CHANGES_REQUESTED = "CHANGES_REQUESTED", "Request changes"
    REJECTED = "REJECTED", "Reject"
    REVOKED = "REVOKED", "Revoke"
    BREAK_GLASS = "BREAK_GLASS", "Break glass"


APPROVALS: Final = (Decision.APPROVED, Decision.APPROVED_WITH_CONDITIONS)


class Meaning(models.TextChoices):
    """What the signature means; 21 CFR 11.50 wants it stated beside name and time."""

    APPROVAL = "APPROVAL", "I have reviewed the evidence and approve this promotion"
    RESPONSIBILITY = "RESPONSIBILITY", "I approve, and take responsibility for this version in service"
    CHANGES = "CHANGES", "I have reviewed the evidence and ask for changes"
    REJECTION = "REJECTION", "I have reviewed the evidence and reject this promotion"
    REVOCATION = "REVOCATION", "I revoke the approval of this promotion"
    EMERGENCY = "EMERGENCY", "I put this version into service without a review, because of an emergency"


MEANINGS: Final[dict[str, tuple[str, ...]]] = {
    Decision.APPROVED: (Meaning.APPROVAL, Meaning.RESPONSIBILITY),
    Decision.APPROVED_WITH_CONDITIONS: (Meaning.APPROVAL, Meaning.RESPONSIBILITY),
    Decision.CHANGES_REQUESTED: (Meaning.CHANGES,),
    Decision.REJECTED: (Meaning.REJECTION,),
    Decision.REVOKED: (Meaning.REVOCATION,),
    Decision.BREAK_GLASS: (Meaning.EMERGENCY,),
}


class ReviewQuerySet(models.QuerySet["Review"]):
    """Reads of reviews."""

    def standing(self) -> Self:
        """Those that nothing has voided."""
        return self.filter(voided_at=None)

    def approvals(self) -> Self:
        """Standing signatures that count towards the approval."""
        return self.standing().filter(decision__in=APPROVALS)


class Review(models.Model):
    """A person's signed decision, bound to the digests of what they saw. Voided at most, never changed otherwise."""

    request = models.ForeignKey(PromotionRequest, on_delete=models.PROTECT, related_name="reviews")
    round = models.PositiveSmallIntegerField(default=1)
    reviewer = models.ForeignKey("accounts.User", on_delete=models.PROTECT, related_name="+")
    reviewer_name = models.CharField(max_length=120)
    reviewer_roles = ArrayField(models.CharField(max_length=100), default=list)
    decision = models.CharField(max_length=24, choices=Decision.choices)
    meaning = models.CharField(max_length=16, choices=Meaning.choices)
    comment = models.TextField(max_length=4_000)
    artifact_digest = models.CharField(max_length=64)
    evidence_digest = models.CharField(max_length=64)
    approval_digest = models.CharField(max_length=64, blank=True)
    factors = ArrayField(models.CharField(max_length=20), default=list)
    signed_at = models.DateTimeField()
    voided_at = models.DateTimeField(null=True)
    void_reason = models.CharField(max_length=500, blank=True)

    objects = ReviewQuerySet.as_manager()

    class Meta:
        ordering = ("id",)
        constraints = (
            models.CheckConstraint(
                condition=models.Q(
                    *(models.Q(decision=decision, meaning__in=fitting) for decision, fitting in MEANINGS.items()),
                    _connector=models.Q.OR,
                ),
                name="review_meaning_fits_decision",
            ),
            # A person counts once, however fast they press; revoking is a second signature of its own kind.
            models.UniqueConstraint(
                fields=("request", "reviewer"),
                condition=models.Q(voided_at=None) & ~models.Q(decision="REVOKED"),
                name="review_one_standing_signature",
            ),
        )

    def __str__(self) -> str:
        return f"{self.get_decision_display()} by {self.reviewer_name}"

    @property
    def is_approval(self) -> bool:
        """True if it counts towards the approval."""
        return self.decision in APPROVALS


class ReviewTaskQuerySet(TeamScopedQuerySet):
    """Reads of review tasks."""

    team_path = "request__team"

    def waiting_for(self, user_id: int | None) -> Self:
        """Requests that this person may decide on, and has not."""
        return self.filter(reviewer_id=user_id, done_at=None, request__state=RequestState.SUBMITTED)


class ReviewTask(models.Model):
    """One person's part in one submission: shown in their inbox until they or the others have decided."""

    request = models.ForeignKey(PromotionRequest, on_delete=models.CASCADE, related_name="tasks")
    round = models.PositiveSmallIntegerField()
    reviewer = models.ForeignKey("accounts.User", on_delete=models.PROTECT, related_name="+")
    created_at = models.DateTimeField()
    done_at = models.DateTimeField(null=True)
    reminders = models.PositiveSmallIntegerField(default=0)
    reminded_at = models.DateTimeField(null=True)

    objects = ReviewTaskQuerySet.as_manager()

    class Meta:
        ordering = ("created_at", "id")
        constraints = (models.UniqueConstraint(fields=("request", "round", "reviewer"), name="task_once_per_reviewer"),)
        indexes = (models.Index(fields=("reviewer",), name="task_waiting", condition=models.Q(done_at=None)),)

    def __str__(self) -> str:
        return f"{self.reviewer.name}: {self.request}"


class Comment(models.Model):
    """What somebody said on a request. An edit keeps the earlier text as a ``CommentRevision``."""

    request = models.ForeignKey(PromotionRequest, on_delete=models.PROTECT, related_name="comments")
    author = models.ForeignKey("accounts.User", on_delete=models.PROTECT, related_name="+")
    author_name = models.CharField(max_length=120)
    body = models.TextField(max_length=4_000)
    created_at = models.DateTimeField()
    edited_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ("id",)

    def __str__(self) -> str:
        return f"Comment of {self.author_name}"


class CommentRevision(models.Model):
    """What a comment said before an edit."""

    comment = models.ForeignKey(Comment, on_delete=models.PROTECT, related_name="revisions")
    body = models.TextField(max_length=4_000)
    replaced_at = models.DateTimeField()

    class Meta:
        ordering = ("id",)

    def __str__(self) -> str:
        return f"Earlier text of {self.comment}"


class Severity(models.TextChoices):
    """How much a finding matters."""

    LOW = "LOW", "Low"
    MEDIUM = "MEDIUM", "Medium"
    HIGH = "HIGH", "High"
    CRITICAL = "CRITICAL", "Critical"


class FindingState(models.TextChoices):
    """Where a finding stands: its owner says that it is done, and a reviewer accepts that."""

    OPEN = "OPEN", "Open"
    RESOLVED = "RESOLVED", "Waiting for acceptance"
    CLOSED = "CLOSED", "Closed"


class FindingQuerySet(TeamScopedQuerySet):
    """Reads of findings."""

    team_path = "request__team"

    def binding(self) -> Self:
        """Those that an approval in force depends on."""
        return self.exclude(state=FindingState.CLOSED).filter(request__state__in=APPROVED_STATES)

    def overdue(self) -> Self:
        """Open past their due date under an approval that stands. What waits for a reviewer is not late."""
        return self.binding().filter(state=FindingState.OPEN, due_at__lt=timezone.now())


class Finding(models.Model):
    """A condition of an approval: somebody owes something by a date, or the approval is revoked."""

    request = models.ForeignKey(PromotionRequest, on_delete=models.PROTECT, related_name="findings")
    title = models.CharField(max_length=300)
    severity = models.CharField(max_length=8, choices=Severity.choices, default=Severity.MEDIUM)
    owner = models.ForeignKey("accounts.User", on_delete=models.PROTECT, related_name="+")
    due_at = models.DateTimeField()
    state = models.CharField(max_length=8, choices=FindingState.choices, default=FindingState.OPEN)
    opened_by = models.CharField(max_length=120)
    opened_at = models.DateTimeField()
    resolution = models.TextField(max_length=4_000, blank=True)
    closed_by = models.CharField(max_length=120, blank=True)
    closed_at = models.DateTimeField(null=True)

    objects = FindingQuerySet.as_manager()

    class Meta:
        ordering = ("due_at", "id")
        constraints = (
            models.CheckConstraint(
                condition=~models.Q(state="CLOSED") | models.Q(closed_at__isnull=False),
                name="finding_closed_has_a_time",
            ),
        )
        indexes = (models.Index(fields=("due_at",), name="finding_due", condition=models.Q(state="OPEN")),)

    def __str__(self) -> str:
        return self.title

    @property
    def is_overdue(self) -> bool:
        """True if it is past its date and its owner has not said that it is done."""
        return self.state == FindingState.OPEN and self.due_at < timezone.now()
