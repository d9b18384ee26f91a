"""Who is asking, in which team, with which permissions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib.auth.middleware import LoginRequiredMiddleware
from django.http import HttpRequest, HttpResponse, HttpResponseBase

from apps.accounts.models import Membership, current_membership
from apps.audit.actor import Actor

TEAM_SESSION_KEY = "team"


def actor_of(request: HttpRequest, membership: Membership | None) -> Actor:
    """The signed-in person as an actor in the membership's team."""
    user: Any = request.user
    return Actor(
        user_id=user.pk,
        name=user.name,
        # The peer's address as the web server saw it: a forwarded-for header is anybody's claim.
        address=request.META.get("REMOTE_ADDR", ""),
        request_id=request.request_id,
        permissions=membership.permissions if membership else frozenset(),
    )


class ActorMiddleware(LoginRequiredMiddleware):
    """Send strangers to the sign-in page and give everybody else an actor and a team.

    REST calls are exempt here, because a token identifies them: ``apps.accounts.authentication`` does both.
    """

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Attach ``membership``, ``team`` and ``actor``; all are None for a stranger."""
        request.membership = request.team = request.actor = None
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
        if response is not None and request.headers.get("HX-Request"):
            redirect = HttpResponse(status=204)
            redirect["HX-Redirect"] = request.headers.get("HX-Current-URL", "/")
            return redirect
        return response


def attach_membership(request: HttpRequest, membership: Membership | None) -> None:
    """Set the request's team and actor."""
    request.membership = membership
    request.team = membership.team if membership else None
    request.actor = actor_of(request, membership)
