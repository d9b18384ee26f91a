"""Declared permissions: every view names one, and what names none is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponseBase
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from apps.core.errors import NotAllowed

View = Callable[..., HttpResponseBase]

PUBLIC = "public"
"""The declared permission of the few views that need no sign-in."""
SIGNED_IN = "signed-in"
"""The declared permission of views that concern only the person: no team, no role."""


def require(permission: str) -> Callable[[View], View]:
    """Declare the permission that a function view needs; refuses with 403 without it.

    ``ActorMiddleware`` has already sent strangers to the sign-in page, so here there is always an actor.
    """

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if permission != SIGNED_IN and not request.actor.can(permission):
                raise NotAllowed(
                    f"This page needs a role with the permission “{permission}”. Ask an admin of your team."
                )
            return view(request, *args, **kwargs)

        guarded.permission = permission
        return guarded

    return decorate


def public(view: View) -> View:
    """Declare a view that strangers may call."""
    marked = login_not_required(view)
    marked.permission = PUBLIC
    return marked


class HasDeclaredPermission(BasePermission):
    """Check a viewset's ``permissions[action]``. An action that is missing there is refused for everyone."""

    def has_permission(self, request: Request, view: Any) -> bool:
        """True if the actor holds the permission that the view declares for this action."""
        if view.action is None:  # a verb that the route does not have: let it answer 405
            return True
        declared = view.permissions.get(view.action)
        if declared == PUBLIC:
            return True
        actor = getattr(request, "actor", None) or getattr(request._request, "actor", None)
        return declared is not None and actor is not None and (declared == SIGNED_IN or actor.can(declared))
