"""Takes the bodies of old events and leaves their hashes, so that the log is still verified from its first event."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from django.db import connection, transaction
from django.utils import timezone

from apps.audit.actor import Actor
from apps.audit.models import AuditEvent
from apps.audit.services import latest_checkpoint, record
from apps.audit.verify import NO_BODY, PRUNED
from apps.core.errors import DomainError

MIN_DAYS: Final = 183
"""Half a year: what the EU AI Act's article 26(6) asks deployers to keep logs for at least."""


@transaction.atomic
def prune_bodies(actor: Actor, *, older_than_days: int) -> int:
    """Empty the bodies of events that are older and under a checkpoint, with one event that says so; returns how many.

    The events in which this is written keep their bodies. Raises ``DomainError`` for less than ``MIN_DAYS``. Takes the
    tables' owner: the application's database role cannot change the log.
    """
    if older_than_days < MIN_DAYS:
        raise DomainError(f"The log is kept for at least {MIN_DAYS} days.", field="older_than_days")
    checkpoint = latest_checkpoint()
    old = AuditEvent.objects.numbered().filter(at__lt=timezone.now() - timedelta(days=older_than_days))
    last = old.filter(seq__lte=checkpoint.tree_size if checkpoint else 0).last()
    if last is None:
        return 0
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL countersign.retention = 'on'")
        cursor.execute(
            "UPDATE audit_auditevent SET body = %s WHERE seq <= %s AND body <> %s AND action <> %s",
            [NO_BODY, last.seq, NO_BODY, PRUNED],
        )
        count: int = cursor.rowcount
        cursor.execute("SET LOCAL countersign.retention = 'off'")
    if count:
        after = {"from_seq": 1, "until_seq": last.seq, "events": count, "older_than_days": older_than_days}
        record(actor, PRUNED, last, team=None, after=after)
    return count
