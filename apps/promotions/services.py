"""From a request to a version in service: one function per step."""

from __future__ import annotations

import logging
from typing import Any

from django.db import transaction
from django.utils import timezone

from apps.accounts.models import User
from apps.audit.actor import Actor
from apps.audit.services import record
from apps.core.controller import wake_controller
from apps.core.errors import Conflict, DomainError, NotAllowed
from apps.deployments.models import Deployment, DeploymentRole, Endpoint
from apps.deployments.observed import observe
from apps.deployments.services import current_champion, deploy_version
from apps.deployments.traffic import Split, check_canary, check_fit
from apps.promotions.evidence import collect_evidence, digest_of
from apps.promotions.models import (
    APPROVAL_LIFETIME,
    REQUEST_LIFETIME,
    Decision,
    Meaning,
    PromotionRequest,
    RequestState,
    Review,
    RolloutState,
)
from apps.registry.models import ModelVersion, ModelVersionState

logger = logging.getLogger(__name__)


@transaction.atomic
def request_promotion(
    actor: Actor,
    *,
    team: Any,
    model_version: ModelVersion,
    endpoint: Endpoint,
    justification: str,
    initial_weight: int = 100,
) -> PromotionRequest:
    """Ask for a version to answer on an endpoint; freezes the evidence as it stands now.

    ``initial_weight`` is its share of the traffic in per cent when it starts: 100 for a champion, less for a canary.
    """
    actor.require("promotions.request")
    # Locked, so that of two requests at once the second one sees the first.
    endpoint = Endpoint.objects.select_for_update().get(pk=endpoint.pk)
    _require_requestable(model_version, endpoint, initial_weight)
    evidence = collect_evidence(
        model_version=model_version,
        endpoint=endpoint,
        champion=current_champion(endpoint),
        initial_weight=initial_weight,
    )
    now = timezone.now()
    request = PromotionRequest.objects.create(
        team=team,
        endpoint=endpoint,
        model_version=model_version,
        initial_weight=initial_weight,
        justification=justification,
        artifact_digest=model_version.artifact.sha256,
        evidence=evidence,
        evidence_digest="",
        requested_by_id=actor.person_id,
        requested_at=now,
        expires_at=now + REQUEST_LIFETIME,
    )
    # Digested as the database gives it back: jsonb writes some numbers in another form.
    request.refresh_from_db(fields=["evidence"])
    request.evidence_digest = digest_of(request.evidence)
    request.save(update_fields=["evidence_digest"])
    after = {
        "artifact_digest": request.artifact_digest,
        "evidence_digest": request.evidence_digest,
        "initial_weight": initial_weight,
    }
    record(actor, "promotion.submitted", request, team=team, after=after, reason=justification)
    return request


def _require_requestable(model_version: ModelVersion, endpoint: Endpoint, initial_weight: int) -> None:
    """Raise ``Conflict`` or ``DomainError`` for what could not be put into service as things stand."""
    if model_version.state != ModelVersionState.READY:
        raise Conflict(f"{model_version} is not ready: only a version that passed validation can be promoted.")
    if not 1 <= initial_weight <= 100:
        raise DomainError("The share to start with is from 1 to 100 %.", field="initial_weight")
    split = Split.of(endpoint)
    if any(row.model_version_id == model_version.pk for row in split.canaries):
        raise Conflict(
            f"{model_version} is approved and a canary on {endpoint.name} already: an operator raises its share.",
            field="endpoint",
        )
    if split.champion is not None and split.champion.model_version_id == model_version.pk:
        raise Conflict(f"{model_version} serves on {endpoint.name} already.", field="endpoint")
    if PromotionRequest.objects.submitted().filter(endpoint=endpoint, model_version=model_version).exists():
        raise Conflict(f"There is an open request for {model_version} on {endpoint.name} already.", field="endpoint")
    check_fit(endpoint, model_version)
    if initial_weight < 100:
        check_canary(endpoint, model_version, weight=initial_weight)


def why_not_review(actor: Actor, request: PromotionRequest) -> str:
    """Why this person cannot decide on the request; empty if they can."""
    if not request.is_open:
        return f"It is {request.get_state_display().lower()} already."
    if actor.token_id is not None:
        return "A token never approves: sign in to the console."
    if actor.user_id == request.requested_by_id:
        return "You requested this promotion, so somebody else must decide."
    if actor.user_id == request.model_version.uploaded_by_id:
        return "You uploaded this version, so somebody else must decide."
    return "" if actor.can("promotions.review") else "Only a compliance officer decides on promotions."


@transaction.atomic
def review_promotion(
    actor: Actor,
    *,
    request: PromotionRequest,
    decision: Decision,
    meaning: Meaning,
    comment: str,
    password: str,
    evidence_digest: str,
) -> Review:
    """Sign a decision. The person re-enters their password, and names the evidence that they saw.

    Raises ``NotAllowed`` for whoever may not decide, ``DomainError`` for a wrong password, ``Conflict`` if the request
    has been decided or is not what the person saw.
    """
    request = (
        PromotionRequest.objects.select_for_update(of=("self",)).with_names().select_related("team").get(pk=request.pk)
    )
    if not request.is_open:
        raise Conflict(f"Too late: this request is {request.get_state_display().lower()} already.")
    if reason := why_not_review(actor, request):
        raise NotAllowed(reason)
    reviewer = User.objects.get(pk=actor.person_id)
    if not reviewer.check_password(password):
        raise DomainError("That is not your password. Nothing was signed.", field="password")
    if (meaning == Meaning.REJECTION) != (decision == Decision.REJECTED):
        raise DomainError("The meaning of the signature does not fit the decision.", field="meaning")
    _require_unchanged(request, evidence_digest)
    now = timezone.now()
    review = Review.objects.create(
        request=request,
        reviewer=reviewer,
        reviewer_name=reviewer.name,
        decision=decision,
        meaning=meaning,
        comment=comment,
        artifact_digest=request.artifact_digest,
        evidence_digest=request.evidence_digest,
        signed_at=now,
    )
    request.decided_at = now
    if decision == Decision.APPROVED:
        request.state, request.rollout = RequestState.APPROVED, RolloutState.QUEUED
        request.expires_at = now + APPROVAL_LIFETIME
    else:
        request.state, request.rollout = RequestState.REJECTED, RolloutState.ENDED
    request.save(update_fields=["state", "rollout", "decided_at", "expires_at"])
    after = {
        "meaning": Meaning(meaning).label,
        "signed_name": reviewer.name,
        "artifact_digest": review.artifact_digest,
        "evidence_digest": review.evidence_digest,
    }
    record(actor, f"promotion.{decision.lower()}", request, team=request.team, after=after, reason=comment)
    wake_controller()
    return review


def _require_unchanged(request: PromotionRequest, seen_evidence_digest: str) -> None:
    """The signature binds what was seen: refuse if it, the evidence or the artifact is not what was requested."""
    version = request.model_version
    if seen_evidence_digest != request.evidence_digest or digest_of(request.evidence) != request.evidence_digest:
        raise Conflict("The evidence is not what you saw. Open the request again.")
    if version.artifact.sha256 != request.artifact_digest:
        raise Conflict("The artifact is not the one that was requested. Ask for a new request.")
    if version.state != ModelVersionState.READY:
        raise Conflict(f"{version} is not ready any more, so it cannot be promoted.")


@transaction.atomic
def cancel_promotion(actor: Actor, *, request: PromotionRequest) -> PromotionRequest:
    """Withdraw one's own request while nobody has decided."""
    request = PromotionRequest.objects.select_for_update(of=("self",)).with_names().get(pk=request.pk)
    if actor.user_id != request.requested_by_id:
        raise NotAllowed("Only the person who made the request can withdraw it.")
    if not request.is_open:
        raise Conflict(f"Too late: this request is {request.get_state_display().lower()} already.")
    _end(actor, request, RequestState.CANCELLED, "promotion.cancelled")
    return request


def _end(actor: Actor, request: PromotionRequest, state: RequestState, action: str) -> None:
    request.state, request.rollout, request.decided_at = state, RolloutState.ENDED, timezone.now()
    request.save(update_fields=["state", "rollout", "decided_at"])
    record(actor, action, request, team=request.team)


def expire_promotions() -> int:
    """End requests past their time. Called by the controller; returns how many."""
    overdue = list(PromotionRequest.objects.overdue().values_list("pk", flat=True)[:100])
    for pk in overdue:
        with transaction.atomic():
            request = PromotionRequest.objects.overdue().select_for_update(of=("self",)).filter(pk=pk).first()
            if request is not None:
                _end(Actor.system("controller"), request, RequestState.EXPIRED, "promotion.expired")
    return len(overdue)


def apply_promotions() -> int:
    """Put approved versions into service, and follow what was put there. Called by the controller; returns how many.

    A request that breaks is logged and tried again at the next tick; it holds up no other.
    """
    keys = list(PromotionRequest.objects.to_apply().values_list("pk", flat=True)[:200])
    for pk in keys:
        try:
            _apply(pk)
        except Exception:
            logger.exception("Promotion request %s cannot be applied; trying again at the next tick", pk)
    return len(keys)


@transaction.atomic
def _apply(pk: int) -> None:
    request = PromotionRequest.objects.select_for_update(of=("self",)).with_names().select_related("team").get(pk=pk)
    if request.rollout == RolloutState.QUEUED:
        _start_rollout(request)
    else:
        _follow_rollout(request)


def _start_rollout(request: PromotionRequest) -> None:
    actor = Actor.system("controller")
    review = request.reviews.get(decision=Decision.APPROVED)
    bound = (review.artifact_digest, review.evidence_digest, request.evidence.get("initial_weight", 100))
    current = (request.model_version.artifact.sha256, digest_of(request.evidence), request.initial_weight)
    if bound != current or request.model_version.state != ModelVersionState.READY:
        message = "What was approved is not what is stored any more. The approval is void: make a new request."
        _set_rollout(actor, request, RolloutState.FAILED, message)
        return
    try:
        deployment = deploy_version(
            actor,
            endpoint=request.endpoint,
            model_version=request.model_version,
            promotion_request_id=request.pk,
            initial_weight=request.initial_weight,
        )
    except DomainError as error:
        # What the endpoint says by now leaves no place for the version: a person has to look at both again.
        message = f"{error.message} This approval ends here: make a new request then."
        _set_rollout(actor, request, RolloutState.FAILED, message)
        return
    request.deployment_id = deployment.pk
    _set_rollout(actor, request, RolloutState.APPLYING, "Inference is loading the version.")


def _follow_rollout(request: PromotionRequest) -> None:
    actor = Actor.system("controller")
    deployment = Deployment.objects.get(pk=request.deployment_id or 0)
    if deployment.retired_at is not None:
        was_canary = deployment.role == DeploymentRole.CANARY
        message = "It was taken out of the traffic." if was_canary else "Another version took its place."
        _set_rollout(actor, request, RolloutState.ENDED, message)
        return
    seen = observe(deployment)
    if request.rollout == RolloutState.LIVE:
        return
    if seen.state == "SERVING":
        request.applied_at = timezone.now()
        _set_rollout(actor, request, RolloutState.LIVE, seen.sentence)
    elif seen.state == "FAILED" and request.rollout != RolloutState.FAILED:
        # Replicas go on trying, so this is looked at again until it serves or something else does.
        _set_rollout(actor, request, RolloutState.FAILED, f"Inference could not load it: {seen.sentence}")


def _set_rollout(actor: Actor, request: PromotionRequest, rollout: RolloutState, message: str) -> None:
    request.rollout, request.rollout_message = rollout, message[:500]
    request.save(update_fields=["rollout", "rollout_message", "deployment_id", "applied_at"])
    actions = {
        RolloutState.APPLYING: "promotion.rollout_started",
        RolloutState.LIVE: "promotion.applied",
        RolloutState.FAILED: "promotion.rollout_failed",
        RolloutState.ENDED: "promotion.rollout_ended",
    }
    record(actor, actions[rollout], request, team=request.team, after={"detail": message})
