"""Conditions of an approval: the owner says what was done, and a reviewer accepts it or not."""

from __future__ import annotations

from django.db import transaction
from django.utils import timezone

from apps.audit.actor import Actor
from apps.audit.services import record
from apps.core.errors import Conflict, NotAllowed
from apps.promotions import rules
from apps.promotions.models import Finding, FindingState
from apps.promotions.reviews import hold_roles
from apps.promotions.services import locked


@transaction.atomic
def resolve_finding(actor: Actor, *, finding: Finding, resolution: str) -> Finding:
    """Say what was done about a finding; only its owner does. It then waits for a reviewer, and is late no more."""
    finding = _locked(actor, finding)
    if actor.user_id != finding.owner_id:
        raise NotAllowed(f"Only {finding.owner.name}, who owns this condition, says that it is met.")
    if finding.state != FindingState.OPEN:
        raise Conflict(f"This condition is {finding.get_state_display().lower()} already.")
    finding.state, finding.resolution = FindingState.RESOLVED, resolution
    finding.save(update_fields=["state", "resolution"])
    record(actor, "finding.resolved", finding, team=finding.request.team, reason=resolution)
    return finding


@transaction.atomic
def judge_finding(actor: Actor, *, finding: Finding, is_accepted: bool, comment: str) -> Finding:
    """Accept what the owner says, which closes the finding, or open it again. Nobody judges their own."""
    finding = _locked(actor, finding)
    if reason := why_not_judge(actor, finding):
        raise NotAllowed(reason)
    if finding.state != FindingState.RESOLVED:
        raise Conflict(f"There is nothing to accept: this condition is {finding.get_state_display().lower()}.")
    if is_accepted:
        finding.state, finding.closed_by, finding.closed_at = FindingState.CLOSED, actor.name, timezone.now()
    else:
        finding.state = FindingState.OPEN
    finding.save(update_fields=["state", "closed_by", "closed_at"])
    action = "finding.closed" if is_accepted else "finding.reopened"
    record(actor, action, finding, team=finding.request.team, reason=comment)
    return finding


def why_not_judge(actor: Actor, finding: Finding) -> str:
    """Why this person cannot accept what the owner says; empty if they can."""
    if actor.user_id == finding.owner_id:
        return "You own this condition, so somebody else must accept it."
    return rules.why_not(actor, finding.request)


def _locked(actor: Actor, finding: Finding) -> Finding:
    """The finding under its request's lock, which the controller takes, too, before it revokes."""
    request = locked(finding.request)
    hold_roles(actor, request)
    row: Finding = Finding.objects.select_related("owner").get(pk=finding.pk)
    row.request = request
    if not request.is_approved:
        raise Conflict(f"The request is {request.get_state_display().lower()}, so its conditions are void.")
    return row
