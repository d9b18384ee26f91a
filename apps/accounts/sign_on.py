"""Single sign-on: the organisation's OpenID Connect provider says who somebody is, and in which of its groups."""

from __future__ import annotations

from typing import Any

from allauth.account.utils import get_next_redirect_url
from allauth.core.exceptions import ImmediateHttpResponse
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter, get_adapter
from allauth.socialaccount.models import SocialLogin
from allauth.socialaccount.providers.openid_connect.views import callback
from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET
from requests import RequestException

from apps.accounts.entrance import may_sign_in, refused
from apps.accounts.middleware import SECOND_FACTOR_SESSION_KEY
from apps.accounts.models import User
from apps.accounts.services import sync_groups
from apps.audit.actor import Actor
from apps.audit.services import record
from apps.core.errors import NotAllowed
from apps.core.permissions import public

PROVIDER = "organisation"
MAX_GROUPS = 500
_SECOND_FACTOR_METHODS = {"mfa", "otp", "hwk", "fpt", "face", "pin"}  # RFC 8176
_NOT_CONFIGURED = "Single sign-on is not configured here."
_NO_TEAM = "You are not a member of a team, and no team takes members from your groups. Ask an admin of your team."


def provider_name() -> str:
    """What the organisation's sign-in is called; empty when none is configured."""
    return str(settings.OIDC_NAME) if settings.SOCIALACCOUNT_PROVIDERS else ""


def callback_url(request: HttpRequest) -> str:
    """The address to enter at the provider."""
    return request.build_absolute_uri(reverse("openid_connect_callback", args=[PROVIDER]))


@never_cache
@require_GET
@public
def begin(request: HttpRequest) -> HttpResponse:
    """Go to the provider."""
    if not provider_name():
        return refused(request, _NOT_CONFIGURED)
    if request.user.is_authenticated:
        return redirect(settings.LOGIN_REDIRECT_URL)
    provider = get_adapter(request).get_provider(request, PROVIDER)
    try:
        answer: HttpResponse = provider.redirect(request, process="login", next_url=get_next_redirect_url(request))
    except RequestException:
        return refused(request, f"{provider_name()} does not answer. Try again later.")
    return answer


@never_cache
@require_GET
@public
def finish(request: HttpRequest, provider_id: str) -> HttpResponse:
    """Come back from the provider."""
    if not provider_name() or provider_id != PROVIDER:
        return refused(request, _NOT_CONFIGURED)
    answer: HttpResponse = callback(request, provider_id)
    return answer


class SignOnAdapter(DefaultSocialAccountAdapter):  # type: ignore[misc]  # the library has no types
    """Decides what becomes of a person whom the provider vouches for."""

    def on_authentication_error(self, request: HttpRequest, provider: Any, **details: Any) -> None:
        """Back to the sign-in page, whatever went wrong."""
        raise ImmediateHttpResponse(refused(request, f"{provider_name()} did not sign you in. Try again."))

    def pre_social_login(self, request: HttpRequest, sociallogin: SocialLogin) -> None:
        """Find or make the person and bring their groups' roles up to date, or refuse."""
        try:
            admit(request, sociallogin)
        except NotAllowed as error:
            raise ImmediateHttpResponse(refused(request, error.message)) from error

    def is_open_for_signup(self, request: HttpRequest, sociallogin: SocialLogin) -> bool:
        """Whoever is let in exists by then."""
        return False


@transaction.atomic
def admit(request: HttpRequest, sociallogin: SocialLogin) -> None:
    """Tie the provider's person to an account. Raises ``NotAllowed``, and changes nothing, if they have no place here.

    The provider's word on an address counts only if it says that it checked it. New accounts have no password.
    """
    claims = _claims(sociallogin)
    actor = Actor(None, provider_name(), request.META.get("REMOTE_ADDR", ""), request.request_id)
    user = sociallogin.user if sociallogin.is_existing else _find_or_make(actor, claims)
    sync_groups(actor, user=user, groups=_groups(claims))
    if not may_sign_in(user):
        raise NotAllowed(_NO_TEAM)
    if not sociallogin.is_existing:
        sociallogin.connect(request, user)
    if _SECOND_FACTOR_METHODS & {str(method) for method in claims.get("amr") or []}:
        request.session[SECOND_FACTOR_SESSION_KEY] = user.pk


def _claims(sociallogin: SocialLogin) -> dict[str, Any]:
    data = sociallogin.account.extra_data
    return {**data.get("id_token", {}), **data.get("userinfo", {})}


def _find_or_make(actor: Actor, claims: dict[str, Any]) -> User:
    email = str(claims.get("email") or "").lower()
    try:
        validate_email(email)
    except ValidationError as error:
        raise NotAllowed(f"{provider_name()} did not tell your email address.") from error
    if claims.get("email_verified") is not True:
        raise NotAllowed(f"{provider_name()} has not checked that {email} is yours.")
    user = User.objects.filter(email__iexact=email).first()
    if user is None:
        user = User.objects.create_user(email, str(claims.get("name") or email)[:120])
        record(actor, "user.created", user, team=None)
    return user


def _groups(claims: dict[str, Any]) -> list[str]:
    groups = claims.get(settings.OIDC_GROUPS_CLAIM)
    if isinstance(groups, str):
        groups = [groups]
    return sorted({str(group)[:200] for group in groups})[:MAX_GROUPS] if isinstance(groups, list) else []
