"""The pages of the policies, as people use them."""

from __future__ import annotations

from typing import Any

import pytest

from apps.policies.documents import (
    ApprovalRule,
    Attestation,
    Fallback,
    FreezeWindow,
    GateRule,
    Mode,
    PolicyDocument,
    Tier,
)
from apps.policies.forms import PolicyEditor
from apps.policies.models import CheckKey, PolicyVersion, ReviewGroup
from apps.policies.services import policy_in_force, tier_of
from apps.registry.models import AliasProtection
from tests import builders
from tests.conftest import Cast
from tests.policies.test_services import HARMLESS, second_officer

PROPOSE = "/policies/production/limited/propose/"


def filled(editor: PolicyEditor) -> dict[str, Any]:
    """What a browser sends of the form as it is shown."""
    data: dict[str, Any] = {}
    parts = [editor.terms]
    for rows in editor.parts[1:]:
        parts += [rows.management_form, *rows.forms]
    for form in parts:
        for bound in form:
            value = bound.value()
            if value is not None and value is not False:
                data[bound.html_name] = value
    return data


def shown(document: PolicyDocument) -> dict[str, Any]:
    return filled(PolicyEditor(None, document=document, groups=["model-risk"], checks=["scan"]))


FULL = PolicyDocument(
    approvals=(ApprovalRule("role:compliance_officer", 1), ApprovalRule("group:model-risk", 2)),
    gates=(
        GateRule("metric", metric="roc_auc", limit=0.8, dataset="holdout"),
        GateRule("slice", Mode.WARN, metric="accuracy", limit=0.7, column="region", min_rows=50),
        GateRule("latency", limit=20.0),
        GateRule("model_card", Mode.WARN),
        GateRule("check", check="scan"),
    ),
    wait_minutes=60,
    freeze_windows=(FreezeWindow("Weekend", "Europe/Berlin", "18:00", "08:00", (4, 5)),),
    attestation=Attestation(90, Fallback.STOP),
)


def test_the_form_shows_a_document_and_reads_the_same_one_back() -> None:
    from django.http import QueryDict

    query = QueryDict(mutable=True)
    for name, value in (shown(FULL) | {"reason": "x"}).items():
        query.setlist(name, value if isinstance(value, list) else [value])
    editor = PolicyEditor(query, document=FULL, groups=["model-risk"], checks=["scan"])
    assert editor.is_valid(), [part.errors for part in editor.parts]
    assert set(editor.document.gates) == set(FULL.gates)
    assert editor.document.sentences() == FULL.sentences()


def test_from_proposal_to_force(cast: Cast) -> None:
    officer = cast.browser("compliance_officer")
    assert officer.get(PROPOSE).status_code == 200
    data = shown(policy_in_force(cast.team, "production", Tier.LIMITED).document)
    data |= {"mode_risk_assessed": "PREVENT", "gates-0-gate": "metric", "gates-0-metric": "roc_auc", "reason": "Audit."}
    answer = officer.post(PROPOSE, data)
    assert (answer.status_code, "needs a “limit”" in answer.content.decode()) == (422, True)
    answer = officer.post(PROPOSE, data | {"gates-0-limit": "0.8"}, follow=True)
    page = answer.content.decode()
    assert "Required: ROC AUC at least 0.8 (lower bound)" in page
    assert "another compliance officer must confirm" in page
    version = PolicyVersion.objects.get(state="PROPOSED")
    url = version.get_absolute_url()
    assert officer.post(f"{url}confirm/", {"digest": version.digest}).status_code == 403
    second = second_officer(cast)
    browser = cast.browser("compliance_officer")
    browser.force_login(_user(second.person_id))
    assert "1 proposed" not in browser.get("/policies/").content.decode()
    answer = browser.post(f"{url}confirm/", {"digest": version.digest, "comment": "Fine."}, follow=True)
    assert "is in force" in answer.content.decode()
    assert len(policy_in_force(cast.team, "production", Tier.LIMITED).document.gates) == 2


def _user(pk: int) -> Any:
    from apps.accounts.models import User

    return User.objects.get(pk=pk)


@pytest.mark.parametrize("role", ["analyst", "data_scientist", "operator", "admin"])
def test_everybody_reads_and_only_officers_write(cast: Cast, role: str) -> None:
    builders.proposed_policy(cast)
    browser = cast.browser(role)
    for page in ("", "production/limited/", "production/limited/2/", "protection/"):
        assert browser.get(f"/policies/{page}").status_code == 200
    assert browser.get(PROPOSE).status_code == 403


@pytest.mark.parametrize("url", ["/policies/production/huge/", "/policies/Big_One/low/", "/policies/production/low/9/"])
def test_what_is_no_policy_is_not_found(cast: Cast, url: str) -> None:
    assert cast.browser("analyst").get(url).status_code == 404


def test_an_assessment_on_the_models_page(cast: Cast) -> None:
    model = builders.model(cast)
    browser, url = cast.browser("data_scientist"), f"/models/{model.name}/risk/"
    assert "Not assessed" in browser.get(url).content.decode()
    answer = browser.post(url, HARMLESS)
    assert (answer.status_code, "Only a compliance officer can lower" in answer.content.decode()) == (422, True)
    page = browser.post(url, HARMLESS | {"safety": "yes"}, follow=True).content.decode()
    assert "A wrong answer can endanger somebody" in page
    assert tier_of(model) is Tier.HIGH
    assert cast.browser("operator").post(url, HARMLESS).status_code == 403


def test_a_secret_is_shown_once(cast: Cast) -> None:
    browser = cast.browser("compliance_officer")
    page = browser.post("/policies/checks/", {"name": "scan", "kind": "HMAC"}).content.decode()
    assert 'id="new-secret">csk_' in page
    assert "csk_" not in browser.get("/policies/checks/").content.decode()
    browser.post(f"/policies/checks/{CheckKey.objects.get().pk}/revoke/")
    assert CheckKey.objects.get().revoked_at is not None


def test_admins_say_who_is_in_a_group(cast: Cast) -> None:
    browser = cast.browser("admin")
    browser.post("/policies/groups/", {"name": "board", "members": [cast.analyst.pk]})
    group = ReviewGroup.objects.get()
    browser.post(f"/policies/groups/{group.pk}/", {"members": [cast.operator.pk]})
    assert list(group.members.all()) == [cast.operator]
    assert browser.post("/policies/groups/", {"name": "x", "members": [cast.outsider.pk]}).status_code == 422


def test_protection_on_its_page(cast: Cast) -> None:
    browser = cast.browser("compliance_officer")
    browser.post("/policies/protection/", {"name": "champion"})
    protection = AliasProtection.objects.get()
    browser.post(f"/policies/protection/{protection.pk}/lift/")
    assert "Another compliance officer confirms" in browser.get("/policies/protection/").content.decode()
    assert browser.post(f"/policies/protection/{protection.pk}/lift/").status_code == 403


def test_an_endpoint_says_its_environment(cast: Cast) -> None:
    operator = cast.browser("operator")
    operator.post("/endpoints/new/", {"name": "lab", "environment": "staging"})
    assert "staging" in operator.get("/endpoints/").content.decode()
    api = cast.api("operator")
    assert api.post("/api/v1/endpoints/", {"name": "other"}).json()["environment"] == "production"
    assert api.post("/api/v1/endpoints/", {"name": "more", "environment": "No Name"}).status_code == 422


def test_over_rest(cast: Cast) -> None:
    version = builders.proposed_policy(cast)
    api = cast.api("data_scientist")
    listed = api.get("/api/v1/policies/").json()["results"]
    assert [(one["environment"], one["tier"], one["state"]) for one in listed] == [
        ("production", "limited", "PROPOSED"),
        ("production", "limited", "IN_FORCE"),
    ]
    assert api.get(f"/api/v1/policies/{version.pk}/").json()["document"] == version.body
    assert cast.api("outsider").get(f"/api/v1/policies/{version.pk}/").status_code == 404
    model = builders.model(cast)
    url = f"/api/v1/models/{model.name}/risk/"
    answer = api.post(url, {"answers": HARMLESS | {"area": "yes"}}, format="json")
    assert (answer.status_code, answer.json()["computed_tier"]) == (201, "high")
    assert api.post(url, {"answers": {"area": "yes"}}, format="json").status_code == 422
    assert cast.api("operator").post(url, {"answers": HARMLESS}, format="json").status_code == 403
    assert api.get(url).json()["results"][0]["tier"] == "high"
