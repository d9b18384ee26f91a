"""Traffic over time, out of the rollups that the inference service writes every second."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from django.db import connection
from django.utils import timezone

from apps.deployments.models import Endpoint
from apps.monitoring.latency import BUCKETS, merge, percentile_ms

REPORTING_LAG: Final = timedelta(seconds=2)
"""A second is complete in the database this long after it ended."""
NOW_SPAN: Final = timedelta(seconds=10)
"""What “now” averages over."""
SPARK_STEP_S: Final = 60

_HISTOGRAM_SUMS: Final = ", ".join(f"sum(latency_histogram[{bucket}])::bigint" for bucket in range(1, BUCKETS + 1))
_TRAFFIC: Final = f"""
SELECT date_bin(make_interval(secs => %s), second, 'epoch') AS step, deployment_id,
       sum(requests)::bigint, sum(rows)::bigint, sum(errors)::bigint, sum(cpu_us)::bigint, ARRAY[{_HISTOGRAM_SUMS}]
FROM monitoring_metricrollup
WHERE endpoint_id = %s AND second >= %s AND second < %s
GROUP BY step, deployment_id
ORDER BY step, deployment_id
"""  # noqa: S608 - the only thing put in is made of bucket numbers
_TOTALS: Final = f"""
SELECT endpoint_id, date_bin(make_interval(secs => %s), second, 'epoch') AS step,
       sum(requests)::bigint, sum(errors)::bigint,
       coalesce(sum(requests) FILTER (WHERE second >= %s), 0)::bigint, ARRAY[{_HISTOGRAM_SUMS}]
FROM monitoring_metricrollup
WHERE endpoint_id = ANY(%s) AND NOT is_shadow AND second >= %s AND second < %s
GROUP BY endpoint_id, step
ORDER BY endpoint_id, step
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Sample:
    """What happened from ``at`` on for ``seconds``: counts, and the latencies by ``LATENCY_BUCKETS_US``."""

    at: datetime
    seconds: float
    deployment_id: int
    requests: int
    rows: int
    errors: int
    cpu_us: int
    histogram: Sequence[int]

    @property
    def requests_per_s(self) -> float:
        """Mean rate."""
        return self.requests / self.seconds

    @property
    def error_percent(self) -> float | None:
        """Share of the requests that were refused or failed; None without requests."""
        return 100 * self.errors / self.requests if self.requests else None

    @property
    def cpu_s_per_thousand(self) -> float | None:
        """CPU seconds of the whole service for a thousand predictions; None without predictions."""
        return self.cpu_us / 1_000 / self.rows if self.rows else None

    def percentile_ms(self, quantile: float) -> float | None:
        """Latency within the service; None without requests."""
        return percentile_ms(self.histogram, quantile)


@dataclass(frozen=True, slots=True)
class EndpointTotals:
    """An endpoint's traffic since a moment. ``rates`` holds mean requests/s of each minute, oldest first."""

    requests: int
    errors: int
    requests_per_s: float  # now
    p99_ms: float | None
    rates: list[float]

    @property
    def error_percent(self) -> float | None:
        """Share of the requests that were refused or failed; None without requests."""
        return 100 * self.errors / self.requests if self.requests else None


def reported_until() -> datetime:
    """The newest full second that all replicas have had the time to report."""
    return (timezone.now() - REPORTING_LAG).replace(microsecond=0)


def traffic(endpoint: Endpoint, since: datetime, until: datetime, step_s: int) -> list[Sample]:
    """An endpoint's traffic in steps of ``step_s`` seconds, a sample for each step and deployment that had any.

    Steps begin at multiples of ``step_s``, so that a step keeps its place while the window moves on; the first and
    the last are as short as the window cuts them.
    """
    with connection.cursor() as cursor:
        cursor.execute(_TRAFFIC, [step_s, endpoint.pk, since, until])
        rows = cursor.fetchall()
    step = timedelta(seconds=step_s)
    return [Sample(at, _covered(at, step, since, until), *counts) for at, *counts in rows]


def total(samples: Iterable[Sample], since: datetime, until: datetime) -> Sample:
    """All samples of a window as one."""
    parts = list(samples)
    return Sample(
        at=since,
        seconds=(until - since).total_seconds(),
        deployment_id=0,
        requests=sum(part.requests for part in parts),
        rows=sum(part.rows for part in parts),
        errors=sum(part.errors for part in parts),
        cpu_us=sum(part.cpu_us for part in parts),
        histogram=merge(part.histogram for part in parts),
    )


def steps(since: datetime, until: datetime, step_s: int) -> list[datetime]:
    """The beginnings of all steps of a window, as ``traffic`` names them."""
    first = int(since.timestamp()) // step_s * step_s
    return [datetime.fromtimestamp(at, UTC) for at in range(first, int(until.timestamp()), step_s)]


def endpoint_totals(endpoint_ids: Sequence[int], since: datetime) -> dict[int, EndpointTotals]:
    """Traffic of many endpoints from ``since`` until now, in one query; an endpoint without any has zeros."""
    until = reported_until()
    with connection.cursor() as cursor:
        cursor.execute(_TOTALS, [SPARK_STEP_S, until - NOW_SPAN, list(endpoint_ids), since, until])
        rows = cursor.fetchall()
    minutes = steps(since, until, SPARK_STEP_S)
    by_endpoint: dict[int, list[tuple[datetime, int, int, int, list[int]]]] = {pk: [] for pk in endpoint_ids}
    for endpoint_id, *row in rows:
        by_endpoint[endpoint_id].append(tuple(row))
    return {pk: _endpoint_totals(found, minutes, since, until) for pk, found in by_endpoint.items()}


def _endpoint_totals(
    rows: list[tuple[datetime, int, int, int, list[int]]], minutes: list[datetime], since: datetime, until: datetime
) -> EndpointTotals:
    requests = {at: count for at, count, *_ in rows}
    return EndpointTotals(
        requests=sum(requests.values()),
        errors=sum(row[2] for row in rows),
        requests_per_s=sum(row[3] for row in rows) / NOW_SPAN.total_seconds(),
        p99_ms=percentile_ms(merge(row[4] for row in rows), 0.99),
        rates=[requests.get(at, 0) / _covered(at, timedelta(seconds=SPARK_STEP_S), since, until) for at in minutes],
    )


def _covered(at: datetime, step: timedelta, since: datetime, until: datetime) -> float:
    """How many seconds of a step lie within the window."""
    return max((min(at + step, until) - max(at, since)).total_seconds(), 1.0)
