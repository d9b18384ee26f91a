"""Who may come in, and the record of who did: called by the adapters around each sign-in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from allauth.core.internal import ratelimit
from django.contrib import messages
from django.core.cache import cache
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect

from apps.accounts.models import Membership, User
from apps.audit.actor import Actor
from apps.audit.services import record
from apps.core.errors import DomainError

TOO_MANY_TRIES = "Too many failed tries. Wait five minutes and try again."
_QUIET_S = 300
"""Of many failed tries of one account, one in this time is recorded, and one lockout: strangers do not fill the log."""


def may_sign_in(user: User) -> bool:
    """True for a person who is active in a team."""
    return user.is_active and not user.is_service and Membership.objects.active().filter(user=user).exists()


def refused(request: HttpRequest, message: str) -> HttpResponse:
    """Back to the sign-in page with a sentence."""
    messages.error(request, message)
    return redirect("accounts:sign-in")


def record_sign_in(request: HttpRequest, user: User) -> None:
    """Somebody came in."""
    records = request.session.get("account_authentication_methods", [])
    methods = sorted({str(method.get("type") or method.get("method")) for method in records})
    membership = _membership(user.email)
    actor = Actor(user.pk, user.name, address=_address(request), request_id=request.request_id)
    team = membership.team if membership else None
    record(actor, "session.started", user, team=team, after={"methods": methods})


def record_failure(request: HttpRequest, email: str) -> None:
    """Somebody failed to come in as ``email``."""
    _record_stranger(request, email, "session.refused")


def record_lockout(request: HttpRequest, email: str) -> None:
    """Tries as ``email``, or from this address, are refused unseen for some minutes."""
    _record_stranger(request, email, "session.locked_out")


@contextmanager
def counted_try(request: HttpRequest, email: str) -> Iterator[None]:
    """Count a try at a password outside the sign-in page; one that raises nothing is forgiven.

    It counts with the tries on the sign-in page. Raises ``DomainError`` when there were too many.
    """
    limits = {"login_failed_address": None, "login_failed": email.strip().lower()}
    usages = [ratelimit.consume(request, app="allauth.account", action=a, key=key) for a, key in limits.items()]
    if not all(usages):
        record_lockout(request, email)
        raise DomainError(TOO_MANY_TRIES)
    yield
    for usage in usages:
        usage.rollback()


def _record_stranger(request: HttpRequest, email: str, action: str) -> None:
    """The same work whether there is such an account or not: how long it takes must not tell.

    What was typed is recorded only if it is an account's address: people type passwords into the wrong field.
    """
    digest = hashlib.sha256(email.strip().lower().encode()).hexdigest()
    membership = _membership(email)
    if not cache.add(f"{action}:{digest}", True, timeout=_QUIET_S):
        return
    user, team = (membership.user, membership.team) if membership else (User(name="an unknown account"), None)
    stranger = Actor(None, "stranger", address=_address(request), request_id=request.request_id)
    with transaction.atomic():
        record(stranger, action, user, team=team)


def _membership(email: str) -> Membership | None:
    memberships = Membership.objects.active().select_related("user", "team").order_by("team__name")
    return memberships.filter(user__email__iexact=email.strip()).first()


def _address(request: HttpRequest) -> str:
    return str(request.META.get("REMOTE_ADDR", ""))
