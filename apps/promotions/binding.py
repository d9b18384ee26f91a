"""What a signature stands for: the facts that an approval binds, their digest, and what of them has changed."""

from __future__ import annotations

import hashlib
from typing import Any

from apps.audit.chain import canonical_json
from apps.promotions.evidence import digest_of
from apps.promotions.models import PromotionRequest, RolloutState
from apps.registry.artifact_signing import signature_evidence
from apps.registry.models import ModelVersion, ModelVersionState

_NAMES = {
    "endpoint": "the endpoint",
    "artifact_digest": "the artifact",
    "signature_digest": "the inputs and outputs",
    "artifact_signature": "the artifact’s signature",
    "evidence_digest": "the evidence",
    "policy": "the policy",
    "plan": "the rollout plan",
}

_IN_SERVICE = (RolloutState.APPLYING, RolloutState.LIVE)


def current_binding(request: PromotionRequest) -> dict[str, Any]:
    """The facts as they are stored now; the request's ``binding`` holds them as they were when it was submitted."""
    version = request.model_version
    return {
        "format": "countersign/approval/v1",
        "request": request.pk,
        "round": request.round,
        "endpoint": request.endpoint.name,
        "artifact_digest": version.artifact.sha256,
        "signature_digest": _digest(version.signature),
        "artifact_signature": _artifact_signature(version),
        "evidence_digest": digest_of(request.evidence),
        "policy": _policy(request),
        "is_protected": request.endpoint.is_protected,
        "plan": {"initial_weight": request.initial_weight},
    }


def digest_of_binding(binding: dict[str, Any]) -> str:
    """Hex SHA-256 of the canonical JSON."""
    return _digest(binding)


def what_changed(request: PromotionRequest) -> str:
    """Why nothing may rest on the request's signatures any more, as a sentence; empty while everything holds."""
    if request.approval_digest != digest_of_binding(request.binding):
        return "The record of what was submitted was altered."
    current = current_binding(request)
    changed = [_NAMES[key] for key in _NAMES if current.get(key) != request.binding.get(key)]
    if current["is_protected"] and not request.binding["is_protected"] and request.rollout not in _IN_SERVICE:
        changed.append("the endpoint’s protection")  # what serves already goes on; what comes needs people now
    if changed:
        return f"What was submitted is not what is stored any more: {', '.join(changed)} changed."
    if request.model_version.state != ModelVersionState.READY:
        return f"{request.model_version} is not ready any more."
    return ""


def _artifact_signature(model_version: ModelVersion) -> str | None:
    """Digest of the signature that came with the upload."""
    signature = signature_evidence(model_version)
    return signature["sha256"] if signature else None


def _policy(request: PromotionRequest) -> dict[str, Any] | None:
    """The version of the policy, and the digest of what it says: a version never changes, and this would show it."""
    version = request.policy_version
    return None if version is None else {"version": version.pk, "digest": _digest(version.body)}


def _digest(document: Any) -> str:
    return hashlib.sha256(canonical_json(document).encode()).hexdigest()
