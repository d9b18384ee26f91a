"""What the controller does: put approved versions into service, follow them, and take back what no approval holds."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any, Final

from django.db import models, transaction
from django.utils import timezone

from apps.audit.actor import Actor
from apps.audit.services import record
from apps.core.errors import DomainError
from apps.deployments.models import Deployment, DeploymentRole
from apps.deployments.observed import observe
from apps.deployments.services import deploy_version, withdraw_version
from apps.policies.documents import Fallback
from apps.policies.gates import preventing
from apps.policies.timing import why_not_now
from apps.promotions import rules
from apps.promotions.binding import what_changed
from apps.promotions.models import Finding, PromotionRequest, RequestState, RolloutState
from apps.promotions.services import approve_request, end_request, locked, return_to_review

logger = logging.getLogger(__name__)

_CONTROLLER: Final = Actor.system("controller")
_AT_ONCE: Final = 200  # looked at in one tick
_LOOK_AGAIN: Final = timedelta(seconds=20)


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
    request = locked(PromotionRequest(pk=pk))
    if request.rollout == RolloutState.QUEUED:
        _start_rollout(request)
    elif request.rollout in (RolloutState.APPLYING, RolloutState.LIVE, RolloutState.FAILED):
        _follow_rollout(request)


def approve_unprotected() -> int:
    """Approve what no person has to: on an unprotected endpoint the gates alone decide. Returns how many."""
    keys = list(PromotionRequest.objects.unprotected().order_by("pk").values_list("pk", flat=True)[:_AT_ONCE])
    return sum(_approve_by_policy(pk) for pk in keys)


@transaction.atomic
def _approve_by_policy(pk: int) -> int:
    request = locked(PromotionRequest(pk=pk))
    if not request.is_submitted or request.endpoint.is_protected or preventing(rules.gate_results(request)):
        return 0
    approve_request(_CONTROLLER, request, RequestState.APPROVED)
    after = {"policy": str(request.policy_version), "approval_digest": request.approval_digest}
    record(_CONTROLLER, "promotion.approved_by_policy", request, team=request.team, after=after)
    return 1


def _start_rollout(request: PromotionRequest) -> None:
    if not request.is_break_glass and (reason := _why_wait(request)):
        _wait(request, reason)
        return
    if reason := what_changed(request) or _bad_signature(request):
        return_to_review(_CONTROLLER, request, reason)
        return
    try:
        deployment = deploy_version(
            _CONTROLLER,
            endpoint=request.endpoint,
            model_version=request.model_version,
            promotion_request_id=request.pk,
            initial_weight=request.initial_weight,
        )
    except DomainError as error:
        # What the endpoint says by now leaves no place for the version: a person has to look at both again.
        message = f"{error.message} This approval ends here: make a new request then."
        _set_rollout(request, RolloutState.FAILED, message)
        return
    request.deployment_id = deployment.pk
    _set_rollout(request, RolloutState.APPLYING, "Inference is loading the version.")
    if deployment.role == DeploymentRole.CHAMPION:
        _supersede_older(request)


def _why_wait(request: PromotionRequest) -> str:
    """Why an approved version does not go into service now: the policy's wait timer or a freeze window."""
    now = timezone.now()
    return why_not_now(rules.document_of(request), approved_at=request.decided_at or now, now=now)


def _wait(request: PromotionRequest, reason: str) -> None:
    request.apply_after, request.rollout_message = timezone.now() + _LOOK_AGAIN, reason[:500]
    request.save(update_fields=["apply_after", "rollout_message"])


def _bad_signature(request: PromotionRequest) -> str:
    """Why the signatures do not carry the approval; empty if they do."""
    standing = list(request.reviews.standing())
    if not standing and request.endpoint.is_protected:
        return "No signature stands behind this approval."
    if any(review.approval_digest != request.approval_digest for review in standing):
        return "A signature was given for something else."
    return ""


def _supersede_older(request: PromotionRequest) -> None:
    """A newer version serves: what was asked for older versions of the model on this endpoint is out of date."""
    older = PromotionRequest.objects.filter(
        endpoint=request.endpoint,
        model_version__model=request.model_version.model,
        model_version__number__lt=request.model_version.number,
    )
    waiting = older.open() | older.approved().filter(rollout=RolloutState.QUEUED)
    for other in waiting.select_for_update(of=("self",)).with_names().select_related("team"):
        reason = f"{request.model_version} serves on {request.endpoint.name} by now."
        end_request(_CONTROLLER, other, RequestState.SUPERSEDED, "promotion.superseded", reason=reason)


def _follow_rollout(request: PromotionRequest) -> None:
    deployment = Deployment.objects.get(pk=request.deployment_id or 0)
    if deployment.retired_at is not None:
        was_canary = deployment.role == DeploymentRole.CANARY
        message = "It was taken out of the traffic." if was_canary else "Another version took its place."
        _set_rollout(request, RolloutState.ENDED, message)
        return
    seen = observe(deployment)
    if request.rollout == RolloutState.LIVE:
        return
    if seen.state == "SERVING":
        request.applied_at = timezone.now()
        _set_rollout(request, RolloutState.LIVE, seen.sentence)
    elif seen.state == "FAILED" and request.rollout != RolloutState.FAILED:
        # Replicas go on trying, so this is looked at again until it serves or something else does.
        _set_rollout(request, RolloutState.FAILED, f"Inference could not load it: {seen.sentence}")


def _set_rollout(request: PromotionRequest, rollout: RolloutState, message: str) -> None:
    request.rollout, request.rollout_message = rollout, message[:500]
    request.save(update_fields=["rollout", "rollout_message", "deployment_id", "applied_at"])
    actions = {
        RolloutState.APPLYING: "promotion.rollout_started",
        RolloutState.LIVE: "promotion.applied",
        RolloutState.FAILED: "promotion.rollout_failed",
        RolloutState.ENDED: "promotion.rollout_ended",
    }
    record(_CONTROLLER, actions[rollout], request, team=request.team, after={"detail": message})


def expire_promotions() -> int:
    """End requests past their time. Called by the controller; returns how many."""
    overdue = list(PromotionRequest.objects.overdue().values_list("pk", flat=True)[:100])
    for pk in overdue:
        with transaction.atomic():
            request = locked(PromotionRequest(pk=pk))
            if PromotionRequest.objects.overdue().filter(pk=pk).exists():
                end_request(_CONTROLLER, request, RequestState.EXPIRED, "promotion.expired")
    return len(overdue)


def enforce_approvals() -> int:
    """Revoke approvals that no longer hold. Called by the controller; returns how many.

    Those are: a condition past its date, a break-glass change that nobody reviewed in time, and anything a signature
    binds that is stored differently by now. Each triggers the fallback.
    """
    late = Finding.objects.overdue().order_by("due_at").values_list("request_id", flat=True)[:_AT_ONCE]
    unreviewed = PromotionRequest.objects.unreviewed_in_time()
    keys = [*late, *unreviewed.values_list("pk", flat=True)[:_AT_ONCE], *_altered()]
    return sum(_enforce(pk) for pk in dict.fromkeys(keys))


def _altered() -> list[int]:
    """Of what serves, the requests whose binding does not hold; each call looks at those unseen for longest."""
    serving = PromotionRequest.objects.approved().filter(rollout__in=(RolloutState.APPLYING, RolloutState.LIVE))
    oldest = models.F("binding_checked_at").asc(nulls_first=True)
    rows = list(serving.with_names().order_by(oldest, "pk")[:_AT_ONCE])
    PromotionRequest.objects.filter(pk__in=[row.pk for row in rows]).update(binding_checked_at=timezone.now())
    return [row.pk for row in rows if what_changed(row)]


@transaction.atomic
def _enforce(pk: int) -> int:
    request = locked(PromotionRequest(pk=pk))
    reason = _why_revoke(request) if request.is_approved else ""
    if reason:
        revoke(_CONTROLLER, request, reason)
    return int(bool(reason))


def _why_revoke(request: PromotionRequest) -> str:
    finding = Finding.objects.overdue().filter(request=request).select_related("owner").first()
    if finding is not None:
        return f"The condition “{finding.title}” of {finding.owner.name} was due {finding.due_at:%Y-%m-%d} and is open."
    if PromotionRequest.objects.unreviewed_in_time().filter(pk=request.pk).exists():
        return "Nobody reviewed this emergency change in time."
    return what_changed(request) if request.rollout != RolloutState.QUEUED else ""


def revoke(actor: Actor, request: PromotionRequest, reason: str, after: dict[str, Any] | None = None) -> None:
    """Take an approval back, and out of service what rests on it. The caller holds the row's lock."""
    fallback = rules.document_of(request).fallback
    serves = request.rollout in (RolloutState.APPLYING, RolloutState.LIVE, RolloutState.FAILED)
    after = {"fallback": fallback, **(after or {})}
    end_request(actor, request, RequestState.REVOKED, "promotion.revoked", reason=reason, after=after)
    if request.deployment_id is not None and serves and fallback is not Fallback.WARN:
        withdraw_version(
            actor,
            endpoint=request.endpoint,
            promotion_request_id=request.pk,
            reason=reason,
            put_back=fallback is Fallback.ROLL_BACK,
        )
