"""URLs of the endpoint pages."""

from django.urls import path

from apps.deployments import views

app_name = "deployments"
urlpatterns = [
    path("endpoints/", views.endpoint_list, name="endpoint-list"),
    path("endpoints/new/", views.endpoint_create, name="endpoint-create"),
    path("endpoints/<slug:name>/", views.endpoint_detail, name="endpoint-detail"),
    path("endpoints/<slug:name>/state/", views.endpoint_state, name="endpoint-state"),
    path("endpoints/<slug:name>/try/", views.endpoint_try, name="endpoint-try"),
    path("endpoints/<slug:name>/rollback/", views.endpoint_rollback, name="endpoint-rollback"),
]
