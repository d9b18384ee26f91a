"""How REST calls say who they are: a bearer token, or the browser's session."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.db.models import Q
from django.utils import timezone
from rest_framework import authentication, exceptions
from rest_framework.request import Request

from apps.accounts.factors import lacks_second_factor
from apps.accounts.models import ApiToken, Membership
from apps.accounts.services import TOKEN_PREFIX, digest_of
from apps.audit.actor import Actor

_LAST_USED_PRECISION = timedelta(minutes=1)


class TokenAuthentication(authentication.BaseAuthentication):
    """``Authorization: Bearer csn_…``: acts as the token's owner, in its team, within its scopes."""

    def authenticate(self, request: Request) -> tuple[Any, ApiToken] | None:
        """Identify the caller; refuses a token that is unknown, expired, revoked or from elsewhere, all alike."""
        kind, _, secret = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer":
            return None
        tokens = ApiToken.objects.usable().select_related("membership__user", "membership__team", "team")
        token = tokens.filter(digest=digest_of(secret)).first() if secret.startswith(TOKEN_PREFIX) else None
        if token is None or not token.is_good_from(request.META.get("REMOTE_ADDR", "")):
            raise exceptions.AuthenticationFailed("The token is not known, has expired or was revoked.")
        now = timezone.now()
        stale = Q(last_used_at=None) | Q(last_used_at__lt=now - _LAST_USED_PRECISION)
        ApiToken.objects.filter(stale, pk=token.pk).update(last_used_at=now)
        _attach(request, token.membership, token)
        return token.membership.user, token

    def authenticate_header(self, request: Request) -> str:
        """What a 401 asks for."""
        return 'Bearer realm="countersign"'


class SessionAuthentication(authentication.SessionAuthentication):
    """The browser's session, with CSRF protection; ``ActorMiddleware`` has found the person and the team."""

    def authenticate(self, request: Request) -> tuple[Any, None] | None:
        """Identify the signed-in person, if any."""
        if not request._request.user.is_authenticated:
            return None
        return super().authenticate(request)


def _attach(request: Request, membership: Membership, token: ApiToken) -> None:
    plain = request._request
    plain.membership, plain.team = membership, token.team
    plain.actor = Actor(
        user_id=membership.user_id,
        name=membership.user.name,
        address=plain.META.get("REMOTE_ADDR", ""),
        request_id=plain.request_id,
        token_id=token.pk,
        permissions=frozenset() if lacks_second_factor(membership) else token.permissions,
    )
