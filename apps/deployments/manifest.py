"""Writing the serving manifest: what is to serve, who may call it, signed and numbered."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final, cast

from django.conf import settings
from django.db import connection, transaction
from django.utils import timezone

from apps.accounts.models import ApiToken
from apps.core.signing_keys import signing_key
from apps.deployments.models import Deployment, DeploymentRole, Endpoint, Guardrail, ServingManifest
from inference.contracts import (
    MANIFEST_CHANNEL,
    DeploymentEntry,
    EndpointEntry,
    GuardrailAction,
    GuardrailRule,
    Limits,
    LogSettings,
    Role,
    Signature,
    TokenEntry,
    sign_manifest,
    token_digest,
)
from inference.contracts import ServingManifest as Manifest

CONSOLE_TOKEN_ID: Final = 0
"""Token id under which predictions from the console's own “Try it” form are logged."""
_WARM_FOR: Final = timedelta(hours=1)
_KEPT_GENERATIONS: Final = 1_000
_LOCK: Final = 7_203_114_507  # advisory lock: generations are handed out one at a time


@transaction.atomic
def publish_manifest(*, anew: bool = False) -> ServingManifest | None:
    """Write the next generation if what it would say has changed, or ``anew`` in any case; None if not.

    Runs in the transaction of the change, so that replicas can never see the one without the other.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
    latest = ServingManifest.objects.order_by("-generation").first()
    now = timezone.now()
    manifest = Manifest(0, "", _entries(now))
    content_digest = hashlib.sha256(manifest.to_bytes()).hexdigest()
    if latest is not None and latest.content_digest == content_digest and not anew:
        return None
    generation = latest.generation + 1 if latest else 1
    body = replace(manifest, generation=generation, issued_at=now.astimezone(UTC).isoformat()).to_bytes()
    written = ServingManifest.objects.create(
        generation=generation,
        body=body.decode(),
        signature=sign_manifest(body, signing_key("manifest")),
        content_digest=content_digest,
    )
    ServingManifest.objects.filter(generation__lte=generation - _KEPT_GENERATIONS).delete()
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_notify(%s, %s)", [MANIFEST_CHANNEL, str(generation)])
    return written


def console_token() -> str:
    """The token with which the console itself calls an endpoint for a signed-in person."""
    return settings.INSTALLATION.secret("console_token")


def _entries(now: datetime) -> tuple[EndpointEntry, ...]:
    pepper = settings.INSTALLATION.secret("token_pepper").encode()
    console = TokenEntry(CONSOLE_TOKEN_ID, token_digest(console_token(), pepper), None)
    deployments = _deployments(now)
    endpoints = Endpoint.objects.select_related("team").prefetch_related("guardrails").order_by("name")
    tokens = _tokens()
    return tuple(
        EndpointEntry(
            name=endpoint.name,
            endpoint_id=endpoint.pk,
            team=endpoint.team.slug,
            deployments=tuple(deployments[endpoint.pk]),
            access=(console, *tokens[endpoint.team_id]),
            sticky_header=endpoint.sticky_header or None,
            sticky_input=endpoint.sticky_input or None,
            guardrails=tuple(guardrail_rule(row) for row in endpoint.guardrails.all()),
            limits=_limits(endpoint),
            log=LogSettings(endpoint.is_log_strict, endpoint.payload_cap_bytes, tuple(endpoint.redacted)),
        )
        for endpoint in endpoints
        if endpoint.pk in deployments
    )


def guardrail_rule(row: Guardrail) -> GuardrailRule:
    """A rule as the inference service knows it."""
    return GuardrailRule(row.name, row.requires, cast(GuardrailAction, row.action), row.fallback)


def _limits(endpoint: Endpoint) -> Limits:
    return Limits(
        queue_rows=endpoint.queue_rows,
        timeout_ms=endpoint.timeout_ms,
        batch_rows=endpoint.batch_rows,
        memory_mb=endpoint.memory_mb,
        cpu_cores=endpoint.cpu_cores,
    )


def _deployments(now: datetime) -> dict[int, list[DeploymentEntry]]:
    """What serves, and what served until a moment ago and stays warm for a rollback, by endpoint."""
    rows = Deployment.objects.with_versions().order_by("-id")
    entries: dict[int, list[DeploymentEntry]] = defaultdict(list)
    for deployment in rows.active():
        entries[deployment.endpoint_id].append(_entry(deployment, is_active=True))
    for deployment in rows.retired_since(now - _WARM_FOR).exclude(role=DeploymentRole.SHADOW):
        loaded = entries.get(deployment.endpoint_id, [])
        digest = deployment.model_version.artifact.sha256
        if loaded and all(entry.artifact_digest != digest for entry in loaded):
            loaded.append(_entry(deployment, is_active=False))
    return entries


def _entry(deployment: Deployment, *, is_active: bool) -> DeploymentEntry:
    model_version = deployment.model_version
    return DeploymentEntry(
        deployment_id=deployment.pk,
        model=model_version.model.name,
        model_version=model_version.number,
        artifact_digest=model_version.artifact.sha256,
        artifact_path=model_version.artifact.path,
        artifact_size=model_version.artifact.size_bytes,
        role=cast(Role, deployment.role) if is_active else "standby",
        weight=deployment.weight if is_active else 0,
        signature=Signature.from_dict(model_version.signature),
        promotion_request_id=deployment.promotion_request_id,
    )


def _tokens() -> dict[int, list[TokenEntry]]:
    """Tokens that may predict, by team. Inference does not look at addresses: a token with a range is not for it."""
    entries: dict[int, list[TokenEntry]] = defaultdict(list)
    for token in ApiToken.objects.usable().filter(networks=[]).select_related("membership__user").order_by("pk"):
        if "deployments.predict" in token.permissions:
            expires_at = token.expires_at.timestamp() if token.expires_at else None
            entries[token.team_id].append(TokenEntry(token.pk, token.digest, expires_at))
    return entries
