"""Validation and signatures, in a process of the worker's; the model itself is only ever opened in one more."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from django.core.files.storage import default_storage

from apps.jobs.runner import JobRun, job
from apps.registry.artifact_signing import check_signature, sign_artifact
from apps.registry.models import ArtifactSignature, ModelVersion, ModelVersionState, SignatureOrigin
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
        _require_intact(version)
        _require_signature_fits(run, version)
        run.progress(0.3, "Parsing, loading and running the model in a sandbox")
        report = validate_artifact(path, LIMITS)
        run.log(f"Loads and runs. Confinement: {', '.join(report['confinement'])}")  # raises if cancelled meanwhile
    except ArtifactRejected as error:
        run.log(f"Rejected: {error}")
        reject_version(run.actor, model_version=version, reason=str(error))
        return {"state": ModelVersionState.REJECTED, "reason": str(error)}
    accept_version(run.actor, model_version=version, report=report)
    return {"state": ModelVersionState.READY}


def _require_intact(version: ModelVersion) -> None:
    with default_storage.open(version.artifact.path) as artifact:
        if hashlib.file_digest(artifact, "sha256").hexdigest() != version.artifact.sha256:
            raise ArtifactRejected("The stored bytes are not those that were uploaded. Upload the model again.")


def _require_signature_fits(run: JobRun, version: ModelVersion) -> None:
    """A signature by somebody unknown is noted; one that does not hold means that something was changed on the way."""
    signature = _uploaded_signature(version)
    if signature is None:
        return
    run.progress(0.2, "Checking the signature")
    finding = check_signature(run.actor, signature=signature)
    run.log(f"Signature: {finding.state.lower()}. {finding.reason or finding.signer}")
    if finding.state == "FAILED":
        raise ArtifactRejected(f"The signature that came with the file does not hold. {finding.reason}")


def _uploaded_signature(version: ModelVersion) -> ArtifactSignature | None:
    signatures = ArtifactSignature.objects.select_related("model_version__model__team", "model_version__artifact")
    return signatures.filter(model_version=version, origin=SignatureOrigin.UPLOAD).first()


@job("registry.check_signature", timeout_s=600, max_attempts=3)
def check_uploaded_signature(run: JobRun, *, model_version_id: int) -> dict[str, Any]:
    """Check again the signature that came with a version. What was verified stays verified."""
    version = ModelVersion.objects.select_related("artifact", "model__team").get(pk=model_version_id)
    _require_intact(version)
    signature = _uploaded_signature(version)
    if signature is None or signature.state == "VERIFIED":
        return {"state": signature.state if signature else None}
    return {"state": check_signature(run.actor, signature=signature).state}


@job("registry.sign_artifact", timeout_s=600, max_attempts=5)
def sign_approved_artifact(run: JobRun, *, model_version_id: int, promotion_request_id: int) -> dict[str, Any]:
    """Sign an approved version's artifact with the installation's key; a second run changes nothing."""
    version = ModelVersion.objects.select_related("artifact", "model__team").get(pk=model_version_id)
    _require_intact(version)
    signature = sign_artifact(run.actor, model_version=version, promotion_request_id=promotion_request_id)
    return {"sha256": signature.sha256}
