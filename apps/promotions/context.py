"""The badge beside “Inbox” on every page."""

from typing import Any

from django.http import HttpRequest

from apps.promotions.models import ReviewTask


def inbox(request: HttpRequest) -> dict[str, Any]:
    """How many requests wait for this person's signature; counted only if the template asks, once."""
    actor = getattr(request, "actor", None)
    if actor is None:
        return {}
    # The method itself: the template calls it, and a fragment that shows no navigation does not.
    return {"inbox_count": ReviewTask.objects.for_team(request.team).waiting_for(actor.user_id).count}
