"""How the policy that a request was submitted under judges it: who may approve, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from apps.accounts.models import Membership, Team
from apps.accounts.roles import Role
from apps.audit.actor import Actor
from apps.promotions.models import PromotionRequest, Review

_MAX_PEOPLE = 1_000


@dataclass(frozen=True, slots=True)
class Person:
    """A member as the rules see them."""

    id: int
    name: str
    roles: frozenset[str]


@dataclass(frozen=True, slots=True)
class Eligibility:
    """Who may decide on a request, and why the others may not (by user id)."""

    may: tuple[Person, ...]
    may_not: tuple[tuple[Person, str], ...]

    @property
    def ids(self) -> set[int]:
        """User ids of those who may."""
        return {person.id for person in self.may}


def people(team: Team) -> list[Person]:
    """The team's active members by name."""
    memberships = Membership.objects.active().filter(team=team).select_related("user").order_by("user__name")
    return [Person(row.user_id, row.user.name, frozenset(row.roles)) for row in memberships[:_MAX_PEOPLE]]


def excluded(request: PromotionRequest) -> dict[int, str]:
    """Who can never approve this request, whatever their roles, and why (by user id)."""
    return {
        request.model_version.uploaded_by_id: "uploaded this version",
        request.requested_by_id: "requested this promotion",
    }


def eligibility(request: PromotionRequest) -> Eligibility:
    """Who may decide now, by the roles that people hold now."""
    reasons: Mapping[int, str] = excluded(request)
    may, may_not = [], []
    for person in people(request.team):
        if person.id in reasons:
            may_not.append((person, f"{person.name} {reasons[person.id]}, so somebody else must decide."))
        elif Role.COMPLIANCE_OFFICER not in person.roles:
            may_not.append((person, "Only a compliance officer decides on promotions."))
        else:
            may.append(person)
    return Eligibility(tuple(may), tuple(may_not))


def missing(request: PromotionRequest, approvals: Iterable[Review]) -> tuple[str, ...]:
    """What the policy still asks for, as sentences; empty when there are enough approvals."""
    return () if list(approvals) else ("One approval by a compliance officer.",)


def why_not(actor: Actor, request: PromotionRequest) -> str:
    """Why this person cannot decide on the request, whatever its state; empty if they can."""
    if actor.token_id is not None:
        return "A token never approves: sign in to the console."
    return why_not_person(actor.person_id, request)


def why_not_person(user_id: int, request: PromotionRequest) -> str:
    """Why the person themselves cannot decide; empty if they can."""
    if reason := excluded(request).get(user_id):
        return f"You {reason}, so somebody else must decide."
    known = eligibility(request)
    reasons = {person.id: reason for person, reason in known.may_not}
    return "" if user_id in known.ids else reasons.get(user_id, "You are not a member of this team any more.")
