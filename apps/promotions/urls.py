"""URLs of the inbox and the approvals."""

from django.urls import path

from apps.promotions import views

app_name = "promotions"
urlpatterns = [
    path("", views.inbox, name="inbox"),
    path("approvals/", views.request_list, name="request-list"),
    path("approvals/<int:pk>/", views.request_detail, name="request-detail"),
    path("approvals/<int:pk>/edit/", views.request_edit, name="request-edit"),
    path("approvals/<int:pk>/submit/", views.request_submit, name="request-submit"),
    path("approvals/<int:pk>/rollout/", views.request_rollout, name="request-rollout"),
    path("approvals/<int:pk>/review/", views.request_review, name="request-review"),
    path("approvals/<int:pk>/revoke/", views.request_revoke, name="request-revoke"),
    path("approvals/<int:pk>/cancel/", views.request_cancel, name="request-cancel"),
    path("approvals/<int:pk>/confirm-emergency/", views.emergency_confirm, name="emergency-confirm"),
    path("approvals/<int:pk>/review-emergency/", views.emergency_review, name="emergency-review"),
    path("approvals/<int:pk>/comments/", views.comment_add, name="comment-add"),
    path("approvals/<int:pk>/comments/<int:comment_id>/", views.comment_edit, name="comment-edit"),
    path("approvals/<int:pk>/findings/<int:finding_id>/resolve/", views.finding_resolve, name="finding-resolve"),
    path("approvals/<int:pk>/findings/<int:finding_id>/judge/", views.finding_judge, name="finding-judge"),
    path("models/<slug:name>/versions/<int:number>/promote/", views.request_create, name="request-create"),
    path("models/<slug:name>/versions/<int:number>/break-glass/", views.emergency_create, name="emergency-create"),
    path("endpoints/<slug:name>/notices/", views.notices, name="notices"),
]
