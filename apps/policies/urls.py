"""URLs of the policies."""

from django.urls import path

from apps.policies import views

app_name = "policies"
_VERSION = "policies/<slug:environment>/<slug:tier>/<int:number>/"
urlpatterns = [
    path("policies/", views.policy_list, name="policy-list"),
    path("policies/open/", views.policy_open, name="policy-open"),
    path("policies/checks/", views.check_list, name="check-list"),
    path("policies/checks/<int:pk>/revoke/", views.check_revoke, name="check-revoke"),
    path("policies/groups/", views.group_list, name="group-list"),
    path("policies/groups/<int:pk>/", views.group_edit, name="group-edit"),
    path("policies/protection/", views.protection, name="protection"),
    path("policies/protection/<int:pk>/lift/", views.alias_unprotect, name="alias-unprotect"),
    path("policies/<slug:environment>/<slug:tier>/", views.policy_detail, name="policy-detail"),
    path("policies/<slug:environment>/<slug:tier>/propose/", views.policy_propose, name="policy-propose"),
    path(_VERSION, views.version_detail, name="version-detail"),
    path(f"{_VERSION}confirm/", views.version_confirm, name="version-confirm"),
    path(f"{_VERSION}reject/", views.version_reject, name="version-reject"),
    path("endpoints/<slug:name>/protection/", views.endpoint_protection, name="endpoint-protection"),
    path("endpoints/<slug:name>/attestation/", views.attestation, name="attestation"),
    path("models/<slug:name>/risk/", views.risk_assess, name="risk-assess"),
]
