"""Answers what an auditor asks: which version answered a request, who approved it, on what evidence, by which policy.

And: what served at a given moment. The promotion's part comes from the audit log, as it was at that moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from django.conf import settings
from django.db.models import Q

from apps.audit.models import AuditEvent
from apps.deployments.models import Deployment, Endpoint, ServingManifest
from apps.monitoring.log_reader import LogFilter, Prediction, read_log
from inference.contracts import DeploymentEntry, open_manifest
from inference.errors import ManifestRejected

REQUEST_TYPE: Final = "promotions.promotionrequest"
"""The object type under which the audit log knows promotions, which are a room of their own."""
_APPROVALS: Final = ("promotion.approved", "promotion.approved_with_conditions", "promotion.signed")
_MAX_ROWS: Final = 100
_MAX_EVENTS: Final = 100


@dataclass(frozen=True, slots=True)
class Approval:
    """A promotion request as the audit log had it at a moment; ``bound`` is what the signatures bind, by name."""

    request_id: int
    events: list[AuditEvent]

    @property
    def requested_by(self) -> str:
        """Who asked for it."""
        return next((event.actor_name for event in self.events if event.action == "promotion.submitted"), "")

    @property
    def signatures(self) -> list[AuditEvent]:
        """The events in which somebody signed."""
        return [event for event in self.events if event.action in _APPROVALS]

    @property
    def bound(self) -> dict[str, Any]:
        """Digests, policy and plan as they were written last."""
        merged: dict[str, Any] = {}
        for event in self.events:
            after = event.document.get("after") or {}
            merged |= {name: value for name, value in after.items() if _is_bound(name) and value not in (None, "")}
        return merged


@dataclass(frozen=True, slots=True)
class Answer:
    """A version that answered, or served, at a moment. ``deployment`` is None where the console knows of none."""

    model: str
    model_version: int
    artifact_digest: str
    role: str
    weight: int | None
    at: datetime
    deployment: Deployment | None
    approval: Approval | None


@dataclass(frozen=True, slots=True)
class Serving:
    """What an endpoint served at a moment, by the signed manifest if that is still kept, else by its deployments."""

    at: datetime
    answers: list[Answer]
    generation: int | None
    is_signed: bool


def answers_to(endpoint: Endpoint, request_id: str) -> list[Answer]:
    """Which versions answered a request (shadows included), the newest first; empty if the log does not hold it."""
    log = read_log(endpoint, LogFilter(request_id=request_id), size=_MAX_ROWS, tensors=0)
    rows: dict[tuple[Any, ...], Prediction] = {}
    for row in log.rows:
        rows.setdefault((row.columns["artifact_digest"], row.columns["role"], row.received_at), row)
    return [_answer_of(endpoint, row) for row in rows.values()]


def serving_at(endpoint: Endpoint, at: datetime) -> Serving:
    """What answered on the endpoint at ``at``."""
    manifest = ServingManifest.objects.filter(created_at__lte=at).order_by("-generation").first()
    entries, is_signed = ({}, False) if manifest is None else _entries(manifest, endpoint)
    rows = Deployment.objects.filter(Q(retired_at=None) | Q(retired_at__gt=at), endpoint=endpoint, activated_at__lte=at)
    answers = [_serving(row, entries.get(row.pk), at) for row in rows.with_versions().order_by("pk")]
    return Serving(at, answers, manifest.generation if manifest else None, is_signed)


def approval_of(endpoint: Endpoint, promotion_id: int | None, at: datetime) -> Approval | None:
    """What the audit log says of a promotion up to ``at``; None for a shadow, which needs no approval."""
    if promotion_id is None:
        return None
    events = AuditEvent.objects.for_team(endpoint.team).about(REQUEST_TYPE, promotion_id).numbered().filter(at__lte=at)
    return Approval(promotion_id, list(events[:_MAX_EVENTS]))


def _answer_of(endpoint: Endpoint, row: Prediction) -> Answer:
    columns, at = row.columns, row.received_at
    # The newest activation before the answer: replicas may answer for a moment after a version was retired.
    deployment = (
        Deployment.objects.with_versions()
        .filter(endpoint=endpoint, activated_at__lte=at, model_version__artifact__sha256=columns["artifact_digest"])
        .order_by("-activated_at", "-pk")
        .first()
    )
    return Answer(
        columns["model"],
        columns["model_version"],
        columns["artifact_digest"],
        columns["role"],
        None,
        at,
        deployment,
        approval_of(endpoint, deployment.promotion_request_id, at) if deployment else None,
    )


def _serving(row: Deployment, entry: DeploymentEntry | None, at: datetime) -> Answer:
    version = row.model_version
    role, weight = (entry.role, entry.weight) if entry else (row.role, None)
    approval = approval_of(row.endpoint, row.promotion_request_id, at)
    return Answer(version.model.name, version.number, version.artifact.sha256, role, weight, at, row, approval)


def _entries(manifest: ServingManifest, endpoint: Endpoint) -> tuple[Mapping[int, DeploymentEntry], bool]:
    """The endpoint's entries in a manifest by deployment, and whether the manifest is signed as it should be."""
    key = load_pem_public_key(settings.INSTALLATION.public_key_file("manifest").read_bytes())
    if not isinstance(key, Ed25519PublicKey):
        return {}, False
    try:
        document = open_manifest(manifest.body.encode(), manifest.signature, key)
    except ManifestRejected:
        return {}, False
    return _by_deployment(one.deployments for one in document.endpoints if one.endpoint_id == endpoint.pk), True


def _by_deployment(entries: Iterable[Iterable[DeploymentEntry]]) -> dict[int, DeploymentEntry]:
    return {entry.deployment_id: entry for deployments in entries for entry in deployments}


def _is_bound(name: str) -> bool:
    return name.endswith("digest") or name.startswith("policy") or name in {"initial_weight", "rollout_plan"}
