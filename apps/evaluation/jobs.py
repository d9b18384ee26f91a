"""The jobs: reading an upload, scoring a model on a dataset, and driving a model to see what it can do."""

from __future__ import annotations

import hashlib
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.files import File
from django.core.files.storage import default_storage
from django.db import connection, transaction

from apps.core.errors import DomainError
from apps.evaluation import intake
from apps.evaluation.models import DatasetVersion, DatasetVersionState, EvaluationRun, LoadTest
from apps.evaluation.request_rows import dataset_requests, example_requests
from apps.evaluation.scoring import measure_drift, score
from apps.evaluation.services import (
    MAX_DRIFT_COLUMNS,
    accept_dataset_version,
    finish_evaluation,
    finish_load_test,
    plan_of,
    reject_dataset_version,
)
from apps.jobs.runner import JobRun, job
from inference.contracts import Signature
from inference.load_generator import LoadFailed
from inference.load_test import Candidate, LoadPlan, remove_leftovers, run_load_test


@job("evaluation.profile_dataset", timeout_s=3_600, max_attempts=2)
def profile_dataset(run: JobRun, *, dataset_version_id: int) -> dict[str, Any]:
    """Convert an upload to typed Parquet and describe it, or reject it with the reason. Idempotent."""
    version = DatasetVersion.objects.select_related("dataset__team").get(pk=dataset_version_id)
    if version.state != DatasetVersionState.VALIDATING:
        return {"state": version.state}
    run.progress(0.01, "Checking the digest")
    try:
        with tempfile.TemporaryDirectory(dir=settings.FILE_UPLOAD_TEMP_DIR, prefix="profile-") as name:
            accepted = _read_and_store(run, version, Path(name))
    except DomainError as error:
        reject_dataset_version(run.actor, dataset_version=version, reason=error.message)
        run.log(f"Rejected: {error.message}")
        return {"state": DatasetVersionState.REJECTED, "reason": error.message}
    accept_dataset_version(run.actor, dataset_version=version, **accepted)
    run.log(f"{accepted['row_count']:,} rows, {len(accepted['schema']):,} columns")
    return {"state": DatasetVersionState.READY}


@job("evaluation.evaluate", timeout_s=2 * 3_600, max_attempts=2)
def evaluate(run: JobRun, *, run_id: int) -> dict[str, Any]:
    """Score the model version on the dataset version and write the metrics. Idempotent."""
    related = (
        "model_version__model__team",
        "model_version__artifact",
        "dataset_version__dataset",
        "reference__dataset",
    )
    evaluation = EvaluationRun.objects.select_related(*related).get(pk=run_id)
    if evaluation.finished_at is not None:
        return {"rows": evaluation.row_count}
    model_version, dataset_version = evaluation.model_version, evaluation.dataset_version
    run.progress(0.01, "Checking the digests")
    artifact = _checked(model_version.artifact.path, model_version.artifact.sha256)
    stored = _checked(dataset_version.path, dataset_version.stored_sha256)
    rows = dataset_version.row_count or 0
    plan = plan_of(
        model_version=model_version,
        dataset_version=dataset_version,
        target=evaluation.target,
        features=evaluation.features,
    )
    report, row_count = score(
        artifact=artifact,
        stored=stored,
        plan=plan,
        row_count=rows,
        is_batchable=model_version.validation.get("is_batchable", True),
        slice_by=evaluation.slice_by,
        progress=lambda done: run.progress(0.05 + 0.85 * done / rows, f"{done:,} of {rows:,} rows"),
    )
    drift = _drift(run, evaluation, stored, plan.features)
    with transaction.atomic():
        # The log line goes through the fencing token: an attempt that lost its lease stops here and writes nothing.
        run.log(f"{row_count:,} rows scored; {rows - row_count:,} without a target left out")
        finish_evaluation(run.actor, run=evaluation, report=report, row_count=row_count, drift=drift)
    return {"rows": row_count}


def _drift(run: JobRun, evaluation: EvaluationRun, stored: Path, features: list[str]) -> dict[str, Any] | None:
    """How far the rows are from the reference data, by feature, the farthest first; None without a reference."""
    reference = evaluation.reference
    if reference is None:
        return None
    run.progress(0.92, "Comparing with the reference")
    known = {column["name"] for column in reference.schema}
    columns = [name for name in features if name in known][:MAX_DRIFT_COLUMNS]
    found = measure_drift(_checked(reference.path, reference.stored_sha256), stored, columns)
    ordered = sorted(found.items(), key=lambda one: (-one[1], one[0]))
    return {
        "reference": {"name": reference.dataset.name, "number": reference.number, "sha256": reference.sha256},
        "columns": [{"column": name, "psi": psi} for name, psi in ordered],
        "max_psi": ordered[0][1] if ordered else None,
    }


@job("evaluation.load_test", timeout_s=2 * 3_600, max_attempts=2)
def load_test(run: JobRun, *, load_test_id: int) -> dict[str, Any]:
    """Serve the version beside what serves, drive it, and write what it can do. Idempotent."""
    related = ("model_version__model__team", "model_version__artifact", "dataset_version__dataset")
    test = LoadTest.objects.select_related(*related).get(pk=load_test_id)
    if test.finished_at is not None:
        return {"capacity": test.capacity}
    version = test.model_version
    run.progress(0.0, "Checking the digests")
    artifact = _checked(version.artifact.path, version.artifact.sha256)
    signature = Signature.from_dict(version.signature or {})
    if test.dataset_version is None:
        requests = example_requests(signature)
    else:
        stored = _checked(test.dataset_version.path, test.dataset_version.stored_sha256)
        schema = test.dataset_version.schema
        requests = dataset_requests(stored, signature=signature, schema=schema, features=test.features)
    candidate = Candidate(artifact, version.artifact.sha256, version.model.name, version.number, signature)
    plan = LoadPlan(
        float(test.step_s), test.max_concurrency, "poisson" if test.arrivals == "poisson" else "constant", test.slo_rate
    )
    folder = Path(settings.FILE_UPLOAD_TEMP_DIR)
    try:
        with _only_one_here(run):
            remove_leftovers(folder)  # of a job that was killed: nobody else's, as nobody else runs
            result = run_load_test(candidate, requests, plan, folder=folder, progress=run.progress)
    except LoadFailed as error:
        raise DomainError(str(error)) from error
    with transaction.atomic():
        # Through the fencing token, as above.
        run.log(f"Up to {result['capacity']:,.0f} requests/s")
        finish_load_test(run.actor, test=test, result=result)
    return {"capacity": result["capacity"]}


@contextmanager
def _only_one_here(run: JobRun) -> Iterator[None]:
    """Two load tests at once would falsify each other: wait until no other runs on this host."""
    name = f"load test on {platform.node()}"
    with connection.cursor() as cursor:
        while True:
            cursor.execute("SELECT pg_try_advisory_lock(hashtext(%s))", [name])
            if cursor.fetchone() == (True,):
                break
            run.progress(0.0, "Waiting for another load test on this host to end")
            time.sleep(1)
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock(hashtext(%s))", [name])


def _read_and_store(run: JobRun, version: DatasetVersion, folder: Path) -> dict[str, Any]:
    upload = _checked(version.original_path, version.sha256)
    parquet, columns = intake.convert(upload, folder, run.progress)
    row_count, profile = intake.profile(parquet, columns, folder, run.progress)
    digest = _digest(parquet)
    path = f"datasets/{digest[:2]}/{digest}.parquet"
    if not default_storage.exists(path):
        with parquet.open("rb") as file:
            path = default_storage.save(path, File(file))
    return {"path": path, "stored_sha256": digest, "row_count": row_count, "schema": columns, "profile": profile}


def _checked(path: str, sha256: str) -> Path:
    """The file in the store; raises ``DomainError`` unless its bytes are the ones that were recorded."""
    found = Path(default_storage.path(path))
    if not found.exists() or _digest(found) != sha256:
        raise DomainError("The stored bytes are not those that were recorded. Upload the file again.")
    return found


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
