"""URLs of the audit pages."""

from django.urls import path

from apps.audit import views

app_name = "audit"
urlpatterns = [
    path("audit/", views.event_list, name="event-list"),
    path("audit/state/", views.log_state, name="log-state"),
    path("audit/verify/", views.log_verify, name="log-verify"),
    path("audit/history/", views.object_history, name="object-history"),
    path("audit/export.jsonl", views.event_export_jsonl, name="event-export-jsonl"),
    path("audit/export.csv", views.event_export_csv, name="event-export-csv"),
    path("audit/events/<int:seq>/", views.event_detail, name="event-detail"),
]
