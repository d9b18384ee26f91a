"""URLs of the inbox and the approvals."""

from django.urls import path

from apps.promotions import views

app_name = "promotions"
urlpatterns = [
    path("", views.inbox, name="inbox"),
    path("approvals/", views.request_list, name="request-list"),
    path("approvals/<int:pk>/", views.request_detail, name="request-detail"),
    path("approvals/<int:pk>/rollout/", views.request_rollout, name="request-rollout"),
    path("approvals/<int:pk>/review/", views.request_review, name="request-review"),
    path("approvals/<int:pk>/cancel/", views.request_cancel, name="request-cancel"),
    path("models/<slug:name>/versions/<int:number>/promote/", views.request_create, name="request-create"),
]
