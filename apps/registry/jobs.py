"""The validation job. Runs in a process of the worker's; the model itself is only ever opened in one more."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from django.core.files.storage import default_storage

from apps.jobs.runner import JobRun, job
from apps.registry.models import ModelVersion, ModelVersionState
from apps.registry.services import accept_version, reject_version
from inference.errors import ArtifactRejected
from inference.sandbox import SandboxLimits, validate_artifact

LIMITS = SandboxLimits()


@job("registry.validate_model_version", timeout_s=LIMITS.wall_s + 180, max_attempts=3)
def validate_model_version(run: JobRun, *, model_version_id: int) -> dict[str, Any]:
    """Mark a version READY with its signature, or REJECTED with the reason. A second run changes nothing."""
    version = ModelVersion.objects.select_related("artifact", "model__team").get(pk=model_version_id)
    if version.state != ModelVersionState.VALIDATING:
        return {"state": version.state}
    run.progress(0.1, "Checking the digest")
    path = Path(default_storage.path(version.artifact.path))
    try:
        with path.open("rb") as artifact:
            if hashlib.file_digest(artifact, "sha256").hexdigest() != version.artifact.sha256:
                raise ArtifactRejected("The stored bytes are not those that were uploaded. Upload the model again.")
        run.progress(0.3, "Parsing, loading and running the model in a sandbox")
        report = validate_artifact(path, LIMITS)
        run.log(f"Loads and runs. Confinement: {', '.join(report['confinement'])}")  # raises if cancelled meanwhile
    except ArtifactRejected as error:
        run.log(f"Rejected: {error}")
        reject_version(run.actor, model_version=version, reason=str(error))
        return {"state": ModelVersionState.REJECTED, "reason": str(error)}
    accept_version(run.actor, model_version=version, report=report)
    return {"state": ModelVersionState.READY}
