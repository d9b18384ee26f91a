"""Risk assessments, policies and their versions, review groups, check keys, check results and attestations."""

from __future__ import annotations

from functools import cached_property
from typing import Self

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.urls import reverse

from apps.accounts.models import slug_validator
from apps.core.querysets import TeamScopedQuerySet
from apps.policies.documents import Fallback, PolicyDocument, Tier
from apps.policies.risk import QUESTIONS

TIERS = [(tier.value, tier.value.capitalize()) for tier in Tier]


class RiskAssessmentQuerySet(TeamScopedQuerySet):
    """Reads of risk assessments."""

    team_path = "model__team"


class RiskAssessment(models.Model):
    """The answers about one model at one time. Never changed: a new assessment is a new row."""

    model = models.ForeignKey("registry.RegisteredModel", on_delete=models.PROTECT, related_name="risk_assessments")
    number = models.PositiveIntegerField()
    rules_version = models.PositiveSmallIntegerField()
    answers = models.JSONField()
    reasons = models.JSONField(default=list)
    computed_tier = models.CharField(max_length=8, choices=TIERS)
    tier = models.CharField(max_length=8, choices=TIERS)
    override_reason = models.TextField(max_length=2_000, blank=True)
    assessed_by = models.ForeignKey("accounts.User", on_delete=models.PROTECT, related_name="+")
    assessed_at = models.DateTimeField(auto_now_add=True)

    objects = RiskAssessmentQuerySet.as_manager()

    class Meta:
        ordering = ("-number",)
        constraints = (
            models.UniqueConstraint(fields=("model", "number"), name="risk_assessment_number_once"),
            models.CheckConstraint(
                condition=models.Q(tier=models.F("computed_tier"))
                | ((models.Q(computed_tier="low") | models.Q(tier="high")) & ~models.Q(override_reason="")),
                name="risk_overridden_upward_with_reason",
            ),
        )

    def __str__(self) -> str:
        return f"{self.model.name}: {self.tier} risk"

    @property
    def is_overridden(self) -> bool:
        """Whether a person set a higher tier than the answers give."""
        return self.tier != self.computed_tier

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Question and answer in words, as far as this installation still asks them."""
        return [(one.text, dict(one.answers).get(self.answers.get(one.key), "–")) for one in QUESTIONS]


class PolicyQuerySet(TeamScopedQuerySet):
    """Reads of policies."""

    def for_list(self) -> Self:
        """With everything that a list shows, in two queries."""
        return self.prefetch_related(models.Prefetch("versions", PolicyVersion.objects.with_names()))


class Policy(models.Model):
    """What holds for one team, environment and tier; what it says is in its versions."""

    team = models.ForeignKey("accounts.Team", on_delete=models.PROTECT, related_name="policies")
    environment = models.CharField(max_length=63, validators=[slug_validator])
    tier = models.CharField(max_length=8, choices=TIERS)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = PolicyQuerySet.as_manager()

    class Meta:
        ordering = ("environment", "id")
        constraints = (
            models.UniqueConstraint(fields=("team", "environment", "tier"), name="policy_once"),
            models.CheckConstraint(
                condition=models.Q(tier__in=[tier.value for tier in Tier]), name="policy_tier_known"
            ),
        )

    def __str__(self) -> str:
        return f"{self.environment}, {self.tier} risk"

    def get_absolute_url(self) -> str:
        """Its page."""
        return reverse("policies:policy-detail", args=[self.environment, self.tier])


class PolicyVersionState(models.TextChoices):
    """Where a version of a policy stands."""

    PROPOSED = "PROPOSED", "Proposed"
    IN_FORCE = "IN_FORCE", "In force"
    SUPERSEDED = "SUPERSEDED", "Superseded"
    REJECTED = "REJECTED", "Rejected"


class PolicyVersionQuerySet(TeamScopedQuerySet):
    """Reads of policy versions."""

    team_path = "policy__team"

    def in_force(self) -> Self:
        """Those that new requests are bound to."""
        return self.filter(state=PolicyVersionState.IN_FORCE)

    def proposed(self) -> Self:
        """Those that wait for a second compliance officer."""
        return self.filter(state=PolicyVersionState.PROPOSED)

    def confirmable_by(self, user_id: int | None) -> Self:
        """Proposed by somebody else."""
        return self.proposed().exclude(proposed_by_id=user_id)

    def with_names(self) -> Self:
        """Everything that a page shows of a version, in one query."""
        return self.select_related("policy", "proposed_by", "decided_by")


class PolicyVersion(models.Model):
    """One immutable version of a policy's document. The first, without a proposer, is the built-in one.

    A promotion request keeps the version that was in force when it was made, whatever becomes of the policy.
    """

    policy = models.ForeignKey(Policy, on_delete=models.PROTECT, related_name="versions")
    number = models.PositiveIntegerField()
    state = models.CharField(max_length=10, choices=PolicyVersionState.choices, default=PolicyVersionState.PROPOSED)
    body = models.JSONField()
    digest = models.CharField(max_length=64)
    reason = models.TextField(max_length=2_000, blank=True)
    proposed_by = models.ForeignKey("accounts.User", null=True, on_delete=models.PROTECT, related_name="+")
    proposed_at = models.DateTimeField(auto_now_add=True)
    decided_by = models.ForeignKey("accounts.User", null=True, on_delete=models.PROTECT, related_name="+")
    decided_at = models.DateTimeField(null=True)
    decision_comment = models.TextField(max_length=2_000, blank=True)

    objects = PolicyVersionQuerySet.as_manager()

    class Meta:
        ordering = ("-number",)
        constraints = (
            models.UniqueConstraint(fields=("policy", "number"), name="policy_version_number_once"),
            models.UniqueConstraint(
                fields=("policy",), condition=models.Q(state="IN_FORCE"), name="policy_one_version_in_force"
            ),
            models.UniqueConstraint(
                fields=("policy",), condition=models.Q(state="PROPOSED"), name="policy_one_proposal"
            ),
            # Two people, whatever the code above does; only the built-in version has neither.
            models.CheckConstraint(
                condition=models.Q(state="PROPOSED", proposed_by__isnull=False, decided_by__isnull=True)
                | models.Q(state="REJECTED", decided_by__isnull=False)
                | models.Q(number=1, proposed_by__isnull=True, decided_by__isnull=True)
                | (
                    models.Q(state__in=("IN_FORCE", "SUPERSEDED"), proposed_by__isnull=False, decided_by__isnull=False)
                    & ~models.Q(proposed_by=models.F("decided_by"))
                ),
                name="policy_confirmed_by_a_second_person",
            ),
        )

    def __str__(self) -> str:
        return f"{self.policy} v{self.number}"

    def get_absolute_url(self) -> str:
        """Its page."""
        return reverse("policies:version-detail", args=[self.policy.environment, self.policy.tier, self.number])

    @cached_property
    def document(self) -> PolicyDocument:
        """What it says."""
        return PolicyDocument.from_json(self.body)

    @property
    def tier(self) -> Tier:
        """The tier that it is for."""
        return Tier(self.policy.tier)

    @property
    def is_built_in(self) -> bool:
        """Whether nobody decided it: it is what holds until somebody does."""
        return self.proposed_by_id is None


class ReviewGroup(models.Model):
    """People of a team whom a policy may ask for approvals, by a name of the team's own. Admins say who is in it."""

    team = models.ForeignKey("accounts.Team", on_delete=models.PROTECT, related_name="review_groups")
    name = models.CharField(max_length=63, validators=[slug_validator])
    members = models.ManyToManyField("accounts.Membership", related_name="review_groups")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = TeamScopedQuerySet.as_manager()

    class Meta:
        ordering = ("name",)
        constraints = (models.UniqueConstraint(fields=("team", "name"), name="review_group_once"),)

    def __str__(self) -> str:
        return self.name


class CheckKeyKind(models.TextChoices):
    """How an external system signs."""

    HMAC = "HMAC", "HMAC-SHA256 with a shared secret"
    ED25519 = "ED25519", "Ed25519 with the system’s own key"


class CheckKey(models.Model):
    """The key by which one external check signs its results. The key's name is the check's name.

    A shared secret is not stored: it is derived from the installation's secret and ``salt``.
    """

    team = models.ForeignKey("accounts.Team", on_delete=models.PROTECT, related_name="check_keys")
    name = models.CharField(max_length=63, validators=[slug_validator])
    kind = models.CharField(max_length=8, choices=CheckKeyKind.choices)
    salt = models.CharField(max_length=64, blank=True)
    public_key = models.CharField(max_length=64, blank=True)  # base64 of the raw 32 bytes
    created_by = models.ForeignKey("accounts.User", on_delete=models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    revoked_at = models.DateTimeField(null=True)

    objects = TeamScopedQuerySet.as_manager()

    class Meta:
        ordering = ("name", "-id")
        constraints = (
            models.UniqueConstraint(
                fields=("team", "name"), condition=models.Q(revoked_at=None), name="check_key_name_once"
            ),
            models.CheckConstraint(
                condition=(models.Q(kind="HMAC", public_key="") & ~models.Q(salt=""))
                | (models.Q(kind="ED25519", salt="") & ~models.Q(public_key="")),
                name="check_key_fits_kind",
            ),
        )

    def __str__(self) -> str:
        return self.name


class CheckResultQuerySet(TeamScopedQuerySet):
    """Reads of check results."""

    def standing(self) -> Self:
        """Those whose key was not revoked, newest first."""
        return self.filter(key__revoked_at=None).select_related("key").order_by("-id")


class CheckResult(models.Model):
    """What an external check said of a request's evidence. Never changed; a later result outweighs it.

    ``request_id`` is a plain number: promotions are a room above this one. ``signed_digest`` is the SHA-256 of what
    was signed, so that the same message counts once.
    """

    team = models.ForeignKey("accounts.Team", on_delete=models.PROTECT, related_name="check_results")
    key = models.ForeignKey(CheckKey, on_delete=models.PROTECT, related_name="results")
    request_id = models.BigIntegerField()
    evidence_digest = models.CharField(max_length=64)
    is_success = models.BooleanField()
    sentence = models.CharField(max_length=300)
    url = models.URLField(max_length=500, blank=True)
    signed_at = models.DateTimeField()
    signed_digest = models.CharField(max_length=64)
    received_at = models.DateTimeField(auto_now_add=True)

    objects = CheckResultQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        constraints = (models.UniqueConstraint(fields=("key", "signed_digest"), name="check_result_once"),)
        indexes = (models.Index(fields=("team", "request_id", "-id"), name="check_result_by_request"),)

    def __str__(self) -> str:
        return f"{self.key.name} on request {self.request_id}"


class Attestation(models.Model):
    """A person's signed word that a version in service is still fit for it. Never changed, never deleted."""

    deployment = models.ForeignKey("deployments.Deployment", on_delete=models.PROTECT, related_name="attestations")
    policy_version = models.ForeignKey(PolicyVersion, on_delete=models.PROTECT, related_name="attestations")
    statement = models.TextField(max_length=2_000)
    attested_by = models.ForeignKey("accounts.User", on_delete=models.PROTECT, related_name="+")
    signed_name = models.CharField(max_length=120)
    factors = ArrayField(models.CharField(max_length=20))
    attested_at = models.DateTimeField()

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"Attestation of {self.deployment}"


class AttestationLapse(models.Model):
    """An attestation that nobody gave in time, and what the policy had happen then: once for each due time."""

    deployment = models.ForeignKey("deployments.Deployment", on_delete=models.PROTECT, related_name="lapses")
    policy_version = models.ForeignKey(PolicyVersion, on_delete=models.PROTECT, related_name="lapses")
    due_at = models.DateTimeField()
    fallback = models.CharField(max_length=10, choices=[(one.value, one.value) for one in Fallback])
    happened_at = models.DateTimeField()

    class Meta:
        ordering = ("-id",)
        constraints = (models.UniqueConstraint(fields=("deployment", "due_at"), name="attestation_lapses_once"),)

    def __str__(self) -> str:
        return f"Overdue attestation of {self.deployment}"
