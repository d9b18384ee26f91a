"""The inbox, promotion requests and their reviews."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.auth import logout
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from apps.core.errors import DomainError
from apps.core.htmx import render
from apps.core.pagination import KeysetPage
from apps.core.permissions import require
from apps.deployments.models import Deployment, Endpoint
from apps.deployments.observed import observe
from apps.jobs.models import Job, JobState
from apps.promotions import charts, services
from apps.promotions.evidence import metric_differences, newest_load_tests
from apps.promotions.forms import PromotionForm, ReviewForm
from apps.promotions.models import PromotionRequest, RolloutState
from apps.registry.models import ModelVersion

_FAILED_SIGNATURES = "failed_signatures"
_MAX_FAILED_SIGNATURES = 5


@require_GET
@require("team.view")
def inbox(request: HttpRequest) -> HttpResponse:
    """What needs this person: decisions, their own requests, rollouts and jobs that failed."""
    requests = PromotionRequest.objects.for_team(request.team).for_list()
    user_id = request.actor.user_id
    to_decide = requests.decidable_by(user_id)[:20] if request.actor.can("promotions.review") else []
    failed = Job.objects.for_team(request.team).filter(state__in=(JobState.FAILED, JobState.PARKED))
    context = {
        "to_decide": to_decide,
        "own_requests": requests.filter(requested_by_id=user_id)[:5],
        "failed_rollouts": requests.filter(rollout=RolloutState.FAILED)[:5],
        "failed_jobs": failed.filter(requested_by_id=user_id)[:5],
        "recent": requests[:8],
    }
    return render(request, "promotions/inbox.html", context)


@require_GET
@require("team.view")
def request_list(request: HttpRequest) -> HttpResponse:
    """All promotion requests of the team, newest first."""
    page = KeysetPage.of(PromotionRequest.objects.for_team(request.team).for_list(), request.GET)
    return render(request, "promotions/request_list.html", {"page": page}, fragment="promotions/_requests.html")


@require_http_methods(["GET", "POST"])
@require("promotions.request")
def request_create(request: HttpRequest, name: str, number: int) -> HttpResponse:
    """Ask for a version to be promoted."""
    versions = ModelVersion.objects.for_team(request.team).select_related("model", "artifact", "uploaded_by")
    model_version = get_object_or_404(versions, model__name=name, number=number)
    form = PromotionForm(request.POST or None, endpoints=Endpoint.objects.for_team(request.team))
    if request.method == "POST" and form.is_valid():
        try:
            promotion = services.request_promotion(
                request.actor, team=request.team, model_version=model_version, **form.cleaned_data
            )
        except DomainError as error:
            form.add_error(error.field, error.message)
        else:
            messages.success(request, "Submitted. The evidence is frozen, and the compliance officers see it now.")
            return redirect("promotions:request-detail", pk=promotion.pk)
    context = {"form": form, "model_version": model_version}
    return render(request, "promotions/request_create.html", context, status=422 if form.errors else 200)


@require_GET
@require("team.view")
def request_detail(request: HttpRequest, pk: int) -> HttpResponse:
    """Difference, evidence, decision, rollout."""
    promotion = _promotion(request, pk)
    form = ReviewForm(initial={"evidence_digest": promotion.evidence_digest})
    return render(request, "promotions/request_detail.html", _detail(request, promotion, form))


@require_GET
@require("team.view")
def request_rollout(request: HttpRequest, pk: int) -> HttpResponse:
    """The rollout card alone; it polls itself until the rollout ends."""
    return render(request, "promotions/_rollout.html", _rollout(_promotion(request, pk)))


@require_POST
@require("promotions.review")
@sensitive_post_parameters("password")
def request_review(request: HttpRequest, pk: int) -> HttpResponse:
    """Sign a decision."""
    promotion = _promotion(request, pk)
    form = ReviewForm(request.POST)
    if form.is_valid():
        try:
            review = services.review_promotion(request.actor, request=promotion, **form.cleaned_data)
        except DomainError as error:
            if error.status != 422:
                raise
            form.add_error(error.field, error.message)
            if error.field == "password" and _too_many_failures(request):
                return redirect("accounts:sign-in")
        else:
            request.session.pop(_FAILED_SIGNATURES, None)
            messages.success(request, f"{review.get_decision_display()}: signed as {review.reviewer_name}.")
            return redirect("promotions:request-detail", pk=pk)
    return render(request, "promotions/request_detail.html", _detail(request, promotion, form), status=422)


@require_POST
@require("promotions.request")
def request_cancel(request: HttpRequest, pk: int) -> HttpResponse:
    """Withdraw one's own request."""
    services.cancel_promotion(request.actor, request=_promotion(request, pk))
    messages.success(request, "Withdrawn.")
    return redirect("promotions:request-detail", pk=pk)


def _promotion(request: HttpRequest, pk: int) -> PromotionRequest:
    promotion: PromotionRequest = get_object_or_404(PromotionRequest.objects.for_team(request.team).with_names(), pk=pk)
    return promotion


def _detail(request: HttpRequest, promotion: PromotionRequest, form: ReviewForm) -> dict[str, Any]:
    differences = metric_differences(promotion.evidence)
    return _rollout(promotion) | {
        "form": form,
        "why_not": services.why_not_review(request.actor, promotion),
        "may_cancel": promotion.is_open and promotion.requested_by_id == request.actor.user_id,
        "differences": differences,
        "chart": charts.metric_comparison(differences),
        "load_tests": newest_load_tests(promotion.evidence),
        "reviews": promotion.reviews.all(),
    }


def _rollout(promotion: PromotionRequest) -> dict[str, Any]:
    deployment = Deployment.objects.filter(pk=promotion.deployment_id).first() if promotion.deployment_id else None
    is_rolling = promotion.rollout in (RolloutState.QUEUED, RolloutState.APPLYING)
    return {
        "promotion": promotion,
        "deployment": deployment,
        "observed": observe(deployment) if deployment and deployment.retired_at is None else None,
        "is_rolling": is_rolling,
    }


def _too_many_failures(request: HttpRequest) -> bool:
    """Count a wrong password; after a few the session ends, so that an open screen is no place to guess."""
    request.session[_FAILED_SIGNATURES] = request.session.get(_FAILED_SIGNATURES, 0) + 1
    if request.session[_FAILED_SIGNATURES] < _MAX_FAILED_SIGNATURES:
        return False
    logout(request)
    messages.error(request, "Too many wrong passwords. Sign in again.")
    return True
