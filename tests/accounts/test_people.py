"""Sign-in, invitations, roles and tokens."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from apps.accounts import services
from apps.accounts.models import ApiToken, Invitation, Membership, User
from apps.accounts.roles import ROLE_PERMISSIONS, SCOPE_PERMISSIONS, Role, Scope
from apps.audit.models import AuditEvent
from apps.core.errors import Conflict, DomainError, NotFound
from tests.conftest import PASSWORD, Cast


def test_sign_in_leads_back_to_the_page_and_refuses_alike(cast: Cast) -> None:
    client = Client()
    answer = client.get("/models/")
    assert answer.status_code == 302
    assert answer["Location"] == "/sign-in/?next=/models/"
    wrong_password = client.post("/sign-in/", {"login": "mira@example.com", "password": "wrong"})
    nobody = client.post("/sign-in/", {"login": "nobody@example.com", "password": "wrong"})
    assert (wrong_password.status_code, nobody.status_code) == (422, 422)
    assert wrong_password.context["form"].errors == nobody.context["form"].errors
    right = client.post("/sign-in/?next=/models/", {"login": "MIRA@example.com", "password": PASSWORD})
    assert (right.status_code, right["Location"]) == (302, "/models/")


def test_htmx_of_a_stranger_loads_the_sign_in_page(cast: Cast) -> None:
    answer = Client().get("/models/", headers={"HX-Request": "true", "HX-Current-URL": "http://testserver/models/"})
    assert (answer.status_code, answer["HX-Redirect"]) == (204, "http://testserver/models/")


def test_an_invitation_is_shown_once_stored_as_a_digest_and_works_once(cast: Cast) -> None:
    admin = cast.browser("admin")
    answer = admin.post("/settings/members/", {"email": "new@example.com", "roles": ["analyst", "operator"]})
    link = answer.context["link"]
    secret = link.rstrip("/").rpartition("/")[2]
    assert secret not in repr(Invitation.objects.values_list())
    assert link not in admin.get("/settings/members/").content.decode()

    guest = Client()
    weak = guest.post(f"/invitations/{secret}/", {"name": "New Person", "password": "short"})
    assert weak.status_code == 422
    joined = guest.post(f"/invitations/{secret}/", {"name": "New Person", "password": "walnut-orbit-lantern"})
    assert joined.status_code == 302
    member = Membership.objects.get(user__email="new@example.com")
    assert member.roles == [Role.ANALYST, Role.OPERATOR]
    assert guest.get("/models/").status_code == 200
    again = Client().post(f"/invitations/{secret}/", {"name": "Thief", "password": "walnut-orbit-lantern"})
    assert again.status_code == 404


def test_an_expired_invitation_is_refused(cast: Cast) -> None:
    _, secret = services.invite_member(
        cast.actor("admin"), team=cast.team, email="late@example.com", roles=[Role.ANALYST]
    )
    Invitation.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    with pytest.raises(NotFound):
        services.accept_invitation(secret=secret, name="Late", password=PASSWORD, address="", request_id="")


def test_an_invitation_falls_with_the_admin_who_sent_it(cast: Cast) -> None:
    _, secret = services.invite_member(
        cast.actor("admin"), team=cast.team, email="back@example.com", roles=[Role.ADMIN]
    )
    Membership.objects.filter(pk=cast.admin.pk).update(is_active=False)
    with pytest.raises(NotFound):
        services.accept_invitation(secret=secret, name="Back", password=PASSWORD, address="", request_id="")


def test_a_deactivated_member_does_not_come_back_by_invitation(cast: Cast) -> None:
    _, secret = services.invite_member(
        cast.actor("admin"), team=cast.team, email="otto@example.com", roles=[Role.ANALYST]
    )
    Membership.objects.create(user=cast.outsider.user, team=cast.team, roles=[Role.ANALYST], is_active=False)
    with pytest.raises(Conflict, match="activate"):
        services.accept_invitation(secret=secret, name="x", password=PASSWORD, address="", request_id="")


def test_the_owner_of_an_account_joins_another_team_with_its_password(cast: Cast) -> None:
    _, secret = services.invite_member(
        cast.actor("admin"), team=cast.team, email="otto@example.com", roles=[Role.ANALYST]
    )
    with pytest.raises(DomainError, match="its password"):
        services.accept_invitation(secret=secret, name="x", password="wrong", address="", request_id="")
    services.accept_invitation(secret=secret, name="x", password=PASSWORD, address="", request_id="")
    otto = cast.browser("outsider")
    assert otto.post("/team/", {"team": "risk"}).status_code == 302
    assert "Risk" in otto.get("/models/").content.decode()
    assert otto.post("/team/", {"team": "no-such-team"}).status_code == 404


def test_the_last_admin_stays(cast: Cast) -> None:
    with pytest.raises(Conflict, match="only admin"):
        services.change_member(cast.actor("admin"), membership=cast.admin, roles=[Role.ANALYST], is_active=True)
    with pytest.raises(Conflict, match="only admin"):
        services.change_member(cast.actor("admin"), membership=cast.admin, roles=[Role.ADMIN], is_active=False)


def test_a_token_is_shown_once_and_stored_as_a_digest(cast: Cast) -> None:
    browser = cast.browser("data_scientist")
    answer = browser.post("/settings/tokens/", {"name": "ci", "scopes": ["read", "build"], "lifetime_days": "30"})
    secret = answer.context["secret"]
    assert secret.startswith("csn_")
    token = ApiToken.objects.get()
    assert token.digest == services.digest_of(secret)
    assert secret not in repr(ApiToken.objects.values_list())
    assert secret not in browser.get("/settings/tokens/").content.decode()
    assert secret not in "".join(AuditEvent.objects.values_list("body", flat=True))


def test_a_token_acts_within_its_scopes_and_its_owners_roles(cast: Cast) -> None:
    reader = cast.api("data_scientist", Scope.READ)
    assert reader.get("/api/v1/models/").status_code == 200
    assert reader.post("/api/v1/models/", {"name": "m", "task": "REGRESSION"}).status_code == 403
    analyst_with_all_scopes = cast.api("analyst")
    assert analyst_with_all_scopes.post("/api/v1/models/", {"name": "m", "task": "REGRESSION"}).status_code == 403
    builder = cast.api("data_scientist", Scope.READ, Scope.BUILD)
    assert builder.post("/api/v1/models/", {"name": "m", "task": "REGRESSION"}).status_code == 201


def test_no_scope_lets_a_token_approve_or_administer() -> None:
    in_scopes = frozenset().union(*SCOPE_PERMISSIONS.values())
    assert not in_scopes & {"promotions.review", "promotions.set_policy", "accounts.administer"}


def test_an_admin_has_no_other_power() -> None:
    assert ROLE_PERMISSIONS[Role.ADMIN] == {"team.view", "accounts.administer", "accounts.provision"}


def test_a_revoked_token_and_a_disabled_member_are_refused_at_once(cast: Cast) -> None:
    api = cast.api("operator")
    assert api.get("/api/v1/models/").status_code == 200
    services.revoke_token(cast.actor("operator"), token=ApiToken.objects.get())
    refused = api.get("/api/v1/models/")
    assert (refused.status_code, refused["Content-Type"]) == (401, "application/problem+json")
    second = cast.api("operator")
    services.change_member(cast.actor("admin"), membership=cast.operator, roles=[Role.OPERATOR], is_active=False)
    assert second.get("/api/v1/models/").status_code == 401


def test_a_deactivated_person_is_signed_out(cast: Cast) -> None:
    browser = cast.browser("analyst")
    User.objects.filter(pk=cast.analyst.user_id).update(is_active=False)
    assert browser.get("/models/").status_code == 302


def test_somebody_elses_token_is_not_found(cast: Cast) -> None:
    cast.token("operator")
    token = ApiToken.objects.get()
    assert cast.browser("analyst").post(f"/settings/tokens/{token.pk}/revoke/").status_code == 404
    assert cast.browser("admin").post(f"/settings/tokens/{token.pk}/revoke/").status_code == 302
    token.refresh_from_db()
    assert token.state == "REVOKED"


def test_a_forged_form_is_refused(cast: Cast) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(cast.data_scientist.user)
    assert client.post("/models/new/", {"name": "m", "task": "REGRESSION"}).status_code == 403
    assert client.post("/api/v1/models/", {"name": "m", "task": "REGRESSION"}).status_code == 403


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("/api/v1/models/?cursor=cD1hYmM=", 404),
        ("/api/v1/models/a%00b/", 404),
        ("/api/v1/models/a%00b/versions/", 404),
        ("/models/?q=a%00b", 422),
        ("/audit/?actor=a%00b", 403),
        ("/sign-in/?next=/sign-in/", 302),
        ("/jobs/99999999999999999999/", 404),
        ("/approvals/?before=1e9", 422),
    ],
)
def test_odd_input_is_refused_and_breaks_nothing(cast: Cast, address: str, status: int) -> None:
    assert cast.browser("data_scientist").get(address).status_code == status


def test_a_body_that_is_read_into_memory_has_a_low_cap(cast: Cast) -> None:
    body = '{"name": "' + "x" * 4_000_000 + '"}'
    answer = cast.browser("data_scientist").post("/api/v1/models/", body, content_type="application/json")
    assert (answer.status_code, answer["Content-Type"]) == (413, "application/problem+json")
