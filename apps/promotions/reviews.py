"""What the reviewers do: sign a decision, or take an approval back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final

from django.db import models, transaction
from django.utils import timezone

from apps.accounts.confirmation import Confirmation
from apps.accounts.models import Membership, User
from apps.audit.actor import Actor
from apps.audit.services import record
from apps.core.controller import wake_controller
from apps.core.errors import Conflict, DomainError, NotAllowed
from apps.policies.gates import preventing
from apps.promotions import rules
from apps.promotions.binding import what_changed
from apps.promotions.models import (
    APPROVALS,
    MEANINGS,
    Decision,
    Finding,
    Meaning,
    PromotionRequest,
    RequestState,
    Review,
    Severity,
)
from apps.promotions.rollouts import revoke
from apps.promotions.services import approve_request, close_tasks, end_request, locked, open_tasks

MAX_CONDITIONS: Final = 20
_REMIND_AFTER: Final = (timedelta(days=1), timedelta(days=3), timedelta(days=7))
_CONFIRMATION_LIFETIME: Final = timedelta(minutes=1)
_MAX_REQUESTS: Final = 500  # looked at in one tick


@dataclass(frozen=True, slots=True)
class Condition:
    """What somebody owes by the end of a day (UTC), for an approval to go on standing."""

    title: str
    severity: Severity
    owner_id: int
    due_on: date


def why_not_review(actor: Actor, request: PromotionRequest) -> str:
    """Why this person cannot decide on the request now; empty if they can."""
    if not request.is_submitted:
        return f"It is {request.get_state_display().lower()} already."
    if request.is_break_glass:
        return "This is an emergency change: it takes a second person, who confirms it."
    if reason := rules.why_not(actor, request):
        return reason
    if request.reviews.standing().filter(reviewer_id=actor.user_id).exists():
        return "You have signed already. The others’ signatures are missing."
    return ""


@transaction.atomic
def review_promotion(
    actor: Actor,
    *,
    request: PromotionRequest,
    decision: Decision,
    meaning: Meaning,
    comment: str,
    confirmation: Confirmation,
    approval_digest: str,
    conditions: Sequence[Condition] = (),
) -> Review:
    """Sign a decision. The person has confirmed just now that it is they, and names by digest what they saw.

    Raises ``NotAllowed`` for whoever may not decide, ``DomainError`` for a meaning that does not fit or gates that do
    not pass, ``Conflict`` if the request has been decided or is not what the person saw.
    """
    request = locked(request)
    if not request.is_submitted:
        raise Conflict(f"Too late: this request is {request.get_state_display().lower()} already.")
    hold_roles(actor, request)
    if reason := why_not_review(actor, request):
        raise NotAllowed(reason)
    _require_sensible(request, decision, meaning, conditions)
    if decision in APPROVALS:
        _require_gates(request)
    require_present(confirmation)
    require_unchanged(request, approval_digest)
    review = sign(actor, request, decision=decision, meaning=meaning, comment=comment, confirmation=confirmation)
    signed = as_evidence(review)
    if decision in APPROVALS:
        signed["conditions"] = [_add_condition(actor, request, condition) for condition in conditions]
        action = _count_approvals(actor, request)
        record(actor, action, request, team=request.team, after=signed, reason=comment)
    elif decision == Decision.CHANGES_REQUESTED:
        _hand_back(request, comment)
        record(actor, "promotion.changes_requested", request, team=request.team, after=signed, reason=comment)
    else:
        end_request(actor, request, RequestState.REJECTED, "promotion.rejected", reason=comment, after=signed)
    wake_controller()
    return review


@transaction.atomic
def ask_for_changes(actor: Actor, *, request: PromotionRequest, comment: str, approval_digest: str) -> None:
    """Hand a request back to its requester without a signature, which a token of a reviewer may do, too."""
    actor.require("promotions.comment")
    request = locked(request)
    if not request.is_submitted or request.is_break_glass:
        raise Conflict(f"Too late: this request is {request.get_state_display().lower()} already.")
    hold_roles(actor, request)
    if reason := rules.why_not_person(actor.person_id, request):
        raise NotAllowed(reason)
    _require_seen(request, approval_digest)
    _hand_back(request, comment)
    record(actor, "promotion.changes_requested", request, team=request.team, reason=comment)


def _hand_back(request: PromotionRequest, comment: str) -> None:
    request.state, request.state_reason = RequestState.CHANGES_REQUESTED, comment[:500]
    request.save(update_fields=["state", "state_reason"])
    close_tasks(request)


@transaction.atomic
def revoke_promotion(
    actor: Actor, *, request: PromotionRequest, comment: str, confirmation: Confirmation, approval_digest: str
) -> Review:
    """Take an approval back with a signature; what it put into service falls back at once."""
    request = locked(request)
    if not request.is_approved:
        raise Conflict(f"Too late: this request is {request.get_state_display().lower()} already.")
    hold_roles(actor, request)
    if reason := rules.why_not(actor, request):
        raise NotAllowed(reason)
    require_present(confirmation)
    _require_seen(request, approval_digest)
    review = sign(
        actor,
        request,
        decision=Decision.REVOKED,
        meaning=Meaning.REVOCATION,
        comment=comment,
        confirmation=confirmation,
    )
    revoke(actor, request, f"{actor.name}: {comment}", after=as_evidence(review))
    wake_controller()
    return review


def sign(
    actor: Actor,
    request: PromotionRequest,
    *,
    decision: Decision,
    meaning: Meaning,
    comment: str,
    confirmation: Confirmation,
) -> Review:
    """Write down a signature. The caller has checked everything, holds the row's lock, and records the event."""
    reviewer = User.objects.get(pk=actor.person_id)
    membership = Membership.objects.active().filter(user=reviewer, team=request.team).first()
    now = timezone.now()
    request.tasks.filter(reviewer=reviewer, done_at=None).update(done_at=now)
    return Review.objects.create(
        request=request,
        round=request.round,
        reviewer=reviewer,
        reviewer_name=reviewer.name,
        reviewer_roles=membership.role_names if membership else [],
        decision=decision,
        meaning=meaning,
        comment=comment,
        artifact_digest=request.artifact_digest,
        evidence_digest=request.evidence_digest,
        approval_digest=request.approval_digest,
        factors=list(confirmation.factors),
        signed_at=now,
    )


def as_evidence(review: Review) -> dict[str, Any]:
    """A signature as the audit log keeps it."""
    return {
        "decision": review.decision,
        "meaning": Meaning(review.meaning).label,
        "signed_name": review.reviewer_name,
        "factors": review.factors,
        "artifact_digest": review.artifact_digest,
        "evidence_digest": review.evidence_digest,
        "approval_digest": review.approval_digest,
    }


def require_present(confirmation: Confirmation) -> None:
    """Raise ``NotAllowed`` unless the person has just shown that it is they."""
    if not confirmation.factors or timezone.now() - confirmation.at > _CONFIRMATION_LIFETIME:
        raise NotAllowed("Confirm again that it is you: a signature takes a confirmation of its own.")


def hold_roles(actor: Actor, request: PromotionRequest) -> None:
    """Keep the person's membership as it is until this transaction ends; raises ``NotAllowed`` without one.

    What they may do is read from the database after this, not from the request that brought them here: a role taken
    away meanwhile is gone.
    """
    membership = Membership.objects.select_for_update(of=("self",)).active()
    if not membership.filter(team=request.team, user_id=actor.person_id).exists():
        raise NotAllowed("You are not a member of this team any more.")


def require_unchanged(request: PromotionRequest, seen_approval_digest: str) -> None:
    """The signature binds what was seen: refuse if that, or anything it binds, is not what was submitted."""
    _require_seen(request, seen_approval_digest)
    if reason := what_changed(request):
        raise Conflict(f"{reason} Nothing can be signed; the request goes back to review on evidence frozen anew.")


def _require_seen(request: PromotionRequest, seen_approval_digest: str) -> None:
    if seen_approval_digest != request.approval_digest:
        raise Conflict("The request is not what you saw: it was changed meanwhile. Open it again, then decide.")


def _require_gates(request: PromotionRequest) -> None:
    """Raise ``DomainError`` while a required gate does not pass: nothing can be approved then."""
    standing_in_the_way = preventing(rules.gate_results(request))
    if standing_in_the_way:
        told = " ".join(result.sentence for result in standing_in_the_way[:3])
        raise DomainError(f"The policy does not let this be approved: {told}", field="decision")


def _require_sensible(
    request: PromotionRequest, decision: Decision, meaning: Meaning, conditions: Sequence[Condition]
) -> None:
    """Raise ``DomainError`` for a decision that its own parts contradict."""
    if meaning not in MEANINGS[decision] or decision in (Decision.REVOKED, Decision.BREAK_GLASS):
        raise DomainError("The meaning of the signature does not fit the decision.", field="meaning")
    if (decision == Decision.APPROVED_WITH_CONDITIONS) != bool(conditions):
        raise DomainError(
            "Approving with conditions takes at least one; any other decision has none.", field="decision"
        )
    if len(conditions) > MAX_CONDITIONS:
        raise DomainError(f"At most {MAX_CONDITIONS} conditions go with one decision.", field="decision")
    members = {person.id for person in rules.people(request.team)}
    for condition in conditions:
        if condition.owner_id not in members:
            raise DomainError("The owner of a condition has to be a member of the team.", field="decision")
        if condition.due_on < timezone.now().date():
            raise DomainError("A condition is due today at the earliest.", field="decision")


def _add_condition(actor: Actor, request: PromotionRequest, condition: Condition) -> str:
    finding = Finding.objects.create(
        request=request,
        title=condition.title,
        severity=condition.severity,
        owner_id=condition.owner_id,
        due_at=end_of_day(condition.due_on),
        opened_by=actor.name,
        opened_at=timezone.now(),
    )
    return f"{finding.severity}: {finding.title}, due {condition.due_on.isoformat()}"


def end_of_day(day: date) -> datetime:
    """The last moment of a day in UTC."""
    return datetime.combine(day, time.max, tzinfo=UTC)


def _count_approvals(actor: Actor, request: PromotionRequest) -> str:
    """Approve the request if the policy asks for nothing more; returns the action that this was."""
    approvals = list(request.reviews.approvals())
    if rules.missing(request, approvals):
        return "promotion.approval_signed"
    has_conditions = any(review.decision == Decision.APPROVED_WITH_CONDITIONS for review in approvals)
    state = RequestState.APPROVED_WITH_CONDITIONS if has_conditions else RequestState.APPROVED
    approve_request(actor, request, state)
    return "promotion.approved_with_conditions" if has_conditions else "promotion.approved"


def remind_reviewers() -> int:
    """Remind those who have not decided, after one, three and seven days. Called by the controller; returns how many.

    Each time the tasks follow the roles, too: who lost the right to decide loses the task, who got it gets one.
    """
    requests = list(PromotionRequest.objects.submitted().values_list("pk", flat=True).order_by("pk")[:_MAX_REQUESTS])
    return sum(_remind(pk) for pk in requests)


@transaction.atomic
def _remind(pk: int) -> int:
    request = locked(PromotionRequest(pk=pk))
    if not request.is_submitted:
        return 0
    if not request.is_break_glass:
        open_tasks(request)
    now = timezone.now()
    late = [
        task.pk
        for task in request.tasks.filter(done_at=None, reminders__lt=len(_REMIND_AFTER))
        if task.created_at + _REMIND_AFTER[task.reminders] <= now
    ]
    if late:
        request.tasks.filter(pk__in=late).update(reminders=models.F("reminders") + 1, reminded_at=now)
        actor = Actor.system("controller")
        record(actor, "promotion.reviewers_reminded", request, team=request.team, after={"reviewers": len(late)})
    return len(late)
