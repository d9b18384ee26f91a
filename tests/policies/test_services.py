"""Risk assessments and policies, from proposal to force, with the people who may and may not."""

from __future__ import annotations

from threading import Barrier, Thread
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction

from apps.accounts import services as accounts
from apps.accounts.models import Membership
from apps.accounts.roles import Role
from apps.audit.actor import Actor
from apps.audit.models import AuditEvent
from apps.core.errors import Conflict, DomainError, NotAllowed
from apps.policies import services
from apps.policies.documents import ApprovalRule, PolicyDocument, Tier
from apps.policies.models import PolicyVersion
from apps.policies.risk import QUESTIONS
from apps.registry import services as registry
from apps.registry.models import ModelVersion
from tests import builders
from tests.conftest import PASSWORD, Cast

HARMLESS = {question.key: question.answers[0][0] for question in QUESTIONS}
TWO_OFFICERS = PolicyDocument((ApprovalRule("role:compliance_officer", 2),))


def second_officer(cast: Cast, *roles: Role) -> Actor:
    membership = accounts.create_member(
        Actor.system("test"),
        team=cast.team,
        email="zoe@example.com",
        name="Zoe Quist",
        password=PASSWORD,
        roles=[Role.COMPLIANCE_OFFICER, *roles],
    )
    return Actor(membership.user_id, membership.user.name, permissions=membership.permissions)


def propose(cast: Cast, document: PolicyDocument = TWO_OFFICERS, tier: Tier = Tier.LIMITED, **kw: Any) -> PolicyVersion:
    actor = kw.pop("actor", cast.actor("compliance_officer"))
    values = {"team": cast.team, "environment": "production", "reason": "Stricter."} | kw
    return services.propose_policy(actor, tier=tier, document=document, **values)


def actions(cast: Cast) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    return list(AuditEvent.objects.for_team(cast.team).order_by("seq").values_list("action", flat=True))


def test_there_is_always_a_policy(cast: Cast) -> None:
    version = services.policy_in_force(cast.team, "staging", Tier.LOW)
    assert version.is_built_in
    assert [rule.sentence for rule in version.document.approvals] == ["1 from the role compliance officer"]
    assert services.policy_in_force(cast.team, "staging", Tier.LOW).pk == version.pk
    assert services.policy_in_force(cast.other_team, "staging", Tier.LOW).pk != version.pk


def test_a_change_takes_two_compliance_officers(cast: Cast) -> None:
    old = services.policy_in_force(cast.team, "production", Tier.LIMITED)
    version = propose(cast)
    assert services.policy_in_force(cast.team, "production", Tier.LIMITED) == old
    with pytest.raises(NotAllowed, match="another compliance officer"):
        services.confirm_policy(cast.actor("compliance_officer"), version=version, digest=version.digest)
    for role in ("admin", "operator", "data_scientist", "analyst"):
        with pytest.raises(NotAllowed):
            services.confirm_policy(cast.actor(role), version=version, digest=version.digest)
    services.confirm_policy(second_officer(cast), version=version, digest=version.digest)
    assert services.policy_in_force(cast.team, "production", Tier.LIMITED).document == TWO_OFFICERS
    assert services.policy_in_force(cast.team, "production", Tier.LOW).is_built_in
    # What was bound to the old version can still read it.
    old.refresh_from_db()
    assert (old.state, old.document.approval_count) == ("SUPERSEDED", 1)
    assert [action for action in actions(cast) if "policy" in action] == ["policy.proposed", "policy.confirmed"]


def test_a_proposal_is_confirmed_as_it_was_seen(cast: Cast) -> None:
    version = propose(cast)
    with pytest.raises(Conflict, match="not what you saw"):
        services.confirm_policy(second_officer(cast), version=version, digest="0" * 64)


def test_a_proposal_altered_in_the_database_is_refused(cast: Cast) -> None:
    version = propose(cast)
    weaker = version.body | {"wait_minutes": 1}
    PolicyVersion.objects.filter(pk=version.pk).update(body=weaker)
    with pytest.raises(Conflict, match="not what you saw"):
        services.confirm_policy(second_officer(cast), version=version, digest=version.digest)


def test_a_proposal_can_be_withdrawn_or_rejected_and_only_once(cast: Cast) -> None:
    version = propose(cast)
    with pytest.raises(Conflict, match="a proposal for this policy already"):
        propose(cast, actor=second_officer(cast), document=PolicyDocument((ApprovalRule("group:a", 1),)))
    services.reject_policy(cast.actor("compliance_officer"), version=version, comment="Mistaken.")
    with pytest.raises(Conflict, match="rejected already"):
        services.reject_policy(cast.actor("compliance_officer"), version=version, comment="Again.")
    assert propose(cast).number == version.number + 1


def test_who_may_propose_what(cast: Cast) -> None:
    for role in ("admin", "operator", "data_scientist", "analyst"):
        with pytest.raises(NotAllowed):
            propose(cast, actor=cast.actor(role))
    with pytest.raises(DomainError, match="nothing would change"):
        propose(cast, document=services.policy_in_force(cast.team, "production", Tier.LIMITED).document)
    with pytest.raises(DomainError, match="two different"):
        propose(cast, tier=Tier.HIGH)


def test_the_database_itself_wants_two_people(cast: Cast) -> None:
    version = propose(cast)
    rows = PolicyVersion.objects.filter(pk=version.pk)
    services.policy_in_force(cast.team, "production", Tier.LIMITED)
    PolicyVersion.objects.filter(policy=version.policy, number=1).update(state="SUPERSEDED")
    for decided_by in (version.proposed_by, None):
        with pytest.raises(IntegrityError), transaction.atomic():
            rows.update(state="IN_FORCE", decided_by=decided_by)


@pytest.mark.django_db(transaction=True)
def test_two_who_confirm_at_once_have_one_outcome(cast: Cast) -> None:
    version = propose(cast)
    actors = [second_officer(cast), None]
    third = accounts.create_member(
        Actor.system("test"),
        team=cast.team,
        email="u@example.com",
        name="U",
        password=PASSWORD,
        roles=[Role.COMPLIANCE_OFFICER],
    )
    actors[1] = Actor(third.user_id, "U", permissions=third.permissions)
    barrier, outcomes = Barrier(2), []

    def confirm(actor: Any) -> None:
        barrier.wait()
        try:
            services.confirm_policy(actor, version=version, digest=version.digest)
            outcomes.append("confirmed")
        except Conflict:
            outcomes.append("too late")
        finally:
            connection.close()

    threads = [Thread(target=confirm, args=(actor,)) for actor in actors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(outcomes) == ["confirmed", "too late"]


def test_an_unassessed_model_is_limited(cast: Cast) -> None:
    model = builders.model(cast)
    assert services.tier_of(model) is Tier.LIMITED
    assert services.risk_evidence(model)["is_assessed"] is False


def test_an_assessment_computes_the_tier(cast: Cast) -> None:
    model = builders.model(cast)
    assessment = services.assess_risk(cast.actor("data_scientist"), model=model, answers=HARMLESS | {"area": "yes"})
    assert (assessment.number, assessment.tier, services.tier_of(model)) == (1, "high", Tier.HIGH)
    assert services.risk_evidence(model)["tier"] == "high"
    assert actions(cast)[-1] == "model_risk.assessed"


def test_the_tier_is_overridden_upward_only_and_with_a_reason(cast: Cast) -> None:
    model, actor = builders.model(cast), cast.actor("compliance_officer")
    with pytest.raises(DomainError, match="never lower"):
        services.assess_risk(actor, model=model, answers=HARMLESS | {"area": "yes"}, tier=Tier.LOW)
    with pytest.raises(DomainError, match="Say why"):
        services.assess_risk(actor, model=model, answers=HARMLESS, tier=Tier.HIGH)
    services.assess_risk(actor, model=model, answers=HARMLESS, tier=Tier.HIGH, override_reason="It makes the news.")
    assert services.tier_of(model) is Tier.HIGH


def test_only_a_compliance_officer_lowers_a_tier(cast: Cast) -> None:
    model = builders.model(cast)
    with pytest.raises(NotAllowed, match="compliance officer can lower"):
        services.assess_risk(cast.actor("data_scientist"), model=model, answers=HARMLESS)
    services.assess_risk(cast.actor("compliance_officer"), model=model, answers=HARMLESS)
    assert services.tier_of(model) is Tier.LOW
    for role in ("operator", "analyst", "admin"):
        with pytest.raises(NotAllowed):
            services.assess_risk(cast.actor(role), model=model, answers=HARMLESS)


def test_people_have_the_roles_that_they_have_now(cast: Cast) -> None:
    Membership.objects.filter(pk=cast.analyst.pk).update(is_active=False)
    found = {person.id: person for person in services.people(cast.team)}
    assert found[cast.compliance_officer.user_id].roles == {"compliance_officer"}
    assert not found[cast.analyst.user_id].is_active
    assert cast.outsider.user_id not in found


def test_an_upload_says_who_trained_it_and_on_what(cast: Cast) -> None:
    digest = "AB" * 32
    version = registry.upload_model_version(
        cast.actor("data_scientist"),
        model=builders.model(cast),
        file=builders.upload(builders.linear_onnx(91)),
        trained_by="ANA@example.com",
        training_data=f"{digest}  loans 2025.csv\n\n",
    )
    assert version.trained_by == cast.analyst.user
    assert version.training_data == [{"name": "loans 2025.csv", "sha256": digest.lower()}]
    with pytest.raises(IntegrityError, match="immutable"), transaction.atomic():
        ModelVersion.objects.filter(pk=version.pk).update(trained_by=None)


@pytest.mark.parametrize(
    "values", [{"trained_by": "otto@example.com"}, {"training_data": "abc loans"}, {"training_data": "a" * 64}]
)
def test_a_stranger_or_a_digest_that_is_none_is_refused(cast: Cast, values: dict[str, str]) -> None:
    file = builders.upload(builders.linear_onnx(92))
    with pytest.raises(DomainError):
        registry.upload_model_version(cast.actor("data_scientist"), model=builders.model(cast), file=file, **values)


def test_a_protected_alias_moves_by_an_approved_request_only(cast: Cast) -> None:
    model, scientist = builders.model(cast), cast.actor("data_scientist")
    old, new = builders.recorded_version(cast, model), builders.recorded_version(cast, model)
    registry.set_alias(scientist, model_version=old, name="champion")
    registry.protect_alias(cast.actor("compliance_officer"), team=cast.team, name="champion")
    with pytest.raises(Conflict, match="Choose “Request promotion”"):
        registry.set_alias(scientist, model_version=new, name="champion")
    with pytest.raises(Conflict, match="which is protected"):
        registry.archive_version(scientist, model_version=old)
    registry.set_alias(scientist, model_version=new, name="challenger")
    registry.set_alias(Actor.system("controller"), model_version=new, name="champion", approved_request_id=7)
    assert new.aliases.filter(name="champion").exists()


def test_it_takes_two_to_lift_a_protection(cast: Cast) -> None:
    officer, second = cast.actor("compliance_officer"), second_officer(cast)
    for role in ("admin", "operator", "data_scientist", "analyst"):
        with pytest.raises(NotAllowed):
            registry.protect_alias(cast.actor(role), team=cast.team, name="champion")
    protection = registry.protect_alias(officer, team=cast.team, name="champion")
    assert registry.unprotect_alias(officer, protection=protection) is False
    with pytest.raises(NotAllowed, match="another compliance officer"):
        registry.unprotect_alias(officer, protection=protection)
    registry.protect_alias(officer, team=cast.team, name="champion")  # withdraws the proposal
    assert registry.unprotect_alias(second, protection=protection) is False
    assert registry.unprotect_alias(officer, protection=protection) is True
    with pytest.raises(Conflict):
        registry.unprotect_alias(officer, protection=protection)
