"""The loud way into service: two people, a reason, no gates and no waiting; reviewed afterwards, or taken back."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from django.db import transaction
from django.utils import timezone

from apps.accounts.confirmation import Confirmation
from apps.accounts.models import Membership
from apps.audit.actor import Actor
from apps.audit.services import record
from apps.core.errors import Conflict, DomainError, NotAllowed
from apps.deployments.models import Endpoint
from apps.promotions import rules
from apps.promotions.models import (
    Decision,
    Finding,
    FindingState,
    Meaning,
    PromotionRequest,
    RequestState,
    Review,
    Severity,
)
from apps.promotions.reviews import as_evidence, hold_roles, require_present, require_unchanged, sign
from apps.promotions.rollouts import revoke
from apps.promotions.services import approve_request, create_request, freeze, locked, open_tasks_for
from apps.registry.models import ModelVersion

REVIEW_WITHIN: Final = timedelta(days=3)
_MAY_CONFIRM: Final = frozenset({"deployments.operate", "promotions.review"})


@transaction.atomic
def break_glass(
    actor: Actor, *, team: Any, model_version: ModelVersion, endpoint: Endpoint, reason: str, confirmation: Confirmation
) -> PromotionRequest:
    """Declare an emergency and sign for it: the first of two people. Nothing happens before the second one confirms."""
    actor.require("deployments.operate")
    if actor.token_id is not None:
        raise NotAllowed("A token never breaks the glass: sign in to the console.")
    if len(reason.strip()) < 20:
        raise DomainError("Say what the emergency is, in a sentence: it is read afterwards.", field="reason")
    require_present(confirmation)
    request = create_request(
        actor,
        team=team,
        model_version=model_version,
        endpoint=endpoint,
        justification=reason,
        initial_weight=100,
        is_break_glass=True,
        review_due_at=timezone.now() + REVIEW_WITHIN,
    )
    freeze(request)
    open_tasks_for(request, _confirmers(request))
    review = sign(
        actor,
        request,
        decision=Decision.BREAK_GLASS,
        meaning=Meaning.EMERGENCY,
        comment=reason,
        confirmation=confirmation,
    )
    record(actor, "promotion.break_glass_opened", request, team=team, after=as_evidence(review), reason=reason)
    return request


def why_not_confirm(actor: Actor, request: PromotionRequest) -> str:
    """Why this person cannot be the second one; empty if they can."""
    if not request.is_break_glass or not request.is_submitted:
        return f"It is {request.get_state_display().lower()} already."
    if actor.token_id is not None:
        return "A token never breaks the glass: sign in to the console."
    if reason := rules.excluded(request).get(actor.person_id):
        return f"You {reason}, so somebody else must confirm the emergency."
    if actor.person_id not in _confirmers(request):
        return "Only an operator or a compliance officer confirms an emergency."
    return ""


@transaction.atomic
def confirm_break_glass(
    actor: Actor, *, request: PromotionRequest, comment: str, confirmation: Confirmation, approval_digest: str
) -> Review:
    """Sign as the second person: the version goes into service at once, with a follow-up that has a deadline."""
    request = locked(request)
    if not request.is_submitted:
        raise Conflict(f"Too late: this request is {request.get_state_display().lower()} already.")
    hold_roles(actor, request)
    if reason := why_not_confirm(actor, request):
        raise NotAllowed(reason)
    require_present(confirmation)
    require_unchanged(request, approval_digest)
    review = sign(
        actor,
        request,
        decision=Decision.BREAK_GLASS,
        meaning=Meaning.EMERGENCY,
        comment=comment,
        confirmation=confirmation,
    )
    now = timezone.now()
    request.review_due_at = now + REVIEW_WITHIN
    approve_request(actor, request, RequestState.APPROVED)
    Finding.objects.create(
        request=request,
        title="Say what the emergency was, what was not checked, and what follows from it",
        severity=Severity.HIGH,
        owner_id=request.requested_by_id,
        due_at=request.review_due_at,
        opened_by="Break-glass",
        opened_at=now,
    )
    after = as_evidence(review) | {"review_due_at": request.review_due_at.isoformat()}
    record(actor, "promotion.break_glass_confirmed", request, team=request.team, after=after, reason=comment)
    return review


def why_not_review_afterwards(actor: Actor, request: PromotionRequest) -> str:
    """Why this person cannot review the emergency after the fact; empty if they can."""
    if not request.is_approved or not request.is_break_glass or request.reviewed_at is not None:
        return "There is no emergency change to review here."
    if reason := rules.why_not(actor, request):
        return reason
    if request.reviews.standing().filter(reviewer_id=actor.user_id).exists():
        return "You confirmed this emergency, so somebody else must review it."
    return ""


@transaction.atomic
def review_afterwards(
    actor: Actor,
    *,
    request: PromotionRequest,
    decision: Decision,
    comment: str,
    confirmation: Confirmation,
    approval_digest: str,
) -> Review:
    """Review an emergency change after the fact: it stands from now on like any other, or it is taken back."""
    request = locked(request)
    if request.reviewed_at is not None or not request.is_approved:
        raise Conflict("Too late: somebody has reviewed this emergency change already, or it is over.")
    hold_roles(actor, request)
    if reason := why_not_review_afterwards(actor, request):
        raise NotAllowed(reason)
    if decision not in (Decision.APPROVED, Decision.REJECTED):
        raise DomainError("After the fact, approve or reject.", field="decision")
    require_present(confirmation)
    require_unchanged(request, approval_digest)
    is_approval = decision == Decision.APPROVED
    meaning = Meaning.APPROVAL if is_approval else Meaning.REJECTION
    review = sign(actor, request, decision=decision, meaning=meaning, comment=comment, confirmation=confirmation)
    request.reviewed_at = review.signed_at
    request.save(update_fields=["reviewed_at"])
    findings = request.findings.exclude(state=FindingState.CLOSED)
    findings.update(state=FindingState.CLOSED, closed_by=actor.name, closed_at=review.signed_at, resolution=comment)
    action = "promotion.break_glass_reviewed" if is_approval else "promotion.break_glass_rejected"
    record(actor, action, request, team=request.team, after=as_evidence(review), reason=comment)
    if not is_approval:
        revoke(actor, request, f"{actor.name} reviewed the emergency change afterwards and rejected it.")
    return review


def _confirmers(request: PromotionRequest) -> set[int]:
    """Ids of those who may be the second person, by the roles that they hold now."""
    members = Membership.objects.active().filter(team=request.team)
    may = {row.user_id for row in members if row.permissions & _MAY_CONFIRM}
    return may - rules.excluded(request).keys()
