"""A person's sessions: one for each browser in which they are signed in."""

from __future__ import annotations

from allauth.usersessions.models import UserSession
from django.contrib.sessions.models import Session
from django.db import transaction
from django.utils import timezone

from apps.accounts.models import Membership, User
from apps.audit.actor import Actor
from apps.audit.services import record

MAX_SHOWN = 100
_BROWSERS = (("Edg", "Edge"), ("OPR", "Opera"), ("Firefox", "Firefox"), ("Chrome", "Chrome"), ("Safari", "Safari"))
_SYSTEMS = ("Android", "iPhone", "iPad", "Windows", "Mac OS X", "CrOS", "Linux")


def sessions_of(user: User) -> list[UserSession]:
    """The sessions that still hold, the newest first; the rows of those that ended by themselves go."""
    mine = UserSession.objects.filter(user=user).order_by("-last_seen_at")
    alive = Session.objects.filter(session_key__in=mine.values("session_key"), expire_date__gt=timezone.now())
    keys = set(alive.values_list("session_key", flat=True))
    mine.exclude(session_key__in=keys).delete()
    shown = list(mine[:MAX_SHOWN])
    for session in shown:
        session.browser = browser_name(session.user_agent)
    return shown


def browser_name(user_agent: str) -> str:
    """What a browser calls itself, in short: “Firefox on Linux”."""
    browser = next((name for mark, name in _BROWSERS if mark in user_agent), "")
    system = next((name for name in _SYSTEMS if name in user_agent), "")
    return f"{browser} on {system}" if browser and system else user_agent[:48] or "Unknown"


@transaction.atomic
def end_session(actor: Actor, *, session: UserSession) -> None:
    """Sign one browser out."""
    user = session.user
    Session.objects.filter(session_key=session.session_key).delete()
    session.delete()
    _record(actor, user, 1)


@transaction.atomic
def end_sessions(actor: Actor, *, user: User, except_key: str | None = None) -> None:
    """Sign a person out everywhere, or everywhere else."""
    mine = UserSession.objects.filter(user=user).exclude(session_key=except_key or "")
    ended, _ = Session.objects.filter(session_key__in=mine.values("session_key")).delete()
    mine.delete()
    if ended:
        _record(actor, user, ended)


def _record(actor: Actor, user: User, count: int) -> None:
    memberships = Membership.objects.filter(user=user).select_related("team").order_by("-is_active", "team__name")
    membership = memberships.first()
    record(actor, "session.revoked", user, team=membership.team if membership else None, after={"sessions": count})
