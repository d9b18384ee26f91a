"""Endpoints, rollback and the signed manifest."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from django.conf import settings

from apps.accounts import services as accounts
from apps.accounts.models import ApiToken
from apps.accounts.roles import Scope
from apps.core.errors import Conflict, NotAllowed
from apps.deployments import services
from apps.deployments.manifest import CONSOLE_TOKEN_ID, publish_manifest
from apps.deployments.models import Deployment, ServingManifest
from inference.contracts import EndpointEntry, open_manifest
from inference.errors import ManifestRejected
from tests import builders
from tests.conftest import Cast


def _public_key() -> Ed25519PublicKey:
    settings.INSTALLATION.ensure_signing_key("manifest")
    key = load_pem_public_key(settings.INSTALLATION.public_key_file("manifest").read_bytes())
    assert isinstance(key, Ed25519PublicKey)
    return key


def _newest() -> tuple[EndpointEntry, ...]:
    row = ServingManifest.objects.order_by("-generation").first()
    assert row is not None
    return open_manifest(row.body.encode(), row.signature, _public_key()).endpoints


def _two_versions(cast: Cast) -> tuple[Deployment, Deployment]:
    model, endpoint = builders.model(cast), builders.endpoint(cast)
    first = builders.live_request(cast, builders.ready_version(cast, model), endpoint)
    second = builders.live_request(cast, builders.ready_version(cast, model), endpoint)
    return Deployment.objects.get(pk=first.deployment_id), Deployment.objects.get(pk=second.deployment_id)


def test_endpoint_names_are_checked_and_unique_in_the_installation(cast: Cast) -> None:
    browser = cast.browser("operator")
    assert browser.post("/endpoints/new/", {"name": "Has Space"}).status_code == 422
    assert browser.post("/endpoints/new/", {"name": "fraud"}).status_code == 302
    taken = cast.browser("outsider").post("/endpoints/new/", {"name": "fraud"})
    assert taken.status_code == 422
    assert "taken" in str(taken.context["form"].errors)


def test_a_deployment_and_its_manifest_are_one_change(cast: Cast) -> None:
    first, second = _two_versions(cast)
    (entry,) = _newest()
    by_role = {one.role: one for one in entry.deployments}
    assert by_role["champion"].deployment_id == second.pk
    assert by_role["champion"].weight == 100
    assert by_role["champion"].promotion_request_id == second.promotion_request_id
    assert by_role["standby"].artifact_digest == first.model_version.artifact.sha256  # warm for a rollback
    assert list(ServingManifest.objects.values_list("generation", flat=True)) == [2, 1]


def test_a_manifest_that_was_altered_or_signed_by_another_key_is_refused(cast: Cast) -> None:
    builders.live_request(cast)
    row = ServingManifest.objects.get()
    with pytest.raises(ManifestRejected):
        open_manifest(row.body.replace('"weight":100', '"weight":99').encode(), row.signature, _public_key())
    with pytest.raises(ManifestRejected):
        open_manifest(row.body.encode(), row.signature, Ed25519PrivateKey.generate().public_key())


def test_nothing_is_published_when_nothing_has_changed(cast: Cast) -> None:
    builders.live_request(cast)
    assert publish_manifest() is None
    assert ServingManifest.objects.count() == 1


def test_access_follows_tokens_and_members(cast: Cast) -> None:
    builders.live_request(cast)
    cast.token("analyst", Scope.PREDICT)
    cast.token("analyst", Scope.READ)
    cast.token("admin", Scope.PREDICT)  # an admin may not predict
    cast.token("outsider", Scope.PREDICT)
    token = ApiToken.objects.get(membership=cast.analyst, scopes=["predict"])
    assert publish_manifest() is not None
    (entry,) = _newest()
    assert [one.token_id for one in entry.access] == [CONSOLE_TOKEN_ID, token.pk]
    accounts.change_member(cast.actor("admin"), membership=cast.analyst, roles=["analyst"], is_active=False)
    assert publish_manifest() is not None
    (entry,) = _newest()
    assert [one.token_id for one in entry.access] == [CONSOLE_TOKEN_ID]


def test_rollback_goes_back_and_not_forward_again(cast: Cast) -> None:
    first, second = _two_versions(cast)
    operator = cast.actor("operator")
    back = services.roll_back(operator, endpoint=second.endpoint, expected_deployment_id=second.pk)
    assert back.model_version_id == first.model_version_id
    assert back.promotion_request_id == first.promotion_request_id
    assert back.is_rollback
    (entry,) = _newest()
    assert entry.deployments[0].artifact_digest == first.model_version.artifact.sha256
    with pytest.raises(Conflict, match="no earlier version"):
        services.roll_back(operator, endpoint=second.endpoint)


def test_rollback_never_brings_back_what_was_rolled_back(cast: Cast) -> None:
    """v1, v2, back to v1, then v3: what served before v3 is v1, not v2."""
    first, second = _two_versions(cast)
    operator = cast.actor("operator")
    services.roll_back(operator, endpoint=second.endpoint)
    third = builders.ready_version(cast, first.model_version.model)
    builders.live_request(cast, third, second.endpoint)
    back = services.roll_back(operator, endpoint=second.endpoint)
    assert back.model_version_id == first.model_version_id


def test_rollback_of_what_one_did_not_see_is_refused(cast: Cast) -> None:
    first, second = _two_versions(cast)
    with pytest.raises(Conflict, match="serves by now"):
        services.roll_back(cast.actor("operator"), endpoint=second.endpoint, expected_deployment_id=first.pk)
    with pytest.raises(NotAllowed):
        services.roll_back(cast.actor("data_scientist"), endpoint=second.endpoint)


def test_rollback_over_rest_and_in_the_browser(cast: Cast) -> None:
    first, second = _two_versions(cast)
    name = second.endpoint.name
    assert cast.api("data_scientist").post(f"/api/v1/endpoints/{name}/rollback/").status_code == 403
    page = cast.browser("operator").get(f"/endpoints/{name}/").content.decode()
    assert f"Roll back to {first.model_version}" in page
    done = cast.api("operator").post(f"/api/v1/endpoints/{name}/rollback/", {"deployment_id": second.pk})
    assert (done.status_code, done.json()["model_version"]) == (200, first.model_version.number)


def test_an_endpoint_says_what_is_desired_and_what_is_observed(cast: Cast) -> None:
    _, second = _two_versions(cast)
    answer = cast.api("analyst").get(f"/api/v1/endpoints/{second.endpoint.name}/").json()
    assert answer["desired"]["id"] == second.pk
    assert answer["observed"]["state"] == "OFFLINE"


def test_an_expired_token_carries_its_end_into_the_manifest(cast: Cast) -> None:
    builders.live_request(cast)
    cast.token("analyst", Scope.PREDICT)
    token = ApiToken.objects.get(scopes=["predict"])
    publish_manifest()
    (entry,) = _newest()
    assert token.expires_at is not None
    assert entry.access[1].expires_at == token.expires_at.timestamp()
    ApiToken.objects.update(expires_at=token.expires_at - timedelta(days=9))
    publish_manifest()
    (entry,) = _newest()
    assert len(entry.access) == 1


def test_try_it_says_when_inference_does_not_answer(cast: Cast, settings: Any) -> None:
    request = builders.live_request(cast)
    settings.INFERENCE_URL = "http://127.0.0.1:9"
    address = f"/endpoints/{request.endpoint.name}/try/"
    page = cast.browser("analyst").get(address)
    assert "&quot;shape&quot;" in page.content.decode()
    answer = cast.browser("analyst").post(address, {"body": page.context["form"].initial["body"]})
    assert answer.status_code == 422
    assert "does not answer" in answer.content.decode()
    for body in ("not json", '{"inputs": [NaN]}', '{"id": "\\ud800"}', "[" * 100_000):
        assert cast.browser("analyst").post(address, {"body": body}).status_code == 422


def test_the_endpoint_list_costs_the_same_however_long(cast: Cast, django_assert_max_num_queries: Any) -> None:
    browser = cast.browser("analyst")
    for _ in range(3):
        builders.live_request(cast)
    with django_assert_max_num_queries(9):
        assert browser.get("/endpoints/").status_code == 200
    api = cast.api("analyst")
    with django_assert_max_num_queries(8):
        assert len(api.get("/api/v1/endpoints/").json()["results"]) == 3
