"""Models and their versions."""

from __future__ import annotations

from django.contrib import messages
from django.core.files.storage import default_storage
from django.db.models import Count, OuterRef, Subquery
from django.http import FileResponse, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from apps.core.errors import DomainError
from apps.core.htmx import render
from apps.core.permissions import require
from apps.registry import services
from apps.registry.forms import AliasForm, ModelForm, VersionForm
from apps.registry.models import ModelVersion, RegisteredModel


@require_GET
@require("team.view")
def model_list(request: HttpRequest) -> HttpResponse:
    """The team's models with the latest version of each."""
    latest = ModelVersion.objects.filter(model=OuterRef("pk")).order_by("-number")
    models = RegisteredModel.objects.for_team(request.team).select_related("created_by").prefetch_related("aliases")
    if query := request.GET.get("q", "").strip()[:63]:
        models = models.filter(name__icontains=query)
    models = models.annotate(
        version_count=Count("versions"),
        latest_number=Subquery(latest.values("number")[:1]),
        latest_state=Subquery(latest.values("state")[:1]),
        latest_at=Subquery(latest.values("uploaded_at")[:1]),
    )
    context = {"models": models[:500], "query": query}
    return render(request, "registry/model_list.html", context, fragment="registry/_models.html")


@require_http_methods(["GET", "POST"])
@require("registry.upload")
def model_create(request: HttpRequest) -> HttpResponse:
    """Register a model."""
    form = ModelForm(request.POST or None)
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
    """A model and its versions."""
    models = RegisteredModel.objects.for_team(request.team).select_related("created_by")
    model = get_object_or_404(models, name=name)
    versions = model.versions.with_facts().prefetch_related("aliases")[:200]
    base = request.build_absolute_uri("/").rstrip("/")
    return render(request, "registry/model_detail.html", {"model": model, "versions": versions, "base_url": base})


@require_http_methods(["GET", "POST"])
@require("registry.upload")
def version_upload(request: HttpRequest, name: str) -> HttpResponse:
    """Upload a version; its validation starts at once."""
    model = get_object_or_404(RegisteredModel.objects.for_team(request.team), name=name)
    form = VersionForm(request.POST or None, request.FILES or None)
    if request.method == "POST" and form.is_valid():
        try:
            version = services.upload_model_version(request.actor, model=model, **form.cleaned_data)
        except DomainError as error:
            form.add_error(error.field, error.message)
        else:
            messages.success(request, f"Uploaded {version}. It is being validated.")
            return _go_to(request, version.get_absolute_url())
    context = {"form": form, "model": model}
    status = 422 if form.errors else 200
    return render(
        request, "registry/version_upload.html", context, fragment="registry/_upload_form.html", status=status
    )


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
    version = _version(request, name, number)
    context = {
        "model_version": version,
        "alias_form": AliasForm(),
        "base_url": request.build_absolute_uri("/").rstrip("/"),
    }
    return render(request, "registry/version_detail.html", context)


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
    context = {"model_version": version, "alias_form": form}
    return render(request, "registry/version_detail.html", context, status=422)


def _version(request: HttpRequest, name: str, number: int) -> ModelVersion:
    versions = ModelVersion.objects.for_team(request.team).with_facts()
    version: ModelVersion = get_object_or_404(versions, model__name=name, number=number)
    return version
