"""Pages of artifact signatures and of the signers that a team trusts."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from apps.core.errors import DomainError
from apps.core.htmx import render
from apps.core.permissions import require
from apps.registry import artifact_signing as services
from apps.registry.forms import TrustedSignerForm
from apps.registry.models import ModelVersion, TrustedSigner

_CHANGE = "promotions.set_policy"


@require_GET
@require("team.view")
def signature_download(request: HttpRequest, name: str, number: int, origin: str) -> HttpResponse:
    """A signature bundle, as OpenSSF's tools read it."""
    version = _version(request, name, number)
    signature = get_object_or_404(version.signatures, origin=origin.upper())
    response = HttpResponse(signature.bundle, content_type="application/vnd.dev.sigstore.bundle.v0.3+json")
    response["Content-Disposition"] = f'attachment; filename="{name}-v{number}-{origin}-signature.json"'
    return response


@require_POST
@require("registry.upload")
def signature_check(request: HttpRequest, name: str, number: int) -> HttpResponse:
    """Check the uploaded signature once more."""
    version = _version(request, name, number)
    services.request_check(request.actor, model_version=version)
    messages.success(request, "The signature is being checked again; look at this page in a moment.")
    return redirect(version)


@require_http_methods(["GET", "POST"])
@require("team.view")
def signer_list(request: HttpRequest) -> HttpResponse:
    """Whom the team trusts; POST to trust somebody else."""
    if request.method == "POST":
        request.actor.require(_CHANGE)
    form = TrustedSignerForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            signer = services.trust_signer(request.actor, team=request.team, **form.cleaned_data)
        except DomainError as error:
            form.add_error(error.field, error.message)
        else:
            messages.success(request, f"Signatures by {signer.name} are believed from now on.")
            return redirect("registry:signer-list")
    signers = TrustedSigner.objects.for_team(request.team).select_related("added_by").order_by("-id")[:200]
    context = {"form": form, "signers": signers, "may_change": request.actor.can(_CHANGE)}
    return render(request, "registry/signer_list.html", context, status=422 if form.errors else 200)


@require_POST
@require(_CHANGE)
def signer_revoke(request: HttpRequest, pk: int) -> HttpResponse:
    """Trust a signer no more."""
    signer = get_object_or_404(TrustedSigner.objects.for_team(request.team).select_related("team"), pk=pk)
    services.revoke_signer(request.actor, signer=signer)
    messages.success(request, f"{signer.name} is not trusted any more.")
    return redirect("registry:signer-list")


@require_GET
@require("team.view")
def installation_key(request: HttpRequest) -> HttpResponse:
    """The public key for what this installation signed."""
    response = HttpResponse(services.installation_public_key(), content_type="application/x-pem-file")
    response["Content-Disposition"] = 'attachment; filename="installation.pem"'
    return response


def _version(request: HttpRequest, name: str, number: int) -> ModelVersion:
    versions = ModelVersion.objects.for_team(request.team).select_related("model__team")
    version: ModelVersion = get_object_or_404(versions, model__name=name, number=number)
    return version
