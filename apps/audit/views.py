"""The audit page, an event with its proof, an object's history, and exports."""

from __future__ import annotations

import re
from typing import Any, Final

from django.db.models import Q
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_GET, require_POST

from apps.audit import forwarding
from apps.audit.export import CSV, JSONL, export_csv, export_jsonl
from apps.audit.forms import AuditExportForm, AuditFilterForm
from apps.audit.keys import audit_key
from apps.audit.models import AuditEvent, Checkpoint, Verification
from apps.audit.services import inclusion_proof, latest_checkpoint
from apps.audit.verification import request_verification
from apps.core.errors import DomainError, NotAllowed
from apps.core.htmx import render
from apps.core.pagination import KeysetPage
from apps.core.permissions import require

_OBJECT: Final = re.compile(r"([a-z_]{1,40}\.[a-z]{1,60}):([0-9a-zA-Z-]{1,64})")
_MAX_OBJECTS: Final = 100
_HISTORY_SIZE: Final = 20


@require_GET
@require("audit.read")
def event_list(request: HttpRequest) -> HttpResponse:
    """The team's events, newest first, filtered by the query string."""
    form = AuditFilterForm(request.GET)
    if not form.is_valid():
        return render(request, "audit/event_list.html", {"form": form, "page": None}, status=422)
    events = AuditEvent.objects.numbered().for_team(request.team).matching(**form.cleaned_data)
    page = KeysetPage.of(events, request.GET, key="seq")
    context = {"form": form, "page": page} | log_context()
    return render(request, "audit/event_list.html", context, fragment="audit/_events.html")


@require_GET
@require("audit.read")
def log_state(request: HttpRequest) -> HttpResponse:
    """The newest checkpoint and the last verification; the fragment polls itself while one runs."""
    return render(request, "audit/log_state.html", log_context(), fragment="audit/_log_state.html")


@require_POST
@require("audit.read")
def log_verify(request: HttpRequest) -> HttpResponse:
    """Have the whole log checked; the controller starts it at once."""
    request_verification(request.actor, team=request.team)
    return render(request, "audit/_log_state.html", log_context()) if request.htmx else redirect("audit:event-list")


@require_GET
@require("audit.read")
def event_detail(request: HttpRequest, seq: int) -> HttpResponse:
    """One event: what changed, and the proof that the signed log holds it."""
    event = get_object_or_404(AuditEvent.objects.for_team(request.team), seq=seq)
    checkpoint = Checkpoint.objects.filter(tree_size__gte=seq).order_by("tree_size").first()
    context = {"event": event, "checkpoint": checkpoint, "key": audit_key()}
    if checkpoint is not None:
        context["proof"] = inclusion_proof(seq, checkpoint.tree_size)
    return render(request, "audit/event_detail.html", context)


@require_GET
@require("team.view")
def object_history(request: HttpRequest) -> HttpResponse:
    """What happened to the objects ``?of=type:id,type:id``, newest first; a fragment on their pages."""
    events = AuditEvent.objects.numbered().for_team(request.team).filter(_about(request))
    page = KeysetPage.of(events, request.GET, key="seq", size=_HISTORY_SIZE)
    context = {"page": page, "may_open": request.actor.can("audit.read")}
    return render(request, "audit/object_history.html", context, fragment="audit/_history.html")


@require_GET
@require("audit.read")
def event_export_jsonl(request: HttpRequest) -> StreamingHttpResponse:
    """The events that fit, with proofs, for the offline verifier."""
    options = _export_options(request)
    return _download(export_jsonl(request.actor, team=request.team, **options), JSONL, f"{request.team.slug}.jsonl")


@require_GET
@require("audit.read")
def event_export_csv(request: HttpRequest) -> StreamingHttpResponse:
    """The events that fit, as a table."""
    options = _export_options(request)
    del options["since_size"]
    return _download(export_csv(request.actor, team=request.team, **options), CSV, f"{request.team.slug}.csv")


def log_context() -> dict[str, Any]:
    """What there is to know of the log as a whole."""
    verifications = Verification.objects.all()
    return {
        "newest": AuditEvent.objects.numbered().last(),
        "checkpoint": latest_checkpoint(),
        "key": audit_key(),
        "beyond": forwarding.describe(),
        "running": verifications.filter(finished_at=None).first(),
        "verification": verifications.exclude(finished_at=None).first(),
    }


def _about(request: HttpRequest) -> Q:
    """The objects of the query string. What concerns members is for those who administer or audit them."""
    named = request.GET.get("of", "").split(",")[:_MAX_OBJECTS]
    wanted = Q(pk__in=())
    for text in named:
        match = _OBJECT.fullmatch(text)
        if match is None:
            raise DomainError("“of” names objects as type:id, separated by commas.", field="of")
        object_type, object_id = match.groups()
        if object_type.startswith("accounts.") and not _may_see_members(request):
            raise NotAllowed("The history of members is for admins and compliance officers.")
        wanted |= Q(object_type=object_type, object_id=object_id)
    return wanted


def _may_see_members(request: HttpRequest) -> bool:
    return bool(request.actor.can("audit.read") or request.actor.can("accounts.administer"))


def _export_options(request: HttpRequest) -> dict[str, Any]:
    form = AuditExportForm(request.GET)
    if not form.is_valid():
        field, messages = next(iter(form.errors.items()))
        raise DomainError(str(messages[0]), field=field)
    return form.options()


def _download(lines: Any, content_type: str, name: str) -> StreamingHttpResponse:
    headers = {"Content-Disposition": f'attachment; filename="audit-{name}"'}
    return StreamingHttpResponse(lines, content_type=content_type, headers=headers)
