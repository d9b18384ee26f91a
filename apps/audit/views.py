"""The audit page."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from apps.audit.forms import AuditFilterForm
from apps.audit.models import AuditEvent
from apps.core.htmx import render
from apps.core.pagination import KeysetPage
from apps.core.permissions import require


@require_GET
@require("audit.read")
def event_list(request: HttpRequest) -> HttpResponse:
    """The team's events, newest first, filtered by the query string."""
    form = AuditFilterForm(request.GET)
    if not form.is_valid():
        return render(request, "audit/event_list.html", {"form": form, "page": None}, status=422)
    events = AuditEvent.objects.numbered().for_team(request.team).matching(**form.cleaned_data)
    page = KeysetPage.of(events, request.GET, key="seq")
    context = {"form": form, "page": page, "head": AuditEvent.objects.numbered().last()}
    return render(request, "audit/event_list.html", context, fragment="audit/_events.html")
