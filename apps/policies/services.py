"""Changes to risk assessments and policies, and the policy that holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Final

from django.db import IntegrityError, transaction
from django.db.models import Max
from django.utils import timezone

from apps.accounts.models import Membership, slug_validator
from apps.audit.actor import Actor
from apps.audit.chain import canonical_json
from apps.audit.services import record
from apps.core.errors import Conflict, DomainError, NotAllowed
from apps.policies.approvals import Person
from apps.policies.documents import PolicyDocument, Tier, default_document
from apps.policies.models import Policy, PolicyVersion, PolicyVersionState, ReviewGroup, RiskAssessment
from apps.policies.risk import RULES_VERSION, compute_tier, parse_answers
from apps.registry.models import RegisteredModel

UNASSESSED_TIER: Final = Tier.LIMITED
"""The tier of a model that nobody has assessed yet."""
MAX_ENVIRONMENTS: Final = 20
MAX_GROUPS: Final = 100


def tier_of(model: RegisteredModel) -> Tier:
    """The risk tier of a model by its newest assessment."""
    newest = model.risk_assessments.first()
    return Tier(newest.tier) if newest is not None else UNASSESSED_TIER


def risk_evidence(model: RegisteredModel) -> dict[str, Any]:
    """What a promotion request freezes of the model's risk."""
    newest = model.risk_assessments.first()
    return {
        "tier": str(tier_of(model)),
        "is_assessed": newest is not None,
        "number": newest.number if newest else None,
        "assessed_at": newest.assessed_at.isoformat() if newest else None,
    }


@transaction.atomic
def assess_risk(
    actor: Actor, *, model: RegisteredModel, answers: Any, tier: Tier | None = None, override_reason: str = ""
) -> RiskAssessment:
    """Write down the answers about a model; the tier follows, or is set higher than that with a reason.

    An assessment that lowers the tier that held before takes a compliance officer.
    """
    actor.require("policies.assess")
    given = parse_answers(answers)
    computed = compute_tier(given)
    chosen = tier or computed.tier
    if chosen.rank < computed.tier.rank:
        raise DomainError(
            f"The answers give {computed.tier} risk: it can be set higher, never lower. Look at the answers again.",
            field="tier",
        )
    if chosen is not computed.tier and not override_reason.strip():
        raise DomainError("Say why the tier is higher than the answers give.", field="override_reason")
    model = RegisteredModel.objects.select_for_update(of=("self",)).select_related("team").get(pk=model.pk)
    before = tier_of(model)
    if chosen.rank < before.rank and not actor.can("promotions.set_policy"):
        raise NotAllowed(f"{model.name} counts as {before} risk. Only a compliance officer can lower that.")
    last = model.risk_assessments.first()
    assessment = RiskAssessment.objects.create(
        model=model,
        number=last.number + 1 if last else 1,
        rules_version=RULES_VERSION,
        answers=given,
        reasons=list(computed.reasons),
        computed_tier=computed.tier,
        tier=chosen,
        override_reason=override_reason.strip() if chosen is not computed.tier else "",
        assessed_by_id=actor.person_id,
    )
    after = {"tier": str(chosen), "computed_tier": str(computed.tier), "answers": given, "number": assessment.number}
    record(
        actor,
        "model_risk.assessed",
        model,
        team=model.team,
        before={"tier": str(before)},
        after=after,
        reason=assessment.override_reason,
    )
    return assessment


@transaction.atomic
def policy_in_force(team: Any, environment: str, tier: Tier) -> PolicyVersion:
    """The version that a new request is bound to. There is always one: where nobody decided, the built-in one."""
    in_force = PolicyVersion.objects.for_team(team).in_force().with_names()
    found: PolicyVersion | None = in_force.filter(policy__environment=environment, policy__tier=tier).first()
    if found is not None:
        return found
    policy, _ = Policy.objects.get_or_create(team=team, environment=environment, tier=tier)
    body = default_document(tier).as_json()
    # Two requests at once may both get here: the constraint on numbers makes one of them the first.
    PolicyVersion.objects.get_or_create(
        policy=policy,
        number=1,
        defaults={"body": body, "digest": _digest_of(body), "state": PolicyVersionState.IN_FORCE},
    )
    built_in: PolicyVersion = in_force.get(policy=policy)
    return built_in


def people(team: Any) -> list[Person]:
    """The team's members as approvals see them, with what they have now."""
    memberships = Membership.objects.for_team(team).select_related("user").prefetch_related("review_groups")
    return [
        Person(
            id=membership.user_id,
            name=membership.user.name,
            roles=frozenset(membership.roles),
            # Groups of the team's own, and those that the organisation's sign-in told.
            groups=frozenset({group.name for group in membership.review_groups.all()} | set(membership.groups)),
            is_active=membership.is_active and membership.user.is_active,
        )
        for membership in memberships
    ]


def group_names(team: Any) -> list[str]:
    """Groups that a policy can name: the team's own, and those of its members' organisation."""
    told = Membership.objects.for_team(team).active().values_list("groups", flat=True)
    own = ReviewGroup.objects.for_team(team).values_list("name", flat=True)
    return sorted({*own, *(name for names in told for name in names)})[:MAX_GROUPS]


@transaction.atomic
def propose_policy(
    actor: Actor, *, team: Any, environment: str, tier: Tier, document: PolicyDocument, reason: str
) -> PolicyVersion:
    """Propose another document for an environment and tier; it holds when a second compliance officer confirms it."""
    actor.require("promotions.set_policy")
    document.check_fits_tier(tier)
    slug_validator(environment)
    _require_room(team, environment)
    policy = Policy.objects.select_for_update().get(pk=policy_in_force(team, environment, tier).policy_id)
    current = policy.versions.in_force().get()
    if current.document == document:
        raise DomainError("This is what the policy says already: nothing would change.")
    last = policy.versions.aggregate(last=Max("number"))["last"]
    body = document.as_json()
    try:
        with transaction.atomic():
            version = PolicyVersion.objects.create(
                policy=policy,
                number=last + 1,
                body=body,
                digest=_digest_of(body),
                reason=reason,
                proposed_by_id=actor.person_id,
            )
    except IntegrityError as error:
        raise Conflict("There is a proposal for this policy already. Decide on it first.") from error
    after = {"number": version.number, "digest": version.digest, "document": body}
    record(actor, "policy.proposed", policy, team=team, before={"number": current.number}, after=after, reason=reason)
    return version


def why_not_confirm(actor: Actor, version: PolicyVersion) -> str:
    """Why this person cannot confirm or reject the proposal; empty if they can."""
    if version.state != PolicyVersionState.PROPOSED:
        return f"It is {version.get_state_display().lower()} already."
    if actor.token_id is not None:
        return "A token never confirms a policy: sign in to the console."
    if not actor.can("promotions.set_policy"):
        return "Only a compliance officer decides on policies."
    if actor.user_id == version.proposed_by_id:
        return "You proposed this, so another compliance officer must confirm it."
    return ""


@transaction.atomic
def confirm_policy(actor: Actor, *, version: PolicyVersion, digest: str, comment: str = "") -> PolicyVersion:
    """Put a proposal in force. ``digest`` is that of the document that the person saw.

    Requests that are under way keep the version that they were made under.
    """
    version = _locked_proposal(actor, version)
    if digest != version.digest or _digest_of(version.body) != version.digest:
        raise Conflict("The proposal is not what you saw. Open it again.")
    version.document.check_fits_tier(version.tier)
    before = version.policy.versions.in_force().get()
    before.state = PolicyVersionState.SUPERSEDED
    before.save(update_fields=["state"])
    _decide(actor, version, PolicyVersionState.IN_FORCE, comment)
    record(
        actor,
        "policy.confirmed",
        version.policy,
        team=version.policy.team,
        before={"number": before.number, "digest": before.digest},
        after={"number": version.number, "digest": version.digest},
        reason=comment,
    )
    return version


@transaction.atomic
def reject_policy(actor: Actor, *, version: PolicyVersion, comment: str) -> PolicyVersion:
    """Refuse a proposal, or withdraw one's own."""
    is_own = version.proposed_by_id == actor.user_id and actor.can("promotions.set_policy")
    version = _locked_proposal(actor, version, is_own=is_own)
    _decide(actor, version, PolicyVersionState.REJECTED, comment)
    after = {"number": version.number, "is_withdrawn": is_own}
    record(actor, "policy.rejected", version.policy, team=version.policy.team, after=after, reason=comment)
    return version


def _locked_proposal(actor: Actor, version: PolicyVersion, *, is_own: bool = False) -> PolicyVersion:
    # The policy's row first: it is what everything that changes a policy takes in turn.
    Policy.objects.select_for_update().get(pk=version.policy_id)
    locked: PolicyVersion = PolicyVersion.objects.select_related("policy__team").get(pk=version.pk)
    if locked.state != PolicyVersionState.PROPOSED:
        raise Conflict(f"Too late: this proposal is {locked.get_state_display().lower()} already.")
    if (reason := why_not_confirm(actor, locked)) and not is_own:
        raise NotAllowed(reason)
    return locked


def _decide(actor: Actor, version: PolicyVersion, state: PolicyVersionState, comment: str) -> None:
    version.state, version.decided_by_id, version.decided_at = state, actor.person_id, timezone.now()
    version.decision_comment = comment
    version.save(update_fields=["state", "decided_by", "decided_at", "decision_comment"])


def _require_room(team: Any, environment: str) -> None:
    names = set(Policy.objects.for_team(team).values_list("environment", flat=True).distinct())
    if environment not in names and len(names) >= MAX_ENVIRONMENTS:
        raise Conflict(f"A team has policies for at most {MAX_ENVIRONMENTS} environments.", field="environment")


def _digest_of(body: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()


@transaction.atomic
def save_review_group(
    actor: Actor, *, team: Any, name: str, members: Iterable[Membership], group: ReviewGroup | None = None
) -> ReviewGroup:
    """Make a review group, or say who is in it from now on. Its name stays, because policies name it."""
    actor.require("accounts.administer")
    chosen = sorted(members, key=lambda member: member.pk)
    if any(member.team_id != team.pk for member in chosen):
        raise DomainError("Only members of your team can be in its groups.", field="members")
    if group is None:
        group = _new_group(team, name)
    locked: ReviewGroup = ReviewGroup.objects.select_for_update().get(pk=group.pk)
    before = sorted(member.user.name for member in locked.members.select_related("user"))
    locked.members.set(chosen)
    after = {"members": sorted(member.user.name for member in chosen)}
    record(actor, "review_group.changed", locked, team=team, before={"members": before}, after=after)
    return locked


def _new_group(team: Any, name: str) -> ReviewGroup:
    if ReviewGroup.objects.for_team(team).count() >= MAX_GROUPS:
        raise Conflict(f"A team has at most {MAX_GROUPS} review groups.")
    group, is_new = ReviewGroup.objects.get_or_create(team=team, name=name)
    if not is_new:
        raise Conflict(f"There is a group “{name}” already: change that one.", field="name")
    return group
