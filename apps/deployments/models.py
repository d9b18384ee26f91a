"""Endpoints, deployments, manifests, and what replicas report."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, Self

from django.db import models
from django.utils import timezone

from apps.accounts.models import slug_validator
from apps.core.querysets import TeamScopedQuerySet
from apps.registry.models import ModelVersion

REPLICA_SILENCE: Final = timedelta(seconds=10)
"""A replica that has reported nothing for this long does not count as running."""


class Endpoint(models.Model):
    """A stable name that callers predict against. It is the model name in the Open Inference Protocol."""

    team = models.ForeignKey("accounts.Team", on_delete=models.PROTECT, related_name="endpoints")
    # Unique in the installation, because /v2/models/<name> has no team in it.
    name = models.CharField(max_length=63, unique=True, validators=[slug_validator])
    description = models.CharField(max_length=500, blank=True)
    created_by = models.ForeignKey("accounts.User", on_delete=models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = TeamScopedQuerySet.as_manager()

    class Meta:
        ordering = ("name",)

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

    def champions(self) -> Self:
        """Those that answer, now or earlier."""
        return self.filter(role=DeploymentRole.CHAMPION)

    def retired_since(self, at: datetime) -> Self:
        """Those that stopped serving after ``at``."""
        return self.filter(retired_at__gt=at)


class Deployment(models.Model):
    """A model version serving on an endpoint from ``activated_at`` to ``retired_at``. Each activation is a new row."""

    endpoint = models.ForeignKey(Endpoint, on_delete=models.PROTECT, related_name="deployments")
    model_version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="deployments")
    role = models.CharField(max_length=10, choices=DeploymentRole.choices, default=DeploymentRole.CHAMPION)
    weight = models.PositiveSmallIntegerField(default=100)
    # A plain number: promotions are a room above this one.
    promotion_request_id = models.BigIntegerField()
    is_rollback = models.BooleanField(default=False)
    activated_by = models.CharField(max_length=120)
    activated_at = models.DateTimeField()
    retired_at = models.DateTimeField(null=True)

    objects = DeploymentQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        constraints = (
            models.UniqueConstraint(
                fields=("endpoint",),
                condition=models.Q(role="champion", retired_at=None),
                name="deployment_one_champion",
            ),
            models.CheckConstraint(condition=models.Q(weight__lte=100), name="deployment_weight_in_per_cent"),
        )

    def __str__(self) -> str:
        return f"{self.model_version} on {self.endpoint.name}"


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
