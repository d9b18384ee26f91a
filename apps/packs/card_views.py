"""Pages of model cards."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from apps.core.errors import DomainError
from apps.core.htmx import render
from apps.core.permissions import require
from apps.packs.card_facts import begin
from apps.packs.card_files import card_file
from apps.packs.forms import CardForm, CardReviewForm
from apps.registry import card_services as services
from apps.registry.cards import KEYS, SECTIONS, completeness, differences
from apps.registry.markdown import render_markdown
from apps.registry.models import CardRevision, ModelVersion


@require_GET
@require("team.view")
def card_detail(request: HttpRequest, name: str, number: int) -> HttpResponse:
    """A version's card at its newest revision, or at ``?revision=``."""
    version = _version(request, name, number)
    return _card_page(request, version, _revision(request, version), CardReviewForm())


@require_http_methods(["GET", "POST"])
@require("registry.upload")
def card_edit(request: HttpRequest, name: str, number: int) -> HttpResponse:
    """Write the next revision; ``?refresh=1`` begins with the facts as they stand now."""
    version = _version(request, name, number)
    draft = begin(version, is_refreshed=bool(request.GET.get("refresh")))
    form = CardForm(request.POST or None, initial=draft["sections"] | {"based_on": draft["based_on"]})
    if request.method == "POST" and form.is_valid():
        values = form.cleaned_data
        try:
            revision = services.save_card(
                request.actor,
                model_version=version,
                sections=form.sections,
                based_on=values["based_on"],
                summary=values["summary"],
            )
        except DomainError as error:
            form.add_error(error.field if error.field in form.fields else None, error.message)
        else:
            messages.success(request, f"Saved revision {revision.number}. {completeness(revision.sections).sentence}")
            return redirect("packs:card-detail", name, number)
    context = {"form": form, "model_version": version, "fields": [form[key] for key in KEYS]}
    return render(request, "packs/card_edit.html", context, status=422 if form.errors else 200)


@require_POST
@require("registry.upload")
def card_submit(request: HttpRequest, name: str, number: int) -> HttpResponse:
    """Ask for a review of the newest revision."""
    revision = services.request_card_review(request.actor, revision=_latest(request, name, number))
    messages.success(request, f"Revision {revision.number} waits for a compliance officer’s review.")
    return redirect("packs:card-detail", name, number)


@require_POST
@require("registry.review_card")
def card_review(request: HttpRequest, name: str, number: int) -> HttpResponse:
    """Review the revision that the person saw."""
    version = _version(request, name, number)
    form = CardReviewForm(request.POST)
    if not form.is_valid():
        return _card_page(request, version, _latest(request, name, number), form)
    values = form.cleaned_data
    revision = get_object_or_404(version.card_revisions.with_version(), number=values["revision"])
    is_approved = values["verdict"] == "reviewed"
    services.review_card(request.actor, revision=revision, is_approved=is_approved, comment=values["comment"])
    messages.success(request, "Reviewed." if is_approved else "Sent back for changes.")
    return redirect("packs:card-detail", name, number)


@require_GET
@require("team.view")
def card_compare(request: HttpRequest, name: str, number: int) -> HttpResponse:
    """What changed between two revisions, ``?from=`` and ``?to=``; without them the two newest."""
    version = _version(request, name, number)
    newest = _latest(request, name, number)
    after = _numbered(version, request.GET.get("to", ""), newest.number)
    before = _numbered(version, request.GET.get("from", ""), max(after.number - 1, 1))
    context = {
        "model_version": version,
        "before": before,
        "after": after,
        "differences": differences(before.sections, after.sections),
        "revisions": version.card_revisions.defer("sections")[:50],
    }
    return render(request, "packs/card_compare.html", context)


@require_GET
@require("team.view")
def card_export(request: HttpRequest, name: str, number: int, form: str) -> HttpResponse:
    """The card as a file: ``md`` or ``html``, at ``?revision=`` or the newest."""
    version = _version(request, name, number)
    revision = _revision(request, version)
    if revision is None:
        raise DomainError("This version has no card yet.")
    content, content_type = card_file(revision, form)
    response = HttpResponse(content, content_type=content_type)
    response["Content-Disposition"] = f'attachment; filename="{name}-v{number}-card-r{revision.number}.{form}"'
    return response


def _card_page(
    request: HttpRequest, version: ModelVersion, revision: CardRevision | None, form: CardReviewForm
) -> HttpResponse:
    revisions = list(version.card_revisions.defer("sections")[:20])
    sections = revision.sections if revision else {}
    context: dict[str, Any] = {
        "model_version": version,
        "revision": revision,
        "revisions": revisions,
        "is_newest": revision is None or revision.number == revisions[0].number,
        "completeness": completeness(sections),
        "sections": [(row, render_markdown(sections.get(row.key, ""))) for row in SECTIONS],
        "form": form,
        "why_not": services.why_not_review(request.actor, revision) if revision else "",
    }
    return render(request, "packs/card_detail.html", context, status=422 if form.errors else 200)


def _version(request: HttpRequest, name: str, number: int) -> ModelVersion:
    versions = ModelVersion.objects.for_team(request.team).with_facts().select_related("model__created_by")
    version: ModelVersion = get_object_or_404(versions, model__name=name, number=number)
    return version


def _revision(request: HttpRequest, version: ModelVersion) -> CardRevision | None:
    wanted = request.GET.get("revision", "")
    if not wanted:
        newest: CardRevision | None = version.card_revisions.with_version().first()
        return newest
    return _numbered(version, wanted, 0)


def _numbered(version: ModelVersion, wanted: str, otherwise: int) -> CardRevision:
    number = int(wanted) if wanted.isdecimal() and len(wanted) < 10 else otherwise
    found: CardRevision = get_object_or_404(version.card_revisions.with_version(), number=number)
    return found


def _latest(request: HttpRequest, name: str, number: int) -> CardRevision:
    revisions = CardRevision.objects.for_team(request.team).with_version()
    found = revisions.filter(model_version__model__name=name, model_version__number=number).first()
    if found is None:
        get_object_or_404(ModelVersion.objects.for_team(request.team), model__name=name, number=number)
        raise DomainError("This version has no card yet. Write one first.")
    return found  # type: ignore[no-any-return]
