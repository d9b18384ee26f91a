"""Policies and their versions, risk assessments, external checks, review groups and protection."""

from __future__ import annotations

from typing import Any, Final

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from apps.accounts.confirmation import challenge_of, confirm_identity
from apps.accounts.models import Membership, slug_validator
from apps.core.errors import DomainError
from apps.core.htmx import render
from apps.core.permissions import require
from apps.deployments.models import Endpoint
from apps.deployments.services import protect_endpoint, unprotect_endpoint
from apps.policies import checks, services
from apps.policies.attestations import attest, attestations_due, why_not_attest
from apps.policies.documents import FALLBACK_WORDS, PolicyDocument, Tier, default_document, difference
from apps.policies.forms import (
    AliasProtectionForm,
    AttestationForm,
    CheckKeyForm,
    DecisionForm,
    EnvironmentForm,
    GroupForm,
    PolicyEditor,
    RiskForm,
)
from apps.policies.models import (
    Attestation,
    AttestationLapse,
    CheckKey,
    CheckKeyKind,
    Policy,
    PolicyVersion,
    ReviewGroup,
)
from apps.policies.risk import RULES
from apps.registry.models import AliasProtection, RegisteredModel
from apps.registry.services import protect_alias, unprotect_alias

_USUAL: Final = ("production", "staging")
_MAX_SHOWN: Final = 50


@require_GET
@require("team.view")
def policy_list(request: HttpRequest) -> HttpResponse:
    """What holds in each environment for each tier, and the proposals that wait."""
    policies = Policy.objects.for_team(request.team).for_list()
    found: dict[tuple[str, str], Policy] = {(policy.environment, policy.tier): policy for policy in policies}
    used = Endpoint.objects.for_team(request.team).values_list("environment", flat=True).distinct()
    environments = dict.fromkeys([*_USUAL, *sorted({*used, *(name for name, _ in found)})])
    rows = [
        (name, [_summary(tier, found.get((name, tier.value))) for tier in Tier]) for name in list(environments)[:100]
    ]
    proposals = PolicyVersion.objects.for_team(request.team).proposed().with_names()
    context = {"rows": rows, "proposals": proposals[:_MAX_SHOWN], "form": EnvironmentForm()}
    return render(request, "policies/policy_list.html", context)


def _summary(tier: Tier, policy: Policy | None) -> dict[str, Any]:
    """What a list says of one policy; without a row the built-in document holds."""
    version = policy and next((one for one in policy.versions.all() if one.state == "IN_FORCE"), None)
    document = version.document if version else default_document(tier)
    return {"tier": tier, "version": version, "document": document}


@require_GET
@require("team.view")
def policy_open(request: HttpRequest) -> HttpResponse:
    """Go to the policy of an environment of the team's own."""
    form = EnvironmentForm(request.GET)
    if not form.is_valid():
        raise DomainError("An environment is named by lower-case letters, digits and hyphens.", field="environment")
    wanted = form.cleaned_data
    return redirect("policies:policy-detail", environment=wanted["environment"], tier=wanted["tier"])


@require_GET
@require("team.view")
def policy_detail(request: HttpRequest, environment: str, tier: str) -> HttpResponse:
    """What a policy says now, and what it said before."""
    policy = _policy(request, environment, tier)
    versions = policy.versions.with_names()[:_MAX_SHOWN] if policy else []
    current = next((version for version in versions if version.state == "IN_FORCE"), None)
    context = {
        "environment": environment,
        "tier": Tier(tier),
        "versions": versions,
        "current": current,
        "proposal": next((version for version in versions if version.state == "PROPOSED"), None),
    }
    document = current.document if current else default_document(Tier(tier))
    return render(request, "policies/policy_detail.html", context | _words(document))


def _words(document: PolicyDocument) -> dict[str, Any]:
    """A document with what it says of fallbacks, for a template."""
    attestation = document.attestation
    return {
        "document": document,
        "fallback": FALLBACK_WORDS[document.fallback],
        "attestation_fallback": FALLBACK_WORDS[attestation.fallback] if attestation else "",
    }


@require_http_methods(["GET", "POST"])
@require("promotions.set_policy")
def policy_propose(request: HttpRequest, environment: str, tier: str) -> HttpResponse:
    """Propose what the policy is to say."""
    policy = _policy(request, environment, tier)
    current = policy.versions.in_force().first() if policy else None
    editor = PolicyEditor(
        request.POST if request.method == "POST" else None,
        document=current.document if current else default_document(Tier(tier)),
        groups=services.group_names(request.team),
        checks=CheckKey.objects.for_team(request.team).filter(revoked_at=None).values_list("name", flat=True),
    )
    if request.method == "POST" and editor.is_valid():
        try:
            version = services.propose_policy(
                request.actor,
                team=request.team,
                environment=environment,
                tier=Tier(tier),
                document=editor.document,
                reason=editor.terms.cleaned_data["reason"],
            )
        except DomainError as error:
            editor.terms.add_error(None, error.message)
        else:
            messages.success(request, "Proposed. It holds when another compliance officer has confirmed it.")
            return redirect(version)
    context = {"editor": editor, "environment": environment, "tier": Tier(tier)}
    return render(request, "policies/policy_form.html", context, status=422 if editor.terms.errors else 200)


@require_GET
@require("team.view")
def version_detail(request: HttpRequest, environment: str, tier: str, number: int) -> HttpResponse:
    """One version: what it says, what it changes, who proposed and who confirmed it."""
    version = _version(request, environment, tier, number)
    return _version_page(request, version, DecisionForm(initial={"digest": version.digest}))


@require_POST
@require("promotions.set_policy")
def version_confirm(request: HttpRequest, environment: str, tier: str, number: int) -> HttpResponse:
    """Put a proposal in force."""
    version = _version(request, environment, tier, number)
    form = DecisionForm(request.POST)
    if not form.is_valid():
        return _version_page(request, version, form, status=422)
    services.confirm_policy(request.actor, version=version, **form.cleaned_data)
    messages.success(request, f"{version} is in force. Requests that are under way keep the version before.")
    return redirect(version)


@require_POST
@require("promotions.set_policy")
def version_reject(request: HttpRequest, environment: str, tier: str, number: int) -> HttpResponse:
    """Refuse a proposal, or withdraw one's own."""
    version = _version(request, environment, tier, number)
    form = DecisionForm(request.POST)
    if not form.is_valid():
        return _version_page(request, version, form, status=422)
    services.reject_policy(request.actor, version=version, comment=form.cleaned_data["comment"])
    messages.success(request, "The proposal is off. The policy says what it said before.")
    return redirect(version)


def _version_page(request: HttpRequest, version: PolicyVersion, form: DecisionForm, status: int = 200) -> HttpResponse:
    earlier = version.policy.versions.exclude(state__in=("PROPOSED", "REJECTED")).filter(number__lt=version.number)
    before = earlier.first()
    context = {
        "version": version,
        "before": before,
        "changes": difference(before.document, version.document) if before else (),
        "why_not": services.why_not_confirm(request.actor, version),
        "may_withdraw": request.actor.can("promotions.set_policy") and version.proposed_by_id == request.actor.user_id,
        "form": form,
    }
    return render(request, "policies/version_detail.html", context | _words(version.document), status=status)


@require_http_methods(["GET", "POST"])
@require("team.view")
def risk_assess(request: HttpRequest, name: str) -> HttpResponse:
    """A model's risk: the form, its rules, and what was answered before."""
    model = get_object_or_404(RegisteredModel.objects.for_team(request.team), name=name)
    if request.method == "POST":
        request.actor.require("policies.assess")
    assessments = model.risk_assessments.select_related("assessed_by")[:_MAX_SHOWN]
    newest = assessments[0] if assessments else None
    form = RiskForm(request.POST or None, initial=newest.answers if newest else {})
    if request.method == "POST" and form.is_valid():
        tier = form.cleaned_data["tier"]
        try:
            assessment = services.assess_risk(
                request.actor,
                model=model,
                answers=form.answers,
                tier=Tier(tier) if tier else None,
                override_reason=form.cleaned_data["override_reason"],
            )
        except DomainError as error:
            form.add_error(error.field, error.message)
        else:
            messages.success(request, f"{model.name} counts as {assessment.tier} risk.")
            return redirect("policies:risk-assess", name=name)
    context = {"model": model, "form": form, "assessments": assessments, "newest": newest, "rules": RULES}
    return render(request, "policies/risk_assess.html", context, status=422 if form.errors else 200)


@require_http_methods(["GET", "POST"])
@require("promotions.set_policy")
def check_list(request: HttpRequest) -> HttpResponse:
    """The external checks; a new secret is shown once, in the answer to its creation."""
    form, created, secret = CheckKeyForm(request.POST or None), None, ""
    if request.method == "POST" and form.is_valid():
        wanted = form.cleaned_data
        try:
            created, secret = checks.create_check_key(
                request.actor,
                team=request.team,
                name=wanted["name"],
                kind=CheckKeyKind(wanted["kind"]),
                public_key=wanted["public_key"],
            )
            form = CheckKeyForm()
        except DomainError as error:
            form.add_error(error.field, error.message)
    context = {
        "form": form,
        "created": created,
        "secret": secret,
        "keys": CheckKey.objects.for_team(request.team).select_related("created_by")[:200],
    }
    response = render(request, "policies/check_list.html", context, status=422 if form.errors else 200)
    response["Cache-Control"] = "no-store"
    return response


@require_POST
@require("promotions.set_policy")
def check_revoke(request: HttpRequest, pk: int) -> HttpResponse:
    """Trust a key no more."""
    key = checks.revoke_check_key(request.actor, key=get_object_or_404(CheckKey.objects.for_team(request.team), pk=pk))
    messages.success(request, f"Revoked {key}: gates do not count what it signed.")
    return redirect("policies:check-list")


@require_http_methods(["GET", "POST"])
@require("accounts.administer")
def group_list(request: HttpRequest) -> HttpResponse:
    """The team's review groups, and a new one."""
    form = GroupForm(request.POST or None, members=_members(request))
    if request.method == "POST" and form.is_valid():
        try:
            group = services.save_review_group(request.actor, team=request.team, **form.cleaned_data)
        except DomainError as error:
            form.add_error(error.field, error.message)
        else:
            messages.success(request, f"Made the group {group}. Compliance officers can name it in policies.")
            return redirect("policies:group-list")
    groups = ReviewGroup.objects.for_team(request.team).prefetch_related("members__user")
    context = {"form": form, "groups": groups}
    return render(request, "policies/group_list.html", context, status=422 if form.errors else 200)


@require_http_methods(["GET", "POST"])
@require("accounts.administer")
def group_edit(request: HttpRequest, pk: int) -> HttpResponse:
    """Who is in a group."""
    group = get_object_or_404(ReviewGroup.objects.for_team(request.team), pk=pk)
    initial = {"name": group.name, "members": group.members.all()}
    form = GroupForm(request.POST or None, initial=initial, members=_members(request))
    form.fields["name"].disabled = True
    if request.method == "POST" and form.is_valid():
        services.save_review_group(request.actor, team=request.team, group=group, **form.cleaned_data)
        messages.success(request, f"Changed who is in {group}.")
        return redirect("policies:group-list")
    context = {"form": form, "group": group}
    return render(request, "policies/group_edit.html", context, status=422 if form.errors else 200)


@require_http_methods(["GET", "POST"])
@require("team.view")
def protection(request: HttpRequest) -> HttpResponse:
    """Aliases and endpoints that change by approved requests only."""
    if request.method == "POST":
        request.actor.require("promotions.set_policy")
    form = AliasProtectionForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            alias = protect_alias(request.actor, team=request.team, name=form.cleaned_data["name"])
        except DomainError as error:
            form.add_error(error.field, error.message)
        else:
            messages.success(request, f"{alias} moves by approved requests only.")
            return redirect("policies:protection")
    context = {
        "form": form,
        "aliases": AliasProtection.objects.for_team(request.team).select_related("protected_by", "lifting_proposed_by"),
        "endpoints": Endpoint.objects.for_team(request.team).select_related("lifting_proposed_by")[:500],
    }
    return render(request, "policies/protection.html", context, status=422 if form.errors else 200)


@require_POST
@require("promotions.set_policy")
def alias_unprotect(request: HttpRequest, pk: int) -> HttpResponse:
    """Propose to lift an alias' protection, or confirm it."""
    alias = get_object_or_404(AliasProtection.objects.for_team(request.team), pk=pk)
    is_lifted = unprotect_alias(request.actor, protection=alias)
    proposed = "Proposed. Another compliance officer has to confirm it."
    messages.success(request, f"{alias} moves freely now." if is_lifted else proposed)
    return redirect("policies:protection")


def _members(request: HttpRequest) -> Any:
    return Membership.objects.for_team(request.team).active().select_related("user")


def _policy(request: HttpRequest, environment: str, tier: str) -> Policy | None:
    """The policy's row, if anybody or anything has needed one yet; 404 for what can be no policy."""
    try:
        slug_validator(environment)
        Tier(tier)
    except (ValidationError, ValueError):
        raise Http404 from None
    found: Policy | None = Policy.objects.for_team(request.team).filter(environment=environment, tier=tier).first()
    return found


def _version(request: HttpRequest, environment: str, tier: str, number: int) -> PolicyVersion:
    versions = PolicyVersion.objects.for_team(request.team).with_names()
    found: PolicyVersion = get_object_or_404(
        versions, policy__environment=environment, policy__tier=tier, number=number
    )
    return found


@require_POST
@require("promotions.set_policy")
def endpoint_protection(request: HttpRequest, name: str) -> HttpResponse:
    """Protect an endpoint, or propose or confirm to lift that, as the button says."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team), name=name)
    if "protect" in request.POST:
        protect_endpoint(request.actor, endpoint=endpoint)
        messages.success(request, f"Versions answer on {endpoint.name} by approval only.")
    elif unprotect_endpoint(request.actor, endpoint=endpoint):
        messages.success(request, f"{endpoint.name} is not protected any more.")
    else:
        messages.success(request, "Proposed. Another compliance officer has to confirm it.")
    return redirect("policies:protection")


@require_http_methods(["GET", "POST"])
@require("team.view")
@sensitive_post_parameters("password", "code", "credential")
def attestation(request: HttpRequest, name: str) -> HttpResponse:
    """What answers on an endpoint, until when it has to be attested, and the form to sign."""
    endpoint = get_object_or_404(Endpoint.objects.for_team(request.team).select_related("team"), name=name)
    form = AttestationForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            confirmation = confirm_identity(request, request.POST)
            attest(request.actor, endpoint=endpoint, confirmation=confirmation, **form.cleaned_data)
        except DomainError as error:
            if error.status == 403:
                raise
            form.add_error(error.field, error.message)
        else:
            messages.success(request, "Attested: signed, and the time starts again.")
            return redirect("policies:attestation", name=name)
    due = attestations_due(request.team, endpoint=endpoint, within=None)
    context = {
        "endpoint": endpoint,
        "form": form,
        "due": [(one, why_not_attest(request.actor, one)) for one in due],
        "words": FALLBACK_WORDS,
        "attestations": Attestation.objects.filter(deployment__endpoint=endpoint).select_related(
            "deployment__model_version__model", "policy_version__policy"
        )[:_MAX_SHOWN],
        "lapses": AttestationLapse.objects.filter(deployment__endpoint=endpoint).select_related(
            "deployment__model_version__model"
        )[:_MAX_SHOWN],
        "challenge": challenge_of(request),
    }
    return render(request, "policies/attestation.html", context, status=422 if form.errors else 200)
