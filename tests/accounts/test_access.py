"""Service accounts, network ranges, deactivation by SCIM, and teams that want a second factor."""

from __future__ import annotations

from typing import Any

import pytest
from allauth.usersessions.models import UserSession
from django.test import Client
from rest_framework.test import APIClient

from apps.accounts import services
from apps.accounts.models import ApiToken, Invitation, Membership
from apps.accounts.roles import Role, Scope
from apps.audit.models import AuditEvent
from apps.core.errors import Conflict
from apps.deployments.manifest import _tokens
from tests.accounts.test_sign_in import actions, code_of, enter, with_totp
from tests.conftest import PASSWORD, Cast


def caller(secret: str) -> APIClient:
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {secret}")
    return client


def service_token(cast: Cast, role: Role, *scopes: Scope, networks: tuple[str, ...] = ()) -> str:
    account = services.create_service_account(cast.actor("admin"), team=cast.team, name=str(role), roles=[role])
    _, secret = services.create_token(
        cast.actor("admin"), membership=account, name="t", scopes=scopes, lifetime_days=1, networks=networks
    )
    return secret


def test_a_service_account_acts_by_its_token_and_never_signs_in(cast: Cast) -> None:
    secret = service_token(cast, Role.DATA_SCIENTIST, Scope.READ, Scope.BUILD)
    client = caller(secret)
    assert client.get("/api/v1/models/").status_code == 200
    assert client.post("/api/v1/models/", {"name": "m", "task": "REGRESSION"}).status_code == 201
    assert AuditEvent.objects.get(action="model.registered").actor_name == "data_scientist"
    account = Membership.objects.get(user__is_service=True)
    assert enter(Client(), account.user.email, "").status_code == 422
    browser = Client()
    browser.force_login(account.user)
    assert browser.get("/settings/members/").status_code == 403


def test_an_admin_gives_a_service_account_a_token_on_its_page(cast: Cast) -> None:
    admin = cast.browser("admin")
    made = admin.post("/settings/service-accounts/", {"name": "nightly", "roles": ["operator"]})
    answer = admin.post(made["Location"], _token_form(networks="10.1.0.0/16, 2001:db8::/32"))
    assert answer.context["secret"].startswith("csn_")
    assert ApiToken.objects.get().networks == ["10.1.0.0/16", "2001:db8::/32"]
    assert cast.browser("operator").get(made["Location"]).status_code == 403
    assert admin.post(made["Location"], _token_form(networks="10.1.0.7/16")).status_code == 422
    assert cast.browser("outsider").get(made["Location"]).status_code == 404


@pytest.mark.parametrize(
    ("network", "address", "status"),
    [
        ("10.1.0.0/16", "10.1.2.3", 200),
        ("10.1.0.0/16", "::ffff:10.1.2.3", 200),
        ("10.1.0.0/16", "10.2.0.1", 401),
        ("2001:db8::/32", "2001:db8::1", 200),
        ("2001:db8::/32", "10.1.2.3", 401),
        ("10.1.0.0/16", "", 401),
    ],
)
def test_a_token_is_good_only_from_its_networks(cast: Cast, network: str, address: str, status: int) -> None:
    client = caller(service_token(cast, Role.ANALYST, Scope.READ, networks=(network,)))
    headers = {"REMOTE_ADDR": address, "HTTP_X_FORWARDED_FOR": "10.1.2.3"}
    answer = client.get("/api/v1/models/", **headers)
    unknown = caller("csn_nonsense").get("/api/v1/models/", **headers)
    assert answer.status_code == status
    assert status == 200 or answer.content == unknown.content


@pytest.mark.parametrize(
    ("proxies", "forwarded", "status"),
    [
        (0, "10.1.2.3", 401),
        (1, "10.1.2.3", 200),
        (1, "10.1.2.3, 192.0.2.1", 401),
        (2, "10.1.2.3, 192.0.2.1", 200),
        (2, "10.1.2.3", 401),
    ],
)
def test_only_our_own_proxies_say_where_a_call_is_from(
    cast: Cast, settings: Any, proxies: int, forwarded: str, status: int
) -> None:
    settings.TRUSTED_PROXY_COUNT = proxies
    client = caller(service_token(cast, Role.ANALYST, Scope.READ, networks=("10.1.0.0/16",)))
    assert client.get("/api/v1/models/", HTTP_X_FORWARDED_FOR=forwarded).status_code == status


def test_inference_is_not_told_of_tokens_with_a_range(cast: Cast) -> None:
    service_token(cast, Role.ANALYST, Scope.PREDICT, networks=("10.1.0.0/16",))
    assert not _tokens()
    ApiToken.objects.update(networks=[])
    assert len(_tokens()[cast.team.pk]) == 1


def test_a_service_account_is_not_the_admin_that_a_team_needs(cast: Cast) -> None:
    service_token(cast, Role.ADMIN, Scope.PROVISION)
    with pytest.raises(Conflict, match="only admin"):
        services.change_member(cast.actor("admin"), membership=cast.admin, roles=[Role.ANALYST], is_active=True)


def test_scim_finds_and_deactivates_a_member_everywhere(cast: Cast) -> None:
    scim = caller(service_token(cast, Role.ADMIN, Scope.PROVISION))
    browser = Client()
    enter(browser, "omar@example.com")
    api = cast.api("operator")
    found = scim.get('/api/v1/scim/v2/Users?filter=userName eq "OMAR@example.com"').json()
    assert (found["totalResults"], found["Resources"][0]["active"]) == (1, True)
    user = found["Resources"][0]
    assert user["id"] == str(cast.operator.pk)
    patch = {"schemas": [], "Operations": [{"op": "Replace", "path": "active", "value": "False"}]}
    answer = scim.patch(f"/api/v1/scim/v2/Users/{user['id']}", patch, format="json")
    assert (answer.status_code, answer.json()["active"]) == (200, False)
    assert browser.get("/models/").status_code == 302
    assert api.get("/api/v1/models/").status_code == 401
    assert not _tokens()
    assert not UserSession.objects.filter(user=cast.operator.user).exists()
    event = AuditEvent.objects.get(action="member.deactivated")
    assert event.actor_name == "admin"  # the service account's name here
    assert "session.revoked" in actions()
    assert enter(Client(), "omar@example.com").status_code == 422


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "replace", "path": "userName", "value": "x@example.com"},
        {"op": "replace", "value": {"active": False, "roles": ["admin"]}},
        {"op": "remove", "path": "active", "value": None},
        {"op": "replace", "path": "active", "value": 0},
    ],
)
def test_scim_changes_nothing_else(cast: Cast, operation: dict[str, Any]) -> None:
    scim = caller(service_token(cast, Role.ADMIN, Scope.PROVISION))
    answer = scim.patch(f"/api/v1/scim/v2/Users/{cast.operator.pk}", {"Operations": [operation]}, format="json")
    assert answer.status_code == 422
    assert answer.json()["schemas"] == ["urn:ietf:params:scim:api:messages:2.0:Error"]
    cast.operator.refresh_from_db()
    assert cast.operator.is_active


def test_scim_shows_no_other_team_and_lets_no_other_token_in(cast: Cast) -> None:
    scim = caller(service_token(cast, Role.ADMIN, Scope.PROVISION))
    assert scim.get(f"/api/v1/scim/v2/Users/{cast.outsider.pk}").status_code == 404
    assert scim.get("/api/v1/scim/v2/Users").json()["totalResults"] == 5
    assert len(scim.get("/api/v1/scim/v2/Users?count=2&startIndex=2").json()["Resources"]) == 2
    assert scim.get('/api/v1/scim/v2/Users?filter=active eq "x"').status_code == 422
    assert cast.api("operator").get("/api/v1/scim/v2/Users").status_code == 403
    assert scim.get("/api/v1/members/").status_code == 403


def test_a_team_that_wants_a_second_factor_waits_for_it(cast: Cast) -> None:
    admin = cast.browser("admin")
    refused = admin.post("/settings/sign-in/", {"is_required": "on"})
    assert "for yourself first" in refused.content.decode()
    with_totp(cast, "admin")
    assert admin.post("/settings/sign-in/", {"is_required": "on"}).status_code == 302
    mira = Client()
    enter(mira)
    assert mira.get("/models/")["Location"] == "/security/"
    assert mira.get("/models/", headers={"HX-Request": "true"})["HX-Redirect"] == "/security/"
    assert "wants a second factor" in mira.get("/security/").content.decode()
    assert mira.get("/api/v1/models/").status_code == 403
    assert cast.api("data_scientist").get("/api/v1/models/").status_code == 403
    service = caller(service_token(cast, Role.ANALYST, Scope.READ))
    assert service.get("/api/v1/models/").status_code == 200
    mira.post("/security/confirm/", {"password": PASSWORD})
    page = mira.get("/security/authenticator-app/")
    mira.post("/security/authenticator-app/", {"code": code_of(page.context["secret"])})
    assert mira.get("/models/").status_code == 200


def test_an_invitation_can_be_revoked(cast: Cast) -> None:
    invitation, secret = services.invite_member(
        cast.actor("admin"), team=cast.team, email="new@example.com", roles=[Role.ANALYST]
    )
    admin = cast.browser("admin")
    assert cast.browser("outsider").post(f"/settings/invitations/{invitation.pk}/revoke/").status_code == 404
    assert admin.post(f"/settings/invitations/{invitation.pk}/revoke/").status_code == 302
    assert Client().get(f"/invitations/{secret}/").status_code == 404
    assert Invitation.objects.get().state == "REVOKED"
    assert actions().count("invitation.revoked") == 1


def test_an_invitation_is_no_place_to_guess_a_password(cast: Cast) -> None:
    _, secret = services.invite_member(
        cast.actor("admin"), team=cast.team, email="otto@example.com", roles=[Role.ANALYST]
    )
    guess = {"name": "Otto", "password": "wrong-wrong-wrong"}
    answers = [Client().post(f"/invitations/{secret}/", guess) for _ in range(9)]
    assert "its password" in answers[7].content.decode()
    assert "Too many failed tries" in answers[8].content.decode()
    assert "Too many" in enter(Client(), "otto@example.com").content.decode()


def test_an_invitation_does_not_go_round_the_second_factor(cast: Cast) -> None:
    with_totp(cast, "outsider")
    _, secret = services.invite_member(
        cast.actor("admin"), team=cast.team, email="otto@example.com", roles=[Role.ANALYST]
    )
    client = Client()
    answer = client.post(f"/invitations/{secret}/", {"name": "Otto", "password": PASSWORD})
    assert answer["Location"] == "/sign-in/second-factor/"
    assert client.get("/models/").status_code == 302


def test_sessions_are_listed_and_ended(cast: Cast) -> None:
    here, there = Client(), Client()
    enter(here)
    enter(there, HTTP_USER_AGENT="Another browser")
    page = here.get("/security/")
    assert page.context["sessions"][0].user_agent == "Another browser"
    pk = page.context["sessions"][0].pk
    assert cast.browser("operator").post(f"/security/sessions/{pk}/end/").status_code == 404
    assert here.post(f"/security/sessions/{pk}/end/").status_code == 302
    assert there.get("/models/").status_code == 302
    assert here.get("/models/").status_code == 200


def test_another_password_ends_the_other_sessions(cast: Cast) -> None:
    here, there = Client(), Client()
    enter(here)
    enter(there)
    here.post("/security/confirm/", {"password": PASSWORD})
    assert here.post("/security/password/", {"password": "password1234"}).status_code == 422
    assert here.post("/security/password/", {"password": "a-longer-story"}).status_code == 302
    assert here.get("/models/").status_code == 200
    assert there.get("/models/").status_code == 302
    assert enter(Client(), password="a-longer-story").status_code == 302


def _token_form(**more: str) -> dict[str, Any]:
    return {"name": "t", "scopes": ["read"], "lifetime_days": "30", **more}
