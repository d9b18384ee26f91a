"""The inbox, promotion requests and everything that people do with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.forms import Form
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from apps.accounts.confirmation import challenge_of, confirm_identity
from apps.core.errors import DomainError, NotAllowed
from apps.core.htmx import render
from apps.core.pagination import KeysetPage
from apps.core.permissions import require
from apps.deployments.models import Endpoint
from apps.promotions import break_glass, comments, findings, reviews, rules, services
from apps.promotions.forms import (
    AfterwardsForm,
    BreakGlassForm,
    CommentForm,
    PromotionForm,
    ResolutionForm,
    ReviewForm,
    RevisionForm,
    SignatureForm,
    condition_forms,
)
from apps.promotions.inbox import endpoint_notices, inbox_page
from apps.promotions.models import Comment, Finding, PromotionRequest, Review
from apps.promotions.page import request_page, rollout_card
from apps.registry.models import ModelVersion


@require_GET
@require("team.view")
def inbox(request: HttpRequest) -> HttpResponse:
    """What needs this person: decisions, conditions, emergencies, what failed."""
    return render(request, "promotions/inbox.html", inbox_page(request.actor, request.team))


@require_GET
@require("team.view")
def request_list(request: HttpRequest) -> HttpResponse:
    """All promotion requests of the team, newest first."""
    page = KeysetPage.of(PromotionRequest.objects.for_team(request.team).for_list(), request.GET)
    return render(request, "promotions/request_list.html", {"page": page}, fragment="promotions/_requests.html")


@require_http_methods(["GET", "POST"])
@require("promotions.request")
def request_create(request: HttpRequest, name: str, number: int) -> HttpResponse:
    """Ask for a version to be promoted, or write a draft of that."""
    model_version = _model_version(request, name, number)
    form = PromotionForm(request.POST or None, endpoints=Endpoint.objects.for_team(request.team))
    is_draft = "draft" in request.POST
    create = services.draft_promotion if is_draft else services.request_promotion
    if request.method == "POST" and form.is_valid():
        try:
            promotion = create(request.actor, team=request.team, model_version=model_version, **form.cleaned_data)
        except DomainError as error:
            form.add_error(error.field, error.message)
        else:
            told = (
                "Saved as a draft." if is_draft else "Submitted. The evidence is frozen, and the reviewers see it now."
            )
            messages.success(request, told)
            return redirect("promotions:request-detail", pk=promotion.pk)
    context = {"form": form, "model_version": model_version}
    return render(request, "promotions/request_create.html", context, status=422 if form.errors else 200)


@require_http_methods(["GET", "POST"])
@require("promotions.request")
def request_edit(request: HttpRequest, pk: int) -> HttpResponse:
    """Change what a request asks for; unless it is a draft, it goes to the reviewers again."""
    promotion = _promotion(request, pk)
    initial = {"initial_weight": promotion.initial_weight, "justification": promotion.justification}
    form = RevisionForm(request.POST or None, initial=initial)
    if request.method == "POST" and form.is_valid():
        try:
            services.revise_promotion(request.actor, request=promotion, **form.cleaned_data)
        except DomainError as error:
            if error.status == 403:
                raise
            form.add_error(error.field if error.field in form.fields else None, error.message)
        else:
            messages.success(request, "Saved.")
            return redirect("promotions:request-detail", pk=pk)
    context = {"form": form, "promotion": promotion}
    return render(request, "promotions/request_edit.html", context, status=422 if form.errors else 200)


@require_POST
@require("promotions.request")
def request_submit(request: HttpRequest, pk: int) -> HttpResponse:
    """Hand a draft to the reviewers."""
    services.submit_promotion(request.actor, request=_promotion(request, pk))
    messages.success(request, "Submitted. The evidence is frozen, and the reviewers see it now.")
    return redirect("promotions:request-detail", pk=pk)


@require_GET
@require("team.view")
def request_detail(request: HttpRequest, pk: int) -> HttpResponse:
    """Difference, evidence, gates, decision, rollout."""
    return render(request, "promotions/request_detail.html", request_page(request, _promotion(request, pk)))


@require_GET
@require("team.view")
def request_rollout(request: HttpRequest, pk: int) -> HttpResponse:
    """The rollout card alone; it polls itself until the rollout ends."""
    return render(request, "promotions/_rollout.html", rollout_card(_promotion(request, pk)))


@require_POST
@require("team.view")
@sensitive_post_parameters("password", "code", "credential")
def request_review(request: HttpRequest, pk: int) -> HttpResponse:
    """Sign a decision. Who may is said by the policy, not by the route."""
    promotion = _promotion(request, pk)
    if reason := rules.why_not(request.actor, promotion):
        raise NotAllowed(reason)
    form = ReviewForm(request.POST)
    rows = condition_forms(request.POST, rules.people(promotion.team))
    if not all(row.is_valid() for row in rows):
        form.is_valid()
        form.add_error(None, "A condition takes an owner and a date.")
    conditions = [row.condition for row in rows if row.is_valid() and row.condition]

    def sign(**values: Any) -> Review:
        return reviews.review_promotion(request.actor, request=promotion, conditions=conditions, **values)

    return _signed(request, promotion, "form", form, sign, conditions=rows)


@require_POST
@require("team.view")
@sensitive_post_parameters("password", "code", "credential")
def request_revoke(request: HttpRequest, pk: int) -> HttpResponse:
    """Take an approval back."""
    promotion = _promotion(request, pk)
    if reason := rules.why_not(request.actor, promotion):
        raise NotAllowed(reason)
    form = SignatureForm(request.POST, auto_id="id_%s_signature")

    def sign(**values: Any) -> Review:
        return reviews.revoke_promotion(request.actor, request=promotion, **values)

    return _signed(request, promotion, "signature_form", form, sign)


@require_POST
@require("promotions.request")
def request_cancel(request: HttpRequest, pk: int) -> HttpResponse:
    """Withdraw one's own request."""
    services.cancel_promotion(request.actor, request=_promotion(request, pk))
    messages.success(request, "Withdrawn.")
    return redirect("promotions:request-detail", pk=pk)


@require_http_methods(["GET", "POST"])
@require("deployments.operate")
@sensitive_post_parameters("password", "code", "credential")
def emergency_create(request: HttpRequest, name: str, number: int) -> HttpResponse:
    """Break the glass: sign for an emergency as the first of two people."""
    model_version = _model_version(request, name, number)
    form = BreakGlassForm(request.POST or None, endpoints=Endpoint.objects.for_team(request.team))
    if request.method == "POST" and form.is_valid():
        try:
            promotion = break_glass.break_glass(
                request.actor,
                team=request.team,
                model_version=model_version,
                confirmation=confirm_identity(request, request.POST),
                **form.cleaned_data,
            )
        except DomainError as error:
            if error.status == 403:
                raise
            form.add_error(error.field if error.field in form.fields else None, error.message)
        else:
            messages.warning(request, "Signed. A second person has to confirm the emergency now.")
            return redirect("promotions:request-detail", pk=promotion.pk)
    context = {"form": form, "model_version": model_version, "challenge": challenge_of(request)}
    return render(request, "promotions/emergency_create.html", context, status=422 if form.errors else 200)


@require_POST
@require("team.view")
@sensitive_post_parameters("password", "code", "credential")
def emergency_confirm(request: HttpRequest, pk: int) -> HttpResponse:
    """Confirm an emergency as the second person."""
    promotion = _promotion(request, pk)
    if reason := break_glass.why_not_confirm(request.actor, promotion):
        raise NotAllowed(reason)
    form = SignatureForm(request.POST, auto_id="id_%s_signature")

    def sign(**values: Any) -> Review:
        return break_glass.confirm_break_glass(request.actor, request=promotion, **values)

    return _signed(request, promotion, "signature_form", form, sign)


@require_POST
@require("team.view")
@sensitive_post_parameters("password", "code", "credential")
def emergency_review(request: HttpRequest, pk: int) -> HttpResponse:
    """Review an emergency change after the fact."""
    promotion = _promotion(request, pk)
    if reason := rules.why_not(request.actor, promotion):
        raise NotAllowed(reason)
    form = AfterwardsForm(request.POST, auto_id="id_%s_afterwards")

    def sign(**values: Any) -> Review:
        return break_glass.review_afterwards(request.actor, request=promotion, **values)

    return _signed(request, promotion, "afterwards_form", form, sign)


@require_POST
@require("promotions.comment")
def comment_add(request: HttpRequest, pk: int) -> HttpResponse:
    """Say something."""
    promotion = _promotion(request, pk)
    form = CommentForm(request.POST)
    if not form.is_valid():
        page = request_page(request, promotion, comment_form=form)
        return render(request, "promotions/request_detail.html", page, status=422)
    comments.add_comment(request.actor, request=promotion, **form.cleaned_data)
    return redirect("promotions:request-detail", pk=pk)


@require_POST
@require("promotions.comment")
def comment_edit(request: HttpRequest, pk: int, comment_id: int) -> HttpResponse:
    """Change one's own comment."""
    promotion = _promotion(request, pk)
    comment = get_object_or_404(Comment.objects.select_related("request"), pk=comment_id, request=promotion)
    form = CommentForm(request.POST)
    if not form.is_valid():
        raise DomainError("A comment has from 1 to 4,000 characters. Nothing was changed.", field="body")
    comments.edit_comment(request.actor, comment=comment, **form.cleaned_data)
    return redirect("promotions:request-detail", pk=pk)


@require_POST
@require("team.view")
def finding_resolve(request: HttpRequest, pk: int, finding_id: int) -> HttpResponse:
    """Say what was done about a condition that one owns."""
    finding = _finding(request, pk, finding_id)
    form = ResolutionForm(request.POST)
    if not form.is_valid():
        raise DomainError("Say in 1 to 4,000 characters what was done. Nothing was changed.", field="resolution")
    findings.resolve_finding(request.actor, finding=finding, **form.cleaned_data)
    messages.success(request, "A reviewer has to accept it now.")
    return redirect("promotions:request-detail", pk=pk)


@require_POST
@require("team.view")
def finding_judge(request: HttpRequest, pk: int, finding_id: int) -> HttpResponse:
    """Accept what was done about a condition, or open it again."""
    is_accepted = "accept" in request.POST
    comment = request.POST.get("comment", "")[:2_000]
    findings.judge_finding(
        request.actor, finding=_finding(request, pk, finding_id), is_accepted=is_accepted, comment=comment
    )
    messages.success(request, "Closed." if is_accepted else "Open again.")
    return redirect("promotions:request-detail", pk=pk)


@require_GET
@require("team.view")
def notices(request: HttpRequest, name: str) -> HttpResponse:
    """What people looking at an endpoint must not miss: emergencies, conditions, revocations."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team), name=name)
    return render(request, "promotions/_notices.html", endpoint_notices(endpoint))


def _signed(
    request: HttpRequest,
    promotion: PromotionRequest,
    name: str,
    form: Form,
    sign: Callable[..., Review],
    **bound: Any,
) -> HttpResponse:
    """Sign with what the form says, or show it again under its ``name`` on the page with what was wrong."""
    if form.is_valid():
        try:
            review = sign(confirmation=confirm_identity(request, request.POST), **form.cleaned_data)
        except DomainError as error:
            if error.status != 422:
                raise
            form.add_error(error.field if error.field in form.fields else None, error.message)
        else:
            messages.success(request, f"{review.get_decision_display()}: signed as {review.reviewer_name}.")
            return redirect("promotions:request-detail", pk=promotion.pk)
    page = request_page(request, promotion, **{name: form}, **bound)
    return render(request, "promotions/request_detail.html", page, status=422)


def _model_version(request: HttpRequest, name: str, number: int) -> ModelVersion:
    versions = ModelVersion.objects.for_team(request.team).select_related("model", "artifact", "uploaded_by")
    found: ModelVersion = get_object_or_404(versions, model__name=name, number=number)
    return found


def _promotion(request: HttpRequest, pk: int) -> PromotionRequest:
    rows = PromotionRequest.objects.for_team(request.team).with_names().select_related("team")
    promotion: PromotionRequest = get_object_or_404(rows, pk=pk)
    return promotion


def _finding(request: HttpRequest, pk: int, finding_id: int) -> Finding:
    rows = Finding.objects.for_team(request.team).select_related("request", "owner")
    finding: Finding = get_object_or_404(rows, pk=finding_id, request_id=pk)
    return finding
