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
    ) -> Self:
        """Filter by printed actor name, action prefix, object label, and time (``since`` <= at < ``until``)."""
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
        return events


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

    objects = AuditEventQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        indexes = (
            models.Index(fields=("team_id", "-seq"), name="audit_team"),
            models.Index(fields=("team_id", "action", "-seq"), name="audit_action"),
            models.Index(fields=("object_type", "object_id", "-seq"), name="audit_object"),
        )

    def __str__(self) -> str:
        return f"{self.seq}: {self.action}"

    @cached_property
    def document(self) -> dict[str, Any]:
        """The body, read."""
        document: dict[str, Any] = json.loads(self.body)
        return document

    @property
    def reason(self) -> str:
        """The reason or comment that the actor gave."""
        return str(self.document["reason"])

    @property
    def request_id(self) -> str:
        """The request in which it happened."""
        return str(self.document["request_id"])

    @property
    def changes(self) -> list[dict[str, str]]:
        """``name``, ``before`` and ``after`` of everything that changed, as text; empty where there is no value."""
        before, after = self.document["before"] or {}, self.document["after"] or {}
        names = sorted(before.keys() | after.keys())
        return [{"name": n, "before": _as_text(before.get(n)), "after": _as_text(after.get(n))} for n in names]


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
