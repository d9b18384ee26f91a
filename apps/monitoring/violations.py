"""How many rows violated which guardrail, out of the rollups."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from django.db import connection

from apps.deployments.models import Endpoint
from apps.monitoring.traffic import reported_until, steps

STEP_S: Final = 600
SPAN: Final = timedelta(hours=24)
RECENT: Final = timedelta(hours=1)

# Shadows are no part of it: rules do not apply to them.
_VIOLATIONS: Final = """
SELECT violated.key, date_bin(make_interval(secs => %s), second, 'epoch') AS step, sum(violated.value::bigint)::bigint,
       coalesce(sum(violated.value::bigint) FILTER (WHERE second >= %s), 0)::bigint
FROM monitoring_metricrollup, jsonb_each_text(guardrails) AS violated
WHERE endpoint_id = %s AND second >= %s AND second < %s AND guardrails <> '{}'
GROUP BY violated.key, step
"""


@dataclass(frozen=True, slots=True)
class Violations:
    """The rows of one rule over the last hour, over the last day, and over the steps of that day, oldest first."""

    last_hour: int
    last_day: int
    by_step: list[int]


def violations(endpoint: Endpoint, rules: list[str]) -> tuple[list[datetime], dict[str, Violations]]:
    """The steps of the last 24 hours, and what each rule counted in them; zeros for one that was never violated."""
    until = reported_until()
    since = until - SPAN
    grid = steps(since, until, STEP_S)
    with connection.cursor() as cursor:
        cursor.execute(_VIOLATIONS, [STEP_S, until - RECENT, endpoint.pk, since, until])
        rows = cursor.fetchall()
    found = {rule: [row for row in rows if row[0] == rule] for rule in rules}
    return grid, {rule: _summed(parts, grid) for rule, parts in found.items()}


def _summed(parts: list[tuple[str, datetime, int, int]], grid: list[datetime]) -> Violations:
    by_step = {at: count for _, at, count, _ in parts}
    return Violations(
        last_hour=sum(part[3] for part in parts),
        last_day=sum(by_step.values()),
        by_step=[by_step.get(at, 0) for at in grid],
    )
