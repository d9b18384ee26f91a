"""Endpoints with deployments, rollups and Parquet segments, as the inference service leaves them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from django.conf import settings
from django.db import connection

from apps.deployments.models import Deployment, Endpoint
from apps.monitoring.models import LogSegment
from apps.registry.models import Artifact, ModelVersion, RegisteredModel
from inference.contracts import LATENCY_BUCKETS_US
from inference.reconciler import ADD_ROLLUP
from tests import builders
from tests.conftest import Cast

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
SIGNATURE = {
    "inputs": [{"name": "age", "datatype": "FP32", "shape": [-1, 1]}],
    "outputs": [{"name": "score", "datatype": "FP32", "shape": [-1, 1]}],
}
_files = count(1)


@pytest.fixture
def endpoint(cast: Cast) -> Endpoint:
    """An endpoint of the team."""
    return builders.endpoint(cast, "credit-risk")


def deploy(cast: Cast, endpoint: Endpoint, number: int, activated_at: datetime, **fields: Any) -> Deployment:
    """A version on an endpoint, put there without the ceremony that other tests are about."""
    model, _ = RegisteredModel.objects.get_or_create(
        team=cast.team, name="risk", defaults={"task": "REGRESSION", "created_by": cast.data_scientist.user}
    )
    sha256 = hashlib.sha256(str(number).encode()).hexdigest()
    artifact, _ = Artifact.objects.get_or_create(sha256=sha256, defaults={"size_bytes": 1, "path": "artifacts/x"})
    version, _ = ModelVersion.objects.get_or_create(
        model=model,
        number=number,
        defaults={
            "artifact": artifact,
            "state": "READY",
            "signature": SIGNATURE,
            "file_name": "model.onnx",
            "uploaded_by": cast.data_scientist.user,
        },
    )
    return Deployment.objects.create(
        endpoint=endpoint,
        model_version=version,
        promotion_request_id=1,
        activated_by="Omar Reyes",
        activated_at=activated_at,
        **fields,
    )


def roll_up(
    deployment: Deployment,
    second: datetime,
    latencies_us: Sequence[int],
    *,
    errors: int = 0,
    replica: str = "a",
    cpu_us: int = 0,
    guardrails: dict[str, int] | None = None,
) -> None:
    """One second of a replica, inserted as the inference service does it: without an id."""
    histogram = [0] * (len(LATENCY_BUCKETS_US) + 1)
    for latency in latencies_us:
        histogram[next((i for i, bound in enumerate(LATENCY_BUCKETS_US) if latency <= bound), -1)] += 1
    with connection.cursor() as cursor:
        cursor.execute(
            ADD_ROLLUP,
            [
                deployment.endpoint_id,
                deployment.pk,
                second.timestamp(),
                replica,
                len(latencies_us),
                len(latencies_us),
                errors,
                deployment.role == "shadow",
                cpu_us,
                json.dumps(guardrails or {}),
                histogram,
            ],
        )


@dataclass
class Log:
    """Writes segments and takes them away again."""

    written: list[Path]

    def segment(
        self,
        endpoint: Endpoint,
        rows: Sequence[dict[str, Any]],
        *,
        version: int = 1,
        model: str = "risk",
        is_old: bool = False,
        **tensors: pa.Array,
    ) -> LogSegment:
        """A segment of ``rows`` (reserved columns by name; ``at`` is seconds after noon) with these tensor columns.

        An old one lacks the columns that came later.
        """
        received = [NOON + timedelta(seconds=row["at"]) for row in rows]
        table = pa.table(
            {
                "request_id": pa.array([row.get("request_id", f"r{row['at']}") for row in rows]),
                "row": pa.array([row.get("row", 0) for row in rows], pa.int32()),
                "endpoint": pa.array([endpoint.name] * len(rows)),
                "model": pa.array([model] * len(rows)),
                "model_version": pa.array([version] * len(rows), pa.int32()),
                "artifact_digest": pa.array([row.get("artifact_digest", f"{version:02x}" * 32) for row in rows]),
                "role": pa.array([row.get("role", "champion") for row in rows]),
                "received_at": pa.array(received, pa.timestamp("us", "UTC")),
                "queue_us": pa.array([10] * len(rows), pa.int64()),
                "run_us": pa.array([100] * len(rows), pa.int64()),
                "total_us": pa.array([1500] * len(rows), pa.int64()),
                "batch_size": pa.array([1] * len(rows), pa.int32()),
                "outcome": pa.array([row.get("outcome", "ok") for row in rows]),
                "error": pa.array([row.get("error") for row in rows], pa.string()),
                "token_id": pa.array([row.get("token_id", 0) for row in rows], pa.int64()),
            }
            | ({} if is_old else _later_columns(rows))
            | (tensors or {"input.age": pa.array([float(row["at"]) for row in rows], pa.float32())})
        )
        path = f"segments/{endpoint.name}/2026-03-04/{next(_files)}.parquet"
        file = settings.INSTALLATION.store / path
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, file, compression="zstd")
        self.written.append(file)
        return LogSegment.objects.create(
            path=path,
            sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
            endpoint_id=endpoint.pk,
            endpoint=endpoint.name,
            model_version=version,
            started_at=min(received),
            ended_at=max(received),
            row_count=len(rows),
            size_bytes=file.stat().st_size,
        )


def _later_columns(rows: Sequence[dict[str, Any]]) -> dict[str, pa.Array]:
    return {
        "guardrails": pa.array([row.get("guardrails") for row in rows], pa.list_(pa.string())),
        "traceparent": pa.array([row.get("traceparent") for row in rows], pa.string()),
    }


@pytest.fixture
def log() -> Iterator[Log]:
    """The inference log of one test."""
    log = Log([])
    yield log
    for file in log.written:
        file.unlink(missing_ok=True)


def rows(*seconds: int, **columns: Any) -> list[dict[str, Any]]:
    """Rows received so many seconds after noon."""
    return [{"at": second, **columns} for second in seconds]
