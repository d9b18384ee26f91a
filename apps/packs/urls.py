"""URLs of cards and packs."""

from django.urls import path

from apps.packs import card_views

app_name = "packs"
_CARD = "models/<slug:name>/versions/<int:number>/card/"
urlpatterns = [
    path(_CARD, card_views.card_detail, name="card-detail"),
    path(f"{_CARD}edit/", card_views.card_edit, name="card-edit"),
    path(f"{_CARD}submit/", card_views.card_submit, name="card-submit"),
    path(f"{_CARD}review/", card_views.card_review, name="card-review"),
    path(f"{_CARD}compare/", card_views.card_compare, name="card-compare"),
    path(f"{_CARD}card.<slug:form>", card_views.card_export, name="card-export"),
]
