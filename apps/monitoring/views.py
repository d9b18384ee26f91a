"""Live traffic and the inference log."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, Final

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST

from apps.accounts.models import ApiToken
from apps.core.errors import DomainError
from apps.core.htmx import render
from apps.core.pagination import KeysetPage
from apps.core.permissions import require
from apps.deployments.manifest import CONSOLE_TOKEN_ID
from apps.deployments.models import Deployment, Endpoint
from apps.monitoring.agreement import NEWEST as NEWEST_COPIES
from apps.monitoring.agreement import agreement
from apps.monitoring.charts import sparkline, violation_chart
from apps.monitoring.export import CONTENT_TYPE, export_lines
from apps.monitoring.forms import KeepRowsForm, LogFilterForm, ProvenanceForm, read_filter
from apps.monitoring.live import Window, live_context
from apps.monitoring.log_reader import LogFilter, LogKey, LogPage, Prediction, is_intact, read_log
from apps.monitoring.log_samples import keep_rows
from apps.monitoring.provenance import answers_to, serving_at
from apps.monitoring.replay import replay
from apps.monitoring.sealing import sealing_events
from apps.monitoring.services import record_read
from apps.monitoring.traffic import endpoint_totals
from apps.monitoring.violations import violations

_OVERVIEW_SPAN: Final = timedelta(hours=1)
_MAX_ENDPOINTS: Final = 50
_MAX_ROWS_OF_REQUEST: Final = 100
_MAX_SEGMENTS: Final = 5  # a file is hashed as a whole
_MAX_ATTEMPTS: Final = 20
_RETRY_SPAN: Final = timedelta(minutes=15)


@require_GET
@require("team.view")
def overview(request: HttpRequest) -> HttpResponse:
    """The team's endpoints at a glance, for the inbox; nothing when there are none."""
    endpoints = list(Endpoint.objects.for_team(request.team)[:_MAX_ENDPOINTS])
    if not endpoints:
        return HttpResponse("")
    champions = Deployment.objects.for_team(request.team).active().champions().select_related("model_version__model")
    by_endpoint = {row.endpoint_id: row for row in champions}
    totals = endpoint_totals([endpoint.pk for endpoint in endpoints], timezone.now() - _OVERVIEW_SPAN)
    rows = [
        {
            "endpoint": endpoint,
            "champion": by_endpoint.get(endpoint.pk),
            "totals": totals[endpoint.pk],
            "spark": sparkline(totals[endpoint.pk].rates),
        }
        for endpoint in endpoints
    ]
    return render(request, "monitoring/_overview.html", {"rows": rows})


@require_GET
@require("team.view")
def endpoint_live(request: HttpRequest, name: str) -> HttpResponse:
    """Traffic, latency and errors of the last minutes or hours; the fragment polls itself."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team), name=name)
    context = live_context(endpoint, Window.named(request.GET.get("window", "")))
    return render(request, "monitoring/endpoint_live.html", context, fragment="monitoring/_traffic.html")


@require_GET
@require("team.view")
def shadow_agreement(request: HttpRequest, name: str) -> HttpResponse:
    """How far the answers of shadows agree with those that callers got."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team), name=name)
    context = {"endpoint": endpoint, "rows": agreement(endpoint), "newest": NEWEST_COPIES}
    template, fragment = "monitoring/shadow_agreement.html", "monitoring/_shadows.html"
    return render(request, template, context, fragment=fragment)


@require_GET
@require("team.view")
def guardrail_counts(request: HttpRequest, name: str) -> HttpResponse:
    """The endpoint's guardrails with what each of them has counted; the fragment polls itself."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team), name=name)
    rules = list(endpoint.guardrails.all())
    grid, counted = violations(endpoint, [rule.name for rule in rules])
    for rule in rules:
        rule.last_hour, rule.last_day = counted[rule.name].last_hour, counted[rule.name].last_day
    chart = violation_chart(grid, {name: one.by_step for name, one in counted.items()})
    context = {"endpoint": endpoint, "rules": rules, "counts": True, "chart": chart}
    return render(request, "monitoring/guardrail_counts.html", context, fragment="monitoring/_guardrails.html")


@require_GET
@require("team.view")
def guardrail_replay(request: HttpRequest, name: str) -> HttpResponse:
    """What a rule would have said of the newest predictions."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team), name=name)
    context: dict[str, Any] = {"endpoint": endpoint}
    try:
        context["replay"] = replay(endpoint, request.GET.get("requires", ""))
    except DomainError as error:
        context["problem"] = error.message
    status = 422 if "problem" in context else 200
    template, fragment = "monitoring/guardrail_replay.html", "monitoring/_replay.html"
    return render(request, template, context, fragment=fragment, status=status)


@require_GET
@require("team.view")
def prediction_list(request: HttpRequest, name: str) -> HttpResponse:
    """The endpoint's predictions, newest first, filtered by the query string."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team).select_related("team"), name=name)
    context = _log_context(request, endpoint, KeepRowsForm(initial={"name": f"{endpoint.name}-log"[:63].strip("-")}))
    if context["log"] is None:
        return render(request, "monitoring/prediction_list.html", context, status=422)
    if context["log"].rows:
        record_read(request.actor, "inference_log.viewed", endpoint=endpoint, **context["form"].cleaned_data)
    return render(request, "monitoring/prediction_list.html", context, fragment="monitoring/_predictions.html")


@require_POST
@require("registry.upload")
def rows_keep(request: HttpRequest, name: str) -> HttpResponse:
    """Keep the inputs of the newest predictions that the query string's filter fits as a dataset version."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team).select_related("team"), name=name)
    form = KeepRowsForm(request.POST)
    if form.is_valid():
        try:
            version = keep_rows(
                request.actor, endpoint=endpoint, wanted=read_filter(request.GET), name=form.cleaned_data["name"]
            )
        except DomainError as error:
            form.add_error(error.field if error.field in form.fields else None, error.message)
        else:
            messages.success(request, f"Kept as {version}. It is being read.")
            return redirect(version)
    return render(request, "monitoring/prediction_list.html", _log_context(request, endpoint, form), status=422)


@require_GET
@require("team.view")
def prediction_export(request: HttpRequest, name: str) -> StreamingHttpResponse:
    """The predictions that fit the query string, as JSON Lines."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team).select_related("team"), name=name)
    before = request.GET.get("before", "")
    wanted = read_filter(request.GET)
    lines = export_lines(endpoint, wanted, LogKey.parse(before) if before else None)
    record_read(request.actor, "inference_log.exported", endpoint=endpoint, **asdict(wanted))
    headers = {"Content-Disposition": f'attachment; filename="{endpoint.name}-predictions.jsonl"'}
    return StreamingHttpResponse(lines, content_type=CONTENT_TYPE, headers=headers)


@require_GET
@require("team.view")
def prediction_detail(request: HttpRequest, name: str, request_id: str) -> HttpResponse:
    """Everything that the log holds of one request. What is not shipped yet is looked for again, for a while."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team).select_related("team"), name=name)
    attempt = _attempt(request)
    since = timezone.now() - _RETRY_SPAN if attempt else None
    log = read_log(endpoint, LogFilter(request_id=request_id, since=since), size=_MAX_ROWS_OF_REQUEST)
    context = {"endpoint": endpoint, "request_id": request_id, "log": log}
    if not log.rows:
        return _missing(request, context, attempt)
    record_read(request.actor, "prediction.viewed", endpoint=endpoint, request_id=request_id, rows=len(log.rows))
    segments = list({row.segment.pk: row.segment for row in log.rows}.values())[:_MAX_SEGMENTS]
    sealed = sealing_events(segments)
    context["segments"] = [(segment, is_intact(segment), sealed.get(segment.pk)) for segment in segments]
    context["may_audit"] = request.actor.can("audit.read")
    callers = _callers(request, log)
    context["rows"] = [(row, callers.get(row.columns["token_id"], ""), beside) for row, beside in _with_shadows(log)]
    return render(request, "monitoring/prediction_detail.html", context, fragment="monitoring/_prediction.html")


@require_GET
@require("team.view")
def provenance(request: HttpRequest, name: str) -> HttpResponse:
    """Who answers for a prediction, or for what served at a moment."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team).select_related("team"), name=name)
    form = ProvenanceForm(request.GET)
    context: dict[str, Any] = {"endpoint": endpoint, "form": form, "answers": None}
    context["may_audit"] = request.actor.can("audit.read")
    if not form.is_valid():
        return render(request, "monitoring/provenance.html", context, status=422)
    request_id, at = form.cleaned_data["request_id"], form.cleaned_data["at"]
    if request_id:
        context["answers"] = answers_to(endpoint, request_id)
    elif at:
        context["serving"] = serving_at(endpoint, at)
        context["answers"] = context["serving"].answers
    return render(request, "monitoring/provenance.html", context, fragment="monitoring/_provenance.html")


def _with_shadows(log: LogPage) -> list[tuple[Prediction, list[Prediction]]]:
    """Each answered row with itself and what shadows made of it, if any; what only a shadow logged stands alone."""
    by_place: dict[tuple[datetime, int], list[Prediction]] = {}
    for row in log.rows:
        by_place.setdefault((row.received_at, row.columns["row"]), []).append(row)
    groups = []
    for rows in by_place.values():
        ordered = sorted(rows, key=lambda row: row.columns["role"] == "shadow")
        groups.append((ordered[0], ordered if len(ordered) > 1 else []))
    return groups


def _missing(request: HttpRequest, context: dict[str, Any], attempt: int) -> HttpResponse:
    """Not in the log, or not yet: the fragment asks again until the attempts are used up."""
    context["next_attempt"] = attempt + 1 if attempt < _MAX_ATTEMPTS else None
    template, fragment = "monitoring/prediction_missing.html", "monitoring/_prediction_missing.html"
    # To a person who opens it, the page is not there; htmx would not show a 404.
    return render(request, template, context, fragment=fragment, status=200 if attempt else 404)


def _attempt(request: HttpRequest) -> int:
    """How often the fragment has asked before."""
    text = request.GET.get("attempt", "")
    return min(int(text), _MAX_ATTEMPTS) if text.isascii() and text.isdecimal() and len(text) < 4 else 0


def _callers(request: HttpRequest, log: LogPage) -> dict[int, str]:
    """The names of the tokens that the predictions were asked for with."""
    token_ids = {row.columns["token_id"] for row in log.rows} - {CONSOLE_TOKEN_ID}
    tokens = ApiToken.objects.for_team(request.team).select_related("membership__user").in_bulk(token_ids)
    names = {pk: f"{token} of {token.membership.user.name}" for pk, token in tokens.items()}
    return names | {CONSOLE_TOKEN_ID: "the console’s “Try it” form"}


def _log_context(request: HttpRequest, endpoint: Endpoint, keep_form: KeepRowsForm) -> dict[str, Any]:
    """A page of the log by the query string's filter; ``log`` is None if the filter is not acceptable."""
    form = LogFilterForm(request.GET)
    context: dict[str, Any] = {"endpoint": endpoint, "form": form, "keep_form": keep_form, "log": None}
    if form.is_valid():
        before = request.GET.get("before", "")
        log = read_log(endpoint, form.wanted(), before=LogKey.parse(before) if before else None, tensors=3)
        context |= {"log": log, "page": _page(request, log)}
    return context


def _page(request: HttpRequest, log: LogPage) -> KeysetPage:
    """The links to older and to the newest predictions, with the same filters."""
    older, newest = request.GET.copy(), request.GET.copy()
    older["before"] = str(log.next_key)
    newest.pop("before", None)
    return KeysetPage(
        rows=log.rows,
        next_query=older.urlencode() if log.next_key else "",
        first_query=newest.urlencode() if "before" in request.GET else "",
    )
