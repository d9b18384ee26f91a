"""Canaries, shadows and their way back: who answers on an endpoint with which share."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction

from apps.audit.models import AuditEvent
from apps.core.errors import Conflict, DomainError, NotAllowed
from apps.deployments import services
from apps.deployments.models import Deployment, Endpoint, ServingManifest
from apps.deployments.traffic import MAX_ANSWERING, MAX_SHADOWS, Split
from apps.promotions import rollouts
from apps.promotions.models import PromotionRequest, RolloutState
from apps.registry.models import ModelVersion
from tests import builders
from tests.conftest import Cast


class Stage:
    """An endpoint with a champion, and more versions of its model."""

    def __init__(self, cast: Cast) -> None:
        self.cast = cast
        self.model = builders.model(cast)
        self.endpoint = builders.endpoint(cast)
        self.operator = cast.actor("operator")
        self.champion = self.promoted()

    def version(self, **changes: str) -> ModelVersion:
        """A further version that is ready."""
        return builders.recorded_version(self.cast, self.model, **changes)

    def promoted(self, initial_weight: int = 100) -> Deployment:
        """A further version, approved and put onto the endpoint."""
        version = self.version()
        request = builders.live_request(self.cast, version, self.endpoint, initial_weight=initial_weight)
        return Deployment.objects.with_versions().get(promotion_request_id=request.pk)

    def shadow(self) -> Deployment:
        """A further version that gets copies."""
        version = self.version()
        return services.add_shadow(self.operator, endpoint=self.endpoint, model_version=version)

    def split(self, *weights: int, expected: str | None = None) -> Split:
        """Give what answers these shares, the champion first."""
        keys = [row.pk for row in Split.of(self.endpoint).answering]
        wanted = dict(zip(keys, weights, strict=True))
        return services.change_split(self.operator, endpoint=self.endpoint, weights=wanted, expected_split=expected)

    def published(self) -> dict[int, tuple[str, int]]:
        """Role and weight by deployment id, as the newest manifest says."""
        row = ServingManifest.objects.order_by("-generation").first()
        assert row is not None
        (entry,) = json.loads(row.body)["endpoints"]
        return {one["deployment_id"]: (one["role"], one["weight"]) for one in entry["deployments"]}


@pytest.fixture
def stage(cast: Cast) -> Stage:
    return Stage(cast)


def _check_now() -> None:
    """What the end of the transaction would check."""
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")


def _events(endpoint: Endpoint, action: str) -> list[dict[str, Any]]:
    _check_now()
    events = AuditEvent.objects.filter(action=action, object_id=str(endpoint.pk))
    return [event.document for event in events.order_by("seq")]


def test_a_canary_takes_its_share_from_the_champion(stage: Stage) -> None:
    canary = stage.promoted(initial_weight=5)
    assert stage.published() == {stage.champion.pk: ("champion", 95), canary.pk: ("canary", 5)}
    event = _events(stage.endpoint, "deployment.activated")[-1]
    assert event["before"]["split"] == {str(stage.champion.model_version): 100}
    assert event["after"]["split"] == {str(stage.champion.model_version): 95, str(canary.model_version): 5}


def test_an_operator_raises_a_canary_until_it_is_the_champion(stage: Stage) -> None:
    canary = stage.promoted(initial_weight=5)
    request = PromotionRequest.objects.get(pk=canary.promotion_request_id)
    stage.split(75, 25)
    assert stage.published() == {stage.champion.pk: ("champion", 75), canary.pk: ("canary", 25)}
    stage.split(0, 100)
    # The old champion stays loaded for a rollback.
    assert stage.published() == {canary.pk: ("champion", 100), stage.champion.pk: ("standby", 0)}
    rollouts.apply_promotions()
    request.refresh_from_db()
    assert request.rollout == RolloutState.APPLYING  # its version answers; no replica reports in this test
    changed = _events(stage.endpoint, "traffic.changed")
    assert [list(event["after"]["split"].values()) for event in changed] == [[75, 25], [100]]
    assert list(changed[1]["before"]["split"].values()) == [75, 25]
    back = services.roll_back(stage.operator, endpoint=stage.endpoint)
    assert back.model_version_id == stage.champion.model_version_id


def test_a_canary_that_is_taken_out_ends_its_promotion(stage: Stage) -> None:
    canary = stage.promoted(initial_weight=5)
    assert stage.split(100, 0).words == f"{stage.champion.model_version} 100 %"
    assert stage.published()[canary.pk] == ("standby", 0)
    rollouts.apply_promotions()
    request = PromotionRequest.objects.get(pk=canary.promotion_request_id)
    assert (request.rollout, request.rollout_message) == (RolloutState.ENDED, "It was taken out of the traffic.")


def test_a_rollback_takes_the_canary_out_before_it_touches_the_champion(stage: Stage) -> None:
    second = stage.promoted()
    stage.promoted(initial_weight=10)
    page = stage.cast.browser("operator").get(f"/endpoints/{stage.endpoint.name}/").content.decode()
    assert f"out: v{second.model_version.number} answers all" in page
    back = services.roll_back(stage.operator, endpoint=stage.endpoint)
    assert (back.pk, back.weight) == (second.pk, 100)
    assert services.roll_back(stage.operator, endpoint=stage.endpoint).model_version == stage.champion.model_version


def test_a_full_promotion_retires_champion_and_canaries(stage: Stage) -> None:
    canary = stage.promoted(initial_weight=20)
    third = stage.promoted()
    assert stage.published() == {
        third.pk: ("champion", 100),
        canary.pk: ("standby", 0),
        stage.champion.pk: ("standby", 0),
    }
    assert services.rollback_target(stage.endpoint) == stage.champion  # a canary never was the champion


def test_nobody_changes_a_split_that_they_did_not_see(stage: Stage) -> None:
    stage.promoted(initial_weight=5)
    seen = Split.of(stage.endpoint).state
    stage.split(50, 50, expected=seen)
    with pytest.raises(Conflict, match="split differently by now"):
        stage.split(75, 25, expected=seen)
    with pytest.raises(Conflict, match="split differently by now"):
        services.roll_back(stage.operator, endpoint=stage.endpoint, expected_split=seen)
    assert [row.weight for row in Split.of(stage.endpoint).answering] == [50, 50]


@pytest.mark.parametrize("weights", [(50, 49), (101, -1), (0, 0), (200, -100)])
def test_shares_are_100_together(stage: Stage, weights: tuple[int, int]) -> None:
    stage.promoted(initial_weight=5)
    with pytest.raises(DomainError, match="100 together"):
        stage.split(*weights)


def test_shares_are_of_what_answers_now(stage: Stage) -> None:
    stage.promoted(initial_weight=5)
    with pytest.raises(DomainError, match="every version"):
        services.change_split(stage.operator, endpoint=stage.endpoint, weights={stage.champion.pk: 100})
    with pytest.raises(NotAllowed):
        services.change_split(stage.cast.actor("data_scientist"), endpoint=stage.endpoint, weights={})


def test_a_champion_beside_two_canaries_keeps_something(stage: Stage) -> None:
    for _ in range(2):
        stage.promoted(initial_weight=5)
    with pytest.raises(DomainError, match="cannot go to 0"):
        stage.split(0, 50, 50)


def test_four_versions_answer_at_most(stage: Stage) -> None:
    for _ in range(MAX_ANSWERING - 1):
        stage.promoted(initial_weight=5)
    assert sum(weight for _, weight in stage.published().values()) == 100
    with pytest.raises(Conflict, match="At most 4"):
        builders.submitted_request(stage.cast, stage.version(), stage.endpoint, initial_weight=5)


def test_a_canary_leaves_the_champion_something_and_has_its_interface(stage: Stage) -> None:
    stage.promoted(initial_weight=60)
    version = stage.version()
    with pytest.raises(Conflict, match="take 60 % already"):
        builders.submitted_request(stage.cast, version, stage.endpoint, initial_weight=40)
    other = stage.version(takes="features")
    with pytest.raises(Conflict, match="other inputs or outputs"):
        builders.submitted_request(stage.cast, other, stage.endpoint, initial_weight=5)
    with pytest.raises(Conflict, match="other inputs"):
        services.add_shadow(stage.operator, endpoint=stage.endpoint, model_version=other)


def test_a_shadow_that_does_not_fit_a_new_champion_is_named(stage: Stage) -> None:
    shadow = stage.shadow()
    assert Split.of(stage.endpoint).idle_shadows == set()
    builders.live_request(stage.cast, stage.version(takes="features"), stage.endpoint)
    assert Split.of(stage.endpoint).idle_shadows == {shadow.pk}
    client = stage.cast.browser("operator")
    page = client.get(f"/endpoints/{stage.endpoint.name}/traffic/").content.decode()
    assert "gets no copies" in page


def test_the_first_version_takes_everything(cast: Cast) -> None:
    with pytest.raises(DomainError, match="takes all traffic"):
        builders.submitted_request(cast, initial_weight=5)


def test_a_canary_needs_no_second_request(stage: Stage) -> None:
    canary = stage.promoted(initial_weight=5)
    with pytest.raises(Conflict, match="an operator raises its share"):
        builders.submitted_request(stage.cast, canary.model_version, stage.endpoint)


def test_the_approval_binds_the_share(stage: Stage) -> None:
    version = stage.version()
    request = builders.submitted_request(stage.cast, version, stage.endpoint, initial_weight=5)
    assert request.evidence["initial_weight"] == 5
    page = stage.cast.browser("compliance_officer").get(f"/approvals/{request.pk}/").content.decode()
    assert "5 % of the traffic, as a canary" in page
    builders.sign(stage.cast, request)
    PromotionRequest.objects.filter(pk=request.pk).update(initial_weight=50)
    rollouts.apply_promotions()
    request.refresh_from_db()
    assert (request.state, request.rollout, request.deployment_id) == ("SUBMITTED", RolloutState.WAITING, None)
    assert "the rollout plan changed" in request.reviews.get().void_reason


def test_an_approval_without_a_place_left_ends_and_says_so(stage: Stage) -> None:
    version = stage.version()
    request = builders.submitted_request(stage.cast, version, stage.endpoint, initial_weight=40)
    stage.promoted(initial_weight=70)
    builders.sign(stage.cast, request)
    rollouts.apply_promotions()
    request.refresh_from_db()
    assert request.rollout == RolloutState.FAILED
    assert "70 % already" in request.rollout_message
    assert len(Split.of(stage.endpoint).answering) == 2


def test_a_shadow_answers_nobody_and_needs_no_approval(stage: Stage) -> None:
    shadow = stage.shadow()
    assert stage.published() == {stage.champion.pk: ("champion", 100), shadow.pk: ("shadow", 0)}
    assert shadow.promotion_request_id is None
    assert _events(stage.endpoint, "shadow.added")[0]["after"]["model_version"] == str(shadow.model_version)
    services.remove_shadow(stage.operator, endpoint=stage.endpoint, deployment_id=shadow.pk)
    assert stage.published() == {stage.champion.pk: ("champion", 100)}  # and does not stay loaded
    with pytest.raises(Conflict, match="gone already"):
        services.remove_shadow(stage.operator, endpoint=stage.endpoint, deployment_id=shadow.pk)


def test_a_shadow_that_is_promoted_stops_being_one(stage: Stage) -> None:
    shadow = stage.shadow()
    builders.live_request(stage.cast, shadow.model_version, stage.endpoint, initial_weight=10)
    assert sorted(stage.published().values()) == [("canary", 10), ("champion", 90)]


def test_shadows_are_ready_versions_of_the_team_and_few(stage: Stage, cast: Cast) -> None:
    add = services.add_shadow
    with pytest.raises(Conflict, match="already"):
        add(stage.operator, endpoint=stage.endpoint, model_version=stage.champion.model_version)
    with pytest.raises(Conflict, match="not ready"):
        add(stage.operator, endpoint=stage.endpoint, model_version=builders.uploaded_version(cast, stage.model))
    with pytest.raises(Conflict, match="nothing to copy"):
        add(stage.operator, endpoint=builders.endpoint(cast), model_version=stage.champion.model_version)
    for _ in range(MAX_SHADOWS):
        stage.shadow()
    with pytest.raises(Conflict, match="at most 4 shadows"):
        stage.shadow()


def test_the_database_lets_nothing_answer_without_an_approval(stage: Stage) -> None:
    for changes in ({"promotion_request_id": None}, {"weight": 0}, {"weight": 101}, {"role": "shadow"}):
        with pytest.raises(IntegrityError), transaction.atomic():
            Deployment.objects.filter(pk=stage.champion.pk).update(**changes)


@pytest.mark.parametrize("changes", [{"weight": 94}, {"role": "canary"}])
def test_the_database_shares_out_100_per_cent_with_one_champion(stage: Stage, changes: dict[str, Any]) -> None:
    stage.promoted(initial_weight=5)
    Deployment.objects.filter(pk=stage.champion.pk).update(**changes)
    with pytest.raises(IntegrityError, match="of its traffic"), transaction.atomic():
        _check_now()
    Deployment.objects.filter(pk=stage.champion.pk).update(weight=95, role="champion")


def test_the_traffic_page_changes_shares_and_refuses_stale_ones(stage: Stage) -> None:
    canary = stage.promoted(initial_weight=5)
    address = f"/endpoints/{stage.endpoint.name}/traffic/"
    browser = stage.cast.browser("operator")
    seen = browser.get(address).context["split"].state
    form = {"split": seen, f"weight_{stage.champion.pk}": 75, f"weight_{canary.pk}": 25}
    assert browser.post(address, form).status_code == 302
    stale = browser.post(address, form)
    assert stale.status_code == 422
    assert "split differently by now" in stale.content.decode()
    assert f'value="{Split.of(stage.endpoint).state}"' in stale.content.decode()
    assert browser.post(address, form | {"split": seen, f"weight_{canary.pk}": "x"}).status_code == 422
    assert "An operator changes the shares" in stage.cast.browser("analyst").get(address).content.decode()


def test_shadows_come_and_go_on_the_page(stage: Stage) -> None:
    version = stage.version()
    browser = stage.cast.browser("operator")
    name = stage.endpoint.name
    assert browser.post(f"/endpoints/{name}/shadows/", {"model_version": 0}).status_code == 422
    assert browser.post(f"/endpoints/{name}/shadows/", {"model_version": version.pk}).status_code == 302
    shadow = Split.of(stage.endpoint).shadows[0]
    assert browser.post(f"/endpoints/{name}/shadows/{shadow.pk}/remove/").status_code == 302
    assert Split.of(stage.endpoint).shadows == []


def test_traffic_over_rest(stage: Stage) -> None:
    canary = stage.promoted(initial_weight=5)
    api, address = stage.cast.api("operator"), f"/api/v1/endpoints/{stage.endpoint.name}/traffic/"
    now = api.get(address).json()
    assert now["split"] == f"{stage.champion.pk}:95,{canary.pk}:5"
    change = {"split": now["split"], "weights": {str(stage.champion.pk): 0, str(canary.pk): 100}}
    done = api.put(address, change, format="json")
    assert [(row["role"], row["weight"]) for row in done.json()["answering"]] == [("champion", 100)]
    assert api.put(address, change, format="json").status_code == 409
    assert api.put(address, {"weights": {"x": 100}}, format="json").status_code == 422
    version = stage.version()
    wanted = {"model": version.model.name, "model_version": version.number}
    shadow = api.post(f"/api/v1/endpoints/{stage.endpoint.name}/shadows/", wanted)
    assert (shadow.status_code, shadow.json()["role"], shadow.json()["promotion_request_id"]) == (201, "shadow", None)
    assert api.delete(f"/api/v1/endpoints/{stage.endpoint.name}/shadows/{shadow.json()['id']}/").status_code == 204
    assert api.get(address).json()["shadows"] == []
