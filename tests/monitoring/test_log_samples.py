"""Rows of the log as a dataset, read by the real job, and driven with."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
from django.urls import reverse

from apps.core.errors import DomainError, NotAllowed
from apps.deployments.models import Endpoint
from apps.evaluation.models import Dataset, DatasetVersion
from apps.evaluation.services import start_load_test
from apps.jobs.runner import run_inline
from apps.monitoring import log_samples
from apps.monitoring.log_reader import LogFilter
from apps.monitoring.log_samples import keep_rows
from tests import builders
from tests.conftest import Cast
from tests.monitoring.conftest import Log, rows

pytestmark = pytest.mark.django_db


def read(version: DatasetVersion) -> DatasetVersion:
    """The version after its job."""
    assert version.job is not None
    assert run_inline(version.job).state == "SUCCEEDED"
    version.refresh_from_db()
    assert version.state == "READY", version.rejected_reason
    return version


def kept(cast: Cast, endpoint: Endpoint, **wanted: Any) -> DatasetVersion:
    """As a data scientist keeps rows."""
    return keep_rows(
        cast.actor("data_scientist"), endpoint=endpoint, wanted=LogFilter(**wanted), name="credit-risk-log"
    )


def test_what_callers_sent_drives_a_version(cast: Cast, endpoint: Endpoint, log: Log) -> None:
    """In the browser, from the predictions to a load test that takes three columns."""
    wide = pa.array([[1.0, 2.0, 3.0], [4.0, 5.0, math.nan], [7.0, 8.0, 9.0]], pa.list_(pa.float32()))
    log.segment(endpoint, rows(1, 2, 3), **{"input.x": wide, "output.y": pa.array([1.0, 2.0, 3.0])})
    scientist = cast.browser("data_scientist")
    page = reverse("monitoring:prediction-list", args=[endpoint.name])
    assert "Keep rows as a dataset" in scientist.get(page).content.decode()
    assert "Keep rows as a dataset" not in cast.browser("operator").get(page).content.decode()
    answer = scientist.post(reverse("monitoring:rows-keep", args=[endpoint.name]), {"name": "sent"})
    assert answer.status_code == 302, answer.content.decode()
    version = read(DatasetVersion.objects.get())
    assert answer.url == version.get_absolute_url()
    assert [column["name"] for column in version.schema] == ["x_0", "x_1", "x_2"]
    assert version.row_count == 3
    assert version.profile[2]["nulls"] == 1
    assert version.dataset.description == "Inputs from the inference log of credit-risk"
    test = start_load_test(
        cast.actor("analyst"), model_version=builders.ready_version(cast), dataset_version=version, step_s=1
    )
    assert test.features == ["x_0", "x_1", "x_2"]


def test_only_answered_rows_that_are_stored_whole_are_kept(cast: Cast, endpoint: Endpoint, log: Log) -> None:
    sent = [*rows(1, 2), *rows(3, outcome="rejected"), *rows(4)]
    ages = pa.array([30.0, None, 50.0, 60.0], pa.float32())
    log.segment(endpoint, sent, **{"input.age": ages, "input.city": pa.array(["Rome", "Oslo", "Bonn", "Lyon"])})
    version = read(kept(cast, endpoint))
    assert (version.row_count, {column["name"]: column["type"] for column in version.schema}) == (
        2,
        {"age": "float", "city": "text"},
    )
    assert kept(cast, endpoint, outcome="rejected").number == 2


def test_rows_of_another_shape_than_the_newest_are_left_out(cast: Cast, endpoint: Endpoint, log: Log) -> None:
    old, new = (pa.array([values], pa.list_(pa.float32())) for values in ([1.0], [1.0, 2.0]))
    log.segment(endpoint, rows(1), **{"input.x": old})
    log.segment(endpoint, rows(2), version=2, **{"input.x": new})
    version = read(kept(cast, endpoint))
    assert (version.row_count, len(version.schema)) == (1, 2)


def test_what_is_kept_is_bounded(cast: Cast, endpoint: Endpoint, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    log.segment(endpoint, rows(*range(20)))
    monkeypatch.setattr(log_samples, "MAX_VALUES", 5)
    assert read(kept(cast, endpoint)).row_count == 5
    wide = pa.array([[0.0] * 2_001], pa.list_(pa.float32()))
    log.segment(endpoint, rows(30), **{"input.age": wide})
    with pytest.raises(DomainError, match="2,001 values"):
        kept(cast, endpoint)


def test_who_may_keep_rows_and_what_is_refused(cast: Cast, endpoint: Endpoint, log: Log) -> None:
    scientist, api = cast.browser("data_scientist"), cast.api("data_scientist")
    page = reverse("monitoring:rows-keep", args=[endpoint.name])
    url = f"/api/v1/endpoints/{endpoint.name}/datasets/"
    empty = scientist.post(page, {"name": "sent"})
    assert (empty.status_code, "There is no row to keep" in empty.content.decode()) == (422, True)
    log.segment(endpoint, rows(1, 2))
    assert scientist.post(page, {"name": "No Slug"}).status_code == 422
    assert scientist.post(f"{page}?since=yesterday", {"name": "sent"}).status_code == 422
    assert cast.browser("analyst").post(page, {"name": "sent"}).status_code == 403
    assert cast.browser("outsider").post(page, {"name": "sent"}).status_code == 404
    assert cast.api("outsider").post(url, {"dataset": "sent"}, format="json").status_code == 404
    with pytest.raises(NotAllowed):
        keep_rows(cast.actor("analyst"), endpoint=endpoint, wanted=LogFilter(), name="sent")
    assert not Dataset.objects.exists()
    answer = api.post(f"{url}?model_version=1", {"dataset": "sent"}, format="json")
    assert (answer.status_code, answer.json()["number"]) == (201, 1)
    assert api.post(url, {"dataset": "sent"}, format="json").status_code == 409  # the very same rows
