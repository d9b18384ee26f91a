"""Changes to endpoints and to what serves on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from django.db import IntegrityError, transaction
from django.utils import timezone

from apps.audit.actor import Actor
from apps.audit.services import record
from apps.core.errors import Conflict, NotAllowed
from apps.deployments import client
from apps.deployments.manifest import publish_manifest
from apps.deployments.models import PRODUCTION, Deployment, DeploymentRole, Endpoint
from apps.deployments.traffic import Split, check_canary, check_fit, check_shadow, check_weights
from apps.registry.models import ModelVersion

MAX_ENDPOINTS_PER_TEAM: Final = 2_000


@transaction.atomic
def create_endpoint(
    actor: Actor, *, team: Any, name: str, description: str = "", environment: str = PRODUCTION
) -> Endpoint:
    """A new endpoint; nothing serves on it until a promotion to it is approved.

    The environment decides which policy that takes, and stays.
    """
    actor.require("deployments.operate")
    if Endpoint.objects.for_team(team).count() >= MAX_ENDPOINTS_PER_TEAM:
        raise Conflict(f"A team has at most {MAX_ENDPOINTS_PER_TEAM} endpoints.")
    try:
        with transaction.atomic():
            endpoint = Endpoint.objects.create(
                team=team,
                name=name,
                description=description,
                environment=environment,
                created_by_id=actor.person_id,
            )
    except IntegrityError as error:
        raise Conflict(f"The name “{name}” is taken. Choose another one.", field="name") from error
    record(actor, "endpoint.created", endpoint, team=team, after={"name": name, "environment": environment})
    return endpoint


@transaction.atomic
def protect_endpoint(actor: Actor, *, endpoint: Endpoint) -> Endpoint:
    """Have versions answer here by approval only. Withdraws a proposal to lift that."""
    actor.require("promotions.set_policy")
    endpoint = _locked(endpoint)
    before = {"is_protected": endpoint.is_protected}
    endpoint.is_protected, endpoint.lifting_proposed_by_id = True, None
    endpoint.save(update_fields=["is_protected", "lifting_proposed_by"])
    record(actor, "endpoint.protected", endpoint, team=endpoint.team, before=before, after={"is_protected": True})
    return endpoint


@transaction.atomic
def unprotect_endpoint(actor: Actor, *, endpoint: Endpoint) -> bool:
    """Propose to lift the protection, or lift it if another compliance officer proposed that; True if it is lifted."""
    actor.require("promotions.set_policy")
    endpoint = _locked(endpoint)
    if not endpoint.is_protected:
        raise Conflict(f"{endpoint.name} is not protected.")
    if endpoint.lifting_proposed_by_id == actor.person_id:
        raise NotAllowed("You proposed this, so another compliance officer must confirm it.")
    if endpoint.lifting_proposed_by_id is None:
        endpoint.lifting_proposed_by_id = actor.person_id
        endpoint.save(update_fields=["lifting_proposed_by"])
        record(actor, "endpoint.unprotection_proposed", endpoint, team=endpoint.team)
        return False
    before = {"is_protected": True, "proposed_by": endpoint.lifting_proposed_by_id}
    endpoint.is_protected, endpoint.lifting_proposed_by_id = False, None
    endpoint.save(update_fields=["is_protected", "lifting_proposed_by"])
    record(actor, "endpoint.unprotected", endpoint, team=endpoint.team, before=before, after={"is_protected": False})
    return True


@transaction.atomic
def deploy_version(
    actor: Actor,
    *,
    endpoint: Endpoint,
    model_version: ModelVersion,
    promotion_request_id: int,
    initial_weight: int = 100,
) -> Deployment:
    """Make a version the endpoint's champion, or a canary if it starts with less than everything.

    The caller has the approval; its id goes into the manifest. Raises ``Conflict`` where the version does not fit.
    """
    endpoint = _locked(endpoint)
    check_fit(endpoint, model_version)
    if initial_weight < 100:
        check_canary(endpoint, model_version, weight=initial_weight)
    return _activate(
        actor,
        action="deployment.activated",
        endpoint=endpoint,
        model_version=model_version,
        promotion_request_id=promotion_request_id,
        weight=initial_weight,
    )


@transaction.atomic
def roll_back(
    actor: Actor,
    *,
    endpoint: Endpoint,
    expected_deployment_id: int | None = None,
    expected_split: str | None = None,
) -> Deployment:
    """Go back one step; returns the champion then. Approvals still stand, so none is needed.

    Beside canaries that means to take them out: the champion answers everything again. Without any, the version that
    served before answers again. ``expected_deployment_id`` is the champion and ``expected_split`` the
    ``Split.state`` that the person saw: if it is another one by now, nothing happens.
    """
    actor.require("deployments.operate")
    endpoint = _locked(endpoint)
    split = Split.of(endpoint)
    champion, previous = split.champion, rollback_target(endpoint)
    if champion is not None and expected_deployment_id not in (None, champion.pk):
        raise Conflict(f"{champion.model_version} serves by now. Look at the page again before you roll back.")
    split.require_seen(expected_split)
    if champion is not None and split.canaries:
        _apply_weights(
            actor, "deployment.rolled_back", endpoint, {row.pk: 0 for row in split.canaries} | {champion.pk: 100}
        )
        answering: Deployment = Deployment.objects.with_versions().get(pk=champion.pk)
        return answering
    if champion is None or previous is None:
        raise Conflict("There is no earlier version to go back to.")
    check_fit(endpoint, previous.model_version)
    return _activate(
        actor,
        action="deployment.rolled_back",
        endpoint=endpoint,
        model_version=previous.model_version,
        promotion_request_id=previous.promotion_request_id,
    )


@transaction.atomic
def change_split(
    actor: Actor, *, endpoint: Endpoint, weights: Mapping[int, int], expected_split: str | None = None
) -> Split:
    """Give the versions that answer other shares, by deployment id.

    0 takes a canary out; it comes back by a new request only. 100 for a canary makes it the champion, and all others
    retire. ``expected_split`` is the ``Split.state`` that the person saw: if it is another one by now, nothing happens.
    """
    actor.require("deployments.operate")
    endpoint = _locked(endpoint)
    split = Split.of(endpoint)
    split.require_seen(expected_split)
    check_weights(split, weights)
    if {row.pk: row.weight for row in split.answering} != dict(weights):
        _apply_weights(actor, "traffic.changed", endpoint, weights)
    return Split.of(endpoint)


@transaction.atomic
def add_shadow(actor: Actor, *, endpoint: Endpoint, model_version: ModelVersion) -> Deployment:
    """Send a version copies of the requests. It answers nobody, so it needs no approval."""
    actor.require("deployments.operate")
    endpoint = _locked(endpoint)
    check_shadow(endpoint, model_version)
    deployment = Deployment.objects.create(
        endpoint=endpoint,
        model_version=model_version,
        role=DeploymentRole.SHADOW,
        weight=0,
        activated_by=actor.name,
        activated_at=timezone.now(),
    )
    after = {"model_version": str(model_version), "artifact_digest": model_version.artifact.sha256}
    record(actor, "shadow.added", endpoint, team=endpoint.team, after=after | _published())
    return deployment


@transaction.atomic
def remove_shadow(actor: Actor, *, endpoint: Endpoint, deployment_id: int) -> None:
    """Send a version no more copies. Raises ``Conflict`` if it gets none."""
    actor.require("deployments.operate")
    endpoint = _locked(endpoint)
    shadow = endpoint.deployments.active().shadows().with_versions().filter(pk=deployment_id).first()
    if shadow is None:
        raise Conflict("This shadow is gone already.")
    _retire([shadow])
    before = {"model_version": str(shadow.model_version)}
    record(actor, "shadow.removed", endpoint, team=endpoint.team, before=before, after=_published())


@transaction.atomic
def withdraw_version(
    actor: Actor, *, endpoint: Endpoint, promotion_request_id: int, reason: str, put_back: bool = True
) -> Deployment | None:
    """Take out of service what answers by a revoked approval; returns what is the champion then, None if nothing is.

    A canary gives its share to the champion. A champion makes way for the version that served before it under an
    approval that stands; without one, or unless ``put_back``, nothing answers on the endpoint any more. The caller has
    revoked the approval.
    """
    endpoint = _locked(endpoint)
    under_it = endpoint.deployments.filter(promotion_request_id=promotion_request_id)
    withdrawn = under_it.active().with_versions().exclude(role=DeploymentRole.SHADOW).first()
    previous = rollback_target(endpoint) if put_back else None
    if previous is not None and previous.promotion_request_id == promotion_request_id:
        previous = None
    split = Split.of(endpoint)
    before = {"split": split.as_document()}
    if withdrawn is not None:
        _retire([withdrawn] if withdrawn.role == DeploymentRole.CANARY else split.answering)
        if withdrawn.role == DeploymentRole.CANARY and split.champion is not None:
            split.champion.weight += withdrawn.weight
            split.champion.save(update_fields=["weight"])
    under_it.filter(retired_at__isnull=False).update(revoked_at=timezone.now())
    if withdrawn is not None and withdrawn.role == DeploymentRole.CHAMPION and previous is not None:
        return _activate(
            actor,
            action="deployment.fell_back",
            endpoint=endpoint,
            model_version=previous.model_version,
            promotion_request_id=previous.promotion_request_id,
        )
    after = {"split": Split.of(endpoint).as_document()} | _published()
    record(actor, "deployment.withdrawn", endpoint, team=endpoint.team, before=before, after=after, reason=reason)
    return current_champion(endpoint)


def _locked(endpoint: Endpoint) -> Endpoint:
    """The endpoint's row, locked: what is on it changes one at a time."""
    locked: Endpoint = Endpoint.objects.select_for_update(of=("self",)).select_related("team").get(pk=endpoint.pk)
    return locked


def _published() -> dict[str, Any]:
    """Tell the replicas; the generation belongs into the audit event."""
    manifest = publish_manifest()
    return {"generation": manifest.generation if manifest else None}


def _activate(
    actor: Actor,
    *,
    action: str,
    endpoint: Endpoint,
    model_version: ModelVersion,
    promotion_request_id: int | None,
    weight: int = 100,
) -> Deployment:
    """Put a version on the endpoint, make room for it and tell the replicas, all or nothing."""
    split = Split.of(endpoint)
    before = {
        "model_version": str(split.champion.model_version) if split.champion else None,
        "split": split.as_document(),
    }
    is_canary = weight < 100 and split.champion is not None and split.champion.model_version_id != model_version.pk
    replaced = [row for row in (*split.answering, *split.shadows) if row.model_version_id == model_version.pk]
    _retire(replaced if is_canary else [*replaced, *split.answering])
    if is_canary and split.champion is not None:
        others = endpoint.deployments.active().filter(role=DeploymentRole.CANARY)
        split.champion.weight = 100 - weight - sum(row.weight for row in others)
        split.champion.save(update_fields=["weight"])
    deployment = Deployment.objects.create(
        endpoint=endpoint,
        model_version=model_version,
        role=DeploymentRole.CANARY if is_canary else DeploymentRole.CHAMPION,
        weight=weight if is_canary else 100,
        promotion_request_id=promotion_request_id,
        is_rollback=action in ("deployment.rolled_back", "deployment.fell_back"),
        activated_by=actor.name,
        activated_at=timezone.now(),
    )
    after = {
        "model_version": str(model_version),
        "artifact_digest": model_version.artifact.sha256,
        "promotion_request_id": promotion_request_id,
        "split": Split.of(endpoint).as_document(),
    }
    record(actor, action, endpoint, team=endpoint.team, before=before, after=after | _published())
    return deployment


def _apply_weights(actor: Actor, action: str, endpoint: Endpoint, weights: Mapping[int, int]) -> None:
    """Write a split that was checked, retire what has no share in it, and tell the replicas."""
    split = Split.of(endpoint)
    before = {"split": split.as_document()}
    _retire([row for row in split.answering if weights[row.pk] == 0])
    for row in split.answering:
        if weights[row.pk]:
            row.weight = weights[row.pk]
            row.role = DeploymentRole.CHAMPION if row.weight == 100 else row.role
            row.save(update_fields=["weight", "role"])
    after = {"split": Split.of(endpoint).as_document()} | _published()
    record(actor, action, endpoint, team=endpoint.team, before=before, after=after)


def _retire(rows: Iterable[Deployment]) -> None:
    """End some deployments. Those that answered stay loaded for a while, for a rollback."""
    Deployment.objects.filter(pk__in=[row.pk for row in rows]).update(retired_at=timezone.now())


def current_champion(endpoint: Endpoint) -> Deployment | None:
    """What is to answer now."""
    champion: Deployment | None = endpoint.deployments.active().champions().with_versions().first()
    return champion


def rollback_target(endpoint: Endpoint) -> Deployment | None:
    """The deployment that a rollback would go back to: what served before the champion was first put there.

    After a rollback from v3 to v2 that is the version before v2, not v3: rolling forward takes an approval.
    """
    current = current_champion(endpoint)
    if current is None:
        return None
    history = endpoint.deployments.champions().exclude(model_version_id=current.model_version_id).with_versions()
    history = history.filter(revoked_at=None)
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
