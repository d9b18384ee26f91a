"""Who is asking, in which team, with which permissions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib.auth.middleware import LoginRequiredMiddleware
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect
from django.urls import reverse

from apps.accounts.factors import lacks_second_factor
from apps.accounts.models import Membership, current_membership
from apps.audit.actor import Actor
from apps.core.permissions import PUBLIC, SIGNED_IN

TEAM_SESSION_KEY = "team"
SECOND_FACTOR_SESSION_KEY = "second_factor_checked_elsewhere"
"""In a session: the id of the person whose second factor the organisation's sign-in has checked."""


def actor_of(request: HttpRequest, membership: Membership | None) -> Actor:
    """The signed-in person as an actor in the membership's team, who may do nothing while they lack a second factor."""
    user: Any = request.user
    may_act = membership is not None and not request.needs_second_factor
    return Actor(
        user_id=user.pk,
        name=user.name,
        # The peer's address as the web server saw it: a forwarded-for header is anybody's claim.
        address=request.META.get("REMOTE_ADDR", ""),
        request_id=request.request_id,
        permissions=membership.permissions if membership and may_act else frozenset(),
    )


class ActorMiddleware(LoginRequiredMiddleware):
    """Send strangers to the sign-in page and give everybody else an actor and a team.

    Members who lack the second factor that their team wants are sent to set one up.

    REST calls are exempt here, because a token identifies them: ``apps.accounts.authentication`` does both.
    """

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Attach ``membership``, ``team`` and ``actor``; all are None for a stranger."""
        request.membership = request.team = request.actor = None
        request.needs_second_factor = False
        if request.user.is_authenticated:
            attach_membership(request, current_membership(request.user, request.session.get(TEAM_SESSION_KEY)))
        response: HttpResponse = self.get_response(request)  # type: ignore[assignment]
        return response

    def process_view(
        self, request: HttpRequest, view_func: Callable[..., Any], view_args: Any, view_kwargs: Any
    ) -> HttpResponseBase | None:
        """Redirect strangers, with htmx told to load the whole sign-in page."""
        if hasattr(view_func, "cls"):
            return None
        response = super().process_view(request, view_func, view_args, view_kwargs)
        target = request.headers.get("HX-Current-URL", "/")
        permission = getattr(view_func, "permission", None)
        if response is None and request.needs_second_factor and permission not in (PUBLIC, SIGNED_IN):
            target = reverse("accounts:security")
            response = redirect(target)
        if response is not None and request.headers.get("HX-Request"):
            answer = HttpResponse(status=204)
            answer["HX-Redirect"] = target
            return answer
        return response


def attach_membership(request: HttpRequest, membership: Membership | None) -> None:
    """Set the request's team and actor."""
    request.membership = membership
    request.team = membership.team if membership else None
    has_been_checked = request.session.get(SECOND_FACTOR_SESSION_KEY) == request.user.pk
    request.needs_second_factor = membership is not None and not has_been_checked and lacks_second_factor(membership)
    request.actor = actor_of(request, membership)
