"""What the frame around every page shows of the person."""

from typing import Any

from django.http import HttpRequest

from apps.accounts.models import Team


def navigation(request: HttpRequest) -> dict[str, Any]:
    """The teams to switch between; evaluated only if the template asks."""
    if getattr(request, "actor", None) is None:
        return {}
    return {
        "teams": Team.objects.filter(
            memberships__user_id=request.actor.user_id, memberships__is_active=True
        ).distinct(),
    }
