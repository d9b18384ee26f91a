"""Changes to a person's second factors: one function each."""

from __future__ import annotations

import base64
from typing import Any

from allauth.mfa.adapter import get_adapter
from allauth.mfa.models import Authenticator
from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
from allauth.mfa.totp.internal.auth import TOTP
from allauth.mfa.webauthn.internal.auth import WebAuthn
from django.db import transaction

from apps.accounts.models import Membership, Team, User
from apps.audit.actor import Actor
from apps.audit.services import record
from apps.core.errors import Conflict

MAX_PASSKEYS = 10
_Type = Authenticator.Type


@transaction.atomic
def add_totp(actor: Actor, *, user: User, secret: str) -> Authenticator:
    """Make an authenticator app, whose first code was right, the person's; they get recovery codes with it."""
    _lock(user)
    if Authenticator.objects.filter(user=user, type=_Type.TOTP).exists():
        raise Conflict("You have an authenticator app already. Remove it first.")
    factor: Authenticator = TOTP.activate(user, secret).instance
    RecoveryCodes.activate(user)
    _record(actor, "factor.added", factor)
    return factor


@transaction.atomic
def add_passkey(actor: Actor, *, user: User, name: str, credential: dict[str, Any]) -> Authenticator:
    """Keep a passkey whose registration was checked; they get recovery codes with it."""
    _lock(user)
    if Authenticator.objects.filter(user=user, type=_Type.WEBAUTHN).count() >= MAX_PASSKEYS:
        raise Conflict("You have too many passkeys. Remove one that you do not use any more.")
    factor: Authenticator = WebAuthn.add(user, name, credential).instance
    RecoveryCodes.activate(user)
    _record(actor, "factor.added", factor)
    return factor


@transaction.atomic
def remove_factor(actor: Actor, *, factor: Authenticator) -> None:
    """Take a factor away; recovery codes go with the last one that they stand in for."""
    _lock(factor.user)
    others = Authenticator.objects.filter(user=factor.user).exclude(pk=factor.pk)
    _record(actor, "factor.removed", factor)
    if not others.exclude(type=_Type.RECOVERY_CODES).exists():
        others.delete()
    factor.delete()


@transaction.atomic
def remove_all_factors(actor: Actor, *, user: User) -> None:
    """Take everything away but the password."""
    _lock(user)
    for factor in Authenticator.objects.filter(user=user):
        _record(actor, "factor.removed", factor)
        factor.delete()


@transaction.atomic
def renew_recovery_codes(actor: Actor, *, user: User) -> None:
    """New recovery codes; the old ones are void."""
    _lock(user)
    mine = Authenticator.objects.filter(user=user)
    if not mine.exclude(type=_Type.RECOVERY_CODES).exists():
        raise Conflict("Recovery codes stand in for a second factor. Set up an authenticator app or a passkey first.")
    mine.filter(type=_Type.RECOVERY_CODES).delete()
    _record(actor, "factor.added", RecoveryCodes.activate(user).instance)


def has_second_factor(user: User) -> bool:
    """True if signing in takes more than a password."""
    return bool(Authenticator.objects.filter(user=user, type__in=(_Type.TOTP, _Type.WEBAUTHN)).exists())


def lacks_second_factor(membership: Membership) -> bool:
    """True for a person whose team wants a second factor of its members, and who has none."""
    if not membership.team.requires_second_factor or membership.user.is_service:
        return False
    return not has_second_factor(membership.user)


def people_without_second_factor(team: Team) -> list[str]:
    """The names of the team's active people who have none."""
    secured = Authenticator.objects.filter(type__in=(_Type.TOTP, _Type.WEBAUTHN)).values("user")
    people = Membership.objects.active().people().filter(team=team).exclude(user__in=secured)
    return list(people.order_by("user__name").values_list("user__name", flat=True)[:500])


def unseen_recovery_codes(user: User) -> list[str]:
    """The person's recovery codes if nobody has seen them yet; they count as seen from now on."""
    factor = Authenticator.objects.filter(user=user, type=_Type.RECOVERY_CODES).first()
    if factor is None or factor.wrap().did_view:
        return []
    codes = factor.wrap()
    codes.mark_as_viewed()
    return list(codes.get_unused_codes())


def has_unseen_codes(user: User) -> bool:
    """True if the person has recovery codes that were never shown."""
    factor = Authenticator.objects.filter(user=user, type=_Type.RECOVERY_CODES).first()
    return factor is not None and not factor.wrap().did_view


def totp_setup(user: User, secret: str) -> dict[str, str]:
    """What a person's app needs: the secret to type, and the same as a picture to scan."""
    adapter = get_adapter()
    picture = adapter.build_totp_svg(adapter.build_totp_url(user, secret))
    return {"secret": secret, "picture": f"data:image/svg+xml;base64,{base64.b64encode(picture.encode()).decode()}"}


def _lock(user: User) -> None:
    User.objects.select_for_update().get(pk=user.pk)


def _record(actor: Actor, action: str, factor: Authenticator) -> None:
    """In every team of the person: each of them relies on how its members sign in."""
    memberships = Membership.objects.active().filter(user_id=factor.user_id).select_related("team")
    for team in [membership.team for membership in memberships] or [None]:
        record(actor, action, factor.user, team=team, after={"factor": str(factor), "kind": factor.type})
