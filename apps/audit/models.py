"""The audit event. The canonical ``body`` is the record; the columns to filter by are generated from it."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any, Self

from django.db import models
from django.db.models.fields.json import KeyTextTransform
from django.db.models.functions import Cast
from django.utils.functional import cached_property

from apps.audit.verify import NO_BODY
from apps.core.querysets import TeamScopedQuerySet

_DIGEST = re.compile("[0-9a-f]{64}")


def _from_body(key: str) -> KeyTextTransform:
    return KeyTextTransform(key, Cast("body", models.JSONField()))


class AuditEventQuerySet(TeamScopedQuerySet):
    """Reads of the audit log."""

    def for_team(self, team: Any) -> Self:
        """Events of one team; events of the installation as a whole belong to nobody's page."""
        return self.none() if team is None else self.filter(team_id=team.pk)

    def numbered(self) -> Self:
        """Events whose transaction has committed, in the order of the chain."""
        return self.filter(seq__isnull=False).order_by("seq")

    def matching(
        self,
        *,
        actor: str = "",
        action: str = "",
        obj: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        request_id: str = "",
    ) -> Self:
        """Filter by printed actor name, action prefix, object label, time (``since`` <= at < ``until``) and request."""
        events = self
        if actor:
            events = events.filter(actor_name__icontains=actor)
        if action:
            events = events.filter(action__startswith=action)
        if obj:
            events = events.filter(object_label__icontains=obj)
        if since:
            events = events.filter(at__gte=since)
        if until:
            events = events.filter(at__lt=until)
        if request_id:
            events = events.filter(request_id=request_id)
        return events

    def about(self, object_type: str, object_id: object) -> Self:
        """What happened to one object, e.g. ``about("registry.modelversion", 7)``."""
        return self.filter(object_type=object_type, object_id=str(object_id))


class AuditEvent(models.Model):
    """One thing that happened. A deferred trigger numbers, dates and links it as its transaction commits.

    ``leaf_hash`` is SHA-256 over 0x00, ``seq``, ``at``, ``previous_hash`` and ``body`` (see ``chain.py``).
    There are no foreign keys: an event outlives what it speaks of.
    """

    seq = models.BigIntegerField(null=True, unique=True, editable=False)
    at = models.DateTimeField(null=True, editable=False)
    previous_hash = models.CharField(max_length=64, null=True, editable=False)  # noqa: DJ001 - null until committed
    leaf_hash = models.CharField(max_length=64, null=True, editable=False)  # noqa: DJ001 - null until committed
    body = models.TextField()

    team_id = models.GeneratedField(
        expression=Cast(_from_body("team_id"), models.BigIntegerField()),
        output_field=models.BigIntegerField(null=True),
        db_persist=True,
    )
    actor_name = models.GeneratedField(
        expression=_from_body("actor_name"), output_field=models.TextField(), db_persist=True
    )
    action = models.GeneratedField(expression=_from_body("action"), output_field=models.TextField(), db_persist=True)
    object_type = models.GeneratedField(
        expression=_from_body("object_type"), output_field=models.TextField(), db_persist=True
    )
    object_id = models.GeneratedField(
        expression=_from_body("object_id"), output_field=models.TextField(), db_persist=True
    )
    object_label = models.GeneratedField(
        expression=_from_body("object_label"), output_field=models.TextField(), db_persist=True
    )
    request_id = models.GeneratedField(
        expression=_from_body("request_id"), output_field=models.TextField(), db_persist=True
    )

    objects = AuditEventQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        indexes = (
            models.Index(fields=("team_id", "-seq"), name="audit_team"),
            models.Index(fields=("team_id", "action", "-seq"), name="audit_action"),
            models.Index(fields=("object_type", "object_id", "-seq"), name="audit_object"),
            models.Index(fields=("request_id", "-seq"), name="audit_request"),
        )

    def __str__(self) -> str:
        return f"{self.seq}: {self.action}"

    @cached_property
    def document(self) -> dict[str, Any]:
        """The body, read."""
        document: dict[str, Any] = json.loads(self.body)
        return document

    @property
    def has_body(self) -> bool:
        """False where retention has left nothing but the hash."""
        return self.body != NO_BODY

    @property
    def reason(self) -> str:
        """The reason or comment that the actor gave."""
        return str(self.document.get("reason", ""))

    @property
    def changes(self) -> list[dict[str, str]]:
        """``name``, ``before`` and ``after`` of everything that changed, as text; empty where there is no value."""
        before, after = self.document.get("before") or {}, self.document.get("after") or {}
        names = sorted(before.keys() | after.keys())
        return [{"name": n, "before": _as_text(before.get(n)), "after": _as_text(after.get(n))} for n in names]


class MerkleNode(models.Model):
    """The root of a perfect subtree of the log's Merkle tree: over ``1 << level`` leaves from ``index << level`` on."""

    level = models.PositiveSmallIntegerField()
    index = models.BigIntegerField()
    hash = models.BinaryField(max_length=32)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("level", "index"), name="merklenode_once"),)

    def __str__(self) -> str:
        return f"level {self.level}, {self.index}"


class Checkpoint(models.Model):
    """What the installation signed about its log at one moment; the same note lies outside the database."""

    tree_size = models.BigIntegerField(primary_key=True)
    root_hash = models.CharField(max_length=64)
    note = models.TextField()
    created_at = models.DateTimeField(auto_now_add=True)
    # Of the anchor beyond the folder, if there is one.
    forwarded_at = models.DateTimeField(null=True)
    forward_error = models.CharField(max_length=300, blank=True)

    class Meta:
        ordering = ("-tree_size",)

    def __str__(self) -> str:
        return f"{self.tree_size} events"


class Verification(models.Model):
    """A check of the whole log, from its request to its outcome."""

    requested_by = models.CharField(max_length=200)
    requested_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    checked = models.BigIntegerField(default=0)
    anchored = models.BigIntegerField(default=0)
    bad_seq = models.BigIntegerField(null=True)
    reason = models.TextField(blank=True)
    notes: models.JSONField[Any, Any] = models.JSONField(default=list)  # sentences worth knowing, at most 20

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"requested by {self.requested_by}"

    @property
    def is_open(self) -> bool:
        """True until there is an outcome."""
        return self.finished_at is None


def _as_text(value: Any) -> str:
    """A value for a narrow column: digests shortened, lists joined, fractions to six significant figures."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    text = str(value)
    return f"sha256:{text[:4]}…{text[-4:]}" if _DIGEST.fullmatch(text) else text
