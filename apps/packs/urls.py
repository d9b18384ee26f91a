"""URLs of cards and packs."""

from django.urls import path

from apps.packs import card_views, views

app_name = "packs"
_CARD = "models/<slug:name>/versions/<int:number>/card/"
urlpatterns = [
    path(_CARD, card_views.card_detail, name="card-detail"),
    path(f"{_CARD}edit/", card_views.card_edit, name="card-edit"),
    path(f"{_CARD}submit/", card_views.card_submit, name="card-submit"),
    path(f"{_CARD}review/", card_views.card_review, name="card-review"),
    path(f"{_CARD}compare/", card_views.card_compare, name="card-compare"),
    path(f"{_CARD}card.<slug:form>", card_views.card_export, name="card-export"),
    path("evidence-packs/", views.pack_list, name="pack-list"),
    path("evidence-packs/new/", views.pack_create, name="pack-create"),
    path("evidence-packs/<int:pk>/", views.pack_detail, name="pack-detail"),
    path("evidence-packs/<int:pk>/file/", views.pack_download, name="pack-download"),
    path("evidence-packs/<int:pk>/report/", views.report_download, name="report-download"),
    path("requirements/", views.requirements, name="requirements"),
]
