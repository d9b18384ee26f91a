"""URLs of the audit pages."""

from django.urls import path

from apps.audit import views

app_name = "audit"
urlpatterns = [path("audit/", views.event_list, name="event-list")]
