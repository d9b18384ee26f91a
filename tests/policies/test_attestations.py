"""Versions in service are attested again, or else fall back as their policy says."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from apps.accounts.confirmation import Confirmation
from apps.audit.models import AuditEvent
from apps.core.errors import Conflict, NotAllowed
from apps.deployments.models import Deployment, Endpoint
from apps.deployments.services import protect_endpoint, unprotect_endpoint
from apps.policies import services
from apps.policies.attestations import attest, attestations_due, enforce_attestations
from apps.policies.documents import ApprovalRule, Attestation, Fallback, PolicyDocument, Tier
from tests import builders
from tests.conftest import PASSWORD, Cast
from tests.policies.test_services import second_officer


@pytest.fixture
def endpoint(cast: Cast) -> Endpoint:
    """An endpoint on which a second version took the place of a first one."""
    model = builders.model(cast)
    place = builders.endpoint(cast)
    for _ in range(2):
        builders.live_request(cast, builders.recorded_version(cast, model), place)
    return place


def require(cast: Cast, fallback: Fallback, days: int = 30) -> None:
    document = PolicyDocument(
        (ApprovalRule("role:compliance_officer", 1),), attestation=Attestation(days, fallback), wait_minutes=1
    )
    version = services.propose_policy(
        cast.actor("compliance_officer"),
        team=cast.team,
        environment="production",
        tier=Tier.LIMITED,
        document=document,
        reason="Yearly review.",
    )
    services.confirm_policy(second_officer(cast), version=version, digest=version.digest)


def make_older(endpoint: Endpoint, days: int) -> None:
    Deployment.objects.filter(endpoint=endpoint).update(activated_at=timezone.now() - timedelta(days=days))


def answering(endpoint: Endpoint) -> list[int]:
    return [row.model_version.number for row in endpoint.deployments.answering().with_versions()]


def lapses(cast: Cast) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    return AuditEvent.objects.for_team(cast.team).filter(action="deployment.attestation_lapsed").count()


def sign(cast: Cast, endpoint: Endpoint, role: str = "compliance_officer", **changes: Any) -> Any:
    row = endpoint.deployments.answering().first()
    confirmation = Confirmation(("password",), timezone.now())
    values = {"endpoint": endpoint, "deployment_id": row.pk, "statement": "Drift and errors seen."}
    return attest(cast.actor(role), **({"confirmation": confirmation} | values | changes))


def test_without_a_policy_that_wants_it_nothing_is_due(cast: Cast, endpoint: Endpoint) -> None:
    make_older(endpoint, 4_000)
    assert attestations_due(cast.team, within=None) == []
    assert enforce_attestations() == 0
    with pytest.raises(Conflict, match="no policy wants"):
        sign(cast, endpoint)


@pytest.mark.parametrize(("fallback", "left"), [(Fallback.WARN, [2]), (Fallback.ROLL_BACK, [1]), (Fallback.STOP, [])])
def test_an_overdue_version_falls_back_as_the_policy_says(
    cast: Cast, endpoint: Endpoint, fallback: Fallback, left: list[int]
) -> None:
    require(cast, fallback)
    make_older(endpoint, 29)
    enforce_attestations()
    assert (answering(endpoint), lapses(cast)) == ([2], 0)
    (due,) = attestations_due(cast.team)
    assert not due.is_overdue
    make_older(endpoint, 31)
    enforce_attestations()
    assert (answering(endpoint), lapses(cast)) == (left, 1)
    enforce_attestations()
    assert lapses(cast) == 1


def test_an_attestation_starts_the_time_again(cast: Cast, endpoint: Endpoint) -> None:
    require(cast, Fallback.STOP)
    make_older(endpoint, 31)
    attestation = sign(cast, endpoint)
    assert (attestation.signed_name, attestation.factors) == ("Cora Blom", ["password"])
    assert enforce_attestations() == 0
    assert attestations_due(cast.team) == []
    assert answering(endpoint) == [2]


def test_who_may_not_attest(cast: Cast, endpoint: Endpoint) -> None:
    require(cast, Fallback.STOP)
    for role in ("data_scientist", "operator", "admin", "analyst"):
        with pytest.raises(NotAllowed):
            sign(cast, endpoint, role)
    old = Confirmation(("password",), timezone.now() - timedelta(hours=1))
    with pytest.raises(NotAllowed, match="Confirm again"):
        sign(cast, endpoint, confirmation=old)
    # Whoever uploaded it may not, whatever their roles are.
    membership = cast.data_scientist
    membership.roles = [*membership.roles, "compliance_officer"]
    membership.save()
    with pytest.raises(NotAllowed, match="uploaded"):
        sign(cast, endpoint, "data_scientist")


def test_a_version_that_does_not_answer_is_not_attested(cast: Cast, endpoint: Endpoint) -> None:
    require(cast, Fallback.STOP)
    retired = endpoint.deployments.exclude(retired_at=None).first()
    with pytest.raises(Conflict, match="does not answer"):
        sign(cast, endpoint, deployment_id=retired.pk)


def test_on_the_page_it_takes_the_password(cast: Cast, endpoint: Endpoint) -> None:
    require(cast, Fallback.WARN)
    make_older(endpoint, 31)
    browser, url = cast.browser("compliance_officer"), f"/endpoints/{endpoint.name}/attestation/"
    assert "To attest again" in browser.get("/").content.decode()
    assert "Overdue" in browser.get(url).content.decode()
    data = {"deployment_id": endpoint.deployments.answering().first().pk, "statement": "Seen."}
    assert browser.post(url, data | {"password": "wrong"}).status_code == 422
    assert "the time starts again" in browser.post(url, data | {"password": PASSWORD}, follow=True).content.decode()
    assert "To attest again" not in browser.get("/").content.decode()


def test_it_takes_two_to_lift_the_protection_of_an_endpoint(cast: Cast) -> None:
    officer, place = cast.actor("compliance_officer"), builders.endpoint(cast)
    for role in ("admin", "operator", "data_scientist", "analyst"):
        with pytest.raises(NotAllowed):
            unprotect_endpoint(cast.actor(role), endpoint=place)
    assert unprotect_endpoint(officer, endpoint=place) is False
    with pytest.raises(NotAllowed, match="another compliance officer"):
        unprotect_endpoint(officer, endpoint=place)
    assert unprotect_endpoint(second_officer(cast), endpoint=place) is True
    protect_endpoint(officer, endpoint=place)
    place.refresh_from_db()
    assert (place.is_protected, place.lifting_proposed_by) == (True, None)
    browser = cast.browser("compliance_officer")
    browser.post(f"/endpoints/{place.name}/protection/")
    assert "Withdraw" in browser.get("/policies/protection/").content.decode()
    browser.post(f"/endpoints/{place.name}/protection/", {"protect": "1"})
    place.refresh_from_db()
    assert place.lifting_proposed_by is None
