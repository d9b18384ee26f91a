"""Models and their versions."""

from __future__ import annotations

from typing import Final

from django.conf import settings
from django.contrib import messages
from django.core.files.storage import default_storage
from django.core.paginator import Paginator
from django.http import FileResponse, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from apps.core.errors import DomainError
from apps.core.htmx import render
from apps.core.pagination import KeysetPage
from apps.core.permissions import require
from apps.registry import services
from apps.registry.forms import AliasForm, ModelFilterForm, ModelForm, VersionForm
from apps.registry.models import ModelVersion, ModelVersionState, RegisteredModel

_PAGE: Final = 50


@require_GET
@require("team.view")
def model_list(request: HttpRequest) -> HttpResponse:
    """The team's models with the latest version of each."""
    form = ModelFilterForm(request.GET)
    if not form.is_valid():
        raise DomainError("The filter is not text that a name could hold.", field="q")
    models = RegisteredModel.objects.for_team(request.team).with_latest_version().select_related("created_by")
    if query := form.cleaned_data["q"]:
        models = models.filter(name__icontains=query)
    page = Paginator(models.prefetch_related("aliases"), _PAGE).get_page(request.GET.get("page"))
    return render(request, "registry/model_list.html", {"page": page, "query": query}, fragment="registry/_models.html")


@require_http_methods(["GET", "POST"])
@require("registry.upload")
def model_create(request: HttpRequest) -> HttpResponse:
    """Register a model."""
    form = ModelForm(request.POST) if request.method == "POST" else ModelForm()
    if request.method == "POST" and form.is_valid():
        try:
            model = services.register_model(request.actor, team=request.team, **form.cleaned_data)
        except DomainError as error:
            form.add_error(error.field, error.message)
        else:
            messages.success(request, f"Registered {model.name}. Upload its first version next.")
            return redirect(model)
    return render(request, "registry/model_create.html", {"form": form}, status=422 if form.errors else 200)


@require_GET
@require("team.view")
def model_detail(request: HttpRequest, name: str) -> HttpResponse:
    """A model and its versions, newest first."""
    models = RegisteredModel.objects.for_team(request.team).select_related("created_by")
    model = get_object_or_404(models.prefetch_related("aliases__model_version"), name=name)
    page = KeysetPage.of(model.versions.with_facts().prefetch_related("aliases"), request.GET)
    context = {"model": model, "page": page, "base_url": _base_url(request)}
    return render(request, "registry/model_detail.html", context)


@require_http_methods(["GET", "POST"])
@require("registry.upload")
def version_upload(request: HttpRequest, name: str) -> HttpResponse:
    """Upload a version; its validation starts at once."""
    model = get_object_or_404(RegisteredModel.objects.for_team(request.team), name=name)
    form = VersionForm(request.POST, request.FILES) if request.method == "POST" else VersionForm()
    status = 200
    if request.method == "POST" and form.is_valid():
        try:
            version = services.upload_model_version(request.actor, model=model, **form.cleaned_data)
        except DomainError as error:
            form.add_error(error.field, error.message)
            status = error.status
        else:
            return _go_to(request, version.get_absolute_url())
    elif form.errors:
        status = 422
    context = {"form": form, "model": model, "cap_bytes": settings.UPLOAD_MAX_BYTES, "base_url": _base_url(request)}
    template = "registry/version_upload.html"
    return render(request, template, context, fragment="registry/_upload_form.html", status=_shown(request, status))


def _shown(request: HttpRequest, status: int) -> int:
    """The status of a form with errors: to htmx always 422, the only error whose body it puts into the page."""
    return 422 if request.htmx and status >= 400 else status


def _base_url(request: HttpRequest) -> str:
    return request.build_absolute_uri("/").rstrip("/")


def _go_to(request: HttpRequest, url: str) -> HttpResponse:
    """Redirect; htmx, which follows redirects by itself, is told to load the page as a whole."""
    if not request.htmx:
        return redirect(url)
    response = HttpResponse(status=204)
    response["HX-Redirect"] = url
    return response


@require_GET
@require("team.view")
def version_detail(request: HttpRequest, name: str, number: int) -> HttpResponse:
    """What a version is, and whether it may serve."""
    return _version_page(request, _version(request, name, number), AliasForm())


@require_GET
@require("team.view")
def version_schema(request: HttpRequest, name: str, number: int) -> HttpResponse:
    """The whole signature."""
    return render(request, "registry/version_schema.html", {"model_version": _version(request, name, number)})


@require_GET
@require("team.view")
def version_download(request: HttpRequest, name: str, number: int) -> FileResponse:
    """The artifact's bytes."""
    version = _version(request, name, number)
    file = default_storage.open(version.artifact.path)
    return FileResponse(
        file, as_attachment=True, filename=f"{name}-v{number}.onnx", content_type="application/octet-stream"
    )


@require_POST
@require("registry.upload")
def version_archive(request: HttpRequest, name: str, number: int) -> HttpResponse:
    """Take this version out of use."""
    version = services.archive_version(request.actor, model_version=_version(request, name, number))
    messages.success(request, f"Archived {version}. What it serves, it goes on serving.")
    return redirect(version)


@require_POST
@require("registry.upload")
def alias_set(request: HttpRequest, name: str, number: int) -> HttpResponse:
    """Point an alias at this version."""
    version = _version(request, name, number)
    form = AliasForm(request.POST)
    if form.is_valid():
        try:
            alias = services.set_alias(request.actor, model_version=version, name=form.cleaned_data["name"])
        except DomainError as error:
            form.add_error(error.field, error.message)
        else:
            messages.success(request, f"{alias} points at v{number} now.")
            return redirect(version)
    return _version_page(request, version, form)


def _version_page(request: HttpRequest, version: ModelVersion, form: AliasForm) -> HttpResponse:
    context = {
        "model_version": version,
        "alias_form": form,
        "signatures": version.signatures.defer("bundle"),
        "base_url": _base_url(request),
        "why_not_promote": _why_not_promote(request, version),
    }
    return render(request, "registry/version_detail.html", context, status=422 if form.errors else 200)


def _why_not_promote(request: HttpRequest, version: ModelVersion) -> str:
    """The sentence beside the disabled button; empty when this person can request a promotion."""
    if not request.actor.can("promotions.request"):
        return "A data scientist or an operator can request its promotion."
    reasons = {
        ModelVersionState.VALIDATING: "It is being validated.",
        ModelVersionState.REJECTED: "It did not pass validation.",
        ModelVersionState.ARCHIVED: "It is archived.",
    }
    return reasons.get(ModelVersionState(version.state), "")


def _version(request: HttpRequest, name: str, number: int) -> ModelVersion:
    versions = ModelVersion.objects.for_team(request.team).with_facts().prefetch_related("aliases")
    version: ModelVersion = get_object_or_404(versions, model__name=name, number=number)
    return version
