"""Pages of evidence packs, and of the tables that say which record answers which clause."""

from __future__ import annotations

import zipfile
from typing import Any

from django.http import FileResponse, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_GET, require_http_methods

from apps.audit.keys import audit_key
from apps.core.errors import DomainError
from apps.core.htmx import render
from apps.core.pagination import KeysetPage
from apps.core.permissions import require
from apps.packs import services
from apps.packs.forms import PackForm
from apps.packs.mapping import frameworks
from apps.packs.models import EvidencePack, PackKind

_READ = "audit.read"


@require_GET
@require(_READ)
def pack_list(request: HttpRequest) -> HttpResponse:
    """The team's packs, newest first."""
    page = KeysetPage.of(EvidencePack.objects.for_team(request.team).with_names(), request.GET)
    return render(request, "packs/pack_list.html", {"page": page}, fragment="packs/_packs.html")


@require_http_methods(["GET", "POST"])
@require(_READ)
def pack_create(request: HttpRequest) -> HttpResponse:
    """Ask for a pack; a link fills in what it is about by ``?kind=`` and ``?promotion=`` or ``?name=``."""
    form = PackForm(request.POST or None, initial=request.GET.dict())
    if request.method == "POST" and form.is_valid():
        values = form.cleaned_data
        key = values["promotion"] if values["kind"] == PackKind.PROMOTION else values["name"]
        try:
            subject = services.find_subject(request.team, kind=values["kind"], key=key)
            pack = services.request_pack(request.actor, team=request.team, subject=subject, **form.period)
        except DomainError as error:
            fields = {"subject": "promotion" if values["kind"] == PackKind.PROMOTION else "name", "until": "last_day"}
            form.add_error(fields.get(error.field or "", "first_day" if error.field else None), error.message)
        else:
            return redirect(pack)
    return render(request, "packs/pack_create.html", {"form": form}, status=422 if form.errors else 200)


@require_GET
@require(_READ)
def pack_detail(request: HttpRequest, pk: int) -> HttpResponse:
    """What is in a pack, and how it is checked; polls itself until it is built."""
    context = {"pack": _pack(request, pk), "verifier_key": str(audit_key())}
    return render(request, "packs/pack_detail.html", context, fragment="packs/_pack.html")


@require_GET
@require(_READ)
def pack_download(request: HttpRequest, pk: int) -> FileResponse:
    """The ZIP."""
    pack = _pack(request, pk)
    file = services.open_pack(request.actor, pack=pack, part="pack")
    return FileResponse(file, as_attachment=True, filename=pack.file_name, content_type="application/zip")


@require_GET
@require(_READ)
def report_download(request: HttpRequest, pk: int) -> FileResponse:
    """The PDF out of the ZIP."""
    pack = _pack(request, pk)
    archive = zipfile.ZipFile(services.open_pack(request.actor, pack=pack, part="report"))
    name = pack.file_name.replace(".zip", ".pdf")
    return FileResponse(archive.open("report.pdf"), as_attachment=True, filename=name, content_type="application/pdf")


@require_GET
@require("team.view")
def requirements(request: HttpRequest) -> HttpResponse:
    """Which record answers which clause; ``?framework=`` chooses the table."""
    tables = {row.key: row for row in frameworks()}
    chosen = tables.get(request.GET.get("framework", ""), next(iter(tables.values())))
    context: dict[str, Any] = {
        "frameworks": tables.values(),
        "chosen": chosen,
        "answered": chosen.count("Answered"),
        "partly": chosen.count("Partly"),
        "open": chosen.count("Not answered"),
    }
    return render(request, "packs/requirements.html", context)


def _pack(request: HttpRequest, pk: int) -> EvidencePack:
    packs = EvidencePack.objects.for_team(request.team).with_names().select_related("team")
    pack: EvidencePack = get_object_or_404(packs, pk=pk)
    return pack
