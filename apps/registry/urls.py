"""URLs of the registry's pages."""

from django.urls import path

from apps.registry import signing_views, views

app_name = "registry"
urlpatterns = [
    path("models/", views.model_list, name="model-list"),
    path("models/new/", views.model_create, name="model-create"),
    path("models/<slug:name>/", views.model_detail, name="model-detail"),
    path("models/<slug:name>/versions/new/", views.version_upload, name="version-upload"),
    path("models/<slug:name>/versions/<int:number>/", views.version_detail, name="version-detail"),
    path("models/<slug:name>/versions/<int:number>/schema/", views.version_schema, name="version-schema"),
    path("models/<slug:name>/versions/<int:number>/archive/", views.version_archive, name="version-archive"),
    path("models/<slug:name>/versions/<int:number>/artifact/", views.version_download, name="version-download"),
    path("models/<slug:name>/versions/<int:number>/alias/", views.alias_set, name="alias-set"),
    path(
        "models/<slug:name>/versions/<int:number>/signatures/<slug:origin>.json",
        signing_views.signature_download,
        name="signature-download",
    ),
    path(
        "models/<slug:name>/versions/<int:number>/signatures/check/",
        signing_views.signature_check,
        name="signature-check",
    ),
    path("settings/signers/", signing_views.signer_list, name="signer-list"),
    path("settings/signers/<int:pk>/revoke/", signing_views.signer_revoke, name="signer-revoke"),
    path("settings/signers/installation.pem", signing_views.installation_key, name="installation-key"),
]
