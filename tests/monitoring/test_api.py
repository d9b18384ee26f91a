"""The inference log over REST."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from django.urls import reverse

from apps.deployments.models import Endpoint
from apps.monitoring import export
from tests.conftest import Cast
from tests.monitoring.conftest import Log, rows


def url(endpoint: Endpoint, request_id: str = "") -> str:
    if request_id:
        return reverse("api:prediction-detail", args=[endpoint.name, request_id])
    return reverse("api:prediction-list", args=[endpoint.name])


def test_pages_of_predictions(cast: Cast, endpoint: Endpoint, log: Log) -> None:
    log.segment(endpoint, rows(*range(60)))
    log.segment(endpoint, rows(100, outcome="failed"))
    api = cast.api("analyst")

    first = api.get(url(endpoint)).json()
    assert len(first["results"]) == 50
    assert first["results"][0]["outcome"] == "failed"
    assert first["unreadable_segments"] == []
    second = api.get(url(endpoint), {"before": first["next"]}).json()
    assert len(second["results"]) == 11
    assert second["next"] is None
    assert len(api.get(url(endpoint), {"outcome": "failed"}).json()["results"]) == 1


def exported(answer: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in b"".join(answer.streaming_content).splitlines()]


def test_a_span_is_exported_as_json_lines(cast: Cast, endpoint: Endpoint, log: Log) -> None:
    log.segment(endpoint, rows(*range(60)), is_old=True)
    log.segment(endpoint, rows(100, outcome="failed"))
    address = reverse("api:prediction-export-list", args=[endpoint.name])
    span = {"since": "2026-03-04T12:00:10Z", "until": "2026-03-04T12:00:39Z"}

    answer = cast.api("analyst").get(address, span)

    assert answer["Content-Type"] == "application/x-ndjson"
    *predictions, last = exported(answer)
    assert [one["request_id"] for one in predictions] == [f"r{second}" for second in range(39, 9, -1)]
    assert predictions[0]["inputs"] == {"age": 39.0}
    assert last == {"rows": 30, "next": None, "unreadable_segments": [], "error": None}
    page = cast.browser("analyst").get(reverse("monitoring:prediction-export", args=[endpoint.name]))
    assert len(exported(page)) == 62
    assert cast.api("analyst").get(address, {"since": "x"}).status_code == 422


def test_an_export_ends_somewhere_and_says_where(
    cast: Cast, endpoint: Endpoint, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.segment(endpoint, rows(*range(25)))
    monkeypatch.setattr(export, "MAX_ROWS", 10)
    monkeypatch.setattr(export, "_PAGE", 4)
    api, address = cast.api("analyst"), reverse("api:prediction-export-list", args=[endpoint.name])
    *found, last = exported(api.get(address))
    while last["next"]:
        *more, last = exported(api.get(address, {"before": last["next"]}))
        assert len(more) <= 10
        found += more
    assert [one["request_id"] for one in found] == [f"r{second}" for second in range(24, -1, -1)]


def test_one_request_with_its_tensors(cast: Cast, endpoint: Endpoint, log: Log) -> None:
    log.segment(
        endpoint,
        rows(1, request_id="a/b"),
        **{"input.age": pa.array([float("nan")]), "output.score": pa.array([[0.25, 0.75]])},
    )

    (found,) = cast.api("analyst").get(url(endpoint, "a/b")).json()["results"]

    assert found["received_at"] == "2026-03-04T12:00:01Z"
    assert (found["model"], found["model_version"], found["token_id"]) == ("risk", 1, 0)
    assert found["inputs"] == {"age": "nan"}
    assert found["outputs"] == {"score": [0.25, 0.75]}


def test_a_request_that_is_not_there(cast: Cast, endpoint: Endpoint) -> None:
    response = cast.api("analyst").get(url(endpoint, "nobody"))
    assert response.status_code == 404
    assert "a few seconds" in response.json()["detail"]


@pytest.mark.parametrize("query", [{"since": "x"}, {"outcome": "' OR 1=1"}, {"before": "x"}, {"model_version": "-1"}])
def test_a_filter_that_is_none_is_a_problem_document(cast: Cast, endpoint: Endpoint, query: dict[str, str]) -> None:
    response = cast.api("analyst").get(url(endpoint), query)
    assert response.status_code == 422
    assert response["Content-Type"] == "application/problem+json"
    assert response.json()["errors"][0]["pointer"] == f"/{next(iter(query))}"


def test_another_teams_endpoint_is_not_found(cast: Cast, endpoint: Endpoint, log: Log) -> None:
    log.segment(endpoint, rows(1, request_id="x"))
    assert cast.api("outsider").get(url(endpoint)).status_code == 404
    assert cast.api("outsider").get(url(endpoint, "x")).status_code == 404
