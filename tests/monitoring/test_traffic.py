"""Traffic summed up by the database."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from apps.deployments.models import Endpoint
from apps.monitoring import services
from apps.monitoring.models import MetricRollup
from apps.monitoring.traffic import endpoint_totals, reported_until, traffic
from tests.conftest import Cast
from tests.monitoring.conftest import NOON, deploy, roll_up


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def test_a_step_sums_seconds_and_replicas_of_each_deployment(cast: Cast, endpoint: Endpoint) -> None:
    old = deploy(cast, endpoint, 1, at(-60), retired_at=at(10))
    new = deploy(cast, endpoint, 2, at(10))
    roll_up(old, at(0), [1_000, 1_000], replica="a")
    roll_up(old, at(0), [1_000] * 7, errors=3, replica="b")
    roll_up(old, at(4), [60_000])
    roll_up(new, at(11), [2_000] * 5)

    with CaptureQueriesContext(
        connection,
    ) as queries:
        samples = traffic(endpoint, at(0), at(20), 5)

    assert len(queries) == 1
    assert [(sample.at, sample.deployment_id, sample.requests) for sample in samples] == [
        (at(0), old.pk, 10),
        (at(10), new.pk, 5),
    ]
    assert samples[0].requests_per_s == 2.0
    assert samples[0].error_percent == 30.0
    assert samples[0].percentile_ms(0.5) == pytest.approx(1.0, rel=0.45)
    assert samples[0].percentile_ms(0.99) == pytest.approx(60.0, rel=0.45)


def test_what_a_replica_tells_twice_of_one_second_adds_up(cast: Cast, endpoint: Endpoint) -> None:
    deployment = deploy(cast, endpoint, 1, at(-60))
    roll_up(deployment, at(0), [1_000, 60_000], cpu_us=5, guardrails={"age": 2, "income": 1})
    roll_up(deployment, at(0), [1_000], errors=1, cpu_us=7, guardrails={"age": 3})

    rollup = MetricRollup.objects.get()

    assert (rollup.requests, rollup.rows, rollup.errors, rollup.cpu_us) == (3, 3, 1, 12)
    assert rollup.guardrails == {"age": 5, "income": 1}
    assert sum(rollup.latency_histogram) == 3


def test_the_window_is_half_open_and_a_cut_step_counts_only_what_it_covers(cast: Cast, endpoint: Endpoint) -> None:
    deployment = deploy(cast, endpoint, 1, at(-60))
    for second in range(-1, 13):
        roll_up(deployment, at(second), [1_000] * 4)

    samples = traffic(endpoint, at(0), at(12), 5)

    assert [sample.requests for sample in samples] == [20, 20, 8]
    assert [sample.requests_per_s for sample in samples] == [4.0, 4.0, 4.0]


def test_another_endpoints_traffic_is_not_counted(cast: Cast, endpoint: Endpoint) -> None:
    other = Endpoint.objects.create(team=cast.team, name="other", created_by=cast.operator.user)
    roll_up(deploy(cast, other, 1, at(-60)), at(0), [1_000])

    assert traffic(endpoint, at(-60), at(60), 5) == []


def test_totals_of_many_endpoints_in_one_query(cast: Cast, endpoint: Endpoint) -> None:
    quiet = Endpoint.objects.create(team=cast.team, name="quiet", created_by=cast.operator.user)
    deployment = deploy(cast, endpoint, 1, at(-60))
    now = reported_until()
    roll_up(deployment, now - timedelta(seconds=3), [5_000] * 20, errors=5)
    roll_up(deployment, now - timedelta(minutes=30), [5_000] * 80)

    with CaptureQueriesContext(connection) as queries:
        totals = endpoint_totals([endpoint.pk, quiet.pk], now - timedelta(hours=1))

    assert len(queries) == 1
    busy = totals[endpoint.pk]
    assert (busy.requests, busy.errors, busy.requests_per_s, busy.error_percent) == (100, 5, 2.0, 5.0)
    assert busy.p99_ms == pytest.approx(5.0, rel=0.45)
    assert 60 <= len(busy.rates) <= 61
    assert sum(1 for rate in busy.rates if rate) == 2
    assert (totals[quiet.pk].requests, totals[quiet.pk].p99_ms, totals[quiet.pk].error_percent) == (0, None, None)
    assert len(totals[quiet.pk].rates) == len(busy.rates)


def test_old_rollups_go_in_bounded_batches(cast: Cast, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = deploy(cast, endpoint, 1, at(-60))
    now = timezone.now()
    for hours in range(47, 54):
        roll_up(deployment, now - timedelta(hours=hours, minutes=1), [1_000])
    monkeypatch.setattr(services, "_BATCH", 2)
    monkeypatch.setattr(services, "_MAX_BATCHES", 2)

    assert services.prune_rollups() == 4
    assert services.prune_rollups() == 2
    assert services.prune_rollups() == 0
    assert MetricRollup.objects.get().second > now - services.ROLLUP_RETENTION
