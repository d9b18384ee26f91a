"""What the live part of an endpoint's page shows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from django.conf import settings
from django.db.models import Q

from apps.core.errors import DomainError
from apps.deployments.client import example_request
from apps.deployments.models import Deployment, DeploymentRole, Endpoint
from apps.monitoring import charts
from apps.monitoring.models import MetricRollup
from apps.monitoring.traffic import NOW_SPAN, Sample, reported_until, steps, total, traffic

MAX_LINES: Final = 6
_SHORTEST_STEP_S: Final = 5
"""A step that has only just begun says nothing yet."""


@dataclass(frozen=True, slots=True)
class Window:
    """How far back the charts look, how wide their steps are, and how often they are drawn again; in seconds."""

    key: str
    label: str
    span_s: int
    step_s: int
    poll_s: int

    @staticmethod
    def named(key: str) -> Window:
        """The window of a query string, the shortest without one. Raises ``DomainError``."""
        for window in WINDOWS:
            if window.key == (key or WINDOWS[0].key):
                return window
        raise DomainError(f"“window” is one of {', '.join(window.key for window in WINDOWS)}.", field="window")


# The longer the window, the more is summed up and the less a new second changes.
WINDOWS: Final = (
    Window("5m", "5 min", 300, 5, 2),
    Window("1h", "1 hour", 3_600, 30, 5),
    Window("24h", "24 hours", 86_400, 600, 30),
)


@dataclass(frozen=True, slots=True)
class Tiles:
    """The figures above the charts: the rate now, latencies and errors over the window."""

    requests: int
    requests_per_s: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    error_percent: float | None


@dataclass(frozen=True, slots=True)
class VersionTraffic:
    """A deployment over the window. ``share_percent`` is of the requests that callers made, None for a shadow."""

    deployment: Deployment
    sample: Sample
    share_percent: float | None

    @property
    def is_shadow(self) -> bool:
        """Whether its requests were copies."""
        return self.deployment.role == DeploymentRole.SHADOW

    @property
    def p50_ms(self) -> float | None:
        """Median latency within the service."""
        return self.sample.percentile_ms(0.5)

    @property
    def p99_ms(self) -> float | None:
        """99th percentile of the latency within the service."""
        return self.sample.percentile_ms(0.99)

    @property
    def price_per_thousand(self) -> float | None:
        """What a thousand predictions cost, by the price of a CPU hour; None without a price."""
        cost, price = self.sample.cpu_s_per_thousand, settings.CPU_HOUR_PRICE
        return None if cost is None or price is None else cost / 3600 * price


def live_context(endpoint: Endpoint, window: Window) -> dict[str, Any]:
    """Everything that the fragment needs."""
    until = reported_until()
    since = until - timedelta(seconds=window.span_s)
    samples = traffic(endpoint, since, until, window.step_s)
    recent = traffic(endpoint, until - NOW_SPAN, until, int(NOW_SPAN.total_seconds()))
    deployments = _deployments(endpoint, since)
    shadows = {row.pk for row in deployments if row.role == DeploymentRole.SHADOW}
    asked = [sample for sample in samples if sample.deployment_id not in shadows]
    asked_now = [sample for sample in recent if sample.deployment_id not in shadows]
    answering = [row for row in deployments if row.pk not in shadows]
    champion = next((row for row in answering if row.role == "champion" and row.retired_at is None), None)
    has_traffic = bool(samples) or MetricRollup.objects.of_endpoints([endpoint.pk]).exists()
    grid = _settled(steps(since, until, window.step_s), until)
    in_window = total(asked, since, until)
    return {
        "endpoint": endpoint,
        "champion": champion,
        "window": window,
        "windows": WINDOWS,
        "tiles": _tiles(in_window, total(asked_now, until - NOW_SPAN, until)),
        "charts": charts.live_charts(asked, answering, grid) if has_traffic else [],
        "versions": [_version_traffic(row, samples, in_window, since, until) for row in deployments],
        "currency": settings.CURRENCY,
        "has_price": settings.CPU_HOUR_PRICE is not None,
        "has_traffic": has_traffic,
        "curl": "" if has_traffic or champion is None else curl_command(endpoint, champion),
    }


def curl_command(endpoint: Endpoint, deployment: Deployment) -> str:
    """The command that makes one prediction; the token is the reader's to fill in."""
    body = json.dumps(example_request(deployment.model_version.signature))
    # The shell ends a quoted text at a single quote; tensor names may hold one.
    quoted = body.replace("'", "'\\''")
    return (
        'curl -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json" \\\n'
        f"  -d '{quoted}' \\\n"
        f"  {settings.INFERENCE_URL}/v2/models/{endpoint.name}/infer"
    )


def _deployments(endpoint: Endpoint, since: datetime) -> list[Deployment]:
    """The newest deployments that were active within the window: what answered, then the shadows."""
    rows = endpoint.deployments.filter(Q(retired_at=None) | Q(retired_at__gt=since))
    rows = rows.select_related("model_version__model").order_by("-pk")
    newest = rows.exclude(role=DeploymentRole.SHADOW)[:MAX_LINES]
    answering = sorted(newest, key=lambda row: (row.retired_at is not None, row.role != DeploymentRole.CHAMPION))
    return [*answering, *rows.shadows()[:MAX_LINES]]


def _version_traffic(
    row: Deployment, samples: list[Sample], asked: Sample, since: datetime, until: datetime
) -> VersionTraffic:
    own = total((sample for sample in samples if sample.deployment_id == row.pk), since, until)
    counts = row.role != DeploymentRole.SHADOW and asked.requests
    return VersionTraffic(row, own, 100 * own.requests / asked.requests if counts else None)


def _tiles(over_window: Sample, recent: Sample) -> Tiles:
    return Tiles(
        requests=over_window.requests,
        requests_per_s=recent.requests_per_s,
        p50_ms=over_window.percentile_ms(0.5),
        p95_ms=over_window.percentile_ms(0.95),
        p99_ms=over_window.percentile_ms(0.99),
        error_percent=over_window.error_percent,
    )


def _settled(grid: list[datetime], until: datetime) -> list[datetime]:
    """The steps without a last one that is too short to show."""
    return grid[:-1] if grid and (until - grid[-1]).total_seconds() < _SHORTEST_STEP_S else grid
