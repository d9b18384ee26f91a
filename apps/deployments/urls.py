"""URLs of the endpoint pages."""

from django.urls import path

from apps.deployments import views

app_name = "deployments"
urlpatterns = [
    path("manifest/acknowledge/", views.refusals_acknowledge, name="refusals-acknowledge"),
    path("endpoints/", views.endpoint_list, name="endpoint-list"),
    path("endpoints/new/", views.endpoint_create, name="endpoint-create"),
    path("endpoints/<slug:name>/", views.endpoint_detail, name="endpoint-detail"),
    path("endpoints/<slug:name>/state/", views.endpoint_state, name="endpoint-state"),
    path("endpoints/<slug:name>/try/", views.endpoint_try, name="endpoint-try"),
    path("endpoints/<slug:name>/rollback/", views.endpoint_rollback, name="endpoint-rollback"),
    path("endpoints/<slug:name>/traffic/", views.endpoint_traffic, name="endpoint-traffic"),
    path("endpoints/<slug:name>/shadows/", views.shadow_add, name="shadow-add"),
    path("endpoints/<slug:name>/shadows/<int:pk>/remove/", views.shadow_remove, name="shadow-remove"),
    path("endpoints/<slug:name>/settings/", views.endpoint_settings, name="endpoint-settings"),
    path("endpoints/<slug:name>/guardrails/", views.guardrail_list, name="guardrail-list"),
    path("endpoints/<slug:name>/guardrails/new/", views.guardrail_create, name="guardrail-create"),
    path("endpoints/<slug:name>/guardrails/<int:pk>/", views.guardrail_edit, name="guardrail-edit"),
    path("endpoints/<slug:name>/guardrails/<int:pk>/remove/", views.guardrail_remove, name="guardrail-remove"),
]
