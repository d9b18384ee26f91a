"""Endpoints: list, create, watch, try, roll back."""

from __future__ import annotations

import json

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from apps.core.errors import DomainError
from apps.core.htmx import render
from apps.core.permissions import require
from apps.deployments import client, services
from apps.deployments.forms import EndpointForm, RollbackForm, TryForm
from apps.deployments.models import Deployment, Endpoint
from apps.deployments.observed import Fleet, observe


@require_GET
@require("team.view")
def endpoint_list(request: HttpRequest) -> HttpResponse:
    """The team's endpoints with what serves on each."""
    champions = Deployment.objects.for_team(request.team).active().champions()
    by_endpoint = {row.endpoint_id: row for row in champions.select_related("model_version__model")}
    fleet = Fleet.read()
    rows = []
    for endpoint in Endpoint.objects.for_team(request.team)[:500]:
        champion = by_endpoint.get(endpoint.pk)
        rows.append({"endpoint": endpoint, "champion": champion, "observed": observe(champion, fleet)})
    return render(request, "deployments/endpoint_list.html", {"rows": rows})


@require_http_methods(["GET", "POST"])
@require("deployments.operate")
def endpoint_create(request: HttpRequest) -> HttpResponse:
    """A new endpoint."""
    form = EndpointForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            endpoint = services.create_endpoint(request.actor, team=request.team, **form.cleaned_data)
        except DomainError as error:
            form.add_error(error.field, error.message)
        else:
            messages.success(request, f"Created {endpoint.name}. Promote a model version to it next.")
            return redirect("deployments:endpoint-detail", name=endpoint.name)
    return render(request, "deployments/endpoint_create.html", {"form": form}, status=422 if form.errors else 200)


@require_GET
@require("team.view")
def endpoint_detail(request: HttpRequest, name: str) -> HttpResponse:
    """What should serve, what does, how fast, and what came before."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team), name=name)
    champion = services.current_champion(endpoint)
    context = {
        "endpoint": endpoint,
        "champion": champion,
        "observed": observe(champion),
        "rollback_target": services.rollback_target(endpoint),
        "history": endpoint.deployments.select_related("model_version__model")[:20],
        "inference_url": request.build_absolute_uri("/").rstrip("/"),
        "example": json.dumps(client.example_request(champion.model_version.signature)) if champion else "",
    }
    return render(request, "deployments/endpoint_detail.html", context)


@require_GET
@require("team.view")
def endpoint_state(request: HttpRequest, name: str) -> HttpResponse:
    """The desired-and-observed card alone; it polls itself."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team), name=name)
    champion = services.current_champion(endpoint)
    context = {"endpoint": endpoint, "champion": champion, "observed": observe(champion)}
    return render(request, "deployments/_state.html", context)


@require_http_methods(["GET", "POST"])
@require("deployments.predict")
def endpoint_try(request: HttpRequest, name: str) -> HttpResponse:
    """Send one request and see the answer."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team), name=name)
    champion = services.current_champion(endpoint)
    example = client.write_request(client.example_request(champion.model_version.signature)) if champion else "{}"
    form = TryForm(request.POST or None, initial={"body": example})
    answer = None
    if request.method == "POST" and form.is_valid():
        try:
            answer = services.try_endpoint(request.actor, endpoint=endpoint, body=form.cleaned_data["body"])
        except DomainError as error:
            form.add_error(error.field, error.message)
    context = {"endpoint": endpoint, "champion": champion, "form": form, "answer": answer}
    status = 422 if form.errors else 200
    return render(request, "deployments/endpoint_try.html", context, fragment="deployments/_try.html", status=status)


@require_POST
@require("deployments.operate")
def endpoint_rollback(request: HttpRequest, name: str) -> HttpResponse:
    """The previous version answers again."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team), name=name)
    form = RollbackForm(request.POST)
    if not form.is_valid():
        raise DomainError("Open the endpoint's page and roll back from there.")
    deployment = services.roll_back(
        request.actor, endpoint=endpoint, expected_deployment_id=form.cleaned_data["deployment"]
    )
    messages.success(request, f"Rolled back: {deployment.model_version} answers again.")
    return redirect("deployments:endpoint-detail", name=endpoint.name)
