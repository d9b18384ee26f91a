"""Single sign-on against a real OpenID Connect provider, and the roles that come with its groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from django.test import Client
from oidc_provider_mock import User as Person
from oidc_provider_mock import run_server_in_thread

from apps.accounts import services
from apps.accounts.models import Membership, User
from apps.accounts.roles import Role
from apps.audit.models import AuditEvent
from console.settings import openid_connect
from tests.accounts.test_sign_in import actions, enter, with_totp
from tests.conftest import Cast

pytestmark = pytest.mark.filterwarnings("ignore")  # the provider's, not ours


class Provider:
    """The organisation's side: who is known there, and what is said of them."""

    def __init__(self, address: str) -> None:
        self.address = address

    def knows(self, subject: str, **claims: Any) -> None:
        """Have the provider say this of a person."""
        httpx.put(f"{self.address}/users/{subject}", json=claims).raise_for_status()

    def sign_in(self, subject: str, client: Client | None = None, **changes: str) -> tuple[Client, Any]:
        """Walk a browser through it; the answer is the callback's. ``changes`` are made to its query."""
        client = client or Client()
        asked = client.get("/sign-in/organisation/?next=/models/", HTTP_HOST="localhost")["Location"]
        assert asked.startswith(self.address)
        agreed = httpx.post(asked, data={"sub": subject})
        assert agreed.status_code == 302, agreed.text
        back = httpx.URL(agreed.headers["Location"]).copy_merge_params(changes)
        return client, client.get(str(back.copy_with(scheme="", host="")), HTTP_HOST="localhost")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with run_server_in_thread(user_claims=[Person(sub="nobody")]) as running:
        yield f"http://localhost:{running.server_port}"


@pytest.fixture
def provider(server: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Provider:
    monkeypatch.setenv("OIDC_CLIENT_ID", "countersign")
    monkeypatch.setenv("OIDC_CLIENT_SECRET", "secret")
    settings.SOCIALACCOUNT_PROVIDERS = openid_connect(server)
    return Provider(server)


def mapped(cast: Cast, group: str, role: Role) -> None:
    services.map_group(cast.actor("admin"), team=cast.team, group=group, role=role)


LENA = {"email": "lena@example.com", "email_verified": True, "name": "Lena Falk"}


def test_a_person_of_a_mapped_group_joins_with_its_role(cast: Cast, provider: Provider) -> None:
    mapped(cast, "risk-analysts", Role.ANALYST)
    provider.knows("lena", **LENA, groups=["risk-analysts", "everybody"])
    client, answer = provider.sign_in("lena")
    assert (answer.status_code, answer["Location"]) == (302, "/models/")
    assert client.get("/models/").status_code == 200
    membership = Membership.objects.get(user__email="lena@example.com")
    assert (membership.team, membership.roles, membership.is_from_groups) == (cast.team, ["analyst"], True)
    assert membership.groups == ["everybody", "risk-analysts"]
    assert not membership.user.has_usable_password()
    assert {"user.created", "member.added", "session.started", "group_mapping.added"} <= set(actions())
    assert enter(Client(), "lena@example.com", "").status_code == 422


def test_roles_follow_the_groups_and_end_with_them(cast: Cast, provider: Provider) -> None:
    mapped(cast, "risk-analysts", Role.ANALYST)
    mapped(cast, "risk-scientists", Role.DATA_SCIENTIST)
    provider.knows("lena", **LENA, groups=["risk-analysts"])
    provider.sign_in("lena")
    provider.knows("lena", **LENA, groups=["risk-scientists"])
    provider.sign_in("lena")
    membership = Membership.objects.get(user__email="lena@example.com")
    assert membership.roles == ["data_scientist"]
    provider.knows("lena", **LENA, groups=[])
    _, answer = provider.sign_in("lena")
    assert answer["Location"] == "/sign-in/"


def test_a_stranger_of_no_mapped_group_leaves_no_trace(cast: Cast, provider: Provider) -> None:
    provider.knows("eve", email="eve@example.com", email_verified=True, groups=["risk-analysts"])
    client, answer = provider.sign_in("eve")
    assert answer["Location"] == "/sign-in/"
    assert "no team takes members" in client.get("/sign-in/").content.decode()
    assert not User.objects.filter(email="eve@example.com").exists()


@pytest.mark.parametrize("claims", [{"email_verified": False}, {}, {"email": ""}, {"email": "no address"}])
def test_an_address_that_the_provider_did_not_check_opens_no_account(
    cast: Cast, provider: Provider, claims: dict[str, Any]
) -> None:
    provider.knows("mallory", **{"email": "cora@example.com", **claims})
    client, answer = provider.sign_in("mallory")
    assert answer["Location"] == "/sign-in/"
    assert client.get("/models/").status_code == 302


def test_a_member_comes_by_it_too_and_keeps_the_roles_that_an_admin_gave(cast: Cast, provider: Provider) -> None:
    mapped(cast, "risk-analysts", Role.ANALYST)
    provider.knows("cora", email="Cora@example.com", email_verified=True, groups=["risk-analysts"])
    client, _ = provider.sign_in("cora")
    assert client.get("/audit/").status_code == 200
    cast.compliance_officer.refresh_from_db()
    assert (cast.compliance_officer.roles, cast.compliance_officer.groups) == (
        ["compliance_officer"],
        ["risk-analysts"],
    )
    assert AuditEvent.objects.filter(action="session.started", actor_name="Cora Blom").exists()


def test_whom_an_admin_deactivated_stays_so(cast: Cast, provider: Provider) -> None:
    mapped(cast, "risk-analysts", Role.ANALYST)
    provider.knows("lena", **LENA, groups=["risk-analysts"])
    provider.sign_in("lena")
    membership = Membership.objects.get(user__email="lena@example.com")
    services.change_member(cast.actor("admin"), membership=membership, roles=[Role.ANALYST], is_active=False)
    assert provider.sign_in("lena")[1]["Location"] == "/sign-in/"


def test_a_second_factor_is_asked_for_unless_the_provider_checked_one(cast: Cast, provider: Provider) -> None:
    services.require_second_factor(cast.actor("admin"), team=cast.team, is_required=_admin_is_secured(cast))
    cora = {"email": "cora@example.com", "email_verified": True}
    provider.knows("cora", **cora)
    client, _ = provider.sign_in("cora")
    assert client.get("/models/")["Location"] == "/security/"
    provider.knows("cora", **cora, amr=["pwd", "mfa"])
    client, _ = provider.sign_in("cora")
    assert client.get("/models/").status_code == 200
    with_totp(cast, "compliance_officer")
    assert provider.sign_in("cora")[1]["Location"] == "/sign-in/second-factor/"


def test_a_forged_answer_signs_nobody_in(cast: Cast, provider: Provider) -> None:
    provider.knows("cora", email="cora@example.com", email_verified=True)
    for changes in ({"state": "forged"}, {"code": "forged"}):
        client, answer = provider.sign_in("cora", **changes)
        assert answer["Location"] == "/sign-in/"
        assert client.get("/models/").status_code == 302


def test_without_a_provider_there_is_no_way_round(cast: Cast) -> None:
    assert Client().get("/sign-in/organisation/")["Location"] == "/sign-in/"
    assert Client().get("/sign-in/organisation/callback/?code=x&state=y")["Location"] == "/sign-in/"


def _admin_is_secured(cast: Cast) -> bool:
    with_totp(cast, "admin")
    return True
