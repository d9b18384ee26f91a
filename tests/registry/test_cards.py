"""Model cards: what counts as complete, append-only revisions, reviews, and Markdown that can do no harm."""

from __future__ import annotations

import pytest
from django.db import IntegrityError, transaction

from apps.core.errors import Conflict, DomainError, NotAllowed
from apps.registry import card_services
from apps.registry.cards import (
    KEYS,
    SECTIONS,
    CardFacts,
    MetricFact,
    Prefill,
    SliceFact,
    completeness,
    differences,
    plain,
)
from apps.registry.markdown import render_markdown
from apps.registry.models import CardRevision
from tests import builders
from tests.conftest import Cast

WRITTEN = {key: f"Enough words about {key} to be of use." for key in KEYS}


@pytest.mark.parametrize("empty", ["", "   \n", "TBD", "- TODO\n- n/a", "**None**", "Too short.", "tbd\n" * 50])
def test_a_placeholder_is_no_section(empty: str) -> None:
    found = completeness(WRITTEN | {"limitations": empty})
    assert found.missing == ("Limitations",)
    assert not found.is_complete
    assert "Limitations" in found.sentence


def test_what_is_not_required_may_be_missing() -> None:
    assert completeness({key: text for key, text in WRITTEN.items() if key != "notes"}).is_complete
    assert len(completeness({}).missing) == len(SECTIONS) - 1


def test_facts_of_somebodys_making_are_no_markup() -> None:
    facts = CardFacts(
        version="m v1",
        task="Regression",
        artifact_digest="ab" * 32,
        team="<b>Risk</b>",
        registered_by="[x](javascript:alert(1))",
        uploaded_by="| a | b |",
    )
    sections = Prefill(facts).sections()
    html = render_markdown(sections["owners"])
    assert "<b>" not in html
    assert "<a" not in html
    assert "&lt;b&gt;Risk&lt;/b&gt;" in html
    assert sections["intended_use"] == sections["metrics"] == ""  # nothing is made up
    assert plain("a\n# b") == "a # b"


def test_facts_are_new_and_prose_is_kept() -> None:
    """Metrics of the version before would be wrong on this one's card; what it is for stays true until edited."""
    group = SliceFact("site = north", 40, MetricFact("ROC AUC", "holdout v1", 0.9, 0.85, 0.94))
    facts = CardFacts(
        version="m v2",
        task="Classification",
        artifact_digest="cd" * 32,
        team="Risk",
        registered_by="Mira",
        uploaded_by="Mira",
        trained_by="Tom",
        training_data=(("claims-2025", "ef" * 32),),
        slices=(group,),
    )
    before = {"intended_use": "Triage.", "metrics": "| old |", "owners": "Call Ann.", "training_data": ""}
    sections = Prefill(facts, before).sections()
    assert sections["intended_use"] == "Triage."
    assert sections["owners"] == "Call Ann."
    assert sections["metrics"] == ""
    assert "| site = north | 40 | ROC AUC | 0.9000 (0.8500 to 0.9400) |" in sections["slices"]
    assert "claims-2025" in sections["training_data"]
    assert "Trained by: Tom" in Prefill(facts).sections()["owners"]


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![x](https://evil.example/pixel.png)",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt&colon;alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    '<a href="x" onclick="alert(1)">x</a>',
    "<style>*{display:none}</style>",
    "<svg/onload=alert(1)>",
    "| a |\n| :-: |\n| <iframe src=//evil.example> |",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_can_do_no_harm(text: str) -> None:
    html = render_markdown(text)
    for forbidden in ("<script", "<img", "<style", "<svg", "<iframe", 'href="java', 'href="data', "style="):
        assert forbidden not in html.lower()
    assert "onclick" not in html or "&lt;a" in html


def test_markdown_shows_what_it_should() -> None:
    html = render_markdown("# Big\n\n- one **two**\n\n| a | b |\n| --- | ---: |\n| 1 | 2 |\n\n[x](https://ok.example)")
    assert "<h3>Big</h3>" in html
    assert "<strong>two</strong>" in html
    assert '<table class="table">' in html
    assert 'rel="noopener noreferrer nofollow"' in html


def test_a_revision_never_changes(cast: Cast) -> None:
    card = builders.complete_card(cast, builders.recorded_version(cast, builders.model(cast)), is_reviewed=True)
    rows = CardRevision.objects.filter(pk=card.pk)
    for change in ({"sections": {}}, {"sha256": "0"}, {"author": cast.operator.user}, {"state": "DRAFT"}):
        with pytest.raises(IntegrityError, match="immutable"), transaction.atomic():
            rows.update(**change)
    with pytest.raises(IntegrityError, match="immutable"), transaction.atomic():
        rows.delete()
    assert builders.complete_card(cast, card.model_version).number == 2


def test_two_authors_do_not_overwrite_each_other(cast: Cast) -> None:
    version = builders.recorded_version(cast, builders.model(cast))
    builders.complete_card(cast, version)
    scientist = cast.actor("data_scientist")
    with pytest.raises(Conflict, match="Mira Sato saved revision 1"):
        card_services.save_card(scientist, model_version=version, sections=WRITTEN, based_on=0)
    with pytest.raises(DomainError, match="no section"):
        card_services.save_card(scientist, model_version=version, sections={"nonsense": "x"}, based_on=1)
    with pytest.raises(DomainError, match="8,000 characters"):
        card_services.save_card(scientist, model_version=version, sections={"risks": "x" * 8_001}, based_on=1)


def test_a_review_takes_somebody_else_and_the_newest_complete_revision(cast: Cast) -> None:
    version = builders.recorded_version(cast, builders.model(cast))
    scientist, officer = cast.actor("data_scientist"), cast.actor("compliance_officer")
    draft = card_services.save_card(scientist, model_version=version, sections={"risks": "Some"}, based_on=0)
    with pytest.raises(Conflict, match="Write: Model details"):
        card_services.request_card_review(scientist, revision=draft)
    card = builders.complete_card(cast, version)
    with pytest.raises(Conflict, match="newer revision"):
        card_services.request_card_review(scientist, revision=draft)
    with pytest.raises(Conflict, match="is draft"):
        card_services.review_card(officer, revision=card, is_approved=True, comment="Fine")
    card = card_services.request_card_review(scientist, revision=card)
    for role in ("data_scientist", "operator", "admin"):
        with pytest.raises(NotAllowed):
            card_services.review_card(cast.actor(role), revision=card, is_approved=True, comment="Fine")
    with pytest.raises(IntegrityError, match="card_reviewed_by_another"), transaction.atomic():
        CardRevision.objects.filter(pk=card.pk).update(
            state="REVIEWED", reviewer=cast.data_scientist.user, reviewed_at=card.saved_at
        )
    reviewed = card_services.review_card(officer, revision=card, is_approved=False, comment="Which groups?")
    assert (reviewed.state, reviewed.reviewer_name) == ("CHANGES_REQUESTED", "Cora Blom")
    with pytest.raises(Conflict, match="changes requested"):
        card_services.review_card(officer, revision=card, is_approved=True, comment="On second thought")


def test_the_evidence_of_a_card(cast: Cast) -> None:
    version = builders.recorded_version(cast, builders.model(cast))
    assert card_services.card_evidence(version) is None
    card = builders.complete_card(cast, version, is_reviewed=True)
    document = card_services.card_evidence(version)
    assert document is not None
    assert (document["number"], document["state"], document["missing"]) == (1, "REVIEWED", [])
    assert document["is_complete"] is True
    assert document["sha256"] == card.sha256


def test_differences_name_the_section() -> None:
    changed = WRITTEN | {"risks": "One\nTwo"}
    found = differences(WRITTEN, changed)
    assert [row.title for row in found] == ["Risks and fairness"]
    assert ("+", "Two") in found[0].lines
    assert ("-", WRITTEN["risks"]) in found[0].lines
