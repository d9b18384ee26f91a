"""Every page of the console. REST lives in ``api_urls.py``."""

from django.http import HttpRequest, HttpResponse
from django.urls import include, path
from django.views.decorators.http import require_GET

from apps.accounts.urls import steps
from apps.core.permissions import public


@require_GET
@public
def healthz(request: HttpRequest) -> HttpResponse:
    """The web process answers."""
    return HttpResponse("ok", content_type="text/plain")


urlpatterns = [
    path("healthz", healthz, name="healthz"),
    path("", include("apps.accounts.urls")),
    path("", include(steps)),
    path("", include("apps.audit.urls")),
    path("", include("apps.jobs.urls")),
    path("", include("apps.registry.urls")),
    path("", include("apps.evaluation.urls")),
    path("", include("apps.deployments.urls")),
    path("", include("apps.monitoring.urls")),
    path("", include("apps.policies.urls")),
    path("", include("apps.promotions.urls")),
    path("", include("apps.packs.urls")),
    path("api/v1/", include("console.api_urls")),
]
