"""URLs of the live charts and the inference log."""

from django.urls import path

from apps.monitoring import views

app_name = "monitoring"
urlpatterns = [
    path("monitoring/overview/", views.overview, name="overview"),
    path("endpoints/<slug:name>/live/", views.endpoint_live, name="endpoint-live"),
    path("endpoints/<slug:name>/shadows/agreement/", views.shadow_agreement, name="shadow-agreement"),
    path("endpoints/<slug:name>/guardrails/replay/", views.guardrail_replay, name="guardrail-replay"),
    path("endpoints/<slug:name>/guardrails/counts/", views.guardrail_counts, name="guardrail-counts"),
    path("endpoints/<slug:name>/predictions/", views.prediction_list, name="prediction-list"),
    path("endpoints/<slug:name>/provenance/", views.provenance, name="provenance"),
    path("endpoints/<slug:name>/rows/", views.rows_keep, name="rows-keep"),
    path("endpoints/<slug:name>/predictions.jsonl", views.prediction_export, name="prediction-export"),
    # A client may choose an id with a slash in it.
    path("endpoints/<slug:name>/predictions/<path:request_id>/", views.prediction_detail, name="prediction-detail"),
]
