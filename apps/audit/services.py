"""Writing and checking the audit log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.db import connection, models

from apps.audit import chain
from apps.audit.actor import Actor
from apps.audit.models import AuditEvent

_VALUE_CAP = 8_192
"""Characters of one before/after document; a longer one is cut, and says so."""


def record(
    actor: Actor,
    action: str,
    obj: models.Model,
    *,
    team: Any,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
    reason: str = "",
) -> AuditEvent:
    """Write the event of a change, in the change's own transaction: if it cannot be written, nothing changes.

    ``action`` reads ``noun.past_verb``; ``before`` and ``after`` hold only what changed, JSON-safe.
    """
    if not connection.in_atomic_block:
        raise RuntimeError("An audit event belongs into the transaction of its change.")
    body = {
        "action": action,
        "actor_address": actor.address,
        "actor_id": actor.user_id,
        "actor_name": actor.name,
        "after": _bounded(after),
        "before": _bounded(before),
        "object_id": str(obj.pk),
        "object_label": str(obj)[:200],
        "object_type": obj._meta.label_lower,
        "reason": reason[:2_000],
        "request_id": actor.request_id,
        "team_id": team.pk if team is not None else None,
        "token_id": actor.token_id,
    }
    # PostgreSQL's jsonb, which the filter columns are generated from, has no NUL.
    return AuditEvent.objects.create(body=chain.canonical_json(body).replace("\\u0000", "\\ufffd"))


def _bounded(document: dict[str, Any] | None) -> dict[str, Any] | None:
    if document is None:
        return None
    text = chain.canonical_json(document)
    return document if len(text) <= _VALUE_CAP else {"truncated": text[:_VALUE_CAP], "characters": len(text)}


def links() -> Iterator[chain.Link]:
    """The whole log in order, streamed with bounded memory."""
    columns = ("seq", "at", "previous_hash", "leaf_hash", "body")
    rows = AuditEvent.objects.numbered().values_list(*columns)
    for row in rows.iterator(chunk_size=5_000):
        yield chain.Link(*row)
