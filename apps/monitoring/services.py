"""Writing what was read into the audit log, and keeping the rollups' table small."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from django.db import connection, transaction

from apps.audit.actor import Actor
from apps.audit.services import record
from apps.deployments.models import Endpoint

ROLLUP_RETENTION: Final = timedelta(hours=48)
_BATCH: Final = 5_000
_MAX_BATCHES: Final = 20


def prune_rollups() -> int:
    """Delete rollups that are older than the retention, in bounded batches; returns how many went.

    What one call leaves, the next one takes: each batch is short, so that the inference service never waits for it.
    """
    deleted = 0
    for _ in range(_MAX_BATCHES):
        with connection.cursor() as cursor:
            cursor.execute(
                "DELETE FROM monitoring_metricrollup WHERE id IN ("
                "SELECT id FROM monitoring_metricrollup WHERE second < now() - make_interval(secs => %s) "
                "ORDER BY second LIMIT %s)",
                [ROLLUP_RETENTION.total_seconds(), _BATCH],
            )
            deleted += cursor.rowcount
            if cursor.rowcount < _BATCH:
                break
    return deleted


@transaction.atomic
def record_read(actor: Actor, what: str, *, endpoint: Endpoint, **details: Any) -> None:
    """Write that somebody saw payloads of the inference log: one event for a page or an export, however long."""
    given = {name: str(value)[:300] for name, value in details.items() if value not in (None, "", 0)}
    record(actor, what, endpoint, team=endpoint.team, after=given or None)
