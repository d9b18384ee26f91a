"""Everything that the page of a request shows."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest

from apps.accounts.confirmation import challenge_of
from apps.deployments.models import Deployment
from apps.deployments.observed import observe
from apps.deployments.services import current_champion
from apps.policies.gates import GateResult
from apps.promotions import break_glass, charts, reviews, rules
from apps.promotions.binding import what_changed
from apps.promotions.evidence import collect_evidence, dataset_differences, metric_differences, newest_load_tests
from apps.promotions.forms import (
    AfterwardsForm,
    CommentForm,
    ResolutionForm,
    ReviewForm,
    SignatureForm,
    condition_forms,
)
from apps.promotions.models import FindingState, PromotionRequest, RequestState, RolloutState

_MAX_PEOPLE = 50


def request_page(request: HttpRequest, promotion: PromotionRequest, **bound: Any) -> dict[str, Any]:
    """The context of the page; ``bound`` are forms that came back with errors, by name."""
    evidence = promotion.evidence or _preview(promotion)
    differences = metric_differences(evidence)
    return (
        rollout_card(promotion)
        | _decision(request, promotion)
        | {
            "evidence": evidence,
            "other_champion": _other_champion(promotion, evidence),
            "differences": differences,
            "chart": charts.metric_comparison(differences),
            "datasets": dataset_differences(evidence),
            "load_tests": newest_load_tests(evidence),
            "reviews": promotion.reviews.all(),
            "comments": promotion.comments.prefetch_related("revisions"),
            "comment_form": CommentForm(),
            "user_id": request.actor.user_id,
        }
        | bound
    )


def _other_champion(promotion: PromotionRequest, evidence: dict[str, Any]) -> Deployment | None:
    """What serves by now, if a decision is open and the evidence compares with something else."""
    champion = current_champion(promotion.endpoint) if promotion.is_submitted else None
    if champion is None:
        return None
    version, compared = champion.model_version, evidence["champion"] or {}
    is_same = (version.model.name, version.number) == (compared.get("model"), compared.get("number"))
    return None if is_same else champion


def _preview(promotion: PromotionRequest) -> dict[str, Any]:
    """What would be frozen if the draft were submitted now."""
    return collect_evidence(
        model_version=promotion.model_version,
        endpoint=promotion.endpoint,
        champion=current_champion(promotion.endpoint),
        initial_weight=promotion.initial_weight,
    )


def _decision(request: HttpRequest, promotion: PromotionRequest) -> dict[str, Any]:
    """Who may decide what, and the forms for those who may."""
    actor, known = request.actor, rules.eligibility(promotion)
    seen = {"approval_digest": promotion.approval_digest}
    is_own = promotion.requested_by_id == actor.user_id
    why_not_revoke = rules.why_not(actor, promotion) if promotion.is_approved else "Nothing is approved."
    findings = list(promotion.findings.select_related("owner"))
    for finding in findings:
        finding.request = promotion
        finding.is_mine = finding.owner_id == actor.user_id and finding.state == FindingState.OPEN
        waits = finding.state == FindingState.RESOLVED
        finding.is_to_judge = waits and promotion.is_approved and not _why_not_judge(actor.user_id, finding, known)
    return {
        "why_not": reviews.why_not_review(actor, promotion),
        "why_not_confirm": break_glass.why_not_confirm(actor, promotion) if promotion.is_break_glass else "",
        "why_not_afterwards": break_glass.why_not_review_afterwards(actor, promotion),
        "is_unreviewed": promotion.is_break_glass and promotion.is_approved and promotion.reviewed_at is None,
        "why_not_revoke": why_not_revoke,
        "may": known.may[:_MAX_PEOPLE],
        "may_not": known.may_not[:_MAX_PEOPLE],
        "lacking": known.lacking if promotion.endpoint.is_protected else (),
        "policy": promotion.policy_version or rules.policy_for(promotion),
        "gates": _gates(promotion),
        "missing": rules.missing(promotion, promotion.reviews.approvals()) if promotion.is_submitted else (),
        "broken": what_changed(promotion) if promotion.is_submitted or promotion.is_approved else "",
        "findings": findings,
        "resolution_form": ResolutionForm(),
        "form": ReviewForm(initial=seen),
        "signature_form": SignatureForm(initial=seen, auto_id="id_%s_signature"),
        "afterwards_form": AfterwardsForm(initial=seen, auto_id="id_%s_afterwards"),
        "challenge": challenge_of(request),
        "conditions": condition_forms(None, [*known.may, *(person for person, _ in known.may_not)]),
        "may_cancel": is_own and (promotion.is_open or promotion.state == RequestState.DRAFT),
        "may_revise": is_own and promotion.is_revisable,
        "may_submit": is_own and promotion.state == RequestState.DRAFT,
    }


def _gates(promotion: PromotionRequest) -> list[GateResult]:
    """The checklist: every gate of the policy, and the approvals as the last one; a draft has been judged by none."""
    if not promotion.evidence:
        return []
    approvals = rules.approvals_gate(promotion, promotion.reviews.approvals())
    return [*rules.gate_results(promotion), *([approvals] if promotion.endpoint.is_protected else [])]


def _why_not_judge(user_id: int | None, finding: Any, known: rules.Eligibility) -> bool:
    return finding.owner_id == user_id or user_id not in known.ids


def rollout_card(promotion: PromotionRequest) -> dict[str, Any]:
    """The rollout's card, which polls itself."""
    deployment = Deployment.objects.filter(pk=promotion.deployment_id).first() if promotion.deployment_id else None
    is_rolling = promotion.rollout in (RolloutState.QUEUED, RolloutState.APPLYING)
    return {
        "promotion": promotion,
        "deployment": deployment,
        "observed": observe(deployment) if deployment and deployment.retired_at is None else None,
        "is_rolling": is_rolling,
    }
