"""From an answer to the console: a real inference process logs it, and the console finds it by its request id.

Nothing is put in the place of anything: the console publishes the manifest, ``python -m inference`` follows it, spools,
ships to Parquet and registers, and the REST API reads the log back.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow.parquet as pq
import pytest
from django.conf import settings
from django.db import connection
from django.utils import timezone
from psycopg.conninfo import make_conninfo
from rest_framework.test import APIClient

from apps.accounts.models import ApiToken
from apps.deployments.manifest import publish_manifest
from apps.deployments.models import Deployment
from apps.monitoring.log_reader import is_intact
from apps.monitoring.models import LogSegment, MetricRollup
from inference.contracts import LATENCY_BUCKETS_US, RESERVED_LOG_COLUMNS
from tests import builders
from tests.conftest import Cast
from tests.inference import onnx_models
from tests.inference.installation import Service, row, tensor, wait_for

pytestmark = pytest.mark.django_db(transaction=True)

Serve = Callable[..., "Live"]


class Live:
    """An endpoint that answers, and the console's view of it."""

    def __init__(self, service: Service, deployment: Deployment, token: str) -> None:
        self.service = service
        self.deployment = deployment
        self.name = deployment.endpoint.name
        self.token = token
        self.api = APIClient()
        self.api.credentials(HTTP_AUTHORIZATION=f"Bearer {token}")

    def infer(self, document: dict[str, Any], request_id: str) -> int:
        """Ask for a prediction; the HTTP status."""
        headers = {"Authorization": f"Bearer {self.token}", "X-Request-ID": request_id}
        return self.service.infer(self.name, document, headers=headers).status_code

    def logged(self, request_id: str) -> list[dict[str, Any]]:
        """The log's rows of a request, awaited."""
        url = f"/api/v1/endpoints/{self.name}/predictions/{quote(request_id, safe='')}/"
        wait_for(lambda: self.api.get(url).status_code == 200, 15, self.service.log)
        results: list[dict[str, Any]] = self.api.get(url).json()["results"]
        return results


@pytest.fixture
def serve(cast: Cast) -> Iterator[Serve]:
    """Promote a model with everything that belongs to it, start the inference service, and wait for its answer."""
    services: list[Service] = []

    def start(content: bytes, probe: dict[str, Any]) -> Live:
        token = cast.token("operator")
        request = builders.live_request(cast, builders.ready_version(cast, content=content))
        deployment = Deployment.objects.select_related(
            "endpoint", "model_version__model", "model_version__artifact"
        ).get(pk=request.deployment_id)
        publish_manifest()
        parameters = connection.get_connection_params()
        names = ("dbname", "user", "password", "host", "port")
        environment = {
            "COUNTERSIGN_DATABASE_DSN": make_conninfo(
                "", **{name: parameters[name] for name in names if name in parameters}
            ),
            "INFERENCE_SEAL_S": "0.2",
            "INFERENCE_POLL_S": "0.1",
        }
        service = Service(SimpleNamespace(var=settings.INSTALLATION.var_dir), environment)  # type: ignore[arg-type]
        services.append(service)
        service.start()
        live = Live(service, deployment, token)
        wait_for(lambda: live.infer(probe, "probe") == 200, 15, service.log)
        return live

    yield start
    for service in services:
        service.stop()
    # The next test begins with an empty database: a replica must not remember this one's manifest.
    for folder in ("cache", "spool", "store/segments"):
        shutil.rmtree(settings.INSTALLATION.var_dir / folder, ignore_errors=True)


def test_an_answer_is_found_by_its_request_id(serve: Serve) -> None:
    live = serve(builders.linear_onnx(2.0), row(0, 0, 0))
    before = timezone.now()
    asked = {"inputs": [tensor("x", "FP32", [2, 3], [1, 2, 3, 4, 5, 6])]}
    request_id = "order/17?a=b&c#%41"  # whatever a client may choose
    assert live.infer(asked, request_id) == 200

    second, first = live.logged(request_id)

    version = live.deployment.model_version
    assert [(line["row"], line["inputs"], line["outputs"]) for line in (first, second)] == [
        (0, {"x": [1.0, 2.0, 3.0]}, {"y": 12.0}),
        (1, {"x": [4.0, 5.0, 6.0]}, {"y": 30.0}),
    ]
    expected = {
        "request_id": request_id,
        "endpoint": live.name,
        "model": version.model.name,
        "model_version": version.number,
        "artifact_digest": version.artifact.sha256,
        "role": "champion",
        "outcome": "ok",
        "error": None,
        "token_id": ApiToken.objects.get().pk,
    }
    assert expected.items() <= first.items()
    assert before - timedelta(seconds=1) < datetime.fromisoformat(first["received_at"]) < timezone.now()
    assert first["total_us"] >= first["run_us"] > 0
    assert first["batch_size"] >= 2


def test_segments_hold_what_the_contract_names(serve: Serve) -> None:
    live = serve(builders.linear_onnx(3.0), row(0, 0, 0))
    live.infer(row(1, 1, 1), "one")
    live.logged("one")

    segments = list(LogSegment.objects.of_endpoint(live.deployment.endpoint_id))
    assert sum(segment.row_count for segment in segments) == 2
    for segment in segments:
        path = settings.INSTALLATION.store / segment.path
        schema = pq.read_schema(path)
        assert schema.names == [*RESERVED_LOG_COLUMNS, "input.x", "output.y"]
        assert str(schema.field("received_at").type) == "timestamp[us, tz=UTC]"
        assert is_intact(segment)
        path.write_bytes(path.read_bytes()[:-1] + b"!")
        assert not is_intact(segment)


def test_a_request_that_the_model_failed_on_is_logged_with_its_error(serve: Serve) -> None:
    live = serve(onnx_models.pick(4), {"inputs": [tensor("x", "INT64", [1], [1])]})
    assert live.infer({"inputs": [tensor("x", "INT64", [1], [99])]}, "beyond") >= 400

    (line,) = live.logged("beyond")

    assert line["outcome"] == "failed"
    assert line["error"]
    assert line["inputs"] == {"x": 99}
    assert line["outputs"] == {"y": None}


def test_a_tensor_over_the_cap_is_logged_by_its_digest(serve: Serve) -> None:
    width = 20_000  # 80 kB a row; the cap is 64 KiB
    live = serve(builders.linear_onnx(6.0, width=width), row(*[0.0] * width))
    values = np.arange(width, dtype="<f4")
    assert live.infer({"inputs": [tensor("x", "FP32", [1, width], values.tolist())]}, "wide") == 200

    (line,) = live.logged("wide")

    digest = hashlib.sha256(values.tobytes()).hexdigest()
    assert line["inputs"] == {"x": {"values": None, "shape": [width], "digest": digest}}
    assert line["outputs"] == {"y": pytest.approx(6.0 * values.sum(dtype="f8"), rel=1e-4)}


def test_requests_are_counted_by_the_second(serve: Serve) -> None:
    live = serve(builders.linear_onnx(4.0), row(0, 0, 0))
    for number in range(5):
        live.infer({"inputs": [tensor("x", "FP32", [2, 3], [1.0] * 6)]}, f"count-{number}")

    def counted() -> tuple[int, int]:
        rollups = MetricRollup.objects.filter(deployment_id=live.deployment.pk)
        return sum(one.requests for one in rollups), sum(one.rows for one in rollups)

    wait_for(lambda: counted() == (6, 11), 10, live.service.log)  # five and the probe
    for rollup in MetricRollup.objects.all():
        assert rollup.endpoint_id == live.deployment.endpoint_id
        assert len(rollup.latency_histogram) == len(LATENCY_BUCKETS_US) + 1
        assert sum(rollup.latency_histogram) == rollup.requests


def test_what_was_answered_before_a_kill_is_in_the_log_once(serve: Serve) -> None:
    live = serve(builders.linear_onnx(5.0), row(0, 0, 0))
    answered = [f"kill-{number}" for number in range(40) if live.infer(row(number, 0, 0), f"kill-{number}") == 200]
    os.kill(live.service.child("replica"), signal.SIGKILL)

    assert len(answered) == 40
    live.logged(answered[-1])
    url = f"/api/v1/endpoints/{live.name}/predictions/?since=2026-01-01"
    found = [line["request_id"] for line in live.api.get(url).json()["results"]]
    assert sorted(found) == sorted([*answered, "probe"])
