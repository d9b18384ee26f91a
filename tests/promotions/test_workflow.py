"""Rounds, conditions, comments, tasks, emergencies and revocations: what happens beside a plain yes or no."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from apps.accounts.services import change_member
from apps.audit.actor import Actor
from apps.audit.models import AuditEvent
from apps.core.errors import Conflict, DomainError, NotAllowed
from apps.deployments.models import Deployment, Endpoint, ManifestRefusal, Replica, ServingManifest
from apps.deployments.refusals import note_refused_manifests
from apps.deployments.services import current_champion, roll_back, rollback_target
from apps.jobs.runner import run_inline
from apps.policies.documents import ApprovalRule, Fallback, GateRule, Mode
from apps.policies.models import PolicyVersion
from apps.policies.services import confirm_policy
from apps.promotions import break_glass, comments, reviews, rollouts, services
from apps.promotions.models import (
    Decision,
    Finding,
    FindingState,
    PromotionRequest,
    RequestState,
    Review,
    ReviewTask,
    RolloutState,
    Severity,
)
from apps.registry.models import ModelVersion
from apps.registry.services import protect_alias, set_alias, upload_model_version
from tests import builders
from tests.conftest import PASSWORD, Cast


def _reload(request: PromotionRequest) -> PromotionRequest:
    return PromotionRequest.objects.with_names().select_related("team").get(pk=request.pk)


def _actions(request: PromotionRequest) -> list[str]:
    events = AuditEvent.objects.filter(object_type="promotions.promotionrequest", object_id=str(request.pk))
    return list(events.order_by("id").values_list("action", flat=True))


def _condition(cast: Cast, **changes: Any) -> reviews.Condition:
    values = {
        "title": "Evaluate it on the rows of March",
        "severity": Severity.HIGH,
        "owner_id": cast.data_scientist.user_id,
        "due_on": timezone.now().date() + timedelta(days=7),
    }
    return reviews.Condition(**(values | changes))


def _approved_with_condition(cast: Cast, **of_request: Any) -> tuple[PromotionRequest, Finding]:
    request = builders.submitted_request(cast, **of_request)
    builders.sign(cast, request, Decision.APPROVED_WITH_CONDITIONS, conditions=[_condition(cast)])
    rollouts.apply_promotions()
    return _reload(request), Finding.objects.select_related("request").get()


def test_a_draft_freezes_nothing_until_it_is_submitted(cast: Cast) -> None:
    version, endpoint, scientist = builders.ready_version(cast), builders.endpoint(cast), cast.actor("data_scientist")
    draft = services.draft_promotion(
        scientist, team=cast.team, model_version=version, endpoint=endpoint, justification="Soon."
    )
    assert (draft.state, draft.evidence, draft.approval_digest) == (RequestState.DRAFT, {}, "")
    assert not ReviewTask.objects.exists()
    assert cast.browser("analyst").get(f"/approvals/{draft.pk}/").status_code == 200
    services.revise_promotion(scientist, request=draft, justification="Now.", initial_weight=100)
    with pytest.raises(NotAllowed, match="Only the person who made"):
        services.submit_promotion(cast.actor("operator"), request=draft)
    request = services.submit_promotion(scientist, request=draft)
    assert (request.state, request.round, request.justification) == (RequestState.SUBMITTED, 1, "Now.")
    assert request.evidence["candidate"]["number"] == version.number


def test_changes_are_asked_for_and_the_next_round_starts_over(cast: Cast) -> None:
    request = builders.submitted_request(cast)
    builders.sign(cast, request, Decision.CHANGES_REQUESTED, comment="Compare it on newer rows.")
    request = _reload(request)
    assert (request.state, request.state_reason) == (RequestState.CHANGES_REQUESTED, "Compare it on newer rows.")
    assert "Compare it on newer rows." in cast.browser("data_scientist").get("/").content.decode()
    builders.finished_run(cast, request.model_version)
    revised = services.revise_promotion(
        cast.actor("data_scientist"), request=request, justification="Newer rows.", initial_weight=100
    )
    assert (revised.state, revised.round) == (RequestState.SUBMITTED, 2)
    assert revised.evidence_digest != request.evidence_digest
    assert Review.objects.get().voided_at is not None
    with pytest.raises(Conflict, match="not what you saw"):
        builders.sign(cast, request)
    builders.sign(cast, revised)
    assert _reload(request).state == RequestState.APPROVED


def test_revising_an_approved_request_voids_the_approval(cast: Cast) -> None:
    request = builders.submitted_request(cast)
    builders.sign(cast, request)
    services.revise_promotion(
        cast.actor("data_scientist"), request=request, justification="Another text.", initial_weight=100
    )
    rollouts.apply_promotions()
    assert _reload(request).state == RequestState.SUBMITTED
    assert not Deployment.objects.exists()
    assert Review.objects.get().void_reason == "Mira Sato revised the request."


def test_a_role_lost_between_page_and_signature_is_lost(cast: Cast) -> None:
    request, officer = builders.submitted_request(cast), cast.actor("compliance_officer")
    change_member(cast.actor("admin"), membership=cast.compliance_officer, roles=["analyst"], is_active=True)
    with pytest.raises(NotAllowed):
        builders.sign(cast, request, actor=officer)
    change_member(
        cast.actor("admin"), membership=cast.compliance_officer, roles=["compliance_officer"], is_active=False
    )
    with pytest.raises(NotAllowed, match="not a member"):
        builders.sign(cast, request, actor=officer)
    assert not Review.objects.exists()


def test_a_reviewer_sees_that_another_version_answers_than_the_evidence_compares_with(cast: Cast) -> None:
    endpoint, model = builders.endpoint(cast), builders.model(cast)
    first, second, third = (builders.recorded_version(cast, model) for _ in range(3))
    builders.live_request(cast, first, endpoint)
    waiting = builders.submitted_request(cast, third, endpoint)
    address, officer = f"/approvals/{waiting.pk}/", cast.browser("compliance_officer")
    assert "answers by now" not in officer.get(address).content.decode()
    builders.live_request(cast, second, endpoint)
    assert f"{second} answers by now" in officer.get(address).content.decode()


def test_a_stale_page_is_a_conflict_with_a_sentence(cast: Cast) -> None:
    request = builders.submitted_request(cast)
    form = {
        "decision": "APPROVED",
        "meaning": "APPROVAL",
        "comment": "x",
        "password": PASSWORD,
        "approval_digest": request.approval_digest,
    }
    services.revise_promotion(cast.actor("data_scientist"), request=request, justification="More.", initial_weight=100)
    answer = cast.browser("compliance_officer").post(f"/approvals/{request.pk}/review/", form)
    assert answer.status_code == 409
    assert "changed meanwhile" in answer.content.decode()


def test_a_condition_is_met_and_accepted_by_somebody_else(cast: Cast) -> None:
    request, finding = _approved_with_condition(cast)
    assert (request.state, request.rollout) == (RequestState.APPROVED_WITH_CONDITIONS, RolloutState.APPLYING)
    assert "Evaluate it on the rows of March" in cast.browser("data_scientist").get("/").content.decode()
    scientist, officer = cast.browser("data_scientist"), cast.browser("compliance_officer")
    address = f"/approvals/{request.pk}/findings/{finding.pk}"
    assert officer.post(f"{address}/resolve/", {"resolution": "Done."}).status_code == 403
    assert scientist.post(f"{address}/resolve/", {"resolution": "Run 7 says so."}).status_code == 302
    assert scientist.post(f"{address}/judge/", {"accept": "1"}).status_code == 403
    assert officer.post(f"{address}/judge/", {"reopen": "1"}).status_code == 302
    assert scientist.post(f"{address}/resolve/", {"resolution": "Run 8 says so."}).status_code == 302
    assert officer.post(f"{address}/judge/", {"accept": "1"}).status_code == 302
    finding.refresh_from_db()
    assert (finding.state, finding.closed_by) == (FindingState.CLOSED, "Cora Blom")
    Finding.objects.update(due_at=timezone.now() - timedelta(days=1))
    assert rollouts.enforce_approvals() == 0


def test_conditions_and_decision_have_to_fit(cast: Cast) -> None:
    request = builders.submitted_request(cast)
    with pytest.raises(DomainError, match="at least one"):
        builders.sign(cast, request, Decision.APPROVED_WITH_CONDITIONS)
    with pytest.raises(DomainError, match="has none"):
        builders.sign(cast, request, conditions=[_condition(cast)])
    for wrong in (
        _condition(cast, owner_id=cast.outsider.user_id),
        _condition(cast, due_on=timezone.now().date() - timedelta(days=1)),
    ):
        with pytest.raises(DomainError):
            builders.sign(cast, request, Decision.APPROVED_WITH_CONDITIONS, conditions=[wrong])
    form = {
        "decision": "APPROVED_WITH_CONDITIONS",
        "meaning": "APPROVAL",
        "comment": "x",
        "password": PASSWORD,
        "approval_digest": request.approval_digest,
        "condition-0-title": "Evaluate it in March",
        "condition-0-owner": cast.data_scientist.user_id,
        "condition-0-due_on": (timezone.now().date() + timedelta(days=3)).isoformat(),
    }
    officer = cast.browser("compliance_officer")
    assert officer.post(f"/approvals/{request.pk}/review/", form | {"condition-0-owner": ""}).status_code == 422
    assert officer.post(f"/approvals/{request.pk}/review/", form).status_code == 302
    assert Finding.objects.get().severity == Severity.MEDIUM


def test_an_overdue_condition_revokes_and_falls_back_to_what_served_before(cast: Cast) -> None:
    first = builders.live_request(cast)
    second, finding = _approved_with_condition(cast, to=first.endpoint)
    Finding.objects.update(due_at=timezone.now() - timedelta(seconds=1))
    assert rollouts.enforce_approvals() == 1
    second = _reload(second)
    assert (second.state, second.rollout) == (RequestState.REVOKED, RolloutState.ENDED)
    assert finding.title in second.state_reason
    champion = current_champion(first.endpoint)
    assert champion is not None
    assert champion.model_version_id == first.model_version_id
    assert rollback_target(first.endpoint) is None, "nothing goes back to a version whose approval was revoked"
    assert finding.title in cast.browser("analyst").get(f"/endpoints/{first.endpoint.name}/notices/").content.decode()
    assert rollouts.enforce_approvals() == 0


def test_a_revoked_version_with_nothing_before_it_answers_nobody(cast: Cast) -> None:
    request = builders.live_request(cast)
    form = {"comment": "It was trained on the wrong rows.", "password": PASSWORD}
    form["approval_digest"] = request.approval_digest
    assert cast.browser("data_scientist").post(f"/approvals/{request.pk}/revoke/", form).status_code == 403
    assert cast.browser("compliance_officer").post(f"/approvals/{request.pk}/revoke/", form).status_code == 302
    assert _reload(request).state == RequestState.REVOKED
    assert current_champion(request.endpoint) is None
    assert _actions(request)[-1] == "promotion.revoked"


def test_a_revoked_canary_gives_its_share_back(cast: Cast) -> None:
    of = builders.model(cast)
    first = builders.live_request(cast, builders.ready_version(cast, of))
    canary = builders.live_request(cast, builders.ready_version(cast, of), first.endpoint, initial_weight=10)
    PromotionRequest.objects.filter(pk=canary.pk).update(evidence={"altered": True}, rollout=RolloutState.LIVE)
    assert rollouts.enforce_approvals() == 1
    assert "the evidence changed" in _reload(canary).state_reason
    answering = Deployment.objects.filter(endpoint=first.endpoint).answering()
    assert [(row.model_version_id, row.weight) for row in answering] == [(first.model_version_id, 100)]


def test_a_newer_version_in_service_supersedes_what_waits_for_an_older_one(cast: Cast) -> None:
    of, endpoint = builders.model(cast), builders.endpoint(cast)
    older, newer = builders.ready_version(cast, of), builders.ready_version(cast, of)
    waiting = builders.submitted_request(cast, older, endpoint)
    builders.live_request(cast, newer, endpoint)
    assert _reload(waiting).state == RequestState.SUPERSEDED
    with pytest.raises(Conflict, match="superseded already"):
        builders.sign(cast, waiting)


def test_each_reviewer_has_one_task_and_three_reminders_at_most(cast: Cast) -> None:
    request = builders.submitted_request(cast)
    task = ReviewTask.objects.get()
    assert task.reviewer_id == cast.compliance_officer.user_id
    assert reviews.remind_reviewers() == 0
    for days in (1, 3, 7, 30):
        ReviewTask.objects.update(created_at=timezone.now() - timedelta(days=days, minutes=1))
        reviews.remind_reviewers()
    task.refresh_from_db()
    assert task.reminders == 3
    assert "reminder" in cast.browser("compliance_officer").get("/").content.decode()
    change_member(cast.actor("admin"), membership=cast.analyst, roles=["compliance_officer"], is_active=True)
    change_member(cast.actor("admin"), membership=cast.compliance_officer, roles=["analyst"], is_active=True)
    reviews.remind_reviewers()
    assert [row.reviewer_id for row in request.tasks.filter(done_at=None)] == [cast.analyst.user_id]


def test_an_edited_comment_keeps_its_earlier_text(cast: Cast) -> None:
    request, analyst = builders.submitted_request(cast), cast.actor("analyst")
    comment = comments.add_comment(analyst, request=request, body="Which rows?")
    comments.edit_comment(analyst, comment=comment, body="Which rows of March?")
    assert [row.body for row in comment.revisions.all()] == ["Which rows?"]
    with pytest.raises(NotAllowed, match="Only the author"):
        comments.edit_comment(cast.actor("operator"), comment=comment, body="Mine.")
    page = cast.browser("operator").get(f"/approvals/{request.pk}/").content.decode()
    assert "Which rows of March?" in page
    assert "Earlier text" in page
    assert cast.browser("admin").post(f"/approvals/{request.pk}/comments/", {"body": "x"}).status_code == 403


def _emergency(cast: Cast, **changes: Any) -> PromotionRequest:
    values: dict[str, Any] = {
        "team": cast.team,
        "model_version": builders.ready_version(cast),
        "endpoint": builders.endpoint(cast),
        "reason": "The champion answers nonsense since noon.",
        "confirmation": builders.confirmed(),
    }
    return break_glass.break_glass(cast.actor("operator"), **(values | changes))


def _confirm(cast: Cast, who: str, request: PromotionRequest) -> Review:
    return break_glass.confirm_break_glass(
        cast.actor(who),
        request=request,
        comment="Seen with my own eyes.",
        confirmation=builders.confirmed(),
        approval_digest=request.approval_digest,
    )


def test_breaking_the_glass_takes_two_people_and_a_reason(cast: Cast) -> None:
    with pytest.raises(DomainError, match="Say what the emergency is"):
        _emergency(cast, reason="urgent")
    with pytest.raises(NotAllowed):
        break_glass.break_glass(
            cast.actor("data_scientist"),
            team=cast.team,
            model_version=builders.ready_version(cast),
            endpoint=builders.endpoint(cast),
            reason="The champion answers nonsense since noon.",
            confirmation=builders.confirmed(),
        )
    request = _emergency(cast)
    rollouts.apply_promotions()
    assert not Deployment.objects.exists(), "one person alone puts nothing into service"
    for who, why in (
        ("operator", "You requested"),
        ("data_scientist", "You uploaded"),
        ("analyst", "Only an operator"),
    ):
        with pytest.raises(NotAllowed, match=why):
            _confirm(cast, who, request)
    with pytest.raises(NotAllowed, match="second person"):
        builders.sign(cast, request)
    _confirm(cast, "compliance_officer", request)
    rollouts.apply_promotions()
    assert current_champion(request.endpoint) is not None
    assert Finding.objects.get().owner_id == cast.operator.user_id
    for address in ("/", f"/endpoints/{request.endpoint.name}/notices/"):
        assert "not reviewed yet" in cast.browser("analyst").get(address).content.decode()


def test_an_emergency_change_is_reviewed_afterwards_or_taken_back(cast: Cast) -> None:
    request = _emergency(cast)
    change_member(cast.actor("admin"), membership=cast.analyst, roles=["analyst", "compliance_officer"], is_active=True)
    _confirm(cast, "compliance_officer", request)
    rollouts.apply_promotions()
    form = {
        "decision": "APPROVED",
        "comment": "It was right.",
        "password": PASSWORD,
        "approval_digest": request.approval_digest,
    }
    address = f"/approvals/{request.pk}/review-emergency/"
    assert cast.browser("compliance_officer").post(address, form).status_code == 403, "who confirmed does not review"
    assert cast.browser("analyst").post(address, form).status_code == 302
    assert _reload(request).reviewed_at is not None
    assert Finding.objects.get().state == FindingState.CLOSED
    assert cast.browser("analyst").post(address, form).status_code == 409

    late = _emergency(cast)
    _confirm(cast, "compliance_officer", late)
    rollouts.apply_promotions()
    PromotionRequest.objects.filter(pk=late.pk).update(review_due_at=timezone.now() - timedelta(seconds=1))
    assert rollouts.enforce_approvals() == 1
    assert current_champion(late.endpoint) is None


def test_rolling_back_needs_no_approval_but_never_goes_to_a_revoked_one(cast: Cast) -> None:
    first = builders.live_request(cast)
    second = builders.live_request(cast, to=first.endpoint)
    Deployment.objects.filter(pk=first.deployment_id).update(revoked_at=timezone.now())
    with pytest.raises(Conflict, match="no earlier version"):
        roll_back(cast.actor("operator"), endpoint=second.endpoint)


def test_the_workflow_over_rest_and_never_an_approval(cast: Cast) -> None:
    version, endpoint = builders.ready_version(cast), builders.endpoint(cast)
    api, officer = cast.api("data_scientist"), cast.api("compliance_officer")
    body = {"endpoint": endpoint.name, "model": version.model.name, "model_version": 1, "justification": "Better."}
    made = api.post("/api/v1/promotions/", body | {"is_draft": True}).json()
    address = f"/api/v1/promotions/{made['id']}"
    assert made["state"] == "DRAFT"
    submitted = api.post(f"{address}/submit/").json()
    assert (submitted["state"], len(submitted["approval_digest"])) == ("SUBMITTED", 64)
    comment = officer.post(f"{address}/comments/", {"body": "Why now?"}).json()
    officer.patch(f"{address}/comments/{comment['id']}/", {"body": "Why today?"})
    said = api.get(f"{address}/comments/").json()
    assert (said[0]["body"], said[0]["revisions"][0]["body"]) == ("Why today?", "Why now?")
    changes = {"comment": "Newer rows.", "approval_digest": submitted["approval_digest"]}
    assert api.post(f"{address}/request-changes/", changes).status_code == 403
    assert officer.post(f"{address}/request-changes/", changes | {"approval_digest": "0"}).status_code == 409
    assert officer.post(f"{address}/request-changes/", changes).json()["state"] == "CHANGES_REQUESTED"
    revised = api.post(f"{address}/revise/", {"justification": "Newer rows."}).json()
    assert (revised["state"], revised["round"]) == ("SUBMITTED", 2)
    assert officer.post(f"{address}/review/", {}).status_code == 404
    assert not Review.objects.exists()


def _in_force(cast: Cast, **demands: Any) -> PolicyVersion:
    """A policy for limited risk in production that two officers decided on."""
    other = Actor(cast.operator.user_id, "Omar Reyes", permissions=frozenset({"promotions.set_policy"}))
    proposal = builders.proposed_policy(cast, **demands)
    return confirm_policy(other, version=proposal, digest=proposal.digest)


TWO = (ApprovalRule("role:compliance_officer", 1), ApprovalRule("role:analyst", 1))


def test_two_of_two_have_to_approve_and_each_counts_once(cast: Cast) -> None:
    _in_force(cast, approvals=TWO)
    request = builders.submitted_request(cast)
    assert {task.reviewer_id for task in request.tasks.all()} == {
        cast.compliance_officer.user_id,
        cast.analyst.user_id,
    }
    builders.sign(cast, request)
    assert _reload(request).state == RequestState.SUBMITTED
    with pytest.raises(NotAllowed, match="signed already"):
        builders.sign(cast, request)
    page = cast.browser("analyst").get(f"/approvals/{request.pk}/").content.decode()
    assert "1 more from the role analyst" in page
    builders.sign(cast, request, actor=cast.actor("analyst"))
    assert _reload(request).state == RequestState.APPROVED
    assert _actions(request) == ["promotion.submitted", "promotion.approval_signed", "promotion.approved"]


def test_a_signature_weighs_nothing_once_its_role_is_gone(cast: Cast) -> None:
    _in_force(cast, approvals=TWO)
    request = builders.submitted_request(cast)
    builders.sign(cast, request)
    change_member(cast.actor("admin"), membership=cast.compliance_officer, roles=["operator"], is_active=True)
    builders.sign(cast, request, actor=cast.actor("analyst"))
    assert _reload(request).state == RequestState.SUBMITTED


def test_one_rejection_of_several_ends_it(cast: Cast) -> None:
    _in_force(cast, approvals=TWO)
    request = builders.submitted_request(cast)
    builders.sign(cast, request)
    builders.sign(cast, request, Decision.REJECTED, actor=cast.actor("analyst"))
    assert _reload(request).state == RequestState.REJECTED


def test_who_trained_a_version_never_approves_it(cast: Cast) -> None:
    version = upload_model_version(
        cast.actor("data_scientist"),
        model=builders.model(cast),
        file=builders.upload(builders.linear_onnx(77)),
        trained_by=cast.compliance_officer.user.email,
    )
    assert version.job is not None
    assert run_inline(version.job).state == "SUCCEEDED"
    request = builders.submitted_request(cast, ModelVersion.objects.with_facts().get(pk=version.pk))
    with pytest.raises(NotAllowed, match="You trained this version"):
        builders.sign(cast, request)


def test_a_policy_that_changes_leaves_requests_in_flight_alone(cast: Cast) -> None:
    request = builders.submitted_request(cast)
    _in_force(cast, approvals=TWO)
    builders.sign(cast, request)
    assert _reload(request).state == RequestState.APPROVED
    later = builders.submitted_request(cast)
    assert later.policy_version_id != request.policy_version_id
    assert later.binding["policy"]["version"] == later.policy_version_id


def test_a_required_gate_that_does_not_pass_prevents_the_approval(cast: Cast) -> None:
    _in_force(
        cast,
        approvals=(ApprovalRule("role:compliance_officer", 1),),
        gates=(GateRule("lineage"), GateRule("throughput", mode=Mode.WARN, limit=10)),
    )
    request = builders.submitted_request(cast)
    with pytest.raises(DomainError, match="does not let this be approved"):
        builders.sign(cast, request)
    page = cast.browser("analyst").get(f"/approvals/{request.pk}/").content.decode()
    assert page.count("not enough data") >= 2
    builders.sign(cast, request, Decision.REJECTED)
    assert _reload(request).state == RequestState.REJECTED


def test_an_approved_version_waits_as_long_as_the_policy_says(cast: Cast) -> None:
    _in_force(cast, approvals=(ApprovalRule("role:compliance_officer", 1),), wait_minutes=60)
    request = builders.submitted_request(cast)
    builders.sign(cast, request)
    rollouts.apply_promotions()
    assert not Deployment.objects.exists()
    assert "wait timer" in cast.browser("analyst").get(f"/approvals/{request.pk}/rollout/").content.decode()
    hour_ago = timezone.now() - timedelta(minutes=61)
    PromotionRequest.objects.update(decided_at=hour_ago, apply_after=hour_ago)
    rollouts.apply_promotions()
    assert Deployment.objects.count() == 1


def test_a_policy_may_let_a_revoked_version_go_on_serving_or_stop_at_once(cast: Cast) -> None:
    officer = (ApprovalRule("role:compliance_officer", 1),)
    for fallback, serves in ((Fallback.WARN, True), (Fallback.STOP, False)):
        _in_force(cast, approvals=officer, fallback=fallback)
        before = builders.live_request(cast)
        request = builders.live_request(cast, to=before.endpoint)
        reviews.revoke_promotion(
            cast.actor("compliance_officer"),
            request=request,
            comment="Wrong rows.",
            confirmation=builders.confirmed(),
            approval_digest=request.approval_digest,
        )
        champion = current_champion(request.endpoint)
        assert (champion is not None) is serves
        assert champion is None or champion.model_version_id == request.model_version_id


def test_on_an_unprotected_endpoint_the_gates_alone_decide(cast: Cast) -> None:
    endpoint = builders.endpoint(cast)
    Endpoint.objects.filter(pk=endpoint.pk).update(is_protected=False)
    request = builders.submitted_request(cast, to=endpoint)
    assert not request.tasks.exists()
    assert rollouts.approve_unprotected() == 1
    rollouts.apply_promotions()
    assert current_champion(endpoint) is not None
    waiting = builders.submitted_request(cast, to=endpoint)
    assert rollouts.approve_unprotected() == 1
    Endpoint.objects.filter(pk=endpoint.pk).update(is_protected=True)
    rollouts.apply_promotions()
    assert _reload(waiting).state == RequestState.SUBMITTED, "on a protected endpoint somebody has to approve it"
    assert rollouts.enforce_approvals() == 0, "what serves goes on"


def test_a_manifest_altered_in_the_database_raises_an_alert(cast: Cast) -> None:
    builders.live_request(cast)
    assert note_refused_manifests() == 0
    newest = ServingManifest.objects.get()
    ServingManifest.objects.update(body=newest.body.replace('"weight":100', '"weight":99'))
    assert note_refused_manifests() == 1
    assert note_refused_manifests() == 0, "one alert for one refusal"
    event = AuditEvent.objects.filter(action="manifest.refused").get()
    assert "altered in the database" in event.document["after"]["message"]
    operator = cast.browser("operator")
    assert "was tampered with" in cast.browser("analyst").get("/").content.decode()
    assert operator.post("/manifest/acknowledge/", {"reason": ""}).status_code == 422
    assert operator.post("/manifest/acknowledge/", {"reason": "A test of ours."}).status_code == 302
    assert ServingManifest.objects.count() == 2
    assert note_refused_manifests() == 0
    assert "was tampered with" not in cast.browser("analyst").get("/").content.decode()


def test_what_replicas_refuse_raises_an_alert(cast: Cast) -> None:
    request = builders.live_request(cast)
    refusal = {"deployment_id": None, "is_manifest": True, "message": "The newest manifest is refused: it is older."}
    now = timezone.now()
    Replica.objects.create(
        replica_id="r-1", hostname="h", pid=1, started_at=now, seen_at=now, state="READY", errors=[refusal]
    )
    assert note_refused_manifests() == 1
    row = ManifestRefusal.objects.get()
    assert (row.replicas, row.message) == (1, refusal["message"])
    Replica.objects.update(errors=[])
    note_refused_manifests()
    row.refresh_from_db()
    assert row.ended_at is not None
    assert request.team_id in AuditEvent.objects.filter(action="manifest.refused").values_list("team_id", flat=True)


def test_a_protected_alias_moves_with_an_approved_request_and_back_when_it_is_revoked(cast: Cast) -> None:
    of, endpoint = builders.model(cast), builders.endpoint(cast)
    first, second = builders.ready_version(cast, of), builders.ready_version(cast, of)
    scientist, officer = cast.actor("data_scientist"), cast.actor("compliance_officer")
    set_alias(scientist, model_version=first, name="champion")
    values: dict[str, Any] = {"team": cast.team, "endpoint": endpoint, "justification": "Better."}
    with pytest.raises(DomainError, match="no protected alias"):
        services.request_promotion(scientist, model_version=second, alias="champion", **values)
    protect_alias(officer, team=cast.team, name="champion")
    assert "Protected alias" in cast.browser("operator").get(f"/models/{of.name}/versions/2/promote/").content.decode()
    request = services.request_promotion(scientist, model_version=second, alias="champion", **values)
    assert request.binding["plan"]["alias"] == "champion"
    assert of.aliases.get().model_version_id == first.pk
    builders.sign(cast, request)
    rollouts.apply_promotions()
    assert of.aliases.get().model_version_id == second.pk
    reviews.revoke_promotion(
        officer,
        request=request,
        comment="Wrong rows.",
        confirmation=builders.confirmed(),
        approval_digest=request.approval_digest,
    )
    assert of.aliases.get().model_version_id == first.pk
