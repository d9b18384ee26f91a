"""Who answers for a prediction; segments in the audit log; reads of payloads in the audit log."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.urls import reverse
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.deployments.models import Endpoint
from apps.monitoring import sealing
from apps.monitoring.models import LogSegment
from apps.monitoring.provenance import approval_of
from apps.monitoring.sealing import seal_segments, sealed_line, sealing_events
from apps.promotions.models import PromotionRequest
from tests import builders
from tests.conftest import Cast
from tests.monitoring.conftest import NOON, Log, rows


@pytest.fixture
def served(cast: Cast, log: Log) -> PromotionRequest:
    """A promotion that is in service, with one answered request in the log."""
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    request = builders.live_request(cast)
    version = request.model_version
    second = int((timezone.now() - NOON).total_seconds()) + 5
    row = {"at": second, "request_id": "case-7", "artifact_digest": version.artifact.sha256}
    log.segment(request.endpoint, [row], version=version.number, model=version.model.name)
    return request


def test_a_page_says_who_approved_what_answered(cast: Cast, served: PromotionRequest) -> None:
    page = reverse("monitoring:provenance", args=[served.endpoint.name])
    text = cast.browser("analyst").get(page, {"request_id": "case-7"}).text
    assert f"Request {served.pk}" in text
    assert "Mira Sato" in text
    assert "Cora Blom" in text
    assert served.evidence_digest in text
    assert "Not in the log" in cast.browser("analyst").get(page, {"request_id": "case-8"}).text
    assert "Nothing served then" in cast.browser("analyst").get(page, {"at": "2020-01-01T00:00"}).text
    both = cast.browser("analyst").get(page, {"request_id": "x", "at": "2020-01-01T00:00"})
    assert both.status_code == 422


def test_the_api_gives_the_same_answers(cast: Cast, served: PromotionRequest) -> None:
    api, address = cast.api("compliance_officer"), f"/api/v1/endpoints/{served.endpoint.name}/provenance/"
    (answer,) = api.get(address, {"request_id": "case-7"}).json()
    assert answer["artifact_digest"] == served.artifact_digest
    assert answer["approval"]["promotion_request"] == served.pk
    assert answer["approval"]["requested_by"] == "Mira Sato"
    assert [one["name"] for one in answer["approval"]["signed_by"]] == ["Cora Blom"]
    assert answer["approval"]["bound"]["evidence_digest"] == served.evidence_digest
    now = (timezone.now() + timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%S")
    (serving,) = api.get(address, {"at": now}).json()
    assert (serving["role"], serving["weight"]) == ("champion", 100)
    assert api.get(address, {"at": "2020-01-01T00:00"}).json() == []
    assert api.get(address, {"request_id": "case-8"}).status_code == 404
    assert api.get(address).status_code == 422


def test_what_was_decided_later_is_not_in_the_answer(cast: Cast, served: PromotionRequest) -> None:
    """The audit log as it was at the moment, not as it is."""
    submitted = AuditEvent.objects.get(action="promotion.submitted")
    assert submitted.at is not None
    approval = approval_of(served.endpoint, served.pk, submitted.at)
    assert approval is not None
    assert [event.action for event in approval.events] == ["promotion.submitted"]
    assert approval.signatures == []


def test_segments_enter_the_audit_log_in_batches(
    cast: Cast, endpoint: Endpoint, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "_PER_EVENT", 2)
    segments = [log.segment(endpoint, rows(second)) for second in (1, 2, 3)]
    assert seal_segments() == 0
    LogSegment.objects.update(created_at=timezone.now() - sealing.SEAL_AFTER)
    assert seal_segments() == 3
    assert seal_segments() == 0
    events = list(AuditEvent.objects.filter(action="inference_log.sealed").order_by("pk"))
    assert [event.document["after"]["rows"] for event in events] == [2, 1]
    assert events[0].document["after"]["segments"][0] == sealed_line(segments[0])
    assert segments[0].sha256 in events[0].body
    fresh = list(LogSegment.objects.order_by("pk"))
    assert sealing_events(fresh)[fresh[2].pk] == events[1]
    LogSegment.objects.filter(pk=fresh[0].pk).update(sha256="0" * 64)
    assert fresh[0].pk not in sealing_events(list(LogSegment.objects.order_by("pk")))


def test_a_batch_of_long_paths_fits_into_an_event(cast: Cast, endpoint: Endpoint, log: Log) -> None:
    segment = log.segment(endpoint, rows(1))
    LogSegment.objects.filter(pk=segment.pk).update(path=f"segments/{'e' * 63}/2026-03-04/{'f' * 71}.parquet")
    line = sealed_line(LogSegment.objects.get()) + f" of 4000 parts {'0' * 64}"
    assert sealing._PER_EVENT * (len(line) + 3) < 8_192


@pytest.mark.parametrize(
    ("page", "action"),
    [
        ("/endpoints/credit-risk/predictions/", "inference_log.viewed"),
        ("/endpoints/credit-risk/predictions/r1/", "prediction.viewed"),
        ("/endpoints/credit-risk/predictions.jsonl", "inference_log.exported"),
        ("/api/v1/endpoints/credit-risk/predictions/", "inference_log.viewed"),
        ("/api/v1/endpoints/credit-risk/predictions/r1/", "prediction.viewed"),
        ("/api/v1/endpoints/credit-risk/prediction-export/", "inference_log.exported"),
    ],
)
def test_reading_payloads_is_one_event(cast: Cast, endpoint: Endpoint, log: Log, page: str, action: str) -> None:
    log.segment(endpoint, rows(1, 2, 3))
    client: Any = cast.api("analyst") if page.startswith("/api/") else cast.browser("analyst")
    answer = client.get(page)
    assert answer.status_code == 200
    event = AuditEvent.objects.get(action=action)
    assert (event.actor_name, event.object_label) == ("Ana Lyst", "credit-risk")


def test_a_page_without_payloads_is_no_read(cast: Cast, endpoint: Endpoint) -> None:
    cast.browser("analyst").get("/endpoints/credit-risk/predictions/")
    cast.browser("analyst").get("/endpoints/credit-risk/predictions/r1/?attempt=1")
    assert not AuditEvent.objects.filter(action__contains="viewed").exists()
