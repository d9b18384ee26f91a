"""Keeping the rollups' table small."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from django.db import connection

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
