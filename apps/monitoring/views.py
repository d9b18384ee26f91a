"""Live traffic and the inference log."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.http import require_GET

from apps.core.htmx import render
from apps.core.permissions import require
from apps.deployments.models import Endpoint


@require_GET
@require("team.view")
def overview(request: HttpRequest) -> HttpResponse:
    """The team's endpoints at a glance; part of the inbox."""
    return HttpResponse("")


@require_GET
@require("team.view")
def endpoint_live(request: HttpRequest, name: str) -> HttpResponse:
    """Traffic, latency and errors; polls itself."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team), name=name)
    return render(request, "monitoring/endpoint_live.html", {"endpoint": endpoint})


@require_GET
@require("team.view")
def prediction_list(request: HttpRequest, name: str) -> HttpResponse:
    """The endpoint's predictions, newest first."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team), name=name)
    return render(request, "monitoring/prediction_list.html", {"endpoint": endpoint})


@require_GET
@require("team.view")
def prediction_detail(request: HttpRequest, name: str, request_id: str) -> HttpResponse:
    """Everything that the log holds of one request."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team), name=name)
    return render(request, "monitoring/prediction_detail.html", {"endpoint": endpoint, "request_id": request_id})
