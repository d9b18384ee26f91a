"""Endpoints, deployments, manifests, and what replicas report."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final, Self

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.utils import timezone

from apps.accounts.models import slug_validator
from apps.core.querysets import TeamScopedQuerySet
from apps.registry.models import ModelVersion
from inference.contracts import Limits, LogSettings

REPLICA_SILENCE: Final = timedelta(seconds=10)
"""A replica that has reported nothing for this long does not count as running."""


# Settings of an endpoint: lowest and highest value. The database holds them, too.
BOUNDS: Final = {
    "queue_rows": (1, 1_000_000),
    "timeout_ms": (10, 600_000),
    "batch_rows": (1, 4_096),
    "memory_mb": (16, 1_048_576),
    "cpu_cores": (0.05, 256),
    "payload_cap_bytes": (0, 16 * 1024**2),
    "retention_days": (1, 36_500),
}
MAX_REDACTED: Final = 100
PRODUCTION: Final = "production"
_LIMITS: Final = Limits()
_LOG: Final = LogSettings()


def _within(name: str) -> models.CheckConstraint:
    """NULL, where the column allows it, passes."""
    low, high = BOUNDS[name]
    condition = models.Q(**{f"{name}__gte": low, f"{name}__lte": high})
    return models.CheckConstraint(condition=condition, name=f"endpoint_{name}_in_bounds")


class Endpoint(models.Model):
    """A stable name that callers predict against. It is the model name in the Open Inference Protocol.

    What its settings mean is told in ``inference.contracts``; the retention alone is the console's own.
    """

    team = models.ForeignKey("accounts.Team", on_delete=models.PROTECT, related_name="endpoints")
    # Unique in the installation, because /v2/models/<name> has no team in it.
    name = models.CharField(max_length=63, unique=True, validators=[slug_validator])
    description = models.CharField(max_length=500, blank=True)
    # Decides which policy holds; it never changes, so a version cannot get around a stricter one.
    environment = models.CharField(max_length=63, default=PRODUCTION, validators=[slug_validator])
    # A protected endpoint takes approvals; one compliance officer protects it, two lift that.
    is_protected = models.BooleanField(default=True)
    lifting_proposed_by = models.ForeignKey("accounts.User", null=True, on_delete=models.PROTECT, related_name="+")
    created_by = models.ForeignKey("accounts.User", on_delete=models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    sticky_header = models.CharField(max_length=64, blank=True)
    sticky_input = models.CharField(max_length=200, blank=True)
    queue_rows = models.PositiveIntegerField(default=_LIMITS.queue_rows)
    timeout_ms = models.PositiveIntegerField(default=_LIMITS.timeout_ms)
    batch_rows = models.PositiveIntegerField(default=_LIMITS.batch_rows)
    memory_mb = models.PositiveIntegerField(null=True, blank=True)
    cpu_cores = models.FloatField(null=True, blank=True)
    is_log_strict = models.BooleanField(default=_LOG.strict)
    payload_cap_bytes = models.PositiveIntegerField(default=_LOG.payload_cap_bytes)
    redacted = ArrayField(models.CharField(max_length=200), default=list, blank=True)
    retention_days = models.PositiveIntegerField(null=True, blank=True)

    objects = TeamScopedQuerySet.as_manager()

    class Meta:
        ordering = ("name",)
        constraints = (
            models.CheckConstraint(
                condition=models.Q(sticky_header="") | models.Q(sticky_input=""), name="endpoint_one_sticky_key"
            ),
            models.CheckConstraint(
                condition=models.Q(redacted__len__lte=MAX_REDACTED), name="endpoint_redacted_in_bounds"
            ),
            *(_within(name) for name in BOUNDS),
        )

    def __str__(self) -> str:
        return self.name


class DeploymentRole(models.TextChoices):
    """A deployment's part on its endpoint."""

    CHAMPION = "champion", "Champion"
    CANARY = "canary", "Canary"
    SHADOW = "shadow", "Shadow"


class DeploymentQuerySet(TeamScopedQuerySet):
    """Reads of deployments."""

    team_path = "endpoint__team"

    def active(self) -> Self:
        """Those that are to serve now."""
        return self.filter(retired_at=None)

    def answering(self) -> Self:
        """Those whose answers callers get, the champion first."""
        is_canary = models.Case(models.When(role=DeploymentRole.CHAMPION, then=0), default=1)
        return self.active().exclude(role=DeploymentRole.SHADOW).order_by(is_canary, "pk")

    def champions(self) -> Self:
        """Those that answer by default, now or earlier."""
        return self.filter(role=DeploymentRole.CHAMPION)

    def shadows(self) -> Self:
        """Those that get copies and never answer."""
        return self.filter(role=DeploymentRole.SHADOW)

    def with_versions(self) -> Self:
        """With everything that the manifest says of a version."""
        return self.select_related("model_version__model", "model_version__artifact")

    def retired_since(self, at: datetime) -> Self:
        """Those that stopped serving after ``at``."""
        return self.filter(retired_at__gt=at)


class Deployment(models.Model):
    """A model version serving on an endpoint from ``activated_at`` to ``retired_at``. Each activation is a new row.

    The weights of what answers on an endpoint sum to 100; a row that is retired keeps its last one. A canary that is
    given everything becomes the champion in the same row, so that its approval's rollout can be followed through.
    """

    endpoint = models.ForeignKey(Endpoint, on_delete=models.PROTECT, related_name="deployments")
    model_version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="deployments")
    role = models.CharField(max_length=10, choices=DeploymentRole.choices, default=DeploymentRole.CHAMPION)
    weight = models.PositiveSmallIntegerField(default=100)
    # A plain number: promotions are a room above this one. None for a shadow, which answers nobody.
    promotion_request_id = models.BigIntegerField(null=True)
    is_rollback = models.BooleanField(default=False)
    activated_by = models.CharField(max_length=120)
    activated_at = models.DateTimeField()
    retired_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)  # its approval was taken back: nothing goes back to it

    objects = DeploymentQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        constraints = (
            models.UniqueConstraint(
                fields=("endpoint",),
                condition=models.Q(role="champion", retired_at=None),
                name="deployment_one_champion",
            ),
            models.UniqueConstraint(
                fields=("endpoint", "model_version"),
                condition=models.Q(retired_at=None),
                name="deployment_version_once",
            ),
            models.CheckConstraint(
                condition=models.Q(role="shadow", weight=0)
                | (~models.Q(role="shadow") & models.Q(weight__gte=1, weight__lte=100)),
                name="deployment_weight_in_per_cent",
            ),
            models.CheckConstraint(
                condition=models.Q(role="shadow") | models.Q(promotion_request_id__isnull=False),
                name="deployment_answers_by_approval",
            ),
            models.CheckConstraint(
                condition=models.Q(revoked_at=None) | models.Q(retired_at__isnull=False),
                name="deployment_revoked_serves_nobody",
            ),
        )

    def __str__(self) -> str:
        return f"{self.model_version} on {self.endpoint.name}"


class GuardrailAction(models.TextChoices):
    """What happens to a row that violates a rule."""

    FLAG = "flag", "Flag: answer as usual, and note it in the log"
    REJECT = "reject", "Reject: refuse the request with 422"
    FALLBACK = "fallback", "Fall back: answer with the values below"


class Guardrail(models.Model):
    """What must hold for each row that an endpoint is asked about or answers. The oldest rule is checked first."""

    endpoint = models.ForeignKey(Endpoint, on_delete=models.PROTECT, related_name="guardrails")
    name = models.CharField(max_length=63, validators=[slug_validator])
    requires = models.CharField(max_length=500)
    action = models.CharField(max_length=8, choices=GuardrailAction.choices, default=GuardrailAction.FLAG)
    fallback: models.JSONField[Any, Any] = models.JSONField(null=True)  # output name -> one row of it

    class Meta:
        ordering = ("id",)
        constraints = (
            models.UniqueConstraint(fields=("endpoint", "name"), name="guardrail_name_once"),
            models.CheckConstraint(
                condition=models.Q(action="fallback", fallback__isnull=False)
                | (~models.Q(action="fallback") & models.Q(fallback__isnull=True)),
                name="guardrail_fallback_has_values",
            ),
        )

    def __str__(self) -> str:
        return f"{self.name} on {self.endpoint.name}"


class ServingManifest(models.Model):
    """A signed manifest, one row per change; replicas follow the newest. ``body`` holds the very bytes signed."""

    generation = models.BigIntegerField(primary_key=True)
    body = models.TextField()
    signature = models.CharField(max_length=120)
    content_digest = models.CharField(max_length=64)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-generation",)

    def __str__(self) -> str:
        return f"Generation {self.generation}"


class ManifestRefusal(models.Model):
    """A manifest that must not be followed: altered in the database, or signed by somebody else.

    ``ended_at`` tells when it was gone again; it stays in the inbox until somebody has acknowledged it.
    """

    message = models.CharField(max_length=500)
    replicas = models.PositiveIntegerField()  # how many report it; 0: the console alone
    first_seen_at = models.DateTimeField()
    last_seen_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    acknowledged_at = models.DateTimeField(null=True)
    acknowledged_by = models.CharField(max_length=120, blank=True)

    class Meta:
        ordering = ("-id",)
        constraints = (
            models.UniqueConstraint(
                fields=("message",), condition=models.Q(ended_at=None), name="manifest_refusal_once"
            ),
        )

    def __str__(self) -> str:
        return "The serving manifest"


class ReplicaQuerySet(models.QuerySet["Replica"]):
    """Reads of replicas."""

    def live(self) -> Self:
        """Those that serve and reported in a moment ago."""
        return self.filter(seen_at__gt=timezone.now() - REPLICA_SILENCE).exclude(state__in=("STOPPED", "DRAINING"))


class Replica(models.Model):
    """What an inference process says of itself. Written by the process, in plain SQL."""

    replica_id = models.TextField(primary_key=True)
    hostname = models.TextField()
    pid = models.IntegerField()
    started_at = models.DateTimeField()
    seen_at = models.DateTimeField()
    generation = models.BigIntegerField(default=0)
    state = models.TextField()
    memory_bytes = models.BigIntegerField(default=0)
    loaded = models.JSONField(default=list)
    errors = models.JSONField(default=list)

    objects = ReplicaQuerySet.as_manager()

    class Meta:
        ordering = ("replica_id",)

    def __str__(self) -> str:
        return self.replica_id
