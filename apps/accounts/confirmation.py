"""Step-up: a signed-in person proves once more that it is they, before they sign or change how they sign in."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from typing import Any
from urllib.parse import urlencode

from allauth.core import ratelimit
from allauth.core.exceptions import ImmediateHttpResponse
from allauth.mfa.models import Authenticator
from django.contrib.auth import logout
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils import timezone

from apps.accounts.entrance import refused
from apps.accounts.forms import CodeForm, PasskeyCheckForm
from apps.accounts.models import User
from apps.audit.services import record
from apps.core.errors import NotAllowed

MAX_WRONG_TRIES = 5
"""Wrong tries in a row after which the session ends: an open screen is no place to guess."""
LIFETIME_S = 600
"""For how long a confirmation holds on the pages that change how one signs in. A signature always takes its own."""
_WRONG_TRIES, _CONFIRMED_AT = "wrong_confirmations", "confirmed_at"

PASSWORD, TOTP, PASSKEY, RECOVERY = "password", "totp", "passkey", "recovery_code"
_WORDS = {PASSWORD: "your password", TOTP: "a code of your authenticator app", PASSKEY: "your passkey"}
_KINDS = {Authenticator.Type.TOTP: TOTP, Authenticator.Type.WEBAUTHN: PASSKEY}


class NotConfirmed(NotAllowed):
    """What the person gave does not prove that it is they. Shown beside the form, which keeps what they typed."""

    status = 422


@dataclass(frozen=True)
class Confirmation:
    """Proof that the person was there: which ``factors`` they used (password, totp, passkey, recovery_code), and when.

    The first one of a session is made with two factors, if the person has two.
    """

    factors: tuple[str, ...]
    at: datetime


@dataclass(frozen=True)
class Challenge:
    """What the form has to ask for: ``factors`` that the person has, and how many of them they must give."""

    factors: tuple[str, ...]
    needed: int

    @property
    def sentence(self) -> str:
        """The demand in words."""
        if not self.factors:
            return "Set up an authenticator app or a passkey first: you have nothing to sign with."
        words = [_WORDS[factor] for factor in self.factors]
        if self.needed < 2:
            return f"Signing takes {' or '.join(words)}."
        second = " or ".join(words[1:])
        return f"The first signature of a session takes two factors: {words[0]} and {second}."


def factors_of(user: User) -> tuple[str, ...]:
    """The factors that a person has, the password first; recovery codes stand in for an authenticator app."""
    kinds = Authenticator.objects.filter(user=user, type__in=_KINDS).values_list("type", flat=True)
    has = {_KINDS[Authenticator.Type(kind)] for kind in kinds} | ({PASSWORD} if user.has_usable_password() else set())
    return tuple(factor for factor in _WORDS if factor in has)


def challenge_of(request: HttpRequest) -> Challenge:
    """What the next confirmation of this session takes."""
    factors = factors_of(person_of(request))
    is_first = _CONFIRMED_AT not in request.session
    return Challenge(factors, min(2 if is_first else 1, len(factors)))


def confirm_identity(request: HttpRequest, data: Mapping[str, Any]) -> Confirmation:
    """Check ``password``, ``code`` and ``credential`` (a passkey's answer, JSON) as far as they are given in ``data``.

    Raises ``NotConfirmed`` (a ``NotAllowed``) when one of them is wrong or there are too few. After too many wrong
    tries the session ends, and an ``ImmediateHttpResponse`` leads to the sign-in page. Call it outside a transaction:
    the tries must be counted whatever becomes of the request.
    """
    user, challenge = person_of(request), challenge_of(request)
    if not challenge.factors:
        raise NotConfirmed(challenge.sentence)
    if not ratelimit.consume(request, action="reauthenticate", user=user):
        raise NotConfirmed("Too many tries. Wait five minutes and try again.")
    checks = {"password": _check_password, "code": _check_code, "credential": _check_passkey}
    proven = [check(user, str(data[name])) for name, check in checks.items() if data.get(name)]
    if None in proven:
        raise _wrong_try(request, user)
    factors = tuple(factor for factor in proven if factor)
    if len(factors) < max(1, challenge.needed):
        raise NotConfirmed(f"{challenge.sentence} Nothing was signed.")
    request.session.pop(_WRONG_TRIES, None)
    request.session[_CONFIRMED_AT] = time.time()
    return Confirmation(factors, timezone.now())


def recently_confirmed(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Lead to the page that asks, unless the person confirmed within ``LIFETIME_S`` or has nothing to confirm with."""

    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        age = time.time() - request.session.get(_CONFIRMED_AT, 0)
        if not 0 <= age < LIFETIME_S and factors_of(person_of(request)):
            here = request.get_full_path() if request.method == "GET" else reverse("accounts:security")
            return redirect(f"{reverse('accounts:confirm')}?{urlencode({'next': here})}")
        return view(request, *args, **kwargs)

    return guarded


def person_of(request: HttpRequest) -> User:
    """The signed-in person."""
    user = request.user
    if not isinstance(user, User):
        raise NotAllowed("This takes a signed-in person.")
    return user


def _check_password(user: User, password: str) -> str | None:
    return PASSWORD if user.has_usable_password() and user.check_password(password) else None


def _check_code(user: User, code: str) -> str | None:
    form = CodeForm(user=user, data={"code": code})
    if not form.is_valid():
        return None
    form.save()
    return TOTP if form.authenticator.type == Authenticator.Type.TOTP else RECOVERY


def _check_passkey(user: User, credential: str) -> str | None:
    form = PasskeyCheckForm(user=user, data={"credential": credential})
    if not form.is_valid():
        return None
    form.save()
    return PASSKEY


def _wrong_try(request: HttpRequest, user: User) -> Exception:
    """Count it, record it; the last one that is allowed ends the session."""
    tries = request.session.get(_WRONG_TRIES, 0) + 1
    request.session[_WRONG_TRIES] = tries
    with transaction.atomic():
        record(request.actor, "confirmation.failed", user, team=request.team, after={"tries": tries})
    if tries < MAX_WRONG_TRIES:
        return NotConfirmed("That does not fit: check your password, code or passkey. Nothing was signed.")
    logout(request)
    ended: Exception = ImmediateHttpResponse(refused(request, "Too many wrong tries. Sign in again."))
    return ended
