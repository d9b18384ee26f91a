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

from apps.accounts import services
from apps.accounts.forms import AcceptInvitationForm, InvitationForm, MemberForm, TokenForm
from apps.accounts.middleware import TEAM_SESSION_KEY
from apps.accounts.models import ApiToken, Invitation, Membership
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
    is_open = invitation is not None and invitation.is_open
    form = AcceptInvitationForm(request.POST or None)
    if is_open and request.method == "POST" and form.is_valid():
        try:
            address = request.META.get("REMOTE_ADDR", "")
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
    status = 404 if not is_open else 422 if form.errors else 200
    context = {"form": form, "invitation": invitation if is_open else None}
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
        "members": Membership.objects.for_team(request.team).select_related("user")[:500],
        "invitations": Invitation.objects.for_team(request.team).filter(accepted_at=None)[:200],
    }
    return render(request, "accounts/member_list.html", context, status=422 if form.errors else 200)


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
