"""Signing in: passwords, second factors, lockout; and proving it again before a signature."""

from __future__ import annotations

import time
from typing import Any

import pytest
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import format_hotp_value, generate_totp_secret, hotp_value
from django.core.cache import cache
from django.test import Client

from apps.accounts import factors
from apps.accounts.models import Membership
from apps.audit.models import AuditEvent
from tests.conftest import PASSWORD, Cast


def code_of(secret: str, steps: int = 0) -> str:
    """What an authenticator app shows ``steps`` of 30 s from now."""
    return format_hotp_value(hotp_value(secret, int(time.time()) // 30 + steps))


def with_totp(cast: Cast, role: str) -> str:
    """Give a member an authenticator app; returns its secret."""
    secret = generate_totp_secret()
    factors.add_totp(cast.actor(role), user=getattr(cast, role).user, secret=secret)
    return secret


def enter(client: Client, email: str = "mira@example.com", password: str = PASSWORD, **more: Any) -> Any:
    return client.post("/sign-in/", {"login": email, "password": password}, **more)


def actions() -> list[str]:
    return list(AuditEvent.objects.order_by("pk").values_list("action", flat=True))


def test_a_session_begins_and_is_recorded(cast: Cast) -> None:
    assert enter(Client()).status_code == 302
    event = AuditEvent.objects.get(action="session.started")
    assert (event.team_id, event.actor_name) == (cast.team.pk, "Mira Sato")


def test_wrong_tries_lock_the_account_whoever_it_is(cast: Cast) -> None:
    def pages(email: str) -> list[tuple[int, str]]:
        return [_what(enter(Client(), email, "wrong-wrong-wrong")) for _ in range(10)]

    known, unknown = pages("mira@example.com"), pages("nobody@example.com")
    assert known == unknown
    assert "fit" in known[0][1]
    assert "Too many" in known[9][1]
    assert "Too many" in _what(enter(Client()))[1]  # the right password does not help now
    assert enter(Client(), "omar@example.com").status_code == 302
    assert (actions().count("session.refused"), actions().count("session.locked_out")) == (2, 2)


def test_a_host_or_a_forwarded_address_of_their_own_gives_nobody_more_tries(cast: Cast) -> None:
    for number in range(8):
        enter(Client(), password="wrong-wrong-wrong", HTTP_HOST=f"localhost:{number + 1}")
    last = enter(Client(), HTTP_HOST="localhost:99", HTTP_X_FORWARDED_FOR="203.0.113.9")
    assert "Too many" in _what(last)[1]


def test_one_address_cannot_spray_many_accounts(cast: Cast) -> None:
    for number in range(50):
        enter(Client(), f"person{number}@example.com", "Summer-2026-pass", HTTP_X_FORWARDED_FOR=f"203.0.113.{number}")
    assert "Too many" in _what(enter(Client()))[1]
    assert enter(Client(), REMOTE_ADDR="203.0.113.9").status_code == 302


def test_a_person_who_is_in_no_team_any_more_is_refused_like_a_wrong_password(cast: Cast) -> None:
    wrong = _what(enter(Client(), password="wrong-wrong-wrong"))
    Membership.objects.filter(pk=cast.data_scientist.pk).update(is_active=False)
    assert _what(enter(Client())) == wrong


def test_the_second_factor_is_asked_for_and_a_code_is_good_once(cast: Cast) -> None:
    secret = with_totp(cast, "data_scientist")
    client = Client()
    first = enter(client)
    assert (first.status_code, first["Location"]) == (302, "/sign-in/second-factor/")
    assert client.get("/models/").status_code == 302  # not in yet
    assert client.post("/sign-in/second-factor/", {"code": "000000"}).status_code == 422
    code = code_of(secret)
    assert client.post("/sign-in/second-factor/", {"code": code}).status_code == 302
    assert client.get("/models/").status_code == 200
    second = Client()
    enter(second)
    cache_miss = cache.delete(f"allauth.mfa.totp.used?user={cast.data_scientist.user_id}&code={code}")
    assert cache_miss  # the library has forgotten it; the product has not
    assert second.post("/sign-in/second-factor/", {"code": f"{code[:3]} {code[3:]}"}).status_code == 422


def test_secrets_of_factors_are_not_in_the_database(cast: Cast) -> None:
    secret = with_totp(cast, "data_scientist")
    assert secret not in str(list(Authenticator.objects.values_list("data", flat=True)))


def test_an_authenticator_app_is_set_up_and_recovery_codes_are_shown_once(cast: Cast) -> None:
    client = Client()
    enter(client)
    asked = client.get("/security/authenticator-app/")
    assert asked["Location"] == "/security/confirm/?next=%2Fsecurity%2Fauthenticator-app%2F"
    assert client.post("/security/confirm/", {"password": "wrong"}).status_code == 422
    confirmed = client.post(asked["Location"], {"password": PASSWORD, "next": "/security/authenticator-app/"})
    assert confirmed["Location"] == "/security/authenticator-app/"
    page = client.get("/security/authenticator-app/")
    answer = client.post("/security/authenticator-app/", {"code": code_of(page.context["secret"])})
    assert answer["Location"] == "/security/recovery-codes/"
    codes = client.get("/security/recovery-codes/").context["codes"]
    assert len(codes) == 10
    assert client.get("/security/recovery-codes/").context["codes"] == []
    assert "factor.added" in actions()
    other = Client()
    enter(other)
    assert other.post("/sign-in/second-factor/", {"code": codes[0]}).status_code == 302


def test_confirming_leads_nowhere_else(cast: Cast) -> None:
    client = cast.browser("analyst")
    answer = client.post("/security/confirm/", {"password": PASSWORD, "next": "https://evil.example/"})
    assert answer["Location"] == "/security/"


def test_the_first_confirmation_of_a_session_takes_both_factors(cast: Cast) -> None:
    secret = with_totp(cast, "compliance_officer")
    client = cast.browser("compliance_officer")
    confirm = "/security/confirm/"
    assert "two factors" in client.post(confirm, {"password": PASSWORD}).content.decode()
    assert client.post(confirm, {"code": code_of(secret, -1)}).status_code == 422
    assert client.post(confirm, {"password": PASSWORD, "code": "000000"}).status_code == 422
    assert client.post(confirm, {"password": PASSWORD, "code": code_of(secret)}).status_code == 302
    assert client.post(confirm, {"password": PASSWORD}).status_code == 302  # later ones take one
    assert client.post(confirm, {"code": code_of(secret, 1)}).status_code == 302


def test_too_many_wrong_confirmations_end_the_session(cast: Cast) -> None:
    client = cast.browser("compliance_officer")
    tries = [client.post("/security/confirm/", {"password": "wrong"}) for _ in range(5)]
    assert [answer.status_code for answer in tries] == [422, 422, 422, 422, 302]
    assert tries[-1]["Location"] == "/sign-in/"
    assert client.get("/models/").status_code == 302
    assert actions().count("confirmation.failed") == 5


@pytest.mark.parametrize("credential", ["{}", "[]", '"x"', "nonsense", '{"id": 1, "response": {}}'])
def test_a_made_up_passkey_is_refused(cast: Cast, credential: str) -> None:
    client = cast.browser("compliance_officer")
    client.post("/security/passkey-options/")
    assert client.post("/security/confirm/", {"credential": credential}).status_code == 422
    client.post("/security/confirm/", {"password": PASSWORD})
    client.post("/security/passkey/options/")
    assert client.post("/security/passkey/", {"name": "x", "credential": credential}).status_code == 422
    stranger = Client()
    stranger.post("/sign-in/passkey/options/")
    assert stranger.post("/sign-in/passkey/", {"credential": credential})["Location"] == "/sign-in/"


def _what(answer: Any) -> tuple[int, str]:
    """Status and words of a refusal."""
    errors = answer.context["form"].errors if answer.context else {}
    return answer.status_code, str(errors)
