"""Sign-in, members, invitations and tokens."""

from __future__ import annotations

from typing import Any

from allauth.account.internal.flows.login import perform_password_login
from allauth.account.models import Login
from django.contrib import messages
from django.contrib.auth import logout
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from apps.accounts import entrance, factors, services, sign_on
from apps.accounts.forms import (
    AcceptInvitationForm,
    GroupMappingForm,
    InvitationForm,
    MemberForm,
    SecondFactorForm,
    ServiceAccountForm,
    TokenForm,
)
from apps.accounts.middleware import TEAM_SESSION_KEY
from apps.accounts.models import ApiToken, GroupMapping, Invitation, Membership
from apps.core.errors import DomainError
from apps.core.htmx import render
from apps.core.permissions import SIGNED_IN, public, require


@require_POST
@public
def sign_out(request: HttpRequest) -> HttpResponse:
    """End the session, also one that is only half begun."""
    logout(request)
    return redirect("accounts:sign-in")


@require_POST
@require(SIGNED_IN)
def team_switch(request: HttpRequest) -> HttpResponse:
    """Work in another of one's teams."""
    membership = get_object_or_404(
        Membership.objects.active(), user=request.user, team__slug=request.POST.get("team", "").replace("\x00", "")
    )
    request.session[TEAM_SESSION_KEY] = membership.team.slug
    messages.success(request, f"You now work in {membership.team.name}.")
    return redirect("promotions:inbox")


@never_cache
@require_http_methods(["GET", "POST"])
@public
@sensitive_post_parameters("password")
def invitation_accept(request: HttpRequest, secret: str) -> HttpResponse:
    """Join a team by the link of an invitation."""
    invitation = Invitation.objects.select_related("team").filter(digest=services.digest_of(secret)).first()
    if invitation is not None and not invitation.is_open:
        invitation = None
    form = AcceptInvitationForm(request.POST or None)
    if invitation is not None and request.method == "POST" and form.is_valid():
        try:
            address = request.META.get("REMOTE_ADDR", "")
            with entrance.counted_try(request, invitation.email):
                membership = services.accept_invitation(
                    secret=secret, **form.cleaned_data, address=address, request_id=request.request_id
                )
        except DomainError as error:
            form.add_error(error.field, error.message)
        else:
            # Somebody who had an account before may have a second factor, too.
            response = perform_password_login(request, {"email": membership.user.email}, Login(user=membership.user))
            request.session[TEAM_SESSION_KEY] = membership.team.slug
            return response  # type: ignore[no-any-return]
    status = 404 if invitation is None else 422 if form.errors else 200
    context = {"form": form, "invitation": invitation}
    return render(request, "accounts/invitation_accept.html", context, status=status)


@require_http_methods(["GET", "POST"])
@require("accounts.administer")
def member_list(request: HttpRequest) -> HttpResponse:
    """The team's members and open invitations; POST invites somebody."""
    form = InvitationForm(request.POST or None)
    link = ""
    if request.method == "POST" and form.is_valid():
        try:
            invitation, secret = services.invite_member(request.actor, team=request.team, **form.cleaned_data)
        except DomainError as error:
            form.add_error(error.field, error.message)
        else:
            link = request.build_absolute_uri(reverse("accounts:invitation-accept", args=[secret]))
            messages.success(request, f"Invited {invitation.email}. Send them the link below: it is shown only once.")
            form = InvitationForm()
    context = {
        "form": form,
        "link": link,
        "members": Membership.objects.for_team(request.team).people().select_related("user")[:500],
        "invitations": Invitation.objects.for_team(request.team).filter(accepted_at=None)[:200],
    }
    return render(request, "accounts/member_list.html", context, status=422 if form.errors else 200)


@require_POST
@require("accounts.administer")
def invitation_revoke(request: HttpRequest, pk: int) -> HttpResponse:
    """Make an invitation's link useless."""
    invitation = get_object_or_404(Invitation.objects.for_team(request.team), pk=pk)
    services.revoke_invitation(request.actor, invitation=invitation)
    messages.success(request, f"The invitation of {invitation.email} is void.")
    return redirect("accounts:member-list")


@require_http_methods(["GET", "POST"])
@require("accounts.administer")
def member_edit(request: HttpRequest, pk: int) -> HttpResponse:
    """One member's roles."""
    membership = get_object_or_404(Membership.objects.for_team(request.team).select_related("user"), pk=pk)
    initial = {"roles": membership.roles, "is_active": membership.is_active}
    form = MemberForm(request.POST or None, initial=initial)
    if request.method == "POST" and form.is_valid():
        try:
            services.change_member(request.actor, membership=membership, **form.cleaned_data)
        except DomainError as error:
            form.add_error(error.field, error.message)
        else:
            messages.success(request, f"Changed {membership.user.name}.")
            return redirect("accounts:member-list")
    context = {"form": form, "membership": membership}
    return render(request, "accounts/member_edit.html", context, status=422 if form.errors else 200)


@require_http_methods(["GET", "POST"])
@require("accounts.administer")
def service_account_list(request: HttpRequest) -> HttpResponse:
    """The team's programs; POST makes one."""
    form = ServiceAccountForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            account = services.create_service_account(request.actor, team=request.team, **form.cleaned_data)
        except DomainError as error:
            form.add_error(error.field, error.message)
        else:
            return redirect("accounts:service-account-detail", pk=account.pk)
    context = {"form": form, "accounts": _service_accounts(request)[: services.MAX_SERVICE_ACCOUNTS]}
    return render(request, "accounts/service_account_list.html", context, status=422 if form.errors else 200)


@never_cache
@require_http_methods(["GET", "POST"])
@require("accounts.administer")
def service_account_detail(request: HttpRequest, pk: int) -> HttpResponse:
    """One program's tokens; POST creates one and shows it this once."""
    account = get_object_or_404(_service_accounts(request), pk=pk)
    form = TokenForm(request.POST or None)
    secret = ""
    if request.method == "POST" and form.is_valid():
        try:
            _, secret = services.create_token(request.actor, membership=account, **form.cleaned_data)
        except DomainError as error:
            form.add_error(error.field, error.message)
        else:
            form = TokenForm()
    context = {"account": account, "form": form, "secret": secret, "tokens": account.tokens.all()[:200]}
    return render(request, "accounts/service_account_detail.html", context, status=422 if form.errors else 200)


def _service_accounts(request: HttpRequest) -> Any:
    accounts = Membership.objects.for_team(request.team).filter(user__is_service=True)
    return accounts.select_related("user", "team")


@require_http_methods(["GET", "POST"])
@require("accounts.administer")
def sign_in_settings(request: HttpRequest) -> HttpResponse:
    """How the team's members sign in; POST says whether they need a second factor."""
    form = SecondFactorForm(request.POST if request.method == "POST" else None, initial=_second_factor(request))
    if request.method == "POST" and form.is_valid():
        try:
            services.require_second_factor(request.actor, team=request.team, **form.cleaned_data)
        except DomainError as error:
            form.add_error(None, error.message)
        else:
            messages.success(request, "Saved.")
            return redirect("accounts:sign-in-settings")
    return _sign_in_settings(request, form, GroupMappingForm())


@require_POST
@require("accounts.administer")
def group_mapping_add(request: HttpRequest) -> HttpResponse:
    """Give a group of the organisation a role."""
    form = GroupMappingForm(request.POST)
    if form.is_valid():
        try:
            services.map_group(request.actor, team=request.team, **form.cleaned_data)
        except DomainError as error:
            form.add_error(error.field, error.message)
        else:
            messages.success(request, "Added. It holds from each member’s next sign-in on.")
            return redirect("accounts:sign-in-settings")
    return _sign_in_settings(request, SecondFactorForm(initial=_second_factor(request)), form)


@require_POST
@require("accounts.administer")
def group_mapping_remove(request: HttpRequest, pk: int) -> HttpResponse:
    """Take the role from the group."""
    mapping = get_object_or_404(GroupMapping.objects.for_team(request.team).select_related("team"), pk=pk)
    services.unmap_group(request.actor, mapping=mapping)
    messages.success(request, "Removed.")
    return redirect("accounts:sign-in-settings")


def _second_factor(request: HttpRequest) -> dict[str, bool]:
    return {"is_required": request.team.requires_second_factor}


def _sign_in_settings(request: HttpRequest, form: SecondFactorForm, mapping_form: GroupMappingForm) -> HttpResponse:
    context = {
        "form": form,
        "mapping_form": mapping_form,
        "mappings": GroupMapping.objects.for_team(request.team)[: services.MAX_GROUP_MAPPINGS],
        "without": factors.people_without_second_factor(request.team),
        "provider": sign_on.provider_name(),
        "callback": sign_on.callback_url(request),
    }
    return render(
        request, "accounts/sign_in_settings.html", context, status=422 if form.errors or mapping_form.errors else 200
    )


@never_cache
@require_http_methods(["GET", "POST"])
@require("team.view")
def token_list(request: HttpRequest) -> HttpResponse:
    """One's own tokens; POST creates one and shows it this once. Admins see everybody's."""
    form = TokenForm(request.POST or None)
    secret = ""
    if request.method == "POST" and form.is_valid():
        try:
            _, secret = services.create_token(request.actor, membership=request.membership, **form.cleaned_data)
        except DomainError as error:
            form.add_error(error.field, error.message)
        else:
            form = TokenForm()
    context = {"form": form, "secret": secret, "tokens": visible_tokens(request)[:500]}
    return render(request, "accounts/token_list.html", context, status=422 if form.errors else 200)


def visible_tokens(request: HttpRequest) -> Any:
    """An admin's view is the whole team's tokens, anybody else's their own."""
    tokens = ApiToken.objects.for_team(request.team).select_related("membership__user")
    return tokens if request.actor.can("accounts.administer") else tokens.filter(membership=request.membership)


@require_POST
@require("team.view")
def token_revoke(request: HttpRequest, pk: int) -> HttpResponse:
    """Revoke a token."""
    token = services.revoke_token(request.actor, token=get_object_or_404(visible_tokens(request), pk=pk))
    messages.success(request, f"Revoked {token.name}. Calls with it are refused from now on.")
    return redirect("accounts:token-list")


@require_GET
@require(SIGNED_IN)
def settings_home(request: HttpRequest) -> HttpResponse:
    """Where “Settings” leads: members for an admin, tokens for everybody else."""
    return redirect("accounts:member-list" if request.actor.can("accounts.administer") else "accounts:token-list")
