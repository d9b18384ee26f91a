"""What the requester does: draft, submit, revise, withdraw."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.utils import timezone

from apps.audit.actor import Actor
from apps.audit.services import record
from apps.core.controller import wake_controller
from apps.core.errors import Conflict, DomainError, NotAllowed
from apps.deployments.models import Endpoint
from apps.deployments.services import current_champion
from apps.deployments.traffic import Split, check_canary, check_fit
from apps.promotions.binding import current_binding, digest_of_binding
from apps.promotions.evidence import collect_evidence, digest_of
from apps.promotions.models import (
    DRAFT_LIFETIME,
    PromotionRequest,
    RequestState,
    ReviewTask,
    RolloutState,
)
from apps.promotions.rules import document_of, eligibility, policy_for
from apps.registry.artifact_signing import request_signature
from apps.registry.models import ModelVersion, ModelVersionState


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
    request = create_request(
        actor,
        team=team,
        model_version=model_version,
        endpoint=endpoint,
        justification=justification,
        initial_weight=initial_weight,
    )
    return _submit(actor, request, action="promotion.submitted")


@transaction.atomic
def draft_promotion(
    actor: Actor,
    *,
    team: Any,
    model_version: ModelVersion,
    endpoint: Endpoint,
    justification: str,
    initial_weight: int = 100,
) -> PromotionRequest:
    """Write a request down without submitting it: nothing is frozen, and nobody is asked."""
    actor.require("promotions.request")
    request = create_request(
        actor,
        team=team,
        model_version=model_version,
        endpoint=endpoint,
        justification=justification,
        initial_weight=initial_weight,
    )
    record(actor, "promotion.drafted", request, team=team, reason=justification)
    return request


@transaction.atomic
def submit_promotion(actor: Actor, *, request: PromotionRequest) -> PromotionRequest:
    """Hand a draft to the reviewers; freezes the evidence as it stands now."""
    actor.require("promotions.request")
    request = locked(request)
    _require_requester(actor, request)
    if request.state != RequestState.DRAFT:
        raise Conflict(f"This request is {request.get_state_display().lower()} already.")
    return _submit(actor, request, action="promotion.submitted")


@transaction.atomic
def revise_promotion(
    actor: Actor, *, request: PromotionRequest, justification: str, initial_weight: int
) -> PromotionRequest:
    """Change what is asked for. A draft stays one; anything else goes to the reviewers again, as the next round.

    The evidence is frozen anew, and every signature of the round before is void.
    """
    actor.require("promotions.request")
    request = locked(request)
    _require_requester(actor, request)
    if not request.is_revisable:
        raise Conflict(f"Too late: this request is {request.get_state_display().lower()} already.")
    _require_share(initial_weight)
    request.justification, request.initial_weight = justification, initial_weight
    if request.state == RequestState.DRAFT:
        request.save(update_fields=["justification", "initial_weight"])
        record(actor, "promotion.redrafted", request, team=request.team, reason=justification)
        return request
    void_reviews(request, f"{actor.name} revised the request.")
    request.round += 1
    return _submit(actor, request, action="promotion.resubmitted")


@transaction.atomic
def cancel_promotion(actor: Actor, *, request: PromotionRequest) -> PromotionRequest:
    """Withdraw one's own request while nobody has decided."""
    actor.require("promotions.request")
    request = locked(request)
    _require_requester(actor, request)
    if not request.is_open and request.state != RequestState.DRAFT:
        raise Conflict(f"Too late: this request is {request.get_state_display().lower()} already.")
    end_request(actor, request, RequestState.CANCELLED, "promotion.cancelled")
    return request


def return_to_review(actor: Actor, request: PromotionRequest, reason: str) -> None:
    """Void every signature because something that they bind has changed, and ask the reviewers again.

    The evidence is frozen anew. The caller holds the row's lock. Where the version cannot be promoted any more, there
    is nothing to review, and the approval is revoked.
    """
    names = void_reviews(request, reason)
    request.round += 1
    after = {"void_signatures": names, "round": request.round}
    record(actor, "promotion.approval_voided", request, team=request.team, after=after, reason=reason)
    try:
        with transaction.atomic():
            _submit(actor, request, action="promotion.resubmitted", reason=reason)
    except DomainError as error:
        end_request(actor, request, RequestState.REVOKED, "promotion.revoked", reason=f"{reason} {error.message}")


def create_request(actor: Actor, *, initial_weight: int, **values: Any) -> PromotionRequest:
    """A draft. The caller has checked the permission, and records the event."""
    _require_share(initial_weight)
    now = timezone.now()
    return PromotionRequest.objects.create(
        state=RequestState.DRAFT,
        initial_weight=initial_weight,
        requested_by_id=actor.person_id,
        requested_at=now,
        expires_at=now + DRAFT_LIFETIME,
        **values,
    )


def locked(request: PromotionRequest) -> PromotionRequest:
    """The request's row, locked, with everything that decisions on it need."""
    rows = PromotionRequest.objects.select_for_update(of=("self",)).with_names().select_related("team")
    row: PromotionRequest = rows.get(pk=request.pk)
    return row


def void_reviews(request: PromotionRequest, reason: str) -> list[str]:
    """Strike every standing signature; returns the names on them."""
    standing = request.reviews.standing()
    names = list(standing.values_list("reviewer_name", flat=True))
    standing.update(voided_at=timezone.now(), void_reason=reason[:500])
    return names


def approve_request(actor: Actor, request: PromotionRequest, state: RequestState) -> None:
    """Let the controller put it into service, and have its artifact signed. The caller holds the row's lock."""
    request.state, request.rollout, request.decided_at = state, RolloutState.QUEUED, timezone.now()
    request.expires_at = request.decided_at + timedelta(days=document_of(request).approval_lifetime_days)
    request.save(update_fields=["state", "rollout", "decided_at", "expires_at", "review_due_at"])
    close_tasks(request)
    request_signature(actor, model_version=request.model_version, promotion_request_id=request.pk)
    wake_controller()


def end_request(
    actor: Actor,
    request: PromotionRequest,
    state: RequestState,
    action: str,
    *,
    reason: str = "",
    after: dict[str, Any] | None = None,
) -> None:
    """Close a request for good. The caller holds the row's lock, and sees to what it put into service."""
    before = {"state": request.state}
    request.state, request.state_reason = state, reason[:500]
    request.rollout, request.decided_at = RolloutState.ENDED, timezone.now()
    request.save(update_fields=["state", "state_reason", "rollout", "decided_at"])
    close_tasks(request)
    record(
        actor, action, request, team=request.team, before=before, after={"state": state, **(after or {})}, reason=reason
    )


def close_tasks(request: PromotionRequest) -> None:
    """Nobody has to decide any more."""
    request.tasks.filter(done_at=None).update(done_at=timezone.now())


def open_tasks(request: PromotionRequest) -> None:
    """A task for each person who may decide, and none for those who may not (any more)."""
    open_tasks_for(request, eligibility(request).ids if request.endpoint.is_protected else ())


def open_tasks_for(request: PromotionRequest, user_ids: Collection[int]) -> None:
    """A task for each of these people, and none for anybody else."""
    now = timezone.now()
    waiting = request.tasks.filter(done_at=None)
    waiting.exclude(reviewer_id__in=user_ids, round=request.round).update(done_at=now)
    tasks = [
        ReviewTask(request=request, round=request.round, reviewer_id=key, created_at=now) for key in sorted(user_ids)
    ]
    ReviewTask.objects.bulk_create(tasks, ignore_conflicts=True)


def _submit(actor: Actor, request: PromotionRequest, *, action: str, reason: str = "") -> PromotionRequest:
    freeze(request)
    open_tasks(request)
    wake_controller()  # where the gates alone decide, they decide now
    after = {
        "artifact_digest": request.artifact_digest,
        "evidence_digest": request.evidence_digest,
        "approval_digest": request.approval_digest,
        "policy": str(request.policy_version),
        "initial_weight": request.initial_weight,
        "round": request.round,
    }
    record(actor, action, request, team=request.team, after=after, reason=reason or request.justification)
    return request


def freeze(request: PromotionRequest) -> None:
    """Submit what is asked for: collect the evidence as it stands now, and bind everything that a signature binds."""
    # Locked, so that of two requests at once the second one sees the first.
    request.endpoint = endpoint = Endpoint.objects.select_for_update().get(pk=request.endpoint_id)
    _require_requestable(request, endpoint)
    now = timezone.now()
    request.state, request.state_reason, request.rollout = RequestState.SUBMITTED, "", RolloutState.WAITING
    request.policy_version = policy_for(request)
    lifetime = timedelta(days=document_of(request).request_lifetime_days)
    request.requested_at, request.expires_at = now, now + lifetime
    request.decided_at = request.apply_after = None
    request.artifact_digest = request.model_version.artifact.sha256
    request.evidence = collect_evidence(
        model_version=request.model_version,
        endpoint=endpoint,
        champion=current_champion(endpoint),
        initial_weight=request.initial_weight,
    )
    request.save()
    # Digested as the database gives it back: jsonb writes some numbers in another form.
    request.refresh_from_db(fields=["evidence"])
    request.binding = current_binding(request)
    request.evidence_digest = digest_of(request.evidence)
    request.approval_digest = digest_of_binding(request.binding)
    request.save(update_fields=["binding", "evidence_digest", "approval_digest"])


def _require_requester(actor: Actor, request: PromotionRequest) -> None:
    if actor.user_id != request.requested_by_id:
        raise NotAllowed("Only the person who made the request can change or withdraw it.")


def _require_share(initial_weight: int) -> None:
    if not 1 <= initial_weight <= 100:
        raise DomainError("The share to start with is from 1 to 100 %.", field="initial_weight")


def _require_requestable(request: PromotionRequest, endpoint: Endpoint) -> None:
    """Raise ``Conflict`` or ``DomainError`` for what could not be put into service as things stand."""
    model_version, initial_weight = request.model_version, request.initial_weight
    if model_version.state != ModelVersionState.READY:
        raise Conflict(f"{model_version} is not ready: only a version that passed validation can be promoted.")
    split = Split.of(endpoint)
    if any(row.model_version_id == model_version.pk for row in split.canaries):
        raise Conflict(
            f"{model_version} is approved and a canary on {endpoint.name} already: an operator raises its share.",
            field="endpoint",
        )
    if split.champion is not None and split.champion.model_version_id == model_version.pk:
        raise Conflict(f"{model_version} serves on {endpoint.name} already.", field="endpoint")
    others = PromotionRequest.objects.open().filter(endpoint=endpoint, model_version=model_version)
    if others.exclude(pk=request.pk).exists():
        raise Conflict(f"There is an open request for {model_version} on {endpoint.name} already.", field="endpoint")
    check_fit(endpoint, model_version)
    if initial_weight < 100:
        check_canary(endpoint, model_version, weight=initial_weight)
