"""Counters of a replica: per-second rollups for the console, and the same since the start for Prometheus."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from inference.contracts import LATENCY_BUCKETS_US, Outcome

BUCKETS: Final = len(LATENCY_BUCKETS_US) + 1
MAX_ROLLUPS: Final = 50_000
"""How many rollups wait at most while the database is down; the oldest go first."""


@dataclass(frozen=True, slots=True)
class Rollup:
    """What happened on a deployment within one second. ``second`` is since the epoch."""

    endpoint_id: int
    deployment_id: int
    second: int
    requests: int
    rows: int
    errors: int
    latency_histogram: tuple[int, ...]  # by LATENCY_BUCKETS_US, of the whole time in the service


class Meter:
    """Counts the requests of one deployment. The event loop's thread owns it."""

    __slots__ = ("_errors", "_histogram", "_requests", "_rows", "_totals", "deployment_id", "endpoint_id", "labels")

    def __init__(self, endpoint_id: int, deployment_id: int, labels: str) -> None:
        """``labels`` is the Prometheus label text, bounded by the manifest."""
        self.endpoint_id = endpoint_id
        self.deployment_id = deployment_id
        self.labels = labels
        self._totals = Totals()
        self._clear()

    def _clear(self) -> None:
        self._requests = self._rows = self._errors = 0
        self._histogram = [0] * BUCKETS

    def observe(self, outcome: Outcome, rows: int, total_us: Sequence[int]) -> None:
        """Count a batch: ``rows`` of all its requests together, and each request's time in the service."""
        count = len(total_us)
        self._requests += count
        self._rows += rows
        if outcome != "ok":
            self._errors += count
        outcomes = self._totals.outcomes
        outcomes[outcome] = outcomes.get(outcome, 0) + count
        histogram = self._histogram
        for duration in total_us:
            histogram[bisect_left(LATENCY_BUCKETS_US, duration)] += 1
        self._totals.duration_us += sum(total_us)

    def take(self, second: int) -> Rollup | None:
        """What was counted since the last call, as the rollup of ``second``; None if there was nothing."""
        if not self._requests:
            return None
        histogram = tuple(self._histogram)
        self._totals.add(self._rows, histogram)
        rollup = Rollup(
            self.endpoint_id, self.deployment_id, second, self._requests, self._rows, self._errors, histogram
        )
        self._clear()
        return rollup

    @property
    def totals(self) -> Totals:
        """Everything since the start, up to the last ``take``."""
        return self._totals


class Totals:
    """Sums since the start."""

    __slots__ = ("duration_us", "histogram", "outcomes", "rows")

    def __init__(self) -> None:
        self.outcomes: dict[Outcome, int] = {}
        self.rows = 0
        self.duration_us = 0
        self.histogram = [0] * BUCKETS

    def add(self, rows: int, histogram: Iterable[int]) -> None:
        """Add one second."""
        self.rows += rows
        self.histogram = [known + new for known, new in zip(self.histogram, histogram, strict=True)]


class Metrics:
    """All meters of a replica, by endpoint and deployment."""

    def __init__(self) -> None:
        self._meters: dict[tuple[int, int], Meter] = {}
        self.rollups: deque[Rollup] = deque(maxlen=MAX_ROLLUPS)  # filled by the loop, emptied by the reporter's thread

    def meter(self, endpoint: str, endpoint_id: int, deployment_id: int, model: str, model_version: int) -> Meter:
        """The meter of a deployment; the same one after each manifest."""
        key = (endpoint_id, deployment_id)
        if key not in self._meters:
            labels = f'endpoint="{endpoint}",model="{model}",model_version="{model_version}"'
            labels += f',deployment="{deployment_id}"'
            self._meters[key] = Meter(endpoint_id, deployment_id, labels)
        return self._meters[key]

    def keep(self, keys: Iterable[tuple[int, int]]) -> None:
        """Forget the deployments that are not among ``keys``, so that labels stay bounded."""
        wanted = set(keys)
        for key in [key for key in self._meters if key not in wanted]:
            self._flush(self._meters.pop(key))

    def roll(self) -> None:
        """Close the current second of every meter; called once a second."""
        for meter in self._meters.values():
            self._flush(meter)

    def _flush(self, meter: Meter) -> None:
        rollup = meter.take(int(time.time()))
        if rollup is not None:
            self.rollups.append(rollup)

    def render(self, gauges: dict[str, float]) -> bytes:
        """Prometheus text format 0.0.4. ``gauges`` are values of the whole replica by name."""
        lines = []
        for name, value in gauges.items():
            lines += [f"# TYPE {name} gauge", f"{name} {value:g}"]
        meters = list(self._meters.values())
        lines.append("# TYPE inference_requests_total counter")
        for meter in meters:
            for outcome, count in meter.totals.outcomes.items():
                lines.append(f'inference_requests_total{{{meter.labels},outcome="{outcome}"}} {count}')
        lines.append("# TYPE inference_rows_total counter")
        lines += [f"inference_rows_total{{{meter.labels}}} {meter.totals.rows}" for meter in meters]
        lines.append("# TYPE inference_request_duration_seconds histogram")
        for meter in meters:
            lines += _histogram(meter)
        return ("\n".join(lines) + "\n").encode()


def _histogram(meter: Meter) -> list[str]:
    name, lines, cumulated = "inference_request_duration_seconds", [], 0
    bounds = [f"{bound / 1e6:g}" for bound in LATENCY_BUCKETS_US]
    for bound, count in zip([*bounds, "+Inf"], meter.totals.histogram, strict=True):
        cumulated += count
        lines.append(f'{name}_bucket{{{meter.labels},le="{bound}"}} {cumulated}')
    lines.append(f"{name}_sum{{{meter.labels}}} {meter.totals.duration_us / 1e6:.6f}")
    lines.append(f"{name}_count{{{meter.labels}}} {cumulated}")
    return lines
