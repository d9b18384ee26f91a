"""The pages, the export and the API of model cards."""

from __future__ import annotations

from apps.registry.cards import KEYS
from apps.registry.models import CardRevision
from tests import builders
from tests.conftest import Cast


def test_a_card_from_the_record_to_its_review(cast: Cast) -> None:
    """Begun from facts, written, reviewed by another person, exported, compared."""
    version = builders.finished_run(cast).model_version
    page = f"/models/{version.model.name}/versions/{version.number}/card/"
    scientist, officer = cast.browser("data_scientist"), cast.browser("compliance_officer")
    assert "No card yet" in scientist.get(page).content.decode()
    form = scientist.get(f"{page}edit/").context["form"]
    values = {key: form[key].value() for key in KEYS} | {"based_on": 0}
    assert version.artifact.sha256 in values["details"]
    assert "| RMSE | dataset-" in values["metrics"]
    assert "Mira Sato" in values["owners"]
    assert values["limitations"] == ""
    answer = scientist.post(f"{page}edit/", values)
    assert answer.status_code == 302
    shown = scientist.get(page).content.decode()
    assert '<table class="table">' in shown
    assert "disabled" in shown  # a review of an incomplete card cannot be asked for
    values |= {key: f"Enough is said about {key} here." for key in KEYS if not values[key]} | {"based_on": 1}
    assert scientist.post(f"{page}edit/", values).status_code == 302
    assert scientist.post(f"{page}edit/", values).status_code == 422  # based on revision 1, and 2 is there
    assert scientist.post(f"{page}submit/").status_code == 302
    assert officer.post(f"{page}review/", {"revision": 2, "verdict": "reviewed"}).status_code == 422
    review = {"revision": 2, "verdict": "reviewed", "comment": "Checked against the run."}
    assert officer.post(f"{page}review/", review).status_code == 302
    assert CardRevision.objects.get(number=2).state == "REVIEWED"
    compared = scientist.get(f"{page}compare/?from=1&to=2").content.decode()
    assert "Enough is said about limitations here." in compared
    exported = scientist.get(f"{page}card.md")
    assert exported["Content-Disposition"].endswith('-card-r2.md"')
    assert "## Limitations\n\nEnough is said" in exported.content.decode()
    assert "Checked against the run." in scientist.get(f"{page}card.html").content.decode()
    assert scientist.get(f"{page}card.exe").status_code == 422
    assert scientist.get(f"{page}?revision=99").status_code == 404


def test_the_next_versions_card_takes_the_prose_along(cast: Cast) -> None:
    version = builders.recorded_version(cast, builders.model(cast))
    builders.complete_card(cast, version)
    following = builders.recorded_version(cast, version.model)
    page = f"/models/{version.model.name}/versions/{following.number}/card/edit/"
    form = cast.browser("data_scientist").get(page).context["form"]
    assert "say about risks" in form["risks"].value()
    assert following.artifact.sha256 in form["details"].value()


def test_cards_over_the_api(cast: Cast) -> None:
    version = builders.recorded_version(cast, builders.model(cast))
    api = cast.api("data_scientist")
    address = f"/api/v1/models/{version.model.name}/versions/1/card/"
    assert api.get(address).json()["results"] == []
    draft = api.get(f"{address}draft/").json()
    assert draft["based_on"] == 0
    assert version.artifact.sha256 in draft["sections"]["details"]
    sections = {key: f"Enough is said about {key} here." for key in KEYS}
    made = api.post(address, {"sections": sections, "based_on": 0}, format="json")
    assert made.status_code == 201
    assert made.json()["missing"] == []
    assert api.post(address, {"sections": sections, "based_on": 0}, format="json").status_code == 409
    bad = api.post(address, {"sections": {"risks": "x" * 9_000}, "based_on": 1}, format="json")
    assert (bad.status_code, bad.json()["errors"][0]["pointer"]) == (422, "/sections/risks")
    assert api.get(f"{address}draft/").json()["sections"]["risks"] == sections["risks"]
    assert api.post(f"{address}1/submit/").json()["state"] == "IN_REVIEW"
    assert cast.api("outsider").get(address).status_code == 404
