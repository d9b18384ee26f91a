"""Promotion requests: frozen evidence, the second person, one outcome, and the way into the manifest."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections
from django.utils import timezone

from apps.accounts.confirmation import Confirmation
from apps.audit.actor import Actor
from apps.audit.models import AuditEvent
from apps.core.errors import Conflict, DomainError, NotAllowed
from apps.deployments.models import Deployment, Replica, ServingManifest
from apps.deployments.services import current_champion, roll_back
from apps.promotions import rollouts, services
from apps.promotions.evidence import digest_of
from apps.promotions.models import Decision, Meaning, PromotionRequest, RequestState, Review, RolloutState
from tests import builders
from tests.conftest import PASSWORD, Cast


def _reload(request: PromotionRequest) -> PromotionRequest:
    return PromotionRequest.objects.with_names().get(pk=request.pk)


def _replica(**changes: Any) -> Replica:
    now = timezone.now()
    values = {"hostname": "h", "pid": 1, "started_at": now, "seen_at": now, "state": "READY", "generation": 1}
    return Replica.objects.create(replica_id="r-1", **(values | changes))


def test_a_request_freezes_its_evidence(cast: Cast) -> None:
    version = builders.ready_version(cast)
    request = builders.submitted_request(cast, version)
    candidate = request.evidence["candidate"]
    assert candidate["artifact_digest"] == version.artifact.sha256 == request.artifact_digest
    assert candidate["uploaded_by"] == "Mira Sato"
    assert request.evidence["champion"] is None
    assert digest_of(_reload(request).evidence) == request.evidence_digest
    event = AuditEvent.objects.filter(action="promotion.submitted").get()
    assert event.document["after"]["evidence_digest"] == request.evidence_digest


def test_only_a_ready_version_can_be_promoted_and_only_once_at_a_time(cast: Cast) -> None:
    with pytest.raises(Conflict, match="not ready"):
        builders.submitted_request(cast, builders.uploaded_version(cast))
    request = builders.submitted_request(cast)
    with pytest.raises(Conflict, match="open request"):
        builders.submitted_request(cast, request.model_version, request.endpoint)


def test_an_approval_binds_what_was_seen_and_the_signature_is_shown(cast: Cast) -> None:
    request = builders.submitted_request(cast)
    review = builders.sign(cast, request)
    assert (review.reviewer_name, review.meaning) == ("Cora Blom", Meaning.APPROVAL)
    assert (review.artifact_digest, review.evidence_digest) == (request.artifact_digest, request.evidence_digest)
    request = _reload(request)
    assert (request.state, request.rollout) == (RequestState.APPROVED, RolloutState.QUEUED)
    page = cast.browser("analyst").get(f"/approvals/{request.pk}/").content.decode()
    assert "Cora Blom" in page
    assert "I have reviewed the evidence and approve this promotion" in page


def _as_reviewer(cast: Cast, membership: Any) -> Actor:
    return Actor(membership.user_id, membership.user.name, permissions=cast.compliance_officer.permissions)


@pytest.mark.parametrize("who", ["data_scientist", "operator"])
def test_requester_and_uploader_never_approve(cast: Cast, who: str) -> None:
    """The data scientist uploaded; the operator requests: neither decides, whatever roles they hold."""
    version = builders.ready_version(cast)
    request = services.request_promotion(
        cast.actor("operator"),
        team=cast.team,
        model_version=version,
        endpoint=builders.endpoint(cast),
        justification="It is better.",
    )
    with pytest.raises(NotAllowed, match="somebody else must decide"):
        builders.sign(cast, request, actor=_as_reviewer(cast, getattr(cast, who)))
    assert not Review.objects.exists()
    assert _reload(request).state == RequestState.SUBMITTED


@pytest.mark.parametrize("role", ["analyst", "data_scientist", "operator", "admin"])
def test_other_roles_cannot_sign(cast: Cast, role: str) -> None:
    request = builders.submitted_request(cast)
    form = {
        "decision": "APPROVED",
        "meaning": "APPROVAL",
        "comment": "x",
        "password": PASSWORD,
        "approval_digest": request.approval_digest,
    }
    assert cast.browser(role).post(f"/approvals/{request.pk}/review/", form).status_code == 403
    assert not Review.objects.exists()


def test_a_token_never_approves(cast: Cast) -> None:
    request = builders.submitted_request(cast)
    officer = cast.compliance_officer
    actor = Actor(officer.user_id, officer.user.name, token_id=1, permissions=officer.permissions)
    with pytest.raises(NotAllowed, match="token never approves"):
        builders.sign(cast, request, actor=actor)


def test_signing_takes_a_confirmation_a_comment_and_a_fitting_meaning(cast: Cast) -> None:
    request = builders.submitted_request(cast)
    for confirmation in (Confirmation((), timezone.now()), Confirmation(("password",), timezone.now() - timedelta(1))):
        with pytest.raises(NotAllowed, match="Confirm again"):
            builders.sign(cast, request, confirmation=confirmation)
    with pytest.raises(DomainError, match="does not fit"):
        builders.sign(cast, request, meaning=Meaning.REJECTION)
    form = {
        "decision": "APPROVED",
        "meaning": "APPROVAL",
        "password": PASSWORD,
        "approval_digest": request.approval_digest,
    }
    answer = cast.browser("compliance_officer").post(f"/approvals/{request.pk}/review/", form)
    assert answer.status_code == 422
    assert "comment" in answer.context["form"].errors
    assert not Review.objects.exists()


def test_guessing_the_password_ends_the_session(cast: Cast) -> None:
    request = builders.submitted_request(cast)
    browser = cast.browser("compliance_officer")
    form = {
        "decision": "APPROVED",
        "meaning": "APPROVAL",
        "comment": "x",
        "password": "guess",
        "approval_digest": request.approval_digest,
    }
    codes = [browser.post(f"/approvals/{request.pk}/review/", form).status_code for _ in range(5)]
    assert codes == [422, 422, 422, 422, 302]
    assert browser.get("/models/").status_code == 302


def test_a_stale_page_and_altered_evidence_cannot_be_signed(cast: Cast) -> None:
    request = builders.submitted_request(cast)
    with pytest.raises(Conflict, match="not what you saw"):
        builders.sign(cast, request, approval_digest="0" * 64)
    PromotionRequest.objects.update(evidence=request.evidence | {"endpoint": "another"})
    with pytest.raises(Conflict, match="the evidence changed"):
        builders.sign(cast, request)


def test_what_changes_between_approval_and_rollout_is_not_served(cast: Cast) -> None:
    request = builders.submitted_request(cast)
    builders.sign(cast, request)
    PromotionRequest.objects.update(evidence=request.evidence | {"endpoint": "another"})
    rollouts.apply_promotions()
    before, request = request, _reload(request)
    assert (request.state, request.rollout, request.round) == (RequestState.SUBMITTED, RolloutState.WAITING, 2)
    assert request.approval_digest != before.approval_digest
    review = Review.objects.get()
    assert "the evidence changed" in review.void_reason
    assert not Deployment.objects.exists()
    page = cast.browser("analyst").get(f"/approvals/{request.pk}/").content.decode()
    assert "<s>Approve: Cora Blom</s>" in page
    assert AuditEvent.objects.filter(action="promotion.approval_voided").count() == 1
    builders.sign(cast, request)
    rollouts.apply_promotions()
    assert Deployment.objects.count() == 1


def test_a_rejection_ends_it(cast: Cast) -> None:
    request = builders.submitted_request(cast)
    builders.sign(cast, request, Decision.REJECTED)
    rollouts.apply_promotions()
    request = _reload(request)
    assert (request.state, request.rollout) == (RequestState.REJECTED, RolloutState.ENDED)
    assert current_champion(request.endpoint) is None
    with pytest.raises(Conflict, match="Too late"):
        builders.sign(cast, request)


@pytest.mark.django_db(transaction=True)
def test_of_two_decisions_at_once_exactly_one_counts(cast: Cast) -> None:
    request = builders.submitted_request(cast)
    outcomes: list[str] = []
    barrier = threading.Barrier(2)

    def decide(decision: Decision) -> None:
        barrier.wait()
        try:
            outcomes.append(builders.sign(cast, request, decision).decision)
        except Conflict as error:
            outcomes.append(type(error).__name__)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=decide, args=(decision,)) for decision in (Decision.APPROVED, Decision.REJECTED)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(outcomes) == 2
    assert "Conflict" in outcomes
    assert Review.objects.count() == 1
    assert _reload(request).state == Review.objects.get().decision


def test_approved_is_applied_and_followed_until_it_is_live(cast: Cast) -> None:
    request = builders.live_request(cast)
    assert request.rollout == RolloutState.APPLYING
    manifest = ServingManifest.objects.get()
    assert f'"promotion_request_id":{request.pk}' in manifest.body
    rollouts.apply_promotions()
    assert _reload(request).rollout == RolloutState.APPLYING  # no replica has said anything
    replica = _replica(loaded=[])
    rollouts.apply_promotions()
    assert _reload(request).rollout == RolloutState.APPLYING
    replica.loaded = [{"deployment_id": request.deployment_id}]
    replica.save()
    rollouts.apply_promotions()
    request = _reload(request)
    assert (request.rollout, request.applied_at is not None) == (RolloutState.LIVE, True)
    actions = list(
        AuditEvent.objects.filter(object_type="promotions.promotionrequest").values_list("action", flat=True)
    )
    assert actions == [
        "promotion.applied",
        "promotion.rollout_started",
        "promotion.approved",
        "promotion.submitted",
    ]


def test_a_version_that_inference_cannot_load_is_reported(cast: Cast) -> None:
    request = builders.live_request(cast)
    _replica(errors=[{"deployment_id": request.deployment_id, "message": "The digest does not fit."}])
    rollouts.apply_promotions()
    request = _reload(request)
    assert request.rollout == RolloutState.FAILED
    assert "digest does not fit" in request.rollout_message


def test_a_version_that_loads_at_last_is_live(cast: Cast) -> None:
    request = builders.live_request(cast)
    replica = _replica(errors=[{"deployment_id": request.deployment_id, "message": "The store does not answer."}])
    rollouts.apply_promotions()
    replica.errors, replica.loaded = [], [{"deployment_id": request.deployment_id}]
    replica.save()
    rollouts.apply_promotions()
    assert _reload(request).rollout == RolloutState.LIVE


def test_a_request_ends_when_something_else_serves(cast: Cast) -> None:
    first = builders.live_request(cast)
    replica = _replica(loaded=[{"deployment_id": first.deployment_id}])
    rollouts.apply_promotions()
    second = builders.live_request(cast, to=first.endpoint)
    replica.loaded = [{"deployment_id": second.deployment_id}]
    replica.save()
    rollouts.apply_promotions()
    assert (_reload(first).rollout, _reload(second).rollout) == (RolloutState.ENDED, RolloutState.LIVE)
    roll_back(cast.actor("operator"), endpoint=first.endpoint)
    rollouts.apply_promotions()
    assert _reload(second).rollout == RolloutState.ENDED


def test_numbers_that_the_database_writes_in_another_form_can_be_approved(cast: Cast) -> None:
    version = builders.ready_version(cast)
    run = builders.finished_run(cast, version)
    run.metrics.filter(name="rmse").update(value=1e18)
    request = builders.submitted_request(cast, version)
    assert builders.sign(cast, request).decision == Decision.APPROVED


def test_time_never_approves(cast: Cast) -> None:
    waiting, approved = builders.submitted_request(cast), builders.submitted_request(cast)
    builders.sign(cast, approved)
    PromotionRequest.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert rollouts.expire_promotions() == 2
    for request in (waiting, approved):
        assert _reload(request).state == RequestState.EXPIRED
    rollouts.apply_promotions()
    assert not Deployment.objects.exists()


def test_only_the_requester_withdraws(cast: Cast) -> None:
    request = builders.submitted_request(cast)
    assert cast.browser("operator").post(f"/approvals/{request.pk}/cancel/").status_code == 403
    assert cast.browser("data_scientist").post(f"/approvals/{request.pk}/cancel/").status_code == 302
    assert _reload(request).state == RequestState.CANCELLED


def test_the_inbox_shows_the_officer_what_to_sign_and_nobody_else(cast: Cast) -> None:
    request = builders.submitted_request(cast)
    officer = cast.browser("compliance_officer").get("/")
    assert [task.request_id for task in officer.context["tasks"]] == [request.pk]
    assert '1<span class="sr-only"> open</span>' in officer.content.decode()
    assert list(cast.browser("data_scientist").get("/").context["tasks"]) == []


def test_requests_over_rest(cast: Cast) -> None:
    version, endpoint = builders.ready_version(cast), builders.endpoint(cast)
    api = cast.api("data_scientist")
    body = {"endpoint": endpoint.name, "model": version.model.name, "model_version": 1, "justification": "Better."}
    made = api.post("/api/v1/promotions/", body)
    assert made.status_code == 201
    assert made.json()["evidence"]["candidate"]["number"] == 1
    assert "evidence" not in api.get("/api/v1/promotions/").json()["results"][0]
    assert api.post("/api/v1/promotions/", body).status_code == 409
    missing = api.post("/api/v1/promotions/", body | {"endpoint": "nowhere"})
    assert (missing.status_code, missing.json()["errors"][0]["pointer"]) == (422, "/endpoint")
    assert api.post(f"/api/v1/promotions/{made.json()['id']}/cancel/").json()["state"] == "CANCELLED"


@pytest.mark.parametrize("address", ["/approvals/", "/"])
def test_lists_cost_the_same_however_long(cast: Cast, address: str, django_assert_max_num_queries: Any) -> None:
    for _ in range(4):
        builders.submitted_request(cast)
    browser = cast.browser("compliance_officer")
    with django_assert_max_num_queries(16 if address == "/" else 8):
        browser.get(address)
