"""Endpoints: list, create, watch, try, roll back; their traffic, settings and guardrails."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any, Final

from django.contrib import messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from apps.core.errors import DomainError
from apps.core.htmx import render
from apps.core.permissions import require
from apps.deployments import client, configuration, services, trial
from apps.deployments.forms import (
    EndpointForm,
    GuardrailForm,
    RollbackForm,
    SettingsForm,
    ShadowForm,
    SplitForm,
    TryForm,
)
from apps.deployments.models import Deployment, Endpoint, Guardrail
from apps.deployments.observed import Fleet, observe
from apps.deployments.refusals import acknowledge_refusals
from apps.deployments.traffic import MAX_ANSWERING, MAX_SHADOWS, Split
from apps.registry.models import ModelVersion
from inference.contracts import Signature
from inference.guardrails import FUNCTIONS

_MAX_CANDIDATES: Final = 500


@require_GET
@require("team.view")
def endpoint_list(request: HttpRequest) -> HttpResponse:
    """The team's endpoints with what serves on each."""
    active = Deployment.objects.for_team(request.team).active().select_related("model_version__model")
    by_endpoint: dict[int, list[Deployment]] = defaultdict(list)
    for deployment in active.order_by("pk"):
        by_endpoint[deployment.endpoint_id].append(deployment)
    fleet = Fleet.read()
    rows = []
    for endpoint in Endpoint.objects.for_team(request.team)[:500]:
        split = Split.among(by_endpoint[endpoint.pk])
        rows.append({"endpoint": endpoint, "split": split, "observed": observe(split.champion, fleet)})
    return render(request, "deployments/endpoint_list.html", {"rows": rows})


@require_POST
@require("deployments.operate")
def refusals_acknowledge(request: HttpRequest) -> HttpResponse:
    """Acknowledge that a manifest was refused, and publish a fresh one."""
    acknowledge_refusals(request.actor, reason=request.POST.get("reason", "")[:2_000])
    messages.success(request, "Acknowledged.")
    return redirect("promotions:inbox")


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
    context = _state(endpoint)
    champion = context["champion"]
    context |= {
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
    return render(request, "deployments/_state.html", _state(endpoint))


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
    """One step back: canaries are taken out, or the previous version answers again."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team), name=name)
    form = RollbackForm(request.POST)
    if not form.is_valid():
        raise DomainError("Open the endpoint's page and roll back from there.")
    deployment = services.roll_back(request.actor, endpoint=endpoint, expected_split=form.cleaned_data["split"])
    messages.success(request, f"Rolled back: {deployment.model_version} answers everything.")
    return redirect("deployments:endpoint-detail", name=endpoint.name)


@require_http_methods(["GET", "POST"])
@require("team.view")
def endpoint_traffic(request: HttpRequest, name: str) -> HttpResponse:
    """Who answers with which share, and who only gets copies."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team), name=name)
    if request.method == "GET":
        return _traffic_page(request, endpoint)
    request.actor.require("deployments.operate")
    form = SplitForm(request.POST, split=Split.of(endpoint))
    if form.is_valid():
        seen = form.cleaned_data["split"]
        try:
            split = services.change_split(request.actor, endpoint=endpoint, weights=form.weights, expected_split=seen)
        except DomainError as error:
            form.add_error(None, error.message)
        else:
            messages.success(request, f"The traffic is split now: {split.words}.")
            return redirect("deployments:endpoint-traffic", name=endpoint.name)
    return _traffic_page(request, endpoint, split_form=form)


@require_POST
@require("deployments.operate")
def shadow_add(request: HttpRequest, name: str) -> HttpResponse:
    """Send a version copies of the requests."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team), name=name)
    form = ShadowForm(request.POST, versions=_shadow_candidates(endpoint))
    if form.is_valid():
        try:
            shadow = services.add_shadow(request.actor, endpoint=endpoint, **form.cleaned_data)
        except DomainError as error:
            form.add_error(error.field, error.message)
        else:
            messages.success(request, f"{shadow.model_version} gets copies now.")
            return redirect("deployments:endpoint-traffic", name=endpoint.name)
    return _traffic_page(request, endpoint, shadow_form=form)


@require_POST
@require("deployments.operate")
def shadow_remove(request: HttpRequest, name: str, pk: int) -> HttpResponse:
    """Send a version no more copies."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team), name=name)
    services.remove_shadow(request.actor, endpoint=endpoint, deployment_id=pk)
    messages.success(request, "The shadow is removed.")
    return redirect("deployments:endpoint-traffic", name=endpoint.name)


@require_http_methods(["GET", "POST"])
@require("team.view")
def endpoint_settings(request: HttpRequest, name: str) -> HttpResponse:
    """The sticky key, limits and log of an endpoint."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team), name=name)
    form = SettingsForm(request.POST or None, endpoint=endpoint)
    if request.method == "POST":
        request.actor.require("deployments.operate")
        if form.is_valid():
            try:
                configuration.change_settings(request.actor, endpoint=endpoint, changes=form.cleaned_data)
            except DomainError as error:
                form.add_error(error.field, error.message)
            else:
                messages.success(request, "Saved. The inference service follows within seconds.")
                return redirect("deployments:endpoint-settings", name=endpoint.name)
    context = {"endpoint": endpoint, "form": form, "champion": services.current_champion(endpoint)}
    return render(request, "deployments/endpoint_settings.html", context, status=422 if form.errors else 200)


@require_GET
@require("team.view")
def guardrail_list(request: HttpRequest, name: str) -> HttpResponse:
    """What must hold for each row of the endpoint."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team), name=name)
    context = {"endpoint": endpoint, "rules": endpoint.guardrails.all()}
    return render(request, "deployments/guardrail_list.html", context)


@require_http_methods(["GET", "POST"])
@require("deployments.operate")
def guardrail_create(request: HttpRequest, name: str) -> HttpResponse:
    """A new rule."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team), name=name)
    return _guardrail_form(request, endpoint, None)


@require_http_methods(["GET", "POST"])
@require("deployments.operate")
def guardrail_edit(request: HttpRequest, name: str, pk: int) -> HttpResponse:
    """Another wording of a rule."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team), name=name)
    return _guardrail_form(request, endpoint, get_object_or_404(endpoint.guardrails, pk=pk))


@require_POST
@require("deployments.operate")
def guardrail_remove(request: HttpRequest, name: str, pk: int) -> HttpResponse:
    """Check a rule no more."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team), name=name)
    rule = get_object_or_404(endpoint.guardrails, pk=pk)
    configuration.remove_guardrail(request.actor, guardrail=rule)
    messages.success(request, f"“{rule.name}” is checked no more.")
    return redirect("deployments:guardrail-list", name=endpoint.name)


def _state(endpoint: Endpoint) -> dict[str, Any]:
    """What is to serve, and what the replicas say of each of it."""
    split, fleet = Split.of(endpoint), Fleet.read()
    return {
        "endpoint": endpoint,
        "champion": split.champion,
        "split": split,
        "observed": observe(split.champion, fleet),
        "serving": [(row, observe(row, fleet)) for row in (*split.answering, *split.shadows)],
    }


def _traffic_page(
    request: HttpRequest,
    endpoint: Endpoint,
    *,
    split_form: SplitForm | None = None,
    shadow_form: ShadowForm | None = None,
) -> HttpResponse:
    split, fleet = Split.of(endpoint), Fleet.read()
    # After a refusal the page shows the split as it is now, so that the next try is one of a split that was seen.
    fresh = SplitForm(split=split)
    context = {
        "endpoint": endpoint,
        "champion": split.champion,
        "split": split,
        "split_form": split_form or fresh,
        "answering": [(row, observe(row, fleet), field) for row, field in (split_form or fresh).rows()],
        "is_changeable": len(split.answering) > 1 and request.actor.can("deployments.operate"),
        "shadows": [(row, observe(row, fleet)) for row in split.shadows],
        "shadow_form": shadow_form or ShadowForm(versions=_shadow_candidates(endpoint)),
        "rollback_target": services.rollback_target(endpoint),
        "max_answering": MAX_ANSWERING,
        "max_shadows": MAX_SHADOWS,
    }
    status = 422 if split_form or shadow_form else 200
    return render(request, "deployments/endpoint_traffic.html", context, status=status)


def _shadow_candidates(endpoint: Endpoint) -> QuerySet[ModelVersion]:
    """The newest versions of the team that are ready and not on the endpoint."""
    present = endpoint.deployments.active().values("model_version_id")
    ready = ModelVersion.objects.for_team(endpoint.team).ready().exclude(pk__in=present).order_by("-pk")
    newest = list(ready.values_list("pk", flat=True)[:_MAX_CANDIDATES])
    return ModelVersion.objects.filter(pk__in=newest).select_related("model").order_by("model__name", "-number")


def _guardrail_form(request: HttpRequest, endpoint: Endpoint, rule: Guardrail | None) -> HttpResponse:
    """Save a rule, or try it on the row beside it."""
    split = Split.of(endpoint)
    signature = Signature.from_dict(split.champion.model_version.signature) if split.champion else None
    form = GuardrailForm(request.POST or None, initial=_guardrail_initial(rule, signature))
    verdict: bool | None = None
    if request.method == "POST" and form.is_valid():
        try:
            if "try" in request.POST and signature is not None:
                verdict = trial.Trial(form.cleaned_data["requires"], signature).holds(form.cleaned_data["sample"])
            elif rule is None:
                configuration.add_guardrail(request.actor, endpoint=endpoint, **form.rule)
            else:
                configuration.change_guardrail(request.actor, guardrail=rule, **form.rule)
        except DomainError as error:
            form.add_error(error.field, error.message)
        else:
            if verdict is None:
                messages.success(request, f"“{form.rule['name']}” is checked from now on.")
                return redirect("deployments:guardrail-list", name=endpoint.name)
    context = {"endpoint": endpoint, "form": form, "rule": rule, "verdict": verdict, "champion": split.champion}
    context |= {"functions": FUNCTIONS}
    return render(request, "deployments/guardrail_form.html", context, status=422 if form.errors else 200)


def _guardrail_initial(rule: Guardrail | None, signature: Signature | None) -> dict[str, Any]:
    sample = json.dumps(trial.example_row(signature)) if signature else ""
    if rule is None:
        return {"sample": sample}
    fallback = "" if rule.fallback is None else json.dumps(rule.fallback)
    return {"name": rule.name, "requires": rule.requires, "action": rule.action, "fallback": fallback, "sample": sample}
