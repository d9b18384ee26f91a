"""How the policy that a request was submitted under judges it: who may approve, what is missing, what the gates say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from apps.accounts.models import Team
from apps.audit.actor import Actor
from apps.policies import approvals, gates
from apps.policies.approvals import Person
from apps.policies.checks import check_reports
from apps.policies.documents import PolicyDocument
from apps.policies.gates import GateResult
from apps.policies.models import PolicyVersion
from apps.policies.services import people as people_of
from apps.policies.services import policy_in_force, tier_of
from apps.promotions.models import PromotionRequest, Review


@dataclass(frozen=True, slots=True)
class Eligibility:
    """Who may decide on a request, and why the others may not; ``lacking`` says whom the team does not have at all."""

    may: tuple[Person, ...]
    may_not: tuple[tuple[Person, str], ...]
    lacking: tuple[str, ...]

    @property
    def ids(self) -> set[int]:
        """User ids of those who may."""
        return {person.id for person in self.may}


def policy_for(request: PromotionRequest) -> PolicyVersion:
    """The policy that a request is frozen under when it is submitted now."""
    return policy_in_force(request.team, request.endpoint.environment, tier_of(request.model_version.model))


def document_of(request: PromotionRequest) -> PolicyDocument:
    """What the policy demands of this request, whatever became of the policy since it was submitted."""
    version = request.policy_version or policy_for(request)
    document: PolicyDocument = version.document
    return document


def people(team: Team) -> list[Person]:
    """The team's active members by name."""
    return sorted((person for person in people_of(team) if person.is_active), key=lambda person: person.name)


def excluded(request: PromotionRequest) -> dict[int, str]:
    """Who can never approve this request, whatever their roles, and why (by user id)."""
    version = request.model_version
    reasons = {version.uploaded_by_id: "uploaded this version", request.requested_by_id: "requested this promotion"}
    if version.trained_by_id is not None:
        reasons.setdefault(version.trained_by_id, "trained this version")
    return reasons


def eligibility(request: PromotionRequest) -> Eligibility:
    """Who may decide now, by the roles and groups that people have now."""
    document, members = document_of(request), people(request.team)
    reasons = excluded(request)
    told = {
        person.id: f"{person.name} {reasons[person.id]}, so somebody else must decide."
        for person in members
        if person.id in reasons
    }
    may, why_not = approvals.who_may_approve(document, members, told)
    may_not = tuple((person, why_not[person.id]) for person in members if person.id in why_not)
    return Eligibility(may, may_not, approvals.missing(document, may))


def approvers(request: PromotionRequest, reviews: Iterable[Review]) -> list[Person]:
    """Those who signed an approval and may still give one: a role taken away takes the signature's weight with it."""
    signed = {review.reviewer_id for review in reviews}
    return [person for person in eligibility(request).may if person.id in signed]


def missing(request: PromotionRequest, reviews: Iterable[Review]) -> tuple[str, ...]:
    """What approvals the policy still asks for, in words; empty when there are enough, or none is needed."""
    if not request.endpoint.is_protected:
        return ()
    return approvals.missing(document_of(request), approvers(request, reviews))


def gate_results(request: PromotionRequest) -> tuple[GateResult, ...]:
    """The answer of every gate of the policy on the frozen evidence and on what external checks reported about it."""
    checks = check_reports(request.team, request_id=request.pk, evidence_digest=request.evidence_digest)
    return gates.evaluate(document_of(request), request.evidence, checks)


def approvals_gate(request: PromotionRequest, reviews: Iterable[Review]) -> GateResult:
    """The approvals as a line beside the gates."""
    return approvals.gate(document_of(request), approvers(request, reviews))


def why_not(actor: Actor, request: PromotionRequest) -> str:
    """Why this person cannot decide on the request, whatever its state; empty if they can."""
    if actor.token_id is not None:
        return "A token never approves: sign in to the console."
    return why_not_person(actor.person_id, request)


def why_not_person(user_id: int, request: PromotionRequest) -> str:
    """Why the person themselves cannot decide; empty if they can."""
    if reason := excluded(request).get(user_id):
        return f"You {reason}, so somebody else must decide."
    if user_id in eligibility(request).ids:
        return ""
    wanted = " and ".join(rule.sentence for rule in document_of(request).approvals)
    return f"Your approval does not count here: the policy asks for {wanted}."
