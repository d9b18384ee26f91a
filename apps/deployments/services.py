"""Changes to endpoints and to what serves on them."""

from __future__ import annotations

from typing import Any, Final

from django.db import IntegrityError, transaction
from django.utils import timezone

from apps.audit.actor import Actor
from apps.audit.services import record
from apps.core.errors import Conflict
from apps.deployments import client
from apps.deployments.manifest import publish_manifest
from apps.deployments.models import Deployment, DeploymentRole, Endpoint
from apps.registry.models import ModelVersion

MAX_ENDPOINTS_PER_TEAM: Final = 2_000


@transaction.atomic
def create_endpoint(actor: Actor, *, team: Any, name: str, description: str = "") -> Endpoint:
    """A new endpoint; nothing serves on it until a promotion to it is approved."""
    actor.require("deployments.operate")
    if Endpoint.objects.for_team(team).count() >= MAX_ENDPOINTS_PER_TEAM:
        raise Conflict(f"A team has at most {MAX_ENDPOINTS_PER_TEAM} endpoints.")
    try:
        with transaction.atomic():
            endpoint = Endpoint.objects.create(
                team=team, name=name, description=description, created_by_id=actor.person_id
            )
    except IntegrityError as error:
        raise Conflict(f"The name “{name}” is taken. Choose another one.", field="name") from error
    record(actor, "endpoint.created", endpoint, team=team, after={"name": name})
    return endpoint


@transaction.atomic
def deploy_version(
    actor: Actor, *, endpoint: Endpoint, model_version: ModelVersion, promotion_request_id: int
) -> Deployment:
    """Make a version the endpoint's champion. The caller has the approval; its id goes into the manifest."""
    return _activate(
        actor,
        action="deployment.activated",
        endpoint=Endpoint.objects.select_for_update().get(pk=endpoint.pk),
        model_version=model_version,
        promotion_request_id=promotion_request_id,
    )


@transaction.atomic
def roll_back(actor: Actor, *, endpoint: Endpoint, expected_deployment_id: int | None = None) -> Deployment:
    """Put the version that served before back into service; its approval still stands, so none is needed.

    ``expected_deployment_id`` is the champion that the person saw: if another one serves by now, nothing happens.
    """
    actor.require("deployments.operate")
    endpoint = Endpoint.objects.select_for_update().get(pk=endpoint.pk)
    current = current_champion(endpoint)
    previous = rollback_target(endpoint)
    if current is None or previous is None:
        raise Conflict("There is no earlier version to go back to.")
    if expected_deployment_id is not None and current.pk != expected_deployment_id:
        raise Conflict(f"{current.model_version} serves by now. Look at the page again before you roll back.")
    return _activate(
        actor,
        action="deployment.rolled_back",
        endpoint=endpoint,
        model_version=previous.model_version,
        promotion_request_id=previous.promotion_request_id,
    )


def _activate(
    actor: Actor, *, action: str, endpoint: Endpoint, model_version: ModelVersion, promotion_request_id: int
) -> Deployment:
    """Retire the champion, activate the next one and tell the replicas, all or nothing."""
    now = timezone.now()
    current = current_champion(endpoint)
    if current is not None:
        current.retired_at = now
        current.save(update_fields=["retired_at"])
    deployment = Deployment.objects.create(
        endpoint=endpoint,
        model_version=model_version,
        role=DeploymentRole.CHAMPION,
        promotion_request_id=promotion_request_id,
        is_rollback=action == "deployment.rolled_back",
        activated_by=actor.name,
        activated_at=now,
    )
    manifest = publish_manifest()
    record(
        actor,
        action,
        endpoint,
        team=endpoint.team,
        before={"model_version": str(current.model_version) if current else None},
        after={
            "model_version": str(model_version),
            "artifact_digest": model_version.artifact.sha256,
            "promotion_request_id": promotion_request_id,
            "generation": manifest.generation if manifest else None,
        },
    )
    return deployment


def current_champion(endpoint: Endpoint) -> Deployment | None:
    """What is to answer now."""
    return (
        endpoint.deployments.active()
        .champions()
        .select_related("model_version__model", "model_version__artifact")
        .first()
    )


def rollback_target(endpoint: Endpoint) -> Deployment | None:
    """The deployment that a rollback would go back to: what served before the champion was first put there.

    After a rollback from v3 to v2 that is the version before v2, not v3: rolling forward takes an approval.
    """
    current = current_champion(endpoint)
    if current is None:
        return None
    history = (
        endpoint.deployments.champions()
        .exclude(model_version_id=current.model_version_id)
        .select_related("model_version__model", "model_version__artifact")
    )
    first = (
        endpoint.deployments.champions()
        .filter(model_version_id=current.model_version_id, promotion_request_id=current.promotion_request_id)
        .order_by("pk")
        .first()
    )
    return history.filter(pk__lt=first.pk).order_by("-pk").first() if first else None


def try_endpoint(actor: Actor, *, endpoint: Endpoint, body: dict[str, Any]) -> client.Answer:
    """Predict once for a person in the console; the audit log links the person to the inference log's request id."""
    actor.require("deployments.predict")
    answer = client.predict(endpoint, body, request_id=actor.request_id)
    with transaction.atomic():
        record(
            actor,
            "endpoint.tried",
            endpoint,
            team=endpoint.team,
            after={"request_id": answer.request_id, "status": answer.status},
        )
    return answer
